"""Tables of synthetic runs: every number is recomputed here with numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from rmadapter.artifacts.record import MethodName, Record
from rmadapter.bench.report.format import Row, Table
from rmadapter.bench.report.groups import Group, group_records
from rmadapter.bench.report.paper import TEST_IMAGES, halves
from rmadapter.bench.report.tables import (
    USES_HEADS,
    make_tables,
    reference,
    row_uses,
    total_seconds,
    uses_tables,
)
from rmadapter.methods.uses import Uses
from tests.helpers.synthetic_runs import TITLES, VIT, record

METHODS = ("zero-shot", "mma", "rmadapter")
RANKS = ("ranks-base", "ranks-novel", "ranks-hm")
RNG = np.random.default_rng(5)
HALVES = {
    (method, dataset, seed): {
        "base": float(RNG.uniform(60, 90)),
        "novel": float(RNG.uniform(40, 70)),
    }
    for method in METHODS
    for dataset in ("a", "b")
    for seed in (1, 2, 3)
}


def one(runs: list[Record]) -> Group:
    (group,) = group_records(runs)
    return group


def tables(runs: list[Record]) -> dict[str, Table]:
    group = one(runs)
    return {table.name.removeprefix(f"{group.slug}-"): table for table in make_tables(group)}


def row(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def base_to_novel(skip: tuple[Any, ...] = (), **fields: Any) -> list[Record]:
    return [record(*cell, values, **fields) for cell, values in HALVES.items() if cell not in skip]


def test_base_to_novel_per_data_set_and_average() -> None:
    found = tables(base_to_novel())
    assert list(found) == ["average", "a", "b", "pairs", "cost", "rules"]
    for method in METHODS:
        own = [HALVES[method, "a", seed] for seed in (1, 2, 3)]
        cells = row(found["a"], TITLES[method]).cells
        expected = [np.mean([v["base"] for v in own]), np.mean([v["novel"] for v in own])]
        expected.append(np.mean([stats.hmean(list(v.values())) for v in own]))
        assert [cell.value for cell in cells] == pytest.approx(expected)
        sem = stats.sem([v["base"] for v in own])
        assert cells[0].interval == pytest.approx(stats.t.ppf(0.975, 2) * sem)
        every = [v for (m, _, _), v in HALVES.items() if m == method]
        base, novel = (np.mean([v[half] for v in every]) for half in ("base", "novel"))
        mean_of_hms = np.mean([stats.hmean(list(v.values())) for v in every])
        average = [cell.value for cell in row(found["average"], TITLES[method]).cells]
        assert average == pytest.approx([base, novel, stats.hmean([base, novel]), mean_of_hms])
    best = max(
        METHODS, key=lambda m: np.mean([HALVES[m, "b", seed]["novel"] for seed in (1, 2, 3)])
    )
    assert [r.label for r in found["b"].rows if r.cells[1].best] == [TITLES[best]]
    assert not any(r.paper for table in found.values() for r in table.rows)
    expected = "3 seeds (1, 2, 3); 16 shots; pocket (ab12cd34); "
    expected += "images tested: base 200, novel 160; 18 runs,"
    expected += " 4\u00a0min 30\u00a0s."
    assert found["average"].facts == expected


def test_a_missing_seed_is_expected_and_left_out_of_the_average_of_all() -> None:
    found = tables(base_to_novel(skip=(("mma", "b", 3),)))
    assert [r.note for r in found["b"].rows] == ["", "2 of 3 seeds", ""]
    assert not row(found["b"], "MMA").cells[0].best
    (expected,) = (note for note in found["average"].footnotes if note.startswith("Incomplete"))
    assert "seed 3" in expected
    expected = np.mean(
        [v["base"] for (m, _, seed), v in HALVES.items() if m == "rmadapter" and seed < 3]
    )
    assert row(found["average"], "RMAdapter").cells[0].value == pytest.approx(expected)


def test_an_average_is_over_the_data_sets_that_every_method_has() -> None:
    found = tables(base_to_novel(skip=tuple(("mma", "b", seed) for seed in (1, 2, 3))))
    assert row(found["b"], "MMA").note == "not run"
    assert found["average"].title == "Average over 1 data set"
    assert "leaves out data set b" in " ".join(found["average"].footnotes)
    expected = np.mean([HALVES["rmadapter", "a", seed]["base"] for seed in (1, 2, 3)])
    assert row(found["average"], "RMAdapter").cells[0].value == pytest.approx(expected)


def test_a_method_without_novel_classes_has_a_dash() -> None:
    fields = {"reason": "probe knows no new class"}
    name, halves = "linear-probe", {"base": 70.0, "novel": None}
    probe = [record(name, d, s, halves, **fields) for d in ("a", "b") for s in (1, 2, 3)]
    found = tables([*base_to_novel(), *probe])
    expected = ["70.00 ± 0.00", "–", "–", "–"]
    assert [cell.text for cell in row(found["average"], name).cells] == expected
    assert (
        found["average"].footnotes[1:]
        == found["a"].footnotes[1:]
        == ("–: probe knows no new class.",)
    )


def test_pairs_are_rmadapter_minus_the_others_over_data_sets() -> None:
    pairs = tables(base_to_novel())["pairs"]
    assert pairs.title == "RMAdapter minus the others, in points"
    d = [
        np.mean(
            [HALVES["rmadapter", a, s]["novel"] - HALVES["mma", a, s]["novel"] for s in (1, 2, 3)]
        )
        for a in ("a", "b")
    ]
    (line,) = (r for r in pairs.rows if r.label == "MMA" and r.cells[0].value == "novel")
    low, high = stats.t.interval(0.95, 1, loc=np.mean(d), scale=stats.sem(d))
    assert [cell.value for cell in line.cells[1:4]] == pytest.approx([np.mean(d), low, high])
    expected = [2, 6, sum(x > 0 for x in d), sum(x < 0 for x in d)]
    assert [cell.value for cell in line.cells[4:8]] == expected
    assert [cell.value for cell in line.cells[8:]] == [None, None, None, "two data sets"]


def test_the_verdict_of_three_data_sets_has_its_p() -> None:
    gains = {"a": 3.0, "b": 3.5, "c": 4.0}
    runs = [
        record(m, data, s, {"base": 60.0 + (gain if m == "rmadapter" else 0), "novel": 50.0})
        for m in ("mma", "rmadapter")
        for data, gain in gains.items()
        for s in (1, 2)
    ]
    base, novel, _ = tables(runs)["pairs"].rows
    p = stats.ttest_1samp(list(gains.values()), 0).pvalue
    assert [cell.value for cell in base.cells[8:]] == [f"{p:.3g}", f"{p:.3g}", "0.25", "ahead"]
    assert [cell.value for cell in novel.cells[8:]] == [None, None, None, "not shown"]


def test_runs_on_other_images_are_named() -> None:
    runs = [record(m, "a", s, {"base": 60.0, "novel": 50.0}) for m in METHODS for s in (1, 2)]
    assert len(tables(runs)["pairs"].footnotes) == 1
    runs.append(record("coop", "a", 1, {"base": 60.0, "novel": 50.0}, split_digest="other"))
    pairs = tables(runs)["pairs"]
    expected = "Not the same images, so not paired, on a, 16 shots, seed 1: "
    expected += "Zero-shot CLIP, MMA, RMAdapter against coop."
    assert pairs.footnotes[1:] == (expected,)
    assert "coop" not in {row.label for row in pairs.rows}


def test_reference() -> None:
    variants = [
        "RMAdapter's adapters, no reconstruction",
        "shared down-projection (RMAdapter)",
        "independent",
    ]
    rows = {v: [record("rmadapter", "a", 1, {"base": 1.0}, variant=v)] for v in variants}
    assert reference(rows) == variants[1]
    assert (
        reference(
            {"x": [record("x", "a", 1, {"base": 1.0})], "y": [record("y", "a", 1, {"base": 1.0})]}
        )
        == "x"
    )


def test_the_papers_rows_stand_beside_ours_where_they_belong() -> None:
    runs = []
    for dataset, rows in halves().items():
        if dataset != "average":
            counts = {"base": 500, "novel": TEST_IMAGES[dataset] - 500}
            values = {half: rows["RMAdapter"][half] for half in ("base", "novel")}
            runs += [record("rmadapter", dataset, s, values, counts=counts, **VIT) for s in (1, 2)]
    found = tables(
        [
            *runs,
            *(
                record("rmadapter", "grocery", s, {"base": 50.0, "novel": 40.0}, **VIT)
                for s in (1, 2)
            ),
        ]
    )
    printed = row(found["dtd"], "RMAdapter, as printed")
    assert [cell.text for cell in printed.cells] == ["83.37", "66.73", "74.09"]
    assert any("is 74.13" in note for note in found["dtd"].footnotes)
    assert not any(r.paper for r in found["grocery"].rows)
    assert "The paper has no figures for this data set" in " ".join(found["grocery"].footnotes)
    assert not any(r.paper for r in found["average"].rows), (
        "twelve data sets are not the paper's eleven"
    )
    eleven = tables(runs)["average"]
    expected = ["84.52", "77.36", "80.62", "–"]
    assert [cell.text for cell in row(eleven, "RMAdapter, as printed").cells] == expected
    assert "80.78" in " ".join(eleven.footnotes)
    assert row(eleven, "RMAdapter").cells[2].text == "80.78 ± 0.00"
    own = [
        stats.hmean([rows["RMAdapter"][half] for half in ("base", "novel")])
        for rows in list(halves().values())[1:]
    ]
    assert row(eleven, "RMAdapter").cells[3].text == f"{np.mean(own):.2f} ± 0.00"


def test_transfer_has_each_target_and_the_average_of_those_that_all_have() -> None:
    def of(method: str, targets: dict[str, float]) -> Record:
        return record(method, "src", 1, {"all": 70.0, **targets}, protocol="cross-dataset")

    full = of("mma", {"x": 10.0, "y": 20.0, "z": 60.0})
    (table, *_) = tables([full, of("rmadapter", {"x": 12.0, "y": 30.0})]).values()
    assert table.columns == ("method", "src (source)", "x", "y", "z", "average of the targets")
    assert [c.text for c in row(table, "MMA").cells] == [
        "70.00", "10.00", "20.00", "60.00", "15.00",
    ]  # fmt: skip
    assert [c.text for c in row(table, "RMAdapter").cells] == [
        "70.00", "12.00", "30.00", "–", "21.00",
    ]  # fmt: skip
    assert "targets of all rows: x, y." in " ".join(table.footnotes)
    assert "images tested: all 9, x 9, y 9, z 9" in table.facts
    pairs = tables([full, of("rmadapter", {"x": 12.0, "y": 30.0})])["pairs"]
    expected = [["source", 0.0], ["targets", 6.0]]
    assert [[c.value for c in r.cells[:2]] for r in pairs.rows] == expected
    assert [[c.value for c in r.cells[4:8]] for r in pairs.rows] == [[1, 1, 0, 0], [2, 1, 2, 0]]
    assert [r.cells[-1].value for r in pairs.rows] == ["one data set", "two data sets"]


def test_few_shot_has_a_column_per_number_of_shots() -> None:
    runs = [
        record(m, d, s, {"all": 50.0 + k + s + (d == "b")}, protocol="few-shot", shots=k)
        for m in ("mma", "rmadapter")
        for d in ("a", "b")
        for s in (1, 2)
        for k in (1, 4)
        if (m, d, s, k) != ("mma", "b", 2, 4)
    ]
    found = tables(runs)
    assert found["a"].columns == ("method", "1 shot", "4 shots")
    assert [cell.value for cell in row(found["a"], "MMA").cells] == [52.5, 55.5]
    assert row(found["b"], "MMA").note == "fewer than 2 seeds at 4 shots"
    assert [cell.value for cell in row(found["average"], "RMAdapter").cells] == [52.5, 55.5], (
        "seed 1 alone"
    )
    assert {r.cells[0].value for r in found["pairs"].rows} == {"1 shot", "4 shots"}
    assert [r.cells[-1].value for r in found["cost"].rows] == [2, 2], "of seed 1, which both have"
    every = [record("mma", "a", 1, {"all": 90.0}, protocol="few-shot", shots=k) for k in (0, 4)]
    assert tables(every)["a"].columns == ("method", "4 shots", "all images")


def test_a_run_that_two_protocols_count_was_made_once() -> None:
    run = record("mma", "a", 1, {"base": 1.0, "novel": 1.0}, key="k")
    copied = run.model_copy(
        update={"protocol": "ablation-sharing", "variant": "full", "copied_from": "x"}
    )
    other = record("mma", "a", 2, {"base": 1.0, "novel": 1.0}, key="l")
    assert total_seconds([run, copied, other]) == total_seconds([run, other]) == 14 + 15


def test_cost_is_the_median_and_names_mixed_machines() -> None:
    runs = base_to_novel()
    found = tables(runs)["cost"]
    cells = row(found, "MMA").cells
    assert [cell.text for cell in cells] == [
        "1,000", "900.00", "12.00", "0.25", "2.00", "15.00", "6",
    ]  # fmt: skip
    assert row(found, "Zero-shot CLIP").cells[3].text == "–"
    mixed = [
        *runs,
        record("coop", "a", 1, {"base": 1.0}, machine={"cpu": "other"}, peak_gpu_mb=5.0),
    ]
    other = tables(mixed)["cost"]
    assert "different machines" in " ".join(other.footnotes)
    assert other.columns[3] == "peak GPU memory, MB"
    assert row(other, "coop").cells[2].value == 5.0


def test_verdicts_are_corrected_for_the_rows_of_a_figure_and_ranks_follow_them() -> None:
    """Alone, each difference to RMAdapter would be shown; of five together none is."""
    gains = {f"set {i}": 2.0 + i for i in range(4)}
    runs = [
        record(
            m, data, s, {"base": 60.0 - gain * (m != "rmadapter") + (m == "cocoop"), "novel": 50.0}
        )
        for m in ("zero-shot", "mma", "coop", "cocoop", "kgcoop", "rmadapter")
        for data, gain in gains.items()
        for s in (1, 2)
    ]
    found = tables(runs)
    assert [name for name in found if "set" not in name] == [
        "average", "pairs", *RANKS, "cost", "rules",
    ]  # fmt: skip
    bases = [r for r in found["pairs"].rows if r.cells[0].value == "base"]
    p = stats.ttest_1samp(list(gains.values()), 0).pvalue
    assert p < 0.05 < 5 * p
    assert [r.cells[-1].value for r in bases] == ["not shown"] * 5
    assert bases[0].cells[8].value == f"{p:.3g}"
    assert found["pairs"].footnotes[0].count("Holm") == 1
    ranks = found["ranks-base"]
    assert ranks.rows[0].label == "RMAdapter"
    assert [cell.text for cell in ranks.rows[0].cells] == ["1.00 ± 0.00", "", *["4-0-0"] * 5]
    assert ranks.facts == found["pairs"].facts
    two = [r for r in runs if r.method.name in ("mma", "rmadapter")]
    assert not any("ranks" in name for name in tables(two)), "two methods have no ranks"


ONE_RUN = {"base": 80.0, "novel": 70.0}


def test_a_row_for_each_method_with_what_it_uses() -> None:
    own = record("mmrl", "dtd", 1, ONE_RUN, title="MMRL", variant="MMRL, as published for each set")
    theirs = [record(f"{x}.py:X", "dtd", 1, ONE_RUN, title=x) for x in "XY"]
    uses = Uses(extra="50 templates", tuned="nothing")
    expected = record("z:Z", "dtd", 1, ONE_RUN).model_copy(
        update={"method": MethodName(name="z:Z", title="Z", uses=uses)}
    )
    mmrl = record("mmrl", "dtd", 1, ONE_RUN, title="MMRL")
    group, silent = group_records([own, *theirs, expected, mmrl])
    [table] = uses_tables(group)
    assert table.columns == ("method", *USES_HEADS)
    cells = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert cells["Z"] == ["ranked", "50 templates", "–", "–", "–", "nothing"]
    assert [cell.text for cell in uses_tables(silent)[0].rows[0].cells] == [
        "not stated",
        *["–"] * 5,
    ]
    assert cells["MMRL"][0] == "ranked"
    assert cells["MMRL"][4].startswith("not in use: weight of regularisation")
    assert cells["MMRL, as published for each set"][4].startswith(
        "in use: weight of regularisation"
    )
    assert make_tables(group)[-1] == table
    [alone] = group_records([mmrl])
    assert uses_tables(alone) == []
    [apart] = group_records([record("tda", "dtd", 1, ONE_RUN)])
    assert [row.cells[0].text for row in uses_tables(apart)[0].rows] == ["test time"]


def test_a_setting_may_change_the_track() -> None:
    method = MethodName(name="coprompt", settings={"descriptions": "texts.json"})
    found = row_uses([record("coprompt", "dtd", 1, ONE_RUN).model_copy(update={"method": method})])
    assert found is not None
    assert found.track == "extra data"
