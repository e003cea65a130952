"""Backbones to choose from: which are on this disk, their cost, the first available of several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.image_only import licence_of_timm
from rmadapter.backbones.load import load_backbone
from rmadapter.backbones.names import HF_HUB, TIMM, names_in
from rmadapter.backbones.packaged import INSTALL, POCKET, load_package, packaged_names
from rmadapter.support.files import JsonObject
from rmadapter.support.hub import Unreachable
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import note


class Published(NamedTuple):
    """A published backbone. megabytes: to fetch, in float32. imagenet: zero-shot accuracy in
    percent from open_clip's README, not measured here. licence: from its card on the hub."""

    megabytes: int
    imagenet: float
    licence: str


AS_ITS_CARD = "as its card on the hub says"
KNOWN = {
    "ViT-B-32/openai": Published(605, 63.2, "Apache-2.0"),
    "ViT-B-16/openai": Published(598, 68.3, "Apache-2.0"),
    "ViT-L-14/openai": Published(1710, 75.5, AS_ITS_CARD),
}


class Curated(NamedTuple):
    """An image encoder of timm that is listed, whether or not it is on this disk. megabytes: to
    fetch, in float32. licence: of the weights, from timm's table."""

    use: str
    megabytes: int
    licence: str


CURATED = {
    "timm:vit_small_patch14_dinov2.lvd142m": Curated("general", 88, "apache-2.0"),
    "timm:vit_small_patch16_dinov3.lvd1689m": Curated("general", 86, "dinov3-license"),
    "timm:convnext_tiny.in12k_ft_in1k": Curated("general", 111, "apache-2.0"),
    "timm:mobilenetv4_conv_small.e2400_r224_in1k": Curated("small", 10, "apache-2.0"),
    "timm:vit_large_patch16_dinov3.sat493m": Curated("remote sensing", 1212, "dinov3-license"),
}


class Special(NamedTuple):
    """A CLIP model of one domain on the hub, which the command does not list. architecture:
    open_clip's name of it, "" if it has none. licence: from the model's card. weights: how they are
    published, where that is known."""

    use: str
    architecture: str
    megabytes: int
    licence: str
    weights: str


PICKLED = "pickled, as last looked at"
SPECIAL = {
    "hf-hub:imageomics/bioclip": Special("species", "ViT-B-16", 598, "MIT", PICKLED),
    "hf-hub:imageomics/bioclip-2": Special("species", "ViT-L-14", 1710, "MIT", "not stated"),
    "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": Special(
        "medicine", "", 784, "MIT", PICKLED
    ),
}
ADVISED = "ViT-B-16/openai"
BETTER = (
    "backbone pocket is small and works offline; on photos a real CLIP is far better: --backbone "
    f"{ADVISED} ({KNOWN[ADVISED].megabytes} MB from the Hugging Face hub, once), or another from "
    "`rmadapter backbones`"
)
BATCH, TIMES = 8, 5
# A small model that is measured beside the listed ones, with random weights.
SMALL = "MobileCLIP2-S0/none"
MEASURED = ("images_per_second", "megabytes_in_memory")


def advise(name: str) -> str:
    """Return advice for a run on this backbone, or nothing."""
    return BETTER if name == POCKET else ""


def licence_of(name: str) -> str:
    """Return the licence of a backbone's weights, or what is known of it."""
    if name in packaged_names():
        return load_package(name).LICENCE
    if name.startswith(TIMM):
        stated = licence_of_timm(name)
        if stated:
            return f"{stated} (timm's table of weights)"
    with_card: dict[str, Published | Special] = {**KNOWN, **SPECIAL}
    if name in with_card:
        licence = with_card[name].licence
        return licence if licence == AS_ITS_CARD else f"{licence} (its card on the hub)"
    return "its publisher's, not known here: check where the backbone comes from"


def page_rows() -> Iterator[str]:
    """Yield the rows of the table of backbones in docs/reference/backbones.md."""
    yield "| name | use | MB | licence | weights |"
    yield "|---|---|---|---|---|"
    here = "safetensors, from the hub"
    for name, known in KNOWN.items():
        yield _page_row(name, "general", known.megabytes, name, here)
    for name, curated in CURATED.items():
        yield _page_row(name, f"{curated.use}, no text", curated.megabytes, name, here)
    for name, special in SPECIAL.items():
        yield _page_row(name, special.use, special.megabytes, name, special.weights)


def _page_row(name: str, use: str, megabytes: int, licensed: str, weights: str) -> str:
    return f"| `{name}` | {use} | {megabytes:,} | {licence_of(licensed)} | {weights} |"


def first_of(names: str, device: str = "cpu") -> Backbone:
    """Load a backbone by name or, of several names separated by commas, the first that is here or
    can be fetched. A note says which it is and why.

    Args:
        names: Names as for `load_backbone`.
        device: As for `load`.

    Raises:
        UserError: As `load_backbone`, also for a wrong name before the last; an unknown device.
    """
    choices = names_in(names)
    for name, other in zip(choices, [*choices[1:], ""], strict=True):
        try:
            backbone = load_backbone(name)
        except Unreachable as error:
            if not other:
                raise
            note(f"{error}; using {other} instead")
        else:
            if len(choices) > 1:
                note(f"backbone: {name}")
            return backbone.to(find_device(device))
    raise AssertionError("the last one is returned or raises")


