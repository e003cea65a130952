"""Images that a method may see without their labels, never one that is tested on; and `torchrun` on
`fit`, whose steps test_loop.py has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot, half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.folds import Folds
from rmadapter.runs.lab import Lab, Team, without_labels
from rmadapter.runs.run import image_digests, run_key, run_task
from rmadapter.settings import Machine, configured
from rmadapter.support import distributed
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Shots
from rmadapter.training.loop import Recipe
from rmadapter.training.traits import Traits
from tests.helpers.external_methods import ExternalMethod
from tests.helpers.rounding import relative_errors
from tests.helpers.shell import run_process

CPU = configured(Machine(), {"device": "cpu"})
# all that a key reads of a published backbone
WEIGHTS: Any = SimpleNamespace(name="pocket", digest="weights")
CLASSES = ("cat", "dog", "fox", "owl")


def grey(start: int, *labels: int) -> ImageSet:
    """Images that are told by their grey."""
    pixels = tuple(np.full((8, 8, 3), start + i, np.uint8) for i in range(len(labels)))
    return ImageSet(pixels, labels, CLASSES, written=("a", "b", "c", "d"))


def greys(images: ImageSet) -> set[int]:
    return {int(np.asarray(image)[0, 0, 0]) for image in images.images}


SPLITS = {
    "train": grey(0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
    "test": grey(100, 0, 1, 2, 3),
}


class Curious(ExternalMethod):
    """Looks at what it is given."""

    traits: ClassVar[Traits] = Traits(unlabelled=True)
    seen: ClassVar[list[Shots]] = []

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        self.seen.append(shots)
        return super().fit(backbone, shots)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Curious.seen.clear()


def lab_of(backbone: Backbone, **splits: ImageSet) -> Lab:
    lab = Lab(CPU, progress=False)
    lab.add_backbone(backbone)
    lab.add("greys", splits)
    return lab


def task_of(backbone: Backbone, **words: Any) -> Task:
    return configured(Task(), {"data": "greys", "backbone": backbone.name, "shots": 2, **words})


@pytest.mark.parametrize("classes", ["all", "base"])
def test_with_a_test_split_all_train_images_are_seen(tiny_clip: Backbone, classes: str) -> None:
    task = task_of(tiny_clip, classes=classes)
    run_task(task, Curious(), lab_of(tiny_clip, **SPLITS))
    [shots] = Curious.seen
    found = shots.unlabelled
    assert found is not None
    assert greys(found) == {*range(16)}
    assert len(found) == 16  # none of them twice
    assert found.images[: len(shots.images)] == shots.images.images
    assert (found.classes, found.written) == (CLASSES, ("a", "b", "c", "d"))
    assert (found.labels, found.root) == (4 * (0, 1, 2, 3), None)
    # 6 for each of 4 images a class
    assert Recipe(iterations=6, batch_size=8).length(found.labels) == (12, 2)


@pytest.mark.parametrize("splits", [{"train": SPLITS["train"]}, {**SPLITS, "test": grey(0)}])
def test_images_that_are_tested_for_want_of_a_test_split_are_not_seen(
    tiny_clip: Backbone, splits: dict[str, ImageSet]
) -> None:
    """Of the other half only the draw is, which is not tested."""
    lab, task = lab_of(tiny_clip, **splits), task_of(tiny_clip, classes="base")
    run_task(task, Curious(), lab)
    tested = {value for _, images, _ in lab.tests(task) for value in greys(images)}
    found = Curious.seen[0].unlabelled
    assert found is not None
    assert greys(found) == greys(lab.draw(task).train) == {*range(16)} - tested
    assert len(tested) == 8


def test_images_of_the_fold_under_test_are_not_seen(tiny_clip: Backbone) -> None:
    lab, task = lab_of(tiny_clip, **SPLITS), task_of(tiny_clip, shots=4)
    folds = Folds.make(task, lab.draw(task), lab, 2)
    folds.temperature(Curious(), "curious")
    assert len(Curious.seen) == 2
    for shots in Curious.seen:
        assert shots.unlabelled is not None
        assert greys(shots.unlabelled) == greys(shots.images)
        assert len(shots.unlabelled) == 8


def test_other_methods_get_no_unlabelled_images(tiny_clip: Backbone) -> None:
    class Incurious(Curious):
        traits: ClassVar[Traits] = Traits()

    run_task(task_of(tiny_clip), Incurious(), lab_of(tiny_clip, **SPLITS))
    assert [shots.unlabelled for shots in Curious.seen] == [None]
    names = ("prompt-kd", "promptsrc", "rmadapter")
    assert [n for n in names if load_method(n).traits.unlabelled] == ["prompt-kd"]


def test_the_key_includes_unlabelled_images(tiny_clip: Backbone) -> None:
    """Of a method that sees them, and of no other."""
    few = few_shot(SPLITS, 2, 1)
    rest = few.heldout.subset(range(1, len(few.heldout)))
    other = type(few)(few.train, few.val, rest, few.shots, few.seed, few.short)
    task = task_of(tiny_clip)
    for method, same in ((Curious(), False), (load_method("rmadapter"), True)):
        keys = {run_key(task, method, "x", CPU, WEIGHTS, draw) for draw in (few, other)}
        assert (len(keys) == 1) == same
        assert (image_digests(method, few) == image_digests(method, other)) == same


def test_a_pool_of_a_half_by_hand() -> None:
    few = few_shot(SPLITS, 1, 3)
    base = half(few.train, "base")
    assert greys(without_labels(few, base, tested=False)) == {*range(16)}
    assert greys(without_labels(few, base, tested=True)) == greys(few.train)
    rest = greys(few.train) - greys(base.subset([0]))
    assert greys(without_labels(few, base.subset([1]), tested=True)) == rest


# Several processes


LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
LAUNCHED |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
# The command line, saving after every step. In the first of two lives the second process dies in a
# step of the last training. The first process counts the sums.
SCRIPT = """
import atexit, os, signal, sys
from rmadapter.cli.main import main
from rmadapter.training import loop
loop.SAVE_SECONDS, add_up, sums = 0.0, loop.add_up, 0
first, life = os.environ["RANK"] == "0", os.environ["TORCHELASTIC_RESTART_COUNT"]
def counted(*tensors):
    global sums
    sums += 1
    if not first and life == "0" and sums == int(os.environ.get("DIES", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    add_up(*tensors)
loop.add_up = counted
if first:
    atexit.register(lambda: print(f"sums {sums}"))
main()
"""
needs_torchrun = pytest.mark.skipif(
    not dist.is_available(), reason="this torch was built without torch.distributed"
)


@pytest.fixture
def words(tiny_clip: Backbone, colors: Path) -> list[str]:
    """Of a `fit` whose batches do not go evenly into two: seven of the eight images, then the last
    one."""
    settings = "first_block=3 rank=4 epochs=2 batch_size=7 init=kaiming alpha=1 device=cpu"
    words = ["fit", str(colors), "--method", "rmadapter", "--backbone", tiny_clip.name]
    words += ["--shots", "2", "--folds", "2"]
    return [*words, *(f"--set={setting}" for setting in settings.split())]


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)

    def run(words: list[str], out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += ["--nproc-per-node", "2", "--max-restarts", str(int(bool(environment)))]
        command = [*launch, str(script), *words, "--out", str(out)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    return run


@pytest.mark.slow
@needs_torchrun
def test_two_processes_fit_the_model_that_one_fits_though_one_of_them_dies(
    words: list[str], torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    plain = run_process(*words, "--out", tmp_path / "one")
    assert plain.code == 0, plain.err
    one, out = read_record(RunFolder(tmp_path / "one").record), tmp_path / "two"
    # Two folds of a step an epoch, and the training of two: a sum for the terms of the loss and one
    # for all gradients.
    dies = 7 * 2
    done = torchrun(words, out, DIES=str(dies))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rmadapter:")]
    assert said == [f"rmadapter: {distributed.ENDED_MESSAGE}"]
    assert done.stdout.count("report: ") == 1
    # the second life does what the first one had not done
    assert 0 < int(done.stdout.split("sums ")[-1]) < dies
    two = read_record(RunFolder(out).record)
    assert (two.key, two.temperature) == (one.key, pytest.approx(one.temperature, rel=1e-3))
    assert [score.accuracy for score in two.scores] == [score.accuracy for score in one.scores]
    tensors = [load_file(RunFolder(tmp_path / name).weights) for name in ("one", "two")]
    assert max(relative_errors(*tensors).values()) < 1e-4
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.slow
@needs_torchrun
def test_methods_without_steps_are_refused_in_several_processes(
    words: list[str], torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = torchrun([*words[:-7], "--method", "linear-probe", "--set=device=cpu"], tmp_path / "out")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("rmadapter:")]
    [line] = said
    assert line.startswith("rmadapter: linear-probe is not trained step by step: 2 processes")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the first of two processes."""
    for variable, value in LAUNCHED.items():
        monkeypatch.setenv(variable, value)


def test_a_world_size_without_a_launcher_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert not distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not distributed.launched()
    distributed.enter("bench")
    machine = Machine()
    assert Team.of("zero-shot", load_method("zero-shot"), machine).machine is machine
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched()
    assert not distributed.is_helper()
    monkeypatch.setenv("RANK", "1")
    assert distributed.is_helper()
    monkeypatch.setenv("RANK", "first")
    assert not distributed.launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.launched()


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("zero-shot", "cpu", "zero-shot is not trained step by step"),
        ("linear-probe", "cpu", "linear-probe is not trained step by step"),
        ("cocoop", "cpu", "cocoop has batch_size=1"),
        ("prompt-kd", "cpu", "prompt-kd normalises over a batch"),
        ("mma", "cuda:0", "device=cuda"),
        ("mma", "cuda", "process 0 of this machine has no GPU"),
    ],
)
def test_tasks_that_several_processes_cannot_share_are_refused(
    name: str, device: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=words):
        Team.of(name, load_method(name), Machine(device=device))


