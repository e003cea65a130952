"""Small or plain files of data that ask for far more memory, disk space or time than they take.

An input is a recipe, from which `check` makes the file: written out, some would fill the memory.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from rmadapter.data.read import read_images
from rmadapter.support.files import cache_folder, walk
from tests.hostile.harness import Changed

SECONDS, MEGABYTES = 90.0, 2200.0
MOST_CACHED = 400_000_000  # bytes that one input may add to the cache
ROWS = (1, 10, 2000, 3_000_000, 30_000_000)
LENGTHS = (1, 1000, 1_000_000)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        kind = rng.choice([*KINDS])
        rows, length = rng.choice(ROWS), rng.choice(LENGTHS)
        while rows * length > 30_000_000_000:
            length = rng.choice(LENGTHS)
        recipe = {
            "rows": rows, "length": length, "codec": rng.choice(["zstd", "gzip", "snappy", "none"]),
            "count": rng.choice([1, 300, 3000]), "salt": rng.randrange(10**9),
        }  # fmt: skip
        yield f"{kind}-{number}", json.dumps(recipe).encode()


def check(name: str, content: bytes, folder: Path) -> object:
    before = _cached()
    try:
        path, options = KINDS[name.partition("-")[0]](folder, json.loads(content))
        return read_images(path, progress=False, **options)
    finally:
        _remove_chain(folder / "data/cat")
        if _cached() - before > MOST_CACHED:
            raise Changed("the cache has grown too much")


def _cached() -> int:
    return sum(file.stat().st_size for file in cache_folder().rglob("*") if file.is_file())


def _remove_chain(folder: Path) -> None:
    """Remove folders in folders: those that clear up afterwards fail below a thousand."""
    places = [Path(place) for place, _, _ in walk(folder)]
    for place in reversed(places):
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


Made = tuple[Path, dict[str, Any]]


def photos(folder: Path, side: int = 8) -> None:
    for number in (1, 2):
        Image.new("RGB", (side, side), (number, 0, 0)).save(folder / f"{number}.jpg")


def table(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write a parquet table of one long label that many rows share."""
    import pyarrow as pa
    from pyarrow import parquet

    photos(folder)
    rows, label = recipe["rows"], "x" * recipe["length"]

    def shared(text: str) -> Any:
        places = pa.array([0], pa.int32()).take(pa.array([0] * 1000, pa.int32()))
        part = pa.DictionaryArray.from_arrays(places, pa.array([text]))
        return pa.chunked_array([part] * max(1, rows // 1000))

    content = pa.table({"path": shared("1.jpg"), "label": shared(label)})
    parquet.write_table(content, folder / "t.parquet", compression=recipe["codec"])
    return folder / "t.parquet", {}


def hub(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write a parquet file of the hub in which many rows share one image."""
    import pyarrow as pa
    from pyarrow import parquet

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (recipe["salt"] % 256, 0, 0)).save(file, "PNG")
    data = file.getvalue() + bytes(min(recipe["length"], 100_000))
    rows = min(recipe["rows"], 5000)
    images = [{"bytes": data, "path": f"{number}.png"} for number in range(rows)]
    features = {"image": {"_type": "Image"}, "label": {"names": ["a"], "_type": "ClassLabel"}}
    facts = {"huggingface": json.dumps({"info": {"features": features}})}
    content = pa.table({"image": images, "label": pa.array([0] * rows, pa.int64())})
    content = content.replace_schema_metadata(facts)
    parquet.write_table(content, folder / "t.parquet", compression=recipe["codec"])
    return folder / "t.parquet", {}


def boxes(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write a COCO file of many boxes, each of nearly the whole photo."""
    photos(folder, 1500)
    count = recipe["count"]
    marks = [
        {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i % 2,
         "bbox": [0, 0, 1499 - i / 10_000, 1400 + i / 100]}
        for i in range(count)
    ]  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": i, "name": "ab"[i - 1]} for i in (1, 2)],
        "annotations": marks,
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json", {"crops": True}


def objects(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write JSON of very many small values."""
    part = (b'{"a":1},', b"[],", b"1.5,", b'"ab",')[recipe["salt"] % 4]
    count = min(recipe["rows"] * recipe["length"], 100_000_000) // len(part)
    with open(folder / "a.json", "wb") as file:
        file.write(b"[")
        for _ in range(count // 1000):
            file.write(part * 1000)
        file.write(b"0]")
    return folder / "a.json", {}


def lines(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write a CSV file of very many short rows or cells."""
    photos(folder)
    part = (b"1.jpg,a\n", b"ab,", b"\n", b'"a\nb",')[recipe["salt"] % 4]
    count = min(recipe["rows"] * recipe["length"], 100_000_000) // len(part)
    with open(folder / "a.csv", "wb") as file:
        file.write(b"path,label\n1.jpg,a\n2.jpg,b\n")
        for _ in range(count // 1000):
            file.write(part * 1000)
    return folder / "a.csv", {}


def members(folder: Path, recipe: dict[str, Any]) -> Made:
    """Write a zip of very many empty files, or of archives."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("a/1.txt", b"")
    nested = recipe["salt"] % 2
    count = recipe["count"] * (3 if nested else 30)
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        for number in range(count):
            if nested:
                file.writestr(f"{number}/{recipe['salt']}.zip", inner.getvalue())
            else:
                file.writestr(f"{number}-{recipe['salt']}.txt", b"")
    return folder / "a.zip", {}


def depth(folder: Path, recipe: dict[str, Any]) -> Made:
    """Make folders in folders, as deep as the system allows by one path."""
    place = folder / "data" / "cat"
    room = (4000 - len(os.fspath(place))) // 2
    place.mkdir(parents=True)
    for _ in range(min(recipe["count"], room)):  # os.makedirs calls itself
        place = place / "d"
        place.mkdir()
    photos(place)
    return folder / "data", {}


KINDS: dict[str, Callable[[Path, dict[str, Any]], Made]] = {
    "table": table, "hub": hub, "boxes": boxes, "objects": objects, "lines": lines,
    "members": members, "depth": depth,
}  # fmt: skip
