"""What a search may try, by hand for some methods; and what it says about what cannot be tried."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import STRICT, configured

optuna = pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")
from rmadapter_research.search_space import ON_REQUEST, make_space  # noqa: E402


def ends(one: Any) -> tuple[Any, ...]:
    return one.choices if hasattr(one, "choices") else (one.low, one.high)


def test_positive_floats_are_tried_by_default() -> None:
    found = make_space(load_method("rmadapter"), "rmadapter")
    assert {*found} == {
        "alpha", "lambda_image_rec", "lambda_text_rec", "lambda_image_con", "lambda_text_con",
        "learning_rate",
        "weight_decay",
    }  # fmt: skip
    assert ends(found["learning_rate"]) == pytest.approx((0.0006, 0.06))
    assert all(one.log for one in found.values())
    dropout = make_space(load_method("clip-lora"), "clip-lora")["dropout"]
    assert (dropout.low, dropout.high <= 1) == (0.025, True)  # a share stays within its limit


def test_every_method_accepts_the_ends_of_its_ranges() -> None:
    empty = []
    for name in METHODS:
        method = load_method(name)
        try:
            found = make_space(method, name)
        except UserError as error:
            if "has no settings to try by default" in str(error):
                empty.append(name)
            continue
        assert not {*found} & {*ON_REQUEST}
        for end in (0, -1):
            configured(method, {field: ends(one)[end] for field, one in found.items()}, name)
    plain = [name for name in METHODS if name.startswith("zero-shot")]
    assert empty == [*plain, "ss-text", "ss-text-plus"]


@dataclass(frozen=True)
class Optional:
    radius: float | None = None
    rate: float = 0.1


@dataclass(frozen=True, config=STRICT)
class Exclusive:
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    wide: Annotated[float, Field(gt=0, lt=100)] = 0.5


def test_an_exclusive_limit_is_not_tried() -> None:
    found = make_space(Exclusive(), "mine")
    low, high = ends(found["share"])
    assert low == pytest.approx(0.05)
    assert 0.99 < high < 1
    assert ends(found["wide"]) == pytest.approx((0.05, 5))


def test_a_setting_that_is_unset_is_not_tried_by_default() -> None:
    assert [*make_space(Optional(), "mine")] == ["rate"]


def test_sizes_choices_and_switches_are_tried_when_named() -> None:
    wanted = ["rank", "share", "cross_modal", "reconstruction_layers", "epochs"]
    found = make_space(load_method("rmadapter"), "rmadapter", wanted)
    assert [ends(one) for one in found.values()] == [
        (8, 128), ("down", "up", "none"), (False, True), (1, 2, 3), (2, 40)
    ]  # fmt: skip


def test_ranges_and_values_of_the_user() -> None:
    wanted = ["lambda_text_con=0..1", "rank=4..32", "alpha=1e-3..1", "init=zero,small"]
    found = make_space(load_method("mma"), "mma", wanted)
    assert [ends(one) for one in found.values()] == [(0, 1), (4, 32), (0.001, 1), ("zero", "small")]
    assert [getattr(one, "log", None) for one in found.values()] == [False, True, True, None]
    assert isinstance(found["rank"], optuna.distributions.IntDistribution)
    assert isinstance(found["lambda_text_con"], optuna.distributions.FloatDistribution)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("rnak", "did you mean 'rank'"),
        ("last_block", "write what to try as last_block=LOW..HIGH"),
        ("lambda_text_con", "write what to try"),
        ("rank=8..4", "the smaller first"),
        ("rank=a..b", "write two numbers"),
        ("rank=0.5..8", "write whole numbers, such as 4..32"),
        ("rank=0..8", "rank=0"),
        ("init=zero,nought", "init='nought'"),
        ("init=", "write LOW..HIGH or A,B,C"),
        ("alpha=1..inf", "write two numbers, the smaller first"),
    ],
)
def test_invalid_searches_are_refused(asked: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_space(load_method("mma"), "mma", [asked])


def test_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"rmadapter\[tune\]"):
        make_space(load_method("mma"), "mma")
