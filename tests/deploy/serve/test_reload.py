"""A run that changes is loaded again, once it is complete; one that is damaged is refused, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.deploy.serve import reload as watch
from rmadapter.deploy.serve.model import Served, Wish
from rmadapter.deploy.serve.reload import Watch
from rmadapter.deploy.serve.service import Service
from rmadapter.errors import UserError
from rmadapter.support.checksums import sign, write_sums
from tests.helpers.answering import Toy, serviced, wait_for


def write(folder: Path, text: str) -> None:
    (folder / "labels").write_text(text)
    write_sums(folder, ["labels"])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened. A folder's labels are the model."""
    found: list[str] = []

    def open_served(wish: Wish) -> Served:
        found.append((wish.folder / "labels").read_text())
        if found[-1] == "bad":
            raise UserError("labels: damaged")
        if found[-1] == "bug":
            raise ZeroDivisionError("oh")
        return Toy(labels=found[-1].split()).served

    monkeypatch.setattr(watch, "open_served", open_served)
    return found


@contextmanager
def watched(folder: Path, **how: float) -> Iterator[tuple[Service, Watch]]:
    with serviced(Toy()) as service:
        service.put("toy", replace(Toy().served, sign=sign(folder)))
        yield service, Watch(service, {"toy": Wish(folder)}, **how)


def look(eye: Watch, times: int = 2) -> None:
    for _ in range(times):
        asyncio.run(eye.look())


def test_loaded_when_it_has_settled(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a b c")
    with watched(tmp_path) as (service, eye):
        look(eye)
        assert opened == []
        write(tmp_path, "d e f")
        look(eye, 1)
        assert opened == []  # it may be in the middle of it
        look(eye, 3)
        assert opened == ["d e f"]
        assert service.models["toy"].labels == ("d", "e", "f")
        assert capsys.readouterr().err == "rmadapter: toy: reloaded\n"
        (tmp_path / "SHA256SUMS").unlink()  # as whoever saves a run begins
        look(eye, 3)
        assert opened == ["d e f"]
        write(tmp_path, "g h i")
        look(eye)
        assert service.models["toy"].labels == ("g", "h", "i")


def test_what_is_damaged_is_refused_once_and_the_old_one_stays(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a b c")
    with watched(tmp_path) as (service, eye):
        for text, told in (("bad", "labels: damaged"), ("bug", "ZeroDivisionError: oh")):
            write(tmp_path, text)
            look(eye, 4)
            assert opened.pop() == text
            assert opened == []
            line = f"rmadapter: toy: not reloaded, the old one keeps answering: {told}\n"
            assert capsys.readouterr().err == line
            assert service.models["toy"].labels == ("red", "green", "blue")
        assert service.counters.total("rmadapter_reloads", outcome="refused") == 2
        write(tmp_path, "d e f")
        look(eye)
        assert service.models["toy"].labels == ("d", "e", "f")
        assert service.counters.total("rmadapter_reloads", outcome="loaded") == 1


def test_when_it_is_asked_to_it_loads_what_has_not_changed(
    tmp_path: Path, opened: list[str]
) -> None:
    async def asked(eye: Watch) -> None:
        running = asyncio.create_task(eye.run())
        await asyncio.sleep(0)
        eye.ask()
        await asyncio.to_thread(wait_for, lambda: opened, "it did not look")
        running.cancel()

    write(tmp_path, "d e f")
    with watched(tmp_path, every=60) as (_, eye):
        asyncio.run(asked(eye))
    assert opened == ["d e f"]


def test_it_looks_by_itself(tmp_path: Path, opened: list[str]) -> None:
    async def waited(eye: Watch) -> None:
        running = asyncio.create_task(eye.run())
        write(tmp_path, "d e f")
        await asyncio.to_thread(wait_for, lambda: opened, "it did not look")
        running.cancel()

    write(tmp_path, "a b c")
    with watched(tmp_path, every=0.01) as (_, eye):
        asyncio.run(waited(eye))
