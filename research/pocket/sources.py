"""Step 1: say how to get the sources, compare them with sources.json, and unpack the packages.

    python sources.py                      # the commands that fetch everything into ./sources
    python sources.py --sources FOLDER     # compare SHA-256 and commits, unpack new packages

sources.json names every source with its version or commit, SHA-256, licence as far as we saw it,
and rows that it gave.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

from pools import read

from rmadapter.errors import UserError


@cache
def known() -> dict[str, list[dict[str, Any]]]:
    """Read sources.json: "npm", "github" and "other"."""
    return read(Path(__file__).with_name("sources.json"))


def file_stem(row: dict[str, Any]) -> str:
    """Return the name that `npm pack` uses: "@iconify-json/maki", 1.2.5 ->
    "iconify-json-maki-1.2.5"."""
    return f"{row['package'].lstrip('@').replace('/', '-')}-{row['version']}"


def package(name: str, sources: Path) -> Path:
    """Return the folder of an unpacked npm package."""
    row = next(row for row in known()["npm"] if row["package"] == name)
    folder = sources / "npm" / file_stem(row)
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; `python sources.py` says how to get it")
    return folder


def checkout(row: dict[str, Any], sources: Path) -> Path:
    return sources / "github" / row["repository"].replace("/", "+")


def commands(sources: Path) -> list[str]:
    """List the commands for a shell; npm comes with Node.js."""
    lines = [f"mkdir -p {sources}/npm {sources}/github"]
    lines += [
        f"npm pack --pack-destination {sources}/npm {row['package']}@{row['version']}"
        for row in known()["npm"]
    ]
    for row in known()["github"]:
        folder = checkout(row, sources)
        lines.append(
            f"git clone https://github.com/{row['repository']} {folder} && "
            f"git -C {folder} checkout {row['commit']}"
        )
    return lines


def unpack(row: dict[str, Any], sources: Path) -> str:
    """Check an npm package, and unpack it if its checksum is right; return the verdict."""
    folder = sources / "npm" / file_stem(row)
    archive = folder.with_name(f"{folder.name}.tgz")
    if not archive.is_file():
        return "missing"
    if hashlib.sha256(archive.read_bytes()).hexdigest() != row["sha256"]:
        return "ANOTHER FILE: its SHA-256 is not that of sources.json; not unpacked"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        [inside] = part.iterdir()
        os.replace(inside, folder)
        part.rmdir()
    return "ok"


def compare(row: dict[str, Any], sources: Path) -> str:
    """Check the commit of a repository; return the verdict."""
    folder = checkout(row, sources)
    if not folder.is_dir():
        return "missing"
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "ok" if head == row["commit"] else f"ANOTHER COMMIT: {head}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, help="folder with npm/ and github/")
    arguments = parser.parse_args()
    if not arguments.sources:
        print("\n".join(commands(Path("sources"))))
        return
    for row in known()["npm"]:
        print(f"{row['package']} {row['version']}: {unpack(row, arguments.sources)}")
    for row in known()["github"]:
        print(f"{row['repository']}: {compare(row, arguments.sources)}")


if __name__ == "__main__":
    main()