@pytest.mark.usefixtures("launched")
def test_other_commands_run_in_one_process() -> None:
    with pytest.raises(UserError, match=r"predict .*torchrun"):
        distributed.enter("predict")


@pytest.mark.usefixtures("launched")
def test_all_processes_take_the_number_format_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "broadcast_numbers", lambda numbers: [numbers[0] + 1])
    machine = Team.of("mma", load_method("mma"), Machine(device="cpu")).machine
    assert (machine.precision, machine.device) == ("bf16", "cpu")


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_each_process_works_on_its_own_gpu_alone(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else pinned memory and NCCL would also take some of the first GPU's memory."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = Mock()
    monkeypatch.setattr(torch.cuda, "set_device", chosen)
    monkeypatch.setattr(distributed, "broadcast_numbers", lambda numbers: numbers)
    assert Team.of("mma", load_method("mma"), Machine(device=device)).machine.device == "cuda:1"
    chosen.assert_called_once_with(1)


@pytest.mark.usefixtures("launched")
def test_a_gpu_that_another_program_has_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    busy = torch.AcceleratorError("CUDA error: devices are busy or unavailable\nmore")
    monkeypatch.setattr(torch.cuda, "set_device", Mock(side_effect=busy))
    with pytest.raises(UserError, match=r"process 0 .* busy or unavailable\): .*start fewer"):
        Team.of("mma", load_method("mma"), Machine(device="cuda"))


def test_helpers_join_a_training_only_of_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter([[0, 3, 1], [int("abc", 16), 2], [-1]])
    monkeypatch.setattr(distributed, "broadcast_numbers", lambda _: next(words))
    team = Team(Machine(), load_method("mma"))
    assert list(team.trainings("abc")) == [([3, 1], False), ([2], True)]
    words = iter([[0, 3], [int("abd", 16), 2]])
    with pytest.raises(UserError, match="differ from those of the first process"):
        list(team.trainings("abc"))


@pytest.mark.usefixtures("launched")
def test_an_error_of_a_helper_names_its_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "ERROR_DELAY_SECONDS", 0)
    distributed.print_error("no")
    monkeypatch.setenv("RANK", "1")
    distributed.print_error("no")
    assert capsys.readouterr().err == "rmadapter: no\nrmadapter: process 1: no\n"
