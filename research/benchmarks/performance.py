"""Write the tables of docs/studies/performance.md, from the results of benchmarks.

python research/benchmarks/performance.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import METHOD
from figures import RESULTS, ROOT
from past_figures import both, costs, parts
from studies import markdown, show

from rmadapter.support.files import read_json


def main() -> None:
    show(tables(RESULTS), ROOT / "docs/studies/performance.md")


def tables(results: Path) -> dict[str, str]:
    """Make every table of the page by its name."""
    return {
        "steps": steps(read_json(results / "public.json")[METHOD]),
        "steps, AMX": steps(read_json(results / "public_amx.json")[METHOD]),
        "profile": profile(read_json(results / "profiling.json")["rows"]),
        "folder": markdown(*parts(read_json(results / "folder.json")["rows"]), spaced=True),
        "backbones": markdown(*costs(read_json(results / "backbones.json")["rows"]), spaced=True),
    }


def share(row: dict[str, Any], kind: str) -> float:
    """Return the share of the machine's rate of products that the least work of a step reaches."""
    return float(row["least_operations"] / row[f"{kind}_gflops"] / 1e9 / row[f"{kind}_seconds"])


def steps(rows: list[dict[str, Any]]) -> str:
    """Make a table of seconds, ratios and shares of the machine's rate, by number of classes."""
    head = ["classes", "public s", "float32 s", "bfloat16 s", "times public: float32", "bfloat16"]
    cells = [
        [str(row["classes"]), *(both(row, kind) for kind in ("public", "fp32", "bf16"))]
        + [f"{row[f'{kind}_ratio']:.1f}" for kind in ("fp32", "bf16")]
        + [f"{share(row, kind):.0%}" for kind in ("fp32", "bf16")]
        for row in rows
    ]
    return markdown([*head, "of the rate of products: float32", "bfloat16"], cells, spaced=True)


def profile(rows: list[dict[str, Any]]) -> str:
    """Make a table of the shares of a step's time by kind of operation."""
    kinds = [key for key in rows[0] if key not in ("method", "format")]
    cells = [[row["format"], *(f"{row[kind]:.0%}" for kind in kinds)] for row in rows]
    return markdown(["", *kinds], cells, spaced=True)


if __name__ == "__main__":
    main()
