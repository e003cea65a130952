"""Compare an exported page in Chromium with its own predict.py: image by image, also for tall and
for large ones.

    python research/scripts/prove_page.py PAGE DATA [--images 200] [--large 40] [--json]

PAGE is what `rmadapter export --to web` wrote, DATA a folder with a test split. Its images are
classified as they are; as tall ones, the middle strip of each, enlarged to 300 x 900 pixels; and
some of them as large ones, enlarged to 25 megapixels, as JPEG and as PNG. Exits with 1 if more than
1 answer in 200 differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from browser import STATE, Tab, served, tab
from PIL import Image

from rmadapter.export.runtime import Model

ALLOWED = 1 / 200
LARGE = 25_000_000  # pixels
ASK = """(async () => {
  window.ask ??= (await (await import("./answer.mjs")).load()).ask;
  return window.ask(await (await fetch("/images/NAME", { cache: "no-store" })).blob());
})()"""


def tall(image: Image.Image) -> Image.Image:
    """Cut out the middle strip, larger than what a model sees, so that Pillow resizes its height
    first."""
    width = min(max(image.height // 3, 1), image.width)
    left = (image.width - width) // 2
    return image.crop((left, 0, left + width, image.height)).resize(
        (300, 900), Image.Resampling.LANCZOS
    )


def large(image: Image.Image) -> Image.Image:
    ratio = (LARGE / (image.width * image.height)) ** 0.5
    return image.resize(
        (round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS
    )


def compare(labels: list[str], ours: np.ndarray, theirs: list[dict[str, float]]) -> dict[str, Any]:
    """Compare probabilities [N, C] of predict.py with N answers of the page: how many differ, and
    by how much."""
    table = np.array([[answer[label] for label in labels] for answer in theirs])
    differences = np.abs(table - ours).max(1)
    return {
        "images": len(ours),
        "other answers": int((table.argmax(1) != ours.argmax(1)).sum()),
        "largest difference": float(differences.max()),
        "same to 1e-4": int((differences < 1e-4).sum()),
    }


def answer_of(page: Tab, file: Path) -> dict[str, float]:
    return {
        each["label"]: each["probability"] for each in page.script(ASK.replace("NAME", file.name))
    }


def prove(
    page: Tab,
    model: Model,
    images: list[Path],
    folder: Path,
    change: Callable[[Image.Image], Image.Image],
    suffix: str,
) -> dict[str, Any]:
    """Compare both on each image, changed. folder: what the browser sees as /images."""
    ours, theirs = [], []
    for image in images:
        file = folder / f"image{suffix or image.suffix}"
        if suffix:
            change(Image.open(image).convert("RGB")).save(file, quality=90, compress_level=1)
        else:
            file.write_bytes(image.read_bytes())
        ours.append(model.probabilities(model.pixels([file]))[0])
        theirs.append(answer_of(page, file))
    return compare(model.labels, np.stack(ours), theirs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--large", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    files = sorted(path for path in (words.data / "test").rglob("*") if path.is_file())
    images = random.Random(0).sample(files, min(words.images, len(files)))
    some = images[: words.large]
    model = Model(words.page)
    results = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        (root / "images").mkdir()
        (root / "page").symlink_to(words.page.resolve(), target_is_directory=True)
        with served(root) as address, tab(root / "home") as page:
            page.go(f"{address}page/index.html")
            page.until(f"{STATE} === 'Ready.'")
            for kind, wanted, change, suffix in (
                ("as they are", images, None, ""), ("tall", images, tall, ".jpg"),
                ("large, JPEG", some, large, ".jpg"), ("large, PNG", some, large, ".png"),
            ):  # fmt: skip
                if wanted:
                    results[kind] = prove(
                        page,
                        model,
                        wanted,
                        root / "images",
                        change or (lambda image: image),
                        suffix,
                    )
                    print(kind, results[kind], file=sys.stderr)
    if words.json:
        print(json.dumps(results))
    sys.exit(any(row["other answers"] > ALLOWED * row["images"] for row in results.values()))


if __name__ == "__main__":
    main()
