"""Small images, each of one colour, for miniatures of other programs' formats."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"cat": (250, 10, 10), "dog": (10, 10, 250), "owl": (10, 250, 10)}


def picture(label: str, number: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Return an image of its class's colour, a little different by number."""
    red, green, blue = COLOURS[label]
    return Image.new("RGB", size, (max(red - number, 0), green, blue))


def png(label: str, number: int = 0) -> bytes:
    file = io.BytesIO()
    picture(label, number).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, *names: str) -> Path:
    """Write images whose names begin with their class, such as "dog_1.png"."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(Path(name).name.partition("_")[0], number).save(root / name)
    return root


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8", newline="\n")
    return path


def paths_and_labels(splits: Any, root: Path) -> dict[str, list[tuple[str, str]]]:
    """Return split -> [(path from the root, label), ...] of a reader's splits."""
    return {
        s: [(row.image.relative_to(root).as_posix(), row.label) for row in rows]
        for s, rows in splits.items()
    }
