"""Folds keep copies together, and their answers are those of fits by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter import metrics
from rmadapter.artifacts.record import HeldOut
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.folds import DEVIATION, TEMPERATURE, Folds, fitted_temperature, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.training.contract import answers
from tests.helpers.labs import prepare
from tests.helpers.shots import grouped_noise

pytestmark = pytest.mark.real_plots


def folds_of(
    backbone: Backbone, train: ImageSet, folder: Path | None = None, **settings: Any
) -> tuple[Request, Lab, Folds]:
    wanted, lab = prepare(backbone, {"all": train}, folder=folder, **settings)
    return wanted, lab, Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The title of the method of each fit to folds."""
    titles: list[str] = []
    monkeypatch.setattr(
        "rmadapter.runs.folds.learn",
        lambda method, *rest, **how: titles.append(method.title) or learn(method, *rest, **how),
    )
    return titles


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit linear probes without a search for their penalty, which takes half of the time here."""
    monkeypatch.setattr(LinearProbe, "_best", lambda probe, worth: max((4.0, 0.0), key=worth))


def test_folds_leave_every_class_to_learn_from_and_keep_copies_together() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    arrays = [*coarse.repeat(4, 1).repeat(4, 2)]
    # 12 is 0, 13 is 3 mirrored, 18 is 17
    images = [*arrays[:12], arrays[0], arrays[3][:, ::-1], *arrays[12:], arrays[15]]
    labels = [*"aaabbbccccdd", "a", "b", *"abc", "e", "e"]
    some = ImageSet.from_lists([Image.fromarray(image) for image in images], labels)
    parts = split(some, 4, seed=1)
    assert len(parts) == 4
    # each once, but for e: one image, twice
    assert sorted(row for part in parts for row in part) == list(range(17))
    for part in parts:
        assert {some.labels[i] for i in range(19) if i not in part} == set(range(5))
        assert (0 in part) == (12 in part)
        assert (3 in part) == (13 in part)
    assert split(some, 4, seed=1) == parts != split(some, 4, seed=2)
    assert split(some.subset([0, 3, 6]), 5, seed=1) == []  # one image a class


def test_folds_keep_groups_together() -> None:
    parts = split(grouped_noise("aaaaaabbbbbb", [*"ppqqrrpsstt", ""]), 3, seed=1)
    assert sorted(row for part in parts for row in part) == list(range(12))
    fold = {row: number for number, part in enumerate(parts) for row in part}
    assert len({fold[0], fold[1], fold[6]}) == 1  # p, of two classes
    assert fold[2] == fold[3]
    assert fold[7] == fold[8]


def test_there_are_several_folds_or_none() -> None:
    """Three patients who share classes two by two: holding out one leaves a class with none."""
    some = grouped_noise("xxxyyyxxxzzzzzzyyy", [*"ppppppqqqqqqrrrrrr"])
    assert [split(some, 4, seed) for seed in range(8)] == [[]] * 8


def test_a_group_that_is_always_trained_on_judges_nothing() -> None:
    """All of c is of p, so that c is never held out; nor are p's images of a, then."""
    some = grouped_noise("aaaabbbcc", [*"pqrsqrspp"])
    parts = split(some, 3, seed=1)
    assert sorted(row for part in parts for row in part) == [1, 2, 3, 4, 5, 6]
    # of d, both groups may fall into one fold: then nothing else of the two is judged there
    for seed in range(20):
        some = grouped_noise("aaaabbbbdd", [*"pqrspqrspq"])
        for part in split(some, 2, seed=seed):
            rest = set(range(len(some))) - {*part}
            assert {some.labels[i] for i in rest} == {0, 1, 2}
            assert not {some.groups[i] for i in part} & {some.groups[i] for i in rest}


