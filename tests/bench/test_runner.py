"""Runs that are broken, failed, shared and repeated, through the library; test_runner_kills.py has
killed ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.runner import in_order
from rmadapter.errors import UserError
from rmadapter.settings import configured
from rmadapter.task import Question
from tests.helpers.bench_runs import QUICK, VALUES, finished_bench, jobs_of, records, run_bench

__all__ = ["finished_bench"]  # a fixture
EXTERNAL = f"{Path(__file__).parents[1] / 'helpers/external_methods.py'}:ExternalMethod"


def test_record(finished_bench: Path, tiny_clip: Backbone, colors: Path) -> None:
    from rmadapter.data.fewshot import few_shot, split_digest
    from rmadapter.data.read import read_images
    from rmadapter.metrics import harmonic_mean

    path = finished_bench / "base-to-novel" / colors.name / "rmadapter/default-2shots-seed2.json"
    assert path.read_text().count("\n") == 1
    record = read_record(path)
    # four test images of each of two and two classes
    expected = [("base", 8, 50), ("novel", 8, 50)]
    assert [(score.name, score.images, score.chance) for score in record.scores] == expected
    base, novel = (record.metric(name) for name in ("base", "novel"))
    assert base is not None
    assert novel is not None
    assert record.metric("hm") == harmonic_mean(base, novel)
    assert (record.backbone.name, record.backbone.digest) == (tiny_clip.name, tiny_clip.digest)
    assert record.split_digest == split_digest(few_shot(read_images(colors), 2, 2))
    assert record.method.settings["rank"] == 4
    assert record.step_seconds is not None
    assert record.step_seconds > 0
    assert record.seconds["total"] >= record.seconds["train"] > 0
    # r = 4 in two image blocks (width 64) and two text blocks (width 48): down with bias, up with
    # bias, rec r x r, up
    widths = 2 * [64, 48]
    assert record.parameters == sum(d * 4 + 4 + 4 * d + d + 4 * 4 + 4 + 4 * d + d for d in widths)


def test_zero_shot_does_not_depend_on_the_seed_and_nothing_is_repeated(
    finished_bench: Path, tiny_clip: Backbone, colors: Path
) -> None:
    before = records(finished_bench)
    found = run_bench(colors, finished_bench, jobs_of(tiny_clip, colors))
    assert records(finished_bench) == before
    zero = [record.metrics for record in found if record.method.name == "zero-shot"]
    assert zero[0] == zero[1]


def test_zero_shot_is_the_backbone(finished_bench: Path, tiny_clip: Backbone, colors: Path) -> None:
    import torch
    from PIL import Image

    names = ["blue", "green"]
    files = [
        (path, i)
        for i, name in enumerate(names)
        for path in sorted((colors / "test" / name).iterdir())
    ]
    model: Any = tiny_clip.model
    with torch.no_grad():
        text = model.encode_text(
            tiny_clip.tokenizer([f"a photo of a {n}." for n in names]), normalize=True
        )
        images = torch.stack(
            [tiny_clip.preprocess(Image.open(path).convert("RGB")) for path, _ in files]
        )
        cosines = model.encode_image(images, normalize=True) @ text.T
    gap = (cosines[:, 0] - cosines[:, 1]).abs().min()
    assert gap > 1e-4, "rounding would decide what is right: choose other images"
    answers = cosines.argmax(-1)
    expected = 100 * (answers == torch.tensor([label for _, label in files])).float().mean()
    [record] = run_bench(
        colors, finished_bench, jobs_of(tiny_clip, colors, methods=["zero-shot"], seeds=[1])
    )
    assert record.metric("base") == pytest.approx(float(expected), abs=1e-3)


def test_a_finished_bench_may_lie_where_nothing_can_be_written(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rmadapter.bench.runner.shared", lambda *_: pytest.fail("nothing is left to do")
    )
    assert len(run_bench(colors, finished_bench, jobs_of(tiny_clip, colors))) == 6


def test_broken_and_failed_runs_are_repeated_and_others_kept(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    paths = sorted(out.rglob("*.json"))
    paths[0].write_text(paths[0].read_text()[:300])
    failed = {**json.loads(paths[1].read_text()), "status": "failed", "reason": "no luck"}
    paths[1].write_text(json.dumps(failed))
    paths[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths[3:]}
    found = run_bench(colors, out, jobs_of(tiny_clip, colors))
    assert [record.status for record in found] == ["finished"] * 6
    assert {path: path.stat().st_mtime_ns for path in paths[3:]} == kept
    for path in paths[:3]:  # the same figures again
        old, new = read_record(finished_bench / path.relative_to(out)), read_record(path)
        assert (new.scores, new.key, new.split_digest) == (old.scores, old.key, old.split_digest)


def test_other_settings_in_the_same_folder_are_refused_before_anything_starts(
    finished_bench: Path, tiny_clip: Backbone, tiny_siglip: Backbone, colors: Path
) -> None:
    before, seeds = records(finished_bench), [1, 2, 3]
    longer = {**VALUES, "rmadapter": {**QUICK, "epochs": 3}}
    templates = {"templates": ("a {}.",)}
    plain, other = (
        jobs_of(tiny_clip, colors, seeds=seeds),
        jobs_of(tiny_siglip, colors, seeds=seeds),
    )
    for jobs, words, named in (
        (plain, {"values": longer}, "default-2shots-seed1.json .* value of epochs"),
        (plain, {"precision": "bf16"}, "a different value of precision"),
        (other, {}, "a different value of backbone"),
        (jobs_of(tiny_clip, colors, seeds=seeds, common=templates), {}, "value of templates"),
    ):
        with pytest.raises(UserError, match=named):
            run_bench(colors, finished_bench, jobs, **words)
    assert records(finished_bench) == before


def test_other_weights_and_other_images_under_the_same_name_are_refused(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    from PIL import Image

    jobs = jobs_of(tiny_clip, colors)
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    changed = Path(shutil.copytree(colors, tmp_path / "data" / colors.name))
    for path in (changed / "train").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    next(out.rglob("*seed1.json")).unlink()
    with pytest.raises(UserError, match=f"used different images of {colors.name} from the current"):
        run_bench(changed, out, jobs)
    path = next(out.rglob("*seed2.json"))
    path.write_text(path.read_text().replace(tiny_clip.digest, "0" * 64))
    with pytest.raises(UserError, match="used different weights of"):
        run_bench(colors, out, jobs)


def test_another_test_split_under_the_same_name_is_refused(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    jobs, out = jobs_of(tiny_clip, colors), Path(shutil.copytree(finished_bench, tmp_path / "out"))
    changed = Path(shutil.copytree(colors, tmp_path / "data" / colors.name))
    next((changed / "test" / "red").iterdir()).unlink()
    next(out.rglob("*seed1.json")).unlink()
    with pytest.raises(UserError, match=r"tested on different novel images .*--out"):
        run_bench(changed, out, jobs)


def test_further_seeds_are_not_averaged_with_answers_to_other_images(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    changed = Path(shutil.copytree(colors, tmp_path / "data" / colors.name))
    next((changed / "test" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="was tested on different novel images"):
        run_bench(changed, out, jobs_of(tiny_clip, colors, seeds=[1, 2, 3]))


def test_changed_files_are_refused(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.json", tmp_path / "out"
    written = {name: ["a thing"] for name in ("blue", "green", "night sky", "red")}
    texts.write_text(json.dumps(written))
    values = {"zero-shot-descriptions": {"descriptions": str(texts)}}
    jobs = jobs_of(tiny_clip, colors, methods=["zero-shot-descriptions"])
    before = [record.key for record in run_bench(colors, out, jobs, values=values)]
    assert [record.key for record in run_bench(colors, out, jobs, values=values)] == before
    texts.write_text(json.dumps(written | {"red": ["blood"]}))
    left = jobs_of(tiny_clip, colors, methods=["zero-shot-descriptions"], seeds=[1, 2, 3])
    changed = "has changed since"
    for some in (left, jobs):  # also if nothing is left to do
        with pytest.raises(UserError, match=changed):
            run_bench(colors, out, some, values=values)
    for path in out.rglob("*.json"):  # records that do not say it
        old = read_record(path)
        old.model_copy(update={"method": old.method.model_copy(update={"sums": ()})}).save(path)
    assert [record.key for record in run_bench(colors, out, jobs, values=values)] == before
    with pytest.raises(UserError, match=changed):
        run_bench(colors, out, left, values=values)


def test_changed_code_is_refused(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    """The daily loop of somebody who writes a method: edit it, and give the same command again."""
    code, out = tmp_path / "mine.py", tmp_path / "out"
    code.write_text(
        "from tests.helpers.external_methods import ExternalMethod\n\n"
        "class Mine(ExternalMethod):\n    title = 'mine'\n"
    )
    jobs = jobs_of(tiny_clip, colors, methods=[f"{code}:Mine"], seeds=[1])
    run_bench(colors, out, jobs)
    run_bench(colors, out, jobs)
    code.write_text(code.read_text() + "    # better\n")
    with pytest.raises(UserError, match="has changed since"):
        run_bench(colors, out, jobs)


@pytest.mark.slow
def test_processes_of_one_command_find_the_same(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    found = run_bench(colors, tmp_path, jobs_of(tiny_clip, colors), processes=2)
    one = run_bench(colors, finished_bench, jobs_of(tiny_clip, colors))
    assert [record.scores for record in found] == [record.scores for record in one]
    assert [record.key for record in found] == [record.key for record in one]
    assert not list(tmp_path.rglob("*.lock"))
    assert not (tmp_path / ".activations").exists()


def test_a_training_that_another_protocol_did_is_not_done_again(
    finished_bench: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    found = run_bench(
        colors, out, jobs_of(tiny_clip, colors, protocol="ablation-layers", seeds=[1])
    )
    original = f"base-to-novel/{colors.name}/rmadapter/default-2shots-seed1.json"
    assert [record.copied_from for record in found] == ["", original, ""]
    copy, old = found[1], read_record(out / original)
    assert (copy.protocol, copy.variant) == ("ablation-layers", "2 (RMAdapter)")
    assert (copy.scores, copy.seconds) == (old.scores, old.seconds)


def test_folders_of_one_name_stay_apart(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    """Their train images are the same, and so is the key of a training on them."""
    for name in "ab":
        shutil.copytree(colors, tmp_path / name / colors.name)
    for path in (tmp_path / "b" / colors.name / "test/red").iterdir():
        shutil.copy(colors / "test/blue/0.png", path)  # never called red
    names = [f"{name}/{colors.name}" for name in "ab"]
    jobs = jobs_of(tiny_clip, colors, datasets=names, methods=["zero-shot"], seeds=[1])
    first, second = run_bench(tmp_path / colors.name, tmp_path / "out", jobs)
    assert first.key == second.key
    assert (first.copied_from, second.copied_from) == ("", "")
    assert first.scores[0].digest == second.scores[0].digest  # base: blue and green
    assert first.scores[1].digest != second.scores[1].digest


def test_one_failure_stops_no_other_job(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    values = {"rmadapter": {**QUICK, "first_block": 9}}
    jobs = jobs_of(tiny_clip, colors, methods=["rmadapter", "zero-shot"], seeds=[1])
    for _ in range(2):  # it is tried again, and fails again
        bad, good = run_bench(colors, tmp_path, jobs, values=values)
        assert (bad.status, good.status) == ("failed", "finished")
        assert "have 4 and 4 blocks" in bad.reason
        assert not bad.scores


def test_a_missing_file_of_one_method(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    """Without the file, its run has no key."""
    jobs = jobs_of(tiny_clip, colors, methods=["zero-shot-descriptions", "zero-shot"], seeds=[1])
    values = {"zero-shot-descriptions": {"descriptions": str(tmp_path / "gone.json")}}
    bad, good = run_bench(colors, tmp_path / "out", jobs, values=values)
    assert (bad.status, bad.key, good.status) == ("failed", "", "finished")
    assert "gone.json" in bad.reason


def test_a_method_from_outside_may_fail_in_its_own_ways(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its traceback goes to stderr, its record names where it is from, and the other runs are
    done."""
    for kind, status, words in (
        ("crash", "failed", "ZeroDivisionError: a bug of the method"),
        ("nan", "failed", "the answers of external contain NaN or infinity"),
        ("good", "finished", ""),
    ):
        jobs = jobs_of(tiny_clip, colors, methods=[EXTERNAL, "zero-shot"], seeds=[1])
        external, other = run_bench(
            colors, tmp_path / kind, jobs, values={EXTERNAL: {"kind": kind}}
        )
        assert (external.status, other.status) == (status, "finished")
        assert words in external.reason
        expected = (EXTERNAL, "tests/helpers/external_methods.py")
        assert (external.method.name, external.method.source) == expected
    assert external.metrics == other.metrics  # the good one is zero-shot
    assert "a bug of the method" in capsys.readouterr().err


