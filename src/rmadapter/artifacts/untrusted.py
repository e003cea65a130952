"""Copy a run, also one that somebody else sent.

A run names images and files; a run from a stranger must name none but those that came with it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.errors import UserError

UPLOADED = "images.csv"  # list of the images that come with an untrusted run
MOST_CLASSES = 1_000
MOST_TEMPLATES = 100  # of prompts
MOST_ANSWERS = 10_000_000  # bytes of predictions.csv, which takes 25 times as much memory to read


def copy_run(run: Path, out: Path, untrusted: bool = False) -> None:
    """Copy the files of a run into a new folder. untrusted: also `confine` the copy.

    Raises UserError for an untrusted run that is damaged.
    """
    out.mkdir(parents=True)
    files = RunFolder(run)
    for file in (*files.saved, files.sums, run / "classnames.json"):
        if file.is_file() and not (untrusted and file == files.images):
            shutil.copyfile(file, out / file.name)
    if untrusted:
        confine(out)


def confine(run: Path) -> None:
    """Let a run name only images that came with it: a page of it would show any others of this
    machine.

    Raises UserError for a damaged run, and for one that would keep a server busy.
    """
    files = RunFolder(run)
    files.check_sums()
    model = read_model(files.model)
    classes = max(len(model.classes), len(model.labels))
    if classes > MOST_CLASSES or len(model.templates) > MOST_TEMPLATES:
        raise UserError(
            f"{run}: this page takes at most {MOST_CLASSES:,} classes and {MOST_TEMPLATES} prompt "
            "templates"
        )
    answers = files.predictions
    if answers.is_file() and answers.stat().st_size > MOST_ANSWERS:
        raise UserError(f"{answers}: larger than the {MOST_ANSWERS:,} bytes that this page takes")
    if not files.record.is_file():
        return
    record = read_record(files.record)
    tests = tuple(replace(test, data="") for test in record.task.tests)
    task = replace(record.task, data=UPLOADED, tests=tests)
    scores = tuple(score.model_copy(update={"data": ""}) for score in record.scores)
    update = {"task": task, "scores": scores, "crops": False}
    record.model_copy(update=update).save(files.record)
    files.write_sums()
