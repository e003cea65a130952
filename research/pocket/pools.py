"""What the steps share: the pools of training images, and where their files lie in the folder WORK.

A pool is NAME_images.npy, uint8 [N, S, S, 3], and NAME_keys.json: for each row a pair [kind, value]
that says what it shows, as labels.py reads it. Later steps add NAME_labels.npy, NAME_states.npy and
NAME_logits.npy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# Pools of photographs, and the weight with which a row of each is drawn in training.
PHOTOGRAPHS = {
    "mini": 0.8, "samples": 1.6, "nette": 0.5, "imagen": 1.3, "mini2": 1.0, "animals": 1.0,
    "scenes": 0.7, "vegetables": 1.2, "flickr": 1.2,
}  # fmt: skip
TRAINED = (*PHOTOGRAPHS, "restyled", "drawings")
HELD_OUT = "unseen_emoji"  # one designer's emoji, never trained on: watched in training
POOLS = (*TRAINED, HELD_OUT)
IMAGE_SIZE = 224  # pixels of the model


def save_pool(work: Path, pool: str, images: np.ndarray, keys: list[Any]) -> None:
    """Write the images of a pool and what they show."""
    assert len(images) == len(keys)
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / f"{pool}_images.npy", images)
    write(work / f"{pool}_keys.json", keys)
    print(
        f"{pool}: {len(keys)} rows of {images.shape[1]} px, {len({*map(json.dumps, keys)})} keys",
        flush=True,
    )


def images_of(work: Path, pool: str) -> np.ndarray:
    """Map the images from disk, so that they are read where they are used."""
    return np.load(work / f"{pool}_images.npy", mmap_mode="r")


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="\n")
