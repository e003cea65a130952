"""Zip and tar files, and embedded images: stored in the cache, once, as ordinary files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from rmadapter.data.catalog.fetch import ARCHIVES, unpack
from rmadapter.data.decode import formats
from rmadapter.data.formats.base import SPLITS, Inputs, ReadOptions, Source, search
from rmadapter.support.files import atomic, cache_folder, shortened
from rmadapter.support.locks import build_once

SUFFIXES = ARCHIVES
HAS_BOXES = True
HAS_COLUMNS = True
ABOUT = re.compile(
    r"(readme|licen[cs]e|copying)(\.(txt|md|rst|html|pdf))?|.*\.md", re.IGNORECASE
)  # no data
LEAST, TIMES = 100_000_000, 20  # an archive may unpack to LEAST bytes plus TIMES its own size


def detects(path: Path) -> bool:
    return is_packed(path) and os.path.isfile(path)


def read(path: Path, options: ReadOptions) -> Source:
    from rmadapter.data.formats import registry, webdataset

    folder = unpack_once(path)
    if not webdataset.is_sampled(folder):
        return registry.open_source(inner(folder), options.outside, options.columns, options.crops)
    if options.crops:
        registry.refuse_crops(path)
    ignored: Counter[str] = Counter()
    names = webdataset.class_names(path.parent) or webdataset.class_names(folder)
    return Source(folder, {"all": webdataset.samples(folder, names, ignored)}, ignored)


def image_root(path: Path) -> Path:
    from rmadapter.data.formats import registry, webdataset

    folder = place(path)
    if not folder.is_dir() or webdataset.is_sampled(folder):
        return folder
    return registry.images_root(inner(folder))


def list_images(path: Path, options: ReadOptions) -> Inputs:
    return search(unpack_once(path))


def is_packed(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def place(archive: Path) -> Path:
    """Return the cache folder for an archive, which need not exist yet; a changed archive gets
    another one."""
    facts = os.stat(archive)
    word = f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    key = hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:16]
    suffix = next(suffix for suffix in ARCHIVES if archive.name.lower().endswith(suffix))
    return cache_folder() / "unpacked" / f"{shortened(archive.name[: -len(suffix)])}-{key}"


def unpack_once(archive: Path) -> Path:
    """Return the folder with the contents of a zip or tar file, which is unpacked once unless it
    changes.

    Raises UserError as `fetch.unpack`, with a limit of 100 MB plus twenty times the archive's size,
    and if the cache cannot be written.
    """
    folder = place(archive)
    count = folder.with_name(f".{folder.name}.files")

    def complete() -> bool:  # a program that deletes old files from caches may have taken some
        return folder.is_dir() and not (count.is_file() and _files(folder) != count.read_text())

    def build(stage: Path) -> None:
        unpack(archive, stage, LEAST + TIMES * os.stat(archive).st_size, fresh=True)
        count.write_text(_files(stage))

    build_once(folder, build, complete)
    return folder


def _files(folder: Path) -> str:
    """Return the number of files, as text."""
    return str(sum(len(files) for _, _, files in os.walk(folder)))


def inner(folder: Path) -> Path:
    """Return the innermost folder of an unpacked archive.

    A folder is entered if it holds nothing but one folder and texts about the data. A folder of a
    split is not entered, nor one of nothing but images, which is a class.
    """
    while True:
        inside = [entry for entry in folder.iterdir() if not _is_about(entry)]
        one = len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink()
        if not one or inside[0].name.casefold() in SPLITS or _is_class(inside[0]):
            return folder
        folder = inside[0]


def _is_about(entry: Path) -> bool:
    text = bool(ABOUT.fullmatch(entry.name)) and entry.is_file()
    return text or entry.name.startswith((".", "__MACOSX"))


def _is_class(folder: Path) -> bool:
    return all(entry.suffix.lower() in formats() and entry.is_file() for entry in folder.iterdir())


def store_image(data: bytes, name: str) -> Path:
    """Store an encoded image in the cache; return its path, made of the content's digest and
    `name`."""
    digest = hashlib.sha256(data).hexdigest()
    plain = shortened(re.sub(r"[^\w.-]", "_", Path(name).name), end=True).lstrip(".") or "image"
    path = cache_folder() / "images" / digest[:2] / f"{digest[:24]}-{plain}"
    if not path.exists():
        with atomic(path, sync=False) as temporary:
            temporary.write_bytes(data)
    return path
