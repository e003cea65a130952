"""Step 3: cache what does not change in training, for every image of the pools.

    states.py student   token states behind the first 8 blocks, float16: 50 KB an image, 6 GB for the original run
    states.py teacher   EfficientNet-Lite2's logits, float16

Both walk over the images in the same order and can be stopped at any time; training takes what both have reached.
Run them side by side, one thread each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sources import FROZEN_BLOCKS, POOLS, TINY_HELD_OUT, vision_source

from rmadapter.backbones.pocket import IMAGE_SIZE, MEAN, STD

EARLY_TINY = 45_000  # Tiny ImageNet's images that come before the end, mixed with all other pools
CHUNK, BATCH = 1024, 32


def make_order(work: Path) -> np.ndarray:
    """[N, 2] of (pool, row): held-out Tiny ImageNet first, then a mixture, then the rest of Tiny ImageNet."""
    rng = np.random.default_rng(7)
    labels = [np.load(work / f"{pool}_labels.npy") for pool in POOLS]
    groups = [np.flatnonzero(labels[0] == number) for number in range(labels[0].max() + 1)]
    held_out = np.concatenate([rng.choice(group, TINY_HELD_OUT, replace=False) for group in groups])
    tiny = rng.permutation(np.setdiff1d(np.arange(len(labels[0])), held_out))

    def rows(pool: int, indices: np.ndarray) -> np.ndarray:
        return np.stack([np.full(len(indices), pool), indices], axis=1)

    others = [rows(pool, np.arange(len(labels[pool]))) for pool in range(1, len(POOLS))]
    mixture = rng.permutation(np.concatenate([rows(0, tiny[:EARLY_TINY]), *others]))
    return np.concatenate([rows(0, held_out), mixture, rows(0, tiny[EARLY_TINY:])]).astype(np.int32)


def batches(order: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """(places in the order, pool, rows of the pool): a batch is of one pool, as its images have one size."""
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        for pool in np.unique(chunk[:, 0]):
            places = np.flatnonzero(chunk[:, 0] == pool)
            for first in range(0, len(places), BATCH):
                part = places[first : first + BATCH]
                yield start + part, int(pool), chunk[part, 1]


def resized(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [N, H, H, 3] -> float [N, 3, size, size] in 0..1."""
    x = torch.as_tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def student(work: Path) -> tuple[Callable[[np.ndarray, str], torch.Tensor], tuple[int, ...]]:
    model = vision_source(work)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def compute(images: np.ndarray, pool: str) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = model._pos_embed(model.patch_embed((resized(images, IMAGE_SIZE) - mean) / std))
            for block in model.blocks[:FROZEN_BLOCKS]:
                x = block(x)
        return x

    return compute, (1 + (IMAGE_SIZE // 14) ** 2, model.embed_dim)


def teacher(weights: Path | None) -> tuple[Callable[[np.ndarray, str], torch.Tensor], tuple[int, ...]]:
    model = timm.create_model("tf_efficientnet_lite2", pretrained=weights is None).eval()
    if weights:
        model.load_state_dict(load_file(weights))

    def compute(images: np.ndarray, pool: str) -> torch.Tensor:
        size = 160 if pool in ("tiny", "cifar") else 192  # small images hold no more
        return model((resized(images, size) - 0.5) / 0.5)

    return compute, (1000,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["student", "teacher"])
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 1 and 2")
    parser.add_argument("--teacher", type=Path, help="safetensors under timm's names; otherwise timm fetches its own")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    order = make_order(arguments.work)
    np.save(arguments.work / "order.npy", order)
    images = [np.load(arguments.work / f"{pool}_images.npy", mmap_mode="r") for pool in POOLS]
    compute, shape = student(arguments.work) if arguments.kind == "student" else teacher(arguments.teacher)
    file = arguments.work / f"{arguments.kind}.npy"
    cache = np.lib.format.open_memmap(file, "w+", np.float16, (len(order), *shape))
    done, start = 0, time.monotonic()
    with torch.inference_mode():
        for places, pool, rows in batches(order):
            cache[places] = compute(images[pool][rows], POOLS[pool]).half().numpy()
            done += len(places)
            if done % CHUNK and done < len(order):
                continue  # a chunk is whole or does not count
            (arguments.work / f"{arguments.kind}.done").write_text(str(done))
            print(f"{done} of {len(order)}, {(time.monotonic() - start) / done * 1000:.2f} ms an image", flush=True)
            if time.monotonic() - start > arguments.minutes * 60:
                break


if __name__ == "__main__":
    main()
