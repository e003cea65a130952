"""Step 1: read the training images into one uint8 array a pool (about a minute, 4 GB).

DATA holds the folders below; where they come from is in README.md.

    tiny/<wnid>/**/*.JPEG      Tiny ImageNet, train split, 64 px
    intel/<class>/*            Intel scenes
    cifar/<class>/*            CIFAR-10, train split, 32 px
    imagenet/<wnid>*.JPEG      one sample of each ImageNet class
    coco/**/*                  COCO images, no labels
    pets/<breed>/*             Oxford pets
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sources import POOLS, imagenet_wnids

SUFFIXES = {".jpg", ".jpeg", ".png"}
CIFAR_PER_CLASS = 800
VIEWS = {"imagenet": 7, "coco": 11, "pets": 2}  # random views beside the central one; few but sharp images
VIEW_SIZE, INTEL_SIZE = 192, 150


def central_square(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to `size` pixels, then the middle."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def random_view(image: Image.Image, rng: random.Random) -> Image.Image:
    """A part of at least a quarter of the area and of nearly square shape, mirrored half of the time."""
    width, height = image.size
    view = central_square(image, VIEW_SIZE)
    for _ in range(10):
        area = rng.uniform(0.25, 1) * width * height
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            box = (left, top, left + w, top + h)
            view = image.resize((VIEW_SIZE, VIEW_SIZE), Image.Resampling.BICUBIC, box=box)
            break
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


def one_view(size: int | None, file: Path) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    return np.asarray(central_square(image, size) if size else image)[None]


def several_views(number: int, seed: int, file: Path) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    if min(image.size) > 400:
        scale = 400 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    rng = random.Random(seed)
    views = [central_square(image, VIEW_SIZE)] + [random_view(image, rng) for _ in range(number)]
    return np.stack([np.asarray(view) for view in views])


def files_of(pool: str, data: Path) -> tuple[list[Path], list[int], list[str]]:
    """Files, label of each (-1: none) and class names; for `imagenet` the labels are places in the teacher's order."""
    files = sorted(file for file in (data / pool).rglob("*") if file.suffix.lower() in SUFFIXES)
    if pool == "coco":
        return files, [-1] * len(files), []
    if pool == "imagenet":
        wnids = imagenet_wnids()
        return files, [wnids.index(file.name[:9]) for file in files], wnids
    classes = sorted({file.relative_to(data / pool).parts[0] for file in files})
    labels = [classes.index(file.relative_to(data / pool).parts[0]) for file in files]
    if pool == "cifar":
        rng = random.Random(1)
        groups = [[i for i, label in enumerate(labels) if label == number] for number in range(len(classes))]
        drawn = [i for group in groups for i in rng.sample(group, min(CIFAR_PER_CLASS, len(group)))]
        files, labels = [files[i] for i in drawn], [labels[i] for i in drawn]
    return files, labels, [name.replace("_", " ") for name in classes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the six folders of images")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that the recipe writes")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as executor:
        for pool in POOLS:
            files, labels, classes = files_of(pool, arguments.data)
            if pool in VIEWS:
                repeat = VIEWS[pool] + 1
                number = [VIEWS[pool]] * len(files)
                views = executor.map(several_views, number, range(len(files)), files, chunksize=20)
            else:
                repeat = 1
                views = executor.map(partial(one_view, INTEL_SIZE if pool == "intel" else None), files, chunksize=100)
            np.save(arguments.work / f"{pool}_images.npy", np.concatenate(list(views)))
            np.save(arguments.work / f"{pool}_labels.npy", np.repeat(labels, repeat))
            (arguments.work / f"{pool}_classes.json").write_text(json.dumps(classes))
            print(pool, len(files), "images,", len(files) * repeat, "rows", flush=True)


if __name__ == "__main__":
    main()
