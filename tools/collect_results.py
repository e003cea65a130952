"""Collect finished runs into one JSON for docs/results: every run's record without its history, and means over seeds.

python tools/collect_results.py runs/caltech101-seed1 runs/caltech101-seed2 --out docs/results/caltech101.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from rmadapter.files import read_json, write_json

BULKY = ("history", "novelty_quantiles", "notes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = [read_json(run / "run.json") for run in args.runs]
    means = {
        title: {
            name: round(mean(r["metrics"][title][name] for r in records), 2) for name in records[0]["metrics"][title]
        }
        for title in records[0]["metrics"]
    }
    kept = [{name: value for name, value in record.items() if name not in BULKY} for record in records]
    write_json(args.out, {"mean": means, "runs": kept})
    for title, values in means.items():
        print(f"{title:28} zero-shot {values['zero_shot_accuracy']:6.2f}  adapted {values['accuracy']:6.2f}")


if __name__ == "__main__":
    main()
