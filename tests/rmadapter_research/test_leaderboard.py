"""Boards of records with known figures: who stands where, what papers print beside, and what never
meets."""

from __future__ import annotations

from typing import Any

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.training.traits import Uses
from rmadapter_research import paper
from rmadapter_research.leaderboard import DatasetResult, make_standings
from tests.helpers.synthetic_runs import VIT, record, with_method

SETS = ("dtd", "eurosat", "food101", "sun397")


def halves(method: str, gain: float, sets: tuple[str, ...] = SETS, **fields: Any) -> list[Record]:
    """Base 60, 61, ... by data set plus the gain, half a point more or less by seed."""
    return [
        record(method, data, seed, {"base": 60.0 + n + gain + seed - 1.5, "novel": 50.0}, **fields)
        for n, data in enumerate(sets)
        for seed in (1, 2)
    ]


THREE = [*halves("zero-shot", 0.0), *halves("mma", 3.0), *halves("coop", 5.0)]


def test_a_table_ranks_its_methods_over_the_sets_that_all_have() -> None:
    [table] = make_standings([*THREE, *halves("mma", 3.0, ("ucf101",))])
    assert table.title == "base-to-novel: pocket, 16 shots, ranked"
    assert table.sets == SETS
    assert [cell.value for cell in table.chance] == [50, 50, 50]  # of two classes in each half
    assert [row.label for row in table.rows] == ["coop", "MMA", "Zero-shot CLIP"]
    assert [row.rank.value for row in table.rows] == [1.0, 2.0, 3.0]
    assert [row.cells[0].number for row in table.rows] == [61.5 + gain for gain in (5, 3, 0)]
    assert [(row.parameters, row.runs) for row in table.rows] == [(1000, 8), (1000, 10), (0, 8)]
    assert table.rows[0].seconds == 11.5  # of seeds 1 and 2: 11 and 12
    assert table.rows[0].uses.startswith("authors' constants for each set: epochs, on ImageNet")


def test_an_unranked_row_is_sorted_by_its_figures() -> None:
    more = (*SETS, *(f"set {n}" for n in range(7)))
    runs = [
        halves(name, gain, more) for name, gain in (("zero-shot", 0.0), ("mma", 3.0), ("coop", 5.0))
    ]
    [table] = make_standings([*(run for some in runs for run in some), *halves("tcp", 9.0)])
    assert [row.label for row in table.rows] == ["tcp", "coop", "MMA", "Zero-shot CLIP"]
    assert table.rows[0].rank.value is None
    assert [row.rank.value for row in table.rows[1:]] == [1.0, 2.0, 3.0]


def test_costs_are_of_the_data_sets_that_all_have() -> None:
    [table] = make_standings([*THREE, *halves("mma", 3.0, ("imagenet",), parameters=9000)])
    assert {row.label: (row.parameters, row.runs) for row in table.rows}["MMA"] == (1000, 10)


def test_results_name_the_lines_of_their_records() -> None:
    runs = [*halves("mma", 3.0), *halves("zero-shot", 0.0)]
    [table] = make_standings(runs)
    assert [line.dataset for line in table.results] == [name for name in SETS for _ in range(2)]
    for line in table.results:
        found = [runs[number - 1] for number in line.lines]
        assert {r.task.data for r in found} == {line.dataset}
        assert {r.method.title for r in found} == {line.label}
        assert len(found) == line.seeds == 2


