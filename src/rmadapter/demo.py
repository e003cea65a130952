"""The demo: adapt the offline backbone to OpenMoji pictograms, then ask it about what it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmadapter.config import Config
from rmadapter.data.fewshot import half
from rmadapter.data.openmoji import ATTRIBUTION, load_openmoji
from rmadapter.run import fit


def demo(out: Path, seed: int = 1, progress: bool = True, **fields: Any) -> dict[str, Any]:
    """Train on the base classes' colour pictograms; evaluate base, novel and, as a shifted domain, black line art.

    fields: of `Config`, in place of the defaults. Returns the record in run.json. Raises UserError when the demo's
    packages are missing.
    """
    config = Config.make({"classes": "base", "seed": seed, **fields})
    lines = load_openmoji(style="black")["test"]
    extra = {f"line art, {which} classes": half(lines, which) for which in ("base", "novel")}
    return fit(load_openmoji(), config, out, extra=extra, notes=(ATTRIBUTION,), progress=progress, data="OpenMoji")
