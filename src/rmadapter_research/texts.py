"""Texts about classes for `describe`: the questions that ask for them, the answers to these, and
the file in which they are kept with their sources.

The file is {"texts": {class name: [text, ...]}, "sources": [...]}; methods read its texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

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
TEXTS, SOURCES, LEFT_OUT, MEASURED = "texts", "sources", "left_out", "measured"
CLASS_KEYS = ("class", "name", "label")
TEXT_KEYS = ("texts", "text", "answer", "descriptions")
BULLET = re.compile(r"\s*(?:[-*\u2022]+|\d+[.)])\s+")
SEPARATOR = re.compile(r":\s+|:$|\t")  # between a class and its text


class Named(NamedTuple):
    """A class: its label, and the name that its texts are stored under."""

    label: str
    name: str


@dataclass(frozen=True)
class Origin:
    """Where the texts of some classes are from.

    Args:
        who: The language model or person.
        when: UTC, in ISO format.
        question: What was asked, with {} in the place of the class.
        classes: Names of the classes whose texts they are.
        sha256: Digest of these texts, as by `digest`.
    """

    who: str
    when: str
    question: str
    classes: tuple[str, ...]
    sha256: str

    def json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**vars(self), "classes": [*self.classes]}


@dataclass(frozen=True)
class TextFile:
    """A file of texts about classes, by class name as written.

    Args:
        texts: The texts of each class.
        sources: As `Origin.json` returns them, the newest last.
        left_out: Texts of classes that a measurement replaced.
        measured: What `describe.measure` found, or nothing.
    """

    texts: Mapping[str, list[str]] = field(default_factory=dict)
    sources: tuple[dict[str, Any], ...] = ()
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def extended(self, texts: Mapping[str, list[str]], origin: Origin) -> TextFile:
        """Return a file whose texts of some classes are these.

        What was measured no longer holds, so that texts that were left out are back.
        """
        new = {key(name) for name in texts}
        kept = {name: some for name, some in self.all_texts().items() if key(name) not in new}
        return TextFile({**kept, **texts}, (*self.sources, origin.json()))

    def all_texts(self) -> dict[str, list[str]]:
        """Return the texts of each class, those that were left out among them."""
        out = {key(name): some for name, some in self.left_out.items()}
        return {
            name: [*dict.fromkeys([*some, *out.get(key(name), ())])]
            for name, some in self.texts.items()
        }

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        more = {LEFT_OUT: self.left_out, MEASURED: self.measured}
        facts = {TEXTS: self.texts, SOURCES: [*self.sources]}
        write_json(path, facts | {name: value for name, value in more.items() if value})


def digest(texts: Mapping[str, Sequence[str]]) -> str:
    """Return the SHA-256 in hex of texts by class, as JSON without spaces and with sorted keys."""
    plain = {name: [*some] for name, some in texts.items()}
    content = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def read_text_file(path: Path) -> TextFile:
    """Read a file of texts in either form.

    Raises:
        UserError: As for `parse_texts`, and for sources that are none.
    """
    value = read_json(path)
    parse_texts(value, str(path))
    if not isinstance(value.get(TEXTS), dict):  # a class called texts has a list
        return TextFile(value)
    sources, left_out = value.get(SOURCES, []), value.get(LEFT_OUT, {})
    measured = value.get(MEASURED, {})
    if not isinstance(sources, list) or not all(isinstance(one, dict) for one in sources):
        raise UserError(f"{path}: {SOURCES} is no list of objects: remove it, or restore the file")
    if not isinstance(measured, dict):
        raise UserError(f"{path}: {MEASURED} is no object: remove it, or restore the file")
    parse_texts(left_out, f"{path}: {LEFT_OUT}")
    return TextFile(value[TEXTS], tuple(sources), left_out, measured)


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
    repeated: list[str] = []
    owners: dict[str, set[str]] = {}
    empty = 0
    for name, text in answers:
        owner, plain = known.get(key(name)), " ".join(text.split())
        if owner is None:
            unknown[name] = None
        elif not plain or not is_text(plain):
            empty += 1
        elif plain in texts[owner]:
            repeated.append(plain)
        else:
            texts[owner].append(plain)
            owners.setdefault(plain, set()).add(owner)
    if unknown and not owners:
        hint = did_you_mean(next(iter(unknown)), [one.name for one in classes])
        raise UserError(f"none of the answers is about one of the classes{hint}")
    return Checked(
        {name: some for name, some in texts.items() if some},
        tuple(name for name, some in texts.items() if not some),
        tuple(unknown),
        empty,
        tuple(dict.fromkeys(repeated)),
        tuple(text for text, names in owners.items() if len(names) > 1),
    )


def read_answers(path: Path, classes: Sequence[Named]) -> list[tuple[str, str]]:
    """Read pairs of a class's name and a text, in the order of the file.

    Args:
        path: An object or a list of JSON, JSON lines, or plain text.
        classes: The classes that were asked about.

    Raises:
        UserError: The file has no such form.
    """
    return parse_answers(read_text(path), classes, str(path))


def parse_answers(text: str, classes: Sequence[Named], where: str) -> list[tuple[str, str]]:
    """Parse what `read_answers` reads; messages begin with `where`."""
    fenced = re.search(r"^```\w*\s*\n(.*?)^```", text, re.M | re.S)
    body = (fenced[1] if fenced else text).strip()
    if not body:
        raise UserError(f"{where}: is empty")
    if body[0] in "{[":
        return _from_json(body, where)
    return _from_lines(body.splitlines(), classes, where)


def _from_json(body: str, where: str) -> list[tuple[str, str]]:
    """Read an object by class, a list of objects, or an object a line."""
    try:
        values = [json.loads(body, object_pairs_hook=_Pairs)]
    except (ValueError, RecursionError):
        values = []
        for number, line in enumerate(body.splitlines(), 1):
            try:
                values += [json.loads(line, object_pairs_hook=_Pairs)] if line.strip() else []
            except (ValueError, RecursionError):
                raise UserError(f"{where}, line {number}: not readable JSON") from None
    if len(values) == 1 and isinstance(values[0], list) and not isinstance(values[0], _Pairs):
        values = values[0]
    pairs: list[tuple[str, str]] = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, _Pairs):
            raise UserError(f'{where}, object {number}: write {{"class": NAME, "texts": [...]}}')
        pairs += _of_object(value, f"{where}, object {number}")
    return pairs


class _Pairs(list[tuple[str, object]]):
    """The pairs of an object of JSON; names may appear twice."""

    def get(self, *names: str) -> object:
        """Return the value of the first of these names; None without one."""
        return next((value for name in names for known, value in self if known == name), None)


def _of_object(value: _Pairs, where: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of an object that has a class or names classes."""
    name, texts = value.get(*CLASS_KEYS), value.get(*TEXT_KEYS)
    if isinstance(name, str) and texts is not None and not isinstance(texts, _Pairs):
        yield from _texts_in(name, texts, where)
        return
    inner = value.get(TEXTS)
    for one, some in inner if isinstance(inner, _Pairs) else value:
        yield from _texts_in(one, some, where)


