"""Folds keep copies together, their answers are those of fits by hand, and `auto` uses them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter import FewShotClassifier, metrics
from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.summary import choice_table, describe_choice
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.methods.auto import CANDIDATES, FEW_IMAGES, PROBE_FOR_FEW, Auto, preferred
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.fit import fit
from rmadapter.runs.folds import (
    Answers,
    Folds,
    OutOfTime,
    choose,
    fitted_temperature,
    pick,
    split,
)
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.training.contract import Choices, answers
from rmadapter.training.traits import Expected
from tests.helpers.labs import prepare
from tests.helpers.shots import grouped_noise

pytestmark = pytest.mark.real_plots

THREE = ("zero-shot", "linear-probe", "tip-adapter")


def folds_of(
    backbone: Backbone, train: ImageSet, folder: Path | None = None, **settings: Any
) -> tuple[Request, Lab, Folds]:
    wanted, lab = prepare(backbone, {"all": train}, folder=folder, **settings)
    return wanted, lab, Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)


def candidates_of(backbone: Backbone, colors: Path, **settings: Any) -> tuple[Folds, Choices]:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(backbone, train, method="auto", **{"shots": 0, **settings})
    choices = wanted.method.choices(folds.images.labels)
    assert choices is not None
    return folds, choices


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
    assert temperature == fitted_temperature(found.table, folds.judged.labels, Expected())


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
    for name in ("linear-probe", "rmadapter-plus"):
        expected = load_method(name).traits.expected
        assert fitted_temperature(table, labels, expected) == pytest.approx(alone, rel=0.02)
        few = fitted_temperature(table[:4], labels[:4], expected)
        assert metrics.temperature(table[:4], labels[:4]) < few < expected.temperature
        assert few > expected.temperature * np.exp(-2 * expected.deviation)


def test_a_method_that_answers_slowly_is_not_calibrated_by_all_folds(
    tiny_clip: Backbone, colors: Path, fits: list[str]
) -> None:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(tiny_clip, train, method="tpt")
    assert folds.temperature(wanted.method, wanted.name) == Expected().temperature
    assert not fits


def test_a_slow_method_is_calibrated_by_the_folds_it_has_answered(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, fits: list[str]
) -> None:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(tiny_clip, train, tmp_path)
    assert folds.temperature(wanted.method, wanted.name) == Expected().temperature
    assert not fits
    first = folds.answers(wanted.method, wanted.name, count=1).table
    part = folds.judged.labels[: len(first)]
    assert len(first) == len(folds.parts[0])
    _, _, again = folds_of(tiny_clip, train, tmp_path)  # after a stop
    for some in (folds, again):
        assert some.answered(wanted.method, wanted.name) == 1
        found = some.temperature(wanted.method, wanted.name)
        assert found == fitted_temperature(first, part, Expected())
    assert len(fits) == 1
    folds.temperature(wanted.method, wanted.name, whole=True)
    assert len(fits) == 3


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


def test_folds_that_will_be_late_are_not_computed(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch, fits: list[str]
) -> None:
    train = read_images(colors)["train"]
    wanted, _, folds = folds_of(tiny_clip, train)
    clock = iter(range(0, 1000, 10))  # every fold takes ten seconds
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    probe = LinearProbe(search_steps=0)
    with pytest.raises(OutOfTime):
        folds.answers(probe, "linear-probe", deadline=25)
    assert len(fits) == 1
    # ten seconds for a step: the first ones show that it will be late
    with pytest.raises(OutOfTime):
        folds.answers(wanted.method, wanted.name, deadline=time.monotonic() + 100)
    assert len(fits) == 2
    # the training on all shots would take another 15 seconds
    folds.answers(probe, "linear-probe", count=1, deadline=time.monotonic() + 30)
    with pytest.raises(OutOfTime):
        folds.answers(probe, "linear-probe", count=2, deadline=time.monotonic() + 20)


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


# Choosing a method


def test_the_first_within_two_standard_errors_of_the_best_is_taken() -> None:
    right = np.ones(100, bool)
    four, five = right.copy(), right.copy()
    four[:4] = False  # behind by 4 with an error of 1.96, twice which is 3.92
    five[:5] = False  # behind by 5 with an error of 2.18
    three = right.copy()
    three[:3] = False  # behind by 3 with an error of 1.71
    assert pick([five, four, three, right]) == 2
    assert pick([right, three, four]) == 0
    # as many right as the best, on other images: behind by nothing
    assert pick([np.roll(four, 50), four]) == 0
    # 9 behind, but on so many images that differ: the error is 4.9
    noisy, best = right.copy(), right.copy()
    noisy[:17], best[17:25] = False, False
    assert pick([noisy, best]) == 0
    assert pick([~right, ~right]) == 0


@pytest.mark.usefixtures("no_search")
def test_candidates_are_methods_and_are_judged_in_order(tiny_clip: Backbone, colors: Path) -> None:
    assert {*CANDIDATES} <= {*METHODS}
    folds, choices = candidates_of(tiny_clip, colors, candidates=THREE)
    choice = choose(folds, choices)
    assert [row.name for row in choice.rows] == [*THREE]
    assert (choice.folds, choice.images) == (3, len(folds.rows))
    labels, hits = np.array(folds.judged.labels), []
    for row in choice.rows:
        hits.append(folds.answers(choices.methods[row.name], row.name).table.argmax(1) == labels)
        assert row.accuracy == pytest.approx(100 * hits[-1].mean())
        assert row.reason == ""
    assert choice.chosen == THREE[pick(hits)]
    best = max(row.accuracy or 0 for row in choice.rows)
    for row in choice.rows:
        assert row.behind == pytest.approx(best - (row.accuracy or 0))
    header, rows = choice_table(choice)
    assert header[0] == "method"
    assert [row[0].removesuffix(" (chosen)") for row in rows] == [*THREE]
    assert f"auto: {choice.chosen}, the first within" in describe_choice(choice)


@pytest.mark.parametrize(
    ("right", "folds", "chosen"),
    [
        # which of 9 images in 3 folds RMAdapter+ is right about; the probe: all but every third
        ("110110110", 1, "rmadapter-plus"),  # not behind
        ("100111111", 2, "rmadapter-plus"),  # behind by one image, and then ahead
        ("100110110", 3, "rmadapter-plus"),  # behind, but not shown to be
        ("000000000", 1, "linear-probe"),  # hopeless
    ],
)
def test_a_slow_candidate_is_judged_on_as_few_folds_as_settle_it(
    tiny_clip: Backbone,
    colors: Path,
    monkeypatch: pytest.MonkeyPatch,
    right: str,
    folds: int,
    chosen: str,
) -> None:
    names = ("rmadapter-plus", "linear-probe")
    some, choices = candidates_of(tiny_clip, colors, candidates=names, shots=4)
    some.parts = [[*range(start, start + 3)] for start in (0, 3, 6)]
    hits = {"linear-probe": "110110110", "rmadapter-plus": right}
    asked: list[tuple[str, int]] = []

    def answers(method: Any, name: str, *, count: int, **_: Any) -> Answers:
        asked.append((name, count))
        labels = np.array(some.judged.labels)[: 3 * count]
        marks = np.array([mark == "1" for mark in hits[name][: 3 * count]])
        return Answers(np.eye(4)[np.where(marks, labels, (labels + 1) % 4)], 0.1)

    monkeypatch.setattr(some, "answers", answers)
    choice = choose(some, choices)
    assert asked[0] == ("linear-probe", 3)  # the cheap one first, on all folds
    assert asked[-1] == ("rmadapter-plus", folds)
    assert choice.chosen == chosen
    row = choice.rows[0]
    assert (row.name, row.images) == ("rmadapter-plus", 3 * folds)
    assert row.accuracy == pytest.approx(100 * right[: 3 * folds].count("1") / (3 * folds))


def test_a_slow_candidate_must_leave_time_for_its_training(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("rmadapter-plus", "zero-shot")
    some, choices = candidates_of(tiny_clip, colors, candidates=names, minutes=1)
    right = np.eye(4)

    def fold(method: Any, plain: bool, key: str, number: int, *rest: Any) -> Answers:
        labels = [some.images.labels[row] for row in some.parts[number]]
        return Answers(right[labels], 50.0 if method.recipe else 0.1)

    monkeypatch.setattr(some, "_fold", fold)
    # a training on all three folds would take 75 seconds
    choice = choose(some, choices)
    assert (choice.chosen, choice.rows[0].reason) == ("zero-shot", "would not finish in time")


@pytest.mark.usefixtures("no_search")
def test_late_and_failing_candidates_are_listed_with_reasons(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds, choices = candidates_of(tiny_clip, colors, candidates=THREE)
    real = folds.answers

    def some(method: Any, name: str, **how: Any) -> Any:
        if name == "tip-adapter":
            raise OutOfTime
        if name == "linear-probe":
            raise UserError("it has a reason")
        return real(method, name, **how)

    monkeypatch.setattr(folds, "answers", some)
    choice = choose(folds, choices)
    assert choice.chosen == "zero-shot"
    reasons = ["", "it has a reason", "would not finish in time"]
    assert [row.reason for row in choice.rows] == reasons
    assert choice_table(choice)[1][1] == ["linear-probe", "-", "", "it has a reason", ""]
    with pytest.raises(UserError, match="the first, linear-probe: it has a reason"):
        choose(folds, Auto(candidates=("linear-probe",)).choices())


@pytest.mark.usefixtures("no_search")
def test_one_image_a_class_is_too_few_to_choose_by(tiny_clip: Backbone, colors: Path) -> None:
    choice = choose(*candidates_of(tiny_clip, colors, shots=1))
    assert (choice.chosen, choice.rows) == (CANDIDATES[0], ())
    assert "too few images per class to choose by" in describe_choice(choice)


@pytest.mark.usefixtures("no_search")
def test_both_probes_are_preferred_for_few_images_alone(tiny_clip: Backbone, colors: Path) -> None:
    assert preferred(CANDIDATES, 16) == preferred(CANDIDATES, FEW_IMAGES) == [*CANDIDATES]
    probes = ("linear-probe", PROBE_FOR_FEW)
    for few in (preferred(CANDIDATES, FEW_IMAGES - 1), preferred(probes, 2)):
        assert few.index(PROBE_FOR_FEW) + 1 == few.index("linear-probe")
    assert preferred(CANDIDATES, FEW_IMAGES - 1)[0] == CANDIDATES[0]
    assert preferred(("zero-shot", "linear-probe"), 2) == ["zero-shot", "linear-probe"]
    folds, choices = candidates_of(tiny_clip, colors, candidates=("linear-probe", PROBE_FOR_FEW))
    assert np.median(np.bincount(folds.images.labels)) < FEW_IMAGES
    assert [row.name for row in choose(folds, choices).rows] == [PROBE_FOR_FEW, "linear-probe"]


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"rank": 4}, "rank"),
        ({"candidates": ["tip-adaptor"]}, "unknown method 'tip-adaptor'; did you mean"),
        ({"minutes": 0}, "minutes"),
    ],
)
def test_mistakes_in_settings_of_auto_are_named(values: dict[str, object], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        Request.make(values, "auto", choosing=True)


@pytest.mark.usefixtures("no_search")
def test_a_stopped_run_keeps_its_choice(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    splits = {"all": read_images(colors)["train"]}
    wanted, lab = prepare(tiny_clip, splits, "auto", candidates=THREE[:2])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmadapter.runs.fit.run_task", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(wanted.task, wanted.method, tmp_path, lab, wanted.name)
    [path] = tmp_path.rglob("choice-*.json")
    kept = json.loads(path.read_text())
    other = next(name for name in THREE[:2] if name != kept["chosen"])
    path.write_text(json.dumps(kept | {"chosen": other}))
    record = fit(wanted.task, wanted.method, tmp_path, lab, wanted.name)
    assert record.choice
    assert (record.choice.chosen, record.method.name) == (other, other)
    assert not [*tmp_path.rglob("choice-*.json")]


@pytest.mark.usefixtures("no_search")
def test_auto_chooses_a_method_and_says_how(tiny_clip: Backbone, colors: Path) -> None:
    paths = sorted((colors / "train").glob("*/*.png"))
    names = [path.parent.name for path in paths]
    few = FewShotClassifier(tiny_clip.name, method="auto", candidates=THREE[:2], device="cpu")
    few.fit(paths, names)
    assert few.choice_.chosen == "linear-probe"
    assert few.fitted_.method.title == "linear probe"
    assert few.fitted_.temperature != 1
    plain = FewShotClassifier(tiny_clip.name, method="linear-probe", device="cpu").fit(paths, names)
    images = sorted((colors / "test").glob("*/*.png"))
    np.testing.assert_array_equal(few.predict_proba(images), plain.predict_proba(images))
    plain.fitted_ = replace(plain.fitted_, temperature=1.0)
    assert (few.predict(images) == plain.predict(images)).all()  # a temperature changes no answer
    assert abs(few.predict_proba(images) - plain.predict_proba(images)).max() > 1e-4


@pytest.mark.usefixtures("no_search")
def test_a_method_is_chosen_and_its_probabilities_are_calibrated(
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: list[str],
) -> None:
    def run(out: Path) -> Record:
        splits = {"all": read_images(colors)["train"]}
        wanted, lab = prepare(tiny_clip, splits, "auto", shots=4, candidates=THREE[:2])
        return fit(wanted.task, wanted.method, out, lab, wanted.name, folds=3)

    first = run(tmp_path / "one")
    assert first.choice is not None
    assert first.judgement is not None
    assert first.choice.chosen == first.method.name == "linear-probe"
    assert first.judgement.rows[-1].accuracy == pytest.approx(first.choice.rows[1].accuracy)
    assert first.judgement.doubts[-1].startswith("linear probe was also chosen on these images")
    saved = load(tmp_path / "one", tiny_clip)
    assert saved.fitted.temperature == first.temperature != 1
    assert "Which method?" in (tmp_path / "one" / "report.html").read_text("utf-8")
    assert run(tmp_path / "one") == first  # finished

    real = Folds.answers  # killed after the first candidate, it goes on with the second

    def dies(self: Any, method: Any, name: str, **how: Any) -> Any:
        if name == "linear-probe":
            raise KeyboardInterrupt
        return real(self, method, name, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Folds, "answers", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "two")
    fits.clear()
    second = run(tmp_path / "two")
    assert fits == ["linear probe"] * 3
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (second.key, second.temperature) == (first.key, first.temperature)
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert left[0] == left[1]
