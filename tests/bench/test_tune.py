"""A search is judged by train images alone, goes on where it was, and finds the same on a cluster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.runs.folds import Folds
from rmadapter.runs.request import Request, requested
from rmadapter.settings import read_yaml
from tests.helpers.clusters import session

pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")
from rmadapter.bench.search_space import Trial, space
from rmadapter.bench.tune import BEST, FILE, PICTURE, Search, Tuned, judged, tune

pytestmark = pytest.mark.real_plots

__all__ = ["session"]
GIVEN = {"shots": 0, "device": "cpu", "epochs": 30}


def search_of(
    backbone: Backbone, data: Path, method: str = "clip-adapter", **given: Any
) -> tuple[Search, Any]:
    values = {**GIVEN, "backbone": backbone.name, **given}
    request = Request.make(values, method, data=str(data))
    return Search(request, values, folds=3), space(
        request.method, method, ["learning_rate=1e-5..1", "ratio"]
    )


@pytest.fixture(scope="module")
def tuned(
    tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tuned]:
    out = tmp_path_factory.mktemp("tuned")
    return out, tune(*search_of(tiny_clip, colors), 6, out, progress=False)


def figures(found: Tuned) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.params, trial.right) for trial in found.trials]


def test_trials_are_judged_as_their_methods_are(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path
) -> None:
    """By folds of the train split, made and asked by hand."""
    from rmadapter.data.read import read_images
    from rmadapter.runs.run import Lab

    out, found = tuned
    assert [trial.number for trial in found.trials] == [*range(6)]
    assert (found.trials[0].params, len(found.trials[1].params)) == ({}, 2)
    best = found.best
    wanted = Request.make(
        {**GIVEN, **best.params, "backbone": tiny_clip.name}, "clip-adapter", data="x"
    )
    lab = Lab(wanted.machine, progress=False)
    lab.add("x", {"all": read_images(colors)["train"]})
    folds = Folds.make(wanted.task, lab, 3)
    hits = folds.answers(wanted.method, "clip-adapter").table.argmax(1) == np.array(
        folds.judged.labels
    )
    assert best.accuracy == pytest.approx(100 * hits.mean())
    assert best.accuracy == max(trial.accuracy or 0 for trial in found.trials)
    file = json.loads((out / FILE).read_text())
    assert [trial["accuracy"] for trial in file["trials"]] == [
        trial.accuracy for trial in found.trials
    ]
    assert {"optuna", "torch", "rmadapter"} <= {*file["versions"]}
    assert "<svg" in (out / PICTURE).read_text()
    assert {path.name for path in out.iterdir()} == {FILE, BEST, PICTURE}


def test_the_best_is_a_config(tuned: tuple[Path, Tuned]) -> None:
    out, found = tuned
    wanted = requested("", out / BEST, {}, None)
    assert (wanted.name, wanted.task.shots) == ("clip-adapter", 0)
    assert read_yaml(out / BEST)["epochs"] == 30
    for name, value in found.best.params.items():
        owner = wanted.method.recipe if hasattr(wanted.method.recipe, name) else wanted.method
        assert getattr(owner, name, value) == value


def test_test_images_are_never_seen(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """With others in the test split, and with none, the same is found; and no fold holds one."""
    others = Path(shutil.copytree(colors, tmp_path / colors.name))
    for path in (others / "test").rglob("*.png"):
        Image.new("RGB", (32, 32), "white").save(path)
    search, ranges = search_of(tiny_clip, others)
    folds = search.make_folds()
    assert {*folds.lab.splits(str(others))} == {"train"}
    assert all(
        others / "train" in path.parents for path in folds.images.images if isinstance(path, Path)
    )
    assert (
        figures(tune(search, ranges, 3, tmp_path / "out", progress=False)) == figures(tuned[1])[:3]
    )
    shutil.rmtree(others / "test")
    found = tune(*search_of(tiny_clip, others), 3, tmp_path / "without", progress=False)
    assert figures(found) == figures(tuned[1])[:3]


def test_a_stopped_search_finds_what_one_that_was_not_does(
    tuned: tuple[Path, Tuned],
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search, ranges = search_of(tiny_clip, colors)
    calls = []

    def stopped(*given: Any) -> Trial:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judged(*given)

    monkeypatch.setattr("rmadapter.bench.tune.judged", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(search, ranges, 6, tmp_path, progress=False)
    assert len(json.loads((tmp_path / FILE).read_text())["trials"]) == 3
    assert figures(tune(search, ranges, 6, tmp_path, progress=False)) == figures(tuned[1])
    assert len(calls) == 4 + 3
    assert figures(tune(search, ranges, 4, tmp_path, progress=False)) == figures(
        tuned[1]
    )  # nothing is left to do
    assert len(calls) == 4 + 3


def test_another_search_in_the_same_folder_is_refused(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tuned[0], tmp_path / "out"))
    for given in ({"epochs": 31}, {"seed": 2}, {"shots": 3}):
        with pytest.raises(UserError, match="a different search"):
            tune(*search_of(tiny_clip, colors, **given), 6, out, progress=False)
    search, ranges = search_of(tiny_clip, colors)
    with pytest.raises(UserError, match="a different search"):
        tune(search, {"ratio": ranges["ratio"]}, 6, out, progress=False)
    (out / FILE).write_text((out / FILE).read_text().replace('"right"', '"wrong"'))
    with pytest.raises(UserError, match="damaged"):
        tune(search, ranges, 6, out, progress=False)


def test_settings_that_cannot_be_tried_are_a_trial_with_a_reason(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    request = Request.make(
        {**GIVEN, "epochs": 1, "rank": 4, "backbone": tiny_clip.name}, "mma", data=str(colors)
    )
    search = Search(request, folds=2)
    with pytest.raises(
        UserError, match=r"no trial could be judged; the first failed: .*have 4 and 4 blocks"
    ):
        tune(search, space(request.method, "mma", ["first_block=8,9"]), 2, tmp_path, progress=False)
    trials = json.loads((tmp_path / FILE).read_text())["trials"]
    assert ["4 blocks" in trial["reason"] for trial in trials] == [True, True]


def test_the_gain_is_paired() -> None:
    found = Tuned(
        (Trial(0, {}, "1100"), Trial(1, {"a": 1}, "1111"), Trial(2, {"a": 2}, "", reason="no"))
    )
    assert found.best.number == 1
    assert found.gain == (
        50,
        25,
    )  # differences 0, 0, 1, 1: a deviation of a half, over the root of four
    assert Tuned((Trial(0, {}, "", reason="no"), Trial(1, {}, "1"))).gain is None


def test_too_few_images_for_folds(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few images per class for the folds"):
        tune(*search_of(tiny_clip, colors, shots=1), 3, tmp_path, progress=False)


def test_one_worker_of_a_cluster_finds_the_same(
    session: None, tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    search, ranges = search_of(tiny_clip, colors)
    found = tune(search, ranges, 4, tmp_path / "one", 1, "", progress=False)
    assert figures(found) == figures(tuned[1])[:4]
    two = tune(
        search, ranges, 5, tmp_path / "two", 2, "", progress=False
    )  # which propose by what they know by then
    assert [trial.number for trial in two.trials] == [*range(5)]
    assert two.trials[0].right == found.trials[0].right
