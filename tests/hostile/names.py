"""Names of classes and files: an accepted name can be used and written."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from rmadapter.data.fewshot import few_shot, save_split
from rmadapter.data.read import read_images
from rmadapter.prompts import tokenize
from rmadapter.support.files import read_json
from rmadapter.task import TEMPLATES
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import TEXTS, damage_json

NAMES = (
    *TEXTS, "-", "_", "__", "CAT", "cat ", "train", "test", "__MACOSX", ".hidden", "cat\u200b",
    "\u3000", "ﬁsh", "𓀀", "a" * 250,
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield names of two classes and of a file, joined by slashes, or a classnames.json."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 3 == 0:
            what, content = damage_json(rng, {"cat": "house cat", "dog": "dog", "other": "x"})
            yield f"classnames-{what}-{number}", content
            continue
        parts = []
        for plain in ("cat", "dog", "a"):
            name = rng.choice(NAMES) if rng.random() < 0.5 else plain
            escaped = max(name, default="") >= "\udc00"
            part = name.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
            parts.append(part.replace(b"/", b"")[:251].replace(b"\0", b"") or b"x")
        yield f"folders-{number}", b"/".join(parts)


def check(name: str, content: bytes, folder: Path) -> object:
    parts = [b"cat", b"dog", b"a"] if name.startswith("classnames") else content.split(b"/")
    for part in parts[:2]:
        place = folder / "data" / os.fsdecode(part)
        if place == folder / "data" or part in (b".", b".."):
            return None
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(place / "plain.png")
        with open(place / f"{os.fsdecode(parts[2])}.png", "wb") as file:
            Image.new("RGB", (4, 4), "red").save(file, "PNG")
    if name.startswith("classnames"):
        (folder / "data" / "classnames.json").write_bytes(content)
    splits = read_images(folder / "data", progress=False)
    few = few_shot(splits, 1, 1)
    save_split(few, folder / "split.json")
    if read_json(folder / "split.json")["classes"] != list(few.train.classes):
        raise Changed("other class names in split.json")
    return tokenize(valid.backbone(), few.train.classes, TEMPLATES)
