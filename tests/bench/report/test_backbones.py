"""Tables of methods by backbones, whose means are recomputed here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.report.backbones import backbone_tables
from rmadapter.bench.report.format import Table, TableRow
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.write import write_reports
from rmadapter.errors import UserError
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.synthetic_runs import record, write

__all__ = ["rmadapter"]  # a fixture

SMALL = BackboneName(name="small", digest="a1" * 8)
LARGE = BackboneName(name="large", digest="b2" * 8)
METHODS, SETS, SEEDS = ("zero-shot", "mma", "rmadapter"), ("a", "b"), (1, 2, 3)
RNG = np.random.default_rng(3)
FIGURES = {
    (method, data, seed, backbone.name): float(RNG.uniform(40, 90))
    for method in METHODS
    for data in SETS
    for seed in SEEDS
    for backbone in (SMALL, LARGE)
}


def run(method: str, data: str, seed: int, backbone: BackboneName, shots: int = 4) -> Record:
    value = FIGURES.get((method, data, seed, backbone.name), 50.0)
    return record(
        method, data, seed, {"all": value}, protocol="few-shot", shots=shots, backbone=backbone
    )


def every(skip: tuple[object, ...] = ()) -> list[Record]:
    return [
        run(method, data, seed, backbone)
        for backbone in (SMALL, LARGE)
        for method in METHODS
        for data in SETS
        for seed in SEEDS
        if (method, data, seed, backbone.name) != skip and (method, backbone.name) != skip
    ]


def row(table: Table, label: str) -> TableRow:
    return next(one for one in table.rows if one.label == label)


def test_means_over_sets_and_intervals_over_seeds() -> None:
    [table] = backbone_tables(group_records(every()))
    assert table.columns == ("method", "large", "small")
    assert [one.label for one in table.rows] == ["Zero-shot CLIP", "MMA", "RMAdapter", "chance"]
    for method, label in (("mma", "MMA"), ("rmadapter", "RMAdapter")):
        for cell, backbone in zip(row(table, label).cells, ("large", "small"), strict=True):
            values = np.array(
                [[FIGURES[method, data, seed, backbone] for data in SETS] for seed in SEEDS]
            ).mean(1)
            assert cell.value == pytest.approx(values.mean())
            half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
            assert cell.interval == pytest.approx(half)
    for place in (0, 1):
        cells = [one.cells[place] for one in table.rows[:3]]
        assert [cell.best for cell in cells].count(True) == 1
        assert max(cells, key=lambda cell: cell.number).best
    assert {cell.value for cell in row(table, "chance").cells} == {50}
    for words in (
        "2 data sets (a, b)",
        "3 seeds (1, 2, 3)",
        "precision fp32",
        "templates “a photo of a {}.”.",
    ):
        assert words in table.facts
    assert "left out" not in table.facts


def test_only_sets_and_seeds_of_every_cell_count_and_the_rest_is_named() -> None:
    [table] = backbone_tables(group_records(every(skip=("mma", "b", 2, "small"))))
    assert "2 seeds (1, 3)" in table.facts
    assert "left out: seed 2." in table.facts
    values = [FIGURES["rmadapter", d, s, "small"] for d in SETS for s in (1, 3)]
    assert row(table, "RMAdapter").cells[1].value == pytest.approx(np.mean(values))


def test_a_method_that_was_not_run_on_a_backbone_has_a_dash() -> None:
    [table] = backbone_tables(group_records(every(skip=("mma", "large"))))
    large, small = row(table, "MMA").cells
    assert large.text == "–"
    assert small.value is not None
    assert "3 seeds (1, 2, 3)" in table.facts


def test_settings_and_shots_are_never_mixed() -> None:
    runs = every()
    natural = [one.model_copy(update={"task": replace(one.task, draw="natural")}) for one in runs]
    more = [run("mma", "a", 1, backbone, shots=16) for backbone in (SMALL, LARGE)]
    tables = backbone_tables(group_records([*runs, *natural, *more]))
    assert [table.title for table in tables] == [
        "few-shot, 4 shots: by backbone",
        "few-shot, 16 shots: by backbone",
        "few-shot, 4 shots, natural draw: by backbone",
    ]
    assert len({table.name for table in tables}) == 3
    assert ["draw natural" in table.facts for table in tables] == [False, False, True]
    one_name = [
        run("mma", "a", 1, BackboneName(name="vit", digest=digest * 8)) for digest in ("a1", "b2")
    ]
    [table] = backbone_tables(group_records(one_name))
    assert table.columns == ("method", "vit (a1a1a1a1)", "vit (b2b2b2b2)")
    assert backbone_tables(group_records(one_name[:1])) == []


def test_base_to_novel_has_a_table_for_each_figure() -> None:
    values = {"base": 80.0, "novel": 60.0}
    runs = [record("mma", "a", 1, values, backbone=one) for one in (SMALL, LARGE)]
    titles = [table.title for table in backbone_tables(group_records(runs))]
    assert titles == [
        f"base-to-novel, {head}, 16 shots: by backbone" for head in ("base", "novel", "HM")
    ]


def test_the_option_adds_them_to_every_format(rmadapter: Command, tmp_path: Path) -> None:
    results, out = write(tmp_path / "results", *every()), tmp_path / "report"
    plain = write_reports(results, tmp_path / "plain")
    assert "backbones" not in plain
    words = ["report", results, "--out", out]
    summary = rmadapter.json(*words, "--backbones")
    [table] = summary["backbones"]
    assert json.loads((out / "report.json").read_text())["backbones"] == [table]
    assert f"### {table['title']}" in (out / "report.md").read_text("utf-8")
    assert "<h2>Methods by backbones</h2>" in (out / "report.html").read_text("utf-8")
    lines = (out / f"tables/{table['name']}.csv").read_text("utf-8").splitlines()
    assert len(lines) == 1 + 4
    one = write(tmp_path / "one", *[run("mma", data, 1, SMALL) for data in SETS])
    refused(rmadapter("report", one, "--out", out, "--backbones"), "--backbones: no two backbones")
    with pytest.raises(UserError, match="no two backbones"):
        write_reports(one, tmp_path / "none", backbones=True)
    assert not (tmp_path / "none").exists()
