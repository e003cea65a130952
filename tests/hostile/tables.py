"""Hostile CSV files of `path,label[,split]` and split files of [path, label, class name].

A name says what was done, and ends with .csv or .json. Files with a single fault name the images
a/0.png to a/4.png and b/0.png to b/4.png.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from rmadapter.data.catalog.readers import image_sets, split_json
from rmadapter.data.read import read_images

SECONDS = 20.0

FORMULAS = [
    '=HYPERLINK("http://evil","x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "=cmd|'/c calc'!A0",
    "％=1",
]  # fmt: skip
ODD = [
    "", " ", "\0", "\ud800", "\u202egnp.x", "\x1b[2J", "a" * 300, "é", "e\u0301", "CON", ".", "..",
    "a\nb", "'", '"', ",",
]  # fmt: skip
OUTSIDE = [
    "/etc/passwd", "../../../etc/passwd", "a/../../x.png", "/dev/zero", "/proc/self/mem",
    "//host/share/x.png", "C:\\x.png", "\\\\host\\x.png", "~root/x.png", "file:///etc/passwd",
    "http://evil/x.png",
]  # fmt: skip
NUMBERS: list[Any] = [-1, 10**30, 1e308, float("nan"), float("inf"), True, None, "1", [], {}, 0.5]


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        name, content = rng.choice(KINDS)(rng)
        yield f"{number:05d}-{name}", content


def check(name: str, content: bytes, folder: Path) -> object:
    path = folder / name
    path.write_bytes(content)
    if path.suffix == ".json":
        return image_sets(split_json(path), folder, path)
    for label in "ab":
        (folder / label).mkdir()
        for number in range(5):
            Image.new("RGB", (4, 4)).save(folder / label / f"{number}.png")
    return read_images(path, progress=False)


def good_rows(rng: random.Random) -> list[list[str]]:
    """Return rows of [path, label, split] in random order."""
    splits = ["train"] * 3 + ["test"] * 2
    rows = [[f"{label}/{i}.png", label, splits[i]] for label in "ab" for i in range(5)]
    rng.shuffle(rows)
    return rows


def as_csv(
    rows: list[list[str]], header: str = "path,label,split", end: str = "\n", comma: str = ","
) -> bytes:
    def cell(text: str) -> str:
        quoted = '"' + text.replace('"', '""') + '"'
        return quoted if any(mark in text for mark in '",\n\r') else text

    lines = [header, *(comma.join(map(cell, row)) for row in rows)]
    return end.join([*lines, ""]).encode("utf-8", "surrogatepass")


def odd_cells(rng: random.Random) -> tuple[str, bytes]:
    """Make one or a few cells formulas, empty, far too long, or no text."""
    rows = good_rows(rng)
    for _ in range(rng.choice([1, 1, 5])):
        row = rng.choice(rows)
        row[rng.randrange(3)] = rng.choice([*FORMULAS, *ODD, "x" * rng.choice([1000, 200_000])])
    return "cells.csv", as_csv(rows)


def outside(rng: random.Random) -> tuple[str, bytes]:
    rows = good_rows(rng)
    rng.choice(rows)[0] = rng.choice(OUTSIDE)
    return "outside.csv", as_csv(rows)


def headers(rng: random.Random) -> tuple[str, bytes]:
    odd = ["", "path", "path,path,label", "label,path", "PATH,LABEL", "path;label", "path\0,label"]
    good = ["\ufeffpath,label,split", "\n\n\npath,label,split", "path,label,split," + "x," * 5000]
    header = rng.choice([*odd, *good])
    return "header.csv", as_csv(good_rows(rng), header)


def shape(rng: random.Random) -> tuple[str, bytes]:
    """Write too few or too many cells, other line ends and marks, open quotes, or encodings."""
    rows = good_rows(rng)
    what = rng.choice(["short", "long", "end", "comma", "quote", "encoding", "nothing", "twice"])
    if what == "short":
        rng.choice(rows).pop()
    if what == "long":
        rng.choice(rows).extend(["x"] * rng.choice([1, 10_000]))
    end = rng.choice(["\r", "\r\n", "\n\n"]) if what == "end" else "\n"
    comma = rng.choice(";\t|") if what == "comma" else ","
    data = as_csv(rows * (2 if what == "twice" else 1), end=end, comma=comma)
    if what == "quote":
        place = rng.randrange(len(data))
        data = data[:place] + b'"' + data[place:]
    if what == "encoding":
        data = data.decode().encode(rng.choice(["utf-16", "utf-32", "utf-16-le"]))
    return f"{what}.csv", b"" if what == "nothing" else data


def many_classes(rng: random.Random) -> tuple[str, bytes]:
    """Give every row a class of its own, with nearly equal names."""
    count = rng.choice([1000, 10_000])
    return "classes.csv", as_csv([["a/0.png", f"class {i}", "train"] for i in range(count)])


def flipped(rng: random.Random) -> tuple[str, bytes]:
    name, content = rng.choice([odd_cells, split_rows])(rng)
    data = bytearray(content)
    for _ in range(rng.choice([1, 4, 32])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return f"flipped-{name}", bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])


def noise(rng: random.Random) -> tuple[str, bytes]:
    return rng.choice(["noise.csv", "noise.json"]), rng.randbytes(rng.choice([0, 1, 50, 5000]))


def good_split(rng: random.Random) -> dict[str, Any]:
    table: dict[str, Any] = {"train": [], "test": []}
    for path, label, split in good_rows(rng):
        table[split].append([path, "ab".index(label), label])
    return table


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def split_rows(rng: random.Random) -> tuple[str, bytes]:
    """Make one row of another kind or length, or change its label, name or path."""
    table = good_split(rng)
    rows = table[rng.choice(["train", "test"])]
    row, what = rng.choice(rows), rng.choice(["path", "label", "name", "kind", "length"])
    if what == "path":
        row[0] = rng.choice([*OUTSIDE, *ODD])
    if what == "label":
        row[1] = rng.choice([*NUMBERS, 7, 10**6])
    if what == "name":
        row[2] = rng.choice([*FORMULAS, *ODD, None, 3, "x" * 200_000])
    if what == "kind":
        rows[rng.randrange(len(rows))] = rng.choice([None, 3, "abc", {"path": "a/0.png"}, [[]]])
    if what == "length":
        row[:] = rng.choice([row[:2], [*row, 1], []])
    return f"{what}.json", as_json(table)


def split_shapes(rng: random.Random) -> tuple[str, bytes]:
    """Write JSON that is no split file, or so deep that a parser runs out of its stack."""
    deep = rng.choice([100, 5000, 100_000])
    table = good_split(rng)
    others: list[Any] = [{}, {"dev": []}, {"val": None}, {"train": []}, {"test": {"a": 1}}]
    shapes = [b"[" * deep, b'{"train":' * deep, b"[" * deep + b"]" * deep, b"9" * 10_000]
    shapes += [b"null", b"3", b'"x"', b"[]", b"{}", as_json({"train": table["train"]})]
    shapes += [as_json({**table, **other}) for other in others]
    shapes += [b"\xef\xbb\xbf" + as_json(table), as_json(table) + b"x", as_json(table)[:-5]]
    return "shape.json", rng.choice(shapes)


KINDS: list[Callable[[random.Random], tuple[str, bytes]]] = [
    odd_cells, odd_cells, outside, headers, shape, many_classes, flipped, noise, split_rows,
    split_rows, split_shapes,
]  # fmt: skip
