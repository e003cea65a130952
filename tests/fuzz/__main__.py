"""Pass generated inputs to the parsers of `targets` for some minutes (`make fuzz MINUTES=30`), or
one saved input again (`--replay FILE`)."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.driver import replay, run
from tests.fuzz.targets import TARGETS
from tests.hostile.harness import BAD, VERDICTS, Result, table

SAVED = 20  # failures of a target that are kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="of all targets together")
    parser.add_argument("--targets", default="", help=f"of {','.join(TARGETS)}; all by default")
    parser.add_argument("--seed", type=int, default=None, help="by default, from the clock")
    parser.add_argument(
        "--crashes", type=Path, default=Path("build/fuzz"), help="of failing inputs"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="judge one saved input")
    options = parser.parse_args()
    if options.replay:
        result = replay(options.replay)
        print(json.dumps(result._asdict(), indent=1))
        sys.exit(result.verdict in BAD)
    chosen = options.targets.split(",") if options.targets else [*TARGETS]
    unknown = [name for name in chosen if name not in TARGETS]
    if unknown:
        parser.error(f"unknown targets: {', '.join(unknown)}")
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    results: list[Result] = []
    kept: Counter[str] = Counter()

    def keep(content: bytes, result: Result) -> None:
        kept[result.kind] += 1
        if kept[result.kind] <= SAVED:
            options.crashes.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(content).hexdigest()[:12]
            file = options.crashes / f"{result.kind}-{digest}"
            file.write_bytes(content)
            print(f"{result.verdict}: {file}: {result.detail!r}", file=sys.stderr)

    for name in chosen:
        own = run(name, seed, 60 * options.minutes / len(chosen), keep)
        print(f"{name}: {len(own)} tried", file=sys.stderr)
        results += own
    head = ["target", "tried", *VERDICTS, "slowest, s", "largest, MB"]
    print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
    for row in table(results):
        cells = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + " |")
    sys.exit(any(result.verdict in BAD for result in results))


if __name__ == "__main__":
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()
    main()
