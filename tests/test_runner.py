"""Runs that are killed, broken, shared and repeated, through the real command and through the library."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbone import Backbone
from rmadapter.bench.protocols import Run, expand
from rmadapter.bench.runner import in_order, run_all
from rmadapter.config import Config
from rmadapter.errors import UserError

METHODS = ("zero-shot", "mma", "rmadapter")
QUICK = {"first_block": 3, "rank": 4, "epochs": 2}
VALUES = {"mma": QUICK, "rmadapter": QUICK}


def runs_of(colors: Path, **words: Any) -> list[Run]:
    return expand(**{"protocol": "base-to-novel", "datasets": [colors.name], "seeds": [1, 2], "shots": [2], **words})


def do(backbone: Backbone, colors: Path, out: Path, runs: list[Run], **words: Any) -> list[dict[str, Any]]:
    settings = words.pop("settings", Config(backbone=backbone.name, device="cpu"))
    words = {"values": {k: v for k, v in VALUES.items() if k in {run.method for run in runs}}, **words}
    return run_all(runs, out, root=colors.parent, settings=settings, progress=False, **words)


def records(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.json")}


# ---- through the command ----


def command(backbone: Backbone, colors: Path, out: Path, *more: str) -> list[str]:
    sets = [f"--set={method}.{name}={value}" for method in VALUES for name, value in QUICK.items()]
    code = "from rmadapter.cli import main; main()"
    data = ["--datasets", colors.name, "--root", str(colors.parent), "--backbone", backbone.name]
    which = ["--methods", ",".join(METHODS), "--seeds", "1,2,3", "--shots", "2", "--set", "device=cpu"]
    return [sys.executable, "-c", code, "bench", "base-to-novel", *data, *which, *sets, "--out", str(out), *more]


def start(words: list[str], log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        return subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def done_by(log: Path) -> list[str]:
    """The runs that a process did itself, one a line on stderr."""
    return re.findall(r"^(base-to-novel .+): finished ", log.read_text(), re.M)


def test_killed_and_started_again_beside_another(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    """Nine runs of three methods and three seeds: none is missing, and none that was finished is done again."""
    out, first, second, third = tmp_path / "out", tmp_path / "1.log", tmp_path / "2.log", tmp_path / "3.log"
    killed = start(command(tiny_clip, colors, out), first)
    deadline = time.monotonic() + 120
    while len(records(out)) < 3 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = records(out)
    assert 3 <= len(before) < 9
    both = [start(command(tiny_clip, colors, out), log) for log in (second, third)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    after = records(out)
    assert len(after) == 9
    assert {path: after[path] for path in before} == before
    assert {json.loads(text)["status"] for text in after.values()} == {"finished"}
    again = Counter(done_by(second) + done_by(third))
    assert sum(again.values()) == len(after) - len(before)
    assert set(again.values()) <= {1}
    assert not list(out.rglob("*.lock"))


# ---- through the library ----


@pytest.fixture(scope="module")
def done(tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three methods and two seeds. Copy them to change them."""
    out = tmp_path_factory.mktemp("done")
    do(tiny_clip, colors, out, runs_of(colors))
    return out


def test_record(done: Path, tiny_clip: Backbone, colors: Path) -> None:
    from rmadapter.data.fewshot import few_shot, split_digest
    from rmadapter.data.images import read_images
    from rmadapter.metrics import harmonic_mean

    record = json.loads((done / "base-to-novel" / colors.name / "rmadapter/default-2shots-seed2.json").read_text())
    assert record["counts"] == {"base": 8, "novel": 8}  # four test images of each of two and two classes
    assert record["chance"] == {"base": 50.0, "novel": 50.0}
    metrics = record["metrics"]
    assert metrics["hm"] == pytest.approx(harmonic_mean(metrics["base"], metrics["novel"]), abs=1e-3)
    assert record["backbone"] == {"name": tiny_clip.name, "digest": tiny_clip.digest}
    assert record["split_digest"] == split_digest(few_shot(read_images(colors), 2, 2))
    assert record["config"]["method"]["rank"] == 4
    assert len(record["history"]) == 2  # two epochs of four images
    assert record["step_seconds"] > 0
    assert record["seconds"]["total"] >= record["seconds"]["train"] > 0
    # r = 4 in two image blocks (width 64) and two text blocks (width 48): down with bias, up with bias, rec r x r, up
    widths = 2 * [64, 48]
    assert record["parameters"] == sum(d * 4 + 4 + 4 * d + d + 4 * 4 + 4 + 4 * d + d for d in widths)


def test_zero_shot_does_not_depend_on_the_seed_and_nothing_is_repeated(
    done: Path, tiny_clip: Backbone, colors: Path
) -> None:
    before = records(done)
    found = do(tiny_clip, colors, done, runs_of(colors))
    assert records(done) == before
    zero = [record["metrics"] for record in found if record["method"] == "zero-shot"]
    assert zero[0] == zero[1]


def test_zero_shot_accuracy_is_that_of_the_backbone_itself(done: Path, tiny_clip: Backbone, colors: Path) -> None:
    import torch
    from PIL import Image

    names = ["blue", "green"]
    files = [(path, i) for i, name in enumerate(names) for path in sorted((colors / "test" / name).iterdir())]
    model: Any = tiny_clip.model
    with torch.no_grad():
        text = model.encode_text(tiny_clip.tokenizer([f"a photo of a {n}." for n in names]), normalize=True)
        pictures = torch.stack([tiny_clip.preprocess(Image.open(path).convert("RGB")) for path, _ in files])
        answers = (model.encode_image(pictures, normalize=True) @ text.T).argmax(-1)
    expected = 100 * (answers == torch.tensor([label for _, label in files])).float().mean()
    [record] = do(tiny_clip, colors, done, runs_of(colors, methods=["zero-shot"], seeds=[1]))
    assert record["metrics"]["base"] == pytest.approx(float(expected), abs=1e-3)


