"""The SVG is read back with an XML parser: what is drawn, and that nothing clashes in one page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.figures import Figure, make_figures
from rmadapter.bench.report.groups import group_records
from tests.helpers.synthetic_runs import record

pytestmark = pytest.mark.real_plots


def figures(runs: list[Record]) -> list[Figure]:
    (group,) = group_records(runs)
    return make_figures(group)


def texts(figure: Figure) -> list[str]:
    nodes = ET.fromstring(figure.svg).iter()
    return ["".join(node.itertext()).strip() for node in nodes if node.tag.endswith("text")]


def layers(labels: list[str]) -> list[Record]:
    """Two runs of each variant of an ablation."""
    return [
        record(
            "rmadapter",
            "a",
            seed,
            {"base": 60.0 + place + seed, "novel": 50.0},
            protocol="ablation-layers",
            variant=label,
        )
        for place, label in enumerate(labels)
        for seed in (1, 2)
    ]


def test_trade_off_has_a_point_per_method_that_names_new_classes() -> None:
    values = {"zero-shot": (60.0, 50.0), "mma": (64.0, 49.0), "rmadapter": (66.0, 52.0)}
    runs = [
        record(m, "a", s, {"base": b + s, "novel": n})
        for m, (b, n) in values.items()
        for s in (1, 2)
    ]
    runs += [record("linear-probe", "a", s, {"base": 70.0, "novel": None}) for s in (1, 2)]
    figure, _ = figures(runs)
    shown = texts(figure)
    assert {"Zero-shot CLIP", "MMA", "RMAdapter"} <= set(shown)
    assert "probe" not in shown
    assert any(text.startswith("HM ") for text in shown)
    assert "var(--adapted" in figure.svg
    assert figures([r for r in runs if r.method.name == "mma"]) == []


def test_intervals_end_where_no_accuracy_can_be() -> None:
    """That of two seeds far apart is wider than all accuracies."""
    runs = [
        record(method, "a", seed, {"base": 60.0, "novel": novel})
        for method in ("mma", "rmadapter")
        for seed, novel in ((1, 5.0), (2, 45.0))
    ]
    figure, *_ = figures(runs)
    ticks = [text for text in texts(figure) if re.fullmatch(r"[\d.\u2212]+", text)]
    assert len(ticks) > 4
    assert all(0 <= float(tick) <= 110 for tick in ticks)


def test_cost_has_a_point_per_trained_method_and_a_line_for_zero_shot() -> None:
    seconds = {"zero-shot": 0.0, "mma": 20.0, "rmadapter": 300.0}
    runs = [
        record(m, "a", s, {"base": 60.0 + s, "novel": 50.0}, seconds={"train": t, "total": t})
        for m, t in seconds.items()
        for s in (1, 2)
    ]
    _, figure = figures(runs)
    assert {"Zero-shot CLIP", "MMA", "RMAdapter", "training, s", "100"} <= set(texts(figure))
    [alone] = figures([r for r in runs if r.method.name != "mma"])
    assert alone.name.endswith("-trade-off")


def test_a_legend_of_many_long_names_stays_inside() -> None:
    names = [f"method number {i}, trained as another" for i in range(12)]
    runs = [record(n, "a", 1, {"base": 50.0 + i, "novel": 50.0}) for i, n in enumerate(names)]
    figure = figures(runs)[0]
    root = ET.fromstring(figure.svg)
    right = float(root.get("viewBox", "").split()[2])
    starts = {node.text: float(node.get("x", "-1")) for node in root.iter() if node.text in names}
    assert starts.keys() == set(names)
    assert min(starts.values()) > 0
    # 4.2 pt: a narrow mean width of a character at 9 pt
    assert max(starts.values()) + 4.2 * len(names[0]) < right


def test_few_shot_curves_per_data_set_and_average() -> None:
    runs = [
        record(m, d, s, {"all": 50.0 + k + s}, protocol="few-shot", shots=k)
        for m, shots in (("zero-shot", (16,)), ("mma", (1, 2, 16)))
        for d in ("a", "b/c")
        for s in (1, 2)
        for k in shots
    ]
    drawn = figures(runs)
    assert [figure.title for figure in drawn] == ["Average over 2 data sets", "a", "b/c"]
    assert all("/" not in figure.name for figure in drawn)
    assert {"1", "2", "16", "images per class", "MMA"} <= set(texts(drawn[0]))
    assert len(figures([r for r in runs if r.task.data == "a"])) == 1
    ids = [node.get("id") for figure in drawn for node in ET.fromstring(figure.svg).iter()]
    known = [name for name in ids if name]
    assert len(known) == len(set(known))


def test_one_number_of_shots_is_no_curve() -> None:
    runs = [
        record(m, d, s, {"all": 50.0 + s + len(m)}, protocol="few-shot", shots=4)
        for m in ("zero-shot", "mma")
        for d in ("a", "b")
        for s in (1, 2)
    ]
    [figure] = figures(runs)
    assert figure.name.endswith("-bars")
    assert {"Zero-shot CLIP", "MMA"} <= set(texts(figure))
    assert not any("images per class" in text for text in texts(figure))


def test_ablation_names_each_variant_with_its_figure() -> None:
    (figure,) = figures(layers(["1", "2 (RMAdapter)", "3"]))
    shown = texts(figure)
    assert {"1", "2 (RMAdapter)", "3"} <= set(shown)
    assert sum(" ± " in text for text in shown) == 3


def test_too_few_points_are_not_drawn() -> None:
    assert figures([record("mma", "a", 1, {"all": 1.0, "x": 1.0}, protocol="cross-dataset")]) == []
    assert figures(layers(["1"])) == []


def test_ranks_have_a_row_per_method_and_a_bar_for_those_not_shown_to_differ() -> None:
    def runs(methods: list[str], sets: int) -> list[Record]:
        return [
            record(m, f"set {d}", 1, {"base": 50.0 + 2 * i + d, "novel": 50.0})
            for i, m in enumerate(methods)
            for d in range(sets)
        ]

    *_, figure = figures(runs(["zero-shot", "mma", "rmadapter"], 4))
    assert (figure.name[-6:], figure.title) == ("-ranks", "Mean ranks in HM over n = 4 data sets")
    shown = texts(figure)
    expected = ["RMAdapter", "MMA", "Zero-shot CLIP"]
    assert [t for t in shown if t in ("Zero-shot CLIP", "MMA", "RMAdapter")] == expected
    assert any(text.startswith("mean rank, 1 is the best") for text in shown)
    ink = "stroke: var(--ink, #1d2129); stroke-width: 2.5"
    assert figure.svg.count(ink) == 1
    apart = figures(runs(["zero-shot", "mma", "rmadapter"], 8))[-1]
    assert apart.svg.count(ink) == 0, "p is 3 * 2 / 2**8 of each pair"
    assert not [f for f in figures(runs(["mma", "rmadapter"], 8)) if f.name.endswith("-ranks")]
