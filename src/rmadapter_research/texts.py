"""Texts about classes for `describe`: the questions that ask for them, the answers to these, and
the file in which they are kept with their sources.

The file is {"texts": {class name: [text, ...]}, "sources": [...]}; methods read its texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import TypeAdapter, ValidationError

from rmadapter import UserError
from rmadapter.artifacts import read_json, read_text, write_json
from rmadapter.cli import did_you_mean
from rmadapter.data import is_text, key, parse_texts

Form: TypeAlias = Literal["sentences", "descriptors"]
QUESTIONS: dict[Form, str] = {
    "sentences": (
        "Write {count} sentences that say what {} looks like in a picture. Name {} in every "
        "sentence, say only what can be seen, and use at most 40 words a sentence."
    ),
    "descriptors": (
        "List {count} visual features by which {} is recognised in a picture, of a few words each, "
        'such as "four legs", "a long tail" or "can be red".'
    ),
}
ONE_A_LINE = " Answer with one of them a line, and nothing else."
AS_JSON = (
    "\nAnswer with JSON alone, an object of this form with every class in it:\n"
    '{"class": ["text", "text", ...], ...}'
)
TEXTS = "texts"
BULLET = re.compile(r"\s*(?:[-*\u2022]+|\d+[.)])\s+")


class Named(NamedTuple):
    """A class: its label, and the name that its texts are stored under."""

    label: str
    name: str


@dataclass(frozen=True)
class TextFile:
    """A file of texts about classes, by class name as written.

    Args:
        texts: The texts of each class.
        sources: As `source_of` returns them, the newest last.
    """

    texts: Mapping[str, list[str]] = field(default_factory=dict)
    sources: tuple[dict[str, object], ...] = ()

    def extended(self, texts: Mapping[str, list[str]], source: dict[str, object]) -> TextFile:
        """Return a file whose texts of some classes are these."""
        new = {key(name) for name in texts}
        kept = {name: some for name, some in self.texts.items() if key(name) not in new}
        return TextFile({**kept, **texts}, (*self.sources, source))

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, vars(self))


def source_of(who: str, question: str, texts: Mapping[str, list[str]]) -> dict[str, object]:
    """Return where texts that are written now are from, as a file keeps it.

    Args:
        who: The language model or person.
        question: What was asked, with {} in the place of the class.
        texts: The texts by class. Their digest is that of JSON without spaces and with sorted keys.
    """
    content = json.dumps(texts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {
        "who": who,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "question": question,
        "classes": [*texts],
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }


def read_text_file(path: Path) -> TextFile:
    """Read a file of texts in either form.

    Raises:
        UserError: As for `parse_texts`, and for sources that are none.
    """
    value = read_json(path)
    parse_texts(value, str(path))
    if not isinstance(value.get(TEXTS), dict):  # a class called texts has a list
        return TextFile(value)
    try:
        return TypeAdapter(TextFile).validate_python(value)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]["loc"][0]
        raise UserError(f"{path}: {entry} is damaged: remove it, or restore the file") from None


# Questions


def question_of(form: Form, count: int, own: str = "") -> str:
    """Return the question about a class, with {} in the place of its name.

    Args:
        form: Kind of the texts.
        count: Texts per class.
        own: The user's question, which takes the place of ours.

    Raises:
        UserError: The user's question has no {}.
    """
    if own and "{}" not in own:
        raise UserError(f"--question {own[:100]!r}: write {{}} in the place of the class's name")
    return own or QUESTIONS[form].replace("{count}", str(count))


def ask_about(question: str, name: str) -> str:
    """Return the question about one class, to be answered with lines."""
    return question.replace("{}", f'"{name}"') + ONE_A_LINE


def pasted(question: str, names: Sequence[str]) -> str:
    """Return one text with the question about every class, to be answered with JSON."""
    listed = "\n".join(f"- {name}" for name in names)
    return f"For each of these classes:\n{listed}\n\n{question.replace('{}', 'it')}{AS_JSON}\n"


# Answers


@dataclass(frozen=True)
class Checked:
    """Answers by class name, and what is wrong with the others.

    Args:
        texts: Texts of the classes that have some.
        missing: Classes without texts.
        unknown: Names of no class.
        empty: Number of empty texts, which are left out.
        repeated: Texts that a class has twice, of which one is kept.
        shared: Texts that several classes have, which tell none of them apart.
    """

    texts: dict[str, list[str]]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    empty: int
    repeated: tuple[str, ...]
    shared: tuple[str, ...]

    def notes(self) -> Iterator[str]:
        """Yield sentences about what is wrong."""
        if self.unknown:
            hint = did_you_mean(self.unknown[0], [*self.texts, *self.missing])
            yield f"left out, as no class is called so: {_listed(self.unknown)}{hint}"
        if self.empty:
            yield f"left out: {self.empty:,} empty texts"
        if self.repeated:
            yield f"kept once: texts that a class has several times, {_listed(self.repeated)}"
        if self.shared:
            yield (
                f"several classes share a text, which tells none of them apart: "
                f"{_listed(self.shared)}"
            )
        if self.missing:
            yield (
                f"without texts: {_listed(self.missing)}; answer for them, too, as methods refuse "
                "a file that lacks a class"
            )


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 5:,} more" if len(texts) > 5 else ""
    return ", ".join(repr(text[:100]) for text in texts[:5]) + more


def check_answers(answers: Sequence[tuple[str, str]], classes: Sequence[Named]) -> Checked:
    """Sort the texts of answers by class, in any order and spelling.

    Args:
        answers: Names and texts.
        classes: The classes that were asked about.

    Raises:
        UserError: No name is of a class.
    """
    known = {key(one.label): one.name for one in classes}
    known |= {key(one.name): one.name for one in classes}
    texts: dict[str, list[str]] = {one.name: [] for one in classes}
    unknown: dict[str, None] = {}
    repeated: dict[str, None] = {}
    empty = 0
    for name, text in answers:
        owner = known.get(key(name))
        plain = " ".join(text.split())
        if owner is None:
            unknown[name] = None
        elif not plain or not is_text(plain):
            empty += 1
        elif plain in texts[owner]:
            repeated[plain] = None
        else:
            texts[owner].append(plain)
    uses = Counter(text for some in texts.values() for text in some)
    if unknown and not uses:
        hint = did_you_mean(next(iter(unknown)), [one.name for one in classes])
        raise UserError(f"none of the answers is about one of the classes{hint}")
    return Checked(
        {name: some for name, some in texts.items() if some},
        tuple(name for name, some in texts.items() if not some),
        tuple(unknown),
        empty,
        tuple(repeated),
        tuple(text for text, count in uses.items() if count > 1),
    )


def read_answers(path: Path, classes: Sequence[Named]) -> list[tuple[str, str]]:
    """Read pairs of a class's name and a text, in the order of the file.

    Args:
        path: An object or a list of JSON, JSON lines, or plain text.
        classes: The classes that were asked about.

    Raises:
        UserError: The file has no such form.
    """
    text = read_text(path)
    fenced = re.search(r"^```\w*\s*\n(.*?)^```", text, re.M | re.S)
    body = (fenced[1] if fenced else text).strip()
    if not body:
        raise UserError(f"{path}: is empty")
    if body[0] in "{[":
        return _from_json(body, path)
    return _from_lines(body.splitlines(), classes, path)


def _from_json(body: str, path: Path) -> list[tuple[str, str]]:
    """Read objects that name a class, or whose keys are classes: one, a list, or one a line."""
    try:
        whole = json.loads(body, object_pairs_hook=_object)
        values = whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        values = _json_lines(body, path)
    pairs: list[tuple[str, str]] = []
    for number, value in enumerate(values, 1):
        where = f"{path}, object {number}"
        if not isinstance(value, dict):
            raise UserError(f'{where}: write {{"class": NAME, "texts": [...]}}')
        if isinstance(value.get("class"), str):
            value = {value["class"]: value.get("texts", value.get("answer"))}
        for name, texts in value.items():
            if isinstance(texts, str):
                texts = [_plain(line) for line in texts.splitlines() if line.strip()]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{where}: class {name[:100]!r} needs a list of texts")
            pairs += [(name, text) for text in texts]
    return pairs


def _json_lines(body: str, path: Path) -> list[object]:
    """Read the value in each line."""
    values = []
    for number, line in enumerate(body.splitlines(), 1):
        try:
            values += [json.loads(line, object_pairs_hook=_object)] if line.strip() else []
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not readable JSON") from None
    return values


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON; a class that is named again keeps the texts of before, too."""
    found: dict[str, object] = {}
    for name, value in pairs:
        found[name] = [*_as_list(found[name]), *_as_list(value)] if name in found else value
    return found


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _from_lines(
    lines: Sequence[str], classes: Sequence[Named], path: Path
) -> list[tuple[str, str]]:
    """Read plain text: a heading for each class and its texts below it, or CLASS: TEXT a line.

    A heading is a class by itself, or any name before a colon or after #.
    """
    known = {key(name) for one in classes for name in one}
    pairs: list[tuple[str, str]] = []
    owner = ""  # whose texts follow a heading
    for number, line in enumerate(lines, 1):
        plain = _plain(line)
        name = plain.strip("#*_:\"' ")
        if not plain:
            continue
        if key(name) in known or plain.startswith("#") or plain.rstrip("*_ ").endswith(":"):
            owner = name
            continue
        first, colon, text = plain.partition(":")
        name = first.strip("*_\"' ")
        if colon and (key(name) in known or not owner):
            pairs.append((name, _plain(text)))
            owner = owner and name
        elif owner:
            pairs.append((owner, plain))
        else:
            raise UserError(f"{path}, line {number}: names no class; write CLASS: TEXT")
    return pairs


def _plain(line: str) -> str:
    """Return a line without the mark of a list, and without quotes around it."""
    text = BULLET.sub("", line, count=1).strip()
    quotes = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1].strip() if quotes else text
