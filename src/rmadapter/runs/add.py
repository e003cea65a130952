"""Extend a run by class names or by more images, into a new folder; the old one stays unchanged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.checkpoint import Saved, save
from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder, check_no_model
from rmadapter.backbones import Backbone
from rmadapter.backbones.load import check_trusted
from rmadapter.data.decode import content
from rmadapter.data.fewshot import VAL_SHOTS, read_split, sample_shots
from rmadapter.data.formats.base import Listing, Row, Rows
from rmadapter.data.formats.registry import Located, locate
from rmadapter.data.formats.tables import table_text
from rmadapter.data.label_files import with_parents
from rmadapter.data.names import (
    CLASSNAMES,
    beside_splits,
    classnames_json,
    key,
    nfc,
    prompt_names,
)
from rmadapter.data.read import ImageSet, image_errors, read_images
from rmadapter.errors import UserError
from rmadapter.methods import DEFAULT, load_method, need_text
from rmadapter.methods.uses import backbones_in
from rmadapter.prompts import prompts_each
from rmadapter.runs.fit import Origin, fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request, read_config
from rmadapter.settings import configured, settings_of
from rmadapter.support.files import user_path, write_json, write_text
from rmadapter.support.locks import exclusive
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Known, NotApplicable


def add_names(saved: Saved, names: Sequence[str], out: Path) -> tuple[str, ...]:
    """Save a model that also scores further classes, by name alone; nothing is trained.

    Args:
        saved: The model.
        names: Names of the further classes.
        out: Folder of the new model.

    Returns:
        The labels of the new model.

    Raises:
        UserError: The model already has a name, or it is a parent in its taxonomy; the method
            cannot take classes by name; or `out` already holds a model.
    """
    need_text(saved.fitted.backbone, "a class without images")
    labels = [
        label if isinstance(label, str) else name
        for label, name in zip(saved.labels, saved.names, strict=True)
    ]
    known = {nfc(label): name for label, name in zip(labels, saved.names, strict=True)}
    prompts = prompt_names([*labels, *names], known)
    try:
        saved.fitted.score(tuple(prompts.values()))
    except NotApplicable as error:
        raise UserError(
            f"{error}; `rmadapter add RUN FOLDER` trains it again with images of the new classes, "
            f"and `fit --method {DEFAULT}` makes a model that takes names alone"
        ) from None
    Taxonomy.of(saved.parents, prompts)
    check_no_model(out)
    names = tuple(prompts.values())
    save(out, saved.fitted, saved.name, tuple(prompts), names, parents=saved.parents)
    return tuple(prompts)


def classify_by_names(backbone: Backbone, labels: Sequence[str], out: Path) -> None:
    """Save a zero-shot classifier of classes by their names alone.

    Args:
        backbone: Backbone with a text encoder.
        labels: Classes as the user writes them.
        out: Folder for the model.

    Raises:
        UserError: Equal classes, or as `save`.
    """
    names = prompt_names(labels)
    known = Known(tuple(names.values()), TEMPLATES)
    fitted = load_method("zero-shot").restore(backbone, known, {})
    save(out, fitted, "zero-shot", tuple(names), known.classes)


def can_add_names(saved: Saved) -> bool:
    """Return whether `add_names` can add a class to a model, by asking for one that it lacks.

    Raises:
        UserError: The model has more prompts than are allowed.
    """
    prompts_each(saved.names, saved.fitted.known.templates)
    new = next(name for name in map("class {}".format, count()) if name not in saved.names)
    try:
        saved.fitted.score((*saved.names, new))
    except (NotApplicable, UserError):
        return False
    return True


@dataclass(frozen=True)
class NewImages:
    """Images of old and new classes that a run is extended by.

    Attributes:
        data: The data; its option `outside` also counts for the run's own data.
        shots: Images that are drawn of each class; None for as many as for the run.
        skip_bad: Whether unreadable images are left out, also of the run's own.
    """

    data: Located
    shots: int | None = None
    skip_bad: bool = False


def add_images(
    run: Path,
    saved: Saved,
    images: NewImages,
    out: Path,
    old: Path | None = None,
    command: str = "",
) -> Record:
    """Train again on the images that a run was trained on plus new ones, and evaluate again.

    The test split of the new data, or what was not drawn, joins the images that the run was tested
    on; without a test split of all classes, the run is judged as `fit` judges one on undrawn
    images.

    Args:
        run: Folder of the run.
        saved: Its model.
        images: The new images.
        out: Folder of the new run.
        old: Where the run's own data is now.
        command: Command line that was given.

    Raises:
        UserError: The old data is missing or has changed, a class would occur twice, or `out` holds
            another run.
    """
    if not RunFolder(run).record.is_file():
        raise UserError(
            f"{run}: a model saved on its own does not record its training images; give a run of "
            "`fit`"
        )
    record = read_record(RunFolder(run).record)
    data = images.data.path
    shots = record.task.shots if images.shots is None else images.shots
    own = _data_of(run, record, old)
    outside = images.data.options.outside
    listing = locate(own, record.columns, record.crops, outside).read()
    added = images.data.read()
    if images.skip_bad:
        listing, added = _readable(listing), _readable(added)
    known = {key(str(label)): str(label) for label in saved.labels}
    kept = _images_of_run(run, known, listing)
    added_splits = _with_labels(added.splits, data, known)
    splits = _extended(kept, added_splits, shots, random.Random(record.task.seed), data)
    name, values = read_config(RunFolder(run).config, (saved.name,))
    request = Request.make(values, name, data=str(RunFolder(out).images))
    for backbone in backbones_in(request.name, settings_of(request.method)):
        check_trusted(backbone)
    all_of_both = {"shots": 0, "classes": "all", "backbone": saved.fitted.backbone.name}
    task = configured(request.task, all_of_both)
    lab = Lab(request.machine, keep_features=True)
    prompts = classnames_json(added.root, beside_splits(data, added.splits))
    new = {name: prompt for name, prompt in prompts.items() if key(name) not in known}
    lab.add_backbone(saved.fitted.backbone)
    before = len(kept["train"])
    new_images = len(splits["train"]) - before
    notes = [f"trained on the {before} images of {run.name} and {new_images} new ones"]
    if added.note:
        notes.append(added.note)
    is_new = not out.exists()
    with exclusive(out):
        _write_list(out, splits, {**new, **saved.custom_names})
    with _removing_list(out, is_new):
        listed = read_images(RunFolder(out).images, skip_bad=images.skip_bad, outside=True)
        listed = with_parents(listed, saved.parents)
        lab.add(task.data, listed, leftover=not _has_test_split(record, added_splits, splits))
        return fit(task, request.method, out, lab, name, origin=Origin(command, tuple(notes)))


def _readable(listing: Listing) -> Listing:
    """Return the listing without unreadable images."""
    bad = image_errors(listing.images, progress=False)
    splits: dict[str, Rows] = {}
    for split, rows in listing.splits.items():
        splits[split] = [row for row in rows if row.image not in bad]
    return listing._replace(splits=splits)


def _data_of(run: Path, record: Record, old: Path | None) -> Path:
    """Return where a run's data is. Raises UserError if it is missing."""
    data = user_path(old or record.task.data)
    if not data.exists():
        raise UserError(
            f"{run}: its data {str(data)!r} is missing; give its new location with --run-data"
        )
    return data


