"""Judgements: where the images come from, figures against scikit-learn, and doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from rmadapter import metrics
from rmadapter.answers.sets import Calibration
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import Judgement, MethodName, Record
from rmadapter.artifacts.summary import describe_tie, judgement_table
from rmadapter.artifacts.value import Balanced
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs import judge as judging
from rmadapter.runs.folds import Folds, fitted_temperature
from rmadapter.runs.judge import judge
from rmadapter.runs.run import run_task
from rmadapter.runs.unseen import BASELINES, by_folds, calibrated
from rmadapter.task import Task
from rmadapter.training.traits import Traits
from tests.helpers.external_methods import ExternalMethod
from tests.helpers.labs import prepare
from tests.helpers.shots import grouped_noise

pytestmark = pytest.mark.real_plots


def judged(backbone: Backbone, splits: dict[str, ImageSet], folds: int = 3, **task: Any) -> Record:
    """Return the record of a run that is judged. task: settings of the task."""
    wanted, lab = prepare(backbone, splits, **task)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    parts = Folds.make(wanted.task, few, lab, folds)
    found = by_folds(parts, wanted.method, wanted.name, 1.0) if parts else None
    return judge(wanted.task, wanted.method, lab, done, few, found).record


def judgement_of(record: Record) -> Judgement:
    assert record.judgement is not None
    return record.judgement


def test_test_images_of_a_group_that_was_trained_on_do_not_judge(tiny_clip: Backbone) -> None:
    train = grouped_noise("aabb", ["p", "q", "", "r"])
    test = grouped_noise("aaabbb", ["p", "x", "", "q", "p", "y"], seed=1)
    record = judged(tiny_clip, {"train": train, "test": test})
    judgement = judgement_of(record)
    assert (record.scores[0].images, judgement.images) == (6, 3)
    assert "on the test split, without 3 that share a group" in judgement.how
    note, *_ = record.notes
    assert note.startswith("train and test share the group 'p' (and 1 more): 3 of 6 test images")
    plain = ImageSet(train.images, train.labels, train.classes)
    notes = judged(tiny_clip, {"train": plain, "test": test}).notes
    assert not any("share the group" in text for text in notes)


@pytest.mark.parametrize("title", ["linear-probe", ""])
def test_a_method_of_any_title_is_judged_by_its_own_answers(
    tiny_clip: Backbone, title: str
) -> None:
    method = type("Mine", (ZeroShot,), {"title": title, "__module__": __name__})()
    splits = {
        "train": grouped_noise("aabb", [""] * 4),
        "test": grouped_noise("aaabbb", [""] * 6, seed=1),
    }
    wanted, lab = prepare(tiny_clip, splits)
    [score] = run_task(wanted.task, method, lab, "mine", baselines=BASELINES).record.scores
    [plain] = run_task(wanted.task, ZeroShot(), lab, "zero-shot", baselines=BASELINES).record.scores
    assert (score.accuracy, score.zero_shot) == (plain.accuracy, plain.accuracy)


@pytest.mark.ci
def test_test_images_of_a_group_that_settings_were_chosen_on_do_not_judge(
    tiny_clip: Backbone,
) -> None:
    train, val = grouped_noise("aabb", ["", "", "", ""]), grouped_noise("ab", ["v", "w"], seed=2)
    test = grouped_noise("aabb", ["v", "", "w", ""], seed=1)
    judgement = judgement_of(judged(tiny_clip, {"train": train, "val": val, "test": test}))
    assert judgement.images == 2
    assert "without 2 that share a group with training images" in judgement.how


def test_intervals_allow_for_images_of_one_group(tiny_clip: Backbone) -> None:
    """The test images stand alone, or four of each are of one group."""
    train = grouped_noise("ab" * 8, [""] * 16)
    test = grouped_noise("aaaabbbb" * 5, [""] * 40, seed=1)
    together = replace(test, groups=tuple(f"object {i // 4}" for i in range(40)))
    alone, grouped = (
        judgement_of(judged(tiny_clip, {"train": train, "test": images}))
        for images in (test, together)
    )
    assert (alone.groups, grouped.groups) == (0, 10)
    widths = []
    for one, other in zip(alone.rows, grouped.rows, strict=True):
        assert (one.accuracy, one.name) == (other.accuracy, other.name)
        widths.append((other.high - other.low) - (one.high - one.low))
    assert min(widths) >= 0
    assert max(widths) > 5


@pytest.mark.ci
def test_undrawn_images_judge_where_enough_are_of_other_groups(tiny_clip: Backbone) -> None:
    undrawn = "on images that were not drawn"
    apart = grouped_noise("aaaaaabbbbbb", [*"pqrstu"] * 2)
    drawn = prepare(tiny_clip, {"all": apart}, shots=1)[1].draw(Task(data="x", shots=1))
    judgement = judgement_of(judged(tiny_clip, {"all": apart}, 4, shots=1))
    assert judgement.how == undrawn
    assert judgement.images == 12 - 2 * len({*drawn.train.groups})
    torn = grouped_noise("a" * 21 + "b" * 21, [*"pqr"] * 14)
    judgement = judgement_of(judged(tiny_clip, {"all": torn}, 4, shots=8))
    assert judgement.how == "by 3-fold cross-validation of the training images"
    assert judgement.images == 16
    plain = ImageSet(torn.images, torn.labels, torn.classes)
    judgement = judgement_of(judged(tiny_clip, {"all": plain}, 4, shots=8))
    assert (judgement.how, judgement.images) == (undrawn, 26)
    pure = grouped_noise("a" * 6 + "b" * 6, ["p"] * 6 + ["q"] * 6)
    record = judged(tiny_clip, {"all": pure}, 4, shots=3)
    assert record.judgement is None
    assert "ignored 6 undrawn images that share a group" in record.notes[-1]


@pytest.mark.ci
def test_without_a_test_split_the_shots_judge(tiny_clip: Backbone, colors: Path) -> None:
    record = judged(tiny_clip, {"all": read_images(colors)["train"]})
    [score], judgement = record.scores, judgement_of(record)
    assert score.title == "cross-validated, all classes"
    assert judgement.how == "by 3-fold cross-validation of the training images"
    assert [row.name for row in judgement.rows] == ["zero-shot", "linear-probe", "RMAdapter"]
    assert judgement.rows[-1].accuracy == pytest.approx(score.accuracy)
    assert judgement.rows[0].accuracy == pytest.approx(score.zero_shot)
    # as `predict` answers them
    assert judgement.classes == ("blue", "green", "night_sky", "red")
    assert "24 images are too few to judge by" in judgement.doubts[0]
    assert record.seconds["linear-probe"] > 0
    assert (describe_tie(record) in record.notes) == (
        judgement.verdict(judgement.rows[1]) == "tied"
    )


def test_copies_of_training_images_do_not_judge(tiny_clip: Backbone, colors: Path) -> None:
    splits = read_images(colors)
    train, test = splits["train"], splits["test"]
    spoilt = ImageSet(
        (*test.images, *train.images[:3]), (*test.labels, *train.labels[:3]), test.classes
    )
    record = judged(tiny_clip, {"train": train, "test": spoilt})
    clean = judgement_of(judged(tiny_clip, {"train": train, "test": test}))
    judgement = judgement_of(record)
    assert (record.scores[0].images, judgement.images) == (19, 16)
    assert judgement.how == "on the test split, without 3 nearly identical to training images"
    for row, expected in zip(judgement.rows, clean.rows, strict=True):
        # other batches may round otherwise
        error = pytest.approx(expected.calibration_error, abs=1e-3)
        assert row.calibration_error == error
        same = {"calibration_error": expected.calibration_error}
        assert row.model_copy(update=same) == expected


class Curious(ExternalMethod):
    traits: ClassVar[Traits] = Traits(unlabelled=True)


@pytest.mark.ci
def test_copies_of_images_that_were_seen_without_labels_do_not_judge(
    tiny_clip: Backbone, colors: Path
) -> None:
    """Of one that was drawn, and of one that was not."""
    splits = read_images(colors)
    train, test = splits["train"], splits["test"]
    wanted, lab = prepare(tiny_clip, {"train": train, "test": test})
    task = replace(wanted.task, shots=2)
    few = lab.draw(task)
    added = (few.train.images[0], few.heldout.images[0])
    lab.add("x", {"train": train, "test": replace(test, images=(*test.images[:-2], *added))})
    for method, copies in ((wanted.method, 1), (Curious(), 2)):
        done = run_task(task, method, lab, baselines=BASELINES)
        judgement = judgement_of(judge(task, method, lab, done, few).record)
        assert judgement.images == len(test) - copies


def outcome(
    right: Sequence[Sequence[int]], labels: Sequence[int]
) -> tuple[Evaluation, list[np.ndarray]]:
    tables = [np.eye(3)[np.array(answers)] * 0.8 + 0.1 for answers in right]
    images = ImageSet((np.zeros((2, 2, 3)),) * len(labels), tuple(labels), ("a", "b", "c"))
    return Evaluation("x", images, tables[0], tables[1], {"linear-probe": tables[2]}), tables


def test_figures_against_scikit_learn_and_a_better_probe_is_named(tiny_clip: Backbone) -> None:
    labels = [0, 1] * 20  # c has no image
    own = [0] * 40
    evaluation, tables = outcome([own, [2] * 40, labels], labels)
    judgement = judging._judgement("here", evaluation, range(40), "RMAdapter", "rmadapter")
    assert (judgement.majority, judgement.images) == (50, 40)
    for row, table in zip(judgement.rows, (tables[1], tables[2], tables[0]), strict=True):
        assert row.accuracy == pytest.approx(100 * np.mean(table.argmax(1) == labels))
        how = {"labels": [0, 1], "average": "macro", "zero_division": 0}
        assert row.macro_f1 == pytest.approx(100 * f1_score(labels, table.argmax(1), **how))
        assert row.low < row.accuracy <= row.high or row.accuracy in (0, 100)
        assert row.balanced == Balanced.of(table.argmax(1), labels)
        assert row.balanced.most == row.balanced.fewest == 20
        assert row.recalls[2] is None
    few, missing, better = judgement.doubts
    assert few.startswith("40 images are too few to judge by: any accuracy from 35 to 65 %")
    assert missing == "no images to judge these classes by: c"
    # 2 / 2**20: 20 to 0
    assert better.endswith("p = 1.9e-06): fit again with --method linear-probe")
    header, rows = judgement_table(judgement, MethodName(name="rmadapter", title="RMAdapter"))
    assert header[0] == "40 images"
    assert rows[0][:2] == ["guessing", "33.3"]
    assert rows[1][:2] == ["always the most frequent class", "50.0"]
    assert rows[-1][:3] == ["rmadapter", "50.0", "35.2 to 64.8"]
    assert "balanced accuracy" not in header


@pytest.mark.ci
def test_balanced_accuracy_stands_beside_where_classes_have_unequal_numbers(
    tiny_clip: Backbone,
) -> None:
    labels = [0] * 30 + [1] * 10
    evaluation, tables = outcome([[0] * 40, [0] * 35 + [1] * 5, labels], labels)
    judgement = judging._judgement("here", evaluation, range(40), "RMAdapter", "rmadapter")
    header, rows = judgement_table(judgement, MethodName(name="rmadapter", title="RMAdapter"))
    for row, table, shown in zip(
        judgement.rows, (tables[1], tables[2], tables[0]), rows[2:], strict=True
    ):
        rate, low, high = metrics.balanced_accuracy(table, labels)
        assert rate == pytest.approx(100 * balanced_accuracy_score(labels, table.argmax(1)))
        assert row.balanced is not None
        assert shown[header.index("balanced accuracy")] == f"{rate:.1f} ({low:.1f} to {high:.1f})"
    assert {len(row) for row in rows} == {len(header)}


def test_undrawn_images_calibrate_by_halves(tiny_clip: Backbone) -> None:
    """Half of them calibrate the sets of the others, and all of them the model."""
    images = grouped_noise("ab" * 60, [""] * 120)
    wanted, lab = prepare(tiny_clip, {"all": images}, shots=8)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    outcome = judge(wanted.task, wanted.method, lab, done, few)
    calibration, judgement = outcome.fitted.calibration, judgement_of(outcome.record)
    assert calibration is not None
    assert (calibration.source, len(calibration.shares)) == ("held out", judgement.images)
    assert [promise.error for promise in judgement.promises] == [5, 10]
    assert judgement.promises[0].calibrated == judgement.images // 2
    for promise in judgement.promises:
        assert promise.low <= promise.missed <= promise.high


def test_a_calibration_knows_which_of_its_promises_were_not_kept(tiny_clip: Backbone) -> None:
    """Sets of sure classes alone miss about half of the images of noise."""
    parts = {
        name: grouped_noise("ab" * 30, [""] * 60, seed)
        for seed, name in enumerate(["train", "test"])
    }
    wanted, lab = prepare(tiny_clip, parts, shots=8)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    for share, kept in ((0.0, True), (1.0, False)):
        fitted = replace(
            done.fitted, calibration=Calibration((share,) * 48, (0, 1) * 24, 2, "folds")
        )
        outcome = judge(wanted.task, wanted.method, lab, replace(done, fitted=fitted), few)
        promises = judgement_of(outcome.record).promises
        assert [promise.error for promise in promises] == [5, 10]
        calibration = outcome.fitted.calibration
        assert calibration is not None
        assert calibration.broken == (() if kept else (0.05, 0.1))
        assert calibration.missed == (() if kept else (promises[0].missed / 100,) * 2)


@pytest.mark.ci
def test_groups_of_undrawn_images_calibrate_by_one_image_each(tiny_clip: Backbone) -> None:
    """64 groups of four images, of which 16 are drawn from."""
    images = grouped_noise("ab" * 128, [f"object {i // 2 % 32}{'ab'[i % 2]}" for i in range(256)])
    wanted, lab = prepare(tiny_clip, {"all": images}, shots=8)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    outcome = judge(wanted.task, wanted.method, lab, done, few)
    calibration, judgement = outcome.fitted.calibration, judgement_of(outcome.record)
    own = len({*few.unrelated.groups})
    assert (judgement.images, judgement.groups) == (4 * own, own)
    assert calibration is not None
    assert calibration.facts == {"images": own, "source": "held out", "grouped": True}
    assert judgement.promises[0].calibrated == own // 2


@pytest.mark.ci
def test_groups_of_shots_calibrate_by_one_image_each(tiny_clip: Backbone) -> None:
    images = grouped_noise("ab" * 24, [f"object {i // 6}" for i in range(48)])
    wanted, lab = prepare(tiny_clip, {"all": images}, shots=24)
    folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, 4)
    folds.answers(wanted.method, wanted.name)
    held_out = folds.tempered(wanted.method, wanted.name, 1.0)
    assert held_out is not None
    done = run_task(wanted.task, wanted.method, lab, wanted.name)
    fitted = held_out.calibrate(done.fitted, "folds", 1)
    assert fitted.calibration is not None
    assert fitted.familiarity is not None
    expected = {"images": len({*folds.judged.groups}), "source": "folds", "grouped": True}
    assert fitted.calibration.facts == fitted.familiarity.facts == expected


def test_answers_that_depend_on_those_before_calibrate_nothing(tiny_clip: Backbone) -> None:
    images = grouped_noise("ab" * 40, [""] * 80)
    wanted, lab = prepare(tiny_clip, {"all": images}, "tda", shots=8)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    outcome = judge(wanted.task, wanted.method, lab, done, few)
    assert judgement_of(outcome.record).images == 64
    assert judgement_of(outcome.record).promises == ()
    assert outcome.fitted.calibration is outcome.fitted.familiarity is None


@pytest.mark.ci
def test_the_shots_promise_fold_by_fold(tiny_clip: Backbone) -> None:
    images = grouped_noise("ab" * 18, [""] * 36)
    wanted, lab = prepare(tiny_clip, {"all": images}, shots=18)
    few = lab.draw(wanted.task)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    folds = Folds.make(wanted.task, few, lab, 3)
    folds.answers(wanted.method, wanted.name)
    held_out = folds.tempered(wanted.method, wanted.name, 1.0)
    assert held_out is not None
    assert len(held_out.distances) == 36
    done = replace(done, fitted=held_out.calibrate(done.fitted, "folds", 1))
    found = by_folds(folds, wanted.method, wanted.name, 1.0)
    judgement = judgement_of(judge(wanted.task, wanted.method, lab, done, few, found).record)
    [ten] = judgement.promises
    assert (ten.error, ten.calibrated) == (10, 24)  # 36 images in 3 folds


@pytest.mark.ci
def test_one_part_of_many_images_judges(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its halves calibrate each other, and measure what they promise."""
    train = read_images(colors)["train"]
    many = {"all": train.subset([*range(24)] * 2)}
    wanted, lab = prepare(tiny_clip, many)
    few = lab.draw(wanted.task)
    folds = Folds.make(wanted.task, few, lab)
    [part] = folds.parts
    temperature = folds.temperature(wanted.method, wanted.name)
    done = run_task(wanted.task, wanted.method, lab, wanted.name, baselines=BASELINES)
    held_out = folds.tempered(wanted.method, wanted.name, temperature or 1.0)
    assert held_out is not None
    done = replace(done, fitted=held_out.calibrate(done.fitted, "folds", 1))
    found = by_folds(folds, wanted.method, wanted.name, 1.0)
    judgement = judgement_of(judge(wanted.task, wanted.method, lab, done, few, found).record)
    assert judgement.images == len(part) < len(train)
    assert f"on {len(part)} training images" in judgement.how
    assert all(promise.calibrated < len(part) for promise in judgement.promises)
    table = np.random.default_rng(0).dirichlet([0.3] * 4, len(part))
    labels, which = np.array(folds.judged.labels), folds.places
    found = calibrated(table, folds)
    for number in (0, 1):
        others = which != number
        expected = fitted_temperature(table[others], labels[others])
        np.testing.assert_allclose(found[~others], metrics.tempered(table[~others], expected))


