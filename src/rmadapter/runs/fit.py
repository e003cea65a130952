"""Do one task and keep its model, in a folder with its record and report or in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rmadapter.answers.held_out import describe_images
from rmadapter.artifacts.checkpoint import find_finished, save_run
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.page import write_run_page
from rmadapter.artifacts.predictions import (
    find_mistakes,
    predictions_of,
    write_mistakes,
    write_predictions,
)
from rmadapter.artifacts.record import HeldOut, Record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.value import BackboneChoice
from rmadapter.backbones.published import caveat
from rmadapter.data.fewshot import FewShot, half, read_split, save_split
from rmadapter.data.names import Label
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.backbones import prepare_backbone
from rmadapter.runs.features import with_means
from rmadapter.runs.folds import Folds
from rmadapter.runs.judge import enough, judge
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import Outcome, learn, learnt_from, run_key, run_task
from rmadapter.runs.unseen import BASELINES, Unseen, unseen
from rmadapter.support.files import parts
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import note
from rmadapter.task import Task
from rmadapter.training.cache import Cache
from rmadapter.training.contract import NO_PROMISES, Fitted, Method
from rmadapter.training.shots import Callback, Unfinished


@dataclass(frozen=True)
class Origin:
    """How a run came about, as its record says.

    Attributes:
        command: Command line that was given.
        notes: What a reader must know, after the notes of the run itself.
        columns: Columns of the table of images, as for `read_images`.
        crops: Whether boxes were read as images, as for `read_images`.
        backbones: How the backbone of the task was chosen.
    """

    command: str = ""
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    crops: bool = False
    backbones: BackboneChoice | None = None


def fit(
    task: Task,
    method: Method,
    out: Path,
    lab: Lab,
    name: str = "",
    *,
    folds: int | None = None,
    origin: Origin = Origin(),
) -> Record:
    """Do a task, and keep the model, the record and the report in a folder; resume a killed run,
    return a finished one.

    Args:
        task: What to learn from, and what to test.
        method: Method that is fitted to the shots.
        out: Folder of the run.
        lab: Lab that holds the data and the backbone.
        name: Name of the method, which `load_method` accepts.
        folds: Number of folds that calibrate a method which does not know what it answers about
            each shot without it, and judge if there are too few other images. None to hold a
            quarter out once; 0 for no judgement.
        origin: What the record says of how the run came about.

    Raises:
        UserError: `out` holds another run, another process is at work there, or nothing can be
            written there.
    """
    files = RunFolder(out)
    with exclusive(out):
        for leftover in parts(*files.activations.glob("*")):
            leftover.unlink()
        few, backbone = lab.draw(task), lab.backbone(task.backbone)
        training_key = run_key(task, method, name, lab.machine, backbone, few)
        key = training_key if folds is None else f"{training_key}-{folds}"
        record = find_finished(out, key)
        if record is not None:
            _check_finished(record, out, lab, few)
        else:
            run = _Run(task, few, lab, files, Unfinished(files.training, training_key), folds)
            record = run.do(method, name, key, origin)
        # what only an unfinished run needs: this one, or one that was killed here
        files.training.unlink(missing_ok=True)
        shutil.rmtree(files.activations, ignore_errors=True)
    return record


@dataclass(frozen=True)
class _Run:
    """A run of `fit` that is not finished."""

    task: Task
    few: FewShot
    lab: Lab
    files: RunFolder
    unfinished: Unfinished
    folds: int | None

    @property
    def judged(self) -> bool:
        """Whether the run is judged, on held-out images or by folds."""
        return self.folds != 0 and self.task.classes == "all" and not self.task.tests

    def do(self, method: Method, name: str, key: str, origin: Origin) -> Record:
        """Train, test, judge and save."""
        task, few, lab, files = self.task, self.few, self.lab, self.files
        train = half(few.train, task.classes)
        backbone = lab.backbone(task.backbone)
        few.read(backbone.preprocess, lab.progress)
        save_split(few, files.split)
        lab.work_in(files.activations)
        tests = lab.tests(task, few)
        judging = self.judged and not enough(tests, few.train)
        validation = self._validation(judging, method)
        count, temperature = len(validation), validation.temperature(method, name)
        lab.expect_training(count + 1, count + 1)
        outcome = run_task(
            task,
            method,
            lab,
            name,
            self.unfinished,
            BASELINES if self.judged and tests else None,
            temperature,
        )
        outcome = outcome.with_facts(backbones=origin.backbones)
        fitted = with_means(outcome.fitted, train, lab.train_cache(task))
        found = None
        if self.folds != 0:
            found = unseen(fitted, name, validation, train, lab.train_cache(task), task.seed)
        outcome = _with_answers(replace(outcome, fitted=fitted), found)
        if self.judged:
            outcome = judge(task, method, lab, outcome, few, found)
        promised = _promised(outcome) if self.judged else []
        no_images = _no_images(outcome.record, self.folds)
        outcome = outcome.with_facts(
            key=key,
            command=origin.command,
            columns=dict(origin.columns),
            crops=origin.crops,
            notes=(
                *filter(None, [caveat(backbone.name)]),
                *outcome.record.notes,
                *(_used(few) if task.classes == "all" else []),
                *promised,
                *origin.notes,
                *no_images,
            ),
        )
        save_split(few, files.split, _others(outcome, task, method, few, lab))
        _save(outcome, files, train, lab.test_cache(task))
        return outcome.record

    def _validation(self, judging: bool, method: Method) -> Folds:
        """Return folds, none if none are wanted, or the method needs none.

        Args:
            judging: Whether the run is judged by them.
            method: Method of the run.
        """
        count = 0 if method.traits.leaves_out else self.folds
        folds = Folds.make(self.task, self.few, self.lab, count)
        if folds and judging:
            note(f"no full test split: judging {folds.how}")
        return folds


class Learnt(NamedTuple):
    """A fitted model and what was chosen for it.

    Attributes:
        fitted: The model.
        name: Name of its method.
        backbones: How the backbone was chosen; None where it was named.
    """

    fitted: Fitted
    name: str
    backbones: BackboneChoice | None


def fit_images(
    request: Request,
    images: ImageSet,
    class_weight: Mapping[Label, float] | str | None,
    progress: bool,
    callbacks: Sequence[Callback] = (),
    keep_features: bool = False,
) -> Learnt:
    """Do a task on images in memory and keep nothing but the model, which is calibrated by answers
    about the shots.

    Args:
        request: What to do.
        images: Images to draw from.
        class_weight: Weights of a natural draw, whose counts are known only once it is drawn.
        progress: Whether to show bars.
        callbacks: Functions that follow the training.
        keep_features: As for `Lab`.

    Raises:
        UserError: As for `prepare_backbone`, `Lab.draw` and the method.
    """
    lab = Lab(request.machine, progress=progress, keep_features=keep_features)
    lab.add(request.task.data, {"train": images, "test": images.subset([])})
    request, lab, backbones = prepare_backbone(request, lab)
    task, method, name = request.task, request.method, request.name
    few = lab.draw(task)
    if class_weight is not None:
        few = few.weighed(class_weight)
    train = half(few.train, task.classes)
    folds = Folds.make(task, few, lab, 0 if method.traits.leaves_out else None)
    count, temperature = len(folds), folds.temperature(method, name)
    lab.expect_training(count + 1, count + 1)
    fitted = learn(method, train, task, few, lab, callbacks=tuple(callbacks))
    fitted = replace(fitted, temperature=temperature or 1.0)
    fitted = with_means(fitted, train, lab.train_cache(task))
    found = unseen(fitted, name, folds, train, lab.train_cache(task), task.seed)
    if found and found.answers:
        fitted = found.answers.calibrate(fitted, "folds", task.seed)
    fitted = fitted.fitted_to(lab.train_cache(task).features(train)[0])
    return Learnt(fitted, name, backbones)


def _with_answers(outcome: Outcome, found: Unseen | None) -> Outcome:
    """Return a run with what its model answers about shots that it did not see, if anything."""
    if not found or not found.answers:
        return outcome
    answers = found.answers
    fitted = answers.calibrate(outcome.fitted, "folds", outcome.record.task.seed)
    held = HeldOut.of(answers.table, answers.labels, answers.groups)
    return replace(outcome.with_facts(held_out=held), fitted=fitted)


def _others(outcome: Outcome, task: Task, method: Method, few: FewShot, lab: Lab) -> set[bytes]:
    """Return the contents of images that were not drawn, but calibrated the model or trained it
    without labels."""
    calibration = outcome.fitted.calibration
    parts = [learnt_from(method, few.train, task, few, lab)] if method.traits.unlabelled else []
    if calibration and calibration.source == "held out":
        parts.append(outcome.evaluations[0].images)
    drawn = {content for part in few.drawn for content in part.contents}
    return {content for part in parts for content in part.contents} - drawn


def _check_finished(record: Record, out: Path, lab: Lab, few: FewShot) -> None:
    """Raise UserError if a finished run was judged on other images than those of now."""
    if read_model(RunFolder(out).model).parents != few.train.parents:
        raise UserError(
            f"{out} was judged with another taxonomy, or none: choose another --out, or judge it "
            "with `rmadapter eval --taxonomy`"
        )
    others = record.other_images(lab.tests(record.task, few))
    if others:
        raise UserError(
            f"{out} was judged on different images ({others[0]} classes) from the current ones: "
            "choose another --out, or evaluate it on them with `rmadapter eval`"
        )


def _used(few: FewShot) -> list[str]:
    """Return a note that says how many images were drawn, of how many."""
    drawn = len(few.train)
    if not len(few.heldout):
        return [f"trained on all {drawn:,} training images"]
    return [f"trained on {drawn:,} of {drawn + len(few.heldout):,} images: --shots 0 takes all"]


def _no_images(record: Record, folds: int | None) -> list[str]:
    """Return a note if there was nothing to evaluate on."""
    if record.scores:
        return []
    more = "leave out --folds 0, " if folds == 0 else ""
    return [
        f"no image was left to evaluate on: {more}add a test split, or more than one image per "
        "class"
    ]


def _promised(outcome: Outcome) -> list[str]:
    """Return a note that says how small an error a run can promise; none if it cannot be known.

    Args:
        outcome: The run.
    """
    if outcome.fitted.remembers:
        return [NO_PROMISES]
    calibration = outcome.fitted.calibration
    if not calibration:
        return []
    by, least = describe_images(**calibration.facts), f"{100 * calibration.least:g}"
    if calibration.broken:
        errors = ", ".join(f"{100 * error:g} %" for error in calibration.broken)
        return [
            f"an error of {errors}, promised by {by}, is not kept on the images that judge this "
            "run: do not count on `predict --error` for it"
        ]
    return [f"an error of {least} % or more can be promised, by {by}: predict --error {least}%"]


def _save(outcome: Outcome, files: RunFolder, train: ImageSet, cache: Cache) -> None:
    """Write the files of a run to its folder.

    Args:
        outcome: The run.
        files: Where to write.
        train: The shots.
        cache: Cache of images without augmentation.
    """
    record, fitted, evaluations = outcome.record, outcome.fitted, outcome.evaluations
    rows = predictions_of(record, evaluations)
    write_predictions(files.predictions, rows)
    wrong = find_mistakes(fitted, train, evaluations, rows, cache)
    write_mistakes(files.mistakes, wrong)
    counts = read_split(files.split).counts(record.task.classes)
    history = fitted.trained.history
    write_run_page(files.page, record, rows, history, wrong=wrong, counts=counts)
    save_run(files.path, fitted, record.method.name, record, train.written, train.parents)


def join_fit(task: Task, method: Method, out: Path, lab: Lab, name: str) -> None:
    """Run `fit` in all but the first process: take part in every training that the first one
    announces."""
    assert lab.team is not None
    few, backbone = lab.draw(task), lab.backbone(task.backbone)
    images, files = half(few.train, task.classes), RunFolder(out)
    lab.work_in(files.activations)
    key = run_key(task, method, name, lab.machine, backbone, few)
    lab.train_cache(task).expect_parts(images)
    for rows, saved in lab.team.trainings(key):
        unfinished = Unfinished(files.training, key) if saved else None
        learn(method, images.subset(rows), task, few, lab, unfinished)
