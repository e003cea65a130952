"""Records and descriptions of models: what is written comes back, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError

from rmadapter import FewShotClassifier
from rmadapter.answers.taxonomy import MAX_DEPTH, Taxonomy
from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import (
    BackboneName,
    MethodName,
    Record,
    Score,
    parse_record,
    read_record,
)
from rmadapter.artifacts.value import Balanced, Level, Promise
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.task import Question, Task

SCORES = (
    Score(name="base", images=10, classes=4, accuracy=60.0, zero_shot=50.0),
    Score(name="novel", images=20, classes=3, accuracy=30.0, zero_shot=40.0),
)


def record(**values: Any) -> Record:
    task, backbone = Task(data="x", classes="base"), BackboneName(name="b", digest="0")
    method = MethodName(name="mma", title="MMA", settings={"rank": 3})
    usual = {"task": task, "backbone": backbone, "scores": SCORES}
    return Record(format=2, method=method, **{**usual, **values})


def test_figures_by_name() -> None:
    found = record()
    assert found.metrics == {"base": 60, "novel": 30, "hm": 40}
    assert found.metric("hm", zero_shot=True) == pytest.approx(2 * 50 * 40 / 90)
    assert found.metric("all") is None
    closed = Score(name="novel", images=20, classes=3, reason="knows its own alone")
    assert record(scores=(SCORES[0], closed)).metrics == {"base": 60}
    assert SCORES[0].title == "test, base classes"
    assert SCORES[0].chance == 25


def test_balanced_figures_by_name() -> None:
    """They are among the metrics where classes have unequal numbers of images."""
    uneven, even = Balanced.of([0, 0, 0, 0], [0, 0, 0, 1]), Balanced.of([0, 0, 1, 0], [0, 0, 1, 1])
    assert (uneven.accuracy, uneven.fewest, uneven.most, uneven.differs) == (50, 1, 3, True)
    assert (even.accuracy, even.differs) == (75, False)
    scores = [
        score.model_copy(update={"balanced": balanced})
        for score, balanced in zip(SCORES, (uneven, even), strict=True)
    ]
    found = record(scores=tuple(scores))
    assert found.metrics == {"base": 60, "novel": 30, "hm": 40, "balanced base": 50}
    assert found.metric("balanced novel") == 75
    assert found.metric("balanced hm") == pytest.approx(60)
    assert found.metric("balanced base", zero_shot=True) is None
    assert record().metric("balanced base") is None
    assert parse_record(found.line(), "") == found


def test_a_draw_is_in_the_line_unless_it_is_balanced() -> None:
    natural = record(task=Task(data="x", classes="base", draw="natural"))
    assert "draw" not in json.loads(record().line())["task"]
    assert json.loads(natural.line())["task"]["draw"] == "natural"
    assert parse_record(natural.line(), "") == natural


def test_equal_counts_are_equal_figures() -> None:
    """Records have four decimals, so that sums of the same counts over seeds would differ."""

    def figure(images: int, accuracy: float) -> float | None:
        score = Score(name="base", images=images, classes=2, accuracy=accuracy)
        return record(scores=(score,)).metric("base")

    for right in (137, 140):
        assert figure(270, round(100 * right / 270, 4)) == 100 * right / 270
    assert figure(100, 50.3) == 50.3  # of no count, as a mean over classes


def test_the_average_is_over_other_data_and_needs_all_of_them() -> None:
    own = Score(name="all", images=9, classes=3, accuracy=90.0)
    targets = [
        Score(name=name, data=name, images=9, classes=3, accuracy=value)
        for name, value in (("a", 10.0), ("b", 20.0))
    ]
    assert record(scores=(own, *targets)).metrics == {"all": 90, "a": 10, "b": 20, "average": 15}
    missing = Score(name="c", data="c", images=9, classes=3, reason="no")
    assert record(scores=(own, *targets, missing)).metric("average") is None
    assert record(scores=(own,)).metric("average") is None


def test_round_trip_on_one_line(tmp_path: Path) -> None:
    templates, tests = ("a {}.", "the {}."), (Question("a", "a"),)
    task = Task(data="gr\u00f6\u00dfe", tests=tests, templates=templates, shots=0)
    failed = {"status": "failed", "reason": "no luck", "seconds": {"total": 1.5}}
    some = [record(), record(task=task, value=[1, None], **failed)]
    some[0].save(tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == some[0]
    assert [parse_record(one.line(), "") for one in some] == some
    assert all(one.line().count("\n") == 1 for one in some)
    assert "axis" not in json.loads(some[0].line())  # what is as it is by default is left out


@given(st.text(), st.text(), st.floats(0, 100), st.integers(0, 10**9))
def test_any_text_and_number_comes_back(
    name: str, reason: str, accuracy: float, images: int
) -> None:
    score = Score(name=name, reason=reason, accuracy=accuracy, images=images, classes=2)
    one = record(scores=(score,), notes=(reason,))
    assert parse_record(one.line(), "") == one


LINE = record().line()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("3", "not a run record"),
        ("[]", "not a run record"),
        ("{}", "not a run record .field format"),
        ('{"format": 1, "protocol": "base-to-novel"}', "field format"),
        (LINE.replace("60.0", "1e999"), "field scores.0.accuracy"),
        (LINE.replace("60.0", "1e308"), "field scores.0.accuracy"),
        (LINE.replace('"images"', '"imagse"'), "field scores.0."),
        (LINE.replace('"classes": 4', '"classes": 0'), "field scores.0.classes"),
        (LINE.replace('"base"', '"bases"', 1), "field task"),
        (LINE.replace('"seed": 1', f'"seed": {10**26}'), "field task.seed"),
        (LINE.replace('"shots": 16', '"shots": "\\u0000"'), "field task.shots"),
        (LINE.replace('["a photo of a {}."]', "null"), "field task.templates"),
        (
            LINE.replace('"rank": 3', f'"rank": {"[" * 300}{"]" * 300}'),
            "field method.settings.rank",
        ),
        (LINE.replace('"rank": 3', '"rank": {"a": 1}'), "field method.settings.rank"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: str, words: str) -> None:
    assert content != LINE
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read_record(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable"):
        read_record(tmp_path / "none.json")


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record().key = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("recalls", "p", "words"),
    [
        ([50.0], None, "recalls for other classes than it lists"),
        ([50.0, None], 0.5, "not exactly one row for the method that was fitted"),
        ([50.0, None], None, ""),
    ],
)
def test_a_judgement_is_of_one_method_and_its_classes(
    recalls: list[float | None], p: float | None, words: str
) -> None:
    rates = {"accuracy": 60.0, "low": 55.4, "high": 64.6, "macro_f1": 58.75}
    rates |= {"calibration_error": 3.21}
    row = {"name": "RMAdapter", "recalls": recalls, "p": p, **rates}
    content = {"how": "", "images": 9, "classes": ["a", "b"], "majority": 50.0, "rows": [row]}
    line = json.dumps({**json.loads(record().line()), "judgement": content})
    if not words:
        judgement = parse_record(line, "run.json").judgement
        assert judgement is not None
        assert judgement.fitted.name == "RMAdapter"
        return
    with pytest.raises(UserError, match=f"field judgement: .*{words}"):
        parse_record(line, "run.json")


def test_only_the_first_of_many_faults_is_reported(tmp_path: Path) -> None:
    """Each fault takes a kilobyte to tell."""
    notes = f'"notes": [{",".join(["1"] * 10**6)}]'
    line = record().line().replace('"format": 2', f'"format": 2, {notes}')
    (tmp_path / "run.json").write_text(line)
    with pytest.raises(UserError, match=r"field notes\.0"):
        read_record(tmp_path / "run.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(Record.model_fields)), JSON)
def test_any_value_of_any_field_is_refused_or_comes_back(field: str, value: Any) -> None:
    try:
        one = parse_record(json.dumps({**json.loads(record().line()), field: value}), "run.json")
    except UserError as error:
        assert len(str(error)) < 400  # noqa: PT017
    else:
        assert parse_record(one.line(), "") == one
        assert all(isinstance(figure, float) for figure in one.metrics.values())


@pytest.mark.parametrize("field", ["seconds", "versions", "machine", "method.settings"])
def test_names_in_a_record_are_text(field: str, finished: Path) -> None:
    """A lone surrogate would be another name after writing and reading."""
    value = json.loads((finished / "run.json").read_text())
    owner, _, name = field.rpartition(".")
    (value[owner] if owner else value)[name] = {"a\ud800": 1 if field != "versions" else "1"}
    with pytest.raises(UserError, match=rf"x\.json.*{field}"):
        parse_record(json.dumps(value), "x.json")


# Descriptions of models


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": ["a", " "]}, "classes.1: .*empty"),
        ({"classes": ["a", "b\0"]}, "classes.1: .*not text"),
        ({"labels": ["a"]}, "1 labels for 2 classes"),
        ({"names": ["a", "b", "c"]}, "2 labels for 3 classes"),
        ({"classes": ["a", "a"]}, "a class appears twice"),
        ({"labels": ["a", "a"]}, "a class appears twice"),
        ({"labels": ["1", 1]}, "a class appears twice"),
        ({"labels": ["a", ""]}, "labels.1"),
        ({"labels": ["a", "b\ud800"]}, "labels.1"),
        ({"names": ["c", "c"]}, "a class appears twice"),
        ({"templates": []}, "templates: Tuple"),
        ({"format": 9}, "format: Input should be 2"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"temperature": float("nan")}, "temperature: Input should be"),
    ],
    ids=str,
)
def test_an_inconsistent_model_is_refused(
    finished: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    sound = json.loads((finished / "model.json").read_text())
    sound |= {"classes": ["a", "b"], "labels": ["a", "b"], "calibration": None}
    sound["familiarity"] = None
    file = tmp_path / "model.json"
    file.write_text(json.dumps(sound))
    assert read_model(file).labels == ("a", "b")
    file.write_text(json.dumps(sound | changes))
    with pytest.raises(UserError, match=words):
        read_model(file)


def test_added_classes_are_stored_beside_the_fitted_ones(
    finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    image = colors / "test/red/0.png"
    wider = FewShotClassifier.load(finished, backbone=tiny_clip.name).add_classes(["sea-horse"])
    wider.save(tmp_path)
    again = FewShotClassifier.load(tmp_path, backbone=tiny_clip.name)
    assert again.classes_.tolist() == wider.classes_.tolist()
    # on one processor, answers by kept class weights have other last digits
    np.testing.assert_allclose(again.predict_proba(image), wider.predict_proba(image), rtol=1e-5)
    model = read_model(tmp_path / "model.json")
    assert (len(model.classes), model.names[-1], model.labels[-1]) == (4, "sea horse", "sea-horse")
    assert read_model(finished / "model.json").names == ()


def test_a_temperature_comes_back(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    saved = load(finished, tiny_clip)
    plain_model = replace(saved.fitted, temperature=1.0)
    save(tmp_path, replace(plain_model, temperature=2.5), saved.name)
    image = [colors / "test" / "red" / "0.png"]
    [plain], [tempered] = (
        list(f.probabilities(image)) for f in (plain_model, load(tmp_path, tiny_clip).fitted)
    )
    torch.testing.assert_close(tempered, (plain.log() / 2.5).softmax(-1))


def test_the_deepest_taxonomy_has_a_place_in_the_record() -> None:
    names = ["cat", *map(str, range(MAX_DEPTH))]
    depth = Taxonomy.of(dict(pairwise(names)), ["cat"]).depth
    assert Level(level=depth, groups=1, accuracy=1).level == 100
    facts = dict.fromkeys(("error", "most", "missed", "low", "high", "answered", "right"), 1.0)
    promise = {**facts, "calibrated": 1, "by_class": False, "labels": 1.0}
    levels = (1.0,) * (depth + 1)  # the labels are a level, too
    assert Promise.model_validate({**promise, "levels": levels}).levels == levels
