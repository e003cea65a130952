"""Records are read once each; foreign files and runs unlike the others are named and left out."""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import rmadapter
from rmadapter.artifacts.record import BackboneName, MethodName, Record, Score
from rmadapter.bench.report.groups import rows_of
from rmadapter.bench.report.read import Results, read_records
from rmadapter.errors import UserError
from rmadapter.task import Task
from tests.helpers.synthetic_runs import record, with_method, write

VALUES = {"base": 50.0, "novel": 40.0}


def run(seed: int = 1, data: str = "a", method: str = "mma", day: int = 1, **fields: Any) -> Record:
    finished = f"2026-01-{day:02}T00:00:00+00:00"
    return record(method, data, seed, fields.pop("values", VALUES), finished=finished, **fields)


def with_settings(seed: int, data: str = "a", day: int = 1, **settings: object) -> Record:
    return with_method(run(seed, data, day=day), settings=settings)


def seeds(found: Results) -> list[int]:
    return [record.task.seed for record in found.finished]


def places(found: Results) -> list[str]:
    """The files and lines that the notes name."""
    return [note.split(":")[0] for note in found.notes]


def test_foreign_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    write(tmp_path / "deep/er", run())
    content = json.loads(run().line())
    (tmp_path / "000.json").write_text(json.dumps({**content, "step_seconds": "one"}))
    write(tmp_path, run(5, values={}), run(6, protocol="fit"))
    for name, text in (("some", '{"some": 1}'), ("broken", "{"), ("report", "{}"), (".x", "{")):
        (tmp_path / f"{name}.json").write_text(text)
    found = read_records(tmp_path)
    assert seeds(found) == [1]
    assert places(found) == ["000.json", "001.json", "002.json", "broken.json", "some.json"]
    for note, word in zip(found.notes, ("step_seconds", "base classes", "'fit'"), strict=False):
        assert word in note


def test_a_file_of_lines_is_read_like_a_folder_of_files(tmp_path: Path) -> None:
    runs = [run(seed, reason="line\u2028separator") for seed in (1, 2)]
    write(tmp_path / "runs", *runs)
    lines = tmp_path / "records.jsonl"
    lines.write_text(runs[0].line() + "\nnonsense\n" + runs[1].line(), encoding="utf-8")
    assert read_records(tmp_path / "runs").finished == runs
    found = read_records(lines)
    assert (found.finished, places(found)) == (runs, ["records.jsonl, line 3"])
    both = read_records(tmp_path)
    assert (both.finished, len(both.notes)) == (runs, 1)  # the same record twice needs no note


@pytest.mark.parametrize("page", ["report.json", "leaderboard.json"])
def test_the_records_of_a_report_are_read_only_if_it_is_named(tmp_path: Path, page: str) -> None:
    """Its runs may have been deleted since."""
    write(tmp_path, run())
    (tmp_path / "report").mkdir()
    (tmp_path / "report/records.jsonl").write_text(run(2).line())
    assert seeds(read_records(tmp_path)) == [1, 2]  # without the page, they are somebody else's
    (tmp_path / "report" / page).write_text("{}")
    found = read_records(tmp_path)
    assert (seeds(found), found.notes) == ([1], [])
    for named in (tmp_path / "report", tmp_path / "report/records.jsonl"):
        assert seeds(read_records(named)) == [2]


def test_a_folder_without_bench_records_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="rmadapter bench"):
            read_records(folder)
    write(tmp_path, run(protocol="fit"))
    with pytest.raises(UserError, match=r"000.json: a run of 'fit'"):
        read_records(tmp_path)


def test_of_two_records_of_one_experiment_the_later_counts(tmp_path: Path) -> None:
    late = run(day=3, values={"base": 60.0, "novel": 40.0})
    found = read_records(write(tmp_path, late, run(day=2)))
    assert (found.finished, places(found)) == ([late], ["001.json"])


def test_a_failure_that_was_repeated_with_success_does_not_count(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "no memory", "values": {}}
    found = read_records(write(tmp_path, run(**failed), run(), run(data="b", **failed)))
    assert [(r.task.data, r.reason) for r in found.unfinished] == [("b", "no memory")]


