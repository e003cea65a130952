"""Records are read once each, foreign files are named, and what differs in kind never meets in a group."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rmadapter.bench.report.groups import alike, complete, entries, group_records, read_records
from rmadapter.bench.report.tables import make_tables
from rmadapter.errors import UserError
from rmadapter.record import MethodName, Record
from synthetic_runs import VIT, record, write

VALUES = {"base": 50.0, "novel": 40.0}


def test_foreign_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    good = record("mma", "a", 1, VALUES)
    write(tmp_path / "deep/er", good)
    content = json.loads(good.line())
    (tmp_path / "000.json").write_text(json.dumps({**content, "step_seconds": "one"}))
    write(tmp_path, record("mma", "a", 5, {}), record("mma", "a", 6, VALUES, protocol="fit"))
    (tmp_path / "some.json").write_text('{"some": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / ".x.json").write_text("{")
    found = read_records(tmp_path)
    assert [(r.method.name, r.task.seed) for r in found.finished] == [("mma", 1)]
    notes = {note.split(":")[0]: note for note in found.notes}
    assert list(notes) == ["000.json", "001.json", "002.json", "broken.json", "some.json"]
    assert "step_seconds" in notes["000.json"]
    assert "without an accuracy on base classes" in notes["001.json"]
    assert "'fit', which is no protocol of the bench" in notes["002.json"]
    assert all(note.endswith("left out") for note in found.notes)


def test_a_file_of_lines_is_as_good_as_a_folder_of_files(tmp_path: Path) -> None:
    runs = [record("mma", "a", seed, VALUES, reason="line\u2028separator") for seed in (1, 2)]
    write(tmp_path / "runs", *runs)
    lines = tmp_path / "records.jsonl"
    lines.write_text(runs[0].line() + "\nnonsense\n" + runs[1].line(), encoding="utf-8")
    assert read_records(tmp_path / "runs").finished == runs
    found = read_records(lines)
    assert found.finished == runs
    assert [note.split(":")[0] for note in found.notes] == ["records.jsonl, line 3"]
    both = read_records(tmp_path)
    assert both.finished == runs
    assert len(both.notes) == 1, "the same record twice needs no note"


def test_nothing_to_read_is_the_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="rmadapter bench"):
            read_records(folder)
    write(tmp_path, record("mma", "a", 1, VALUES, protocol="fit"))
    with pytest.raises(UserError, match=r"no record of the bench \(000.json: a run of 'fit'"):
        read_records(tmp_path)


def test_a_cell_counts_once_and_the_later_run_wins(tmp_path: Path) -> None:
    early = record("mma", "a", 1, VALUES, finished="2026-01-02T00:00:00+00:00")
    late = record("mma", "a", 1, {"base": 60.0, "novel": 40.0}, finished="2026-01-03T00:00:00+00:00")
    write(tmp_path, late, early)
    found = read_records(tmp_path)
    assert [r.metric("base") for r in found.finished] == [60.0]
    assert found.notes == ["001.json: 000.json is the same experiment, finished later or first in order; left out"]


def test_a_failure_is_history_once_the_run_has_finished(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "no memory"}
    write(
        tmp_path,
        record("mma", "a", 1, {}, **failed),
        record("mma", "a", 1, VALUES),
        record("mma", "b", 1, {}, **failed),
    )
    found = read_records(tmp_path)
    assert [(r.task.data, r.reason) for r in found.unfinished] == [("b", "no memory")]


def test_groups_never_mix() -> None:
    runs = [
        record("mma", "a", 1, VALUES),
        record("mma", "b", 1, VALUES),
        record("mma", "a", 1, VALUES, **VIT),
        record("mma", "a", 1, VALUES, shots=4),
        record("mma", "a", 1, VALUES, precision="bf16"),
        record("mma", "a", 1, VALUES, protocol="ablation-sharing", variant="independent"),
        record("mma", "a", 1, {"all": 1.0}, protocol="few-shot", shots=1),
        record("mma", "a", 1, {"all": 1.0}, protocol="few-shot", shots=2),
    ]
    groups = group_records(runs)
    assert sorted(len(group.records) for group in groups) == [1, 1, 1, 1, 2, 2]
    assert len({group.slug for group in groups}) == len(groups)
    assert [group.shots for group in groups if group.protocol == "few-shot"] == [None]


def test_methods_of_different_tracks_never_share_a_table_or_a_test() -> None:
    """Nor do those that do not say what they use, with anyone."""
    names = ("zero-shot", "mma", "zero-shot-descriptions", "tda", "x:X", "y:Y")
    runs = [record(name, data, 1, VALUES) for name in names for data in "abcd"]
    groups = group_records(runs)
    assert [(group.track, {r.method.name for r in group.records}) for group in groups] == [
        ("ranked", {"zero-shot", "mma"}),
        ("extra data", {"zero-shot-descriptions"}),
        ("test time", {"tda"}),
        ("not stated", {"x:X", "y:Y"}),
    ]
    assert groups[0].title == "base-to-novel: pocket, 16 shots"
    assert groups[2].title == "base-to-novel: pocket, 16 shots, test time"
    assert len({group.slug for group in groups}) == 4
    tested = [[table.title for table in make_tables(group) if "minus the others" in table.title] for group in groups]
    assert tested == [["Zero-shot CLIP minus the others, in points"], [], [], []]
    texts = [
        run.model_copy(update={"method": MethodName(name="coprompt", settings={"descriptions": "x"})})
        for run in runs[:4]
    ]
    assert [group.track for group in group_records([*runs[4:8], *texts])] == ["ranked", "extra data"]


def test_templates_may_differ_between_data_sets_but_not_within_one() -> None:
    def of(data: str, template: str) -> Record:
        return record("mma", data, 1, {"base": 1.0}, templates=(template,))

    (own,) = group_records([of("dtd", "{} texture."), of("pets", "a photo of a {}, a pet.")])
    assert own.shared["templates"] == "each data set's own"
    common = "a photo of a {}."
    first, second = group_records([of("dtd", common), of("pets", common), of("dtd", "Texture: {}.")])
    assert (first.shared["templates"], first.datasets) == ((common,), ["dtd", "pets"])
    assert (second.shared["templates"], second.datasets) == (("Texture: {}.",), ["dtd"])
    assert first.slug != second.slug


def test_order_of_rows() -> None:
    methods = [record(m, "a", 1, {"base": 1.0}) for m in ("rmadapter", "mma", "coop", "zero-shot")]
    assert list(entries(methods)) == ["Zero-shot CLIP", "coop", "MMA", "RMAdapter"]
    values = [record("rmadapter", "a", 1, VALUES, axis="rank", value=v, variant=f"rank={v}") for v in (16, 4, 128)]
    assert list(entries(values)) == ["rank=4", "rank=16", "rank=128"]
    planned = ("shared down-projection (RMAdapter)", "independent")
    sharing = [record("rmadapter", "a", 1, VALUES, protocol="ablation-sharing", variant=v) for v in planned]
    assert list(entries(sharing)) == ["independent", "shared down-projection (RMAdapter)"]
    twins = [record(m, "a", 1, {"base": 1.0}, title="Tip") for m in ("tip", "tip-f")]
    assert list(entries(twins)) == ["Tip (tip)", "Tip (tip-f)"]


def test_complete_is_a_rectangle() -> None:
    def cells(*pairs: tuple[str, int], shots: int = 16) -> list[Record]:
        return [record("mma", data, seed, {"base": 1.0}, shots=shots) for data, seed in pairs]

    full = cells(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
    assert complete({"x": full, "y": cells(("a", 1), ("a", 2), ("b", 2))}) == (["a", "b"], [2])
    assert complete({"x": [*full, *cells(("a", 1), ("b", 1), shots=4)]}) == (["a", "b"], [1])
    assert complete({"x": full, "y": cells(("d", 1))}) == ([], [])
    assert complete({}) == ([], [])


def test_alike_keeps_the_targets_of_all_with_the_same_source() -> None:
    runs = [record("mma", "s", 1, {"all": 1.0, "x": 1.0, "y": 1.0}), record("mma", "s", 2, {"all": 1.0, "y": 1.0})]
    other = record("mma", "t", 1, {"all": 1.0, "z": 1.0})
    assert [r.targets for r in alike([*runs, other])] == [["y"], ["y"], ["z"]]
    assert [r.metric("all") for r in alike(runs)] == [1.0, 1.0]


def test_runs_that_were_tested_on_other_images_than_most_are_left_out(tmp_path: Path) -> None:
    def tested(method: str, data: str, digest: str) -> Record:
        one = record(method, data, 1, {"base": 60, "novel": 50})
        return one.model_copy(update={"scores": tuple(s.model_copy(update={"digest": digest}) for s in one.scores)})

    runs = [tested("mma", "a", "1"), tested("rmadapter", "a", "1"), tested("zero-shot", "a", "2")]
    runs += [tested("mma", "b", "3"), tested("zero-shot", "b", "3"), tested("rmadapter", "b", "")]  # an earlier version
    found = read_records(write(tmp_path, *runs))
    assert [r.task.data for r in found.finished if r.method.name == "zero-shot"] == ["b"]
    assert len(found.finished) == 5
    [note] = found.notes
    assert note.endswith("tested on other images than most runs on a; left out")


def test_runs_of_other_settings_in_one_row_are_noted(tmp_path: Path) -> None:
    runs = [record("mma", "a", seed, VALUES) for seed in (1, 2, 3)]
    write(tmp_path / "alike", *runs)
    assert read_records(tmp_path / "alike").notes == []
    method = runs[2].method.model_copy(update={"settings": {**runs[2].method.settings, "alpha": 9.5}})
    write(tmp_path / "mixed", *runs[:2], runs[2].model_copy(update={"method": method}))
    [note] = read_records(tmp_path / "mixed").notes
    assert re.fullmatch(r"mma: runs with alpha=9.5 or .* are averaged in one row; run each into its own --out", note)