def test_tracks_backbones_and_shots_have_separate_tables() -> None:
    uses = Uses(track="teacher", teacher="ViT-L/14", tuned="nothing")
    teacher = [with_method(run, title="X", uses=uses) for run in halves("x:X", 9.0)]
    silent = halves("y:Y", 9.0)
    few = [record("mma", "dtd", 1, {"all": 50.0}, shots=k, protocol="few-shot") for k in (1, 4)]
    ablation = halves("rmadapter", 1.0, protocol="ablation-layers", variant="1")
    ranked = [*halves("mma", 1.0), *halves("coop", 1.0, **VIT)]
    tables = make_standings([*ranked, *teacher, *silent, *few, *ablation])
    assert [table.title for table in tables] == [
        "base-to-novel: ViT-B-16/openai, 16 shots, ranked",
        "base-to-novel: pocket, 16 shots, ranked",
        "base-to-novel: pocket, 16 shots, teacher",
        "base-to-novel: pocket, 16 shots, not stated",
        "few-shot: pocket, 1 shot, ranked",
        "few-shot: pocket, 4 shots, ranked",
    ]
    assert all(len({line.label for line in table.results}) == 1 for table in tables)


def test_methods_that_do_not_state_what_they_use_are_shown_but_not_ranked() -> None:
    silent = [run for n, name in enumerate(("a:A", "b:B", "c:C")) for run in halves(name, float(n))]
    [table] = make_standings(silent)
    assert (table.group.track, table.ranking) == ("not stated", "")
    assert [row.rank.text for row in table.rows] == ["–"] * 3


def as_papers(base: float, novel: float, seed: int, images: int = 8100, **fields: Any) -> Record:
    fields = {**VIT, "counts": {"base": 4200, "novel": images - 4200}, **fields}
    return record("mmrl", "eurosat", seed, {"base": base, "novel": novel}, **fields)


def standing_of(*novel: float) -> DatasetResult:
    runs = [as_papers(95.6, figure, seed) for seed, figure in enumerate(novel, 1)]
    [line] = make_standings(runs)[0].results
    return line


def test_printed_figures_stand_beside_the_same_set_and_backbone_only() -> None:
    printed = {one.figure: one for one in standing_of(70.0, 72.0, 74.0).printed}
    expected = {"base": 95.60, "novel": 80.17, "HM": 87.21}
    assert {name: one.value for name, one in printed.items()} == expected
    assert not printed["base"].off
    assert printed["novel"].off
    assert round(printed["novel"].difference, 2) == -8.17
    assert "Table 9" in printed["novel"].where
    assert "MMRL's code" in printed["novel"].where  # two that print the same
    other = VIT["backbone"].model_copy(update={"name": "ViT-B-32/openai"})
    for run in (as_papers(95.6, 72.0, 1, images=8000), as_papers(95.6, 72.0, 1, backbone=other)):
        assert make_standings([run])[0].results[0].printed == ()
    assert not paper.has_paper_images(as_papers(95.6, 72.0, 1, images=8000))


def test_a_figure_within_a_wide_interval_is_not_off() -> None:
    assert not any(one.off for one in standing_of(66.0, 78.0, 87.0).printed)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [(0, {("source", 71.0), ("targets", 66.61)}), (1, {("source", 71.0)})],
)
def test_the_printed_average_stands_beside_that_of_the_same_targets(
    missing: int, expected: set[tuple[str, float]]
) -> None:
    counts = {name: paper.TEST_IMAGES[name] for name in list(paper.TEST_IMAGES)[1 + missing : 11]}
    accuracies = {"all": 71.0, **dict.fromkeys(counts, 66.0)}
    counts["all"] = paper.TEST_IMAGES["imagenet"]
    fields = {"protocol": "cross-dataset", "counts": counts, **VIT}
    [line] = make_standings([record("mma", "imagenet", 1, accuracies, **fields)])[0].results
    assert {(one.figure, one.value) for one in line.printed} == expected


def test_results_average_the_targets_that_all_have() -> None:
    asked = {"mma": {"x": 90.0}, "coop": {"x": 90.0, "y": 10.0}}
    runs = [
        record(m, "a", 1, {"all": 50.0, **targets}, protocol="cross-dataset")
        for m, targets in asked.items()
    ]
    [table] = make_standings(runs)
    assert [line.cells[-1].value for line in table.results] == [90.0, 90.0]
