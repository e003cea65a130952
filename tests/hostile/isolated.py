"""Run one kind of inputs in its own process, so that a crash or an endless loop is a result."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

from tests.hostile.harness import SECONDS, Result, run

PATIENCE = 60.0  # seconds, beside those that an input has, to import and to begin


def run_isolated(kind: str, seed: int, count: int) -> Iterator[Result]:
    """Like `run`, in another process; a new one continues after an input that ended the last."""
    done = 0
    while done < count:
        before = done
        for result in _answers(kind, seed, count, done):
            done += 1
            yield result
        if done < count and done - 1 == before and result.name.startswith("number"):
            return  # a process that never answers would not do so the next time either


def _answers(kind: str, seed: int, count: int, start: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    answers, end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(kind, seed, count, start, end), daemon=True)
    process.start()
    end.close()
    number = start
    while True:
        try:
            if answers.poll(PATIENCE + 10 * SECONDS):
                if (result := answers.recv()) is None:
                    return
                number += 1
                yield result
                continue
            verdict, detail = "hang", "no signal reached it"
        except EOFError:
            process.join()
            verdict, detail = "traceback", f"the process ended with {process.exitcode}"
        process.kill()
        yield Result(kind, f"number {number}", verdict, 0.0, 0.0, detail)
        return


def _work(kind: str, seed: int, count: int, start: int, answers: Any) -> None:
    for result in run(kind, seed, count, start):
        answers.send(result)
    answers.send(None)
