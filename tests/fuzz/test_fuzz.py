"""A short pass of every target of `make fuzz`, always with the same inputs, and what becomes of
failures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz import driver
from tests.fuzz.targets import TARGETS, Target, judge
from tests.helpers.slow import ci_except
from tests.hostile.harness import BAD, Result

QUICK = ("csv", "jsonl", "records", "settings", "templates")


@pytest.mark.parametrize("name", ci_except(TARGETS, *QUICK))
def test_inputs_are_accepted_or_refused(name: str) -> None:
    results: list[Result] = []
    judge(name, b"")
    test = driver.shrinking(name, set(), lambda _, result: results.append(result))
    driver.given(name, test, TARGETS[name].examples, None)
    assert results
    assert [result for result in results if result.verdict in BAD] == []


def test_a_failing_input_is_made_smaller_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(data: bytes, folder: Path) -> None:
        if len(data) > 3 and data[0] > 100:
            raise KeyError(data)

    class Pipe(list[Any]):
        send = list.append

    monkeypatch.setitem(TARGETS, "toy", Target(st.binary, check))
    sent = Pipe()
    driver.work("toy", 1, time.time() + 1, str(tmp_path / "current"), sent)
    (content,) = [content for what, _, content in sent if what == "failure"]
    assert content == b"e\0\0\0"
    assert sent[-1][0] == "end"
    file = tmp_path / "toy-1"
    for data, verdict in ((content, "traceback"), (b"abc", "accepted")):
        file.write_bytes(data)
        assert driver.replay(file).verdict == verdict
