"""Files in and out: copies of runs, including untrusted ones, and zips."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.deploy.app.images import IMAGES, MOST_CLASSES
from rmadapter.errors import UserError
from rmadapter.support.files import atomic, last_part

MOST_TEMPLATES = 100  # of prompts
MOST_ANSWERS = 10_000_000  # bytes of predictions.csv, which takes 25 times as much memory to read


def copy_run(run: Path, out: Path, foreign: bool = False) -> None:
    """Copy the files of a run into a new folder. foreign: it is untrusted, so `keep_within` is
    applied.

    Raises UserError for a foreign run that is damaged.
    """
    out.mkdir(parents=True)
    files = RunFolder(run)
    for file in (*files.saved, files.sums, run / "classnames.json"):
        if file.is_file() and not (foreign and file == files.images):
            shutil.copyfile(file, out / file.name)
    if foreign:
        keep_within(out)


@contextmanager
def bare_paths(run: Path, backbone: str) -> Iterator[None]:
    """Take the paths of this machine, of a run and a backbone, out of what a visitor is told."""
    try:
        yield
    except UserError as error:
        told = str(error).replace(f"{run}{os.sep}", "").replace(f"{run}", "the run")
        raise UserError(told.replace(backbone, last_part(backbone))) from None


def keep_within(run: Path) -> None:
    """Let a run name only images that came with it: the page would show any others of this machine.

    Raises UserError for a damaged run, and for one that would keep the server busy.
    """
    files = RunFolder(run)
    files.check_sums()
    model = read_model(files.model)
    if (
        max(len(model.classes), len(model.labels)) > MOST_CLASSES
        or len(model.templates) > MOST_TEMPLATES
    ):
        raise UserError(
            f"{run}: this page takes at most {MOST_CLASSES:,} classes and {MOST_TEMPLATES} prompt templates"
        )
    if files.predictions.is_file() and files.predictions.stat().st_size > MOST_ANSWERS:
        raise UserError(
            f"{files.predictions}: larger than the {MOST_ANSWERS:,} bytes that this page takes"
        )
    if not files.record.is_file():
        return
    record = read_record(files.record)
    tests = tuple(replace(test, data="") for test in record.task.tests)
    found = {
        "task": replace(record.task, data=IMAGES, tests=tests),
        "scores": tuple(score.model_copy(update={"data": ""}) for score in record.scores),
    }
    record.model_copy(update={**found, "crops": False}).save(files.record)
    files.write_sums()


def pack(path: Path, folder: Path, name: str, more: Mapping[str, Path]) -> None:
    """Write a zip, atomically, of a folder's files below `name`, and of more files by their names
    in the zip."""
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    inside = {f"{name}/{file.name}": file for file in files} | dict(more)
    with (
        atomic(path, sync=False) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for called, file in sorted(inside.items()):
            archive.write(file, called)
