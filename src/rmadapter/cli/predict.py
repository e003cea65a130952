"""The verb `predict`; slow imports wait until it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.artifacts.run_folder import RunFolder, find_run
from rmadapter.cli.options import (
    Crops,
    FileOptions,
    ImageColumn,
    Json,
    Quiet,
    RayOptions,
    Run,
    RunOptions,
    comma_list,
    share,
)
from rmadapter.errors import UserError
from rmadapter.support.terminal import note, table, track

if TYPE_CHECKING:
    from rmadapter.answers.answer import Answer
    from rmadapter.answers.taxonomy import Taxonomy
    from rmadapter.artifacts.checkpoint import Saved
    from rmadapter.data.formats.base import Inputs
    from rmadapter.predict.stream import Predictor
    from rmadapter.predict.write import AnswerFile, Counts, Sorter
    from rmadapter.training.contract import Fitted

TABLE_ROWS = 20  # images in a table
Names = Annotated[
    str | None,
    typer.Option(
        "--names", help='Class names, such as "cat,dog,zebra"; by default those of the run.'
    ),
]
Error = Annotated[
    float,
    typer.Option(
        parser=share,
        metavar="SHARE",
        help="List the classes that may be right, and miss the right one on at most this share of "
        "images, such as 5%; an image with more than one class is unsure.",
    ),
]
TurnAway = Annotated[
    float,
    typer.Option(
        parser=share,
        metavar="SHARE",
        help='Label images unlike those of the classes "none of these", and at most this share, '
        "such as 5%, of images of the classes.",
    ),
]


@dataclass(frozen=True)
class SortOptions:
    """How images are sorted into folders by their label."""

    sort_into: Annotated[
        Path | None, typer.Option(help="Copy the images into one folder per label below this one.")
    ] = None
    move: Annotated[
        bool, typer.Option("--move", help="With --sort-into: move the images instead.")
    ] = False
    link: Annotated[
        bool, typer.Option("--link", help="With --sort-into: link to the images instead.")
    ] = False
    wrong: Annotated[
        float,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help='Label answers "unsure" so that at most this share of the others is wrong, such '
            "as 10%, in nine of ten calibrations by held-out training images.",
        ),
    ] = 0.0
    error: Error = 0.0
    turn_away: TurnAway = 0.0

    def check(self) -> None:
        """Raise UserError for options that contradict each other."""
        if self.move and self.link:
            raise UserError("--move and --link: give only one of them")
        if self.sort_into is None and (self.move or self.link):
            raise UserError("--move and --link need --sort-into DIR")
        if self.wrong and self.error:
            raise UserError("--wrong and --error: give only one of them")

    def sorter(self, labels: Sequence[str]) -> Sorter | None:
        """Return what sorts the images, if anything.

        Args:
            labels: Labels that answers may have, those of parents among them.

        Raises:
            UserError: Options contradict the labels.
        """
        from rmadapter.answers.answer import UNSURE
        from rmadapter.answers.rejection import NONE_OF_THESE
        from rmadapter.predict.write import Sorter

        options = {"--wrong": self.wrong, "--error": self.error, "--turn-away": self.turn_away}
        others = {name: NONE_OF_THESE if name == "--turn-away" else UNSURE for name in options}
        others = {name: label for name, label in others.items() if options[name]}
        for name, label in others.items():
            if label in labels:
                raise UserError(
                    f"a class is already labelled {label!r}: leave out {name}, or choose other "
                    "--names"
                )
        if self.sort_into is None:
            return None
        folders = [*labels, *others.values()]
        return Sorter(
            self.sort_into, folders, "move" if self.move else "link" if self.link else "copy"
        )


@dataclass(frozen=True)
class AnswerOptions:
    """What is reported of each image besides its classes."""

    zero_shot: Annotated[
        bool,
        typer.Option(
            "--zero-shot/--no-zero-shot",
            help="Also ask the untouched backbone, which takes extra time.",
        ),
    ] = True
    unfamiliar: Annotated[
        bool,
        typer.Option("--unfamiliar", help="Report how unlike the training images each image is."),
    ] = False
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            "--taxonomy",
            help="Table of label,parent[,grandparent], or JSON; by default that of the run. Where "
            "a label is unsure, its parent may answer.",
        ),
    ] = None

    def tree(self, saved: Saved, labels: Sequence[str]) -> Taxonomy | None:
        """Return the tree of the labels, if they have one. Raises UserError for a taxonomy that
        does not fit them."""
        from rmadapter.answers.taxonomy import Taxonomy
        from rmadapter.data.label_files import parents_of, read_parents

        parents = saved.parents
        if self.taxonomy:
            parents = parents_of(read_parents(self.taxonomy), labels, self.taxonomy)
        return Taxonomy.if_any(parents, labels)


@dataclass(frozen=True)
class ImageOptions:
    """How images are found in what the user names."""

    image_column: ImageColumn = ""
    crops: Crops = False

    def find(
        self, words: Sequence[str], outside: bool, none: bool = False, rows: bool = False
    ) -> Inputs:
        """Find the images, and note what is ignored.

        Args:
            words: What the user names.
            outside: Whether listed files elsewhere are read.
            none: Whether finding none is allowed.
            rows: Whether also to find images as bytes in parquet files.
        """
        if rows:
            from rmadapter.predict.parquet import find_rows as find
        else:
            from rmadapter.data.formats.registry import find_images as find

        inputs = find(words, self.image_column, outside, none, self.crops)
        if inputs.note:
            note(inputs.note)
        return inputs


def predict(
    run: Run,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns, tables, archives; - for stdin.")
    ],
    names: Names = None,
    top: Annotated[int, typer.Option(min=1, help="Answers per image.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File for the answers: .csv, .jsonl or .parquet."),
    ] = None,
    sorting: SortOptions = SortOptions(),
    more: AnswerOptions = AnswerOptions(),
    reading: ImageOptions = ImageOptions(),
    files: FileOptions = FileOptions(),
    options: RunOptions = RunOptions(),
    ray: RayOptions = RayOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict the classes of images.

    The answers are shown, written to a file, or used to sort the images into folders.
    """
    from rmadapter.cli.checks import note_caveats
    from rmadapter.data.formats.registry import check_words
    from rmadapter.predict.write import partial_of, write_answers

    options.check(run)
    sorting.check()
    on_ray = ray.chosen()
    if on_ray and options.device:
        raise UserError("--device is for this machine: leave it out with --ray")
    path = _answer_path(out, sorting.sort_into, on_ray)
    resumed = path is not None and partial_of(path).exists()
    check_words(images, none=resumed)
    inputs = reading.find(images, files.outside, resumed, rows=on_ray)
    run = find_run(run)
    predictor = _predictor(options.load(run), names, top, sorting, more)
    # checks the labels even if nothing is sorted
    sorter = sorting.sorter(predictor.decider.names)
    unsure = _sure_from(run, sorting.wrong, bool(names))
    note_caveats(predictor.fitted.backbone.name)
    for text in predictor.decider.promises():
        note(f"promise: {text}")
    if more.unfamiliar:
        _check_examples(run, predictor.fitted)
    if predictor.fitted.remembers:
        _note_memory(predictor.fitted, on_ray, path)
    if path is None:
        _show(inputs.files, predictor, unsure, files.skip_bad, as_json, more.unfamiliar)
        return
    file = _answer_file(path, run, predictor, sorter, more, unsure, on_ray)
    if on_ray:
        from rmadapter.predict.ray import cluster

        workers = cluster(predictor, run, options.backbone, options.code, ray.jobs, ray.address)
        facts = write_answers(inputs.files, workers, unsure, True, file)
    else:
        if sorter:
            sorter.check(inputs.folders, inputs.files)
        facts = write_answers(inputs.files, predictor, unsure, files.skip_bad, file, sorter)
    _show_counts(facts, path, inputs, as_json)


