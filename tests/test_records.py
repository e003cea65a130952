"""Runs are read once each, foreign files are named, and what differs in kind never meets in a group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.bench.records import Run, complete, entries, group_runs, read_runs
from rmadapter.errors import UserError
from synthetic_runs import record, run, write

VIT = {"backbone": {"name": "ViT-B-16/openai", "digest": "99"}}


def test_foreign_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    good = record("mma", "a", 1, {"base": 50.0, "novel": 40.0})
    write(tmp_path / "deep/er", good)
    write(tmp_path, {**good, "seed": "one"}, {**good, "metrics": {}, "seed": 5}, {"some": 1})
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "report.json").write_text(json.dumps({"kind": "rmadapter report"}))
    (tmp_path / ".x.json").write_text("{")
    found = read_runs(tmp_path)
    assert [(r.method, r.seed) for r in found.runs] == [("mma", 1)]
    assert [note.split(":")[0] for note in found.notes] == ["000.json", "001.json", "002.json", "broken.json"]
    assert "field seed" in found.notes[0]
    assert "without metrics.base" in found.notes[1]


def test_a_folder_without_runs_is_the_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="rmadapter bench"):
            read_runs(folder)


def test_a_cell_counts_once_and_the_later_run_wins(tmp_path: Path) -> None:
    early = record("mma", "a", 1, {"base": 50.0, "novel": 40.0}, finished="2026-01-02T00:00:00Z")
    late = record("mma", "a", 1, {"base": 60.0, "novel": 40.0}, finished="2026-01-03T00:00:00+00:00")
    write(tmp_path, late, early)
    found = read_runs(tmp_path)
    assert [r.metric("base") for r in found.runs] == [60.0]
    assert found.notes == ["001.json: left out, 000.json is the same experiment, finished later or first in order"]


def test_a_failure_is_history_once_the_run_has_finished(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "no memory"}
    write(
        tmp_path,
        record("mma", "a", 1, {}, **failed),
        record("mma", "a", 1, {"base": 50.0, "novel": 40.0}),
        record("mma", "b", 1, {}, **failed),
    )
    found = read_runs(tmp_path)
    assert [(r.dataset, r.reason) for r in found.unfinished] == [("b", "no memory")]


def test_groups_never_mix() -> None:
    values = {"base": 50.0, "novel": 40.0}
    half = {"config": {"shared": {"precision": "bf16", "templates": ["a photo of a {}."]}}}
    runs = [
        run("mma", "a", 1, values),
        run("mma", "b", 1, values),
        run("mma", "a", 1, values, **VIT),
        run("mma", "a", 1, values, shots=4),
        run("mma", "a", 1, values, **half),
        run("mma", "a", 1, values, protocol="ablation-sharing", variant="independent"),
        run("mma", "a", 1, {"accuracy": 1.0}, protocol="few-shot", shots=1),
        run("mma", "a", 1, {"accuracy": 1.0}, protocol="few-shot", shots=2),
    ]
    groups = group_runs(runs)
    assert sorted(len(group.runs) for group in groups) == [1, 1, 1, 1, 2, 2]
    assert len({group.slug for group in groups}) == len(groups)
    assert [group.shots for group in groups if group.protocol == "few-shot"] == [None]


def test_templates_may_differ_between_data_sets_but_not_within_one() -> None:
    def of(dataset: str, template: str) -> Run:
        return run("mma", dataset, 1, {"base": 1.0}, config={"shared": {"templates": [template]}})

    (own,) = group_runs([of("dtd", "{} texture."), of("pets", "a photo of a {}, a pet.")])
    assert own.shared["templates"] == "each data set's own"
    common = "a photo of a {}."
    first, second = group_runs([of("dtd", common), of("pets", common), of("dtd", "{} texture.")])
    assert (first.shared["templates"], first.datasets) == ([common], ["dtd", "pets"])
    assert (second.shared["templates"], second.datasets) == (["{} texture."], ["dtd"])
    assert first.slug != second.slug


def test_order_of_rows() -> None:
    methods = [run(m, "a", 1, {"base": 1.0}) for m in ("rmadapter", "mma", "coop", "zero-shot")]
    assert list(entries(methods)) == ["Zero-shot CLIP", "coop", "MMA", "RMAdapter"]
    values = [run("rmadapter", "a", 1, {"base": 1.0}, axis="rank", value=v, variant=f"rank={v}") for v in (16, 4, 128)]
    assert list(entries(values)) == ["rank=4", "rank=16", "rank=128"]
    planned = ("shared down-projection (RMAdapter)", "independent")
    sharing = [run("rmadapter", "a", 1, {"base": 1.0}, protocol="ablation-sharing", variant=v) for v in planned]
    assert list(entries(sharing)) == ["independent", "shared down-projection (RMAdapter)"]
    twins = [run(m, "a", 1, {"base": 1.0}, title="Tip") for m in ("tip", "tip-f")]
    assert list(entries(twins)) == ["Tip (tip)", "Tip (tip-f)"]


def test_complete_is_a_rectangle() -> None:
    def cells(*pairs: tuple[str, int]) -> list[Run]:
        return [run("mma", dataset, seed, {"base": 1.0}) for dataset, seed in pairs]

    full = cells(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
    assert complete({"x": full, "y": cells(("a", 1), ("a", 2), ("b", 2))}) == (["a", "b"], [2])
    assert complete({"x": full, "y": cells(("d", 1))}) == ([], [])
    assert complete({}) == ([], [])
