"""One run of each kind of question, and that a method which looks for test images finds none."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

from rmadapter.artifacts.record import Record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.runner import run_all
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine, configured
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Shots
from tests.helpers.external_methods import ExternalMethod

OPENED: list[str] | None = None  # files opened while somebody listens; an audit hook stays for good
CPU = configured(Machine(), {"device": "cpu"})


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], (str, Path)):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


@pytest.fixture
def root(colors: Path, tmp_path: Path) -> Path:
    """The colours, a part of them under another name, and two domains of them."""
    shutil.copytree(colors, tmp_path / "colors")
    for split in ("train", "test"):
        for name in ("red", "blue", "green"):
            shutil.copytree(colors / split / name, tmp_path / "fewer" / split / name)
    shutil.copytree(colors, tmp_path / "domains" / "noisy")
    shutil.copytree(colors, tmp_path / "domains" / "loud")
    return tmp_path


def one(
    backbone: Backbone,
    protocol: str,
    *datasets: str,
    shots: int = 2,
    root: Path = Path(),
    **words: Any,
) -> Job:
    common = configured(Task(), {"backbone": backbone.name, **words})
    [job] = expand(protocol, datasets, ["zero-shot"], [1], [shots], root=root, common=common)
    return job


def ask(job: Job, lab: Lab, method: Any = None) -> Record:
    return run_task(job.task, method or load_method("zero-shot"), lab).record


def watched(job: Job, lab: Lab, look: Callable[[Backbone, Shots], object]) -> None:
    class Looking(ExternalMethod):
        def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
            look(backbone, shots)
            return super().fit(backbone, shots)

    run_task(job.task, Looking(), lab)


# ---- what is asked ----


def test_targets_are_what_each_set_gives_by_itself(tiny_clip: Backbone, root: Path) -> None:
    """Zero-shot: the accuracy on a target is that of few-shot on the same set, where nothing else
    is asked."""
    lab = Lab(CPU, root, progress=False)
    alone = {
        name: ask(one(tiny_clip, "few-shot", name), lab).metric("all")
        for name in ("colors", "fewer")
    }
    found = ask(one(tiny_clip, "cross-dataset", "colors", "fewer"), lab)
    assert found.metrics == {"all": alone["colors"], "fewer": alone["fewer"]}
    assert found.metric("average") == alone["fewer"]
    assert [(score.name, score.images) for score in found.scores] == [("all", 16), ("fewer", 12)]
    assert [score.chance for score in found.scores] == [25, pytest.approx(100 / 3)]
    domain = ask(one(tiny_clip, "domain-generalization", "domains/noisy", root=root), lab)
    assert domain.metric("domains/loud") == alone["colors"]


def test_without_a_test_split_the_images_that_were_not_drawn_are_asked(
    tiny_clip: Backbone, root: Path
) -> None:
    lab, job = Lab(CPU, root, progress=False), one(tiny_clip, "few-shot", "colors/train", shots=4)
    [score] = ask(job, lab).scores
    assert (score.images, score.split) == (4 * (6 - 4), "held out")
    [(_, images, _)] = lab.tests(job.task)
    assert not {*lab.draw(job.task).train.images} & {*images.images}
    with pytest.raises(UserError, match="draw fewer shots"):
        run_all(
            Plan((one(tiny_clip, "few-shot", "colors/train", shots=6),), root / "out", root, CPU),
            progress=False,
        )


def test_halves_are_trained_on_base_alone(tiny_clip: Backbone, root: Path) -> None:
    seen: list[ImageSet] = []
    lab, halves = Lab(CPU, root, progress=False), one(tiny_clip, "base-to-novel", "colors")
    for job in (halves, one(tiny_clip, "few-shot", "colors")):
        watched(job, lab, lambda backbone, shots: seen.append(shots.images))
    base, everything = seen
    assert base.classes == ("blue", "green")
    assert everything.classes == ("blue", "green", "night sky", "red")
    assert base.images == everything.images[:4]  # halved after drawing, as CoOp does
    asked = {question.name: images.classes for question, images, _ in lab.tests(halves.task)}
    assert asked == {"base": base.classes, "novel": ("night sky", "red")}


@pytest.mark.ci
def test_a_method_without_an_answer_for_new_classes(
    tiny_clip: Backbone, root: Path, tmp_path: Path
) -> None:
    name = f"{Path(__file__).parents[1] / 'helpers/external_methods.py'}:ExternalMethod"
    lab = Lab(CPU, root, progress=False)
    jobs = [
        one(tiny_clip, "base-to-novel", "colors"),
        one(tiny_clip, "domain-generalization", "domains/noisy", root=root),
        one(tiny_clip, "cross-dataset", "colors", "fewer"),
    ]
    known = ask(jobs[0], lab).metric("base")
    closed = tuple(Job(job.protocol, job.task, name, (("kind", "closed"),)) for job in jobs)
    halves, domains, fewer = run_all(Plan(closed, tmp_path / "out", root, CPU), progress=False)
    assert (halves.status, halves.metrics) == ("finished", {"base": known})
    novel = halves.score("novel")
    assert novel is not None
    assert (novel.images, novel.reason) == (8, "external knows its own classes alone")
    assert domains.metric("domains/loud") is not None  # the same classes in another domain
    assert fewer.metric("fewer") is not None  # some of its classes


def test_augmented_views_are_for_training_alone(tiny_clip: Backbone, root: Path) -> None:
    plain, lab = Lab(CPU, root, progress=False), Lab(CPU, root, progress=False)
    job = one(tiny_clip, "base-to-novel", "colors", augmentation="standard", views=3)
    assert ask(job, lab).metrics == ask(one(tiny_clip, "base-to-novel", "colors"), plain).metrics
    shots = lab.draw(job.task).train
    assert lab.train_cache(job.task).source(shots, 3, augmented=True).views == 3
    assert lab.test_cache(job.task).source(shots, 3).views == 1


# ---- what a method can see ----


def reachable(start: Any) -> Iterator[Any]:
    """Everything that an object leads to, but for modules, classes and the globals of functions."""
    seen, left = set(), [start]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (ModuleType, type)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, FunctionType):
            left += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__]
        else:
            left += gc.get_referents(thing)


def of_the_test(thing: Any) -> bool:
    if isinstance(thing, ImageSet):
        return any("test" in Path(str(image)).parts for image in thing.images)
    if not isinstance(thing, (str, Path)) or len(str(thing)) > 1000:
        return False
    folders = Path(str(thing)).parts[:-1]  # the word alone is in every vocabulary
    return "test" in folders


@pytest.mark.ci
def test_a_method_that_looks_for_test_images_finds_and_opens_none(
    tiny_clip: Backbone, root: Path
) -> None:
    """It walks through all that it is given; then the same search from the runner's side does find
    them.

    Files are watched through Python's own audit events: not one test image is opened before `fit`
    has returned, in the first run as in later ones, when the test activations are in memory.
    """
    global OPENED
    found: list[list[Any]] = []
    opened: list[int] = []

    def tests_opened() -> int:
        assert OPENED is not None
        return sum(of_the_test(name) for name in OPENED)

    def look(backbone: Backbone, shots: Shots) -> None:
        shots.source()
        found.append([thing for thing in reachable((backbone, shots)) if of_the_test(thing)])
        opened.append(tests_opened())

    lab = Lab(CPU, root, progress=False, keep=True)
    for dataset in ("colors", "fewer"):
        lab.splits(dataset)  # listing a data set opens every file once, to complain about bad ones
    try:
        OPENED = []
        watched(one(tiny_clip, "cross-dataset", "colors", "fewer"), lab, look)
        after = tests_opened()
        watched(one(tiny_clip, "cross-dataset", "colors", "fewer", shots=1), lab, look)
    finally:
        OPENED = None
    assert opened[0] == 0
    assert after >= 16 + 12
    assert opened[1] == after
    assert found == [[], []]
    assert any(of_the_test(thing) for thing in reachable(lab))


@pytest.mark.ci
def test_runs_share_no_images_and_random_numbers(tiny_clip: Backbone, root: Path) -> None:
    """Nothing of an earlier run is left in what a method is given: neither images nor random
    numbers."""
    drawn: list[float] = []

    def look(backbone: Backbone, shots: Shots) -> None:
        assert {id(t) for t in reachable(shots) if isinstance(t, ImageSet)} <= {
            id(shots.images),
            id(shots.val),
        }
        drawn.append(float(torch.rand(())))

    lab, state = Lab(CPU, root, progress=False), torch.random.get_rng_state()
    for _ in range(2):
        watched(one(tiny_clip, "base-to-novel", "colors"), lab, look)
    assert drawn[0] == drawn[1]
    # and the caller's own are where they were
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_missing_data_set_is_noticed_before_the_training(tiny_clip: Backbone, root: Path) -> None:
    lab, fitted = Lab(CPU, root, progress=False), []
    for job in (
        one(tiny_clip, "few-shot", "colours"),
        one(tiny_clip, "cross-dataset", "colors", "colours"),
    ):
        with pytest.raises(UserError, match="colours"):
            watched(job, lab, lambda backbone, shots: fitted.append(shots))
    assert not fitted
