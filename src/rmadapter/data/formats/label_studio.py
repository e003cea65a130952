"""Label Studio's exports JSON and JSON-MIN (labelstud.io/guide/export): choices, and rectangles for
crops."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rmadapter.data.decode_limits import URL, check_inside, formats
from rmadapter.data.formats.annotations import Mark, Marks, shaped
from rmadapter.data.formats.columns import USUAL
from rmadapter.errors import UserError, quoted

KIND = "a Label Studio export"
CHOICE = ("choice", "choices", *USUAL["label"])
BOXES = "rectanglelabels"


def is_label_studio(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def read_label_studio(path: Path, tasks: Sequence[Any], outside: bool = False) -> Marks:
    """The images in the order of the file, without cancelled annotations. Raises UserError for a
    malformed file, a task without an image, and paths that leave the folder unless `outside` is
    set."""
    marks: Marks = {}
    known: dict[Path, str] = {}
    with shaped(path, KIND):
        for number, task in enumerate(tasks):
            where = f"{path}: task {quoted(task.get('id', number))}"
            full = isinstance(task.get("data"), dict)
            written = _written(where, task["data"] if full else task)
            image = _file(path, where, written, str(task.get("file_upload") or ""), outside)
            if (other := known.setdefault(image, written)) != written:
                raise UserError(
                    f"{where}: {quoted(written)} and {quoted(other)} are both {image} here: rename one"
                )
            marks.setdefault(image, []).extend(_full(where, task) if full else _short(where, task))
    return marks


def _written(where: str, data: Mapping[str, Any]) -> str:
    """The image as written, found by a usual key or else by its suffix."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    usual = [texts[key] for key in USUAL["image"] if key in texts]
    found = usual or [
        text for text in texts.values() if Path(unquote(text)).suffix.lower() in formats()
    ]
    if not found:
        raise UserError(f"{where} names no image")
    return found[0]


def _full(where: str, task: Mapping[str, Any]) -> Iterator[Mark]:
    for annotation in task.get("annotations") or task.get("completions") or ():
        for result in () if annotation.get("was_cancelled") else annotation["result"]:
            if result.get("type") == "relation":  # of two regions, without a value
                continue
            value = result["value"]
            yield from (Mark(str(name), where) for name in value.get("choices", ()))
            yield from _boxes(where, [{**result, **value}])


def _short(where: str, task: Mapping[str, Any]) -> Iterator[Mark]:
    values = [task[key] for key in CHOICE if key in task]
    for value in values:
        if isinstance(value, list):
            yield from _boxes(where, value)
    chosen = next((value for value in values if isinstance(value, (str, dict))), {"choices": ()})
    # Of several, the others were imported: such an export has a task's own fields beside what was
    # chosen.
    yield from (
        Mark(str(name), where)
        for name in ([chosen] if isinstance(chosen, str) else chosen["choices"])
    )


def _boxes(where: str, values: Sequence[Mapping[str, Any]]) -> Iterator[Mark]:
    """Rectangles, in percent of the image; of a turned one, the box around it."""
    for value in values:
        for name in value.get(BOXES, ()):
            box = (value["x"], value["y"], value["width"], value["height"])
            if turn := float(value.get("rotation") or 0):
                box = _around(box, turn, value["original_height"] / value["original_width"])
            yield Mark(str(name), where, box, (100, 100))


def _around(
    box: tuple[float, float, float, float], turn: float, ratio: float
) -> tuple[float, float, float, float]:
    """The upright box around one that is turned clockwise about its corner at the top left, by
    `turn` degrees of a circle in pixels. ratio: height of the image over its width, in pixels."""
    left, top, width, height = box
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x * width, y * height * ratio) for x in (0, 1) for y in (0, 1)]
    across, down = (
        [x * c - y * s for x, y in corners],
        [(x * s + y * c) / ratio for x, y in corners],
    )
    return left + min(across), top + min(down), max(across) - min(across), max(down) - min(down)


def _file(path: Path, where: str, written: str, upload: str, outside: bool) -> Path:
    """The image beside the export or in images/: as the imported path, the upload, or its file name
    with or without Label Studio's prefix."""
    name = unquote(written).partition("?d=")[2] or unquote(written)
    base = Path(name).name
    names = [
        *([] if URL.match(name) else [name.lstrip("/")]),
        upload,
        base,
        re.sub(r"^[0-9a-f]{8}-", "", base),
    ]
    for each in filter(None, names):
        check_inside(each, where, outside)
        for folder in (path.parent, path.parent / "images"):
            if os.path.isfile(folder / each):  # unlike Path's, never raises
                return folder / each
    if URL.match(name):
        raise UserError(
            f"{where}: {name!r:.200} is a web address, and there is no {base!r:.80} beside the file"
        )
    return path.parent / base
