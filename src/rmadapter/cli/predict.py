"""The verb `predict`; slow imports wait until it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmadapter.bench.ray.cluster import Address, Engine, is_ray
from rmadapter.errors import UserError
from rmadapter.support.hub import run_folder
from rmadapter.support.terminal import (
    Crops,
    ImageColumn,
    Its,
    Json,
    Name,
    Outside,
    Quiet,
    SkipBad,
    note,
    table,
    track,
)

if TYPE_CHECKING:
    from rmadapter.artifacts.checkpoint import Saved
    from rmadapter.data.inputs import Inputs
    from rmadapter.predict.sorting import Sorter
    from rmadapter.predict.stream import Predictor
    from rmadapter.training.contract import Fitted

SHOWN = 20  # images in a table


def predict(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME.")],
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns, tables, archives; - for stdin.")
    ],
    names: Annotated[
        str | None, typer.Option("--names", help='Other class names, such as "cat,dog,zebra".')
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Answers per image.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the answers: .csv, .jsonl or .parquet.")
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option(help="Copy the images into one folder per label below this one.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="With --sort-into: move the images instead.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="With --sort-into: link to the images instead.")
    ] = False,
    unsure: Annotated[
        float, typer.Option(min=0, max=1, help='Below this probability the label is "unsure".')
    ] = 0.0,
    zero_shot: Annotated[
        bool,
        typer.Option(
            "--zero-shot/--no-zero-shot",
            help="Also ask the untouched backbone, which takes extra time.",
        ),
    ] = True,
    unfamiliar: Annotated[
        bool,
        typer.Option("--unfamiliar", help="Report how unlike the training images each image is."),
    ] = False,
    image_column: ImageColumn = "",
    crops: Crops = False,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    method: Name = "",
    backbone: Its = None,
    jobs: Annotated[int, typer.Option(min=1, help="With --engine ray: number of workers.")] = 1,
    engine: Engine = "local",
    address: Address = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict the most probable classes of images: on screen, in a file, or by sorting the images
    into folders."""
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.data.inputs import find_images
    from rmadapter.predict.answer import columns
    from rmadapter.predict.stream import Predictor
    from rmadapter.predict.write import AnswerFile, write_answers
    from rmadapter.training.contract import NotApplicable

    if (ray := is_ray(engine, address, jobs)) and (out is None or sort_into):
        raise UserError("--engine ray writes a file of answers: give --out, not --sort-into")
    run = run_folder(run)
    saved = load(run, backbone, method=method)
    asked, labels = _classes(saved, names)
    try:
        predictor = Predictor(saved.fitted, asked, labels, top)
    except NotApplicable as error:
        raise UserError(f"--names: {error}") from None
    if unfamiliar and saved.fitted.examples is None:
        raise UserError(
            f"{run}: --unfamiliar needs features of the training images, which it does not hold; `fit` keeps them, and "
            "`push --examples` sends them"
        )
    sorter = _sorter(sort_into, move, link, labels, unsure)
    path = sorter.root / "answers.csv" if sorter and not out else out
    if saved.fitted.remembers:
        _remembering(saved.fitted, ray, path)
    if path is None:
        found = _found(find_images(images, image_column, outside, crops=crops))
        _show(found.files, predictor, unsure, skip_bad, as_json, unfamiliar)
        return
    header = columns(predictor.top, sorter is not None, zero_shot, unfamiliar, error=ray)
    settings = [header, unsure, *([] if sorter is None else sorter.settings)]
    file = AnswerFile(path, header, _key(run, predictor, settings))
    how: dict[str, Any] = {
        "column": image_column,
        "outside": outside,
        "none": file.partial.exists(),
        "crops": crops,
    }
    if ray:
        from rmadapter.predict.ray import cluster, find_rows

        found = _found(find_rows(images, **how))
        facts = write_answers(
            found.files,
            cluster(predictor, run, backbone, method, jobs, address),
            unsure,
            True,
            file,
        )
    else:
        found = _found(find_images(images, **how))
        if sorter:
            sorter.check(found.folders, found.files)
        facts = write_answers(found.files, predictor, unsure, skip_bad, file, sorter)
    _tell({"answers": str(path), **facts, "ignored": dict(found.ignored)}, as_json)


