"""Run all kinds (`make hostile`), each in its own process, so that a crash ends no other kind."""

from __future__ import annotations

import argparse
import json
import sys

from tests.hostile.harness import BAD, KINDS, VERDICTS, Result, kinds, table
from tests.hostile.isolated import run_isolated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=6000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="only these, such as a,b")
    parser.add_argument(
        "--json", action="store_true", help="print the table and all failures as JSON"
    )
    given = parser.parse_args()
    wanted = given.kinds.split(",") if given.kinds else kinds()
    total = sum(KINDS[kind] for kind in wanted)
    results: list[Result] = []
    for kind in wanted:
        results += run_isolated(kind, given.seed, max(1, round(given.count * KINDS[kind] / total)))
        print(f"{kind}: done", file=sys.stderr)
    wrong = [result for result in results if result.verdict in BAD]
    if given.json:
        print(
            json.dumps(
                {
                    "seed": given.seed,
                    "table": table(results),
                    "wrong": [r._asdict() for r in wrong],
                },
                indent=1,
            )
        )
    else:
        head = ["kind", "tried", *VERDICTS, "slowest, s", "largest, MB"]
        print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
        for row in table(results):
            print(
                "| "
                + " | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values())
                + " |"
            )
        for result in wrong:
            print(
                f"{result.verdict}: {result.kind} {result.name}: {result.detail!r}", file=sys.stderr
            )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
