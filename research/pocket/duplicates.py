"""Step 7: find rows that look like an evaluation image, so that training leaves them out (minutes).

Every image below DATA/SET/ (train and test; whole and its central square) and, with the extra
`demo`, every pictogram of OpenMoji is compared, mirrored too, by 64 bits of brightness differences.
Writes WORK/near.json: for each pool the rows within 4 bits of one, and by which set. Simple
drawings and smooth images share these bits by chance, so most of what is left out is no copy;
random crops of an image are not found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from photographs import SUFFIXES, central_square
from PIL import Image, ImageOps
from pools import HELD_OUT, PHOTOGRAPHS, images_of, write

from rmadapter.data.catalog.openmoji import Style, load_openmoji
from rmadapter.data.read import load_image
from rmadapter.errors import UserError

BITS, NEAR = 64, 4
COMPARED = (*PHOTOGRAPHS, "drawings", HELD_OUT)  # a restyled photograph goes with its origin


def signs(image: Image.Image) -> np.ndarray:
    """Return [64] of +1 and -1: whether each of 8 x 8 cells is darker than the one to its right."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BICUBIC), np.int16)
    return np.where(grey[:, 1:] > grey[:, :-1], 1, -1).ravel().astype(np.float32)


def near(rows: np.ndarray, others: np.ndarray, chunk: int = 2048) -> np.ndarray:
    """Return [N] bool: which rows [N, 64] differ from any of the others [M, 64] in at most 4
    bits."""
    least = BITS - 2 * NEAR  # a product of signs loses two for each bit that differs
    parts = [
        (rows[start : start + chunk] @ others.T >= least).any(1)
        for start in range(0, len(rows), chunk)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def with_mirrored(images: Iterable[Image.Image]) -> Iterator[np.ndarray]:
    for image in images:
        yield signs(image)
        yield signs(ImageOps.mirror(image))


def photographs_below(folder: Path) -> Iterator[Image.Image]:
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        image = load_image(file)
        yield image
        yield central_square(image, min(image.size))


def evaluation_sets(data: Path, left_out: list[str]) -> dict[str, np.ndarray]:
    """Return set -> signs of all its images, [M, 64]."""
    folders = [
        folder
        for folder in sorted(data.iterdir())
        if folder.is_dir() and folder.name not in left_out
    ]
    hashes = {folder.name: list(with_mirrored(photographs_below(folder))) for folder in folders}
    try:
        styles = [load_openmoji(112, style) for style in get_args(Style)]
        pictograms = (
            load_image(image)
            for splits in styles
            for images in splits.values()
            for image in images.images
        )
        hashes["openmoji"] = list(with_mirrored(pictograms))
    except UserError as error:
        print(f"OpenMoji is NOT compared: {error}")
    return {name: np.unique(np.stack(rows), axis=0) for name, rows in hashes.items() if rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument(
        "--leave-out",
        nargs="*",
        default=[],
        help="folders in it that are no evaluation sets",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 2 to 4")
    arguments = parser.parse_args()
    sets = evaluation_sets(arguments.data, arguments.leave_out)
    print({name: len(rows) for name, rows in sets.items()}, flush=True)
    near_images: dict[str, Any] = {}
    for pool in COMPARED:
        rows = np.stack(
            [signs(Image.fromarray(image)) for image in images_of(arguments.work, pool)]
        )
        by_set = {name: near(rows, others) for name, others in sets.items()}
        every = np.flatnonzero(np.any(list(by_set.values()), axis=0)).tolist()
        near_images[pool] = {
            "rows": every,
            "sets": {name: int(hits.sum()) for name, hits in by_set.items() if hits.any()},
        }
        print(f"{pool}: {len(every)} of {len(rows)} {near_images[pool]['sets']}", flush=True)
    write(arguments.work / "near.json", near_images)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
