"""A sample of the inputs of `make hostile`, and the harness that judges them."""

from __future__ import annotations

import mmap
import time
from typing import Any

import pytest

from rmadapter.errors import UserError
from tests.hostile import harness

SAMPLE = 300  # of all kinds
# of kinds whose inputs take long
FEW = {"bulky": 4, "matlab": 6, "backbones": 8, "images": 15, "runs": 10}


@pytest.mark.ci
@pytest.mark.parametrize("kind", harness.KINDS)
def test_a_sample_of_inputs_is_accepted_or_refused(kind: str) -> None:
    count = FEW.get(kind, SAMPLE * harness.KINDS[kind] // 100)
    results = list(harness.run(kind, 0, count))
    assert len(results) == count
    assert [result for result in results if result.verdict in harness.BAD] == []


@pytest.mark.ci
@pytest.mark.parametrize("kind", harness.KINDS)
def test_a_seed_gives_the_same_inputs(kind: str) -> None:
    cases = harness.kind_of(kind).cases
    one = list(cases(5, 12))
    assert one == list(cases(5, 12)) != list(cases(6, 12))
    assert len(one) == 12


def assert_verdict(verdict: str, check: Any, **limits: float) -> None:
    kind = harness.Kind(lambda *_: iter(()), lambda *_: check(), **limits)
    result = harness.judge("kind", kind, "name", b"")
    assert result.verdict == verdict, result


def test_each_outcome_has_its_verdict() -> None:
    def refuse(length: int) -> None:
        error = UserError("x")
        error.args = ("x" * length,)  # UserError itself cuts a message
        raise error

    def crash() -> None:
        raise KeyError("x")

    def change() -> None:
        raise harness.Changed("x")

    def grow() -> None:
        raise MemoryError

    def fill() -> None:
        with mmap.mmap(-1, 80_000_000) as pages:  # new ones: freed memory may be used again
            pages[:: mmap.PAGESIZE] = b"x" * len(range(0, len(pages), mmap.PAGESIZE))

    assert_verdict("accepted", lambda: 1)
    assert_verdict("refused", lambda: refuse(10))
    assert_verdict("traceback", lambda: refuse(10_000))
    assert_verdict("traceback", crash)
    assert_verdict("hang", lambda: time.sleep(5), seconds=0.05)
    assert_verdict("changed", change)
    assert_verdict("memory", grow)
    assert_verdict("memory", fill, megabytes=50.0)


def test_an_input_is_stopped_even_if_all_exceptions_are_caught() -> None:
    def catch_all() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    assert_verdict("hang", catch_all, seconds=0.05)


def test_the_table_counts_each_verdict() -> None:
    results = [harness.Result("a", "", "hang", 5.0, 9.0)]
    for kind in "ab":
        results += [harness.Result(kind, "", verdict, 1.0, 2.0) for verdict in harness.VERDICTS]
    rows = harness.table(results)
    assert [row["kind"] for row in rows] == ["a", "b", "all"]
    assert [row["tried"] for row in rows] == [7, 6, 13]
    assert (rows[0]["hang"], rows[2]["hang"]) == (2, 3)
    assert (rows[2]["slowest"], rows[1]["largest"]) == (5.0, 2.0)


@pytest.mark.ci
def test_a_process_that_ends_is_a_result() -> None:
    """One that cannot begin is not started again for each input."""
    (result,) = harness.run_isolated("no such kind", 1, 3)
    assert (result.verdict, result.detail) == ("traceback", "the process ended with 1")
