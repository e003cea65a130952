"""The demo: adapt the offline backbone to OpenMoji pictograms, then ask it about what it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record
from rmadapter.data.catalog.openmoji import ATTRIBUTION, load_openmoji
from rmadapter.runs.fit import fit
from rmadapter.runs.request import Request
from rmadapter.runs.run import Lab
from rmadapter.settings import configured
from rmadapter.task import Question

SHIFTED = "OpenMoji line art"
ASKED = (
    Question("base", classes="base"),
    Question("novel", classes="novel"),
    Question("line art, base classes", SHIFTED, "base"),
    Question("line art, novel classes", SHIFTED, "novel"),
)


def demo(
    out: Path, seed: int = 1, progress: bool = True, command: str = "", **settings: Any
) -> Record:
    """Train on the base classes' colour pictograms; evaluate base, novel and, as a shifted domain,
    black line art.

    command: that repeats it. settings: override the defaults. Raises UserError if the demo's
    packages are missing.
    """
    wanted = Request.make({"classes": "base", "seed": seed, **settings}, data="OpenMoji")
    lab = Lab(wanted.machine, progress=progress)
    lab.add("OpenMoji", load_openmoji())
    lab.add(SHIFTED, {"test": load_openmoji(style="black")["test"]})
    task = configured(wanted.task, {"tests": ASKED})
    return fit(task, wanted.method, out, lab, wanted.name, command, (ATTRIBUTION,))
