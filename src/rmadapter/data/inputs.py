"""Images to predict: from files, folders, patterns, tables and stdin to one list of paths, without
opening an image."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmadapter.data.decode import formats
from rmadapter.data.formats.base import URL, Inputs, ReadOptions, in_order, search
from rmadapter.data.formats.registry import list_images
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

__all__ = ["Inputs", "find_images"]


def find_images(
    words: Sequence[str], column: str = "", outside: bool = False, none: bool = False,
    crops: bool = False,
) -> Inputs:  # fmt: skip
    """Find the images that `words` name.

    words: files, folders (searched to any depth), patterns such as "photos/*.jpg", data in any
    other format of docs/data.md, and - for paths on stdin, one per line. A named file is included
    whatever it holds. column: a table's image column; its paths are relative to the table's folder.
    outside: whether paths may leave that folder. none: allow finding no images, since all of them
    may have been moved. crops: use the boxes of annotations as images. Raises UserError for a web
    address, an unreadable table, and if there are no images.
    """
    inputs = Inputs()
    options = ReadOptions(outside, {"image": column}, crops)
    for word in words:
        for name in _lines() if word == "-" else [word]:
            if URL.match(name):
                advice = "fetch the image first, for example with `curl -O`"
                raise UserError(f"{name!r:.200}: a web address; {advice}")
            path = user_path(name)
            images = list_images(path, options)
            if images is None and glob.has_magic(name) and not os.path.lexists(path):
                images = _matches(path)
                if images is None and not none:
                    raise UserError(f"{name!r:.200}: no file matches this pattern")
            elif images is None:
                images = Inputs([path])
            inputs.add(images or Inputs())
    if not inputs.files and not none:
        why = f" ({inputs.note})" if inputs.note else ""
        raise UserError(f"{', '.join(words)[:200]}: no images in a supported format{why}")
    return inputs


def _matches(pattern: Path) -> Inputs | None:
    """Return the matching files, and the images of matching folders unless ** has already searched
    them; None if nothing matches."""
    deep = "**" in pattern.parts
    matches = in_order(Path(match) for match in glob.iglob(str(pattern), recursive=True))
    inputs = Inputs()
    for match in matches:
        if match.is_dir():
            inputs.add(Inputs() if deep else search(match))
        elif match.suffix.lower() in formats():
            inputs.files.append(match)
        else:
            inputs.ignored[match.suffix.lower() or "no suffix"] += 1
    if deep:
        inputs.folders.append(Path(*pattern.parts[: pattern.parts.index("**")]))
    return inputs if matches else None


def _lines() -> Iterator[str]:
    """Yield the lines of stdin without line ends; names need not be UTF-8."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return (os.fsdecode(line) for line in data.splitlines() if line)
