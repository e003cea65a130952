"""What the studies share: command-line options, and a file of JSON lines that each of them
continues."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(about: str | None, sets: Sequence[str], seeds: bool = True) -> argparse.ArgumentParser:
    """A parser for names of data sets (by default `sets`), --root, --out, --tables and, with
    `seeds`, --seeds."""
    found = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "data", nargs="*", default=[*sets], help=f"sets below --root; by default {' '.join(sets)}"
    )
    found.add_argument("--root", type=Path, default=Path())
    found.add_argument("--out", type=Path, required=True, help="JSON lines, which are added to")
    found.add_argument(
        "--tables", action="store_true", help="print what the lines in --out say, and run nothing"
    )
    if seeds:
        found.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return found


def kept(file: Path) -> list[dict[str, Any]]:
    """The lines of the file; none if it does not exist yet."""
    return (
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    )


def keep(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines in one write."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with file.open("a", encoding="utf-8") as out:
        out.write(text)
