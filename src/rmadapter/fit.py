"""One task whose model is kept, with its record and report; and a kept one, asked again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rmadapter.cache import Cache
from rmadapter.checkpoint import drawn, finished, save_run
from rmadapter.data.fewshot import few_shot, half, save_split, split_digest
from rmadapter.errors import UserError
from rmadapter.method import Fitted, Method, Unfinished
from rmadapter.page import write_page
from rmadapter.record import Evaluation, Record, Score
from rmadapter.run import Lab, Splits, evaluate, run_key, run_task
from rmadapter.task import Half, Question, Task

STATE = "training.safetensors"


def fit(
    task: Task, method: Method, out: Path, lab: Lab, name: str = "", command: str = "", notes: tuple[str, ...] = ()
) -> Record:
    """Do a task, and keep the model, the record and the report in a folder.

    A killed run goes on when called again; a finished one is returned. Raises UserError when `out` holds another run
    or cannot be written to.
    """
    _check_folder(out)
    few, backbone = lab.draw(task), lab.backbone(task.backbone)
    key = run_key(task, method, name, lab.machine, backbone.digest, split_digest(few))
    if (record := finished(out, key)) is not None:
        return record
    save_split(few, out / "split.json")
    lab.folder = out / ".activations"
    done = run_task(task, method, lab, name, Unfinished(out / STATE, key))
    record = done.record.model_copy(update={"command": command, "notes": (*done.record.notes, *notes)})
    write_page(out / "report.html", record, done.evaluations, done.fitted.trained.history)
    save_run(out, done.fitted, name, record)
    _clean(out)
    return record


def evaluate_saved(
    folder: Path, fitted: Fitted, splits: Splits, split: str, classes: Half, cache: Cache
) -> tuple[list[Evaluation], list[Score]]:
    """Ask a saved run about one split of a data set; the class names are the data set's own.

    split: as in the data, or "heldout": the train images that the run did not see. Raises UserError for a split that
    is not there.
    """
    if split != "heldout" and split not in splits:
        there = ", ".join([*splits, "heldout"])
        raise UserError(f"there is no {split} split in the data: give --split one of {there}")
    if split == "heldout":
        shots, seed, digest = drawn(folder)
        few = few_shot(splits, shots, seed)
        if split_digest(few) != digest:
            raise UserError(f"{folder} was trained on other images: --split heldout needs the data it was fitted to")
    images = half(few.heldout if split == "heldout" else splits[split], classes)
    if not len(images):
        raise UserError(f"{split}: there are no images to evaluate")
    return evaluate(fitted, [(Question(classes, classes=classes), images, split == "test")], cache)


def _check_folder(out: Path) -> None:
    """Raises UserError unless files can be written to the folder; better now than after the training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(
            f"{out}: no folder to write a run to ({error.strerror or error}): choose another --out"
        ) from None


def _clean(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    (out / STATE).unlink(missing_ok=True)
    shutil.rmtree(out / ".activations", ignore_errors=True)
