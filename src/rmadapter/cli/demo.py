"""The verb that needs no data of the user's; slow imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.cli.options import Device, Json, Quiet, Seed, command

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run.")] = Path(
        "runs/demo"
    ),
    seed: Seed = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Adapt `pocket-3` to OpenMoji pictograms; needs no data.

    It trains what `fit --half base` takes by itself; the report shows what that gains and keeps.
    """
    from rmadapter.artifacts.summary import print_record

    first = 1 if seed is None else seed
    record = run_demo(out, first, command=command(), device=device or "auto")
    print_record(record, as_json, out)
    if not as_json:
        for text in record.notes:  # the licence, which --quiet does not silence
            print(text)
        print(f"report: {out / 'report.html'}")


def run_demo(
    out: Path, seed: int = 1, progress: bool = True, command: str = "", **settings: object
) -> Record:
    """Train on colour pictograms of the base classes; test base and novel classes, in colour and as
    black line art.

    Args:
        out: Folder of the run.
        seed: Seed for everything random.
        progress: Whether to show progress.
        command: Command that repeats the run.
        settings: Values that override the defaults.

    Raises:
        UserError: The demo's packages are missing.
    """
    from rmadapter.data.catalog.openmoji import ATTRIBUTION, load_openmoji
    from rmadapter.methods import DEFAULT
    from rmadapter.runs.fit import Origin, fit
    from rmadapter.runs.lab import Lab
    from rmadapter.runs.request import requested
    from rmadapter.settings import configured
    from rmadapter.task import Question

    line_art = "OpenMoji line art"
    flags = {"classes": "base", "shots": 16, "seed": seed, **settings}
    request = requested(DEFAULT, None, flags, None, data="OpenMoji")
    lab = Lab(request.machine, progress=progress)
    lab.add("OpenMoji", load_openmoji())
    lab.add(line_art, {"test": load_openmoji(style="black")["test"]})
    questions = (
        Question("base", classes="base"),
        Question("novel", classes="novel"),
        Question("line art, base classes", line_art, "base"),
        Question("line art, novel classes", line_art, "novel"),
    )
    task = configured(request.task, {"tests": questions})
    origin = Origin(command, (ATTRIBUTION,))
    return fit(task, request.method, out, lab, request.name, origin=origin)
