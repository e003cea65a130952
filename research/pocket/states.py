"""Step 8: compute once what does not change in training.

Two runs, side by side, each a quarter of an hour on one thread:

states.py student   token states behind the first 8 blocks, float16: 50 KB a row, 9 GB in all
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

from rmadapter.backbones import load_backbone

FROZEN_BLOCKS = 8  # of 12
BATCH = 64
SMALL, SIZE_OF_SMALL, SIZE_OF_OTHERS = (
    84,
    160,
    192,
)  # images of up to SMALL pixels hold no more for the teacher


def resized(images: np.ndarray, size: int) -> Tensor:
    """Convert uint8 [N, H, H, 3] -> float [N, 3, size, size] in 0..1."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    if x.shape[-1] == size:
        return x
    return F.interpolate(
        x, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def student() -> tuple[Callable[[np.ndarray], Tensor], tuple[int, ...]]:
    """Compute the blocks that stay as they are, which are those of the wheel."""
    backbone = load_backbone("pocket")
    clip: Any = backbone.model
    trunk = clip.visual.trunk
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))

    def compute(images: np.ndarray) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = trunk._pos_embed(trunk.patch_embed((resized(images, IMAGE_SIZE) - mean) / std))
            for block in trunk.blocks[:FROZEN_BLOCKS]:
                x = block(x)
        return x.float().clamp(-6e4, 6e4)  # float16 ends at 65504

    return compute, (1 + (IMAGE_SIZE // 14) ** 2, trunk.embed_dim)


def teacher(weights: Path | None) -> tuple[Callable[[np.ndarray], Tensor], tuple[int, ...]]:
    model = timm.create_model("tf_efficientnet_lite2", pretrained=weights is None).eval()
    if weights:
        model.load_state_dict(load_file(weights))

    def compute(images: np.ndarray) -> Tensor:
        size = SIZE_OF_SMALL if images.shape[1] <= SMALL else SIZE_OF_OTHERS
        with torch.autocast("cpu", torch.bfloat16):
            return model((resized(images, size) - 0.5) / 0.5).float()

    return compute, (1000,)


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
    compute, shape = student() if of_student else teacher(arguments.teacher)
    for pool in POOLS if of_student else PHOTOGRAPHS:
        images = images_of(arguments.work, pool)
        started = time.monotonic()
        file = arguments.work / f"{pool}_{'states' if of_student else 'logits'}.npy"
        part = file.with_suffix(".part")
        table = np.lib.format.open_memmap(part, "w+", np.float16, (len(images), *shape))
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                table[start : start + BATCH] = compute(images[start : start + BATCH]).half().numpy()
        table.flush()
        os.replace(part, file)
        print(f"{pool}: {len(images)} rows, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
