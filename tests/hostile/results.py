"""List the files and the complete records of a run."""

from __future__ import annotations

from pathlib import Path

from rmadapter.artifacts.record import read_record
from rmadapter.errors import UserError


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def records(out: Path) -> dict[str, bytes]:
    """All that are whole."""
    found = {}
    for path in (
        [out / "run.json"]
        if (out / "run.json").exists()
        else out.glob("base-to-novel/**/[!.]*.json")
    ):
        try:
            read_record(path)
        except UserError:
            continue
        found[path.relative_to(out).as_posix()] = path.read_bytes()
    return found