def _images_of_run(run: Path, labels: Mapping[str, str], listing: Listing) -> dict[str, Rows]:
    """Return the images of the run's data that it was trained and tested on, and those that chose
    its settings, by split.

    Args:
        run: Folder of the run.
        labels: Labels that it was trained on, by `key`.
        listing: Images of the run's data.
    """
    try:
        few = read_split(RunFolder(run).split).images(listing.root)
    except UserError as error:
        raise UserError(
            f"{run}: {error}; give the new location of its data with --run-data"
        ) from None
    splits = listing.splits
    groups = {row.image: row.group for rows in splits.values() for row in rows}
    undivided = [row for name in ("train", "all") for row in splits.get(name, [])]
    rows = {
        "train": _rows(few.train, groups),
        "val": _rows(few.val, groups),
        "test": splits.get("test", undivided),
    }
    kept: dict[str, Rows] = {}
    for split, part in rows.items():
        known = [row for row in part if key(row.label) in labels]
        kept[split] = [row._replace(label=labels[key(row.label)]) for row in known]
    return kept


def _extended(
    kept: Mapping[str, Rows], added: Mapping[str, Rows], shots: int, rng: random.Random, data: Path
) -> dict[str, Rows]:
    """Return the images to train and test on, and to choose settings by.

    Args:
        kept: Images of the run, by split.
        added: Images of the new data, by split.
        shots: Images that are drawn of each class; of the validation split at most `VAL_SHOTS`.
        rng: Generator of the draw.
        data: Path of the new data.

    Raises:
        UserError: A class is only tested on.
    """
    seen = {_identity(row.image) for row in kept["train"]}
    undivided = added.get("train", added.get("all", []))
    source = [row for row in undivided if _identity(row.image) not in seen]
    train = [*kept["train"], *_draw(source, shots, rng)]
    val = [*kept["val"], *_draw(added.get("val", []), min(shots, VAL_SHOTS), rng)]
    tests = [*kept["test"], *added.get("test", source)]
    learnt = {_identity(row.image) for row in [*train, *val]}  # methods choose settings on val
    labels = {row.label for row in train}
    for row in tests:
        if row.label not in labels:
            raise UserError(
                f"{data}: class {row.label!r} has test images but none to train on: add some, or "
                "remove it"
            )
    tested = [row for row in dict.fromkeys(tests) if _identity(row.image) not in learnt]
    return {"train": train, "val": val, "test": tested}


