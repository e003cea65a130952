"""The verb `describe`; slow imports wait until it runs."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmadapter import UserError
from rmadapter.artifacts import write_text
from rmadapter.cli import (
    Columns,
    Command,
    FileOptions,
    Json,
    Quiet,
    ShotOptions,
    comma_list,
    note,
    table,
)

if TYPE_CHECKING:
    from rmadapter import Backbone, ImageSet
    from rmadapter.runs import Request
    from rmadapter_research.texts import Checked, Form, Named, TextFile


@dataclass(frozen=True)
class AnswerOptions:
    """Where answers are from."""

    answers: Annotated[
        Path | None,
        typer.Option(help="File of answers: JSON, JSON lines, or text by class."),
    ] = None
    ask: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Ask an OpenAI-compatible address; the key is in RMADAPTER_CHAT_KEY, if it needs "
            "one.",
        ),
    ] = ""
    model: Annotated[
        str, typer.Option(help="Language model that is asked, or that wrote the answers.")
    ] = ""

    def check(self) -> None:
        """Raise UserError for options that contradict each other."""
        if self.answers and self.ask:
            raise UserError("--answers and --ask: give only one of them")
        if self.ask and not self.model:
            raise UserError("--ask: name the language model with --model")
        if self.model and not (self.answers or self.ask):
            raise UserError("--model needs --answers or --ask")


def describe(
    classes: Annotated[
        str, typer.Argument(help='Names, such as "cat,dog,zebra"; or images in any format.')
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the texts, such as texts.json.")
    ] = None,
    form: Annotated[
        Literal["sentences", "descriptors"],
        typer.Option(help="Kind of the texts, as for the method zero-shot-descriptions."),
    ] = "sentences",
    count: Annotated[int, typer.Option(min=1, max=1000, help="Texts per class.")] = 8,
    question: Annotated[
        str, typer.Option(help="Your own question, with {} in the place of the class's name.")
    ] = "",
    answering: AnswerOptions = AnswerOptions(),
    drawing: ShotOptions = ShotOptions(),
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Leave out texts that do not help on the shots that `fit` draws."
        ),
    ] = False,
    table_columns: Columns = Columns(),
    files: FileOptions = FileOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Have classes described by a language model.

    Writes the questions, checks and stores the answers, and leaves out texts that do not help.
    """
    from rmadapter.cli import check_backbones, first_of
    from rmadapter_research.texts import TextFile, question_of, read_text_file

    answering.check()
    question = question_of(form, count, question)
    if out is None or out.suffix.lower() != ".json":
        raise UserError("name the file of the texts, such as --out texts.json")
    check_backbones(drawing.backbone)
    splits, named = _classes(classes, table_columns, files, measure)
    known = read_text_file(out) if out.exists() else TextFile()
    answered = answering.answers or answering.ask
    if not (answered or measure):
        _write_questions(out, question, _without_texts(named, known, out), as_json)
        return
    if not (answered or known.texts):
        raise UserError(f"{out}: there are no texts to measure: give --answers or --ask, too")
    from rmadapter import Task
    from rmadapter.runs import Request

    backbone = first_of(drawing.backbone or Task().backbone)
    checked = None
    if answered:
        known, checked = _answer(answering, known, named, question, out, not quiet)
        _note_full(checked, form, backbone)
    if measure and splits:
        given = {name: value for name, value in vars(drawing).items() if value is not None}
        request = Request.make({**given, "backbone": backbone.name}, "zero-shot", data=classes)
        known = _measure(known, splits, form, request, backbone, out, not quiet)
    _show(out, known, checked, as_json)


def _classes(
    text: str, columns: Columns, files: FileOptions, needed: bool
) -> tuple[dict[str, ImageSet] | None, list[Named]]:
    """Return the splits of a data set, and its classes; or no splits, and the classes that are
    named, unless images are needed."""
    from rmadapter import read_images
    from rmadapter.data import descriptions, prompt_names
    from rmadapter_research.texts import Named

    if not (needed or os.path.exists(text)):
        names = prompt_names(comma_list(text))
        if not names:
            raise UserError(f"{text[:100]!r}: name at least one class, or a data set")
        return None, [Named(label, descriptions(name)[0]) for label, name in names.items()]
    splits = read_images(
        text, columns=columns.named(), check=False, outside=files.outside, skip_bad=files.skip_bad
    )
    first = next(iter(splits.values()))
    pairs = zip(first.written, first.classes, strict=True)
    return splits, [Named(str(label), descriptions(name)[0]) for label, name in pairs]


