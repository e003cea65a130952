"""List backbones: published ones of which something is known, and those on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rmadapter.backbones.names import HF_HUB, PRESETS, TIMM
from rmadapter.backbones.packaged import (
    INSTALL,
    OWN_PACKAGES,
    POCKET_3,
    load_package,
    packaged_names,
)
from rmadapter.support.files import JsonObject


class Published(NamedTuple):
    """A published backbone of which something is known before it is downloaded.

    Attributes:
        use: What it is for.
        megabytes: Size of the download, in float32.
        licence: Of the weights: from the model's card on the hub or, of timm's, from timm's table.
        imagenet: Zero-shot accuracy in percent from open_clip's README, not measured here.
        architecture: open_clip's name of the architecture of a model on the hub, if it has one.
        weights: How the weights are published.
    """

    use: str
    megabytes: int
    licence: str
    imagenet: float | None = None
    architecture: str = ""
    weights: str = "safetensors, from the hub"


AS_ITS_CARD = "as its card on the hub says"
PICKLED = "pickled, as last looked at"
BIOMED_CLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
PUBLISHED = {
    PRESETS["laptop"]: Published("general, at a quarter of ViT-B-16's cost", 605, "MIT", 69.2),
    PRESETS["accuracy"]: Published("general, for a GPU", 3526, "Apache-2.0", 82.5),
    PRESETS["phone"]: Published("small", 349, "Apache-2.0"),
    "ViT-B-32/openai": Published("general", 605, "Apache-2.0", 63.2),
    "ViT-B-16/openai": Published("as in papers", 598, "Apache-2.0", 68.3),
    "ViT-L-14/openai": Published("general", 1710, AS_ITS_CARD, 75.5),
    "timm:vit_small_patch14_dinov2.lvd142m@224": Published("general", 88, "apache-2.0"),
    "timm:vit_small_patch16_dinov3.lvd1689m": Published("general", 86, "dinov3-license"),
    "timm:convnext_tiny.in12k_ft_in1k": Published("general", 111, "apache-2.0"),
    "timm:mobilenetv4_conv_small.e2400_r224_in1k": Published("small", 10, "apache-2.0"),
    "timm:vit_large_patch16_dinov3.sat493m": Published("remote sensing", 1212, "dinov3-license"),
    "hf-hub:imageomics/bioclip": Published(
        "species", 598, "MIT", architecture="ViT-B-16", weights=PICKLED
    ),
    "hf-hub:imageomics/bioclip-2": Published(
        "species", 1710, "MIT", architecture="ViT-L-14", weights="not stated"
    ),
    BIOMED_CLIP: Published("medicine", 784, "MIT", weights=PICKLED),
}
READY = "ready"
FREE_LICENCES = ("mit", "apache-2.0")  # which allow commercial use without further terms


def caveat(name: str) -> str:
    """Return in a line what a small backbone of a package is, and a better one; "" of any other
    backbone."""
    purpose = getattr(load_package(name), "PURPOSE", "") if name in packaged_names() else ""
    if not purpose:
        return ""
    return f"backbone {name} is {purpose}; a real CLIP is far better: `--backbone laptop`"


def licence_of(name: str) -> str:
    """Return the licence of a backbone's weights, or what is known of it."""
    if name in packaged_names():
        return load_package(name).LICENCE
    if name.startswith(TIMM):
        from rmadapter.backbones.image_only import licence_of_timm  # takes torch

        stated = licence_of_timm(name)
        if stated:
            return f"{stated} (timm's table of weights)"
    if name in PUBLISHED:
        licence = PUBLISHED[name].licence
        return licence if licence == AS_ITS_CARD else f"{licence} (its card on the hub)"
    return "its publisher's, not known here: check where the backbone comes from"


def commercial_use(name: str) -> str:
    """Return whether the licence of a backbone's weights allows commercial use: "yes", "no", or
    "read it" where it has terms of its own or is not known here."""
    if name in OWN_PACKAGES:  # for research and teaching, as their licence says
        return "no"
    known = PUBLISHED.get(name)
    return "yes" if known and known.licence.lower() in FREE_LICENCES else "read it"


def on_disk(hub_cache: Path | None = None) -> list[str]:
    """Return the backbones that need no download: those of installed packages, and published ones
    of open_clip and timm; the default if there are none.

    Args:
        hub_cache: As for `listed`.
    """
    ready = [row["name"] for row in listed(hub_cache) if row["state"] == READY]
    return [name for name in ready if not name.startswith(HF_HUB)] or [POCKET_3]


def listed(hub_cache: Path | None = None) -> list[JsonObject]:
    """Return name, state, megabytes on disk (None if absent), folder and `commercial_use` of each
    backbone; `about` says more of a few.

    Args:
        hub_cache: Folder of the Hugging Face hub's cache, by default its library's.
    """
    cached = _cached(hub_cache)
    rows = _packaged()
    for name, repository in _repositories().items():
        place = cached.pop(repository, None)
        if place or name in PUBLISHED:
            rows.append(_row(name, place))
    rows += [_row(f"{HF_HUB}{repository}", place) for repository, place in cached.items()]
    return [{**row, "commercial": commercial_use(row["name"])} for row in rows]


def _repositories() -> dict[str, str]:
    """Return the repository on the hub of each known backbone of timm, and then of each published
    one of open_clip."""
    import open_clip

    names = [name for name in PUBLISHED if name.startswith(TIMM)]
    repositories = {name: f"timm/{name.removeprefix(TIMM).partition('@')[0]}" for name in names}
    for architecture, tag in open_clip.list_pretrained():
        repositories[f"{architecture}/{tag}"] = repository_of(architecture, tag)
    return repositories


def repository_of(architecture: str, tag: str) -> str:
    """Return the repository on the hub of weights that open_clip publishes, "" if there is none."""
    import open_clip

    location = open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "")
    return "/".join(location.rstrip("/").split("/")[:2])


def _row(name: str, place: Path | None) -> JsonObject:
    """Return what `listed` says of a backbone of the hub.

    Args:
        name: Name of the backbone; one of `PUBLISHED` if it is not on this disk.
        place: Its folder in the hub's cache.
    """
    known = PUBLISHED.get(name)
    state, megabytes, about = READY, None, ""
    if place:
        megabytes = _size(place)
    elif known:
        state = f"{known.megabytes:,} MB from the Hugging Face hub when first used"
    if known:
        encoder = "; image encoder without text, not tested here" * name.startswith(TIMM)
        shown = f"; published: {known.imagenet} % zero-shot on ImageNet" if known.imagenet else ""
        about = f"{known.use}{encoder}; licence: {known.licence}{shown}"
    folder = str(place) if place else ""
    return {"name": name, "state": state, "mb": megabytes, "folder": folder, "about": about}


def _packaged() -> list[JsonObject]:
    """Return the rows of the backbones of installed packages, and of our own if their package is
    absent."""
    rows: list[JsonObject] = []
    for name in packaged_names():
        package = load_package(name)
        place, state, megabytes = package.place(), READY, None
        if place.is_dir():
            megabytes = _size(place)
        else:
            state = f"made when first used: {package.MEGABYTES} MB to download"
        row = {"name": name, "state": state, "mb": megabytes, "folder": str(place)}
        rows.append({**row, "about": package.ABOUT})
    blank = {"state": f"not installed: {INSTALL}", "mb": None, "folder": "", "about": ""}
    rows += [{"name": name, **blank} for name in OWN_PACKAGES if name not in packaged_names()]
    return rows


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
    return round(sum(file.stat().st_size for file in files) / 1e6)
