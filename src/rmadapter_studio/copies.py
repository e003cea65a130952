"""Copies of runs, the server's own and those that a stranger made.

A run names images and files; one from a stranger must name none but those that came with it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rmadapter import UserError
from rmadapter.artifacts import RunFolder, read_model, read_record
from rmadapter_studio.images import IMAGES, MAX_CLASSES

MAX_WEIGHT_BYTES = 300_000_000
MAX_NAME_CHARACTERS = 1_000  # of a class, with its descriptions
MAX_PROMPT_CHARACTERS = 200  # of a template
MAX_ANSWER_BYTES = 10_000_000  # of predictions.csv, which takes 25 times as much memory to read


def copy_run(run: Path, out: Path, untrusted: bool = False) -> None:
    """Copy the files of a run into a new folder.

    Args:
        run: Folder of the run.
        out: New folder.
        untrusted: Whether to `confine` the copy.

    Raises:
        UserError: An untrusted run is damaged.
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
    for what, has, most in (
        ("classes", max(len(model.classes), len(model.labels)), MAX_CLASSES),
        ("classes with parents, and parents", len(model.parents), 2 * MAX_CLASSES),
        (
            "characters of a class",
            max(map(len, (*model.classes, *model.names))),
            MAX_NAME_CHARACTERS,
        ),
        ("characters of a prompt template", max(map(len, model.templates)), MAX_PROMPT_CHARACTERS),
        ("bytes of weights", files.weights.stat().st_size, MAX_WEIGHT_BYTES),
    ):
        if has > most:
            raise UserError(f"{run}: this page takes at most {most:,} {what}, not {has:,}")
    answers = files.predictions
    if answers.is_file() and answers.stat().st_size > MAX_ANSWER_BYTES:
        raise UserError(
            f"{answers}: larger than the {MAX_ANSWER_BYTES:,} bytes that this page takes"
        )
    if not files.record.is_file():
        return
    record = read_record(files.record)
    tests = tuple(replace(test, data="") for test in record.task.tests)
    task = replace(record.task, data=IMAGES, tests=tests)
    scores = tuple(score.model_copy(update={"data": ""}) for score in record.scores)
    update = {"task": task, "scores": scores, "crops": False}
    record.model_copy(update=update).save(files.record)
    files.write_sums()
