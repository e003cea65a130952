"""Records are read once each; foreign files and runs unlike the others are named and left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import rmadapter
from rmadapter.artifacts.record import BackboneName, MethodName, Record, Score
from rmadapter.bench.report.groups import rows_of
from rmadapter.bench.report.read import read_records
from rmadapter.errors import UserError
from rmadapter.task import Task
from tests.helpers.synthetic_runs import record, write

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
    assert "'fit', which is not a protocol of the bench" in notes["002.json"]
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


@pytest.mark.parametrize("page", ["report.json", "leaderboard.json"])
def test_files_of_a_report_are_read_only_if_named(tmp_path: Path, page: str) -> None:
    """Its runs may have been deleted since."""
    write(tmp_path, record("mma", "a", 1, VALUES))
    old = record("mma", "a", 2, VALUES)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/records.jsonl").write_text(old.line())
    assert len(read_records(tmp_path).finished) == 2  # of somebody else, without a page
    (tmp_path / "report" / page).write_text("{}")
    found = read_records(tmp_path)
    assert [run.task.seed for run in found.finished] == [1]
    assert not found.notes
    for named in (tmp_path / "report", tmp_path / "report/records.jsonl"):
        assert read_records(named).finished == [old]


def test_nothing_to_read_is_the_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="rmadapter bench"):
            read_records(folder)
    write(tmp_path, record("mma", "a", 1, VALUES, protocol="fit"))
    with pytest.raises(UserError, match=r"no bench records found \(000.json: a run of 'fit'"):
        read_records(tmp_path)


def test_a_cell_counts_once_and_the_later_run_wins(tmp_path: Path) -> None:
    early = record("mma", "a", 1, VALUES, finished="2026-01-02T00:00:00+00:00")
    late = record(
        "mma", "a", 1, {"base": 60.0, "novel": 40.0}, finished="2026-01-03T00:00:00+00:00"
    )
    write(tmp_path, late, early)
    found = read_records(tmp_path)
    assert [r.metric("base") for r in found.finished] == [60.0]
    assert found.notes == [
        "001.json: 000.json is the same experiment, finished later or first in order; left out"
    ]


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


def test_runs_that_were_tested_on_other_images_than_most_are_left_out(tmp_path: Path) -> None:
    def tested(method: str, data: str, digest: str) -> Record:
        one = record(method, data, 1, {"base": 60, "novel": 50})
        return one.model_copy(
            update={"scores": tuple(s.model_copy(update={"digest": digest}) for s in one.scores)}
        )

    runs = [tested("mma", "a", "1"), tested("rmadapter", "a", "1"), tested("zero-shot", "a", "2")]
    # which does not say it
    runs += [tested("mma", "b", "3"), tested("zero-shot", "b", "3"), tested("rmadapter", "b", "")]
    found = read_records(write(tmp_path, *runs))
    assert [r.task.data for r in found.finished if r.method.name == "zero-shot"] == ["b"]
    assert len(found.finished) == 5
    [note] = found.notes
    assert note.endswith("tested on other images of a than the runs kept; left out")


def test_runs_of_other_settings_than_most_of_their_row_are_left_out(tmp_path: Path) -> None:
    """Not those that lack a setting, which another version wrote, nor those of another track."""

    def with_settings(seed: int, **settings: object) -> Record:
        method = runs[seed - 1].method
        return runs[seed - 1].model_copy(
            update={"method": method.model_copy(update={"settings": settings})}
        )

    runs = [record("mma", "a", seed, VALUES) for seed in (1, 2, 3)]
    alike = [
        with_settings(1, alpha=1.0, scale=2),
        with_settings(2, alpha=1.0),
        with_settings(3, alpha=1.0, scale=2),
    ]
    assert read_records(write(tmp_path / "alike", *alike)).notes == []
    mixed = [
        *alike[:2],
        with_settings(3, alpha=9.5, scale=2),
        record("mma", "a", 3, VALUES, variant="other"),
    ]
    found = read_records(write(tmp_path / "mixed", *mixed))
    assert [(r.task.seed, r.variant) for r in found.finished] == [(1, ""), (2, ""), (3, "other")]
    why = "mma with alpha=9.5, unlike the runs kept; left out, put it in a folder of its own"
    assert found.notes == [f"002.json: {why}"]
    runs.append(record("mma", "a", 4, VALUES))
    old = [
        with_settings(1),
        with_settings(2, alpha=0.1),
        with_settings(3, alpha=0.1),
        with_settings(4, alpha=0.5),
    ]
    # one without settings does not hide the others'
    found = read_records(write(tmp_path / "old", *old))
    assert [r.task.seed for r in found.finished] == [1, 2, 3]
    assert found.notes == [
        "003.json: mma with alpha=0.5, unlike the runs kept; "
        "left out, put it in a folder of its own"
    ]
    texts = record("coprompt", "a", 1, VALUES), record("coprompt", "b", 1, VALUES)
    described = MethodName(
        name="coprompt", settings={**texts[1].method.settings, "descriptions": "x"}
    )
    plain = MethodName(name="coprompt", settings={**texts[0].method.settings, "descriptions": ""})
    both = [
        run.model_copy(update={"method": one})
        for run, one in zip(texts, (plain, described), strict=True)
    ]
    assert len(read_records(write(tmp_path / "tracks", *both)).finished) == 2


def test_other_settings_are_found_across_prompts_and_variants(tmp_path: Path) -> None:
    def run(data: str, seed: int, epochs: int, **fields: Any) -> Record:
        made = record("rmadapter", data, seed, VALUES, templates=(f"a {{}}, a {data}.",), **fields)
        return made.model_copy(
            update={"method": made.method.model_copy(update={"settings": {"epochs": epochs}})}
        )

    own = [run("a", 1, 5), run("a", 2, 5), run("b", 1, 50)]
    assert [r.task.data for r in read_records(write(tmp_path / "own", *own)).finished] == ["a", "a"]
    variant = {"protocol": "ablation-sharing", "variant": "independent"}
    same = [run("a", 1, 5, **variant), run("a", 2, 5, **variant), run("a", 3, 500, **variant)]
    found = read_records(write(tmp_path / "variant", *same))
    assert [r.task.seed for r in found.finished] == [1, 2]
    assert "rmadapter with epochs=500, unlike the runs kept" in found.notes[0]
    published = [
        run(data, 1, epochs, variant="as published") for data, epochs in (("a", 5), ("b", 50))
    ]
    assert len(read_records(write(tmp_path / "published", *published)).finished) == 2


def test_a_later_trial_with_another_setting_does_not_take_a_runs_place(tmp_path: Path) -> None:
    def run(seed: int, alpha: float, day: int) -> Record:
        method = MethodName(name="mma", settings={"alpha": alpha})
        made = record("mma", "a", seed, VALUES, finished=f"2026-01-{day:02}T00:00:00+00:00")
        return made.model_copy(update={"method": method})

    good, trial = [run(seed, 0.1, seed) for seed in (1, 2, 3)], run(1, 9.5, 9)
    found = read_records(write(tmp_path / "trial", *good, trial))
    assert found.finished == good
    assert [note.split(":")[0] for note in found.notes] == ["003.json"]
    again = [run(seed, 9.5, seed + 9) for seed in (1, 2, 3)]  # all of the row: the later counts
    assert read_records(write(tmp_path / "again", *good, *again)).finished == again


def test_two_methods_of_one_name_and_one_method_of_two_contents(tmp_path: Path) -> None:
    """Two people may have a mine.py:Mine; and one may have changed it."""

    def run(seed: int, title: str, sums: str, day: int) -> Record:
        method = MethodName(name="mine.py:Mine", title=title, sums=(sums,))
        made = record(
            "mine.py:Mine", "a", seed, VALUES, finished=f"2026-01-{day:02}T00:00:00+00:00"
        )
        return made.model_copy(update={"method": method})

    anna, bert = (
        [run(seed, title, sums, seed) for seed in (1, 2)]
        for title, sums in (("A", "aa"), ("B", "bb"))
    )
    found = read_records(write(tmp_path / "both", *anna, *bert))
    assert (len(found.finished), found.notes) == (4, [])
    assert {*rows_of(found.finished)} == {"A", "B"}
    found = read_records(write(tmp_path / "changed", *anna, run(3, "A", "other", 9)))
    assert found.finished == anna
    assert "mine.py:Mine with content=other, unlike the runs kept" in found.notes[0]


def test_half_against_half_does_not_depend_on_where_the_runs_were_found(tmp_path: Path) -> None:
    runs = [record("mma", "a", seed, VALUES) for seed in (1, 2)]
    methods = [MethodName(name="mma", settings={"alpha": alpha}) for alpha in (0.1, 9.5)]
    runs = [run.model_copy(update={"method": one}) for run, one in zip(runs, methods, strict=True)]
    one, other = write(tmp_path / "one", *runs), write(tmp_path / "other", *reversed(runs))
    assert read_records(one).finished == read_records(other).finished
    assert len(read_records(one).finished) == 1


def fit_record(method: str = "mma", seed: int = 1, **more: object) -> Record:
    scores = (
        Score(name="base", images=10, classes=2, accuracy=80, zero_shot=50),
        Score(name="novel", images=20, classes=3, reason="knows its own classes alone"),
    )
    found = {"scores": scores, "seconds": {"train": 1.5}, "step_seconds": 0.1, **more}
    task = Task(data="colors", seed=seed, classes="base")
    name = MethodName(name=method, settings={"rank": 4})
    return Record(
        format=2, task=task, method=name, backbone=BackboneName(name="tiny", digest="0"), **found
    )  # type: ignore[arg-type]


def test_a_row_is_a_score(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (tmp_path / "run").mkdir()
    fit_record().save(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "model.json").write_text("{}")  # no record, and no matter
    lines = [
        fit_record(seed=2),
        fit_record(),
        fit_record("coop", status="failed", reason="no memory", scores=()),
    ]
    (tmp_path / "lines.jsonl").write_text("".join(one.line() for one in lines), encoding="utf-8")
    frame = rmadapter.records(tmp_path)
    # two scores of each seed, although one record is there twice, and a failure
    assert len(frame) == 5
    expected = ["lines.jsonl, line 1", "lines.jsonl, line 2", "lines.jsonl, line 3"]
    assert sorted(set(frame["file"])) == expected
    row = frame[(frame.seed == 2) & (frame.tested == "base")].iloc[0]
    assert (row["method"], row["data"], row["shots"], row["accuracy"], row["gain"]) == (
        "mma", "colors", 16, 80, 30,
    )  # fmt: skip
    assert (row["set.rank"], row["seconds.train"], row["step_seconds"], row["n_classes"]) == (
        4,
        1.5,
        0.1,
        2,
    )
    novel = frame[(frame.seed == 2) & (frame.tested == "novel")].iloc[0]
    assert pandas.isna(novel["accuracy"])
    assert novel["reason"] == "knows its own classes alone"
    failed = frame[frame.method == "coop"].iloc[0]
    assert (failed["status"], failed["reason"]) == ("failed", "no memory")
    assert frame[frame.tested == "base"].groupby("method").accuracy.mean().to_dict() == {"mma": 80}


def test_a_file_will_do_and_nothing_is_an_error(tmp_path: Path) -> None:
    fit_record().save(tmp_path / "run.json")
    assert len(rmadapter.records(str(tmp_path / "run.json"))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run records found"):
        rmadapter.records(tmp_path / "empty")
    with pytest.raises(UserError, match="not found"):
        rmadapter.records(tmp_path / "nowhere")


def test_missing_pandas_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[report\]'"):
        rmadapter.records(tmp_path)
