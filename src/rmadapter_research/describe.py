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
from rmadapter.cli import Columns, Command, FileOptions, Json, comma_list, note

if TYPE_CHECKING:
    from rmadapter_research.texts import Checked, Named, TextFile


@dataclass(frozen=True)
class Asking:
    """What is asked about each class."""

    form: Annotated[
        Literal["sentences", "descriptors"],
        typer.Option(help="Kind of the texts, as for the method zero-shot-descriptions."),
    ] = "sentences"
    count: Annotated[int, typer.Option(min=1, max=1000, help="Texts per class.")] = 8
    question: Annotated[
        str, typer.Option(help="Your own question, with {} in the place of the class's name.")
    ] = ""


@dataclass(frozen=True)
class Answering:
    """Where answers are from."""

    answers: Annotated[
        Path | None, typer.Option(help="File of answers: JSON, JSON lines, or text by class.")
    ] = None
    model: Annotated[str, typer.Option(help="Language model that wrote the answers.")] = ""


def describe(
    classes: Annotated[
        str, typer.Argument(help='Names, such as "cat,dog,zebra"; or images in any format.')
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the texts, such as texts.json.")
    ] = None,
    asking: Asking = Asking(),
    answering: Answering = Answering(),
    table_columns: Columns = Columns(),
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Have classes described by a language model.

    Writes the questions to ask it, then checks and stores its answers.
    """
    from rmadapter_research.texts import (
        TextFile,
        check_answers,
        question_of,
        read_answers,
        read_text_file,
        source_of,
    )

    if answering.model and not answering.answers:
        raise UserError("--model needs --answers")
    question = question_of(asking.form, asking.count, asking.question)
    if out is None or out.suffix.lower() != ".json":
        raise UserError("name the file of the texts, such as --out texts.json")
    named = _classes(classes, table_columns, files)
    known = read_text_file(out) if out.exists() else TextFile()
    if answering.answers is None:
        _write_questions(out, question, _without_texts(named, known, out), as_json)
        return
    checked = check_answers(read_answers(answering.answers, named), named)
    for text in checked.notes():
        note(text)
    if not checked.texts:
        raise UserError(f"{answering.answers}: has no texts")
    known = known.extended(checked.texts, source_of(answering.model, question, checked.texts))
    known.write(out)
    _show(out, known, checked, as_json)


def _classes(text: str, columns: Columns, files: FileOptions) -> list[Named]:
    """Return the classes of a data set, or those that are named."""
    from rmadapter import read_images
    from rmadapter.data import descriptions, prompt_names
    from rmadapter_research.texts import Named

    if not os.path.exists(text):
        names = prompt_names(comma_list(text))
        if not names:
            raise UserError(f"{text[:100]!r}: name at least one class, or a data set")
        return [Named(label, descriptions(name)[0]) for label, name in names.items()]
    splits = read_images(
        text, columns=columns.named(), check=False, outside=files.outside, skip_bad=files.skip_bad
    )
    first = next(iter(splits.values()))
    pairs = zip(first.written, first.classes, strict=True)
    return [Named(str(label), descriptions(name)[0]) for label, name in pairs]


def _without_texts(classes: list[Named], known: TextFile, out: Path) -> list[Named]:
    """Return the classes that have no texts yet. Raises UserError if all have some."""
    from rmadapter.data import key

    answered = {key(name) for name in known.texts}
    left = [one for one in classes if key(one.name) not in answered]
    if not left:
        raise UserError(f"{out}: every class has texts already; give another --out")
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


def _show(out: Path, known: TextFile, checked: Checked, as_json: bool) -> None:
    """Print what a file of texts holds now."""
    if as_json:
        counts = {**vars(checked), "texts": len(checked.texts)}
        print(json.dumps({"texts": str(out), "classes": len(known.texts), "answers": counts}))
        return
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
    ),
)
