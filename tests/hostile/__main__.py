"""`make hostile`: all kinds, each in a process of its own, so that not even a crash keeps the others from being tried."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

from hostile.harness import BAD, KINDS, SECONDS, VERDICTS, Result, kinds, run, table

PATIENCE = 60.0  # seconds, beside those that an input has, to import and to begin


def work(kind: str, seed: int, count: int, start: int, answers: Any) -> None:
    for result in run(kind, seed, count, start):
        answers.send(result)
    answers.send(None)


def guarded(kind: str, seed: int, count: int) -> Iterator[Result]:
    """As `run`; what ends the process, or keeps it busy where no signal reaches, is a result as well."""
    context, done = multiprocessing.get_context("spawn"), 0
    while True:
        answers, end = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(kind, seed, count, done, end), daemon=True)
        process.start()
        end.close()
        try:
            while True:
                if not answers.poll(PATIENCE + 10 * SECONDS):
                    verdict, detail = "hang", "no signal reached it"
                    break
                if (result := answers.recv()) is None:
                    return
                done += 1
                yield result
        except EOFError:
            process.join()
            verdict, detail = "traceback", f"the process ended with {process.exitcode}"
        process.kill()
        yield Result(kind, f"number {done}", verdict, 0.0, 0.0, detail)
        done += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=6000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="some of them, as a,b")
    parser.add_argument("--json", action="store_true", help="print the table and what went wrong as JSON")
    given = parser.parse_args()
    wanted = given.kinds.split(",") if given.kinds else kinds()
    total = sum(KINDS[kind] for kind in wanted)
    results: list[Result] = []
    for kind in wanted:
        results += guarded(kind, given.seed, max(1, round(given.count * KINDS[kind] / total)))
        print(f"{kind}: done", file=sys.stderr)
    wrong = [result for result in results if result.verdict in BAD]
    if given.json:
        print(json.dumps({"seed": given.seed, "table": table(results), "wrong": [r._asdict() for r in wrong]}, indent=1))
    else:
        head = ["kind", "tried", *VERDICTS, "slowest, s", "largest, MB"]
        print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
        for row in table(results):
            print("| " + " | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
        for result in wrong:
            print(f"{result.verdict}: {result.kind} {result.name}: {result.detail!r}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
