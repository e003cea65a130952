"""Measure the speed of image encoders on this machine, and their size in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.load import load_backbone
from rmadapter.backbones.names import HF_HUB, TIMM
from rmadapter.backbones.packaged import packaged_names
from rmadapter.backbones.published import PUBLISHED
from rmadapter.support.files import JsonObject
from rmadapter.support.hub import Unreachable

BATCH_SIZE, REPEATS = 8, 5
SPEED_FIELDS = ("images_per_second", "megabytes_in_memory")


def measured(rows: Sequence[JsonObject], device: torch.device) -> list[JsonObject]:
    """Add SPEED_FIELDS to the rows of `listed`, for models that can be measured without a download,
    and for those whose tokenizer can be fetched."""
    found = []
    for row in rows:
        name = row["name"]
        is_ready = name in packaged_names() and row["mb"] is not None
        is_open_clip = name in PUBLISHED and not name.startswith((TIMM, HF_HUB))
        if is_ready or is_open_clip:
            with suppress(Unreachable):
                speed, size = cost_of(name, device)
                row = {**row, **dict(zip(SPEED_FIELDS, (round(speed, 1), size), strict=True))}
        found.append(row)
    return found


def cost_of(name: str, device: torch.device) -> tuple[float, float]:
    """Measure the images per second of an image encoder here, as `speed_of`, and return them with
    the megabytes of the whole model. Published models get random weights, so that nothing is
    downloaded."""
    source = name if name in packaged_names() else f"{name.partition('/')[0]}/none"
    backbone = load_backbone(source)
    return speed_of(backbone, device), megabytes_of(backbone)


@torch.no_grad()
def speed_of(backbone: Backbone, device: torch.device) -> float:
    """Measure the images per second of an image encoder on a device, in batches of 8."""
    backbone = backbone.to(device)
    pixels = torch.zeros(BATCH_SIZE, 3, backbone.image_size, backbone.image_size, device=device)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        backbone.image.frozen(pixels).features.sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return BATCH_SIZE / statistics.median(seconds[1:])  # the first one warms up


def megabytes_of(backbone: Backbone) -> float:
    """Return the megabytes of a backbone's weights in memory."""
    weights = backbone.model.parameters()
    return round(sum(one.numel() * one.element_size() for one in weights) / 1e6, 1)