def _predictor(
    saved: Saved, names: str | None, top: int, sorting: SortOptions, more: AnswerOptions
) -> Predictor:
    """Return what answers with the `top` best of the named classes. Raises UserError for classes
    that the run cannot know, and for what it cannot promise."""
    from rmadapter.methods import DEFAULT
    from rmadapter.predict.stream import Predictor
    from rmadapter.training.contract import NotApplicable

    prompts, labels = _classes(saved, names)
    tree = more.tree(saved, labels)
    shares = sorting.error or None, sorting.turn_away or None
    try:
        return Predictor(saved.fitted, prompts, labels, top, *shares, tree)
    except NotApplicable as error:
        raise UserError(
            f"--names: {error}; `fit --method {DEFAULT}` makes a model that takes names alone"
        ) from None


def _sure_from(run: Path, wrong: float, other_classes: bool) -> float:
    """Return the probability below which an answer is unsure, infinity if all are, and note how it
    was found.

    Args:
        run: Folder of the run.
        wrong: Share of the other answers that may be wrong; 0 if none is unsure.
        other_classes: Whether the classes are others than those of the run's held-out answers.
    """
    from rmadapter.answers.held_out import ESTIMATED, describe_images
    from rmadapter.artifacts.record import read_record

    if not wrong:
        return 0.0
    file = RunFolder(run).record
    answers = read_record(file).held_out if file.is_file() and not other_classes else None
    if answers is None:
        note(
            f"unsure: below a probability of {1 - wrong:.2f}, without a promise; this run has no "
            "answers on held-out images of these classes"
        )
        return round(1 - wrong, 9)
    threshold = answers.sure_from(wrong)
    images = describe_images(len(answers.right), "folds")
    if threshold > 1:
        least = answers.least_wrong
        allowed = f"allow {least} % or more" if least else "nor any other share"
        note(
            f"unsure: every answer, as {images}, do not suffice to promise at most "
            f"{100 * wrong:g} % wrong ones in nine of ten calibrations; {allowed}"
        )
    else:
        reached, right = answers.reached(threshold)
        note(
            f"unsure: below a probability of {threshold:.2f}; {ESTIMATED['folds']}at most "
            f"{100 * wrong:g} % of the other answers are wrong for images like these {images}, in "
            f"nine of ten calibrations like this one: {reached:,} reach it, and {right:,} of these "
            "are right"
        )
    return threshold


