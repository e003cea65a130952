"""Label Studio's exports JSON and JSON-MIN (labelstud.io/guide/export): choices, and rectangles for
crops."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, unquote

from rmadapter.data.decode import image_formats
from rmadapter.data.formats.base import URL, Mark, Marks, Rows, check_inside, parsing
from rmadapter.data.formats.tables import USUAL_NAMES
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject, path_from, write_json

CHOICE_KEYS = ("choice", "choices", *USUAL_NAMES["label"])
BOX_KEY = "rectanglelabels"
LOCAL_FILES = "/data/local-files/?d="  # precedes a path below Label Studio's folder of local files
Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height


def is_label_studio(value: object) -> bool:
    """Return whether a parsed file is an export."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def read_label_studio(path: Path, tasks: Sequence[JsonObject], outside: bool = False) -> Marks:
    """Return the images in the order of the file, without cancelled annotations.

    Raises:
        UserError: A malformed file, a task without an image, or paths that leave the folder unless
            `outside` is set.
    """
    marks: Marks = {}
    names: dict[Path, str] = {}
    with parsing(path, "a Label Studio export"):
        for number, task in enumerate(tasks):
            where = f"{path}: task {quoted(task.get('id', number))}"
            full = isinstance(task.get("data"), dict)
            name = _image_name(where, task["data"] if full else task)
            image = _file(path, where, name, str(task.get("file_upload") or ""), outside)
            other = names.setdefault(image, name)
            if other != name:
                raise UserError(
                    f"{where}: {quoted(name)} and {quoted(other)} are both {image} here: rename one"
                )
            labels = _full_marks(where, task) if full else _short_marks(where, task)
            marks.setdefault(image, []).extend(labels)
    return marks


def _image_name(where: str, data: JsonObject) -> str:
    """Return the image as written, recognised by a usual key or else by its suffix."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    usual = [texts[key] for key in USUAL_NAMES["image"] if key in texts]
    images = [text for text in texts.values() if _suffix(text) in image_formats()]
    if not (usual or images):
        raise UserError(f"{where} names no image")
    return (usual or images)[0]


def _suffix(text: str) -> str:
    return Path(unquote(text)).suffix.lower()


def _full_marks(where: str, task: JsonObject) -> Iterator[Mark]:
    for annotation in task.get("annotations") or task.get("completions") or ():
        for result in () if annotation.get("was_cancelled") else annotation["result"]:
            if result.get("type") == "relation":  # of two regions, without a value
                continue
            value = result["value"]
            yield from (Mark(str(name), where) for name in value.get("choices", ()))
            yield from _boxes(where, [{**result, **value}])


def _short_marks(where: str, task: JsonObject) -> Iterator[Mark]:
    values = [task[key] for key in CHOICE_KEYS if key in task]
    for value in values:
        if isinstance(value, list):
            yield from _boxes(where, value)
    # If there are several, all but the first were imported: such an export has a task's own fields
    # after what was chosen.
    chosen = next((value for value in values if isinstance(value, (str, dict))), {"choices": ()})
    for name in [chosen] if isinstance(chosen, str) else chosen["choices"]:
        yield Mark(str(name), where)


def _boxes(where: str, values: Sequence[JsonObject]) -> Iterator[Mark]:
    """Yield rectangles in percent of the image; for a turned one, the box around it."""
    for value in values:
        for name in value.get(BOX_KEY, ()):
            box = (value["x"], value["y"], value["width"], value["height"])
            turn = float(value.get("rotation") or 0)
            if turn:
                box = _around(box, turn, value["original_height"] / value["original_width"])
            yield Mark(str(name), where, box, (100, 100))


def _around(box: Box, turn: float, ratio: float) -> Box:
    """Return the upright box around one that is turned clockwise about its corner at the top left.

    Args:
        box: In percent of the image.
        turn: Degrees of a circle in pixels.
        ratio: Height of the image over its width, in pixels.
    """
    left, top, width, height = box
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x * width, y * height * ratio) for x in (0, 1) for y in (0, 1)]
    across = [x * cosine - y * sine for x, y in corners]
    down = [(x * sine + y * cosine) / ratio for x, y in corners]
    return left + min(across), top + min(down), max(across) - min(across), max(down) - min(down)


def _file(path: Path, where: str, written: str, upload: str, outside: bool) -> Path:
    """Return the image beside the export or in images/: as the imported path, the upload, or its
    file name with or without Label Studio's prefix."""
    name = unquote(written).partition("?d=")[2] or unquote(written)
    base = Path(name).name
    address = bool(URL.match(name))
    names = [upload, base, re.sub(r"^[0-9a-f]{8}-", "", base)]
    for each in filter(None, names if address else [name.lstrip("/"), *names]):
        check_inside(each, where, outside)
        for folder in (path.parent, path.parent / "images"):
            if os.path.isfile(folder / each):  # unlike Path's, never raises
                return folder / each
    if address:
        raise UserError(
            f"{where}: {name!r:.200} is a web address, and there is no {base!r:.80} beside the file"
        )
    return path.parent / base


# Writing


def write(splits: Mapping[str, Rows], out: Path, home: Path) -> None:
    """Write tasks with one choice each, for a template of image classification.

    Args:
        splits: Split -> rows; the file does not say of which split an image is.
        out: The file.
        home: Label Studio's folder of local files, which paths are relative to.
    """
    tasks = []
    rows = [row for part in splits.values() for row in part]
    for number, row in enumerate(rows, 1):
        choice = {
            "from_name": "choice",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [row.label]},
        }
        image = LOCAL_FILES + quote(path_from(home, row.image))
        tasks.append(
            {"id": number, "data": {"image": image}, "annotations": [{"result": [choice]}]}
        )
    write_json(out, tasks)