def test_runs_tested_on_other_images_than_most_are_left_out(tmp_path: Path) -> None:
    def tested(method: str, data: str, digest: str) -> Record:
        one = run(data=data, method=method)
        scores = tuple(score.model_copy(update={"digest": digest}) for score in one.scores)
        return one.model_copy(update={"scores": scores})

    runs = [tested("mma", "a", "1"), tested("rmadapter", "a", "1"), tested("zero-shot", "a", "2")]
    # the last record does not state its images
    runs += [tested("mma", "b", "3"), tested("zero-shot", "b", "3"), tested("rmadapter", "b", "")]
    found = read_records(write(tmp_path, *runs))
    assert [r.task.data for r in found.finished if r.method.name == "zero-shot"] == ["b"]
    assert (len(found.finished), places(found)) == (5, ["002.json"])
    assert "other images of a" in found.notes[0]


def test_runs_with_other_settings_than_most_of_their_row_are_left_out(tmp_path: Path) -> None:
    alike = [with_settings(1, alpha=1.0, scale=2), with_settings(2, alpha=1.0)]
    other = with_settings(3, alpha=9.5, scale=2)
    found = read_records(write(tmp_path, *alike, other, run(3, variant="other")))
    assert [(r.task.seed, r.variant) for r in found.finished] == [(1, ""), (2, ""), (3, "other")]
    assert places(found) == ["002.json"]
    assert "mma with alpha=9.5, unlike" in found.notes[0]


def test_a_setting_that_a_record_lacks_is_no_difference(tmp_path: Path) -> None:
    """Another version wrote it. Nor does it hide a difference among the others."""
    alike = [
        with_settings(1, alpha=1.0, scale=2),
        with_settings(2, alpha=1.0),
        with_settings(3, alpha=1.0, scale=2),
    ]
    assert read_records(write(tmp_path / "alike", *alike)).notes == []
    values = ({}, {"alpha": 0.1}, {"alpha": 0.1}, {"alpha": 0.5})
    old = [with_settings(seed, **own) for seed, own in enumerate(values, 1)]
    found = read_records(write(tmp_path / "old", *old))
    assert (seeds(found), places(found)) == ([1, 2, 3], ["003.json"])


