"""Step 2: read the photographs into one array a pool (minutes, 3 GB).

Reads SOURCES/github/OWNER+NAME/; writes pools into WORK. Draws have a fixed
seed.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pools import PHOTOGRAPHS, save_pool

from rmadapter.data.read import load_image
from rmadapter.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
BICUBIC = Image.Resampling.BICUBIC
LARGEST = 448  # shortest side before views are cut, in pixels
SCENES = {
    "Industrial": "industrial building",
    "InsideCity": "city street",
    "LivingRoom": "living room",
    "OpenCountry": "countryside",
    "TallBuilding": "skyscraper",
    **{
        name: name.lower()
        for name in ("Bedroom", "Coast", "Forest", "Highway", "Kitchen", "Mountain", "Office")
    },
    **{name: name.lower() for name in ("Store", "Street", "Suburb")},
}
MISSPELT = {"poegranate": "pomegranate", "pineappe": "pineapple"}


@dataclass(frozen=True)
class Source:
    """folder: below SOURCES. pattern: of paths inside; its group is the label as written. kind:
    wnid, word or caption.

    views: of each image, the central square and random parts. most: images a class, drawn; 0 for
    all.
    """

    folder: str
    pattern: str
    kind: str
    size: int = 224
    views: int = 1
    most: int = 0
    spell: Callable[[str], str] = str


def imagen_name(written: str) -> str:
    return written.replace("_", " ")


def vegetable_name(written: str) -> str:
    """Convert "Red Apple_12" -> "apple"; empty where nothing is left."""
    words = re.sub(r"[\d_\-. ]+", " ", written.lower())
    words = re.sub(r"\b(large|small|green|red|bowl|image|img)\b", "", words).strip()
    return MISSPELT.get(words, words) if len(words) > 2 else ""


SOURCES = {
    "mini": Source(
        "github/Deo0330+split_minidataset", r"(?:train|val)/(n\d{8})/", "wnid", size=84, most=30
    ),
    "samples": Source("github/EliSchwartz+imagenet-sample-images", r"(n\d{8})_", "wnid", views=6),
    "nette": Source("github/thunderInfy+imagenette", r"train/(n\d{8})/", "wnid", most=120),
    "imagen": Source(
        "github/ajschumacher+imagen",
        r"imagen/n\d+_\d+_(.+)\.\w+$",
        "word",
        views=4,
        spell=imagen_name,
    ),
    "mini2": Source(
        "github/pomatokyo+mini-imagenet", r"[^/]+/[^/]+/(n\d{8})/[^/]+$", "wnid", views=2
    ),
    "animals": Source(
        "github/InputBlackBoxOutput+popular-animals-dataset", r"(?!_)([^/]+)/", "word", views=1
    ),
    "scenes": Source(
        "github/lionelmessi6410+Scene-Recognition-with-Bag-of-Words",
        rf"[^/]+/[^/]+/({'|'.join(SCENES)})/[^/]+$",
        "word",
        most=130,
        spell=SCENES.__getitem__,
    ),
    "vegetables": Source(
        "github/abhinav9444+Fruits-Vegetables-Image-Dataset",
        r".*/([^/]+)\.\w+$",
        "word",
        views=3,
        spell=vegetable_name,
    ),
    "flickr": Source(
        "github/quantumnaan+sic_translator", r".*/images/([^/]+)$", "caption", views=3
    ),
}
assert SOURCES.keys() == PHOTOGRAPHS.keys()


def captions(folder: Path) -> dict[str, list[str]]:
    """Read captions of Flickr8k: name of a file -> five sentences."""
    texts: dict[str, list[str]] = defaultdict(list)
    files = (
        file
        for pattern in ("*caption*.txt", "*caption*.csv", "*token.txt")
        for file in sorted(folder.rglob(pattern))
    )
    if not (first := next(files, None)):
        return {}
    for line in first.read_text(encoding="utf-8").splitlines():
        if match := re.match(r'(\d+_[0-9a-f]+\.jpg)(?:#\d)?[,\t ]\s*"?(.*?)"?\s*$', line):
            texts[match[1]].append(match[2].strip(" ."))
    return {name: sentences[:5] for name, sentences in texts.items()}


def rows_of(pool: str, sources: Path) -> list[tuple[Path, list[object]]]:
    """Return (file, key) of the images that the pool takes."""
    source = SOURCES[pool]
    groups: dict[str, list[tuple[Path, list[object]]]] = defaultdict(list)
    folder = sources / source.folder
    sentences = captions(folder) if source.kind == "caption" else {}
    for path in sorted(folder.rglob("*"), key=lambda path: path.as_posix()):
        match = re.match(source.pattern, path.relative_to(folder).as_posix())
        if match and path.suffix.lower() in SUFFIXES:
            value = sentences.get(match[1]) if source.kind == "caption" else source.spell(match[1])
            if value:
                groups[match[1]].append((path, [source.kind, value]))
    if not groups:
        raise UserError(
            f"{folder}: holds no image of {pool}; `python sources.py` says how to get them"
        )
    rng = random.Random(0)
    drawn = (
        rng.sample(rows, min(source.most, len(rows))) if source.most else rows
        for rows in groups.values()
    )
    return [row for rows in drawn for row in rows]


def central_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shortest side to `size` pixels, then cut out the middle."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), BICUBIC, reducing_gap=3).crop(
        (left, top, left + size, top + size)
    )


def random_part(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Cut out at least three tenths of the area, of nearly square shape, mirrored half of the
    time."""
    width, height = image.size
    part = central_square(image, size)
    for _ in range(10):
        area = rng.uniform(0.3, 1) * width * height
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = round((area * ratio) ** 0.5)
        h = round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left = rng.randint(0, width - w)
            top = rng.randint(0, height - h)
            part = image.resize((size, size), BICUBIC, box=(left, top, left + w, top + h))
            break
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def views_of(file: Path, seed: int, number: int, size: int) -> np.ndarray | None:
    """Return [number, size, size, 3]; None for a file that is no readable image."""
    try:
        image = load_image(file)
    except UserError:
        return None
    if min(image.size) > LARGEST:
        scale = LARGEST / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), BICUBIC, reducing_gap=3
        )
    rng = random.Random(seed)
    views = [central_square(image, size)] + [
        random_part(image, size, rng) for _ in range(number - 1)
    ]
    return np.stack([np.asarray(view) for view in views])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of step 1")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that the recipe writes"
    )
    parser.add_argument(
        "--pools", nargs="+", choices=SOURCES, default=list(SOURCES), help="these alone"
    )
    arguments = parser.parse_args()
    with ProcessPoolExecutor() as executor:
        for pool in arguments.pools:
            source = SOURCES[pool]
            rows = rows_of(pool, arguments.sources)
            every = [source.views] * len(rows), [source.size] * len(rows)
            read = executor.map(
                views_of, [file for file, _ in rows], range(len(rows)), *every, chunksize=16
            )
            good = [
                (views, key)
                for views, (_, key) in zip(read, rows, strict=True)
                if views is not None
            ]
            keys = [key for _, key in good for _ in range(source.views)]
            save_pool(arguments.work, pool, np.concatenate([views for views, _ in good]), keys)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
