"""Tables of synthetic runs: every number is recomputed here with numpy and scipy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rmadapter.artifacts.record import Record
from rmadapter.artifacts.value import Balanced
from rmadapter.bench.report.costs import USES_HEADS, uses_tables
from rmadapter.bench.report.format import Table, TableRow
from rmadapter.bench.report.groups import Group, group_records, total_seconds
from rmadapter.bench.report.tables import make_tables
from rmadapter.training.traits import Uses
from rmadapter_research import paper
from tests.helpers.synthetic_runs import TITLES, VIT, record, with_method

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


def row(table: Table, label: str) -> TableRow:
    return next(row for row in table.rows if row.label == label)


def texts(table: Table, label: str) -> list[str]:
    return [cell.text for cell in row(table, label).cells]


def notes(table: Table) -> str:
    return " ".join(table.footnotes)


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
    novel = {m: np.mean([HALVES[m, "b", seed]["novel"] for seed in (1, 2, 3)]) for m in METHODS}
    best = TITLES[max(METHODS, key=lambda method: novel[method])]
    assert [r.label for r in found["b"].rows if r.cells[1].best] == [best]
    assert not any(r.source == "paper" for table in found.values() for r in table.rows)
    facts = ("3 seeds (1, 2, 3)", "16 shots", "pocket (ab12cd34)", "base 200, novel 160", "18 runs")
    assert all(fact in found["average"].facts for fact in facts)


def test_a_missing_seed_is_noted_and_left_out_of_the_average_of_all() -> None:
    found = tables(base_to_novel(skip=(("mma", "b", 3),)))
    assert [r.note for r in found["b"].rows] == ["", "2 of 3 seeds", "", ""]
    assert not row(found["b"], "MMA").cells[0].best
    assert "leaves out seed 3" in notes(found["average"])
    cells = [v["base"] for (m, _, seed), v in HALVES.items() if m == "rmadapter" and seed < 3]
    assert row(found["average"], "RMAdapter").cells[0].value == pytest.approx(np.mean(cells))


def test_an_average_is_over_the_data_sets_that_every_method_has() -> None:
    found = tables(base_to_novel(skip=tuple(("mma", "b", seed) for seed in (1, 2, 3))))
    assert row(found["b"], "MMA").note == "not run"
    assert found["average"].title == "Average over 1 data set"
    assert "leaves out data set b" in notes(found["average"])
    cells = [HALVES["rmadapter", "a", seed]["base"] for seed in (1, 2, 3)]
    assert row(found["average"], "RMAdapter").cells[0].value == pytest.approx(np.mean(cells))


def test_a_method_without_novel_classes_has_a_dash_and_the_reason() -> None:
    name, halves = "linear-probe", {"base": 70.0, "novel": None}
    reason = "probe knows no new class"
    probe = [record(name, d, s, halves, reason=reason) for d in ("a", "b") for s in (1, 2, 3)]
    found = tables([*base_to_novel(), *probe])
    assert texts(found["average"], name) == ["70.00 ± 0.00", "–", "–", "–"]
    assert all(f"–: {reason}." in found[table].footnotes for table in ("average", "a"))


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
    assert line.cells[1].value == pytest.approx(np.mean(d))
    assert [cell.value for cell in line.cells[2:4]] == [None, None]  # of two data sets
    expected = [2, 6, sum(x > 0 for x in d), sum(x < 0 for x in d)]
    assert [cell.value for cell in line.cells[4:8]] == expected
    assert [cell.value for cell in line.cells[8:]] == [None, None, None, None, "two data sets"]


def test_three_data_sets_have_p_values_and_a_verdict() -> None:
    gains = {"a": 3.0, "b": 3.5, "c": 4.0}
    runs = [
        record(m, data, s, {"base": 60.0 + (gain if m == "rmadapter" else 0), "novel": 50.0})
        for m in ("mma", "rmadapter")
        for data, gain in gains.items()
        for s in (1, 2)
    ]
    base, novel, _ = tables(runs)["pairs"].rows
    p = stats.ttest_1samp(list(gains.values()), 0).pvalue
    ends = stats.t.interval(0.95, 2, loc=3.5, scale=stats.sem([*gains.values()]))
    assert [cell.value for cell in base.cells[1:4]] == pytest.approx([3.5, *ends])
    assert [cell.value for cell in base.cells[8:11]] == [f"{p:.3g}", f"{p:.3g}", "0.25"]
    assert base.cells[-1].value == "ahead"
    assert [cell.value for cell in novel.cells[8:]] == [None, None, None, None, "not shown"]


def test_chance_stands_below_each_table_and_is_not_compared() -> None:
    found = tables(base_to_novel(skip=(("mma", "b", 3),)))
    for name in ("a", "average"):
        last = found[name].rows[-1]
        base, novel, hm = (cell.value for cell in last.cells[:3])
        assert (last.label, last.source) == ("chance", "chance")
        assert (base, novel, hm) == pytest.approx((50, 50, 50))  # of two classes in each half
        assert not any(cell.best or cell.interval for cell in last.cells)


def test_runs_on_other_images_are_named() -> None:
    runs = [record(m, "a", s, {"base": 60.0, "novel": 50.0}) for m in METHODS for s in (1, 2)]
    assert "Not the same images" not in notes(tables(runs)["pairs"])
    runs.append(record("coop", "a", 1, {"base": 60.0, "novel": 50.0}, split_digest="other"))
    pairs = tables(runs)["pairs"]
    expected = "Not the same images, so not paired, on a, 16 shots, seed 1: "
    expected += "Zero-shot CLIP, MMA, RMAdapter against coop."
    assert expected in pairs.footnotes
    assert "coop" not in {row.label for row in pairs.rows}


def test_the_reference_is_unchanged_rmadapter_or_the_first_row() -> None:
    full = "shared down-projection (RMAdapter)"
    labels = ("RMAdapter's adapters, no reconstruction", full, "independent")
    [sharing] = group_records(
        [record("rmadapter", "a", 1, {"base": 1.0}, variant=v) for v in labels]
    )
    assert sharing.reference == full
    [others] = group_records([record(name, "a", 1, {"base": 1.0}) for name in ("coop", "mma")])
    assert others.reference == "coop"


def test_the_papers_rows_stand_beside_runs_on_the_same_images() -> None:
    blocks = paper.tables()["base-to-novel"]
    sets = {name: rows["RMAdapter"] for name, rows in blocks.items() if name != "average"}
    runs = [
        record(
            "rmadapter", dataset, seed, {half: own[half] for half in ("base", "novel")},
            counts={"base": 500, "novel": paper.TEST_IMAGES[dataset] - 500}, **VIT,
        )
        for dataset, own in sets.items()
        for seed in (1, 2)
    ]  # fmt: skip
    values = {"base": 50.0, "novel": 40.0}
    found = tables([*runs, *(record("rmadapter", "grocery", s, values, **VIT) for s in (1, 2))])
    assert texts(found["dtd"], "RMAdapter, as printed") == ["83.37", "66.73", "74.09"]
    assert "is 74.13" in notes(found["dtd"])
    # twelve data sets are not the paper's eleven
    assert not any(r.source == "paper" for name in ("grocery", "average") for r in found[name].rows)
    assert "The paper has no figures for this data set" in notes(found["grocery"])
    eleven = tables(runs)["average"]
    assert texts(eleven, "RMAdapter, as printed") == ["84.52", "77.36", "80.62", "–"]
    assert "80.78" in notes(eleven)
    mean = np.mean([stats.hmean([own["base"], own["novel"]]) for own in sets.values()])
    assert texts(eleven, "RMAdapter")[2:] == ["80.78 ± 0.00", f"{mean:.2f} ± 0.00"]


def test_transfer_has_each_target_and_the_average_of_those_that_all_have() -> None:
    def of(method: str, targets: dict[str, float]) -> Record:
        return record(method, "src", 1, {"all": 70.0, **targets}, protocol="cross-dataset")

    full = of("mma", {"x": 10.0, "y": 20.0, "z": 60.0})
    (table, *_) = tables([full, of("rmadapter", {"x": 12.0, "y": 30.0})]).values()
    assert table.columns == ("method", "src (source)", "x", "y", "z", "average of the targets")
    assert texts(table, "MMA") == ["70.00", "10.00", "20.00", "60.00", "15.00"]
    assert texts(table, "RMAdapter") == ["70.00", "12.00", "30.00", "–", "21.00"]
    assert "targets of all rows: x, y." in notes(table)
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
    # of seed 1, which both have
    assert [cell.value for cell in row(found["average"], "RMAdapter").cells] == [52.5, 55.5]
    assert {r.cells[0].value for r in found["pairs"].rows} == {"1 shot", "4 shots"}
    assert [r.cells[-1].value for r in found["cost"].rows] == [2, 2]
    every = [record("mma", "a", 1, {"all": 90.0}, protocol="few-shot", shots=k) for k in (0, 4)]
    assert tables(every)["a"].columns == ("method", "4 shots", "all images")


def test_balanced_accuracy_has_a_table_where_classes_have_unequal_numbers() -> None:
    """Means over seeds as of accuracies; records that do not say show none."""

    def of(method: str, data: str, seed: int, counts: tuple[int, int] | None) -> Record:
        run = record(method, data, seed, {"all": 60.0 + seed}, protocol="few-shot", shots=4)
        balanced = counts and Balanced(
            accuracy=50.0 + seed, low=1, high=99, fewest=counts[0], most=counts[1]
        )
        scores = tuple(score.model_copy(update={"balanced": balanced}) for score in run.scores)
        return run.model_copy(update={"scores": scores})

    methods, seeds = ("mma", "rmadapter"), (1, 2)
    runs = [of(m, "uneven", s, (3, 6)) for m in methods for s in seeds]
    runs += [of(m, "even", s, (5, 5)) for m in methods for s in seeds]
    runs += [of(m, "unknown", s, None) for m in methods for s in seeds]
    found = tables(runs)
    assert [name for name in found if name.endswith("balanced")] == ["uneven-balanced"]
    table = found["uneven-balanced"]
    assert row(table, "MMA").cells[0].value == 51.5
    half = stats.t.ppf(0.975, 1) * np.std([51, 52], ddof=1) / np.sqrt(2)
    assert row(table, "MMA").cells[0].interval == pytest.approx(half)
    assert row(table, "chance").cells[0].value == 50
    assert "3 to 6 images" in notes(table)
    assert row(found["uneven"], "MMA").cells[0].value == 61.5


def test_balanced_accuracy_of_halves_and_of_targets() -> None:
    def with_rates(run: Record) -> Record:
        rate = Balanced(accuracy=40, low=1, high=99, fewest=1, most=2)
        scores = tuple(
            one.model_copy(update={"balanced": rate.model_copy(update={"accuracy": 40 + 10 * i})})
            for i, one in enumerate(run.scores)
        )
        return run.model_copy(update={"scores": scores})

    halves = [with_rates(run) for run in base_to_novel()]
    assert texts(tables(halves)["a-balanced"], "MMA")[2] == "44.44 ± 0.00"
    fields = {"protocol": "cross-dataset"}
    transfer = with_rates(record("mma", "src", 1, {"all": 1.0, "x": 1.0, "y": 1.0}, **fields))
    table = tables([transfer])["src-balanced"]
    assert texts(table, "MMA") == ["40.00", "50.00", "60.00", "55.00"]


def test_runs_of_another_draw_are_a_group_of_their_own() -> None:
    runs = base_to_novel()
    natural = [run.model_copy(update={"task": replace(run.task, draw="natural")}) for run in runs]
    balanced, other = group_records([*runs, *natural])
    assert "draw" not in balanced.shared
    assert other.shared["draw"] == "natural"
    assert other.title == f"{balanced.title}, natural draw"
    assert other.slug != balanced.slug


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
    assert texts(found, "MMA") == ["1,000", "900.00", "12.00", "0.25", "2.00", "15.00", "6"]
    assert texts(found, "Zero-shot CLIP")[3] == "–"
    other = record("coop", "a", 1, {"base": 1.0}, machine={"cpu": "other"}, peak_gpu_mb=5.0)
    mixed = tables([*runs, other])["cost"]
    assert "different machines" in notes(mixed)
    assert (mixed.columns[3], row(mixed, "coop").cells[2].value) == ("peak GPU memory, MB", 5.0)


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
    names = [name for name in found if "set" not in name]
    assert names == ["average", "pairs", *RANKS, "cost", "rules"]
    bases = [r for r in found["pairs"].rows if r.cells[0].value == "base"]
    p = stats.ttest_1samp(list(gains.values()), 0).pvalue
    assert p < 0.05 < 5 * p
    assert all(str(r.cells[-1].value).startswith("not shown, at most") for r in bases)
    assert bases[0].cells[8].value == f"{p:.3g}"
    assert found["pairs"].footnotes[0].count("Holm") == 1
    ranks = found["ranks-base"]
    assert ranks.rows[0].label == "RMAdapter"
    assert [cell.text for cell in ranks.rows[0].cells] == ["1.00 ± 0.00", "", *["4-0-0"] * 5]
    assert ranks.facts == found["pairs"].facts
    two = [r for r in runs if r.method.name in ("mma", "rmadapter")]
    assert not any("ranks" in name for name in tables(two)), "two methods have no ranks"


def test_tables_and_ranks_name_methods_that_are_not_written_from_their_code() -> None:
    names = ("mma", "mmrl", "skip-tuning", "cocoa-mix")
    scores = [{"base": 60.0 + i, "novel": 50.0} for i in range(len(names))]
    runs = [
        record(name, data, 1, score)
        for name, score in zip(names, scores, strict=True)
        for data in "abcd"
    ]
    found = tables(runs)
    ranks = next(name for name in found if "ranks" in name)
    for table in ("average", "a", "pairs", ranks):
        [note] = [note for note in found[table].footnotes if "authors' code" in note]
        assert "skip-tuning (" in note
        assert "cocoa-mix (" in note
        assert note.count("(") == 2
    assert all("authors' code" not in notes(table) for table in tables(runs[:8]).values())


ONE_RUN = {"base": 80.0, "novel": 70.0}


def test_a_row_for_each_method_with_what_it_uses() -> None:
    published = "MMRL, as published for each set"
    own = record("mmrl", "dtd", 1, ONE_RUN, title="MMRL", variant=published)
    theirs = [record(f"{x}.py:X", "dtd", 1, ONE_RUN, title=x) for x in "XY"]
    uses = Uses(extra="50 templates", tuned="nothing")
    stated = with_method(record("z:Z", "dtd", 1, ONE_RUN, title="Z"), uses=uses)
    mmrl = record("mmrl", "dtd", 1, ONE_RUN, title="MMRL")
    group, silent = group_records([own, *theirs, stated, mmrl])
    [table] = uses_tables(group)
    assert table.columns == ("method", *USES_HEADS)
    assert texts(table, "Z") == ["ranked", "50 templates", "–", "–", "–", "nothing"]
    assert texts(uses_tables(silent)[0], "X") == ["not stated", *["–"] * 5]
    assert texts(table, "MMRL")[0] == "ranked"
    assert texts(table, "MMRL")[4].startswith("not in use: weight")
    assert texts(table, published)[4].startswith("in use: weight")
    assert make_tables(group)[-1] == table
    assert uses_tables(one([mmrl])) == []
    [apart] = uses_tables(one([record("tda", "dtd", 1, ONE_RUN)]))
    assert [row.cells[0].text for row in apart.rows] == ["test time"]


def open_world(method: str, data: str, seed: int, joint: float, area: float) -> Record:
    run = record(
        method, data, seed, {"base": 80.0, "novel": 60.0, "all": joint}, protocol="open-world"
    )
    rates = {"base_half": 90.0, "novel_half": 70.0, "auroc": area, "openworld_auc": area / 2}
    *halves, together = run.scores
    together = together.model_copy(update={"data": "", "open_world": rates})
    return run.model_copy(update={"scores": (*halves, together)})


def test_open_world_adds_figures_of_one_list() -> None:
    joint = {"mma": 50.0, "rmadapter": 55.0}
    runs = [
        open_world(method, data, seed, joint[method] + seed, 70.0 + joint[method] / 10)
        for method in joint
        for data in ("a", "b", "c")
        for seed in (1, 2)
    ]
    found = tables(runs)
    heads = ("base", "novel", "HM", "all names", "AUROC", "OpenworldAUC")
    assert found["average"].columns[1:7] == heads
    cells = [cell.value for cell in row(found["average"], "RMAdapter").cells]
    hm = stats.hmean([80, 60])
    assert cells == pytest.approx([80, 60, hm, 56.5, 75.5, 37.75, 90, 70])
    assert [cell.best for cell in row(found["a"], "RMAdapter").cells[3:6]] == [True, True, True]
    chance = [cell.value for cell in row(found["a"], "chance").cells]
    assert chance[:4] == [50, 50, 50, 50]
    assert chance[4:] == [None] * 4  # and not a method's own
    tested = {line.cells[0].value for line in found["pairs"].rows}
    assert tested == {"all names", "AUROC", "OpenworldAUC"}
