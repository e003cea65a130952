"""Runs that are broken, failed, shared and repeated, through the library; test_runner_kills.py has
killed ones."""

from __future__ import annotations

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.runner import in_order
from rmadapter.data.fewshot import few_shot, split_digest
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.metrics import harmonic_mean
from rmadapter.settings import configured
from rmadapter.task import Question
from tests.helpers.bench_runs import QUICK, VALUES, Bench, bench, finished_bench, records
from tests.helpers.synthetic_runs import with_method

__all__ = ["bench", "finished_bench"]  # fixtures
EXTERNAL = f"{Path(__file__).parents[1] / 'helpers/external_methods.py'}:ExternalMethod"


@pytest.fixture
def done(finished_bench: Path, tmp_path: Path) -> Path:
    """A copy of the finished bench, to change it."""
    return Path(shutil.copytree(finished_bench, tmp_path / "out"))


@pytest.fixture
def changed(colors: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to change it."""
    return Path(shutil.copytree(colors, tmp_path / "data" / colors.name))


def test_a_record_holds_scores_and_what_they_depend_on(finished_bench: Path, bench: Bench) -> None:
    folder = finished_bench / "base-to-novel" / bench.colors.name / "rmadapter"
    path = folder / "default-2shots-seed2.json"
    assert path.read_text().count("\n") == 1
    record = read_record(path)
    # four test images of each of two and two classes
    expected = [("base", 8, 50), ("novel", 8, 50)]
    assert [(score.name, score.images, score.chance) for score in record.scores] == expected
    base, novel = (record.metric(name) or 0 for name in ("base", "novel"))
    assert record.metric("hm") == harmonic_mean(base, novel) > 0
    expected = (bench.backbone.name, bench.backbone.digest)
    assert (record.backbone.name, record.backbone.digest) == expected
    assert record.split_digest == split_digest(few_shot(read_images(bench.colors), 2, 2))
    assert record.method.settings["rank"] == 4
    assert (record.step_seconds or 0) > 0
    assert record.seconds["total"] >= record.seconds["train"] > 0
    # r = 4 in two image blocks (width 64) and two text blocks (width 48): down with bias, up with
    # bias, rec r x r, up
    widths = 2 * [64, 48]
    assert record.parameters == sum(d * 4 + 4 + 4 * d + d + 4 * 4 + 4 + 4 * d + d for d in widths)


def test_zero_shot_does_not_depend_on_the_seed_and_nothing_is_repeated(
    finished_bench: Path, bench: Bench
) -> None:
    before = records(finished_bench)
    found = bench.run(finished_bench)
    assert records(finished_bench) == before
    zero = [record.metrics for record in found if record.method.name == "zero-shot"]
    assert zero[0] == zero[1]


def test_zero_shot_is_the_backbone(finished_bench: Path, bench: Bench) -> None:
    names = ["blue", "green"]
    files = [sorted((bench.colors / "test" / name).iterdir()) for name in names]
    pixels = [Image.open(path).convert("RGB") for paths in files for path in paths]
    labels = torch.arange(len(names)).repeat_interleave(len(files[0]))
    tokens = bench.backbone.tokenizer([f"a photo of a {name}." for name in names])
    model: Any = bench.backbone.model
    with torch.no_grad():
        images = torch.stack([bench.backbone.preprocess(image) for image in pixels])
        text = model.encode_text(tokens, normalize=True)
        cosines = model.encode_image(images, normalize=True) @ text.T
    gap = (cosines[:, 0] - cosines[:, 1]).abs().min()
    assert gap > 1e-4, "rounding would decide what is right: choose other images"
    expected = 100 * (cosines.argmax(-1) == labels).float().mean()
    jobs = bench.jobs(methods=["zero-shot"], seeds=[1])
    [record] = bench.run(finished_bench, jobs)
    assert record.metric("base") == pytest.approx(float(expected), abs=1e-3)


def test_a_finished_bench_writes_nothing(
    finished_bench: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may be read-only."""
    monkeypatch.setattr("rmadapter.bench.runner.shared", lambda *_: pytest.fail("nothing is left"))
    assert len(bench.run(finished_bench)) == 6


def test_broken_and_failed_runs_are_repeated_and_others_kept(
    finished_bench: Path, done: Path, bench: Bench
) -> None:
    paths = sorted(done.rglob("*.json"))
    paths[0].write_text(paths[0].read_text()[:300])
    failed = {**json.loads(paths[1].read_text()), "status": "failed", "reason": "no luck"}
    paths[1].write_text(json.dumps(failed))
    paths[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths[3:]}
    found = bench.run(done)
    assert [record.status for record in found] == ["finished"] * 6
    assert {path: path.stat().st_mtime_ns for path in paths[3:]} == kept
    for path in paths[:3]:  # the same figures again
        old, new = read_record(finished_bench / path.relative_to(done)), read_record(path)
        assert (new.scores, new.key, new.split_digest) == (old.scores, old.key, old.split_digest)


@pytest.mark.parametrize(
    ("jobs", "words", "named"),
    [
        ({}, {"values": {**VALUES, "rmadapter": {**QUICK, "epochs": 3}}}, r"seed1.json .* epochs"),
        ({}, {"precision": "bf16"}, "precision"),
        ({"common": {"templates": ("a {}.",)}}, {}, "templates"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_before_anything_starts(
    jobs: dict[str, Any], words: dict[str, Any], named: str, finished_bench: Path,
    bench: Bench,
) -> None:  # fmt: skip
    before = records(finished_bench)
    with pytest.raises(UserError, match=named):
        bench.run(finished_bench, bench.jobs(seeds=[1, 2, 3], **jobs), **words)
    assert records(finished_bench) == before


def test_another_backbone_or_other_weights_are_refused(
    done: Path, bench: Bench, tiny_siglip: Backbone
) -> None:
    with pytest.raises(UserError, match="value of backbone"):
        bench.run(done, Bench(tiny_siglip, bench.colors).jobs())
    next(done.rglob("*seed1.json")).unlink()
    path = next(done.rglob("*seed2.json"))
    path.write_text(path.read_text().replace(bench.backbone.digest, "0" * 64))
    with pytest.raises(UserError, match="different weights"):
        bench.run(done)


def test_other_training_images_under_the_same_name_are_refused(
    done: Path, bench: Bench, changed: Path
) -> None:
    for path in (changed / "train").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    next(done.rglob("*seed1.json")).unlink()
    with pytest.raises(UserError, match=f"different images of {bench.colors.name}"):
        bench.at(changed).run(done)


@pytest.mark.ci
@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3]], ids=["a repeated run", "a further seed"])
def test_another_test_split_under_the_same_name_is_refused(
    done: Path, bench: Bench, changed: Path, seeds: list[int]
) -> None:
    """Its scores would be averaged with those of the finished runs."""
    next((changed / "test" / "red").iterdir()).unlink()
    if seeds == [1, 2]:
        next(done.rglob("*seed1.json")).unlink()
    with pytest.raises(UserError, match=r"different novel images .*--out"):
        bench.at(changed).run(done, bench.jobs(seeds=seeds))


@pytest.mark.ci
def test_changed_files_are_refused(bench: Bench, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.json", tmp_path / "out"
    written = {name: ["a thing"] for name in ("blue", "green", "night sky", "red")}
    texts.write_text(json.dumps(written))
    values = {"zero-shot-descriptions": {"descriptions": str(texts)}}
    jobs = bench.jobs(methods=["zero-shot-descriptions"])
    before = [record.key for record in bench.run(out, jobs, values=values)]
    assert [record.key for record in bench.run(out, jobs, values=values)] == before
    texts.write_text(json.dumps(written | {"red": ["blood"]}))
    left = bench.jobs(methods=["zero-shot-descriptions"], seeds=[1, 2, 3])
    for some in (left, jobs):  # also if nothing is left to do
        with pytest.raises(UserError, match="has changed since"):
            bench.run(out, some, values=values)
    for path in out.rglob("*.json"):  # records that do not state it
        with_method(read_record(path), sums=()).save(path)
    assert [record.key for record in bench.run(out, jobs, values=values)] == before
    with pytest.raises(UserError, match="has changed since"):
        bench.run(out, left, values=values)


@pytest.mark.ci
def test_changed_code_is_refused(bench: Bench, tmp_path: Path) -> None:
    """The daily loop of somebody who writes a method: edit it, and give the same command again."""
    code, out = tmp_path / "mine.py", tmp_path / "out"
    code.write_text(
        "from tests.helpers.external_methods import ExternalMethod\n\n"
        "class Mine(ExternalMethod):\n    title = 'mine'\n"
    )
    jobs = bench.jobs(methods=[f"{code}:Mine"], seeds=[1])
    bench.run(out, jobs)
    bench.run(out, jobs)
    code.write_text(code.read_text() + "    # better\n")
    with pytest.raises(UserError, match="has changed since"):
        bench.run(out, jobs)


@pytest.mark.slow
def test_several_processes_give_the_same_records(
    finished_bench: Path, bench: Bench, tmp_path: Path
) -> None:
    found = bench.run(tmp_path, processes=2)
    one = bench.run(finished_bench)
    assert [record.scores for record in found] == [record.scores for record in one]
    assert [record.key for record in found] == [record.key for record in one]
    assert not list(tmp_path.rglob("*.lock"))
    assert not (tmp_path / ".activations").exists()


def test_a_training_of_another_protocol_is_not_repeated(done: Path, bench: Bench) -> None:
    jobs = bench.jobs(protocol="ablation-layers", seeds=[1])
    found = bench.run(done, jobs)
    original = f"base-to-novel/{bench.colors.name}/rmadapter/default-2shots-seed1.json"
    assert [record.copied_from for record in found] == ["", original, ""]
    copy, old = found[1], read_record(done / original)
    assert (copy.protocol, copy.variant) == ("ablation-layers", "2 (RMAdapter)")
    assert (copy.scores, copy.seconds) == (old.scores, old.seconds)


@pytest.mark.ci
def test_data_sets_with_the_same_folder_name_stay_apart(bench: Bench, tmp_path: Path) -> None:
    """Their train images are the same, and so is the key of a training on them."""
    for name in "ab":
        shutil.copytree(bench.colors, tmp_path / name / bench.colors.name)
    for path in (tmp_path / "b" / bench.colors.name / "test/red").iterdir():
        shutil.copy(bench.colors / "test/blue/0.png", path)  # never called red
    names = [f"{name}/{bench.colors.name}" for name in "ab"]
    jobs = bench.jobs(datasets=names, methods=["zero-shot"], seeds=[1])
    first, second = bench.at(tmp_path / bench.colors.name).run(tmp_path / "out", jobs)
    assert first.key == second.key
    assert (first.copied_from, second.copied_from) == ("", "")
    assert first.scores[0].digest == second.scores[0].digest  # base: blue and green
    assert first.scores[1].digest != second.scores[1].digest


@pytest.mark.ci
def test_a_copy_of_a_data_set_has_records_of_its_own(bench: Bench, tmp_path: Path) -> None:
    """All images are the same, and so is the key; a record that is copied would name the other."""
    names = [f"{name}/{bench.colors.name}" for name in "ab"]
    for name in names:
        shutil.copytree(bench.colors, tmp_path / name)
    jobs = bench.jobs(datasets=names, methods=["zero-shot"], seeds=[1])
    first, second = bench.at(tmp_path / bench.colors.name).run(tmp_path / "out", jobs)
    assert first.key == second.key
    assert second.copied_from == ""
    assert [record.task.data for record in (first, second)] == [job.task.data for job in jobs]


def test_a_failed_job_stops_no_other_job(bench: Bench, tmp_path: Path) -> None:
    values = {"rmadapter": {**QUICK, "first_block": 9}}
    jobs = bench.jobs(methods=["rmadapter", "zero-shot"], seeds=[1])
    for _ in range(2):  # it is tried again, and fails again
        bad, good = bench.run(tmp_path, jobs, values=values)
        assert (bad.status, good.status) == ("failed", "finished")
        assert "have 4 and 4 blocks" in bad.reason
        assert not bad.scores


@pytest.mark.ci
def test_a_missing_file_fails_one_method_only(bench: Bench, tmp_path: Path) -> None:
    """Without the file, its run has no key."""
    jobs = bench.jobs(methods=["zero-shot-descriptions", "zero-shot"], seeds=[1])
    values = {"zero-shot-descriptions": {"descriptions": str(tmp_path / "gone.json")}}
    bad, good = bench.run(tmp_path / "out", jobs, values=values)
    assert (bad.status, bad.key, good.status) == ("failed", "", "finished")
    assert "gone.json" in bad.reason


@pytest.mark.ci
@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("crash", "failed", "ZeroDivisionError: a bug of the method"),
        ("nan", "failed", "the answers of external contain NaN"),
        ("good", "finished", ""),
    ],
)
def test_a_method_from_outside_may_fail_in_its_own_ways(
    kind: str, status: str, reason: str, bench: Bench, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The traceback goes to stderr, the record names the source, and the other runs are done."""
    jobs = bench.jobs(methods=[EXTERNAL, "zero-shot"], seeds=[1])
    external, other = bench.run(tmp_path, jobs, values={EXTERNAL: {"kind": kind}})
    assert (external.status, other.status) == (status, "finished")
    assert reason in external.reason
    expected = (EXTERNAL, "tests/helpers/external_methods.py")
    assert (external.method.name, external.method.source) == expected
    assert external.method.published == {"kind": "good"}
    assert other.method.published == {}
    assert ("Traceback" in capsys.readouterr().err) == (kind == "crash")
    if kind == "good":
        assert external.metrics == other.metrics  # it is zero-shot


def test_a_method_without_an_answer_is_not_applicable(bench: Bench, tmp_path: Path) -> None:
    [job] = bench.jobs(methods=["linear-probe"], seeds=[1])
    novel = configured(job.task, {"tests": (Question("novel", classes="novel"),)})
    [record] = bench.run(tmp_path, [Job(job.protocol, novel, job.method)])
    assert (record.status, record.scores) == ("not-applicable", ())
    assert record.reason == "linear probe only knows the classes it was trained on, not 'night sky'"


@pytest.mark.parametrize(
    ("values", "copies", "named"),
    [
        ({"mma": {"rank": 3}}, 1, "--set mma"),
        ({"rmadapter": {"rnak": 3}}, 1, "did you mean 'rank'"),
        ({"rmadapter": {"precision": "bf16"}}, 1, "'precision'"),
        ({}, 2, "--out"),  # two runs with one path
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    values: Any, copies: int, named: str, bench: Bench, tmp_path: Path
) -> None:
    jobs = bench.jobs(methods=["rmadapter"])
    with pytest.raises(UserError, match=named):
        bench.run(tmp_path / "out", jobs * copies, values=values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["out", "out/base-to-novel"])
def test_a_folder_that_cannot_be_written_is_refused(
    file: str, bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("x")
    with pytest.raises(UserError, match=f"{file}.* cannot be written"):
        bench.run(tmp_path / "out", bench.jobs(methods=["rmadapter"]))


@pytest.mark.ci
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows cannot block signals")
def test_workers_start_with_ctrl_c_blocked(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stopped while Python or torch is imported would print a traceback."""
    blocked = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *words: Any, **more: Any) -> Any:
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))  # a worker inherits these
            future = super().submit(*words, **more)
            future.exception()  # one after the other: they share a backbone here
            return future

    monkeypatch.setattr("rmadapter.bench.runner.make_pool", lambda devices, count: Pool(count))
    assert bench.run(tmp_path / "out", processes=2)
    assert len(blocked) == 2
    assert all(signal.SIGINT in signals for signals in blocked)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_order_keeps_jobs_on_the_same_images_together() -> None:
    jobs = expand("base-to-novel", ["a", "b"], ["zero-shot", "mma", "rmadapter"], [1, 2])
    ordered = in_order(jobs)
    assert set(ordered) == set(jobs)
    groups = [(job.task.data, job.task.seed) for job in ordered]
    assert groups == sorted(groups)
    assert [job.method for job in ordered[:3]] == ["mma", "rmadapter", "zero-shot"]