def _has_test_split(record: Record, added: Mapping[str, Rows], splits: Mapping[str, Rows]) -> bool:
    """Return whether the data of the run or the new data has a test split, and both together test
    every class.

    Args:
        record: Record of the run.
        added: Images of the new data, by split.
        splits: Images of the new run, by split.
    """
    divided = "test" in added or any(score.split == "test" for score in record.scores)
    return divided and {row.label for row in splits["test"]} == {
        row.label for row in splits["train"]
    }


def _draw(rows: Rows, shots: int, rng: random.Random) -> Rows:
    numbers = {label: i for i, label in enumerate(dict.fromkeys(row.label for row in rows))}
    return [rows[i] for i in sample_shots([numbers[row.label] for row in rows], shots, rng)]


def _rows(images: ImageSet | None, groups: Mapping[Path, str]) -> Rows:
    rows: Rows = []
    if images is not None:
        for label, source in zip(images.labels, images.images, strict=True):
            path = Path(str(source))
            rows.append(Row(str(images.written[label]), path, groups.get(path, "")))
    return rows


def _with_labels(
    splits: Mapping[str, Rows], data: Path, known: Mapping[str, str]
) -> dict[str, Rows]:
    """Return the new images; a class that the run already has gets the run's label.

    Args:
        splits: The images, by split.
        data: Where they are from.
        known: Labels of the run, by `key`.
    """
    labels = dict(known)
    for split in sorted(splits, key=lambda split: split != "train"):
        new = list(dict.fromkeys(row.label for row in splits[split]))
        for label in prompt_names(new, where=f"{data} ({split}): "):
            labels.setdefault(key(label), label)
    return {
        split: [row._replace(label=labels[key(row.label)]) for row in rows]
        for split, rows in splits.items()
    }


def _identity(path: Path) -> bytes:
    """Return what identifies an image wherever it is stored; an empty class folder stands for
    itself, as in a scan."""
    return os.fsencode(path) if path.is_dir() else content(path)


@contextmanager
def _removing_list(out: Path, is_new: bool) -> Iterator[None]:
    """Remove the list in `out`, a new folder or an old one, if the block raises UserError before a
    run has begun there: the next command could obey it."""
    run = RunFolder(out)
    try:
        yield
    except UserError:
        with suppress(UserError), exclusive(out):  # another process may be at work
            if not (run.record.exists() or run.split.exists()):
                run.images.unlink(missing_ok=True)
                (out / CLASSNAMES).unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it holds more
                out.rmdir()
        raise


def _write_list(out: Path, splits: Mapping[str, Rows], prompts: Mapping[str, str]) -> None:
    """Write the new run's data as a CSV file, and beside it the prompt names that do not follow
    from the labels. Another list may be one that another process is about to read."""
    text, run = table_text(splits, out), RunFolder(out)
    found = run.images.read_text("utf-8") if run.images.exists() else None
    if found != text and (found is not None or run.record.exists()):
        raise UserError(f"{out} holds another run: choose another --out or delete that folder")
    write_text(run.images, text)
    if prompts:
        write_json(out / CLASSNAMES, dict(prompts))
    else:
        (out / CLASSNAMES).unlink(missing_ok=True)
