"""One training in several processes: `torchrun` on `fit`. test_loop.py has the steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.lab import Team
from rmadapter.settings import Machine
from rmadapter.support import distributed
from tests.helpers.rounding import relative_errors

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
def counted(tensor):
    global sums
    sums += 1
    if not first and life == "0" and sums == int(os.environ.get("DIES", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    add_up(tensor)
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
    words = ["fit", str(colors), "--backbone", tiny_clip.name, "--shots", "2", "--folds", "2"]
    return [*words, *(f"--set={setting}" for setting in settings.split())]


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)

    def run(words: list[str], out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        launch = (
            f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2".split()
        )
        restarts = ["--max-restarts", str(int(bool(environment)))]
        command = [*launch, *restarts, str(script), *words, "--out", str(out)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    return run


def alone(words: list[str], out: Path) -> Record:
    done = subprocess.run(
        [sys.executable, "-m", "rmadapter", *words, "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return read_record(RunFolder(out).record)


@pytest.mark.slow
@needs_torchrun
def test_two_processes_fit_the_model_that_one_fits_though_one_of_them_dies(
    words: list[str], torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    one = alone(words, tmp_path / "one")
    out = tmp_path / "two"
    # Two folds of a step an epoch, and the training of two: a sum for the terms of the loss and for
    # each parameter.
    dies = 7 * (1 + len(load_file(RunFolder(tmp_path / "one").weights)))
    done = torchrun(words, out, DIES=str(dies))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rmadapter:")]
    assert said == [f"rmadapter: {distributed.ENDED}"]
    assert done.stdout.count("report: ") == 1
    assert (
        0 < int(done.stdout.split("sums ")[-1]) < dies
    )  # the second life does what the first one had not done
    two = read_record(RunFolder(out).record)
    assert (two.key, two.temperature) == (one.key, pytest.approx(one.temperature, rel=1e-3))
    assert [score.accuracy for score in two.scores] == [score.accuracy for score in one.scores]
    tensors = [load_file(RunFolder(tmp_path / name).weights) for name in ("one", "two")]
    assert max(relative_errors(*tensors).values()) < 1e-4
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


@pytest.mark.slow
@needs_torchrun
def test_methods_without_steps_are_refused_in_several_processes(
    words: list[str], torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = torchrun([*words[:-7], "--method", "linear-probe", "--set=device=cpu"], tmp_path / "out")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("rmadapter:")]
    assert said == [
        "rmadapter: linear-probe is not trained step by step: 2 processes have nothing to share; "
        "start one"
    ]
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
def test_all_take_the_number_format_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distributed,
        "broadcast_numbers",
        lambda numbers: [1] if numbers == [0] else pytest.fail("it has fp32"),
    )
    machine = Team.of("mma", load_method("mma"), Machine(device="cpu")).machine
    assert (machine.precision, machine.device) == ("bf16", "cpu")


def test_helpers_take_part_in_the_training_that_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter([[0, 3, 1], [int("abc", 16), 2], [-1]])
    monkeypatch.setattr(distributed, "broadcast_numbers", lambda _: next(words))
    team = Team(Machine(), load_method("mma"))
    assert list(team.trainings("abc")) == [([3, 1], False), ([2], True)]
    words = iter([[0, 3], [int("abd", 16), 2]])
    with pytest.raises(UserError, match="differ from those of the first process"):
        list(team.trainings("abc"))


@pytest.mark.usefixtures("launched")
def test_a_helper_says_who_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "LATER", 0)
    distributed.print_error("no")
    monkeypatch.setenv("RANK", "1")
    distributed.print_error("no")
    assert capsys.readouterr().err == "rmadapter: no\nrmadapter: process 1: no\n"
