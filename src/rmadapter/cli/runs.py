"""The verbs that make runs and judge them; slow imports wait until a verb runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.artifacts.run_folder import check_no_model, find_run, run_folder
from rmadapter.cli.options import (
    READING,
    TRAINING,
    Columns,
    Crops,
    DataOptions,
    Draw,
    FileOptions,
    Half,
    Json,
    Out,
    Precision,
    Quiet,
    Run,
    RunData,
    RunOptions,
    SettingOptions,
    ShotOptions,
    Verbose,
    comma_list,
    command,
)
from rmadapter.errors import UserError
from rmadapter.support import distributed
from rmadapter.support.terminal import note, table

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record
    from rmadapter.data.image_set import ImageSet
    from rmadapter.runs.request import Request

Data = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, table of path,label[,split], or a format in "
        "docs/reference/formats.md."
    ),
]

Taxonomy = Annotated[
    Path | None,
    typer.Option(
        "--taxonomy",
        help="Table of label,parent[,grandparent], or JSON; such as that of the images. Parents "
        "are judged, too.",
        rich_help_panel=READING,
    ),
]


@dataclass(frozen=True)
class FitOptions(ShotOptions):
    """What to train."""

    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Name from `rmadapter methods`, package:Class or file.py:Class; by default "
            "block-ridge.",
        ),
    ] = ""
    draw: Draw = None
    half: Half = None
    precision: Precision = None
    effort: Annotated[
        str,
        typer.Option(
            metavar="fast | normal | thorough", help="How long to train.", rich_help_panel=TRAINING
        ),
    ] = "normal"

    def request(self, data: Path, settings: SettingOptions) -> Request:
        """Return the run to do; note what an effort changes."""
        from rmadapter.methods import changed_settings, name_with_settings
        from rmadapter.runs.request import requested
        from rmadapter.settings import settings_of

        names = ("backbone", "shots", "draw", "seed", "device", "precision")
        flags = {"classes": self.half, **{name: getattr(self, name) for name in names}}
        request = requested(
            self.method, settings.config, flags, settings.sets, self.effort, str(data)
        )
        if self.effort != "normal":
            changed = changed_settings(request.name, settings_of(request.method))
            note(f"effort {self.effort}: {name_with_settings(request.name, changed)}")
        return request


def fit(
    data: Data,
    out: Out = None,
    options: FitOptions = FitOptions(),
    images: DataOptions = DataOptions(),
    names_from: Annotated[
        Path | None,
        typer.Option(
            "--names-from",
            help="CSV file of label,name: class names for prompts.",
            rich_help_panel=READING,
        ),
    ] = None,
    settings: SettingOptions = SettingOptions(),
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of folds; for methods that train: by default a quarter is held out once, "
            "0: no judgement.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    files: FileOptions = FileOptions(),
    taxonomy: Taxonomy = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Decode all images first, not only those drawn.",
            rich_help_panel=READING,
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train a model on images; write it, its record and report.html."""
    from rmadapter.cli.checks import ask_for_backbone, check_backbones, check_folder, note_caveats
    from rmadapter.data.label_files import check_known, read_names

    named = check_backbones(options.backbone, settings.sets, settings.config, choosing=True)
    check_folder(out)
    known = read_names(names_from) if names_from else {}
    located = files.locate(data, images, images.crops)
    if not (named or quiet or as_json):
        options = replace(options, backbone=ask_for_backbone())
    from rmadapter.backbones.importing import import_for_command

    import_for_command()
    from rmadapter.runs.backbones import prepare_backbone
    from rmadapter.runs.fit import Origin, fit as run_fit, join_fit
    from rmadapter.runs.lab import Lab, Team
    from rmadapter.support.machine import find_device

    request = options.request(data, settings)
    find_device(request.machine.device)  # an impossible one is refused before images are read
    team = Team.of(request.name, request.method, request.machine)
    lab = Lab(team.machine, team=team, keep_features=True)
    splits = files.read(located, known, check or None)
    check_known(known, next(iter(splits.values())).written, names_from or "")
    if taxonomy:
        splits = _with_parents(splits, taxonomy, data, images)
    lab.add(str(data), splits)
    lab.draw(request.task)  # is refused here, before a backbone is loaded
    request, lab, chosen = prepare_backbone(request, lab)
    task = request.task
    note_caveats(task.backbone)
    with run_folder(out, data) as folder:
        if distributed.is_helper():
            join_fit(task, request.method, folder, lab, request.name)
            team.leave()
            return
        origin = Origin(command(), (), images.named(), images.crops, chosen)
        record = run_fit(
            task,
            request.method,
            folder,
            lab,
            request.name,
            folds=folds,
            origin=origin,
        )
    team.leave()
    _show(record, folder, as_json, verbose)


