"""Write one folder of images in every supported format, and check that each gives the same images
and labels.

    python research/scripts/every_format.py DATA/trashnet

A row is a format: images and classes read; MB of its files; seconds to open it, which decodes
every image once to check it, and then seconds to decode all of them; and whether pixels and labels
are those of the folder. Formats in memory have no files. Everything goes to a temporary folder,
including the cache of unpacked files.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from format_writers import FORMATS, Shots, shots_of

from rmadapter.data.read import ImageSet, load_image, read_images


def digest(sets: Mapping[str, ImageSet]) -> str:
    """Compute a digest of labels and pixels, whatever their order and split."""
    every = []
    for part in sets.values():
        for source, label in zip(part.images, part.labels, strict=True):
            image = load_image(source)
            own = hashlib.sha256(
                repr((str(part.written[label]), image.size)).encode() + image.tobytes()
            )
            every.append(own.hexdigest())
    return hashlib.sha256("".join(sorted(every)).encode()).hexdigest()


def row(name: str, shots: Shots, expected: str, place: Path) -> dict[str, Any]:
    """Make the row of a format. place: an empty folder, in which its own folder is made."""
    form = FORMATS[name]
    if form.needs and importlib.util.find_spec(form.needs) is None:
        return {"format": name, "skipped": f"needs {form.needs}"}
    home = place / "data"
    home.mkdir()
    data = form.write(shots, home)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    os.environ["RMADAPTER_CACHE"] = str(place / "cache")
    started = time.perf_counter()
    sets = read_images(data, progress=False, **form.words)
    opened = time.perf_counter()
    same = digest(sets) == expected
    return {
        "format": name, "images": sum(map(len, sets.values())),
        "classes": len(next(iter(sets.values())).classes), "mb": round(size / 1e6, 2),
        "open_s": round(opened - started, 2), "decode_s": round(time.perf_counter() - opened, 2),
        "same": same,
    }  # fmt: skip


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    sets = read_images(folder, progress=False)
    shots = shots_of(sets)
    expected = digest(sets)
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as place:
            yield row(name, shots, expected, Path(place))


def line(facts: Mapping[str, Any]) -> str:
    """Write a row of the table in research/studies/formats.md."""
    if "skipped" in facts:
        return f"| {facts['format']} | {facts['skipped']} | | | | | |"
    cells = [facts["images"], facts["classes"], f"{facts['mb']:.1f}" if facts["mb"] else ""]
    cells += [
        f"{facts['open_s']:.2f}",
        f"{facts['decode_s']:.2f}",
        "yes" if facts["same"] else "NO",
    ]
    return f"| {facts['format']} | {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="of class folders, or of train and test with such"
    )
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    results = []
    if not words.json:
        print(
            "| format | images | classes | MB | open, s | decode, s | same |\n" + "|---" * 7 + "|"
        )
    for each in rows(words.folder):
        results.append(each)
        if not words.json:
            print(line(each), flush=True)
    if words.json:
        print(json.dumps(results))
    return int(not all(each.get("same", True) for each in results))


if __name__ == "__main__":
    sys.exit(main())
