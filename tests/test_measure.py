"""One run of each kind of question, and that a method which looks for test images finds none."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar

import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.bench.measure import Lab, configuration, measure, per_epoch
from rmadapter.bench.methods import METHODS
from rmadapter.bench.methods.base import Classifier, NotApplicable, Training
from rmadapter.bench.methods.zero_shot import ZeroShot
from rmadapter.bench.protocols import Run, expand
from rmadapter.bench.runner import run_all
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError

OPENED: list[str] | None = None  # files opened while somebody listens; an audit hook stays for good


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


def lab_of(backbone: Backbone, root: Path, **words: Any) -> Lab:
    return Lab(root, Config(backbone=backbone.name, device="cpu"), progress=False, **words)


def one(protocol: str, *datasets: str, method: str = "zero-shot", shots: int = 2, root: Path = Path()) -> Run:
    [run] = expand(protocol, datasets, [method], [1], [shots], root=root)
    return run


def registered(monkeypatch: pytest.MonkeyPatch, method: Any) -> str:
    """The method under a name of the registry."""
    module: Any = ModuleType("guest")
    module.METHOD = method
    monkeypatch.setitem(sys.modules, "rmadapter.bench.methods.guest", module)
    monkeypatch.setitem(METHODS, "guest", "guest:METHOD")
    return "guest"


# ---- what is asked ----


def test_targets_are_what_each_set_gives_by_itself(tiny_clip: Backbone, root: Path) -> None:
    """Zero-shot: the accuracy on a target is that of few-shot on the same set, where nothing else is asked."""
    lab = lab_of(tiny_clip, root)
    alone = {name: measure(one("few-shot", name), lab)["metrics"]["accuracy"] for name in ("colors", "fewer")}
    found = measure(one("cross-dataset", "colors", "fewer"), lab)
    assert found["metrics"] == {
        "source": alone["colors"],
        "targets": {"fewer": alone["fewer"]},
        "average": alone["fewer"],
    }
    assert found["counts"] == {"source": 16, "targets": {"fewer": 12}}
    assert found["chance"] == {"source": 25.0, "targets": {"fewer": pytest.approx(100 / 3, abs=1e-4)}}
    domain = measure(one("domain-generalization", "domains/noisy", root=root), lab)
    assert domain["metrics"]["targets"] == {"domains/loud": alone["colors"]}
    assert measure(one("few-shot", "colors"), lab)["counts"] == {"accuracy": 16}


def test_without_a_test_split_the_images_that_were_not_drawn_are_asked(tiny_clip: Backbone, root: Path) -> None:
    lab = lab_of(tiny_clip, root)
    run = one("few-shot", "colors/train", shots=4)
    assert measure(run, lab)["counts"] == {"accuracy": 4 * (6 - 4)}
    drawn = lab.draw(run)
    assert not {*drawn.train.images} & {*lab.tests(run)["accuracy"].images}
    with pytest.raises(UserError, match="draw fewer shots"):
        measure(one("few-shot", "colors/train", shots=6), lab)


def test_halves_are_trained_on_base_alone(tiny_clip: Backbone, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ImageSet] = []

    @dataclass(frozen=True)
    class Watcher(ZeroShot):
        def fit(self, backbone: Backbone, train: Training) -> Classifier:
            seen.append(train.images)
            return super().fit(backbone, train)

    name = registered(monkeypatch, Watcher())
    lab = lab_of(tiny_clip, root)
    measure(one("base-to-novel", "colors", method=name), lab)
    measure(one("few-shot", "colors", method=name), lab)
    base, everything = seen
    assert base.classes == ("blue", "green")
    assert everything.classes == ("blue", "green", "night sky", "red")
    assert base.images == everything.images[:4]  # halved after drawing, as CoOp does
    sets = lab.tests(one("base-to-novel", "colors"))
    assert sets["base"].classes == base.classes
    assert sets["novel"].classes == ("night sky", "red")


@dataclass(frozen=True)
class Closed(ZeroShot):
    """Knows no class that it was not trained on."""

    title: ClassVar[str] = "closed"

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        known = super().fit(backbone, train).for_classes

        def for_classes(names: Any) -> Any:
            if tuple(names) != train.images.classes:
                raise NotApplicable("closed knows its own classes alone")
            return known(names)

        return Classifier(for_classes)


def test_a_method_without_an_answer_for_new_classes(
    tiny_clip: Backbone, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = registered(monkeypatch, Closed())
    lab, settings = lab_of(tiny_clip, root), Config(backbone=tiny_clip.name, device="cpu")
    open_ = measure(one("base-to-novel", "colors"), lab)
    runs = [one("base-to-novel", "colors", method=name), one("cross-dataset", "colors", "fewer", method=name)]
    runs.append(one("domain-generalization", "domains/noisy", method=name, root=root))
    halves, targets, domains = run_all(runs, tmp_path / "out", root=root, settings=settings, progress=False)
    assert halves["status"] == "finished"
    assert halves["metrics"] == {"base": open_["metrics"]["base"], "novel": None, "hm": None}
    assert (halves["counts"], halves["reason"]) == ({"base": 8}, "closed knows its own classes alone")
    assert (targets["status"], targets["reason"]) == ("not-applicable", "closed knows its own classes alone")
    assert "metrics" not in targets
    assert domains["status"] == "finished"  # the same classes in another domain


def test_augmented_views_are_for_training_alone(tiny_clip: Backbone, root: Path) -> None:
    plain, lab = lab_of(tiny_clip, root), lab_of(tiny_clip, root)
    lab.settings = lab.settings.replace(augmentation="standard", views=3)
    run = one("base-to-novel", "colors")
    assert measure(run, lab)["metrics"] == measure(run, plain)["metrics"]
    shots = lab.draw(run).train
    assert lab.train_activations(lab.shared(run)).states(shots, 3, augmented=True).views == 3


def test_templates_of_the_catalogue(tiny_clip: Backbone, root: Path) -> None:
    lab = lab_of(tiny_clip, root, own_templates=True)
    assert configuration(one("few-shot", "colors"), lab)["shared"]["templates"] == ["a photo of a {}."]
    [template] = configuration(one("few-shot", "eurosat"), lab)["shared"]["templates"]
    assert "satellite" in template
    assert configuration(one("few-shot", "eurosat"), lab_of(tiny_clip, root))["shared"]["templates"] != [template]


def test_history_by_epoch() -> None:
    steps = [{"step": i + 1, "epoch": 1 + i // 2, "loss": loss} for i, loss in enumerate((4.0, 2.0, 1.0))]
    assert per_epoch(steps) == [{"epoch": 1, "steps": 2, "loss": 3.0}, {"epoch": 2, "steps": 1, "loss": 1.0}]
    assert per_epoch([{"loss": 1.0}]) == [{"loss": 1.0}]


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


def test_a_method_that_looks_for_test_images_finds_and_opens_none(
    tiny_clip: Backbone, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It walks through all that it is given; then the same search from the runner's side does find them.

    Files are watched through Python's own audit events: not one test image is opened before `fit` has returned, in
    the first run as in later ones, when the test activations are in memory.
    """
    global OPENED
    found: list[list[Any]] = []
    opened: list[int] = []

    def tests_opened() -> int:
        assert OPENED is not None
        return sum(of_the_test(name) for name in OPENED)

    @dataclass(frozen=True)
    class Hostile(ZeroShot):
        def fit(self, backbone: Backbone, train: Training) -> Classifier:
            train.frozen()
            found.append([thing for thing in reachable((backbone, train)) if of_the_test(thing)])
            opened.append(tests_opened())
            return super().fit(backbone, train)

    name = registered(monkeypatch, Hostile())
    lab = lab_of(tiny_clip, root)
    for dataset in ("colors", "fewer"):
        lab.splits(dataset)  # listing a dataset opens every file once, to complain about bad ones
    try:
        OPENED = []
        measure(one("cross-dataset", "colors", "fewer", method=name), lab)
        after = tests_opened()
        measure(one("cross-dataset", "colors", "fewer", method=name, shots=1), lab)
    finally:
        OPENED = None
    assert opened[0] == 0
    assert after >= 16 + 12
    assert opened[1] == after
    assert found == [[], []]
    assert any(of_the_test(thing) for thing in reachable(lab))


def test_the_classifier_of_one_run_does_not_know_another_runs_images(
    tiny_clip: Backbone, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of an earlier run is left in what a method is given: neither images nor random numbers."""
    drawn: list[float] = []

    @dataclass(frozen=True)
    class Random(ZeroShot):
        def fit(self, backbone: Backbone, train: Training) -> Classifier:
            assert {id(t) for t in reachable(train) if isinstance(t, ImageSet)} <= {id(train.images), id(train.val)}
            drawn.append(float(torch.rand(())))
            return super().fit(backbone, train)

    name = registered(monkeypatch, Random())
    lab = lab_of(tiny_clip, root)
    for _ in range(2):
        measure(one("base-to-novel", "colors", method=name), lab)
    assert drawn[0] == drawn[1]


def test_a_missing_dataset_is_noticed_before_the_training(tiny_clip: Backbone, root: Path) -> None:
    lab = lab_of(tiny_clip, root)
    for run in (one("few-shot", "colours"), one("cross-dataset", "colors", "colours", method="rmadapter")):
        with pytest.raises(UserError, match="colours"):
            measure(run, lab)
    assert lab._train is None or lab._train.seconds == 0
