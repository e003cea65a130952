"""Run all kinds of hostile inputs (`make hostile`), each in its own process."""

from __future__ import annotations

import argparse
import json
import sys

from tests.hostile.harness import BAD, KINDS, VERDICTS, Result, run_isolated, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=6000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="only these, such as a,b")
    parser.add_argument("--json", action="store_true", help="print table and failures as JSON")
    options = parser.parse_args()
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    total = sum(KINDS[kind] for kind in kinds)
    results: list[Result] = []
    for kind in kinds:
        count = max(1, round(options.count * KINDS[kind] / total))
        results += run_isolated(kind, options.seed, count)
        print(f"{kind}: done", file=sys.stderr)
    wrong = [result for result in results if result.verdict in BAD]
    rows = table(results)
    if options.json:
        failures = [result._asdict() for result in wrong]
        print(json.dumps({"seed": options.seed, "table": rows, "wrong": failures}, indent=1))
    else:
        head = ["kind", "tried", *VERDICTS, "slowest, s", "largest, MB"]
        print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
        for row in rows:
            cells = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
            print("| " + " | ".join(cells) + " |")
        for one in wrong:
            print(f"{one.verdict}: {one.kind} {one.name}: {one.detail!r}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