def test_broken_and_failed_runs_are_repeated_and_others_kept(
    done: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    paths = sorted(out.rglob("*.json"))
    paths[0].write_text(paths[0].read_text()[:300])
    paths[1].write_text(json.dumps({**json.loads(paths[1].read_text()), "status": "failed", "reason": "no luck"}))
    paths[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths[3:]}
    found = do(tiny_clip, colors, out, runs_of(colors))
    assert [record["status"] for record in found] == ["finished"] * 6
    assert {path: path.stat().st_mtime_ns for path in paths[3:]} == kept
    for path in paths[:3]:  # the same figures again
        old = json.loads((done / path.relative_to(out)).read_text())
        new = json.loads(path.read_text())
        assert {k: new[k] for k in ("metrics", "key", "split_digest")} == {
            k: old[k] for k in ("metrics", "key", "split_digest")
        }


def test_another_configuration_in_the_same_folder_is_refused_before_anything_starts(
    done: Path, tiny_clip: Backbone, tiny_siglip: Backbone, colors: Path
) -> None:
    before = records(done)
    longer = {**VALUES, "rmadapter": {**QUICK, "epochs": 3}}
    runs = runs_of(colors, seeds=[1, 2, 3])
    for words, named in (
        ({"values": longer}, "rmadapter/default-2shots-seed1.json is a run with another method.epochs"),
        ({"settings": Config(backbone=tiny_siglip.name, device="cpu")}, "another shared.backbone"),
        ({"settings": Config(backbone=tiny_clip.name, device="cpu", templates=("a {}.",))}, "another shared.templates"),
    ):
        with pytest.raises(UserError, match=named):
            do(tiny_clip, colors, done, runs, **words)
    assert records(done) == before


def test_other_weights_and_other_images_under_the_same_name_are_refused(
    done: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    from PIL import Image

    runs = runs_of(colors)
    out = Path(shutil.copytree(done, tmp_path / "out"))
    changed = Path(shutil.copytree(colors, tmp_path / "data" / colors.name))
    for path in (changed / "train").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    next(out.rglob("*seed1.json")).unlink()
    with pytest.raises(UserError, match=f"on other images than {colors.name} has now"):
        run_all(runs, out, root=changed.parent, settings=Config(backbone=tiny_clip.name), values=VALUES, progress=False)
    path = next(out.rglob("*seed2.json"))
    path.write_text(path.read_text().replace(tiny_clip.digest, "0" * 64))
    with pytest.raises(UserError, match="on other weights"):
        do(tiny_clip, colors, out, runs)


def test_processes_of_one_command_find_the_same(done: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    found = do(tiny_clip, colors, tmp_path, runs_of(colors), jobs=2)
    one = do(tiny_clip, colors, done, runs_of(colors))
    assert [record["metrics"] for record in found] == [record["metrics"] for record in one]
    assert [record["key"] for record in found] == [record["key"] for record in one]
    assert not list(tmp_path.rglob("*.lock"))
    assert not (tmp_path / ".activations").exists()


def test_a_training_that_another_protocol_did_is_not_done_again(
    done: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    runs = runs_of(colors, protocol="ablation-layers", seeds=[1])
    found = do(tiny_clip, colors, out, runs)
    original = f"base-to-novel/{colors.name}/rmadapter/default-2shots-seed1.json"
    assert [record.get("copied_from") for record in found] == [None, original, None]
    copy, old = found[1], json.loads((out / original).read_text())
    assert copy["protocol"] == "ablation-layers"
    assert copy["variant"] == "2 (RMAdapter)"
    assert copy["metrics"] == old["metrics"]
    assert copy["history"] == old["history"]


def test_one_failure_leaves_the_others_alone(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    values = {"rmadapter": {**QUICK, "first_block": 9}}
    runs = runs_of(colors, methods=["rmadapter", "zero-shot"], seeds=[1])
    for _ in range(2):  # it is tried again, and fails again
        bad, good = do(tiny_clip, colors, tmp_path, runs, values=values)
        assert (bad["status"], good["status"]) == ("failed", "finished")
        assert "have 4 and 4 blocks" in bad["reason"]
        assert "metrics" not in bad


def test_settings_that_cannot_be_right(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    runs = runs_of(colors, methods=["rmadapter"])
    standard = Config(backbone=tiny_clip.name, augmentation="standard")
    wrong: Any = (
        ({"values": {"mma": {"rank": 3}}}, "--set mma"),
        ({"values": {"rmadapter": {"rnak": 3}}}, "did you mean 'rank'"),
        ({"values": {"rmadapter": {"precision": "bf16"}}}, "for all methods alike"),
        ({"settings": standard}, "needs a number of views"),
        ({"runs": [*runs, runs[0]]}, "would both be written"),
    )
    for words, complaint in wrong:
        with pytest.raises(UserError, match=complaint):
            do(tiny_clip, colors, tmp_path / "out", **{"runs": runs, **words})
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        do(tiny_clip, colors, tmp_path / "file", runs)


def test_order_keeps_runs_on_the_same_images_together(colors: Path) -> None:
    runs = expand("base-to-novel", ["a", "b"], ["zero-shot", "mma", "rmadapter"], [1, 2])
    ordered = in_order(runs)
    assert set(ordered) == set(runs)
    groups = [(run.dataset, run.seed) for run in ordered]
    assert groups == sorted(groups)
    assert [run.method for run in ordered[:3]] == ["mma", "rmadapter", "zero-shot"]
