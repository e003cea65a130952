"""The line "Repeat it" of a report repeats the run; --quiet says nothing that is no error."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.options import command
from rmadapter.data.read import read_images
from tests.helpers.shell import Command, quick_options, rmadapter

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(1)


def test_a_run_is_repeated_by_its_report(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, tmp_path / "my photos")
    (tmp_path / "my photos/train/red/bad one.png").write_bytes(b"\x89PNG")
    (tmp_path / "names.csv").write_text('label,name\nred,the colour "red"\n')
    words = [
        "fit",
        "my photos",
        "--backbone",
        tiny_clip.name,
        "--skip-bad",
        "--names",
        "names.csv",
        "--out",
        "a run",
    ]
    code, _, err = rmadapter(*words, *QUICK, "--set", "templates=a <{}> & more.")
    assert code == 0, err
    assert "note: train/red/bad one.png: not an image" in err
    first = read_record(Path("a run/run.json"))
    printed = re.search(
        r"<pre>(rmadapter fit .*?)</pre>", Path("a run/report.html").read_text("utf-8"), re.S
    )
    assert printed is not None
    assert html.unescape(printed[1]) == first.command
    weights = Path("a run/model.safetensors").read_bytes()
    shutil.rmtree("a run")
    program, *words = shlex.split(html.unescape(printed[1]))
    assert program == "rmadapter"
    assert rmadapter(*words).code == 0
    again = read_record(Path("a run/run.json"))
    assert (again.key, again.scores, again.command) == (first.key, first.scores, first.command)
    assert Path("a run/model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_table_with_columns_of_any_name_is_repeated_asked_and_grown(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(colors, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    images = [path.relative_to("data") for path in sorted(Path("data").glob("*/*/*.png"))]
    lines = [
        f"{image.as_posix()};{image.parts[1]};{image.parts[0]};p{image.stem}" for image in images
    ]
    Path("data/all of it.csv").write_text("\n".join(["foto;class;part of;patient", *lines]))
    columns = ["--image-column", "foto", "--split-column", "part of", "--group-column", "patient"]
    words = ["fit", "data/all of it.csv", "--backbone", tiny_clip.name, *columns, "--out", "run"]
    code, _, err = rmadapter(*words, *QUICK)
    assert code == 0, err
    first = read_record(Path("run/run.json"))
    assert first.judgement is not None
    assert "that share a group with training images" in first.judgement.how
    assert any(note.startswith("train and test share the group 'p") for note in first.notes)
    shutil.rmtree("run")
    assert rmadapter(*shlex.split(first.command)[1:]).code == 0
    again = read_record(Path("run/run.json"))
    assert (again.key, again.judgement, again.notes) == (first.key, first.judgement, first.notes)

    its = ["--backbone", tiny_clip.name, "--json"]
    found = json.loads(rmadapter("eval", "run", "data/all of it.csv", *columns, *its).out)
    assert found["accuracy"] == first.scores[0].accuracy
    answer = rmadapter("eval", "run", "data/all of it.csv", *its)
    assert answer.code == 2
    assert "(foto, class, part of, patient) is called path or" in answer.err
    assert "--image-column" in answer.err
    assert "has no columns" in rmadapter("eval", "run", "data", *its, "--label-column", "class").err
    Path("data/new.tsv").write_text(
        "foto\tclass\tpart of\tpatient\ntrain/red/5.png\tpink\ttrain\tq\n"
    )
    grown = rmadapter("add", "run", "data/new.tsv", *columns, "--out", "grown", *its)
    assert grown.code == 0, grown.err
    table = read_images("grown/images.csv", outside=True)
    assert table["train"].groups[-1] == "q"
    for images in (
        table["train"].subset(range(4)),
        table["test"],
    ):  # the old ones are called p and their number
        assert images.groups == tuple(f"p{Path(str(image)).stem}" for image in images.images)
    Path("data/more.tsv").write_text(
        "foto\tclass\tpart of\tpatient\ntrain/red/4.png\tmauve\ttrain\tq\n"
    )
    more = ["--allow-outside", "--out", "more", *its]
    assert (
        rmadapter("add", "grown", "data/more.tsv", *columns, *more).code == 0
    )  # its own list has the usual names
    assert read_images("more/images.csv", outside=True)["train"].groups[-2:] == ("q", "q")


def test_columns_of_a_new_table_are_not_asked_of_the_old_data(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    """Which was class folders."""
    (tmp_path / "pink").mkdir()
    for image in sorted(
        colors.glob("train/red/*.png")
    ):  # of another content, or they would be there already
        (tmp_path / "pink" / image.name).write_bytes(image.read_bytes() + b"more")
    lines = [f"pink/{image.name},pink" for image in sorted((tmp_path / "pink").iterdir())]
    (tmp_path / "new.csv").write_text("\n".join(["foto,species", *lines]))
    words = ["--image-column", "foto", "--label-column", "species", "--backbone", tiny_clip.name]
    grown = rmadapter(
        "add",
        finished,
        tmp_path / "new.csv",
        *words,
        "--out",
        tmp_path / "grown",
        "--old-data",
        colors,
    )
    assert grown.code == 0, grown.err
    assert "pink" in read_images(tmp_path / "grown/images.csv", outside=True)["train"].written


def test_quiet(rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone) -> None:
    command = [
        "fit",
        colors,
        "--backbone",
        tiny_clip.name,
        "--out",
        tmp_path / "run",
        *QUICK,
        "--effort",
        "fast",
    ]
    code, out, err = rmadapter(*command, "--quiet")
    assert (code, err) == (0, "")
    assert "report: " in out
    its = ["--backbone", tiny_clip.name, "-q", "--skip-bad", "--json"]
    (tmp_path / "bad.png").write_bytes(b"x")
    assert rmadapter("predict", tmp_path / "run", tmp_path / "bad.png", *its) == (0, "[]\n", "")
    assert rmadapter("predict", tmp_path / "run", colors, *its[:3]).err == ""
    code, out, err = rmadapter("predict", tmp_path / "gone", colors, *its)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_demo_keeps_its_command(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def stop(*args: object, **more: object) -> None:
        given.extend([*args, more])
        raise SystemExit(0)

    monkeypatch.setattr("rmadapter.cli.runs.run_demo", stop)
    rmadapter("demo", "--out", "a b", "--seed", 3)
    assert given == [Path("a b"), 3, {"command": "rmadapter demo --out 'a b' --seed 3"}]
    assert command() == "rmadapter demo --out 'a b' --seed 3"