def test_a_method_that_is_a_baseline_has_one_row() -> None:
    evaluation, _ = outcome([[0] * 40, [2] * 40, [0] * 40], [0, 1] * 20)
    found = judging._judgement("here", evaluation, range(40), "linear probe", "linear-probe")
    assert [row.name for row in found.rows] == ["zero-shot", "linear probe"]
    found = judging._judgement("here", evaluation, range(40), "zero-shot CLIP", "zero-shot")
    assert [row.name for row in found.rows] == ["linear-probe", "zero-shot CLIP"]


def test_no_image_is_calibrated_on_itself(tiny_clip: Backbone, colors: Path) -> None:
    wanted, lab = prepare(tiny_clip, {"all": read_images(colors)["train"]})
    folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)
    table = np.random.default_rng(0).dirichlet([0.3] * 4, len(folds.rows))
    found, labels = calibrated(table, folds), np.array(folds.judged.labels)
    start = 0
    for part in folds.parts:
        mine = slice(start, start := start + len(part))
        others = np.delete(np.arange(len(table)), range(*mine.indices(len(table))))
        temperature = fitted_temperature(table[others], labels[others])
        expected = metrics.tempered(table[mine], temperature)
        np.testing.assert_allclose(found[mine], expected)
    assert (found.argmax(1) == table.argmax(1)).all()
