"""docs/method.md: its open points are settings, and its walks are walked."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.settings import parse_overrides, settings_of
from rmadapter.task import COMMON_SETTINGS

ROOT = Path(__file__).parents[2]
METHOD_PAGE = ROOT / "docs/method.md"


def test_open_points_are_settings() -> None:
    known = {*COMMON_SETTINGS, *settings_of(load_method("rmadapter"))}
    text = METHOD_PAGE.read_text(encoding="utf-8")
    rows = text.split("| open point |")[1].split("\n\n")[0].splitlines()
    fields = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[-2])}
    assert fields <= known
    assert len(fields) > 15
    told = parse_overrides(
        re.findall(r"`(\w+=\S+?)`", text.split("`--method mma` sets")[1].split("\n\n")[0])
    )
    mma, ours = settings_of(load_method("mma")), settings_of(load_method("rmadapter"))
    changed = {
        name
        for name, value in mma.items()
        if value != ours[name] and not name.startswith("lambda_")
    }
    assert told == {name: mma[name] for name in {*told, *changed}}


# Walks


def walks() -> list[list[list[str]]]:
    """Each line's functions, of the three walks."""
    text = METHOD_PAGE.read_text(encoding="utf-8").split("## Three walks")[1].split("\n## ")[0]
    parts = [re.findall(r"^\d+\. (.+)$", part, re.M) for part in text.split("\n**")[1:]]
    return [[re.findall(r"`(\w+(?:\.\w+)+)`", line) for line in lines] for lines in parts]


@pytest.mark.slow
def test_the_walks_are_walked(
    tiny_clip: Backbone, colors: Path, finished: Path, tmp_path: Path
) -> None:
    """Every function of a walk is called, by whatever way, by the one above it."""
    from rmadapter.cli.bench import BenchOptions, bench
    from rmadapter.cli.options import RunOptions, SettingOptions
    from rmadapter.cli.predict import predict
    from rmadapter.cli.runs import FitOptions, fit

    name = tiny_clip.name
    sets = ["epochs=1", "rank=2", "first_block=3", "device=cpu"]
    own = [f"rmadapter.{s}" if "device" not in s else s for s in sets]
    numbers = count()  # a finished run is not trained again
    calls: list[Callable[[], Any]] = [
        lambda: fit(
            colors, tmp_path / f"run-{next(numbers)}", FitOptions(backbone=name, shots=2),
            settings=SettingOptions(sets=sets),
        ),
        lambda: predict(
            finished, [str(colors / "test/red/0.png")], options=RunOptions(backbone=name)
        ),
        lambda: bench(
            BenchOptions(
                "base-to-novel", colors.name, tmp_path / "out", methods="rmadapter",
                backbone=name, seeds="1", shots="2", root=colors.parent, sets=own,
            )
        ),
    ]  # fmt: skip
    for walk, call in zip(walks(), calls, strict=True):
        chain = [line[0] for line in walk[:-1]]
        for end in walk[-1]:
            codes = [
                inspect.unwrap(pkgutil.resolve_name(f"rmadapter.{step}")).__code__
                for step in [*chain, end]
            ]
            assert _walked(codes, call), f"{' > '.join(chain)} > {end}"


def _walked(codes: list[Any], call: Callable[[], Any]) -> bool:
    found = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is codes[-1] and not found:
            rest = list(codes)
            while frame and rest:
                if frame.f_code is rest[-1]:
                    rest.pop()
                frame = frame.f_back
            if not rest:
                found.append(True)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return bool(found)