def _remembering(fitted: Fitted, ray: bool, path: Path | None) -> None:
    """Note that answers depend on the order of images. Raises UserError if one process does not see
    all of them."""
    from rmadapter.predict.write import PARTIAL
    from rmadapter.runs.order import each_alone

    if ray:
        each_alone(fitted, "a worker of --engine ray")
    if path and (partial := path.with_name(path.name + PARTIAL)).exists():
        raise UserError(
            f"{partial}: unfinished, and {fitted.method.title} cannot resume; delete it to start again"
        )
    note(
        f"{fitted.method.title} learns from these images in their order; the next call starts afresh"
    )


def _found(inputs: Inputs) -> Inputs:
    if inputs.note:
        note(inputs.note)
    return inputs


def _classes(saved: Saved, names: str | None) -> tuple[tuple[str, ...], list[str]]:
    """The classes to choose from, as named in prompts and as labelled in answers."""
    from rmadapter.data.names import prompt_names

    if names is None:
        return saved.names, [str(label) for label in saved.labels]
    shown = [name.strip() for name in names.split(",") if name.strip()]
    if not shown:
        raise UserError(f"--names {names!r}: give at least one class name")
    return tuple(prompt_names(shown, saved.given, where="--names: ").values()), shown


def _sorter(
    root: Path | None, move: bool, link: bool, labels: Sequence[str], unsure: float
) -> Sorter | None:
    from rmadapter.predict.answer import UNSURE
    from rmadapter.predict.sorting import Sorter

    if unsure and UNSURE in labels:
        raise UserError(
            f"a class is already labelled {UNSURE!r}: leave out --unsure, or choose other --names"
        )
    if move and link:
        raise UserError("--move and --link: give only one of them")
    if root is None:
        if move or link:
            raise UserError("--move and --link need --sort-into DIR")
        return None
    how: Literal["copy", "move", "link"] = "move" if move else "link" if link else "copy"
    return Sorter(root, [*labels, *([UNSURE] if unsure else [])], how)


def _key(run: Path, predictor: Predictor, settings: Sequence[Any]) -> str:
    """A digest of everything that answers depend on, except the images."""
    from rmadapter.artifacts.checkpoint import WEIGHTS
    from rmadapter.settings import settings_of
    from rmadapter.support.checksums import sha256

    fitted = predictor.fitted
    model = [
        sha256(run / WEIGHTS),
        fitted.method.title,
        settings_of(fitted.method),
        fitted.backbone.digest,
    ]
    parts = [
        *model,
        fitted.temperature,
        fitted.known.templates,
        predictor.names,
        predictor.labels,
        *settings,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    _tell_bad(facts["skipped"])
    if as_json:
        print(json.dumps(facts))
        return
    doubt = f", {facts['unsure']:,} of them unsure" if facts["unsure"] else ""
    print(f"answers: {facts['answers']}, {facts['images']:,} images{doubt}")


def _tell_bad(texts: Sequence[str]) -> None:
    for text in texts:
        note(f"left out: {text}")
    if texts:
        note(f"{len(texts)} unreadable file{'s' * (len(texts) > 1)} left out")


def _show(
    images: Sequence[Path],
    predictor: Predictor,
    unsure: float,
    skip_bad: bool,
    as_json: bool,
    unfamiliar: bool,
) -> None:
    """Print answers: all of them as JSON, or the first ones in a table."""
    from rmadapter.training.cache import BATCH

    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    some = images if as_json else images[:SHOWN]
    answered = track(
        predictor.predict(some, bad=bad, unfamiliar=unfamiliar),
        -(-len(some) // BATCH),
        "predicting",
    )
    answers = [answer for part in answered for answer in part]
    _tell_bad([text for _, text in bad or []])
    if as_json:
        found: list[dict[str, Any]] = []
        for answer in answers:
            best = [{"class": label, "probability": share} for label, share in answer.best]
            more: dict[str, Any] = {"unsure": answer.best[0][1] < unsure} if unsure else {}
            more |= {"unfamiliar": answer.unfamiliar} if unfamiliar else {}
            found.append({"image": str(answer.image), "classes": best, **more})
        print(json.dumps(found))
        return
    lines = []
    for answer in answers:
        for place, (label, share) in enumerate(answer.best):
            shown = f"unsure: {label}" if not place and share < unsure else label
            far = [] if answer.unfamiliar is None else ["" if place else f"{answer.unfamiliar:.3f}"]
            lines.append(["" if place else str(answer.image), shown, f"{100 * share:.1f} %", *far])
    table(["image", "class", "probability", *(["unfamiliar"] if unfamiliar else [])], lines)
    if len(images) > SHOWN:
        print(f"the first {SHOWN} of {len(images):,} images; --out answers.csv answers all of them")
