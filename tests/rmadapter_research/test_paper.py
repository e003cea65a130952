"""The CSV files recomputed with numpy and scipy, and synthetic runs at a known distance from
them."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.report.printed import Check
from rmadapter_research import paper
from tests.helpers.synthetic_runs import VIT, record

HALVES = ("base", "novel", "HM")


def raw(name: str) -> list[dict[str, str]]:
    path = files("rmadapter_research") / "assets/printed" / name
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def counts(dataset: str) -> dict[str, int]:
    return {"base": 500, "novel": paper.TEST_IMAGES.get(dataset, 2465) - 500}


def as_printed(
    method: str, printed: str, shift: float = 0.0, seeds: tuple[int, ...] = (1, 2, 3)
) -> list[Record]:
    """Runs whose figures are those of Table 1, plus a shift of base and novel."""
    runs = []
    for row in raw("table1_base_to_novel.csv"):
        if row["dataset"] != "average" and row["method"] == printed:
            values = {key: float(row[key]) + shift for key in ("base", "novel")}
            given = {"counts": counts(row["dataset"]), **VIT}
            runs += [record(method, row["dataset"], seed, values, **given) for seed in seeds]
    return runs


def run_on(dataset: str, method: str = "mma", **fields: Any) -> Record:
    given = {"counts": counts(dataset), **VIT, **fields}
    return record(method, dataset, 1, {"base": 50.0, "novel": 50.0}, **given)


def checked(runs: list[Record]) -> dict[tuple[str, str, str], Check]:
    return {(line["table"], line["row"], line["figure"]): line for line in paper.check(runs)}


def test_the_average_hm_follows_neither_convention() -> None:
    rows = [row for row in raw("table1_base_to_novel.csv") if row["method"] == "RMAdapter"]
    average = next(row for row in rows if row["dataset"] == "average")
    own = [float(row["hm"]) for row in rows if row["dataset"] != "average"]
    of_means = hmean([float(average["base"]), float(average["novel"])])
    expected = ("80.62", "80.78", "80.60", 11)
    assert (average["hm"], f"{of_means:.2f}", f"{np.mean(own):.2f}", len(own)) == expected
    (note,) = paper.footnotes("base-to-novel", shown=["RMAdapter"])
    assert "80.62" in note
    assert "80.78" in note


def test_averages_that_are_not_the_means_of_their_rows() -> None:
    notes = " ".join(paper.footnotes("base-to-novel"))
    methods = paper.tables()["base-to-novel"]["average"]
    named = {name for name in methods if f"In the paper, {name}: base is" in notes}
    assert named == {"Co-CoOp", "KgCoOp", "MaPLe", "PromptSRC"}
    assert "PromptSRC: base is printed as 84.26, but" in notes
    assert "11 printed data sets is 84.07" in notes


def test_the_cross_dataset_average() -> None:
    (row,) = (row for row in raw("table2_cross_dataset.csv") if row["method"] == "RMAdapter")
    targets = [
        float(value) for key, value in row.items() if key not in {"method", "imagenet", "average"}
    ]
    assert (row["average"], f"{np.mean(targets):.2f}", len(targets)) == ("67.56", "67.18", 10)
    (note,) = paper.footnotes("cross-dataset")
    for part in ("RMAdapter", "67.56", "its 10 printed targets is 67.18"):
        assert part in note
    assert paper.footnotes("domain-generalization") == []


def test_mma_stands_under_another_name_in_ucf101() -> None:
    blocks = paper.tables()["base-to-novel"]
    known, here = (blocks[block].keys() for block in ("average", "ucf101"))
    assert (known - here, here - known) == ({"MMA"}, {"ProGrad"})
    assert all(rows.keys() == known for block, rows in blocks.items() if block != "ucf101")
    mma, prograd = (paper.printed(run_on("ucf101", name), "ucf101") for name in ("mma", "prograd"))
    assert mma is not None
    assert (mma[0], prograd) == ("ProGrad", None)
    (note,) = paper.footnotes("base-to-novel", "ucf101")
    for word in ("ProGrad", "82.20", "row of mma"):
        assert word in note


def test_ablations_repeat_the_average_that_does_not_add_up() -> None:
    for protocol in paper.ABLATIONS.values():
        (note,) = paper.footnotes(protocol)
        assert "80.62" in note
        assert "80.78" in note
    variants = [
        ("MMA (its own configuration)", "MMA (no reconstruction, no constraint)"),
        ("RMAdapter", "RMAdapter"),
    ]
    variants += [("RMAdapter's adapters + constraint", "MMA + constraint")]
    alone = "RMAdapter's adapters, no reconstruction, no constraint"  # of which nothing is printed
    for variant, printed in [*variants, (alone, None), ("something else", None)]:
        ours = record("rmadapter", "dtd", 1, {}, protocol="ablation-components", variant=variant)
        rows = paper.tables()["ablation-components"]["average"]
        assert paper.printed_name(ours, list(rows)) == printed


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": BackboneName(name="pocket", digest="1")},
        {"shots": 4},
        {"shots": 0},
        {"data": "grocery"},
        {"counts": {"base": 500, "novel": 500}},
        {"protocol": "few-shot"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_figure_where_something_is_not_the_papers(change: dict[str, Any]) -> None:
    found = paper.printed(run_on("caltech101"), "caltech101")
    assert found is not None
    assert found[1]["base"] == 98.40
    dataset = change.get("data", "caltech101")
    fields = {name: value for name, value in change.items() if name != "data"}
    assert paper.printed(run_on(dataset, **fields), dataset) is None


TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
SIZES = {name: paper.TEST_IMAGES[name] for name in TARGETS}


def shifted(seed: int, sizes: dict[str, int]) -> Record:
    """A run of domain generalisation; its sets have other names than the catalogue's."""
    counts = {name.replace("_", "-"): size for name, size in sizes.items()}
    accuracies = {"all": 60.0, **dict.fromkeys(counts, 50.0)}
    fields = {"protocol": "domain-generalization", "counts": {"all": 50000, **counts}, **VIT}
    return record("zero-shot", "imagenet", seed, accuracies, **fields)


