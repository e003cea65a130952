"""Settings: every one has a documented line and limits; flat names reach groups; what a bad value
is told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import ValidationError

from rmadapter.artifacts.record import MethodName
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.request import Request
from rmadapter.settings import (
    AdapterSettings,
    LossSettings,
    Machine,
    configured,
    documentation,
    parse_overrides,
    read_yaml,
    settings_of,
    to_yaml,
)
from rmadapter.task import Task
from rmadapter.training.traits import Recipe
from tests.helpers.slow import ONE_OF_EACH, ci_except

GROUPS = [AdapterSettings(), LossSettings(), Machine(), Recipe(), Task()]


@dataclass(frozen=True)
class Plain:
    """A method from outside, whose fields have types and no limits."""

    title: ClassVar[str] = "Plain"
    rate: float = 0.1
    names: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_every_setting_has_one_documented_line(group: Any) -> None:
    texts = documentation(group)
    assert texts.keys() == settings_of(group).keys()
    assert all(text and "\n" not in text and len(text) < 100 for text in texts.values())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_a_group_is_frozen(group: Any) -> None:
    name = next(iter(settings_of(group)))
    with pytest.raises((FrozenInstanceError, ValidationError)):
        setattr(group, name, None)


def test_a_group_validates_its_fields() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        AdapterSettings(rank=0)
    with pytest.raises(ValidationError):
        AdapterSettings(rnak=3)  # type: ignore[call-arg]


def test_flat_names_reach_the_groups_of_a_method() -> None:
    assert settings_of(Plain()) == {"rate": 0.1, "names": (), **settings_of(Recipe())}
    assert configured(Plain(), {}) == Plain()
    changed = configured(Plain(), {"rate": 1, "names": "one {}.", "learning_rate": 0.5})
    assert changed == Plain(rate=1.0, names=("one {}.",), recipe=Recipe(learning_rate=0.5))
    assert configured(Plain(), {"names": ["a", "b"]}).names == ("a", "b")
    with pytest.raises(UserError, match=r"unknown field 'rat'; did you mean 'rate'\?"):
        configured(Plain(), {"rat": 5})
    with pytest.raises(UserError, match="rate='ten': Input should be a valid number"):
        configured(Plain(), {"rate": "ten"})
    with pytest.raises(UserError, match=r"batch_size=2\.5"):
        configured(Plain(), {"batch_size": 2.5})


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_json_and_make_the_same_method(name: str) -> None:
    import json

    method = load_method(name)
    settings = settings_of(method)
    assert "title" not in settings
    assert load_method(name, json.loads(json.dumps(settings))) == method


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rnak": 8}, ["unknown setting 'rnak'; did you mean 'rank'?"]),
        ({"learning-rate": 1}, ["did you mean 'learning_rate'?"]),
        ({"rank": 0}, ["rank=0", "greater than or equal to 1", "width r of the bottleneck"]),
        ({"rank": "many"}, ["rank='many'", "valid integer"]),
        ({"rank": 2.5}, ["rank=2.5", "integer"]),
        ({"classes": "old"}, ["classes='old'", "'all', 'base' or 'novel'"]),
        ({"norm": "layer"}, ["norm='layer'", "'none' or 'block'"]),
        ({"reconstruction_layers": 4}, ["reconstruction_layers=4", "1, 2 or 3"]),
        ({"learning_rate": 0}, ["learning_rate=0", "greater than 0"]),
        ({"learning_rate": float("inf")}, ["learning_rate=inf", "finite"]),
        ({"alpha": float("nan")}, ["alpha=nan", "finite"]),
        ({"momentum": 1}, ["momentum=1", "less than 1"]),
        ({"betas": [0.9, 1.5]}, ["betas", "less than 1"]),
        ({"first_block": 6, "last_block": 5}, ["last_block=5 is below first_block=6"]),
        ({"templates": []}, ["templates is empty"]),
        ({"templates": ["a photo"]}, ["'a photo' needs exactly one {}", '"a photo of a {}."']),
        ({"templates": ["a {}.", "{} and {}"]}, ["'{} and {}' needs exactly one {}"]),
        ({"templates": ["a {} of {size}"]}, ["exactly one {}"]),
        ({"templates": ["a {} in {"]}, ["exactly one {}"]),
        ({"templates": ["a {0}"]}, ["exactly one {}"]),
    ],
)
def test_a_bad_value_is_refused(values: dict[Any, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Request.make(values, "rmadapter")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("value", "mode"),
    [(True, "default"), (False, "none"), ("none", "none"), ("reduce-overhead", "reduce-overhead")],
)
def test_compile_was_yes_or_no(value: object, mode: str) -> None:
    assert configured(Machine(), {"compile": value}).compile == mode
    with pytest.raises(UserError, match="compile='fast'"):
        configured(Machine(), {"compile": "fast"})


def test_a_single_template_may_be_plain_text() -> None:
    assert configured(Task(), {"templates": "a {}."}).templates == ("a {}.",)


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(UserError) as caught:
        Request.make({"rank": "x" * 10_000}, "rmadapter")
    assert len(str(caught.value)) < 250


def test_yaml_round_trip(tmp_path: Path) -> None:
    given = {"templates": ("ein Bild: {}, groß", "{}"), "learning_rate": 1e-5, "last_block": 9}
    given |= {"cross_modal": True}
    (tmp_path / "config.yaml").write_text(to_yaml(given), encoding="utf-8")
    values = read_yaml(tmp_path / "config.yaml")
    assert list(values) == list(given)  # a reader finds our order
    wanted = Request.make(given, "mma")
    assert Request.make(values, "mma") == wanted
    assert wanted.task.templates == given["templates"]
    assert yaml.safe_load(to_yaml({"a": None, "b": 1e-12})) == {"a": None, "b": 1e-12}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.yaml: not a readable config"),
        (b"seed: 1\nrank: [", r"config.yaml: not a readable config .*in line [23]"),
        (b"rank: \xff", "config.yaml: not a readable config"),
        (b"seed: 2024-13-45", "config.yaml: not a readable config"),
        (b"- rank", "config.yaml: a config must be a list of 'field: value' lines"),
        (b"", "config.yaml: a config must be a list of 'field: value' lines"),
        (b"!!python/object/apply:os.getcwd []", "config.yaml: not a readable config"),
    ],
)
def test_a_bad_yaml_file_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_yaml(tmp_path / "config.yaml")


def test_overrides_are_read_as_yaml() -> None:
    expected = {
        "rank=8": ("rank", 8),
        "learning_rate=1e-3": ("learning_rate", 0.001),
        "last_block=null": ("last_block", None),
        "norm=none": ("norm", "none"),
        "cross_modal=true": ("cross_modal", True),
        " alpha =.5": ("alpha", 0.5),
        'templates=["a {}.", "b = {}"]': ("templates", ["a {}.", "b = {}"]),
        "backbone=ViT-B-16/openai": ("backbone", "ViT-B-16/openai"),
    }
    values = parse_overrides(expected)
    assert values == dict(expected.values())
    assert [type(values[name]) for name in ("rank", "learning_rate")] == [int, float]
    assert Request.make(values, "rmadapter").task.templates == ("a {}.", "b = {}")
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("rank", "--set 'rank': write it as field=value, as in --set rank=8"),
        ("rank:8", "write it as field=value"),
        ("templates=[a", "the value cannot be read"),
        ("seed=2024-13-45", "the value cannot be read"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(pair: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_overrides([pair])


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("rank: " + "[" * 5_000, id="5000 lists"),
        pytest.param("rank: " + "[" * 60_000, id="60000 lists"),
        pytest.param("{a: " * 5_000, id="objects"),
        pytest.param("- " * 500, id="sequences"),
        pytest.param(BOMB, id="aliases"),
        pytest.param("rank: &a [*a]", id="itself"),
        pytest.param("a" * 70_000, id="long"),
        pytest.param("seed: !!timestamp x", id="timestamp"),
        pytest.param("seed: !!int ''", id="int"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not a readable config") as caught:
        read_yaml(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 400
    with pytest.raises(UserError, match="the value cannot be read") as caught:
        parse_overrides([f"x={text}"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_every_accepted_setting_fits_a_record(name: str) -> None:
    """Else a run would be refused by its record, after its training."""
    for setting in settings_of(load_method(name)):
        for number in (1e13, 1e30, 1e300, -1e300, 2**64, (1.0,) * 20_000, ("a",) * 20_000):
            with suppress(UserError):
                method = load_method(name, {setting: number})
                MethodName(name=name, settings=settings_of(method))


@pytest.mark.parametrize("name", METHODS)
def test_every_whole_number_setting_has_limits(name: str) -> None:
    """A model of 10^10 is never what was meant, and torch would say so with a traceback."""
    for setting, value in settings_of(load_method(name)).items():
        if type(value) is int:
            for number in (10**10, 10**26, -1):
                with pytest.raises(UserError, match=f"{setting}="):
                    load_method(name, {setting: number})


@given(
    st.sampled_from(["rank", "alpha", "templates", "seed", "norm", "device", "x", ""]),
    st.text(max_size=30),
)
def test_any_override_is_accepted_or_refused(name: str, text: str) -> None:
    """What is taken comes back from a config file as it was."""
    try:
        wanted = Request.make(parse_overrides([f"{name}={text}"]))
    except UserError as error:
        assert len(str(error)) < 600  # noqa: PT017
    else:
        values = {"templates": wanted.task.templates, "seed": wanted.task.seed}
        values |= settings_of(wanted.machine) | settings_of(wanted.method)
        again = Request.make(yaml.safe_load(to_yaml(values)))
        assert again.task == wanted.task
        assert (again.machine, again.method) == (wanted.machine, wanted.method)
