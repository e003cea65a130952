"""Damaged .mat files of labels, and damaged JSON files of class names beside them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from rmadapter.data.catalog.sets import CATALOG, table_of
from tests.helpers import archives
from tests.hostile.mutate import damage, damage_json

SECONDS = 20.0  # each input starts a process that imports SciPy
FLOWERS, CARS = "imagelabels.mat", "cars_test_annos_withlabels.mat"
LABELS: tuple[Any, ...] = (
    [], [1.5], [float("nan")], [float("inf")], [-1], [0], [10**12], ["a"], [[1], [2, 3]], 1, 2 + 3j,
    "text", b"x", {"a": 1}, np.array([[1, 2]], object), np.array([[None]], object),
    np.zeros((3, 3, 3)), np.array([True]), np.array(["1", "2"]),
    np.array([(1, 2)], [("a", "O"), ("b", "O")]), np.ones((2000, 2000), np.uint8),
    np.array([2**63], np.uint64),
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        file = rng.choice((FLOWERS, CARS))
        draw = rng.random()
        if draw < 0.3:
            what, content = damage_json(rng, {"1": "rose", "2": "daisy", "3": "lily"})
            yield f"cat_to_name.json/{what}-{number}", content
        elif draw < 0.6:
            yield f"{file}/kind-{number}", _file(rng, file, rng.choice(LABELS))
        else:
            what, content = damage(rng, _file(rng, file, archives.FLOWERS))
            yield f"{file}/{what}-{number}", content


def _file(rng: random.Random, file: str, labels: Any) -> bytes:
    if file == CARS:
        rows = labels if isinstance(labels, list) and labels else [labels]
        cells = [(label, rng.choice(("00001.jpg", "../x", 3))) for label in rows]
        labels = np.array([cells], dtype=[("class", object), ("fname", object)])
    buffer = io.BytesIO()
    name = {FLOWERS: "labels", CARS: "annotations"}[file] if rng.random() < 0.95 else "other"
    try:
        savemat(buffer, {name: labels}, do_compression=rng.random() < 0.5)
    except TypeError:  # MATLAB has no such thing
        return b""
    return buffer.getvalue()


def check(name: str, content: bytes, folder: Path) -> object:
    file = name.split("/")[0]
    key = "stanford_cars" if file == CARS else "oxford_flowers"
    archives.WRITERS[key](folder / key)
    (folder / key / file).write_bytes(content)
    return json.dumps(table_of(CATALOG[key], folder / key))