def measured(rows: Sequence[JsonObject], device: torch.device) -> list[JsonObject]:
    """Return the rows of `listed`, and one of SMALL, those of models that can be measured without
    a download with the fields of MEASURED."""
    packages, found = packaged_names(), []
    about = "random weights, for its speed alone"
    for row in [*rows, {"name": SMALL, "state": about, "mb": None, "folder": "", "about": ""}]:
        name = row["name"]
        ready = name in packages and row["mb"] is not None
        if ready or name in KNOWN or name == SMALL:
            speed, size = cost_of(name, device)
            row = {**row, **dict(zip(MEASURED, (round(speed, 1), size), strict=True))}
        found.append(row)
    return found


def as_table(rows: Sequence[JsonObject], speed: bool) -> tuple[list[str], list[list[str]]]:
    """Return the heads and cells of a table of rows. speed: with what `measured` added, the fastest
    first."""
    heads = ["name", "state", "on disk", "about"]
    if speed:
        heads += ["images/s here", "MB in memory"]
        rows = sorted(rows, key=lambda row: -row.get("images_per_second", 0.0))
    cells = []
    for row in rows:
        on_disk = "" if row["mb"] is None else f"{row['mb']} MB"
        cells.append([row["name"], row["state"], on_disk, row["about"]])
        if speed:
            cells[-1] += [str(row.get(key, "")) for key in MEASURED]
    return heads, cells


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
    pixels = torch.zeros(BATCH, 3, backbone.image_size, backbone.image_size, device=device)
    seconds = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        backbone.image.frozen(pixels).features.sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds[1:])  # the first one warms up


def megabytes_of(backbone: Backbone) -> float:
    """Return the megabytes of a backbone's weights in memory."""
    weights = backbone.model.parameters()
    return round(sum(one.numel() * one.element_size() for one in weights) / MB, 1)


def on_disk(hub_cache: Path | None = None) -> list[str]:
    """Return the backbones that need no download: those of installed packages and open_clip's
    published ones; the default if there are none. hub_cache: as for `listed`."""
    names = packaged_names()
    ready = [row["name"] for row in listed(hub_cache) if row["state"] == READY]
    return [name for name in ready if name in names or not name.startswith(HF_HUB)] or [POCKET]


MB = 1e6
READY = "ready"
TO_COME = "from the Hugging Face hub when first used"


def listed(hub_cache: Path | None = None) -> list[JsonObject]:
    """Return name, state, megabytes on disk (None if absent) and folder of each backbone; `about`
    says more of a few.

    hub_cache: folder of the Hugging Face hub's cache, by default its library's.
    """
    cached = _cached(hub_cache)
    published = [*_curated(cached), *_published(cached)]
    return [*_packaged(), *({**row, "about": _about(row["name"])} for row in published)]


def _curated(cached: dict[str, Path]) -> list[JsonObject]:
    """Return the rows of `CURATED`, whose repositories are taken out of the cached ones."""
    rows: list[JsonObject] = []
    for name, known in CURATED.items():
        place = cached.pop(f"timm/{name.removeprefix(TIMM)}", None)
        if place:
            row = {"state": READY, "mb": _size(place), "folder": str(place)}
        else:
            row = {"state": f"{known.megabytes:,} MB {TO_COME}", "mb": None, "folder": ""}
        rows.append({"name": name, **row})
    return rows


def _about(name: str) -> str:
    if name in CURATED:
        use, _, licence = CURATED[name]
        return f"{use}; image encoder without text, not tested here; licence: {licence}"
    if name not in KNOWN:
        return ""
    accuracy, licence = KNOWN[name].imagenet, KNOWN[name].licence
    published = f"published: {accuracy} % zero-shot on ImageNet"
    return f"needs the hub once; {published}; licence: {licence}"


def _packaged() -> Iterator[JsonObject]:
    """Yield the backbones of installed packages, and the default if its package is absent."""
    names = packaged_names()
    for name in names:
        package = load_package(name)
        place, state, megabytes = package.place(), READY, None
        if place.is_dir():
            megabytes = _size(place)
        else:
            state = f"made when first used: {package.MEGABYTES} MB to download"
        row = {"name": name, "state": state, "mb": megabytes, "folder": str(place)}
        yield {**row, "about": package.ABOUT}
    if POCKET not in names:
        row = {"name": POCKET, "state": f"not installed: {INSTALL}", "mb": None, "folder": ""}
        yield {**row, "about": ""}


def _published(cached: dict[str, Path]) -> Iterator[JsonObject]:
    """Yield the models in the hub's cache, under open_clip's names where it has one, and the absent
    ones of KNOWN."""
    import open_clip

    for architecture, tag in open_clip.list_pretrained():
        name = f"{architecture}/{tag}"
        repository = open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").rstrip("/")
        repository = "/".join(repository.split("/")[:2])
        place = cached.pop(repository, None)
        if place:
            yield {"name": name, "state": READY, "mb": _size(place), "folder": str(place)}
        elif name in KNOWN:
            state = f"{KNOWN[name].megabytes:,} MB {TO_COME}"
            yield {"name": name, "state": state, "mb": None, "folder": ""}
    for repository, folder in cached.items():
        name = f"hf-hub:{repository}"
        yield {"name": name, "state": READY, "mb": _size(folder), "folder": str(folder)}


def _cached(folder: Path | None) -> dict[str, Path]:
    """Return the repositories with safetensors weights in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(folder).repos
    except CacheNotFound:
        return {}
    return {
        repository.repo_id: Path(repository.repo_path)
        for repository in sorted(repositories, key=lambda repository: repository.repo_id)
        if any(Path(repository.repo_path).glob("snapshots/*/*.safetensors"))
    }


def _size(folder: Path) -> int:
    """Return the megabytes of a folder's files, each counted once."""
    files = {file.resolve() for file in folder.rglob("*") if file.is_file()}
    return round(sum(file.stat().st_size for file in files) / MB)
