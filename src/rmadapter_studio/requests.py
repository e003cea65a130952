"""What the scripts of both pages ask for, by name: JSON objects that become calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

from rmadapter import UserError
from rmadapter_studio.images import MAX_ZIP_BYTES
from rmadapter_studio.labelling import Card, Labelling
from rmadapter_studio.session import Session

MAX_IMAGE_BYTES = 100_000_000
Body: TypeAlias = Mapping[str, object]
Action: TypeAlias = Callable[[Session, Body], object]


def _text(body: Body, field: str, default: str | None = None) -> str:
    value = body.get(field, default)
    if not isinstance(value, str):
        raise UserError(f"{field} is missing")
    return value


def _number(body: Body, field: str, default: int) -> int:
    value = body.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{field} is not a whole number")
    return value


def _texts(body: Body, field: str) -> list[str]:
    values = body.get(field)
    if not (isinstance(values, list) and values and all(isinstance(one, str) for one in values)):
        raise UserError(f"{field}: give at least one")
    return cast("list[str]", values)


# Labelling


def _cards(labelling: Labelling, body: Body) -> list[Card]:
    return labelling.cards(
        _text(body, "view"),
        _text(body, "order", ""),
        _text(body, "label", ""),
        _text(body, "answer", ""),
        _number(body, "n", 24),
        _number(body, "start", 0),
    )


# of the project, an object, and who asks
LABELLING: dict[str, Callable[[Labelling, Body, str], object]] = {
    "state": lambda labelling, _, by: labelling.state(by),
    "cards": lambda labelling, body, _: _cards(labelling, body),
    "answers": lambda labelling, body, _: labelling.answers(_texts(body, "ids")),
    "near": lambda labelling, body, _: labelling.near(_text(body, "id")),
    "classes": lambda labelling, body, by: labelling.add_classes(_texts(body, "names"), by),
    "remove": lambda labelling, body, by: labelling.project.remove_class(_text(body, "label"), by),
    "set": lambda labelling, body, by: labelling.label(
        _texts(body, "ids"), _text(body, "label"), by
    ),
    "skip": lambda labelling, body, by: labelling.skip(_texts(body, "ids"), by),
    "undo": lambda labelling, _, by: labelling.undo(by),
    "scan": lambda labelling, *_: labelling.scan(),
}


def _of_project(name: str) -> Action:
    """Return what a session does with its project."""

    def act(session: Session, body: Body) -> object:
        if session.labelling is not None:
            return LABELLING[name](session.labelling, body, session.folder.name)
        if name == "state":
            return None
        raise UserError("there are no images to label yet: add some first")

    return act


# Requests with JSON, by method and path


def _add_classes(session: Session, body: Body) -> None:
    with session.lock:
        for name in _texts(body, "names"):
            session.images.add_class(name)


READ: dict[str, Action] = {
    "state": lambda session, _: session.state(),
    "judged": lambda session, _: session.scores(),
}
POST: dict[str, Action] = {
    "classes": _add_classes,
    "remove": lambda session, body: session.remove(_text(body, "label")),
    "open": lambda session, body: session.open(_text(body, "run")),
    "train": lambda session, body: session.train(_text(body, "method")),
    "names": lambda session, _: session.use_names(),
    "add": lambda session, body: session.add(_texts(body, "names")),
    "export": lambda session, body: session.export(_text(body, "to")),
    "stop": lambda session, _: session.stop(),
    **{f"label/{name}": _of_project(name) for name in LABELLING},
}


class Upload(NamedTuple):
    """What takes a file.

    Attributes:
        bytes: Size that a file may have.
        take: Called with the session, the file, what its owner called it, and a label.
    """

    bytes: int
    take: Callable[[Session, Path, str, str], object]


PUT = {
    "image": Upload(
        MAX_IMAGE_BYTES,
        lambda session, file, name, label: session.add_image(file, label, name),
    ),
    "zip": Upload(MAX_ZIP_BYTES, lambda session, file, *_: session.add_zip(file)),
    "ask": Upload(MAX_IMAGE_BYTES, lambda session, file, name, _: session.predict(file, name)),
    "label/image": Upload(
        MAX_IMAGE_BYTES, lambda session, file, name, _: session.label_image(file, name)
    ),
    "label/zip": Upload(MAX_ZIP_BYTES, lambda session, file, *_: session.label_zip(file)),
}
