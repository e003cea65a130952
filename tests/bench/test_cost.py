"""What a bench would cost: counted by hand, measured on a method that sleeps, and on what is not
done yet alone."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.bench import cost as module
from rmadapter.bench.cost import Timing, cost
from rmadapter.bench.plan import Plan
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache
from tests.helpers.bench_runs import QUICK, VALUES, finished_bench, jobs_of, run_bench
from tests.helpers.shell import Command, rmadapter

__all__ = ["finished_bench", "rmadapter"]  # fixtures
# Seconds that are powers of two, so that sums tell what was added.
TIMING = Timing(
    frozen=1,
    fixed=64,
    step=8,
    first_use=256,
    test_set=4096,
    image=65536,
    images=4,
    batch=4,
    first=3,
)


def plan(colors: Path, out: Path, backbone: Backbone, **words: Any) -> Plan:
    values = {
        name: own
        for name, own in VALUES.items()
        if name in words.get("methods", ["mma", "rmadapter"])
    }
    return Plan(
        tuple(jobs_of(backbone, colors, **words)), out, colors.parent, Machine(device="cpu"), values
    )


def test_what_is_added_up(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of base-to-novel with 2 shots: 4 training images in one batch of 16, two epochs, two sets of
    8 test images."""
    monkeypatch.setattr(module, "measure", lambda *_: TIMING)
    trained, asked = 4 * 1 + 64 + 2 * 8, 2 * 4096 + 16 * 65536
    found = cost(plan(colors, tmp_path, tiny_clip, methods=["mma", "rmadapter"]), progress=False)
    assert (found.runs, found.left, found.device, found.devices, found.disk) == (4, 4, "cpu", 1, 0)
    # the second seed finds frozen test images
    first, other = (trained + asked + 16 * 256, trained + asked)
    assert [line.seconds for line in found.lines] == [first + other] * 2
    assert found.hours == pytest.approx(2 * (first + other) / 3600)
    # in two processes each freezes its own
    twice = cost(plan(colors, tmp_path, tiny_clip, methods=["mma", "rmadapter"]), 2, progress=False)
    assert [line.seconds for line in twice.lines] == [2 * first] * 2
    # 4 shots are twice the images, and a whole batch of them
    more = cost(
        plan(colors, tmp_path, tiny_clip, methods=["mma"], seeds=[1], shots=[4]), progress=False
    )
    assert [line.seconds for line in more.lines] == [8 * 1 + 64 + 2 * 8 * 2 + asked + 16 * 256]
    # what has no steps takes as long as it has images
    none = cost(
        plan(colors, tmp_path, tiny_clip, methods=["linear-probe"], seeds=[1], shots=[4]),
        progress=False,
    )
    assert [line.seconds for line in none.lines] == [8 * 1 + 64 * 2 + asked + 16 * 256]


def test_images_that_were_not_drawn_are_frozen_for_every_draw(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: TIMING)
    whole = Path(shutil.copytree(colors / "train", tmp_path / "data" / colors.name))
    left = len([*whole.rglob("*.png")]) - 4 * 2
    found = cost(plan(whole, tmp_path / "out", tiny_clip, methods=["mma"]), progress=False)
    assert found.lines[0].seconds == 2 * (4 * 1 + 64 + 2 * 8 + 2 * 4096 + left * (65536 + 256))


def test_gpus_share_the_hours_and_large_activations_lie_on_disk(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: TIMING)
    one = plan(colors, tmp_path, tiny_clip, methods=["mma"])
    small = replace(one, machine=Machine(device="cpu", cache_memory=0))
    cache = Cache(tiny_clip)
    # the shots of two seeds, and the test images of either half
    assert cost(small, progress=False).disk == 2 * cache.bytes_of(4, 3) + 2 * cache.bytes_of(8, 3)
    monkeypatch.setattr(module, "shared_gpus", lambda _: ["0", "1"])
    alone, shared = cost(one, 1, progress=False), cost(one, 4, progress=False)
    assert (alone.devices, shared.devices) == (1, 2)
    assert shared.hours == pytest.approx(sum(line.seconds for line in shared.lines) / 3600 / 2)


