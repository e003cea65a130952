"""The commands of the bench as a shell sees them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rmadapter import cli
from rmadapter.backbone import Backbone
from rmadapter.bench.methods import METHODS
from rmadapter.files import write_json

Command = Callable[..., tuple[int, str, str]]
QUICK = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]


@pytest.fixture
def rmadapter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
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
    data = ["--datasets", colors.name, "--root", colors.parent, "--backbone", tiny_clip.name, "--shots", "2"]
    return [*data, "--set", "device=cpu", "--out", tmp_path / "out"]


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = """
import sys
from rmadapter.cli import main
for verb in ("bench", "report", "methods"):
    sys.argv = ["rmadapter", verb, "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = "torch open_clip timm transformers matplotlib jinja2 sklearn scipy numpy PIL safetensors yaml".split()
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for option in ("--datasets", "--methods", "--seeds", "--shots", "--jobs", "--set", "--tolerance"):
        assert option in done.stdout


def test_bench_prints_a_table_json_and_reports(rmadapter: Command, words: list[object], tmp_path: Path) -> None:
    given = ["bench", "base-to-novel", *words, "--methods", "zero-shot,rmadapter", "--seeds", "1,2", *QUICK]
    code, out, err = rmadapter(*given)
    assert code == 0
    assert err.count(": finished base ") == 4
    assert "2 of 2" in out
    code, out, err = rmadapter(*given, "--json")
    records = json.loads(out)
    assert (code, err) == (0, "")  # nothing was left to do
    assert [(r["method"], r["seed"]) for r in records] == [(m, s) for s in (1, 2) for m in ("zero-shot", "rmadapter")]
    assert not any("history" in record for record in records)
    table = rmadapter(*given)[1]
    for method in ("zero-shot", "rmadapter"):
        mean = sum(r["metrics"]["base"] for r in records if r["method"] == method) / 2
        title = next(r["title"] for r in records if r["method"] == method)
        [line] = [line for line in table.splitlines() if f" {title} " in line]
        assert f" {mean:.2f} " in line
    code, out, _ = rmadapter("report", tmp_path / "out", "--out", tmp_path / "report")
    assert (code, out.strip()) == (0, f"report: {tmp_path / 'report' / 'report.html'}")
    assert (tmp_path / "report" / "report.html").is_file()
    code, out, _ = rmadapter("report", tmp_path / "out", "--out", tmp_path / "report", "--check")
    assert code == 0
    assert re.fullmatch(r"0 of \d{3} printed figures were measured; 0 are within 1 points", out.splitlines()[-1])
    [first, *_] = [line for line in out.splitlines() if "Table 1, average" in line and "RMAdapter" in line]
    assert "84.52" in first
    assert "not measured" in first


def test_a_figure_that_is_off_ends_with_1(rmadapter: Command, tmp_path: Path) -> None:
    """Runs as if of the paper's backbone and data: zero-shot on DTD, once as printed and once two points off."""
    config: dict[str, Any] = {"shared": {"templates": ["a photo of a {}."]}}
    record = {"format": 1, "protocol": "base-to-novel", "dataset": "dtd", "method": "zero-shot", "shots": 16}
    record |= {"backbone": {"name": "ViT-B-16/openai", "digest": "0"}, "status": "finished", "config": config}
    record |= {"counts": {"base": 864, "novel": 828}, "machine": {}, "versions": {}}
    printed = {"base": 53.24, "novel": 59.90, "hm": 56.37}
    for off, code in ((0.0, 0), (2.0, 1)):
        for seed in (1, 2, 3):
            metrics = {name: value + off for name, value in printed.items()}
            path = tmp_path / f"off{off:g}" / f"{seed}.json"
            write_json(path, {**record, "seed": seed, "metrics": metrics, "finished": "2026-01-01T00:00:00+00:00"})
        found = rmadapter("report", path.parent, "--out", tmp_path / "report", "--check", "--json")
        rows = [row for row in json.loads(found[1]) if row["within"] is not None]
        assert {row["figure"]: row["within"] for row in rows} == dict.fromkeys(("base", "novel", "HM"), not off)
        assert found[0] == code


def test_a_failed_run_is_told_in_one_sentence_and_2(rmadapter: Command, words: list[object]) -> None:
    given = ["bench", "base-to-novel", *words, "--methods", "zero-shot,rmadapter", "--seeds", "1"]
    code, out, err = rmadapter(*given, "--json", "--set", "rmadapter.first_block=9")
    assert code == 2
    assert [record["status"] for record in json.loads(out)] == ["finished", "failed"]
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: 1 of 2 runs failed")
    assert "have 4 and 4 blocks" in last


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--methods", "rmadaptor"], "did you mean 'rmadapter'"),
        (["--seeds", "one"], "--seeds one: write whole numbers, as 1,2,3"),
        (["--set", "rank=4"], "write METHOD.rank"),
        (["--set", "rmadapter.rnak=4"], "did you mean 'rank'"),
        (["--set", "coop.epochs=4"], "no run is of the method 'coop'"),
        (["--templates", "a photo"], "needs exactly one {}"),
        (["--augmentation", "standard"], "needs a number of views"),
        (["--datasets", "colours"], "colours"),
        (["--backbone", "pokket"], "'pokket'"),
    ],
)
def test_mistakes_are_one_line(
    rmadapter: Command, words: list[object], more: list[str], complaint: str, tmp_path: Path
) -> None:
    code, out, err = rmadapter("bench", "base-to-novel", *words, "--methods", "rmadapter", "--seeds", "1", *more)
    assert (code, out) == (2, "")
    assert not (tmp_path / "out").exists()
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: ")
    assert complaint in last


def test_methods_lists_all_with_the_papers_counts(rmadapter: Command) -> None:
    code, out, _ = rmadapter("methods", "--json")
    assert code == 0
    found: dict[str, Any] = {method["name"]: method for method in json.loads(out)}
    assert list(found) == list(METHODS)
    assert found["mma"]["parameters"] == 674_560  # as its paper has it, ViT-B/16
    assert found["zero-shot"]["parameters"] == 0
    assert found["rmadapter"]["settings"]["rank"] == 32
    assert all(method["source"] and method["title"] for method in found.values())