@pytest.mark.parametrize(
    ("change", "complete"), [({}, True), ({"imagenet_a": 10}, False), ({"my own": 100}, False)]
)
def test_the_average_of_targets_is_of_exactly_the_papers(
    change: dict[str, int], complete: bool
) -> None:
    found = paper.printed(shifted(1, SIZES | change), "")
    assert found is not None
    name, figures = found
    assert (name, "average" in figures) == ("CLIP", complete)
    assert ("imagenet_a" in figures) == ("imagenet_a" not in change)
    assert "imagenet_r" in figures


@pytest.mark.parametrize(("source", "belongs"), [("imagenet", True), ("caltech101", False)])
def test_the_papers_source_of_transfer_is_imagenet(source: str, belongs: bool) -> None:
    fields = {"protocol": "cross-dataset", "counts": {"all": paper.TEST_IMAGES[source]}, **VIT}
    run = record("coop", source, 1, {"all": 60.0, "dtd": 50.0}, **fields)
    assert (paper.printed(run, "") is not None) == belongs


def test_check_of_targets() -> None:
    lines = checked([shifted(seed, SIZES) for seed in (1, 2, 3)])
    ours = {figure: lines["Table 3", "CLIP", figure]["ours"] for figure in SIZES}
    assert ours == dict.fromkeys(SIZES, 50.0)
    assert lines["Table 3", "CLIP", "imagenet"]["ours"] == 60.0
    assert lines["Table 3", "CLIP", "average"]["ours"] == 50.0


@pytest.mark.ci
def test_check_judges_each_figure() -> None:
    runs = [*as_printed("rmadapter", "RMAdapter", -0.5), *as_printed("zero-shot", "CLIP", -3.0)]
    runs += as_printed("tcp", "TCP", seeds=(1, 2))
    lines = checked(runs)
    halves = [*raw("table1_base_to_novel.csv"), *raw("tables4-6_ablations.csv")]
    assert len(lines) == 3 * len(halves) + 7 * 12 + 9 * 6
    near, far = lines["Table 1, dtd", "RMAdapter", "base"], lines["Table 1, dtd", "CLIP", "novel"]
    expected = (True, "measured", pytest.approx(-0.5))
    assert (near["within"], near["status"], near["difference"]) == expected
    assert (far["within"], far["ours"]) == (False, pytest.approx(56.9))
    average = {figure: lines["Table 1, average", "RMAdapter", figure]["ours"] for figure in HALVES}
    assert average["HM"] == pytest.approx(hmean([average["base"], average["novel"]]))
    partial = lines["Table 1, dtd", "TCP", "base"]
    assert (partial["within"], partial["status"]) == (None, "2 of 3 seeds")
    assert partial["difference"] == pytest.approx(0)
    missing = lines["Table 2", "RMAdapter", "average"]
    assert (missing["ours"], missing["within"], missing["status"]) == (None, None, "not measured")
    assert paper.check(runs, tolerance=0.4) != paper.check(runs, tolerance=0.6)


def test_two_settings_of_one_method_are_judged_apart() -> None:
    runs = as_printed("rmadapter", "RMAdapter", -3.0) + as_printed("rmadapter-paper", "RMAdapter")
    within = {
        row.split(", ")[0]: line["within"]
        for (table, row, _), line in checked(runs).items()
        if table == "Table 1, average"
    }
    names = ("RMAdapter (rmadapter", "RMAdapter (rmadapter-paper", "MMA")
    assert [within[name] for name in names] == [False, True, None]


def test_an_average_is_not_measured_until_every_data_set_is() -> None:
    lines = checked([r for r in as_printed("rmadapter", "RMAdapter") if r.task.data != "dtd"])
    assert lines["Table 1, average", "RMAdapter", "base"]["status"] == "not measured"
    assert lines["Table 1, eurosat", "RMAdapter", "base"]["within"] is True
