"""Extend a run by class names or by more images, into a new folder; the old one stays unchanged."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmadapter.artifacts.checkpoint import Saved, save
from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones.shared import check_backbone_named
from rmadapter.data.decode import content
from rmadapter.data.decode_limits import ignored_note
from rmadapter.data.fewshot import VAL_SHOTS, read_split, sample_shots
from rmadapter.data.formats.base import CLASSNAMES, Row, Rows, Source
from rmadapter.data.formats.registry import open_source
from rmadapter.data.names import beside_splits, classnames_json, key, nfc, prompt_names
from rmadapter.data.read import ImageSet, image_errors, read_images
from rmadapter.errors import UserError
from rmadapter.methods.uses import backbones_in
from rmadapter.runs.fit import fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request, read_config
from rmadapter.settings import configured, settings_of
from rmadapter.support.files import csv_text, path_from, user_path, write_json, write_text
from rmadapter.support.locks import exclusive
from rmadapter.training.contract import NotApplicable


def add_names(saved: Saved, names: Sequence[str], out: Path) -> tuple[str, ...]:
    """Save a model that also answers for further classes, by name alone; nothing is trained.
    Returns its labels.

    Raises UserError for a name that it already has, for a method that cannot take classes by name,
    and if `out` already holds a model.
    """
    before = [
        label if isinstance(label, str) else name
        for label, name in zip(saved.labels, saved.names, strict=True)
    ]
    given = {nfc(label): name for label, name in zip(before, saved.names, strict=True)}
    called = prompt_names([*before, *names], given)
    try:
        saved.fitted.score(tuple(called.values()))
    except NotApplicable as error:
        raise UserError(
            f"{error}; `rmadapter add RUN FOLDER` trains it again with images of the new classes"
        ) from None
    if RunFolder(out).model.exists():
        raise UserError(f"{out} already holds a model: choose another --out")
    save(out, saved.fitted, saved.name, tuple(called), tuple(called.values()))
    return tuple(called)


def add_images(
    run: Path,
    saved: Saved,
    data: Path,
    out: Path,
    old: Path | None = None,
    shots: int | None = None,
    skip_bad: bool = False,
    outside: bool = False,
    command: str = "",
    columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> Record:
    """Train again on the images that a run was trained on plus new ones, and evaluate again.

    data: images of old and new classes, in any layout that `read_images` accepts; `shots` of each
    class are drawn, by default as many as for the run. Its test split, or what was not drawn, joins
    the images that the run was tested on. old: where the run's own data is now. columns, crops: of
    the new data, as for `read_images`. Raises UserError if the old data is missing or has changed,
    if a class would occur twice, and if `out` holds another run.
    """
    if not RunFolder(run).record.is_file():
        raise UserError(
            f"{run}: a model saved on its own does not record its training images; give a run of "
            "`fit`"
        )
    record = read_record(RunFolder(run).record)
    shots = record.task.shots if shots is None else shots
    home = _home(run, record, old)
    opened = open_source(home, outside, record.columns, record.crops)
    fresh = open_source(data, outside, columns, crops)
    if skip_bad:
        opened, fresh = _readable(opened), _readable(fresh)
    rows, counts = _grown(
        run, saved, record, opened, _called(fresh.splits, data, saved), data, shots
    )
    name, values = read_config(RunFolder(run).config, (saved.name,))
    wanted = Request.make(values, name, data=str(RunFolder(out).images))
    for backbone in backbones_in(wanted.name, settings_of(wanted.method)):
        check_backbone_named(backbone)
    task = configured(
        wanted.task, {"shots": 0, "classes": "all", "backbone": saved.fitted.backbone.name}
    )
    lab = Lab(wanted.machine)
    had = {key(str(label)) for label in saved.labels}
    brought = classnames_json(fresh.root, beside_splits(data, fresh.splits))
    new = {name: prompt for name, prompt in brought.items() if key(name) not in had}
    with exclusive(out):
        _write_list(out, rows, {**new, **saved.custom_names})
    lab.add_backbone(saved.fitted.backbone)
    lab.add(task.data, read_images(RunFolder(out).images, skip_bad=skip_bad, outside=True))
    notes: tuple[str, ...] = (
        f"trained on the {counts[0]} images of {run.name} and {counts[1]} new ones",
    )
    notes += (ignored_note(fresh.ignored),) if fresh.ignored else ()
    return fit(task, wanted.method, out, lab, name, command, notes)


Listed = list[tuple[str, Row]]  # split, row


def _readable(source: Source) -> Source:
    """The source without unreadable images."""
    bad = image_errors(
        [row.image for rows in source.splits.values() for row in rows], progress=False
    )
    return source._replace(
        splits={s: [r for r in rows if r.image not in bad] for s, rows in source.splits.items()}
    )


def _home(run: Path, record: Record, old: Path | None) -> Path:
    home = user_path(old or record.task.data)
    if not home.exists():
        raise UserError(
            f"{run}: its data {str(home)!r} is missing; give its new location with --old-data"
        )
    return home


def _grown(
    run: Path,
    saved: Saved,
    record: Record,
    opened: Source,
    new: Mapping[str, Rows],
    data: Path,
    shots: int,
) -> tuple[Listed, tuple[int, int]]:
    """Every image with its split and label, and the numbers of old and new training images."""
    try:
        few = read_split(RunFolder(run).split).images(opened.root)
    except UserError as error:
        raise UserError(
            f"{run}: {error}; give the new location of its data with --old-data"
        ) from None
    kept = {key(str(label)): str(label) for label in saved.labels}  # classes that it was trained on
    there = opened.splits
    groups = {row.image: row.group for rows in there.values() for row in rows}
    train, val = (_known(_rows(images, groups), kept) for images in (few.train, few.val))
    tests = _known(
        there.get("test", [row for name in ("train", "all") for row in there.get(name, [])]), kept
    )

    seen = {_content(row.image) for row in train}
    source = [
        row for row in new.get("train", new.get("all", [])) if _content(row.image) not in seen
    ]
    rng = random.Random(record.task.seed)
    more = [source[i] for i in sample_shots(_numbers(source), shots, rng)]
    held = new.get("val", [])
    val += [held[i] for i in sample_shots(_numbers(held), min(shots, VAL_SHOTS), rng)]
    tests += new.get("test", source)
    learnt = seen | {_content(row.image) for row in [*more, *val]}  # methods choose settings on val
    labels = {row.label for row in [*train, *more]}
    if lost := next((row.label for row in tests if row.label not in labels), None):
        raise UserError(
            f"{data}: class {lost!r} has test images but none to train on: add some, or remove it"
        )
    tested = [row for row in dict.fromkeys(tests) if _content(row.image) not in learnt]
    splits = {"train": [*train, *more], "val": val, "test": tested}
    return [(split, row) for split, rows in splits.items() for row in rows], (len(train), len(more))


def _rows(images: ImageSet | None, groups: Mapping[Path, str]) -> Rows:
    if images is None:
        return []
    pairs = zip(images.labels, (Path(str(image)) for image in images.images), strict=True)
    return [Row(str(images.written[label]), image, groups.get(image, "")) for label, image in pairs]


def _known(rows: Rows, kept: dict[str, str]) -> Rows:
    """Rows of the classes that were trained on, with the run's labels."""
    return [row._replace(label=kept[key(row.label)]) for row in rows if key(row.label) in kept]