def test_no_answer_is_not_applicable(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    [job] = jobs_of(tiny_clip, colors, methods=["linear-probe"], seeds=[1])
    novel = configured(job.task, {"tests": (Question("novel", classes="novel"),)})
    [record] = run_bench(colors, tmp_path, [Job(job.protocol, novel, job.method)])
    assert (record.status, record.scores) == ("not-applicable", ())
    assert record.reason == "linear probe only knows the classes it was trained on, not 'night sky'"


def test_settings_that_cannot_be_right(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    jobs = jobs_of(tiny_clip, colors, methods=["rmadapter"])
    wrong: Any = (
        (jobs, {"mma": {"rank": 3}}, "--set mma"),
        (jobs, {"rmadapter": {"rnak": 3}}, "did you mean 'rank'"),
        (jobs, {"rmadapter": {"precision": "bf16"}}, "unknown field 'precision'"),
        ([*jobs, jobs[0]], {}, "would be written"),
    )
    for some, values, complaint in wrong:
        with pytest.raises(UserError, match=complaint):
            run_bench(colors, tmp_path / "out", some, values=values)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: cannot be written to"):
        run_bench(colors, tmp_path / "file", jobs)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/base-to-novel").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        run_bench(colors, tmp_path / "out", jobs)


def test_order_keeps_jobs_on_the_same_images_together() -> None:
    jobs = expand("base-to-novel", ["a", "b"], ["zero-shot", "mma", "rmadapter"], [1, 2])
    ordered = in_order(jobs)
    assert set(ordered) == set(jobs)
    groups = [(job.task.data, job.task.seed) for job in ordered]
    assert groups == sorted(groups)
    assert [job.method for job in ordered[:3]] == ["mma", "rmadapter", "zero-shot"]
