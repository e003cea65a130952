"""Backbones that a user may choose from, their cost, and the first available of several."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.load import load_backbone
from rmadapter.backbones.pocket import LICENCE, POCKET
from rmadapter.errors import UserError
from rmadapter.support.files import user_path
from rmadapter.support.hub import Unreachable
from rmadapter.support.terminal import note


class Published(NamedTuple):
    """A published backbone. megabytes: to fetch, in float32. imagenet: zero-shot accuracy in
    percent from open_clip's README, not measured here. licence: from its card on the hub."""

    megabytes: int
    imagenet: float
    licence: str


KNOWN = {
    "ViT-B-32/openai": Published(605, 63.2, "Apache-2.0"),
    "ViT-B-16/openai": Published(598, 68.3, "Apache-2.0"),
    "ViT-L-14/openai": Published(1710, 75.5, "as its card says"),
}
ADVISED = "ViT-B-16/openai"
BETTER = (
    "backbone pocket is small and works offline; on photos a real CLIP is far better: --backbone "
    f"{ADVISED} ({KNOWN[ADVISED].megabytes} MB from the Hugging Face hub, once), or another from "
    "`rmadapter backbones`"
)
BATCH, TIMES = 8, 5


def advise(name: str) -> str:
    """Return advice for a run on this backbone, or nothing."""
    return BETTER if name == POCKET else ""


def licence_of(name: str) -> str:
    """Return the licence of a backbone's weights, as far as known here."""
    if name == POCKET:
        return LICENCE
    unknown = "its publisher's, not known here: check where the backbone comes from"
    return f"{KNOWN[name].licence} (its card on the hub)" if name in KNOWN else unknown


def first_of(names: str) -> Backbone:
    """Load a backbone by name or, of several names separated by commas, the first that is here or
    can be fetched.

    A note says which it is and why. Raises UserError as `load_backbone` does, also for a wrong name
    before the last.
    """
    wanted = [names] if user_path(names).exists() else [name.strip() for name in names.split(",")]
    if not all(wanted):
        raise UserError(f"backbone {names!r}: separate names with single commas")
    for name, other in zip(wanted, [*wanted[1:], ""], strict=True):
        try:
            backbone = load_backbone(name)
        except Unreachable as error:
            if not other:
                raise
            note(f"{error}; using {other} instead")
        else:
            if len(wanted) > 1:
                note(f"backbone: {name}")
            return backbone
    raise AssertionError("the last one is returned or raises")


@torch.no_grad()
def images_per_second(name: str, device: torch.device) -> float:
    """Measure the speed of an image encoder here, in batches of 8. Published models get random
    weights, so that nothing is downloaded."""
    source = name if name == POCKET else f"{name.partition('/')[0]}/none"
    backbone = load_backbone(source).to(device)
    pixels = torch.zeros(BATCH, 3, backbone.image_size, backbone.image_size, device=device)
    seconds = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        backbone.image.frozen(pixels).features.sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds[1:])  # the first one warms up
