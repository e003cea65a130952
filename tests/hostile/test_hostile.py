"""A sample of `make hostile`, and the harness that judges it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rmadapter.errors import UserError
from tests.hostile import harness
from tests.hostile.isolated import run_isolated

SAMPLE = 300  # of all kinds
FEW = {
    "matlab": 6,
    "backbones": 8,
    "images": 15,
    "runs": 10,
}  # of inputs that take a while, or whose runs are to be fitted


@pytest.mark.parametrize("kind", harness.kinds())
def test_no_input_of_a_sample_does_harm(kind: str) -> None:
    count = FEW.get(kind, SAMPLE * harness.KINDS[kind] // 100)
    results = list(harness.run(kind, 0, count))
    assert len(results) == count
    assert [result for result in results if result.verdict in harness.BAD] == []


@pytest.mark.parametrize("kind", harness.kinds())
def test_a_seed_gives_the_same_inputs(kind: str) -> None:
    cases = harness.kind_of(kind).cases
    one = list(cases(5, 12))
    assert one == list(cases(5, 12)) != list(cases(6, 12))
    assert len(one) == 12


def found(verdict: str, ask: Any, **limits: float) -> None:
    kind = harness.Kind(lambda seed, count: iter(()), lambda name, content, folder: ask(), **limits)
    result = harness.judge("kind", kind, "name", b"")
    assert result.verdict == verdict, result


def test_what_is_found_is_called_by_its_name() -> None:
    def refuse(length: int) -> None:
        raise UserError("x" * length)

    def crash() -> None:
        raise KeyError("x")

    def change() -> None:
        raise harness.Changed("x")

    def grow() -> None:
        raise MemoryError

    found("accepted", lambda: 1)
    found("refused", lambda: refuse(10))
    found("traceback", lambda: refuse(10_000))
    found("traceback", crash)
    found("hang", lambda: time.sleep(5), seconds=0.05)
    found("changed", change)
    found("memory", grow)
    found("memory", lambda: len(b"x" * 80_000_000), megabytes=50.0)


def test_an_input_is_stopped_even_where_all_exceptions_are_caught() -> None:
    def deaf() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    found("hang", deaf, seconds=0.05)


def test_the_table_counts_each_verdict() -> None:
    some = [
        harness.Result(kind, "", verdict, 1.0, 2.0) for kind in "ab" for verdict in harness.VERDICTS
    ]
    rows = harness.table([*some, harness.Result("a", "", "hang", 5.0, 9.0)])
    assert [row["kind"] for row in rows] == ["a", "b", "all"]
    assert [row["tried"] for row in rows] == [7, 6, 13]
    assert (rows[0]["hang"], rows[2]["hang"], rows[2]["slowest"], rows[1]["largest"]) == (
        2,
        3,
        5.0,
        2.0,
    )


def test_a_process_that_ends_is_a_result() -> None:
    """And one that cannot even begin is not started for each input."""
    (result,) = run_isolated("no such kind", 1, 3)
    assert (result.verdict, result.detail) == ("traceback", "the process ended with 1")