def _texts_in(name: str, value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a class: a list, or lines."""
    if isinstance(value, str):
        value = [_plain(line) for line in value.splitlines() if line.strip()] or [""]
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise UserError(f"{where}: class {name[:100]!r} needs a list of texts")
    for text in value:
        if not isinstance(text, str):
            raise UserError(f"{where}: class {name[:100]!r} has {text!r:.100}, which is no text")
        yield name, text


def _from_lines(
    lines: Sequence[str], classes: Sequence[Named], where: str
) -> list[tuple[str, str]]:
    """Read plain text: a heading for each class and its texts below it, or CLASS: TEXT a line."""
    known = {key(name) for one in classes for name in one}
    blocks = any(_heading(line, known) for line in lines)
    pairs: list[tuple[str, str]] = []
    owner = ""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        heading = _heading(line, known)
        if heading:
            owner = heading
            continue
        first, *rest = SEPARATOR.split(_plain(line), maxsplit=1)
        name = first.strip(" *_\"'")
        if rest and (key(name) in known or not blocks):
            pairs.append((name, _plain(rest[0])))
            owner = owner and name
        elif owner:
            pairs.append((owner, _plain(line)))
        else:
            raise UserError(f"{where}, line {number}: names no class; write CLASS: TEXT")
    return pairs


def _heading(line: str, known: set[str]) -> str:
    """Return the class that a line announces, or nothing: a known one by itself, or any before a
    colon or after #."""
    plain = _plain(line)
    name = plain.strip("#*_:\"' ")
    marked = line.lstrip().startswith("#") or plain.rstrip("*_ ").endswith(":")
    return name if name and (marked or key(name) in known) else ""


def _plain(line: str) -> str:
    """Return a line without the mark of a list, and without quotes around it."""
    text = BULLET.sub("", line, count=1).strip()
    quotes = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1].strip() if quotes else text
