"""Judgements: where the images come from, figures against scikit-learn, and doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import f1_score

from rmadapter import metrics
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.summary import judgement_table
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs import judge as judging
from rmadapter.runs.folds import Folds
from rmadapter.runs.judge import BASELINES, calibrated, judge
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import Outcome, run_task
from rmadapter.training.traits import Traits
from tests.helpers.external_methods import ExternalMethod
from tests.helpers.shots import grouped_noise

pytestmark = pytest.mark.real_plots

SETTINGS = {"shots": 0, "epochs": 2, "batch_size": 8, "device": "cpu", "first_block": 3, "rank": 4}


def lab_of(backbone: Backbone, splits: dict[str, ImageSet]) -> tuple[Request, Lab]:
    wanted = Request.make({**SETTINGS, "backbone": backbone.name}, data="x")
    lab = Lab(wanted.machine, progress=False)
    lab.add_backbone(backbone)
    lab.add("x", splits)
    return wanted, lab


def judged(backbone: Backbone, splits: dict[str, ImageSet], folds: int = 3) -> Outcome:
    wanted, lab = lab_of(backbone, splits)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    few = lab.draw(wanted.task)
    return judge(
        wanted.task, wanted.method, lab, done, few, Folds.make(wanted.task, few, lab, folds)
    )


def test_test_images_of_a_group_that_was_trained_on_do_not_judge(tiny_clip: Backbone) -> None:
    train, test = (
        grouped_noise("aabb", ["p", "q", "", "r"]),
        grouped_noise("aaabbb", ["p", "x", "", "q", "p", "y"], seed=1),
    )
    record = judged(tiny_clip, {"train": train, "test": test}).record
    assert record.judgement is not None
    assert (record.scores[0].images, record.judgement.images) == (6, 3)
    assert (
        record.judgement.how
        == "on the test split, without 3 that share a group with training images"
    )
    [note] = record.notes
    assert note == (
        "train and test share the group 'p' (and 1 more): 3 of 6 test images (all classes) inflate "
        "the accuracy; a judgement leaves them out"
    )
    plain = ImageSet(train.images, train.labels, train.classes)
    assert judged(tiny_clip, {"train": plain, "test": test}).record.notes == ()


@pytest.mark.parametrize("title", ["linear-probe", ""])
def test_a_method_of_any_title_is_judged_by_its_own_answers(
    tiny_clip: Backbone, title: str
) -> None:
    method = type("Mine", (ZeroShot,), {"title": title, "__module__": __name__})()
    splits = {
        "train": grouped_noise("aabb", [""] * 4),
        "test": grouped_noise("aaabbb", [""] * 6, seed=1),
    }
    wanted, lab = lab_of(tiny_clip, splits)
    [score] = run_task(wanted.task, method, lab, "mine", baselines=BASELINES).record.scores
    [plain] = run_task(wanted.task, ZeroShot(), lab, "zero-shot", baselines=BASELINES).record.scores
    assert (score.accuracy, score.zero_shot) == (plain.accuracy, plain.accuracy)


def test_nor_do_those_of_a_group_that_settings_were_chosen_on(tiny_clip: Backbone) -> None:
    train, val = grouped_noise("aabb", ["", "", "", ""]), grouped_noise("ab", ["v", "w"], seed=2)
    test = grouped_noise("aabb", ["v", "", "w", ""], seed=1)
    record = judged(tiny_clip, {"train": train, "val": val, "test": test}).record
    assert record.judgement is not None
    assert record.judgement.images == 2
    assert "without 2 that share a group with training images" in record.judgement.how


def test_images_that_were_not_drawn_judge_where_enough_are_of_other_groups(
    tiny_clip: Backbone,
) -> None:
    def how(images: ImageSet, shots: int) -> tuple[int, str, int]:
        """Groups that were drawn, and by which and how many images it is judged."""
        wanted, lab = lab_of(tiny_clip, {"all": images})
        task = replace(wanted.task, shots=shots)
        done = run_task(task, wanted.method, lab, wanted.name, baselines=BASELINES)
        few = lab.draw(task)
        record = judge(task, wanted.method, lab, done, few, Folds.make(task, few, lab, 4)).record
        if record.judgement is None:
            return len(set(few.train.groups)), record.notes[-1], 0
        return len(set(few.train.groups)), record.judgement.how, record.judgement.images

    apart = grouped_noise("aaaaaabbbbbb", [*"pqrstu"] * 2)
    count, text, images = how(apart, 1)
    assert text == "on images that were not drawn"
    assert images == 12 - 2 * count
    torn = grouped_noise("a" * 21 + "b" * 21, [*"pqr"] * 14)
    assert how(torn, 8) == (3, "by 3-fold cross-validation of the training images", 16)
    assert how(ImageSet(torn.images, torn.labels, torn.classes), 8)[1:] == (
        "on images that were not drawn",
        26,
    )
    pure = grouped_noise("a" * 6 + "b" * 6, ["p"] * 6 + ["q"] * 6)
    left_out = "ignored 6 undrawn images that share a group with a drawn one"
    assert how(pure, 3) == (2, left_out, 0)


def test_without_a_test_split_the_shots_judge(tiny_clip: Backbone, colors: Path) -> None:
    record = judged(tiny_clip, {"all": read_images(colors)["train"]}).record
    assert [score.title for score in record.scores] == ["cross-validated, all classes"]
    assert record.judgement is not None
    assert record.judgement.how == "by 3-fold cross-validation of the training images"
    assert [row.name for row in record.judgement.rows] == ["zero-shot", "linear-probe", "RMAdapter"]
    assert record.judgement.rows[-1].accuracy == pytest.approx(record.scores[0].accuracy)
    assert record.judgement.rows[0].accuracy == pytest.approx(record.scores[0].zero_shot)
    assert record.judgement.classes == (
        "blue",
        "green",
        "night_sky",
        "red",
    )  # as `predict` answers them
    assert "24 images are too few to judge by" in record.judgement.doubts[0]


def test_copies_of_training_images_do_not_judge(tiny_clip: Backbone, colors: Path) -> None:
    splits = read_images(colors)
    train, test = splits["train"], splits["test"]
    spoilt = ImageSet(
        (*test.images, *train.images[:3]), (*test.labels, *train.labels[:3]), test.classes
    )
    clean, found = (
        judged(tiny_clip, {"train": train, "test": images}).record for images in (test, spoilt)
    )
    assert clean.judgement is not None
    assert found.judgement is not None
    assert (found.scores[0].images, found.judgement.images) == (19, 16)
    assert found.judgement.how == "on the test split, without 3 nearly identical to training images"
    ours, theirs = (  # other batches may round otherwise
        [
            row.model_copy(update={"calibration_error": round(row.calibration_error, 3)})
            for row in judgement.rows
        ]
        for judgement in (found.judgement, clean.judgement)
    )
    assert ours == theirs


class Curious(ExternalMethod):
    traits: ClassVar[Traits] = Traits(unlabelled=True)


def test_copies_of_images_that_were_seen_without_labels_do_not_judge(
    tiny_clip: Backbone, colors: Path
) -> None:
    """Of one that was drawn, and of one that was not."""
    splits = read_images(colors)
    train, test = splits["train"], splits["test"]
    wanted, lab = lab_of(tiny_clip, {})
    lab.add("x", {"train": train, "test": test})
    task = replace(wanted.task, shots=2)
    few = lab.draw(task)
    added = (few.train.images[0], few.heldout.images[0])
    lab.add("x", {"train": train, "test": replace(test, images=(*test.images[:-2], *added))})
    for method, copies in ((wanted.method, 1), (Curious(), 2)):
        found = judge(
            task, method, lab, run_task(task, method, lab, baselines=BASELINES), few
        ).record.judgement
        assert found is not None
        assert found.images == len(test) - copies


def outcome(
    right: Sequence[Sequence[int]], labels: Sequence[int]
) -> tuple[Evaluation, list[np.ndarray]]:
    tables = [np.eye(3)[np.array(answers)] * 0.8 + 0.1 for answers in right]
    images = ImageSet(
        tuple(np.zeros((2, 2, 3), np.uint8) for _ in labels), tuple(labels), ("a", "b", "c")
    )
    return Evaluation("x", images, tables[0], tables[1], {"linear-probe": tables[2]}), tables


def test_figures_against_scikit_learn_and_a_better_probe_is_named(tiny_clip: Backbone) -> None:
    labels = [0, 1] * 20  # c has no image
    own = [0] * 40
    evaluation, tables = outcome([own, [2] * 40, labels], labels)
    found = judging._judgement("here", evaluation, range(40), "RMAdapter", "rmadapter")
    assert (found.majority, found.images) == (50, 40)
    for row, table in zip(found.rows, (tables[1], tables[2], tables[0]), strict=True):
        assert row.accuracy == pytest.approx(100 * np.mean(table.argmax(1) == labels))
        expected = f1_score(
            labels, table.argmax(1), labels=[0, 1], average="macro", zero_division=0
        )
        assert row.macro_f1 == pytest.approx(100 * expected)
        assert row.low < row.accuracy <= row.high or row.accuracy in (0, 100)
        assert row.recalls[2] is None
    assert found.doubts[0].startswith(
        "40 images are too few to judge by: any accuracy from 35 to 65 % is plausible"
    )
    assert found.doubts[1] == "no images to judge these classes by: c"
    assert found.doubts[2].endswith(
        "p = 1.9e-06): fit again with --method linear-probe"
    )  # 2 / 2**20: 20 to 0
    header, rows = judgement_table(found)
    assert header[0] == "40 images"
    assert [row[:2] for row in rows[:2]] == [
        ["guessing", "33.3"],
        ["always the most frequent class", "50.0"],
    ]
    assert rows[-1][1:3] == ["50.0", "35.2 to 64.8"]


def test_a_method_that_is_judged_beside_stands_there_once() -> None:
    evaluation, _ = outcome([[0] * 40, [2] * 40, [0] * 40], [0, 1] * 20)
    found = judging._judgement("here", evaluation, range(40), "linear probe", "linear-probe")
    assert [row.name for row in found.rows] == ["zero-shot", "linear probe"]
    found = judging._judgement("here", evaluation, range(40), "zero-shot CLIP", "zero-shot")
    assert [row.name for row in found.rows] == ["linear-probe", "zero-shot CLIP"]


def test_no_image_has_a_part_in_its_own_calibration(tiny_clip: Backbone, colors: Path) -> None:
    wanted, lab = lab_of(tiny_clip, {"all": read_images(colors)["train"]})
    folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)
    table = np.random.default_rng(0).dirichlet([0.3] * 4, len(folds.rows))
    found, labels = calibrated(table, folds), np.array(folds.judged.labels)
    start = 0
    for part in folds.parts:
        mine = slice(start, start := start + len(part))
        others = np.delete(np.arange(len(table)), range(*mine.indices(len(table))))
        expected = metrics.tempered(table[mine], metrics.temperature(table[others], labels[others]))
        np.testing.assert_allclose(found[mine], expected)
    assert (found.argmax(1) == table.argmax(1)).all()


def test_two_folds_make_no_answer_surer(tiny_clip: Backbone, colors: Path) -> None:
    """Of two images a class each model saw one."""
    wanted, lab = lab_of(tiny_clip, {"all": read_images(colors)["train"]})
    for count in (2, 3):
        folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, count)
        labels = np.array(folds.judged.labels)
        unsure = np.where(
            np.eye(4)[labels] > 0, 0.4, 0.2
        )  # right each time, so that the best temperature is below 1
        surer = calibrated(unsure, folds).max(1) > unsure.max(1) + 1e-6
        assert (len(folds), {*surer.tolist()}) == (count, {count == 3})