def _called(found: Mapping[str, Rows], data: Path, saved: Saved) -> dict[str, Rows]:
    """The new images; a class that the run already has gets the run's label."""
    spelled = {key(str(label)): str(label) for label in saved.labels}
    for split in sorted(found, key=lambda split: split != "train"):
        for label in prompt_names(
            list(dict.fromkeys(row.label for row in found[split])), where=f"{data} ({split}): "
        ):
            spelled.setdefault(key(label), label)
    return {
        split: [row._replace(label=spelled[key(row.label)]) for row in rows]
        for split, rows in found.items()
    }


def _content(path: Path) -> bytes:
    """What identifies an image wherever it is stored; an empty class folder stands for itself, as
    in a scan."""
    return os.fsencode(path) if path.is_dir() else content(path)


def _numbers(rows: Rows) -> list[int]:
    places = {label: i for i, label in enumerate(dict.fromkeys(row.label for row in rows))}
    return [places[row.label] for row in rows]


def _write_list(out: Path, rows: Listed, given: dict[str, str]) -> None:
    """Write the new run's data as a CSV file, and beside it the prompt names that do not follow
    from the labels."""
    grouped = any(row.group for _, row in rows)
    lines = [
        [path_from(out, row.image), row.label, split, *[row.group] * grouped] for split, row in rows
    ]
    text = csv_text(["path", "label", "split", *["group"] * grouped], lines)
    file = RunFolder(out).images
    if RunFolder(out).record.exists() and (not file.exists() or file.read_text("utf-8") != text):
        raise UserError(f"{out} holds another run: choose another --out or delete that folder")
    write_text(file, text)
    if given:
        write_json(out / CLASSNAMES, given)