def _with_parents(
    splits: dict[str, ImageSet], taxonomy: Path, data: Path, images: DataOptions
) -> dict[str, ImageSet]:
    """Return splits whose labels have the parents that a file says; it may be the table of the
    images itself."""
    from rmadapter.data.label_files import parents_of, read_parents, with_parents

    column = images.label_column if taxonomy == data else ""
    written = next(iter(splits.values())).written
    parents = parents_of(read_parents(taxonomy, column), written, taxonomy)
    return with_parents(splits, parents)


def _show(record: Record, out: Path, as_json: bool, verbose: bool) -> None:
    """Print a record, its notes and the place of its report."""
    from rmadapter.artifacts.summary import describe_tie, print_record, print_sentences
    from rmadapter.backbones.published import caveat

    # the first is printed below the table, the second was when the run began
    shown = "" if as_json else describe_tie(record), caveat(record.backbone.name)
    for text in record.notes:
        if text not in shown:
            note(text)
    if record.judgement and not (as_json or verbose):
        print_sentences(record, record.judgement, out)
    else:
        print_record(record, as_json, out)
    if not as_json:
        print(f"report: {out / 'report.html'}")
        print(f"next: rmadapter predict {shlex.quote(str(out))} IMAGES")


def evaluate(
    run: Run,
    data: Annotated[Path, typer.Argument(help="Folder or table of images.")],
    split: Annotated[
        str, typer.Option(help="Split of the data; or heldout: images `fit` did not draw.")
    ] = "test",
    images: DataOptions = DataOptions(),
    half: Half = None,
    options: RunOptions = RunOptions(),
    settings: SettingOptions = SettingOptions(),
    files: FileOptions = FileOptions(),
    taxonomy: Taxonomy = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a run's accuracy on labelled images.

    The untouched backbone's accuracy stands beside it.
    """
    options.check(run)
    located = files.locate(data, images, images.crops)
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.artifacts.summary import print_score
    from rmadapter.data.label_files import with_parents
    from rmadapter.runs import request
    from rmadapter.runs.evaluate import evaluate_saved, known_names
    from rmadapter.runs.promises import kept
    from rmadapter.settings import Machine, configured, parse_overrides
    from rmadapter.task import Task
    from rmadapter.training.cache import Cache

    which = configured(Task(), {"classes": half or "all"}).classes
    name, values = request.read_config(settings.config, (options.code,))
    overrides = parse_overrides(settings.sets or [])
    reading = {field: overrides.pop(field) for field in request.READING if field in overrides}
    if options.device:
        reading = {"device": options.device, **reading}
    machine = configured(Machine(), reading)
    own = request.split(values, name)[2] | overrides
    folder = find_run(run)
    saved = load(run, options.backbone, method=options.code, settings=own, device=machine.device)
    splits = files.read(located, known_names(folder, saved))
    ignored = next(iter(splits.values())).ignored
    if ignored:
        note(ignored)
    if taxonomy:
        splits = _with_parents(splits, taxonomy, data, images)
    else:
        splits = with_parents(splits, saved.parents)
    cache = Cache(saved.fitted.backbone, machine, hold=False)
    [evaluation], [score] = evaluate_saved(folder, saved.fitted, splits, split, which, cache)
    promises = () if own else kept(folder, saved.fitted, evaluation, score.split)
    print_score(score, as_json, promises)


def add(
    run: Annotated[
        Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME; it stays unchanged.")
    ],
    what: Annotated[
        list[str],
        typer.Argument(
            help='Names of new classes, such as "zebra,okapi"; or a folder or table of images of '
            "any classes."
        ),
    ],
    out: Out = None,
    images: DataOptions = DataOptions(),
    run_data: RunData = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Images per class; of the new ones, by default as for the run."),
    ] = None,
    options: RunOptions = RunOptions(),
    files: FileOptions = FileOptions(),
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Extend a run with more classes or images.

    New classes need only a name; with images, the model is trained again.
    """
    from rmadapter.cli.checks import check_folder
    from rmadapter.data.formats.registry import is_data_file, locate

    options.check(run)
    check_folder(out)
    data = Path(what[0])
    trains = len(what) == 1 and (data.is_dir() or is_data_file(data))
    if trains:
        located = files.locate(data, images, images.crops, one_class=True)
        if run_data:
            locate(run_data).check()
    else:
        names = [name for word in what for name in comma_list(word)]
        _check_class_names(names)
        if out:
            check_no_model(out)
    from rmadapter.runs.add import NewImages, add_images, add_names

    found = find_run(run)
    saved = options.load(found)
    with run_folder(out, run) as folder:
        if trains:
            new = NewImages(located, shots, files.skip_bad)
            record = add_images(found, saved, new, folder, run_data, command())
        else:
            labels = add_names(saved, names, folder)
    if trains:
        _show(record, folder, as_json, verbose)
    elif as_json:
        print(json.dumps({"run": str(folder), "labels": labels}))
    else:
        added = f"{len(names)} of them new and known by name alone: {', '.join(names)}"
        print(f"{folder}: {len(labels)} classes, {added}")


def _check_class_names(words: Sequence[str]) -> None:
    """Raise UserError for a word that names or looks like a file, a folder or a web address rather
    than a class."""
    from rmadapter.data.formats.base import URL
    from rmadapter.data.formats.tables import SUFFIXES

    for word in words:
        looks = word.startswith(("/", "./", "../", "~/")) or word.endswith(("/", *SUFFIXES))
        if Path(word).exists() or looks or URL.match(word):
            raise UserError(
                f"{word}: give one folder or table that exists, or names of classes that are no "
                "files here"
            )


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders written by `fit`; all are compared with the first."),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Images to compare on; such as no run was trained on.")
    ],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
    crops: Crops = False,
    options: RunOptions = RunOptions(),
    files: FileOptions = FileOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare runs on one test set, image by image.

    Shows accuracies, their differences and whether these may be chance.
    """
    if len(runs) < 2:
        raise UserError("only one run: give at least two to compare")
    options.check(*runs)
    located = files.locate(data, Columns(), crops)
    from rmadapter.runs.evaluate import check_split, compare as compare_runs, trained_on

    splits = files.read(located)
    check_split(splits, split)
    images = splits[split]
    if images.ignored:
        note(images.ignored)
    for run in runs:
        known = trained_on(find_run(run), images)
        if known:
            note(
                f"{run}: {known} of these {len(images)} images were trained on, so its accuracy "
                "says little"
            )
    lines = compare_runs([(run, options.load(run)) for run in runs], images, split)
    if as_json:
        rows = [asdict(line) for line in lines]
        print(json.dumps({"images": len(images), "classes": len(images.classes), "runs": rows}))
        return
    header = ["run", "method", "accuracy in %", "difference", "95 % interval", "p"]
    table(header, [line.row() for line in lines])
    print(f"{len(images):,} images of {len(images.classes):,} classes; p by McNemar's exact test")
