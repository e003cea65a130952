"""Numbers, folders and how long somebody is remembered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rmadapter.deploy.app import visitors as module
from rmadapter.deploy.app.visitors import Visitors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_two_and_a_stranger(tmp_path: Path) -> None:
    shared: Any = SimpleNamespace()
    visitors = Visitors(tmp_path, shared, 10)
    one, two = visitors.welcome(), visitors.welcome()
    mine, other = visitors.known(one), visitors.known(two)
    assert mine is not None
    assert other is not None
    assert mine is visitors.known(one)
    assert mine.folder != other.folder
    assert one not in str(mine.folder)
    assert visitors.known(None) is visitors.known("") is visitors.known("guess") is None
    visitors.forget(one)
    assert visitors.known(one) is None
    assert (mine.folder.exists(), other.folder.exists()) == (False, True)


def test_who_did_nothing_for_long(tmp_path: Path) -> None:
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    away, here, busy = (visitors.welcome() for _ in range(3))
    at_work = visitors.known(busy)
    assert at_work is not None
    job: Any = SimpleNamespace(over=False)
    at_work.job = job
    clock.now = 8
    assert visitors.known(here)
    clock.now = 11
    visitors.sweep()
    assert visitors.known(away) is None
    assert visitors.known(here)
    assert visitors.known(busy)
    assert len([*tmp_path.iterdir()]) == 2


def test_who_worked_here_does_not_make_room_for_those_who_only_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another site's page, or a monitor, asks for the page again and again."""
    monkeypatch.setattr(module, "MOST", 4)
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    training, labelled = visitors.welcome(), visitors.welcome()
    busy, idle = visitors.known(training), visitors.known(labelled)
    assert busy
    assert idle
    busy.job = SimpleNamespace(over=False)  # type: ignore[assignment]
    idle.shelf.add_class("cat")
    for clock.now in range(1, 9):
        newest = visitors.welcome()
        assert visitors.known(newest)
    assert (visitors.known(training), visitors.known(labelled)) == (busy, idle)
    for clock.now in range(9, 12):
        another = visitors.known(visitors.welcome())
        assert another
        another.shelf.add_class("dog")
    assert visitors.known(training)
    assert visitors.known(labelled) is None


def test_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    numbers = []
    for clock.now in range(4):
        numbers.append(visitors.welcome())
    assert [visitors.known(number) is not None for number in numbers] == [False, False, True, True]
    assert len([*tmp_path.iterdir()]) == 2
