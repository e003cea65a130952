"""Taxonomies on the command line: judged by fit, stored with the run, and used by others."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.export.runtime import Model
from rmadapter.support.files import check_sums
from tests.helpers.shell import Command, fit_command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

PARENTS = {"blue": "cold", "night_sky": "cold", "green": "cold", "red": "warm"}
PARENTS |= {"cold": "colour", "warm": "colour"}
PROBE = ["--method", "linear-probe", "--set", "search_steps=0", "--shots", "4", "--folds", "4"]


@pytest.fixture(scope="module")
def taxonomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("taxonomy") / "parents.csv"
    rows = "".join(f"{child},{parent}\n" for child, parent in PARENTS.items())
    file.write_text(f"label,parent\n{rows}", encoding="utf-8")
    return file


@pytest.fixture
def run(
    rmadapter: Command, colors: Path, taxonomy: Path, tiny_clip: Backbone, tmp_path: Path
) -> Path:
    options = [*PROBE, "--taxonomy", taxonomy]
    rmadapter.done(*fit_command(colors, tiny_clip, tmp_path / "run", *options))
    return tmp_path / "run"


def test_a_run_is_judged_at_each_level(
    rmadapter: Command, run: Path, colors: Path, tiny_clip: Backbone, taxonomy: Path
) -> None:
    record = read_record(run / "run.json")
    parent, top = record.scores[0].levels
    assert (parent.level, parent.groups, top.level, top.groups) == (1, 2, 2, 1)
    assert top.accuracy == top.zero_shot == 100
    assert json.loads((run / "model.json").read_text())["parents"] == PARENTS
    assert "Levels of the taxonomy" in (run / "report.html").read_text()
    words = ["eval", run, colors, "--backbone", tiny_clip.name]
    facts = rmadapter.json(*words)
    assert facts["levels"][0]["accuracy"] == parent.accuracy
    assert "grandparent" in rmadapter.done(*words).out
    again = fit_command(colors, tiny_clip, run, *PROBE)
    refused(rmadapter(*again), "another taxonomy")
    rmadapter.done(*again, "--taxonomy", taxonomy)
    taxonomy.with_name("b.csv").write_text("label,parent\nblue,a\nred,a\ngreen,b\nnight sky,b\n")
    other = rmadapter.json(*words, "--taxonomy", taxonomy.with_name("b.csv"))
    assert [level["groups"] for level in other["levels"]] == [2]


def test_a_taxonomy_that_does_not_fit_is_refused(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    file = tmp_path / "t.json"
    for parents, word in (
        ({"blue": "cold"}, "'green' has no parent"),
        ({**PARENTS, "bleu": "cold"}, "did you mean 'blue'"),
        ({**PARENTS, "colour": "cold"}, "its own parent"),
    ):
        file.write_text(json.dumps(parents))
        words = fit_command(colors, tiny_clip, tmp_path / "run", "--taxonomy", file)
        refused(rmadapter(*words), "t.json", word)
    assert not (tmp_path / "run").exists()


def test_predict_backs_off_to_parents(
    rmadapter: Command, run: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["held_out"] = {"probabilities": [0.99] * 230, "right": "1" * 230}  # enough for 1 %
    (run / "run.json").write_text(json.dumps(facts))
    (run / "SHA256SUMS").unlink()
    words = ["predict", run, colors / "test", "--backbone", tiny_clip.name, "--no-zero-shot"]
    answers = rmadapter.json(*words, "--top", 4, "--wrong", "1%")
    for answer in answers:
        shares = {one["class"]: one["probability"] for one in answer["classes"]}
        cold = sum(share for label, share in shares.items() if label != "red")
        parent, top = answer["levels"]
        assert parent["class"] == ("cold" if cold > 0.5 else "warm")
        assert parent["probability"] == pytest.approx(max(cold, 1 - cold), abs=5e-6)
        assert (top["class"], top["probability"]) == ("colour", 1)
    names = {answer["answer"]["class"] for answer in answers}
    assert names & {"cold", "colour"}
    out = tmp_path / "answers.csv"
    rmadapter.done(*words, "--wrong", "1%", "--out", out, "--sort-into", tmp_path / "sorted")
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [answer["answer"]["class"] for answer in answers]
    assert [row["parent"] for row in rows] == [one["levels"][0]["class"] for one in answers]
    assert {folder.name for folder in (tmp_path / "sorted").iterdir() if folder.is_dir()} == names
    assert {row["unsure"] for row in rows} == {"false"}
    assert not any(answer["unsure"] for answer in answers)
    decisions = [*(row["decision"] for row in rows), *(one["decision"] for one in answers)]
    assert {*decisions} == {"answer"}
    shown = rmadapter.done(*words, "--wrong", "1%").out
    assert "colour: " in shown or "cold: " in shown


def test_sets_are_answered_by_their_common_parent(
    rmadapter: Command, run: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    words = ["predict", run, colors / "test", "--backbone", tiny_clip.name, "--no-zero-shot"]
    for answer in rmadapter.json(*words, "--error", "20%"):
        members = {*answer["set"]}
        own = answer["answer"]["class"]
        if len(members) == 1:
            assert members == {own}
        else:
            assert own == ("colour" if "red" in members else "cold")
    file = tmp_path / "flat.json"
    file.write_text(json.dumps({"blue": "x", "red": "x", "green": "y", "night_sky": "y"}))
    facts = rmadapter.json(*words, "--taxonomy", file)
    assert all(len(answer["levels"]) == 1 for answer in facts)
    named = rmadapter.json(*words, "--names", "blue,red", "--wrong", "1%")
    assert {answer["levels"][1]["class"] for answer in named} == {"colour"}
    file.write_text(json.dumps({"blue": "unsure", "red": "x", "green": "y", "night_sky": "y"}))
    refused(rmadapter(*words, "--taxonomy", file, "--wrong", "10%"), "'unsure'")


@pytest.mark.ci
def test_an_export_answers_as_predict_does(
    rmadapter: Command, run: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    own = ["--backbone", tiny_clip.name]
    rmadapter.done("export", run, "--out", tmp_path / "export", *own)
    assert json.loads((tmp_path / "export/taxonomy.json").read_text()) == PARENTS
    check_sums(tmp_path / "export", ["taxonomy.json"])
    assert "Levels of the taxonomy" in (tmp_path / "export/README.md").read_text()
    images, out = colors / "test", tmp_path / "answers.csv"
    rmadapter.done("predict", run, images, *own, "--no-zero-shot", "--error", "20%", "--out", out)
    script = [sys.executable, tmp_path / "export/predict.py", images, "--error", "20%"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    ours, theirs = (
        list(csv.DictReader(text.splitlines())) for text in (out.read_text(), done.stdout)
    )
    assert [*ours[0]] == [*theirs[0]]
    for row, other in zip(ours, theirs, strict=True):
        for column, text in row.items():
            if column.startswith("probability"):
                assert float(other[column]) == pytest.approx(float(text), abs=1e-4)
            else:
                assert other[column] == text
    model = Model(tmp_path / "export")
    paths = [row["image"] for row in ours]
    assert model.predict_common(paths, 0.2) == [row["label"] for row in ours]
    assert [line[0][0] for line in model.predict_levels(paths)] == [row["parent"] for row in ours]
    for text in ('{"blue": "cold", "cold": "blue"}', '{"blue": 3}', "[]"):
        (tmp_path / "export/taxonomy.json").write_text(text)
        (tmp_path / "export/SHA256SUMS").unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"taxonomy\.json"):
            Model(tmp_path / "export")
