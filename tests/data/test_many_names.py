"""Names of a stranger's table cost time by their number, not by its square."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rmadapter.data.formats.class_folders import free_name
from rmadapter.data.formats.tables import read_rows
from rmadapter.data.label_files import parents_of
from rmadapter.data.names import only_label
from rmadapter.errors import UserError, did_you_mean

COUNT = 30_000
NAMES = [f"name {number}" for number in range(COUNT)]
SECONDS = 6  # of the processor; by the square each takes several times as many


def give_parents(_: Path) -> None:
    assert len(parents_of(dict.fromkeys(NAMES, "thing"), NAMES, "t.csv")) == COUNT


def give_an_image_all_labels(_: Path) -> None:
    with pytest.raises(UserError, match=r"'name 0'.*'name 1'"):
        only_label(NAMES, "a.png")


def call_all_the_same(_: Path) -> None:
    taken: dict[str, int] = {}
    names = [free_name("A/a", ".png", taken) for _ in NAMES]
    assert names[:3] == ["A/a.png", "A/a-2.png", "A/a-3.png"]
    assert free_name("a/A-2", ".PNG", taken) == "a/A-2-2.PNG"
    assert len({*names}) == COUNT


def read_many_columns(folder: Path) -> None:
    columns = ",".join(NAMES)
    (folder / "t.csv").write_text(f"image,label,{columns}\na.png,cat,{'x,' * (COUNT - 1)}x\n")
    assert len(list(read_rows(folder / "t.csv", ["image", "label"], ["split"]))) == 1


def mistype(_: Path) -> None:
    rng = random.Random(0)
    parts = ["".join(rng.sample("abcdefghij", 10)) for _ in range(10)]
    first, *words = ("".join(rng.choices(parts, k=10)) for _ in NAMES)
    assert did_you_mean(first, words)


@pytest.mark.parametrize(
    "use", [give_parents, give_an_image_all_labels, call_all_the_same, read_many_columns, mistype]
)
def test_many_names_take_little_time(use: Callable[[Path], None], tmp_path: Path) -> None:
    started = time.process_time()
    use(tmp_path)
    assert time.process_time() - started < SECONDS