def _without_texts(classes: list[Named], known: TextFile, out: Path) -> list[Named]:
    """Return the classes that have no texts yet. Raises UserError if all have some."""
    from rmadapter.data import key

    answered = {key(name) for name in known.texts}
    left = [one for one in classes if key(one.name) not in answered]
    if not left:
        raise UserError(f"{out}: every class has texts already; give --measure, or another --out")
    return left


def _write_questions(out: Path, question: str, classes: list[Named], as_json: bool) -> None:
    """Write the questions about classes: as one text to paste, and as an object a line."""
    from rmadapter_research.texts import ask_about, pasted

    names = [one.name for one in classes]
    text, lines = out.with_suffix(".questions.txt"), out.with_suffix(".questions.jsonl")
    for path in (text, lines):
        if path.exists():
            raise UserError(f"{path}: already exists; choose another --out, or delete it")
    objects = [{"class": name, "question": ask_about(question, name)} for name in names]
    write_text(text, pasted(question, names))
    write_text(lines, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))
    if as_json:
        print(json.dumps({"questions": str(text), "lines": str(lines), "classes": names}))
        return
    print(f"questions about {len(names):,} classes: {text}, and one a line: {lines}")
    print(f"next: the same command with --answers FILE --model NAME writes {out}")


def _answer(
    options: AnswerOptions,
    known: TextFile,
    classes: list[Named],
    question: str,
    out: Path,
    progress: bool,
) -> tuple[TextFile, Checked]:
    """Read answers, or ask for those that are missing, and write the file of texts."""
    from rmadapter_research.chat import Chat
    from rmadapter_research.describe import ask_all
    from rmadapter_research.texts import check_answers, read_answers, source_of

    who, file = options.model, options.answers
    if file is None:
        chat = Chat.at(options.ask, options.model)
        who = chat.who
        classes = _without_texts(classes, known, out)
        file = ask_all(chat, question, classes, out, progress)
    checked = check_answers(read_answers(file, classes), classes)
    for text in checked.notes():
        note(text)
    if not checked.texts:
        raise UserError(f"{file}: has no texts")
    known = known.extended(checked.texts, source_of(who, question, checked.texts))
    known.write(out)
    if options.ask:
        file.unlink()
    return known, checked


def _note_full(checked: Checked, form: Form, backbone: Backbone) -> None:
    """Note which texts may be cut off."""
    from rmadapter_research.describe import full_texts

    full, length = full_texts(backbone, form, checked.texts)
    if full:
        texts = "1 text fills" if len(full) == 1 else f"{len(full):,} texts fill"
        note(
            f"{texts} the {length} tokens that {backbone.name} reads, and may be cut off, such as "
            f"{full[0][:100]!r}"
        )


def _measure(
    known: TextFile,
    splits: dict[str, ImageSet],
    form: Form,
    request: Request,
    backbone: Backbone,
    out: Path,
    progress: bool,
) -> TextFile:
    """Leave out texts that do not help, and write the file of texts."""
    from rmadapter import Lab
    from rmadapter_research.describe import describe_measured, measure_texts

    lab = Lab(request.machine, progress=progress)
    lab.add(request.task.data, splits)
    lab.add_backbone(backbone)
    known = measure_texts(known, form, request.task, lab, str(out))
    known.write(out)
    for text in describe_measured(known.measured):
        note(text)
    return known


def _show(out: Path, known: TextFile, checked: Checked | None, as_json: bool) -> None:
    """Print what a file of texts holds now."""
    measured = known.measured
    if as_json:
        facts: dict[str, object] = {"texts": str(out), "classes": len(known.texts)}
        if checked:
            facts["answers"] = {**vars(checked), "texts": len(checked.texts)}
        if measured:
            facts["measured"] = measured
        print(json.dumps(facts))
        return
    if measured:
        rows = [[name, f"{rate:.1f}"] for name, rate in measured["accuracy"].items()]
        table([f"{measured['images']:,} shots, {measured['folds']} folds", "accuracy in %"], rows)
    count = sum(map(len, known.texts.values()))
    print(f"texts: {out}, {count:,} about {len(known.texts):,} classes")
    setting = shlex.quote(f"descriptions={out}")
    print(f"next: rmadapter fit IMAGES --method zero-shot-descriptions --set {setting}")


DESCRIBE = Command(
    "describe",
    describe,
    "Look at data",
    (
        "rmadapter describe my-images --out texts.json",
        "rmadapter describe my-images --out texts.json --answers answers.txt",
        "rmadapter describe my-images --out texts.json --measure",
    ),
)
