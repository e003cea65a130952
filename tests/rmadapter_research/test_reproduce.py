"""`rmadapter reproduce`, rehearsed: two miniature sets, a tiny random ViT, and figures that are
printed for them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.data.catalog.sets import CATALOG, find
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import parse_overrides
from rmadapter.task import Task
from rmadapter_research import paper, reproduce
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

CLASSES = ("cat", "dog", "owl", "fox")
QUICK = ["--set", "device=cpu", "--set", "rmadapter.epochs=1", "--set", "rmadapter.first_block=3"]


def miniature(root: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of the catalogue with four classes, its own layout and CoOp's split file."""
    dataset = CATALOG[key]
    home = root / dataset.folder
    split: dict[str, list[tuple[str, int, str]]] = {}
    for part, each in (("train", 16), ("val", 4), ("test", 2)):
        files = [(f"{name}/{part}{i}.png", name) for name in CLASSES for i in range(each)]
        split[part] = [(file, CLASSES.index(name), name) for file, name in files]
        for file, label, _ in split[part]:
            path = home / dataset.images / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (60 * label, 255 - 60 * label, 40)).save(path)
    (home / dataset.split).write_text(json.dumps(split))
    small = dataset.model_copy(update={"classes": 4, "counts": {"train": 64, "val": 16, "test": 8}})
    monkeypatch.setitem(CATALOG, key, small)  # type: ignore[arg-type]
    monkeypatch.setitem(paper.TEST_IMAGES, key, 8)


