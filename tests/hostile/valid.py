"""Valid inputs to damage: a backbone, trained runs, records and settings, made once a process."""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.models import write_fixed_backbone

METHODS = (
    "rmadapter", "coop", "maple", "tip-adapter-f", "clip-lora", "linear-probe", "mmrl",
    "clip-adapter",
)  # fmt: skip
QUICK = {
    "epochs": 1, "iterations": 2, "rank": 2, "first_block": 1, "layer": 1, "n_ctx": 2, "depth": 2,
    "tokens": 2,
}  # fmt: skip


@cache
def place() -> Path:
    """Return a folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def backbone() -> Any:
    from rmadapter.backbones import load_backbone

    return load_backbone(str(write_fixed_backbone(place() / "backbone")))


@cache
def images() -> Any:
    from tests.helpers.shots import noisy_colors

    return noisy_colors(3, size=16)


@cache
def run(name: str) -> Path:
    """Fit a method and return the run's folder."""
    from rmadapter.runs.fit import fit
    from rmadapter.runs.lab import Lab
    from rmadapter.runs.request import Request
    from rmadapter.settings import settings_of

    own = settings_of(Request.make({}, name).method)
    values = {key: QUICK[key] for key in QUICK if key in own and (key != "iterations" or own[key])}
    common = {"shots": 2, "device": "cpu", "backbone": backbone().name}
    request = Request.make({**values, **common}, name, data="colors")
    lab = Lab(request.machine, progress=False)
    lab.add("colors", {"train": images(), "test": images().subset(range(4))})
    with contextlib.redirect_stderr(io.StringIO()):
        fit(request.task, request.method, place() / "runs" / name, lab, name)
    return place() / "runs" / name


def copy_folder(source: Path, folder: Path, leaving: str) -> Path:
    """Copy a folder without one file."""
    for path in source.rglob("*"):
        target = folder / path.relative_to(source)
        if path.is_file() and path != source / leaving:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # a link out of the folder would be refused
    (folder / leaving).parent.mkdir(parents=True, exist_ok=True)
    return folder
