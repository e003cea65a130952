"""Evaluate methods that remember images, saved runs, and several runs on one test set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import Score, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import ImageSet, read_images
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.prompt_kd import PromptKD
from rmadapter.runs.evaluate import (
    compare,
    evaluate_saved,
    levels_of,
    predict_all,
    refuse_stateful,
    shuffled,
    trained_on,
    used_by,
)
from rmadapter.runs.fit import fit
from rmadapter.runs.lab import Sets
from rmadapter.runs.promises import kept
from rmadapter.settings import Machine
from rmadapter.support.files import SUMS, read_json, write_json
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Known
from tests.helpers.labs import prepare
from tests.helpers.shots import noise_images, shots_of

IMAGES = noise_images(70, ("cat", "dog"))


def counting() -> Callable[[States], Tensor]:
    """The n-th image has n as its logit."""
    seen = [0]

    def score(states: States) -> Tensor:
        first = seen[0]
        seen[0] += len(states.features)
        numbers = torch.arange(first, seen[0]) / 10.0
        return torch.stack([torch.zeros_like(numbers), numbers], 1)

    return score


@pytest.mark.parametrize("hold", [True, False])
def test_a_method_that_remembers_sees_images_in_a_random_order(
    tiny_clip: Backbone, hold: bool
) -> None:
    cache = Cache(tiny_clip, Machine(device="cpu"), hold=hold, progress=False)
    plain, tda = (
        load_method(name).restore(tiny_clip, Known(IMAGES.classes), {})
        for name in ("zero-shot", "tda")
    )
    for fitted, order in ((plain, torch.arange(70)), (tda, shuffled(70, 3))):
        models = {"it": counting(), "zero-shot": plain.score()}
        found = predict_all(models, fitted, cache, IMAGES, 3)
        places = torch.empty(70).scatter_(0, order, torch.arange(70.0))  # when each image was seen
        torch.testing.assert_close(found["it"][:, 1].logit(), places / 10, rtol=1e-3, atol=1e-3)
        expected = torch.cat(list(plain.probabilities(IMAGES.images)))
        torch.testing.assert_close(found["zero-shot"], expected, rtol=1e-3, atol=1e-4)


def test_the_order_depends_on_the_seed() -> None:
    assert shuffled(50, 1).sort().values.tolist() == [*range(50)]
    assert torch.equal(shuffled(50, 1), shuffled(50, 1))
    assert not torch.equal(shuffled(50, 1), shuffled(50, 2))


def test_stateful_methods_are_refused_where_images_are_independent(tiny_clip: Backbone) -> None:
    fitted: Fitted = load_method("zero-shot").fit(tiny_clip, shots_of(tiny_clip, IMAGES))
    refuse_stateful(fitted, "a window")
    with pytest.raises(UserError, match=r"a window .* TDA"):
        refuse_stateful(load_method("tda").fit(tiny_clip, shots_of(tiny_clip, IMAGES)), "a window")


# Saved runs


def evaluate_finished(
    finished: Path, splits: Mapping[str, ImageSet], split: str, backbone: Backbone, **settings: Any
) -> tuple[Evaluation, Score]:
    fitted = load(finished, backbone, settings=settings).fitted
    cache = Cache(backbone, hold=False, progress=False)
    [evaluation], [score] = evaluate_saved(finished, fitted, splits, split, "all", cache)
    return evaluation, score


def test_a_saved_run_scores_as_recorded(finished: Path, colors: Path, tiny_clip: Backbone) -> None:
    splits = read_images(colors)
    [recorded] = read_record(finished / "run.json").scores
    assert evaluate_finished(finished, splits, "test", tiny_clip)[1] == recorded
    untouched = evaluate_finished(finished, splits, "test", tiny_clip, alpha=0)[1]
    assert untouched.accuracy == recorded.zero_shot
    held_out = evaluate_finished(finished, splits, "heldout", tiny_clip)[1]
    assert held_out.images == len(few_shot(splits, 4, 1).heldout) == 8


@pytest.mark.parametrize(
    ("split", "named"), [("train", "train"), ("test", "test"), ("heldout", "held out")]
)
def test_only_images_that_were_not_trained_on_are_called_held_out(
    finished: Path, colors: Path, tiny_clip: Backbone, split: str, named: str
) -> None:
    evaluation, score = evaluate_finished(finished, read_images(colors), split, tiny_clip)
    assert score.split == named
    assert evaluation.title == score.title == f"{named}, all classes"


def test_images_that_were_trained_on_are_counted_wherever_they_are(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    """Other images beside them and other names change nothing; nor does an older file of the draw,
    where the images have kept their names."""
    splits = read_images(colors)
    drawn = few_shot(splits, 4, 1).train
    assert trained_on(finished, splits["train"]) == len(drawn) == 16
    assert trained_on(finished, splits["test"]) == 0
    older = Path(shutil.copytree(finished, tmp_path / "older"))
    draw = read_json(older / "split.json")
    del draw["sha256"]
    write_json(older / "split.json", draw)
    (older / SUMS).unlink()
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    shutil.copy(data / "test/red/0.png", data / "train/red/new.png")
    shutil.copy(drawn.images[0], data / "test/red/a shot.png")  # type: ignore[arg-type]
    moved = read_images(data)
    assert len(moved["train"]) == len(splits["train"]) + 1
    for run in (finished, older):
        assert trained_on(run, moved["train"]) == 16
        assert trained_on(run, moved["test"]) == 1
    data.joinpath("train").rename(data / "renamed")
    assert trained_on(finished, read_images(data / "renamed")["all"]) == 16
    (older / "split.json").unlink()
    assert trained_on(older, moved["train"]) == 0


@pytest.mark.ci
def test_promises_are_measured_on_images_that_did_not_make_them(
    tiny_clip: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 80 images, 16 train a run and 64 calibrate it; further ones do neither."""
    data, run, new = tmp_path / "data", tmp_path / "run", tmp_path / "new"
    for folder, parts in ((data, range(40)), (new, range(40, 50))):
        for label, number in product("ab", parts):
            (folder / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(2 * number + (label == "a")).integers(
                0, 256, (32, 32, 3)
            )
            file = folder / label / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    every = read_images(data)["all"]
    wanted, lab = prepare(tiny_clip, {"all": every}, "linear-probe", shots=8)
    fit(wanted.task, wanted.method, run, lab, wanted.name)
    fitted = load(run, tiny_clip).fitted
    assert fitted.calibration
    assert fitted.calibration.source == "held out"
    drawn = {*few_shot({"all": every}, 8, 1).train.images}
    undrawn = every.subset(i for i, image in enumerate(every.images) if image not in drawn)

    def measured(images: ImageSet) -> list[float]:
        table = np.full((len(images), 2), 0.5)
        found = kept(run, fitted, Evaluation("x", images, table, None), "all")
        return [promise.error for promise in found]

    others = read_images(new)["all"]
    assert used_by(run, others) == 0
    assert measured(others) == [5, 10]
    for images, used in ((every, 80), (undrawn, 64), (undrawn.subset([0]), 1)):
        assert used_by(run, images) == used
        capsys.readouterr()
        assert measured(images) == []
        assert f"{used} of these {len(images)} images trained or calibrated" in (
            capsys.readouterr().err
        )
    draw = read_json(run / "split.json")
    del draw["others"]  # as in earlier versions
    (run / SUMS).unlink()
    write_json(run / "split.json", draw)
    assert used_by(run, every) == 16
    assert used_by(tmp_path, every) == 0


def test_a_split_that_is_missing_or_was_seen_is_refused(
    finished: Path, colors: Path, tiny_clip: Backbone
) -> None:
    splits = read_images(colors)
    with pytest.raises(UserError, match="give --split one of train, test, heldout"):
        evaluate_finished(finished, splits, "val", tiny_clip)
    with pytest.raises(UserError, match="was trained on different images"):
        evaluate_finished(finished, {"train": splits["test"]}, "heldout", tiny_clip)
    seeing = replace(load(finished, tiny_clip).fitted, method=PromptKD())
    with pytest.raises(UserError, match="PromptKD has seen the images that were not drawn"):
        evaluate_saved(finished, seeing, splits, "heldout", "all", Cache(tiny_clip, progress=False))


# Several runs


def test_a_run_beside_its_untouched_backbone(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    images = read_images(colors)["test"]
    runs = [load(finished, tiny_clip, settings={"alpha": alpha}) for alpha in (0, 1.0)]
    first, second = compare([(Path("untouched"), runs[0]), (finished, runs[1])], images)
    [score] = read_record(finished / "run.json").scores
    assert [first.accuracy, second.accuracy] == pytest.approx([score.zero_shot, score.accuracy])
    assert first.row()[2:] == [f"{score.zero_shot:.1f}", "", "", ""]
    assert first.method.startswith("rmadapter (")
    assert "alpha=0" in first.method
    assert second.difference == pytest.approx(second.accuracy - first.accuracy)
    assert 0 < (second.low or 0) < (second.difference or 0) < (second.high or 0)
    assert (second.p or 1) < 0.01


def test_a_run_beside_itself(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    runs = [(folder, load(folder, tiny_clip)) for folder in (finished, copy)]
    _, second = compare(runs, read_images(colors)["test"])
    assert (second.difference, second.p) == (0, 1)
    assert second.low == pytest.approx(-(second.high or 0))


def test_an_empty_comparison_is_refused(finished: Path, tiny_clip: Backbone, colors: Path) -> None:
    runs = [(finished, load(finished, tiny_clip))]
    with pytest.raises(UserError, match="no images to compare on"):
        compare(runs, read_images(colors)["test"].subset([]))


def test_a_run_is_compared_by_its_own_names_however_accents_are_stored(
    finished: Path, tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ("ble\u0301", "green", "night_sky", "red")
    images, saved = replace(read_images(colors)["test"], written=labels), load(finished, tiny_clip)
    saved = saved._replace(
        labels=("bl\u00e9", *saved.labels[1:]), names=("bluish thing", *saved.names[1:])
    )
    compared: list[ImageSet] = []

    def stop(fitted: object, sets: Sets, cache: object) -> None:
        compared.append(sets[0][1])
        raise UserError("enough")

    monkeypatch.setattr("rmadapter.runs.evaluate.evaluate", stop)
    with pytest.raises(UserError, match="enough"):
        compare([(finished, saved)], images)
    assert compared[0].classes == ("bluish thing", "green", "night sky", "red")


def test_accuracy_at_each_level_is_that_of_sums() -> None:
    parents = {"cat": "mammal", "dog": "mammal", "trout": "fish", "mammal": "animal"}
    parents["fish"] = "animal"
    images = ImageSet(("1", "2", "3"), (0, 1, 2), ("cat", "dog", "trout"), parents=parents)
    ours = np.array([[0.3, 0.3, 0.4], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    zero_shot = np.array([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    parent, top = levels_of(Evaluation("it", images, ours, zero_shot))
    sums = np.stack([ours[:, :2].sum(1), ours[:, 2]], 1)
    right = sums.argmax(1) == np.array([0, 0, 1])
    assert parent.accuracy == 100 * right.mean() == 100  # the labels of two are wrong
    assert (parent.groups, parent.zero_shot) == (2, 0)
    assert (top.groups, top.accuracy, top.zero_shot) == (1, 100, 100)
    assert levels_of(Evaluation("it", replace(images, parents={}), ours, zero_shot)) == ()
