"""The CSV files recomputed with numpy and scipy, and synthetic runs at a known distance from them."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean

from rmadapter.bench import paper
from rmadapter.bench.records import Run
from synthetic_runs import run

VIT = {"backbone": {"name": "ViT-B-16/openai", "digest": "99"}}


def raw(name: str) -> list[dict[str, str]]:
    path = files("rmadapter") / "assets/paper" / name
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def counts(dataset: str) -> dict[str, int]:
    return {"base": 500, "novel": paper.TEST_IMAGES[dataset] - 500}


def as_printed(method: str, printed: str, shift: float = 0.0, seeds: tuple[int, ...] = (1, 2, 3)) -> list[Run]:
    """Runs whose figures are those of Table 1, plus a shift of base and novel."""
    runs = []
    for row in raw("table1_base_to_novel.csv"):
        if row["dataset"] != "average" and row["method"] == printed:
            values = {key: float(row[key]) + shift for key in ("base", "novel")}
            given = {"counts": counts(row["dataset"]), **VIT}
            runs += [run(method, row["dataset"], seed, values, **given) for seed in seeds]
    return runs


def test_the_average_hm_follows_neither_convention() -> None:
    rows = [row for row in raw("table1_base_to_novel.csv") if row["method"] == "RMAdapter"]
    average = next(row for row in rows if row["dataset"] == "average")
    own = [float(row["hm"]) for row in rows if row["dataset"] != "average"]
    of_means = hmean([float(average["base"]), float(average["novel"])])
    assert (average["hm"], f"{of_means:.2f}", f"{np.mean(own):.2f}", len(own)) == ("80.62", "80.78", "80.60", 11)
    (note,) = (note for note in paper.footnotes("base-to-novel") if "RMAdapter" in note)
    for part in ("80.62", "(84.52, 77.36) is 80.78", "every other row", "its 11 printed HMs is 80.60"):
        assert part in note


def test_averages_that_are_not_the_means_of_their_rows() -> None:
    notes = " ".join(paper.footnotes("base-to-novel"))
    named = {name for name in paper.halves()["average"] if f"In the paper: {name}: the base average" in notes}
    assert named == {"Co-CoOp", "KgCoOp", "MaPLe", "PromptSRC"}
    assert "PromptSRC: the base average is printed as 84.26, its rows have 84.07" in notes


def test_the_cross_dataset_average() -> None:
    (row,) = (row for row in raw("table2_cross_dataset.csv") if row["method"] == "RMAdapter")
    targets = [float(value) for key, value in row.items() if key not in {"method", "imagenet", "average"}]
    assert (row["average"], f"{np.mean(targets):.2f}", len(targets)) == ("67.56", "67.18", 10)
    (note,) = paper.footnotes("cross-dataset")
    for part in ("RMAdapter", "67.56", "its 10 printed targets is 67.18", "the other rows agree"):
        assert part in note
    assert paper.footnotes("domain-generalization") == []


def test_mma_stands_under_another_name_in_ucf101() -> None:
    assert paper.misnamed("ucf101") == {"MMA": "ProGrad"}
    assert all(paper.misnamed(block) == {} for block in paper.halves() if block != "ucf101")
    assert any("stands in the place of MMA" in note for note in paper.footnotes("base-to-novel", "ucf101"))
    ours = run("mma", "ucf101", 1, {"base": 1.0, "novel": 1.0}, counts=counts("ucf101"), **VIT)
    found = paper.printed(ours, "ucf101")
    assert found is not None
    assert found[0] == "ProGrad"


def test_ablations_repeat_the_average_that_does_not_add_up() -> None:
    for protocol in paper.ABLATIONS:
        (note,) = paper.footnotes(protocol)
        assert "80.62" in note
        assert "80.78" in note
    variants = [("MMA (its own configuration)", "MMA (no reconstruction, no constraint)"), ("RMAdapter", "RMAdapter")]
    for variant, printed in [*variants, ("something else", None)]:
        ours = run("rmadapter", "dtd", 1, {}, protocol="ablation-components", variant=variant)
        assert paper.printed_name(ours, list(paper.ablation("ablation-components"))) == printed


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {"name": "pocket", "digest": "1"}},
        {"shots": 4},
        {"dataset": "grocery"},
        {"counts": {"base": 500, "novel": 500}},
        {"protocol": "few-shot"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_figure_where_something_is_not_the_papers(change: dict[str, Any]) -> None:
    fields = {"dataset": "caltech101", "counts": counts("caltech101"), **VIT}
    same, other = (Run.model_validate({**run("mma", "a", 1, {}).model_dump(), **fields, **c}) for c in ({}, change))
    found = paper.printed(same, "caltech101")
    assert found is not None
    assert found[1]["base"] == 98.40
    assert paper.printed(other, paper.dataset_name(other.dataset)) is None


def test_the_average_of_targets_needs_all_of_them() -> None:
    targets = dict.fromkeys(("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"), 50.0)
    sizes = {name: paper.TEST_IMAGES[name] for name in targets}
    for tested, has in ((sizes, True), ({**sizes, "imagenet_a": 10}, False)):
        given = {"protocol": "domain-generalization", "counts": {"source": 50000, "targets": tested}, **VIT}
        found = paper.printed(run("zero-shot", "imagenet", 1, {"source": 60.0, "targets": targets}, **given), "")
        assert found is not None
        assert found[0] == "CLIP"
        assert ("average" in found[1], "imagenet_a" in found[1], "imagenet_r" in found[1]) == (has, has, True)


def test_check_judges_each_figure() -> None:
    runs = [*as_printed("rmadapter", "RMAdapter", 0.5), *as_printed("zero-shot", "CLIP", 3.0)]
    runs += as_printed("tcp", "TCP", seeds=(1, 2))
    lines = {(line["table"], line["row"], line["figure"]): line for line in paper.check(runs)}
    halves = [*raw("table1_base_to_novel.csv"), *raw("tables4-6_ablations.csv")]
    assert len(lines) == 3 * len(halves) + 7 * 12 + 9 * 6
    near, far = lines["Table 1, dtd", "RMAdapter", "base"], lines["Table 1, dtd", "CLIP", "novel"]
    assert (near["within"], near["status"], near["difference"]) == (True, "measured", pytest.approx(0.5))
    assert (far["within"], far["ours"]) == (False, pytest.approx(62.9))
    average = lines["Table 1, average", "RMAdapter", "HM"]
    base, novel = (lines["Table 1, average", "RMAdapter", half]["ours"] for half in ("base", "novel"))
    assert average["ours"] == pytest.approx(hmean([base, novel]))
    partial = lines["Table 1, dtd", "TCP", "base"]
    assert (partial["within"], partial["status"], partial["difference"]) == (None, "2 of 3 seeds", pytest.approx(0))
    missing = lines["Table 2", "RMAdapter", "average"]
    assert (missing["ours"], missing["within"], missing["status"]) == (None, None, "not measured")
    assert paper.check(runs, tolerance=0.4) != paper.check(runs, tolerance=0.6)


def test_two_settings_of_one_method_are_judged_apart() -> None:
    runs = [*as_printed("rmadapter", "RMAdapter", 3.0), *as_printed("rmadapter-paper", "RMAdapter")]
    within = {
        line["row"].split(", ")[0]: line["within"] for line in paper.check(runs) if line["table"] == "Table 1, average"
    }
    assert (within["RMAdapter (rmadapter"], within["RMAdapter (rmadapter-paper"], within["MMA"]) == (
        False,
        True,
        None,
    )


def test_an_average_is_not_measured_until_every_data_set_is() -> None:
    runs = [r for r in as_printed("rmadapter", "RMAdapter") if r.dataset != "dtd"]
    lines = {(line["table"], line["row"], line["figure"]): line for line in paper.check(runs)}
    assert lines["Table 1, average", "RMAdapter", "base"]["status"] == "not measured"
    assert lines["Table 1, eurosat", "RMAdapter", "base"]["within"] is True


def test_tables_hold_every_printed_figure() -> None:
    tables = {table.name: table for table in paper.paper_tables()}
    assert len(tables) == 12 + 2 + 3 + 1
    text = " ".join(cell.text for table in tables.values() for row in table.rows for cell in row.cells)
    for name in ("table1_base_to_novel", "table2_cross_dataset", "table3_domain_generalization", "tables4-6_ablations"):
        for row in raw(f"{name}.csv"):
            for value in list(row.values())[-3:]:
                assert f"{float(value):.2f}" in text
    assert [row.cells[0].text for row in tables["paper-table7"].rows] == ["320K", "+3%", "+5%"]
