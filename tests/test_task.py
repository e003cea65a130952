"""Tasks: their default questions, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from rmadapter.errors import UserError
from rmadapter.settings import configured
from rmadapter.task import Question, Task, check_templates


@pytest.mark.parametrize(
    ("classes", "names"), [("all", ["all"]), ("base", ["base", "novel"]), ("novel", ["novel"])]
)
def test_default_questions_depend_on_the_classes(classes: Any, names: list[str]) -> None:
    questions = Task(classes=classes).questions
    assert (
        [question.name for question in questions]
        == names
        == [question.classes for question in questions]
    )
    assert not any(question.data for question in questions)


def test_given_tests_are_the_questions() -> None:
    some = (Question("all"), Question("dtd", "dtd"))
    assert Task(tests=some).questions == some


def test_tasks_compare_by_value() -> None:
    assert Task(data="a") == Task(data="a") != Task(data="b")
    assert len({Task(seed=1), Task(seed=1), Task(seed=2)}) == 2


def test_templates_are_checked() -> None:
    for template in ("a photo", "{} and {}", "{0}", "a {name}.", "{", "}{", "{{}}", "{} {"):
        with pytest.raises(UserError, match=r"exactly one \{\}"):
            configured(Task(), {"templates": [template]})
    with pytest.raises(UserError, match="templates is empty"):
        configured(Task(), {"templates": []})
    with pytest.raises(UserError, match="1,001 templates"):
        configured(Task(), {"templates": ["{}"] * 1001})
    with pytest.raises(UserError, match="1,002 characters"):
        configured(Task(), {"templates": ["{}" + "x" * 1000]})
    with pytest.raises(UserError, match="seed=-1"):
        configured(Task(), {"seed": -1})


@pytest.mark.parametrize(
    "values", [{"seed": 10**26}, {"shots": 10**10}, {"views": 10**10}, {"seed": 2**32}]
)
def test_impossible_numbers_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match="less than or equal to"):
        configured(Task(), values)


@given(st.text(st.sampled_from("{}!:0x .a"), max_size=8))
def test_an_accepted_template_holds_the_name_once(template: str) -> None:
    try:
        check_templates([template])
    except UserError as error:
        assert "exactly one" in str(error)  # noqa: PT017
    else:
        before, after = template.split("{}")
        assert template.format("NAME") == f"{before}NAME{after}"


def test_a_template_is_text() -> None:
    for template in ("a \ud800 {}", "a \0 {}"):
        with pytest.raises(UserError, match="templates="):
            configured(Task(), {"templates": [template]})
