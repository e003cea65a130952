"""Pass a target's inputs to its parser: Hypothesis writes them, and makes failing ones smaller."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import HypothesisWarning

from tests.fuzz.targets import TARGETS, judge
from tests.hostile.harness import BAD, Result

ROUND = 5  # times the inputs of the short pass, between two looks at the clock
START = 120.0  # seconds that a process may take to import and to begin


class Failure(AssertionError):
    pass


def place_of(result: Result) -> str:
    """Return the kind and the place of an exception, or another failure's first words."""
    return result.detail.partition(": ")[0][:60]


def shrinking(
    name: str, known: set[str], count: Callable[[bytes, Result], None]
) -> Callable[[bytes], None]:
    """Return a test of one input, which raises Failure for a new one that Hypothesis can make
    smaller; one that takes long is kept as it is. known: failures found so far."""

    def test(content: bytes) -> None:
        result = judge(name, content)
        count(content, result)
        if result.verdict in ("traceback", "changed") and place_of(result) not in known:
            raise Failure(place_of(result))

    return test


def given(name: str, test: Callable[[bytes], None], examples: int, seed: int | None) -> None:
    """Run a test on so many inputs of a target; without a seed, always the same."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
    )

    def wrapped(content: bytes) -> None:
        test(content)

    decorated = hypothesis.given(TARGETS[name].inputs())(settings(wrapped))
    with warnings.catch_warnings():  # it would describe a strategy of long texts
        warnings.simplefilter("ignore", HypothesisWarning)
        (decorated if seed is None else hypothesis.seed(seed)(decorated))()


def work(name: str, seed: int, until: float, current: str, results: Any) -> None:
    """Judge at least a round of inputs, until a time; send each input's result, and with "failure"
    also the smallest input. current: file for the input that is being judged, in case the process
    ends."""
    known: set[str] = set()
    smallest: dict[str, tuple[bytes, Result]] = {}

    def count(content: bytes, result: Result) -> None:
        results.send(("result", result, b""))
        if result.verdict in BAD and place_of(result) not in known:
            smallest[place_of(result)] = content, result

    test = shrinking(name, known, count)

    def noted(content: bytes) -> None:
        Path(current).write_bytes(content)
        test(content)

    judge(name, b"")  # the first input would take the time of imports
    while True:
        seed += 1
        with contextlib.suppress(Failure):
            given(name, noted, ROUND * TARGETS[name].examples, seed)
        for content, result in smallest.values():
            results.send(("failure", result, content))
        known |= smallest.keys()
        smallest.clear()
        if time.time() >= until:
            break
    results.send(("end", None, b""))


def run(
    name: str, seed: int, seconds: float, keep: Callable[[bytes, Result], None]
) -> list[Result]:
    """Judge inputs of a target in processes of its own: one that an input ends is followed by
    another. keep: called with each failing input."""
    until, results = time.time() + seconds, list[Result]()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder, "current")
        while time.time() < until:
            current.write_bytes(b"")
            coming, end = context.Pipe(duplex=False)
            arguments = (name, seed + len(results), until, str(current), end)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            end.close()
            what, began = "", len(results)
            try:
                while what != "end":
                    if not coming.poll(START + 10 * TARGETS[name].seconds):
                        raise EOFError
                    what, result, content = coming.recv()
                    if what == "result":
                        results.append(result)
                    elif what == "failure":
                        keep(content, result)
            except EOFError:
                process.join(10)
                detail = f"the process ended with {process.exitcode}"
                verdict = "hang" if process.exitcode is None else "traceback"
                results.append(Result(name, "", verdict, 0.0, 0.0, detail))
                keep(current.read_bytes(), results[-1])
            process.kill()
            process.join()
            if len(results) - began < 2 and what != "end":
                break  # it cannot even begin
    return results


def replay(file: Path) -> Result:
    """Judge a saved input, whose name begins with that of its target."""
    return judge(file.name.partition("-")[0], file.read_bytes())