@pytest.fixture
def words(tmp_path: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    for key in ("dtd", "eurosat"):
        miniature(tmp_path / "data", key, monkeypatch)
    monkeypatch.setattr(paper, "BACKBONES", (tiny_clip.name,))
    folders = ["--root", tmp_path / "data", "--out", tmp_path / "out"]
    which = ["--seeds", "1", "--tables", "1", "--methods", "zero-shot,rmadapter"]
    return ["reproduce", *folders, "--backbone", tiny_clip.name, *which]


def test_a_plan_without_data_counts_all_runs(
    rmadapter: Command, tiny_clip: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["reproduce", "--root", tmp_path / "empty", "--out", tmp_path / "out", "--plan"]
    rows = rmadapter.json(*words)
    assert {row["table"] for row in rows} == {*reproduce.PARTS}
    assert sum(row["runs"] for row in rows if row["table"] == "1") == 11 * 11 * 3
    assert all(row["missing data"] for row in rows)
    total = sum(row["runs"] for row in rows)
    assert f"{total} of {total} runs are left" in rmadapter.done(*words).out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_is_run_judged_and_kept(
    rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    code, out, err = rmadapter(*words, *QUICK, "--plan", "--json")
    assert code == 0
    facts = {"table": "1", "runs": 2, "finished": 0}
    rows = [{**facts, "data set": key, "missing data": []} for key in ("dtd", "eurosat")]
    planned = json.loads(out)
    assert planned[:2] == rows
    assert [row["missing data"] for row in planned[2:]] == [
        [row["data set"]] for row in planned[2:]
    ]
    assert not (tmp_path / "out").exists()
    assert "imagenet is incomplete (absent); `rmadapter data imagenet --root" in err
    code, out, _ = rmadapter(*words, *QUICK, "--json")
    assert code == 1  # a random ViT is far from the paper
    judged = json.loads(out)
    measured = [row for row in judged if row["ours"] is not None]
    assert {row["table"] for row in measured} == {"Table 1, dtd", "Table 1, eurosat"}
    assert {row["row"] for row in measured} == {"CLIP", "RMAdapter"}
    record = read_record(next((tmp_path / "out").glob("base-to-novel/dtd/rmadapter/*.json")))
    wanted = ("Table 1, dtd", "RMAdapter", "base")
    [one] = [row for row in measured if (row["table"], row["row"], row["figure"]) == wanted]
    assert one["ours"] == record.metric("base")
    off = one["ours"] - one["paper"]
    assert one["verdict"] == ("within" if abs(off) <= 1 else f"off by {off:+.2f}")
    assert {row["verdict"] for row in judged if row["ours"] is None} == {"not run"}
    with open(tmp_path / "out/verdict.csv", encoding="utf-8", newline="") as file:
        verdicts = [row["verdict"] for row in csv.DictReader(file)]
    assert verdicts == [row["verdict"] for row in judged]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    code, out, _ = rmadapter(*words, *QUICK)  # nothing is left to do
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert f"{len(judged)} verdicts, one on each printed figure" in out
    plan = json.loads(rmadapter(*words, *QUICK, "--plan", "--json").out)
    assert [row["finished"] for row in plan[:3]] == [2, 2, 0]
    rows = json.loads(rmadapter(*words, *QUICK, "--tables", "1,6", "--json").out)
    assert {row["table"] for row in rows if row["table"].startswith("Table 6")} == {"Table 6"}
    [same] = (tmp_path / "out/ablation-layers/dtd").rglob("2-RMAdapter*.json")
    # of one training
    assert read_record(same).copied_from.startswith("base-to-novel/dtd/rmadapter/")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--tables", "7"), "--tables 7"),
        (("--tables", ","), "--tables"),
        (("--methods", "clap"), "clap: the methods"),
        (("--set", "clap.epochs=1"), "clap: the methods"),
        (("--backbone", "pocket"), "--backbone pocket"),
        (("--seeds", "one"), "--seeds one"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    given: tuple[str, ...], named: str, rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    refused(rmadapter(*words, *given), named)
    assert not (tmp_path / "out").exists()


def plans(root: Path, missing: Sequence[str] = (), **fields: Any) -> dict[str, Plan]:
    return reproduce.make_plans(options(root, **fields), missing)


def options(root: Path, **fields: Any) -> reproduce.ReproduceOptions:
    task = Task(backbone="ViT-B-16/openai")
    return reproduce.ReproduceOptions(root, root / "out", task=task, **fields)


def test_the_parts_are_the_tables_of_the_paper(tmp_path: Path) -> None:
    for table, part in reproduce.PARTS.items():
        assert part.protocol in PROTOCOLS
        assert {*part.methods} <= METHODS.keys()
        assert {*part.values} <= {*part.methods}
        for method, values in part.values.items():
            load_method(method, values)
        lines = (row for row in paper.check([]) if row["table"].split(",")[0] == f"Table {table}")
        rows = {row["row"] for row in lines}
        names = {"zero-shot": "CLIP", "cocoop": "Co-CoOp", "rmadapter-paper": "RMAdapter"}
        ours = {names.get(method, load_method(method).title) for method in part.methods}
        assert ours <= rows
    made = plans(tmp_path)
    assert list(made) == list(reproduce.PARTS)
    assert len(made["1"].jobs) == 11 * 11 * 3
    assert [job.task.data for job in made["2"].jobs][:1] == ["imagenet"]
    assert made["2"].values["maple"] == {"depth": 3, "epochs": 2, "learning_rate": 0.0026}
    assert made["1"].values == {}
    order = list(dict.fromkeys(job.task.data for job in made["1"].jobs))
    assert (order[0], order[-1]) == ("dtd", "imagenet")  # small ones first


def test_incomplete_data_sets_leave_out_the_runs_that_need_them(tmp_path: Path) -> None:
    made = plans(tmp_path, ["imagenet_a", "dtd"])
    assert list(made) == ["1", "4", "5", "6"]
    assert "dtd" not in {job.task.data for job in made["1"].jobs}
    targets = {"imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
    assert reproduce.missing_data(options(tmp_path, tables=("3",))).keys() == targets


def test_options_choose_methods_templates_rows_and_settings(tmp_path: Path) -> None:
    assert list(plans(tmp_path, tables=("3", "4"), methods=("coop",))) == ["3"]
    own = plans(tmp_path, tables=("1",), methods=("tcp",), own_templates=True)["1"].jobs
    assert {job.task.templates for job in own} == {find(job.task.data).templates for job in own}  # type: ignore[union-attr]
    assert len({job.task.templates for job in own}) == 8
    both = plans(tmp_path, tables=("1",), methods=("coprompt",), seeds=(1,), per_set=True)
    assert len(both["1"].jobs) == 22
    made = plans(tmp_path, tables=("2",), values={"maple": {"epochs": 1}})
    assert made["2"].values["maple"] == {"depth": 3, "epochs": 1, "learning_rate": 0.0026}


def test_the_page_has_the_settings_on_imagenet() -> None:
    page = (Path(__file__).parents[2] / "docs/studies/reproduce.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (`.*`) \|$", page, re.M)
    found = {method: parse_overrides(re.findall(r"`(\S+)`", values)) for method, values in rows}
    assert found == reproduce.ON_IMAGENET
