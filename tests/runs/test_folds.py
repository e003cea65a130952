"""Folds keep copies together, answers are those of fits by hand, and what was answered is not asked
again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rmadapter.runs.folds
from rmadapter import metrics
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.folds import Folds, OutOfTime, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.training.contract import answers
from tests.helpers.shots import grouped_noise

SETTINGS = {"shots": 0, "epochs": 2, "batch_size": 8, "device": "cpu", "first_block": 3, "rank": 4}


def folds_of(
    backbone: Backbone, train: ImageSet, folder: Path | None = None, **settings: Any
) -> tuple[Request, Lab, Folds]:
    wanted = Request.make({**SETTINGS, "backbone": backbone.name, **settings}, data="x")
    lab = Lab(wanted.machine, folder=folder, progress=False)
    lab.add_backbone(backbone)
    lab.add("x", {"all": train})
    return wanted, lab, Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)


def test_folds_leave_every_class_to_learn_from_and_copies_together() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
        for _ in range(16)
    ]
    # 12 is 0, 13 is 3 mirrored, 18 is 17
    images = [*arrays[:12], arrays[0], arrays[3][:, ::-1], *arrays[12:], arrays[15]]
    labels = [*"aaabbbccccdd", "a", "b", *"abc", "e", "e"]
    some = ImageSet.from_lists([Image.fromarray(image) for image in images], labels)
    parts = split(some, 4, seed=1)
    assert len(parts) == 4
    assert sorted(row for part in parts for row in part) == list(
        range(17)
    )  # each once, but for e: one image, twice
    for part in parts:
        assert {some.labels[i] for i in range(19) if i not in part} == set(range(5))
        assert (0 in part) == (12 in part)
        assert (3 in part) == (13 in part)
    assert split(some, 4, seed=1) == parts != split(some, 4, seed=2)
    assert split(some.subset([0, 3, 6]), 5, seed=1) == []  # one image a class


def test_folds_keep_groups_together() -> None:
    some = grouped_noise(
        "aaaaaabbbbbb", ["p", "p", "q", "q", "r", "r", "p", "s", "s", "t", "t", ""]
    )
    parts = split(some, 3, seed=1)
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
    for seed in range(
        20
    ):  # of d, both groups may fall into one fold: then nothing else of the two is judged there
        some = grouped_noise("aaaabbbbdd", [*"pqrspqrspq"])
        for part in split(some, 2, seed=seed):
            rest = set(range(len(some))) - {*part}
            assert {some.labels[i] for i in rest} == {0, 1, 2}
            assert not {some.groups[i] for i in part} & {some.groups[i] for i in rest}


def test_every_class_loses_as_many_images_to_a_fold() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)) for _ in range(36)]
    for each, folds, expected in ((2, 4, 2), (4, 4, 4), (4, 3, 3), (12, 4, 4)):
        some = ImageSet.from_lists(images[: 3 * each], [*"abc"] * each)
        parts = split(some, folds, seed=1)
        assert len(parts) == expected
        assert sorted(row for part in parts for row in part) == list(range(3 * each))
        if not each % expected:
            for part in parts:
                assert sorted(some.labels[row] for row in part) == sorted(
                    [0, 1, 2] * (each // expected)
                )


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
    expected = np.concatenate(
        [answer["it"].numpy() for answer in answers({"it": fitted.score()}, stream)]
    )
    np.testing.assert_allclose(found.table[: len(expected)], expected, atol=1e-5)
    temperature = folds.temperature(wanted.method, wanted.name)
    assert temperature == metrics.temperature(found.table, folds.judged.labels)


def test_of_a_base_half_the_folds_are_those_of_its_shots(tiny_clip: Backbone, colors: Path) -> None:
    train = read_images(colors)["train"]
    _, _, folds = folds_of(tiny_clip, train, classes="base")
    assert folds.images.classes == train.classes[:2]
    assert {*folds.judged.labels} == {0, 1}


def test_one_image_a_class_leaves_nothing_to_choose_by(tiny_clip: Backbone, colors: Path) -> None:
    wanted, _, folds = folds_of(tiny_clip, read_images(colors)["train"], shots=1)
    assert not folds
    assert folds.temperature(wanted.method, wanted.name) is None


def test_probes_of_one_image_a_class_make_none_of_two_surer(
    tiny_clip: Backbone, colors: Path
) -> None:
    _, _, folds = folds_of(tiny_clip, read_images(colors)["train"], shots=2)
    probe = LinearProbe()
    assert metrics.temperature(folds.answers(probe, "linear-probe").table, folds.judged.labels) < 1
    assert (len(folds), folds.temperature(probe, "linear-probe")) == (2, 1)


def test_answers_in_the_labs_folder_are_not_asked_again(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = read_images(colors)["train"]
    wanted, _, first = folds_of(tiny_clip, train, tmp_path)
    found = first.answers(wanted.method, wanted.name)
    [file] = tmp_path.iterdir()

    asked = []
    real = rmadapter.runs.folds.learn
    monkeypatch.setattr("rmadapter.runs.folds.learn", lambda *args: asked.append(1) or real(*args))
    _, _, again = folds_of(tiny_clip, train, tmp_path)
    np.testing.assert_array_equal(again.answers(wanted.method, wanted.name).table, found.table)
    assert again.answers(wanted.method, wanted.name).seconds == pytest.approx(found.seconds)
    assert not asked
    other, _, third = folds_of(tiny_clip, train, tmp_path, rank=2)  # another method's are its own
    third.answers(other.method, other.name)
    assert len(asked) == 3
    file.write_bytes(b"torn")
    _, _, fourth = folds_of(tiny_clip, train, tmp_path)
    np.testing.assert_array_equal(fourth.answers(wanted.method, wanted.name).table, found.table)
    assert len(asked) == 6


def test_who_will_be_late_is_not_waited_for(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(tiny_clip, train)
    clock = iter(range(0, 1000, 10))  # every fold takes ten seconds
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    asked = []
    real = rmadapter.runs.folds.learn
    monkeypatch.setattr("rmadapter.runs.folds.learn", lambda *args: asked.append(1) or real(*args))
    with pytest.raises(OutOfTime):
        folds.answers(wanted.method, wanted.name, deadline=25)
    assert len(asked) == 1


def test_answers_of_other_folds_are_asked_anew(tiny_clip: Backbone, tmp_path: Path) -> None:
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
    assert len([*tmp_path.glob("folds-*")]) == 2