def test_bytes_are_those_of_what_is_held(tiny_clip: Backbone, colors: Path) -> None:
    from rmadapter.data.read import read_images

    images, cache = read_images(colors)["train"], Cache(tiny_clip, progress=False)
    for first in (None, 3):
        held = cache.source(images, first)
        size = sum(part.numel() * part.element_size() for part in (held.features, held.x, held.y))  # type: ignore[union-attr]
        assert cache.bytes_of(len(images), first) == size


@dataclass(frozen=True)
class Slow:
    """Zero-shot that takes its time to train, in proportion to its images."""

    title: str = "slow"
    source: str = ""

    def __getattr__(self, name: str) -> Any:
        from rmadapter.methods import load_method

        return getattr(load_method("zero-shot"), name)

    def fit(self, backbone: Backbone, shots: Any) -> Any:
        time.sleep(0.05 * len(shots.images))
        return self.restore(backbone, shots.known, {})


def test_what_takes_how_long_is_measured(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    one = plan(colors, tmp_path, tiny_clip, methods=["zero-shot"], seeds=[1])
    rates = module.measure(one.jobs[0], Slow(), one.lab(), shots=2)  # type: ignore[arg-type]
    assert (rates.images, rates.batch, rates.step, rates.first) == (4, 4, 0, None)
    assert rates.fixed >= 0.2
    ours = plan(colors, tmp_path, tiny_clip, methods=["rmadapter"], seeds=[1])
    rates = module.measure(ours.jobs[0], ours.method(ours.jobs[0]), ours.lab(), shots=4)
    assert (rates.images, rates.batch, rates.first) == (8, 8, 3)
    assert min(rates.frozen, rates.step, rates.test_set) > 0


def test_what_is_done_costs_nothing_and_nothing_is_written(
    finished_bench: Path,
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = cost(plan(colors, finished_bench, tiny_clip, methods=["zero-shot", "mma", "rmadapter"]))
    assert (found.runs, found.left, found.hours, found.order) == (6, 0, 0, ())
    jobs = jobs_of(tiny_clip, colors, methods=["zero-shot", "mma"], seeds=[1, 2])
    run_bench(colors, tmp_path, jobs[:1])
    before = sorted(tmp_path.rglob("*"))
    found = cost(plan(colors, tmp_path, tiny_clip, methods=["zero-shot", "mma"]))
    expected = [("mma", 2, 2), ("zero-shot", 1, 2)]
    assert [(line.method, line.left, line.runs) for line in found.lines] == expected
    assert [line.seconds > 0 for line in found.lines] == [True, True]
    assert len(found.order) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_method_that_learns_from_all_images_is_not_measured_on_a_few(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cost(
        plan(colors, tmp_path, tiny_clip, methods=["prompt-kd"], seeds=[1]), progress=False
    )
    assert [line.seconds for line in found.lines] == [0]
    assert "cannot be measured (PromptKD learns from all" in capsys.readouterr().err


def test_a_method_that_cannot_be_tried_is_noted(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = plan(colors, tmp_path, tiny_clip, methods=["mma"], seeds=[1])
    found = cost(replace(one, values={"mma": {**QUICK, "first_block": 9}}), progress=False)
    assert (found.left, found.hours) == (1, 0)
    assert "cannot be measured" in capsys.readouterr().err


def test_invalid_benches_are_refused(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(colors / "train", tmp_path / "all"))
    one = plan(images, tmp_path / "out", tiny_clip, methods=["zero-shot"], seeds=[1], shots=[6])
    with pytest.raises(UserError, match="no test split, and no training image is left over"):
        cost(one, progress=False)


def test_the_command(rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    words = [
        "few-shot", "--datasets", colors.name, "--root", colors.parent, "--backbone",
        tiny_clip.name,
    ]  # fmt: skip
    words += [
        "--methods", "zero-shot", "--shots", "1,2", "--seeds", "1", "--set", "device=cpu", "--out",
        tmp_path / "x",
    ]  # fmt: skip
    code, out, _ = rmadapter("plan", *words)
    assert code == 0
    assert "2 of 2 runs are left: 0.00 hours on 1 x cpu" in out
    assert f"the first is few-shot {colors.name} zero-shot 1 shots seed 1" in out
    code, out, _ = rmadapter("plan", *words, "--json")
    found = json.loads(out)
    assert (code, found["left"], len(found["lines"]), len(found["order"])) == (0, 2, 2, 2)
    assert not (tmp_path / "x").exists()