@pytest.mark.parametrize("order", [*permutations(range(4))])
def test_a_record_that_lacks_a_setting_joins_the_larger_side(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Else two sides of two runs would be equal, and either could be left out."""
    values = ({}, {"alpha": 0.1}, {"alpha": 0.5}, {"alpha": 0.5})
    runs = [with_settings(seed, day=9 - seed, **own) for seed, own in enumerate(values, 1)]
    found = read_records(write(tmp_path, *(runs[place] for place in order)))
    assert seeds(found) == [1, 3, 4]


def test_methods_of_different_tracks_may_have_different_settings(tmp_path: Path) -> None:
    runs = [
        with_method(run(data=data, method="coprompt"), settings={"descriptions": texts})
        for data, texts in (("a", ""), ("b", "x"))
    ]
    assert len(read_records(write(tmp_path, *runs)).finished) == 2


def test_settings_are_compared_across_prompts_and_within_the_protocols_variants(
    tmp_path: Path,
) -> None:
    def trained(data: str, seed: int, epochs: int, **fields: Any) -> Record:
        templates = (f"a {{}}, a {data}.",)
        made = run(seed, data, "rmadapter", templates=templates, **fields)
        return with_method(made, settings={"epochs": epochs})

    own = [trained("a", 1, 5), trained("a", 2, 5), trained("b", 1, 50)]
    assert seeds(read_records(write(tmp_path / "own", *own))) == [1, 2]
    variant = {"protocol": "ablation-sharing", "variant": "independent"}
    same = [trained("a", seed, epochs, **variant) for seed, epochs in ((1, 5), (2, 5), (3, 500))]
    assert seeds(read_records(write(tmp_path / "variant", *same))) == [1, 2]
    published = [trained(data, 1, n, variant="as published") for data, n in (("a", 5), ("b", 50))]
    assert len(read_records(write(tmp_path / "published", *published)).finished) == 2


def test_a_later_run_with_other_settings_does_not_replace_a_run(tmp_path: Path) -> None:
    good = [with_settings(seed, day=seed, alpha=0.1) for seed in (1, 2, 3)]
    trial = with_settings(1, day=9, alpha=9.5)
    found = read_records(write(tmp_path / "trial", *good, trial))
    assert (found.finished, places(found)) == (good, ["003.json"])
    again = [with_settings(seed, day=seed + 9, alpha=9.5) for seed in (1, 2, 3)]  # the whole row
    assert read_records(write(tmp_path / "again", *good, *again)).finished == again


def test_outside_methods_differ_by_title_and_by_content(tmp_path: Path) -> None:
    """Two people may have a mine.py:Mine, and one may have changed it."""

    def mine(seed: int, title: str, content: str) -> Record:
        return with_method(run(seed, method="mine.py:Mine"), title=title, sums=(content,))

    anna = [mine(seed, "A", "aa") for seed in (1, 2)]
    found = read_records(write(tmp_path / "both", *anna, *(mine(s, "B", "bb") for s in (1, 2))))
    assert (len(found.finished), found.notes) == (4, [])
    assert {*rows_of(found.finished)} == {"A", "B"}
    found = read_records(write(tmp_path / "changed", *anna, mine(3, "A", "other")))
    assert found.finished == anna
    assert "mine.py:Mine with content=other, unlike" in found.notes[0]


def test_the_choice_between_equal_halves_does_not_depend_on_places(tmp_path: Path) -> None:
    runs = [with_settings(seed, alpha=alpha) for seed, alpha in ((1, 0.1), (2, 9.5))]
    one, other = write(tmp_path / "one", *runs), write(tmp_path / "other", *reversed(runs))
    assert read_records(one).finished == read_records(other).finished
    assert len(read_records(one).finished) == 1


def fit_record(method: str = "mma", seed: int = 1, **more: Any) -> Record:
    scores = (
        Score(name="base", images=10, classes=2, accuracy=80, zero_shot=50),
        Score(name="novel", images=20, classes=3, reason="knows its own classes alone"),
    )
    fields = {"scores": scores, "seconds": {"train": 1.5}, "step_seconds": 0.1, **more}
    return Record(
        format=2,
        task=Task(data="colors", seed=seed, classes="base"),
        method=MethodName(name=method, settings={"rank": 4}),
        backbone=BackboneName(name="tiny", digest="0"),
        **fields,
    )


def test_a_row_of_the_data_frame_is_a_score(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (tmp_path / "run").mkdir()
    fit_record().save(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "model.json").write_text("{}")  # no record, and no matter
    failed = fit_record("coop", status="failed", reason="no memory", scores=())
    lines = "".join(one.line() for one in (fit_record(seed=2), fit_record(), failed))
    (tmp_path / "lines.jsonl").write_text(lines, encoding="utf-8")
    frame = rmadapter.records(tmp_path)
    # two scores of each seed, although one record is there twice, and a failure
    assert len(frame) == 5
    assert sorted(set(frame["file"])) == [f"lines.jsonl, line {n}" for n in (1, 2, 3)]
    base, novel = (
        frame[(frame.seed == 2) & (frame.tested == name)].iloc[0] for name in ("base", "novel")
    )
    expected = {
        "method": "mma", "data": "colors", "shots": 16, "accuracy": 80, "gain": 30, "set.rank": 4,
        "seconds.train": 1.5, "step_seconds": 0.1, "n_classes": 2,
    }  # fmt: skip
    assert {name: base[name] for name in expected} == expected
    assert pandas.isna(novel["accuracy"])
    assert novel["reason"] == "knows its own classes alone"
    row = frame[frame.method == "coop"].iloc[0]
    assert (row["status"], row["reason"]) == ("failed", "no memory")


def test_a_data_frame_of_one_file_and_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_record().save(tmp_path / "run.json")
    assert len(rmadapter.records(str(tmp_path / "run.json"))) == 2
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(UserError, match=folder):
            rmadapter.records(tmp_path / folder)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[report\]'"):
        rmadapter.records(tmp_path)
