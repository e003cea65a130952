"""The commands of the bench as a shell sees them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rmadapter.artifacts.record import BackboneName, MethodName, Record, Score, parse_record
from rmadapter.backbones import Backbone
from rmadapter.cli import main as cli
from rmadapter.cli.bench import _show
from rmadapter.task import Task
from tests.helpers.synthetic_runs import record

Command = Callable[..., tuple[int, str, str]]
QUICK = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]


@pytest.fixture
def rmadapter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs `main()` in this process, where the libraries are imported already."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rmadapter", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    before = signal.getsignal(signal.SIGINT)
    yield call
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def words(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> list[object]:
    data = [
        "--datasets",
        colors.name,
        "--root",
        colors.parent,
        "--backbone",
        tiny_clip.name,
        "--shots",
        "2",
    ]
    return [*data, "--set", "device=cpu", "--out", tmp_path / "out"]


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = """
import sys
from rmadapter.cli.main import main
for verb in ("bench", "report", "methods", "data"):
    sys.argv = ["rmadapter", verb, "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = "torch open_clip timm transformers matplotlib jinja2 sklearn scipy numpy PIL".split()
heavy += ["safetensors", "yaml"]
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for option in (
        "--datasets",
        "--methods",
        "--seeds",
        "--shots",
        "--jobs",
        "--set",
        "--tolerance",
    ):
        assert option in done.stdout


def test_bench_prints_a_table_json_and_reports(
    rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    given = [
        "bench",
        "base-to-novel",
        *words,
        "--methods",
        "zero-shot,rmadapter",
        "--seeds",
        "1,2",
        *QUICK,
    ]
    code, out, err = rmadapter(*given)
    assert code == 0
    assert err.count(": finished base ") == 4
    assert "2 of 2" in out
    code, out, err = rmadapter(*given, "--json")
    records = [parse_record(json.dumps(record), "") for record in json.loads(out)]
    assert (code, err) == (0, "")  # nothing was left to do
    cells = [(seed, method) for seed in (1, 2) for method in ("zero-shot", "rmadapter")]
    assert [(record.task.seed, record.method.name) for record in records] == cells
    table = rmadapter(*given)[1]
    for method in ("zero-shot", "rmadapter"):
        mean = sum(r.metrics["base"] for r in records if r.method.name == method) / 2
        title = next(r.method.title for r in records if r.method.name == method)
        [line] = [line for line in table.splitlines() if f" {title} " in line]
        assert f" {mean:.2f} " in line
    code, out, _ = rmadapter("report", tmp_path / "out", "--out", tmp_path / "report")
    assert (code, out.strip()) == (0, f"report: {tmp_path / 'report' / 'report.html'}")
    assert (tmp_path / "report" / "report.html").is_file()
    code, out, _ = rmadapter("report", tmp_path / "out", "--out", tmp_path / "report", "--check")
    assert code == 0
    assert re.fullmatch(
        r"0 of \d{3} printed figures were measured; 0 are within 1 points", out.splitlines()[-1]
    )
    [first, *_] = [
        line for line in out.splitlines() if "Table 1, average" in line and "RMAdapter" in line
    ]
    assert "84.52" in first
    assert "not measured" in first


def test_parts_are_the_whole_together(
    rmadapter: Command, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["bench", "base-to-novel", *words, "--methods", "zero-shot", "--seeds", "1,2"]
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    for name, value in zip(names, (5, 4, 6, 1, 3), strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    code, _, err = rmadapter(*given, "--shard", "auto")
    assert code == 0
    assert "note: part 2 of 3: 1 of 2 runs" in err
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1
    code, out, err = rmadapter(*given, "--shard", "3/3", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "note: part 3 of 3: 0 of 2 runs" in err
    code, _, err = rmadapter(*given)
    assert code == 0
    assert "note: a task of an array without --shard auto" in err
    assert err.count(": finished base ") == 1  # the other one was there


def test_a_part_may_be_without_a_method_that_settings_name(
    rmadapter: Command, words: list[object]
) -> None:
    given = [
        "bench",
        "base-to-novel",
        *words,
        "--methods",
        "zero-shot,rmadapter",
        "--seeds",
        "1",
        *QUICK,
    ]
    code, out, _ = rmadapter(*given, "--shard", "2/2", "--json")
    assert (code, json.loads(out)) == (0, [])
    code, _, err = rmadapter(*given, "--shard", "2/2", "--set", "mma.rank=4")
    assert code == 2
    assert "--set mma.*: no run uses the method 'mma'" in err


def test_two_methods_of_one_title_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    one, other, third = (
        record(name, "dtd", 1, {"base": value, "novel": 50}, title=title)
        for name, value, title in (
            ("a.py:Mine", 60.0, "Mine"),
            ("b.py:Mine", 70.0, "Mine"),
            ("mma", 65.0, "MMA"),
        )
    )
    _show([one, other, third])
    lines = capsys.readouterr().out.splitlines()
    for name, value in (
        ("Mine (a.py:Mine)", "60.00"),
        ("Mine (b.py:Mine)", "70.00"),
        (" MMA ", "65.00"),
    ):
        [line] = [line for line in lines if name in line]
        assert value in line


def test_a_figure_that_is_off_ends_with_1(rmadapter: Command, tmp_path: Path) -> None:
    """Runs as if of the paper's backbone and data: zero-shot on DTD, once as printed and once two
    points off."""
    printed = {"base": (53.24, 864, 24), "novel": (59.90, 828, 23)}
    for off, code in ((0.0, 0), (2.0, 1)):
        path = tmp_path / f"off{off:g}" / "records.jsonl"
        path.parent.mkdir()
        with open(path, "w") as file:
            for seed in (1, 2, 3):
                scores = [
                    Score(name=name, images=images, classes=classes, accuracy=value + off)
                    for name, (value, images, classes) in printed.items()
                ]
                record = Record(
                    format=2,
                    protocol="base-to-novel",
                    task=Task(data="dtd", classes="base", seed=seed),
                    method=MethodName(name="zero-shot", title="zero-shot CLIP"),
                    backbone=BackboneName(name="ViT-B-16/openai", digest="0"),
                    scores=tuple(scores),
                    finished="2026-01-01T00:00:00+00:00",
                )
                file.write(record.line())
        found = rmadapter("report", path.parent, "--out", tmp_path / "report", "--check", "--json")
        rows = [row for row in json.loads(found[1]) if row["within"] is not None]
        assert {row["figure"]: row["within"] for row in rows} == dict.fromkeys(
            ("base", "novel", "HM"), not off
        )
        assert found[0] == code


def test_a_failed_run_is_told_in_one_sentence_and_2(
    rmadapter: Command, words: list[object]
) -> None:
    given = ["bench", "base-to-novel", *words, "--methods", "zero-shot,rmadapter", "--seeds", "1"]
    code, out, err = rmadapter(*given, "--json", "--set", "rmadapter.first_block=9")
    assert code == 2
    assert [record.get("status", "finished") for record in json.loads(out)] == [
        "finished",
        "failed",
    ]
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: 1 of 2 runs failed")
    assert "have 4 and 4 blocks" in last


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--methods", "rmadaptor"], "did you mean 'rmadapter'"),
        (["--seeds", "one"], "--seeds one: write whole numbers, such as 1,2,3"),
        (["--set", "rank=4"], "write METHOD.rank"),
        (["--set", "rmadapter.rnak=4"], "did you mean 'rank'"),
        (["--set", "coop.epochs=4"], "no run uses the method 'coop'"),
        (["--templates", "a photo"], "needs exactly one {}"),
        (["--set", "shots=3"], "write METHOD.shots"),
        (["--datasets", "colours"], "colours"),
        (["--backbone", "pokket"], "'pokket'"),
        (["--shard", "3/2"], "write the part and the number of parts, such as 1/8, or auto"),
        (["--jobs-per-gpu", "2"], "--jobs-per-gpu: there is no GPU to share"),
    ],
)
def test_mistakes_are_one_line(
    rmadapter: Command, words: list[object], more: list[str], complaint: str, tmp_path: Path
) -> None:
    code, out, err = rmadapter(
        "bench", "base-to-novel", *words, "--methods", "rmadapter", "--seeds", "1", *more
    )
    assert (code, out) == (2, "")
    assert not (tmp_path / "out").exists()
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: ")
    assert complaint in last
