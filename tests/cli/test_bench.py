"""The commands of the bench as a shell sees them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from rmadapter.artifacts.record import Score, parse_record
from rmadapter.backbones import Backbone
from rmadapter.cli.bench import _show
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.synthetic_runs import VIT, record, write

__all__ = ["rmadapter"]  # a fixture

QUICK = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]
BOTH = ["--methods", "zero-shot,rmadapter"]


@pytest.fixture
def words(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> list[object]:
    data = ["--datasets", colors.name, "--root", colors.parent, "--out", tmp_path / "out"]
    model = ["--backbone", tiny_clip.name, "--set", "device=cpu"]
    return ["bench", "base-to-novel", *data, *model, "--shots", "2"]


def test_bench_prints_a_table_json_and_reports(
    rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    command = [*words, *BOTH, "--seeds", "1,2", *QUICK]
    done = rmadapter.done(*command)
    assert done.err.count(": finished base ") == 4
    assert "2 of 2" in done.out
    again = rmadapter.done(*command, "--json")
    assert again.err == ""  # nothing was left to do
    records = [parse_record(json.dumps(record), "") for record in json.loads(again.out)]
    cells = [(seed, method) for seed in (1, 2) for method in ("zero-shot", "rmadapter")]
    assert [(record.task.seed, record.method.name) for record in records] == cells
    table = rmadapter(*command).out
    for method in ("zero-shot", "rmadapter"):
        mean = sum(r.metrics["base"] for r in records if r.method.name == method) / 2
        title = next(r.method.title for r in records if r.method.name == method)
        [line] = [line for line in table.splitlines() if f" {title} " in line]
        assert f" {mean:.2f} " in line
    report = ["report", tmp_path / "out", "--out", tmp_path / "report"]
    page = tmp_path / "report/report.html"
    assert rmadapter.done(*report).out.strip() == f"report: {page}"
    assert page.is_file()
    lines = rmadapter.done(*report, "--check").out.splitlines()
    counts = r"0 of \d{3} printed figures were measured; 0 are within 1 points"
    assert re.fullmatch(counts, lines[-1])
    [first, *_] = [line for line in lines if "Table 1, average" in line and "RMAdapter" in line]
    assert "84.52" in first
    assert "not measured" in first


def test_parts_are_the_whole_together(
    rmadapter: Command, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*words, "--methods", "zero-shot", "--seeds", "1,2"]
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    for name, value in zip(names, (5, 4, 6, 1, 3), strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    part = rmadapter.done(*command, "--shard", "auto")
    assert "note: part 2 of 3: 1 of 2 runs" in part.err
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1
    last = rmadapter.done(*command, "--shard", "3/3", "--json")
    assert json.loads(last.out) == []
    assert "note: part 3 of 3: 0 of 2 runs" in last.err
    rest = rmadapter.done(*command).err
    assert "note: a task of an array without --shard auto" in rest
    assert rest.count(": finished base ") == 1  # the other one was there


def test_a_part_may_be_without_a_method_that_settings_name(
    rmadapter: Command, words: list[object]
) -> None:
    command = [*words, *BOTH, "--seeds", "1", *QUICK, "--shard", "2/2"]
    assert rmadapter.json(*command) == []
    code, _, err = rmadapter(*command, "--set", "mma.rank=4")
    assert code == 2
    assert "--set mma.*: no run uses the method 'mma'" in err


def test_two_methods_of_one_title_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"a.py:Mine": (60.0, "Mine"), "b.py:Mine": (70.0, "Mine"), "mma": (65.0, "MMA")}
    _show(
        [
            record(name, "dtd", 1, {"base": value, "novel": 50}, title=title)
            for name, (value, title) in runs.items()
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    shown = {"Mine (a.py:Mine)": "60.00", "Mine (b.py:Mine)": "70.00", " MMA ": "65.00"}
    for name, value in shown.items():
        [line] = [line for line in lines if name in line]
        assert value in line


def test_a_figure_that_is_off_ends_with_1(rmadapter: Command, tmp_path: Path) -> None:
    """Runs as if of the paper's backbone and data: zero-shot on DTD, once as printed and once two
    points off."""
    printed = {"base": (53.24, 864, 24), "novel": (59.90, 828, 23)}
    for off, code in ((0.0, 0), (2.0, 1)):
        scores = tuple(
            Score(name=name, images=images, classes=classes, accuracy=value + off)
            for name, (value, images, classes) in printed.items()
        )
        runs = [record("zero-shot", "dtd", seed, {}, **VIT) for seed in (1, 2, 3)]
        runs = [run.model_copy(update={"scores": scores}) for run in runs]
        results = write(tmp_path / f"off{off:g}", *runs)
        code_found, out, _ = rmadapter(
            "report", results, "--out", tmp_path / "report", "--check", "--json"
        )
        rows = [row for row in json.loads(out) if row["within"] is not None]
        within = {row["figure"]: row["within"] for row in rows}
        assert within == dict.fromkeys(("base", "novel", "HM"), not off)
        assert code_found == code


def test_a_failed_run_ends_with_one_sentence_and_2(rmadapter: Command, words: list[object]) -> None:
    failing = ["--seeds", "1", "--json", "--set", "rmadapter.first_block=9"]
    code, out, err = rmadapter(*words, *BOTH, *failing)
    assert code == 2
    states = [record.get("status", "finished") for record in json.loads(out)]
    assert states == ["finished", "failed"]
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: 1 of 2 runs failed")
    assert "have 4 and 4 blocks" in last


def test_report_of_a_run_writes_its_page_again(
    rmadapter: Command, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run / "report.html").read_bytes()
    assert rmadapter.done("report", run).out.strip() == f"report: {run / 'report.html'}"
    assert (run / "report.html").read_bytes() == before
    refused(rmadapter("report", run, "--tolerance", "2"), "--tolerance: is for --check")
    refused(rmadapter("report", run, "--out", tmp_path / "else"), f"{run}: ", "leave out --out")
    refused(rmadapter("report", tmp_path), "--out: give a folder for the report")
    (run / "SHA256SUMS").unlink()
    for damage in ("step,loss\n1,x\n", 'step,loss\n"1,2\n'):
        (run / "history.csv").write_text(damage)
        refused(rmadapter("report", run), "history.csv: not the losses of a run")
    (run / "predictions.csv").unlink()
    refused(rmadapter("report", run), "predictions.csv: missing")


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
def test_mistakes_in_bench_are_named(
    rmadapter: Command, words: list[object], more: list[str], complaint: str, tmp_path: Path
) -> None:
    code, out, err = rmadapter(*words, "--methods", "rmadapter", "--seeds", "1", *more)
    assert (code, out) == (2, "")
    assert not (tmp_path / "out").exists()
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: ")
    assert complaint in last