def _check_examples(run: Path, fitted: Fitted) -> None:
    """Raise UserError if a run does not hold features of its training images."""
    if fitted.examples is None:
        raise UserError(
            f"{run}: --unfamiliar needs features of the training images, which it does not hold; "
            "`fit` keeps them, and `push --examples` sends them"
        )


def _note_memory(fitted: Fitted, ray: bool, path: Path | None) -> None:
    """Print a note that answers depend on the order of the images. Raises UserError where one
    process does not see all of them."""
    from rmadapter.predict.write import partial_of
    from rmadapter.runs.evaluate import refuse_stateful

    if ray:
        refuse_stateful(fitted, "a worker of --ray")
    if path and (partial := partial_of(path)).exists():
        raise UserError(
            f"{partial}: unfinished, and {fitted.method.title} cannot resume; delete it to start "
            "again"
        )
    note(
        f"{fitted.method.title} learns from these images in their order; the next call starts "
        "afresh"
    )


def _classes(saved: Saved, names: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes to choose from: names for prompts, and labels for answers."""
    from rmadapter.data.names import prompt_names

    if names is None:
        return saved.names, [str(label) for label in saved.labels]
    shown = comma_list(names)
    if not shown:
        raise UserError(f"--names {names!r}: give at least one class name")
    return tuple(prompt_names(shown, saved.custom_names, where="--names: ").values()), shown


def _answer_path(out: Path | None, sort_into: Path | None, on_ray: bool) -> Path | None:
    """Return the path of the file of answers; None to show them. Raises UserError if nothing can be
    written there."""
    from rmadapter.predict.write import check_answer_file

    if on_ray and (out is None or sort_into):
        raise UserError("--ray writes a file of answers: give --out, not --sort-into")
    path = sort_into / "answers.csv" if sort_into and not out else out
    if path:
        check_answer_file(path)
    return path


def _answer_file(
    path: Path,
    run: Path,
    predictor: Predictor,
    sorter: Sorter | None,
    more: AnswerOptions,
    unsure: float,
    on_ray: bool,
) -> AnswerFile:
    """Return the file of answers, which resumes only with the same settings."""
    from rmadapter.predict.write import AnswerFile

    wanted = {
        "unfamiliar": more.unfamiliar,
        "zero_shot_label": more.zero_shot,
        "sorted_to": sorter is not None,
        "error": on_ray,
    }
    others = [name for name, is_wanted in wanted.items() if is_wanted]
    header = predictor.decider.columns(predictor.top, others, unsure > 0)
    settings = [header, unsure, *([] if sorter is None else sorter.settings)]
    return AnswerFile(path, header, answers_key(run, predictor, settings))


def answers_key(run: Path, predictor: Predictor, settings: Sequence[object]) -> str:
    """Return a digest of everything that the answers depend on, except the images."""
    from rmadapter.settings import settings_of
    from rmadapter.support.files import sha256

    fitted = predictor.fitted
    method = [fitted.method.title, settings_of(fitted.method), fitted.backbone.digest]
    classes = [fitted.known.templates, predictor.names, predictor.decider.facts()]
    facts = [sha256(RunFolder(run).weights), *method, fitted.temperature, *classes, *settings]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _show_counts(counts: Counts, path: Path, inputs: Inputs, as_json: bool) -> None:
    """Print what was written to a file of answers."""
    _note_bad(counts["skipped"])
    if as_json:
        print(json.dumps({"answers": str(path), **counts, "ignored": dict(inputs.ignored)}))
        return
    labels = [*counts["labels"].items()]
    more = len(labels) - TABLE_ROWS
    rest = [(f"{more} more labels", sum(count for _, count in labels[TABLE_ROWS:]))] * (more > 0)
    rows = [[label, f"{count:,}"] for label, count in [*labels[:TABLE_ROWS], *rest]]
    if rows:
        table(["label", "images"], rows)
    doubt = f", {counts['unsure']:,} of them unsure" if counts["unsure"] else ""
    print(f"answers: {path}, {counts['images']:,} images{doubt}")


def _note_bad(texts: Sequence[str]) -> None:
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
    from rmadapter.training.cache import BATCH_SIZE

    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    chosen = images if as_json else images[:TABLE_ROWS]
    batches = predictor.predict(chosen, bad=bad, unfamiliar=unfamiliar)
    answered = track(batches, -(-len(chosen) // BATCH_SIZE), "predicting")
    answers = [answer for batch in answered for answer in batch]
    _note_bad([text for _, text in bad or []])
    if as_json:
        print(json.dumps([_answer_json(answer, unsure, unfamiliar) for answer in answers]))
        return
    lines = []
    for answer in answers:
        for place, (label, probability) in enumerate(answer.best):
            shown = label if place else _shown(answer, unsure)
            far = [] if answer.unfamiliar is None else ["" if place else f"{answer.unfamiliar:.3f}"]
            inside = ["in the set" * (label in answer.labels)] * bool(answer.labels)
            cells = [f"{100 * probability:.1f} %", *inside, *far]
            lines.append(["" if place else str(answer.image), shown, *cells])
    more = ["set"] * (predictor.decider.error is not None) + ["unfamiliar"] * unfamiliar
    table(["image", "class", "probability", *more], lines)
    if len(images) > TABLE_ROWS:
        print(
            f"the first {TABLE_ROWS} of {len(images):,} images; --out answers.csv answers all of "
            "them"
        )


def _shown(answer: Answer, unsure: float) -> str:
    """Return the most probable label, after what is the answer in its place."""
    guess = answer.best[0][0]
    label = str(answer.row(unsure)["label"])
    return guess if label == guess else f"{label}: {guess}"


def _answer_json(answer: Answer, unsure: float, unfamiliar: bool) -> dict[str, object]:
    from rmadapter.answers.answer import UNSURE

    facts: dict[str, object] = {"image": str(answer.image), **answer.json(unsure)}
    if "decision" in facts:
        facts["unsure"] = facts["decision"] == UNSURE
    if unfamiliar:
        facts["unfamiliar"] = answer.unfamiliar
    return facts
