"""Folders of exports with one file of another content, or with a pipe, device or link in its
place: one that still opens answers with probabilities."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.answers.decider import CALIBRATION, FAMILIARITY, TAXONOMY
from rmadapter.export.engines import GRAPH
from rmadapter.export.runtime import LABELS, TRANSFORM, Model
from rmadapter.support.files import SUMS
from tests.helpers.exports import write_export
from tests.hostile import special_files, valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import damage_json

FILES = (LABELS, TRANSFORM, CALIBRATION, FAMILIARITY, TAXONOMY)
SPECIAL = "special"
CHAINS = (99, 101, 3000, 90_000)  # parents, one above the other


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        file = rng.choice(FILES)
        if rng.random() < 0.25:
            file, kind = rng.choice((*FILES, SUMS, GRAPH)), rng.choice([*special_files.KINDS])
            yield f"{file}/{SPECIAL}/{kind}-{number}", str(rng.random()).encode()
        elif file == TAXONOMY and rng.random() < 0.3:
            names = ["red", *map(str, range(10, 10 + rng.choice(CHAINS)))]
            parents = dict(pairwise(names))
            yield f"{file}/json/chain-{number}", json.dumps(parents).encode()
        else:
            what, content = damage_json(rng, json.loads((export() / file).read_bytes()))
            yield f"{file}/json/{what.replace('/', '_')}-{number}", content


@cache
def export() -> Path:
    return write_export(valid.place() / "export", deciding=True)


def check(name: str, content: bytes, folder: Path) -> object:
    file, form, kind = name.split("/")
    copy = valid.copy_folder(export(), folder / "export", file)
    if form == SPECIAL:
        before = os.getcwd()
        os.chdir(copy)  # names of sockets are short
        try:
            special_files.KINDS[kind.rsplit("-", 1)[0]](copy / file)
        finally:
            os.chdir(before)
    else:
        (copy / file).write_bytes(content)
    model = Model(copy)
    images = [Image.new("RGB", (9, 8), colour) for colour in ("red", "green", "blue")]
    table = model.probabilities(model.pixels(images))
    if not np.isfinite(table).all() or abs(table.sum(1) - 1).max() > 1e-3:
        raise Changed(f"{table.tolist()} are no probabilities"[:1000])
    decider = model.decider.at(error=0.1, reject_rate=0.1)
    return [*model.answers(images, decider)]