def test_every_class_loses_as_many_images_to_a_fold() -> None:
    for each, folds, expected in ((2, 4, 2), (4, 4, 4), (4, 3, 3), (12, 4, 4)):
        some = grouped_noise("abc" * each, [""] * 3 * each)
        parts = split(some, folds, seed=1)
        assert len(parts) == expected
        assert sorted(row for part in parts for row in part) == list(range(3 * each))
        if not each % expected:
            for part in parts:
                counts = np.bincount([some.labels[row] for row in part])
                assert counts.tolist() == [each // expected] * 3


def test_answers_are_those_of_fits_to_the_other_folds(tiny_clip: Backbone, colors: Path) -> None:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(tiny_clip, train)
    assert folds.parts == split(train, 3, wanted.task.seed)
    assert folds.rows == [row for part in folds.parts for row in part]
    assert folds.judged.labels == tuple(train.labels[row] for row in folds.rows)
    found = folds.answers(wanted.method, wanted.name)
    _, fresh, _ = folds_of(tiny_clip, train)
    rest = train.subset(i for i in range(len(train)) if i not in folds.parts[0])
    fitted = learn(wanted.method, rest, wanted.task, fresh.draw(wanted.task), fresh)
    stream = fresh.test_cache(wanted.task).stream(train.subset(folds.parts[0]), fitted.first)
    parts = [answer["it"].numpy() for answer in answers({"it": fitted.score()}, stream)]
    expected = np.concatenate(parts)
    np.testing.assert_allclose(found.table[: len(expected)], expected, atol=1e-5)
    temperature = folds.temperature(wanted.method, wanted.name)
    assert temperature == fitted_temperature(found.table, folds.judged.labels)


def test_folds_of_base_classes_are_of_their_shots(tiny_clip: Backbone, colors: Path) -> None:
    train = read_images(colors)["train"]
    _, _, folds = folds_of(tiny_clip, train, classes="base")
    assert folds.images.classes == train.classes[:2]
    assert {*folds.judged.labels} == {0, 1}


def test_one_image_a_class_makes_no_folds(tiny_clip: Backbone, colors: Path) -> None:
    wanted, _, folds = folds_of(tiny_clip, read_images(colors)["train"], shots=1)
    assert not folds
    assert folds.temperature(wanted.method, wanted.name) is None


def test_few_images_do_not_overrule_what_is_expected() -> None:
    labels = np.arange(4000) % 3
    table = np.where(np.eye(3)[labels] > 0, 0.6, 0.2)
    table[::4] = np.roll(table[::4], 1, axis=1)  # wrong about a quarter: 0.6 was too unsure
    alone = metrics.temperature(table, labels)
    assert fitted_temperature(table, labels) == pytest.approx(alone, rel=0.02)
    few = fitted_temperature(table[:4], labels[:4])
    assert metrics.temperature(table[:4], labels[:4]) < few < TEMPERATURE
    assert few > TEMPERATURE * np.exp(-2 * DEVIATION)


def test_one_image_of_each_group_counts_for_the_temperature_and_for_answers_kept() -> None:
    """A burst of fifty copies of one wrong answer says as much as one of them."""
    labels = np.arange(40) % 2
    table = np.where(np.eye(2)[labels] > 0, 0.7, 0.3)
    copies = np.r_[np.arange(40), np.zeros(49, int)]
    true, groups = np.r_[1 - labels[:1], labels[1:]], np.r_[np.arange(40), np.zeros(49, int)]
    alone = fitted_temperature(table, true)
    one_each = fitted_temperature(table[copies], true[copies], groups)
    assert one_each == pytest.approx(alone)
    assert fitted_temperature(table[copies], true[copies]) > 1.5 * alone
    kept = HeldOut.of(table[copies], true[copies].tolist(), groups)
    assert (len(kept.right), kept.right.count("0")) == (40, 1)
    assert HeldOut.of(table[copies], true[copies].tolist()).right.count("0") == 50


def test_probabilities_that_are_kept_are_not_above_those_of_the_answers() -> None:
    table = np.array([[0.99996, 0.00004], [0.3, 0.7]])
    assert HeldOut.of(table, [0, 0]) == HeldOut(probabilities=(0.9999, 0.7), right="10")


@pytest.mark.parametrize(
    ("right", "least"),
    [("1" * 30, 8), ("1" * 22, 10), ("1" * 21, 11), ("0" * 30, None)],
)
def test_the_least_share_of_wrong_answers_that_can_be_promised(
    right: str, least: int | None
) -> None:
    """Of N right answers that all must pass, the least share s has (1 - s)^N <= 0.1."""
    assert HeldOut(probabilities=(0.9,) * len(right), right=right).least_wrong == least


@pytest.mark.ci
def test_answers_in_the_labs_folder_are_not_computed_again(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, fits: list[str]
) -> None:
    train = read_images(colors)["train"]
    wanted, _, first = folds_of(tiny_clip, train, tmp_path)
    found = first.answers(wanted.method, wanted.name)
    file, *others = sorted(tmp_path.iterdir())
    assert len(others) == 2
    fits.clear()

    _, _, again = folds_of(tiny_clip, train, tmp_path)
    np.testing.assert_array_equal(again.answers(wanted.method, wanted.name).table, found.table)
    assert again.answers(wanted.method, wanted.name).seconds == pytest.approx(found.seconds)
    assert not fits
    other, _, third = folds_of(tiny_clip, train, tmp_path, rank=2)  # another method's are its own
    third.answers(other.method, other.name)
    assert len(fits) == 3
    file.write_bytes(b"torn")
    _, _, fourth = folds_of(tiny_clip, train, tmp_path)
    np.testing.assert_array_equal(fourth.answers(wanted.method, wanted.name).table, found.table)
    assert len(fits) == 4  # the torn fold alone


def test_a_quarter_is_held_out_once_by_default(tiny_clip: Backbone, colors: Path) -> None:
    train = read_images(colors)["train"]
    wanted, lab, _ = folds_of(tiny_clip, train)
    few = lab.draw(wanted.task)
    once, all_four = Folds.make(wanted.task, few, lab), Folds.make(wanted.task, few, lab, 4)
    assert all_four.parts == split(train, 4, wanted.task.seed)
    assert once.parts == all_four.parts[:1]
    assert f"on {len(once.rows)} training images" in once.how
    assert all_four.how == "by 4-fold cross-validation of the training images"
    # what calibrates an image is never the image itself
    assert [len(np.unique(some.places)) for some in (once, all_four)] == [2, 4]
    assert not Folds.make(wanted.task, few, lab, 0)


def test_answers_of_other_folds_are_computed_anew(tiny_clip: Backbone, tmp_path: Path) -> None:
    """Groups that came in between move images from one fold to another; nothing else tells the two
    apart."""
    images = grouped_noise("ababab", [""] * 6)
    wanted, lab, folds = folds_of(tiny_clip, images, tmp_path)
    method = LinearProbe(search_steps=0)
    folds.answers(method, "linear-probe")
    other = Folds(wanted.task, folds.few, lab, images, [*reversed(folds.parts)])
    assert other.rows != folds.rows
    fresh = Folds(wanted.task, folds.few, folds_of(tiny_clip, images)[1], images, other.parts)
    found, right = (some.answers(method, "linear-probe").table for some in (other, fresh))
    np.testing.assert_array_equal(found, right)
    assert len([*tmp_path.glob("folds-*")]) == 6
