"""The line "Repeat it" of a report repeats the run; --quiet says nothing that is no error."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.options import command
from rmadapter.data.read import read_images
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
)

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
    words = ["--skip-bad", "--names", "names.csv", "--set", "templates=a <{}> & more."]
    done = rmadapter.done(*fit_command(Path("my photos"), tiny_clip, Path("a run"), *QUICK, *words))
    assert "note: train/red/bad one.png: not an image" in done.err
    first = read_record(Path("a run/run.json"))
    page = Path("a run/report.html").read_text("utf-8")
    printed = re.search(r"<pre>(rmadapter fit .*?)</pre>", page, re.S)
    assert printed is not None
    assert html.unescape(printed[1]) == first.command
    weights = Path("a run/model.safetensors").read_bytes()
    shutil.rmtree("a run")
    program, *words = shlex.split(html.unescape(printed[1]))
    assert program == "rmadapter"
    rmadapter.done(*words)
    again = read_record(Path("a run/run.json"))
    assert (again.key, again.scores, again.command) == (first.key, first.scores, first.command)
    assert Path("a run/model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_columns_of_any_name_are_repeated_evaluated_and_extended(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(colors, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    images = [path.relative_to("data") for path in sorted(Path("data").glob("*/*/*.png"))]
    lines = [f"{one.as_posix()};{one.parts[1]};{one.parts[0]};p{one.stem}" for one in images]
    table = Path("data/all of it.csv")
    table.write_text("\n".join(["foto;class;part of;patient", *lines]))
    columns = ["--image-column", "foto", "--split-column", "part of", "--group-column", "patient"]
    rmadapter.done(*fit_command(table, tiny_clip, Path("run"), *columns, *QUICK))
    first = read_record(Path("run/run.json"))
    assert first.judgement is not None
    assert "that share a group with training images" in first.judgement.how
    assert any(note.startswith("train and test share the group 'p") for note in first.notes)
    shutil.rmtree("run")
    rmadapter.done(*shlex.split(first.command)[1:])
    again = read_record(Path("run/run.json"))
    assert (again.key, again.judgement, again.notes) == (first.key, first.judgement, first.notes)

    its = ["--backbone", tiny_clip.name]
    found = rmadapter.json("eval", "run", table, *columns, *its)
    assert found["accuracy"] == first.scores[0].accuracy
    unnamed = rmadapter("eval", "run", table, *its)
    refused(unnamed, "(foto, class, part of, patient)", "--image-column")
    refused(rmadapter("eval", "run", "data", *its, "--label-column", "class"), "has no columns")
    header = "foto\tclass\tpart of\tpatient\n"
    Path("data/new.tsv").write_text(f"{header}train/red/5.png\tpink\ttrain\tq\n")
    rmadapter.done("add", "run", "data/new.tsv", *columns, "--out", "grown", *its)
    grown = read_images("grown/images.csv", outside=True)
    assert grown["train"].groups[-1] == "q"
    old = grown["train"].subset(range(4))
    for part in (old, grown["test"]):  # the old ones are called p and their number
        assert part.groups == tuple(f"p{Path(str(image)).stem}" for image in part.images)
    Path("data/more.tsv").write_text(f"{header}train/red/4.png\tmauve\ttrain\tq\n")
    # the list of the grown run has the usual names
    more = ["data/more.tsv", *columns, "--allow-outside", "--out", "more"]
    rmadapter.done("add", "grown", *more, *its)
    assert read_images("more/images.csv", outside=True)["train"].groups[-2:] == ("q", "q")


def test_columns_of_a_new_table_are_not_those_of_the_old_data(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    """Which was class folders."""
    (tmp_path / "pink").mkdir()
    for image in sorted(colors.glob("train/red/*.png")):
        # of another content, or they would be there already
        (tmp_path / "pink" / image.name).write_bytes(image.read_bytes() + b"more")
    lines = [f"pink/{image.name},pink" for image in sorted((tmp_path / "pink").iterdir())]
    (tmp_path / "new.csv").write_text("\n".join(["foto,species", *lines]))
    words = ["--image-column", "foto", "--label-column", "species", *backbone_option(finished)]
    words += ["--old-data", colors, "--out", tmp_path / "grown"]
    rmadapter.done("add", finished, tmp_path / "new.csv", *words)
    assert "pink" in read_images(tmp_path / "grown/images.csv", outside=True)["train"].written


def test_quiet_hides_all_but_results_and_errors(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out, bad = tmp_path / "run", tmp_path / "bad.png"
    done = rmadapter.done(*fit_command(colors, tiny_clip, out, *QUICK, "--effort", "fast", "-q"))
    assert done.err == ""
    assert "report: " in done.out
    its = ["--backbone", tiny_clip.name, "--quiet"]
    bad.write_bytes(b"x")
    assert rmadapter("predict", out, bad, *its, "--skip-bad", "--json") == (0, "[]\n", "")
    assert rmadapter("predict", out, colors, *its).err == ""
    refused(rmadapter("predict", tmp_path / "gone", colors, *its), "gone")


def test_the_demo_records_its_command(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def stop(*args: object, **more: object) -> None:
        given.extend([*args, more])
        raise SystemExit(0)

    monkeypatch.setattr("rmadapter.cli.runs.run_demo", stop)
    rmadapter("demo", "--out", "a b", "--seed", 3)
    assert given == [Path("a b"), 3, {"command": "rmadapter demo --out 'a b' --seed 3"}]
    assert command() == "rmadapter demo --out 'a b' --seed 3"
