"""Do one task and keep its model, record and report; evaluate a kept model."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

from rmadapter.artifacts.checkpoint import (
    FILES,
    HISTORY,
    PAGE,
    RECORD,
    Saved,
    drawn,
    finished,
    save_run,
)
from rmadapter.artifacts.evaluation import Evaluation
from rmadapter.artifacts.mistakes import WHY, mistakes, read_mistakes, write_mistakes
from rmadapter.artifacts.page import thumbnails_of
from rmadapter.artifacts.predictions import (
    PREDICTIONS,
    SPLIT,
    predictions,
    read_predictions,
    write_predictions,
)
from rmadapter.artifacts.record import Record, Score, Split, read_record
from rmadapter.artifacts.run_page import write_run_page
from rmadapter.data.fewshot import few_shot, half, has_digest, read_split, save_split
from rmadapter.data.formats.sources import images_root
from rmadapter.data.names import given_names
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.auto import choose_once
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.judge import BESIDE, enough, judge
from rmadapter.runs.run import Lab, Outcome, Splits, evaluate, learn, run_key, run_task
from rmadapter.support.checksums import check_sums, write_sums
from rmadapter.support.distributed import requests
from rmadapter.support.files import ACTIVATIONS, parts, read_text
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import note
from rmadapter.task import Half, Question, Task
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Method
from rmadapter.training.state import Unfinished

STATE = "training.safetensors"
NOTHING = "no image was left to evaluate on: {}add a test split, or more than one image per class"


def fit(
    task: Task, method: Method, out: Path, lab: Lab, name: str = "", command: str = "",
    notes: tuple[str, ...] = (), folds: int | None = None, columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> Record:  # fmt: skip
    """Do a task, and keep the model, the record and the report in a folder.

    folds: of the cross-validation that chooses, calibrates, and
    judges a run on all classes if there are too few other images; None for 4 if choosing or judging
    needs them, 0 for no judgement. columns, crops: how the task's images were read, as in
    `read_images`. A killed run is resumed when called again; a finished one is returned. Raises
    UserError if `out` holds another run, another process is at work there, or nothing can be
    written there.
    """
    with exclusive(out):
        for left in parts(out, *out.glob(f"{ACTIVATIONS}/*")):
            left.unlink()
        few, backbone = lab.draw(task), lab.backbone(task.backbone)
        key = run_key(task, method, name, lab.machine, backbone, few)
        unfinished, key = Unfinished(out / STATE, key), key if folds is None else f"{key}-{folds}"
        record = finished(out, key)
        if record and (others := record.other_images(lab.tests(task))):
            raise UserError(
                f"{out} was judged on different images ({others[0]} classes) from the current ones: choose "
                "another --out, or evaluate it on them with `rmadapter eval`"
            )
        if record is None:
            few.read(backbone.preprocess, lab.progress)
            save_split(few, out / SPLIT)
            lab.folder = out / ACTIVATIONS
            done = _done(task, method, lab, name, unfinished, folds)
            none = NOTHING.format("leave out --folds 0, " if folds == 0 else "")
            notes = (*done.record.notes, *notes, *(() if done.record.scores else (none,)))
            found = {
                "key": key,
                "command": command,
                "notes": notes,
                "columns": dict(columns or {}),
                "crops": crops,
            }
            record = done.record.model_copy(update=found)
            tested = predictions(record, done.evaluations)
            write_predictions(out / PREDICTIONS, tested)
            train = half(few.train, task.classes)
            wrong = mistakes(done.fitted, train, done.evaluations, tested, lab.test_cache(task))
            write_mistakes(out / WHY, wrong)
            write_run_page(out / PAGE, record, tested, done.fitted.trained.history, wrong=wrong)
            save_run(out, done.fitted, record.method.name, record, train.written)
        # Only an unfinished run needs these: this one, or one that was killed here.
        (out / STATE).unlink(missing_ok=True)
        shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)
    return record


def help_fit(task: Task, method: Method, out: Path, lab: Lab, name: str) -> None:
    """The part of `fit` in all but the first process: take part in every training that the first
    one begins."""
    few, backbone = lab.draw(task), lab.backbone(task.backbone)
    images, lab.folder = half(few.train, task.classes), out / ACTIVATIONS
    key = run_key(task, method, name, lab.machine, backbone, few)
    lab.train_cache(task).expect_parts(images)
    for rows, kept in requests(key):
        learn(
            method, images.subset(rows), task, lab, Unfinished(out / STATE, key) if kept else None
        )


def page_again(folder: Path) -> Path:
    """Write the page of a finished run again from its folder. Images that are gone from the data
    are taken from the earlier page.

    Raises UserError for a folder without a run of this version, or with a damaged one.
    """
    with exclusive(folder):
        check_sums(folder, [RECORD])
        record, page = read_record(folder / RECORD), folder / PAGE
        found, history = read_predictions(folder, record), _history(folder / HISTORY)
        root = images_root(record.task.data, record.crops)
        wrong = read_mistakes(folder / WHY, found[0], root) if found else []
        thumbnails = thumbnails_of(page)
        write_sums(folder, set(FILES) - {PAGE})  # these fit the folder even if this is killed
        write_run_page(page, record, found, history, thumbnails, wrong)
        write_sums(folder, FILES)
    return page


def _history(path: Path) -> list[dict[str, float]]:
    """The loss terms of every step, as `save_run` writes them. Raises UserError for a damaged file."""
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(read_text(path, "readable CSV").splitlines()))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the losses of a run ({error})") from None


def _done(
    task: Task,
    method: Method,
    lab: Lab,
    name: str,
    unfinished: Unfinished,
    count: int | None,
) -> Outcome:
    """Choose the method, run, calibrate and judge, as far as wanted and possible. count: `folds` of
    `fit`."""
    choice = None
    judged = count != 0 and task.classes == "all" and not task.tests
    judging = judged and not enough(lab, task)
    choices = method.choices(half(lab.draw(task).train, task.classes).labels)
    needed = count or judging or choices
    folds = Folds.make(task, lab, count or FOLDS) if needed else None
    if folds and judging:
        images = len(folds.images)
        note(
            f"no test split: judging by {len(folds)}-fold cross-validation of the {images:,} training images"
        )
    if folds is not None and choices:
        file = f"choice-{unfinished.key[:24]}-{len(folds)}.json"
        choice = choose_once(folds, choices, unfinished.path.parent / ACTIVATIONS / file)
        method, name = choices.methods[choice.chosen], choice.chosen
    temperature = folds.temperature(method, name) if folds else None
    done = run_task(task, method, lab, name, unfinished, BESIDE if judged else None, temperature)
    done = replace(done, record=done.record.model_copy(update={"choice": choice}))
    return judge(task, method, lab, done, folds) if judged else done


def known_names(folder: Path, saved: Saved) -> dict[str, str]:
    """The prompt names that do not follow from the labels of a saved run, also of the half that it
    was not fitted to, as `read_images` takes them."""
    split = folder / SPLIT
    if not split.is_file():
        return saved.given
    found = read_split(split)
    return {**given_names(found.written, found.classes), **saved.given}


def trained_on(folder: Path, splits: Splits, split: str, images: ImageSet) -> int:
    """How many of some images of a split a saved run has learnt from; 0 if it was fitted to another
    data set."""
    if split in ("test", "heldout"):  # what is drawn is in neither
        return 0
    try:
        (shots, seed, digest), which = drawn(folder), read_record(folder / RECORD).task.classes
        few = few_shot(splits, shots, seed)
    except UserError:
        return 0
    parts = (
        [half(part, which).images for part in (few.train, few.val) if part]
        if has_digest(few, digest)
        else []
    )
    learnt = {*chain(*parts)}
    return sum(image in learnt for image in images.images)


def evaluate_saved(
    folder: Path, fitted: Fitted, splits: Splits, split: str, classes: Half, cache: Cache
) -> tuple[list[Evaluation], list[Score]]:
    """Evaluate a saved run on one split of a data set, with the data set's class names.

    split: of the data, or "heldout": the train images that the run did not see. Raises UserError
    for a split that is missing or empty, and for "heldout" if the method saw these images or was
    fitted to other data.
    """
    if split != "heldout" and split not in splits:
        there = ", ".join([*splits, "heldout"])
        raise UserError(f"the data has no {split} split: give --split one of {there}")
    if split == "heldout":
        if fitted.method.traits.unlabelled:
            raise UserError(
                f"{fitted.method.title} has seen the images that were not drawn: give --split test"
            )
        shots, seed, digest = drawn(folder)
        few = few_shot(splits, shots, seed)
        if not has_digest(few, digest):
            raise UserError(
                f"{folder} was trained on different images: --split heldout needs the data it was fitted to"
            )
    images = half(few.apart if split == "heldout" else splits[split], classes)
    if not len(images):
        undrawn = ": every train image was drawn or shares a group with one; `rmadapter report` shows what `fit` found"
        more = undrawn if split == "heldout" else ""
        raise UserError(f"{split}: there are no images to evaluate on{more}")
    for text in few.akin if split == "heldout" else ():
        note(text)
    if known := trained_on(folder, splits, split, images):
        note(
            f"{known} of these {len(images)} images were trained on: this accuracy says little about new ones"
        )
    seed = drawn(folder)[1] if fitted.remembers and (folder / RECORD).is_file() else 1
    named = cast(Split, "held out" if split == "heldout" else split)
    return evaluate(fitted, [(Question(classes, classes=classes), images, named)], cache, seed=seed)
