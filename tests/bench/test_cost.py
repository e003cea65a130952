"""What a bench would cost: counted by hand, measured on a method that sleeps, and on what is not
done yet alone."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.bench import cost as module
from rmadapter.bench.cost import Cost, Timing
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.training.cache import Cache
from tests.helpers.bench_runs import QUICK, Bench, bench, finished_bench
from tests.helpers.shell import Command, rmadapter

__all__ = ["bench", "finished_bench", "rmadapter"]  # fixtures
# Seconds that are powers of two, so that sums tell what was added.
TIMING = Timing(
    frozen=1, fixed=64, step=8, first_use=256, test_set=4096, image=65536, images=4, batch=4,
    first=3,
)  # fmt: skip
# Of base-to-novel with 2 shots: 4 training images in one batch of 16, two epochs, and two sets of 8
# test images.
TRAINED = 4 * 1 + 64 + 2 * 8
TESTED = 2 * 4096 + 16 * 65536
FIRST_USE = 16 * 256


@pytest.fixture
def fixed_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_method", lambda *_: TIMING)
    peaks = cycle([300.0, 1000.0])  # before measuring, and with it

    def peak(device: object) -> dict[str, float | None]:
        return {"peak_mb": next(peaks), "peak_gpu_mb": None}

    monkeypatch.setattr(module, "peak", peak)


def cost(bench: Bench, out: Path, processes: int = 1, **words: Any) -> Cost:
    """The cost of the jobs of `expand`."""
    return module.cost(bench.plan(out, bench.jobs(**words)), processes, progress=False)


def seconds(found: Cost) -> list[float | None]:
    return [line.seconds for line in found.lines]


def test_seconds_are_added_up(fixed_timing: None, bench: Bench, tmp_path: Path) -> None:
    found = cost(bench, tmp_path, methods=["mma", "rmadapter"])
    assert (found.runs, found.left, found.device, found.devices, found.disk) == (4, 4, "cpu", 1, 0)
    # the second seed finds frozen test images
    each = 2 * (TRAINED + TESTED) + FIRST_USE
    assert seconds(found) == [each] * 2
    assert found.hours == pytest.approx(2 * each / 3600)


@pytest.mark.parametrize(
    ("processes", "words", "expected"),
    [
        # in two processes each freezes its own test images
        (2, {"methods": ["mma"]}, 2 * (TRAINED + TESTED + FIRST_USE)),
        # 4 shots are twice the images, and a whole batch of them
        (
            1,
            {"methods": ["mma"], "seeds": [1], "shots": [4]},
            8 * 1 + 64 + 2 * 8 * 2 + TESTED + FIRST_USE,
        ),
        # what has no steps takes as long as it has images
        (
            1,
            {"methods": ["linear-probe"], "seeds": [1], "shots": [4]},
            8 * 1 + 64 * 2 + TESTED + FIRST_USE,
        ),
    ],
    ids=["processes", "more shots", "without steps"],
)
def test_seconds_depend_on_processes_and_shots(
    processes: int, words: Any, expected: float, fixed_timing: None, bench: Bench, tmp_path: Path
) -> None:
    assert seconds(cost(bench, tmp_path, processes, **words)) == [expected]


@pytest.mark.ci
def test_images_that_were_not_drawn_are_frozen_for_every_draw(
    fixed_timing: None, bench: Bench, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(bench.colors / "train", tmp_path / "data" / bench.colors.name))
    left = len([*whole.rglob("*.png")]) - 4 * 2
    found = cost(bench.at(whole), tmp_path / "out", methods=["mma"])
    assert seconds(found) == [2 * (TRAINED + 2 * 4096 + left * (65536 + 256))]


def test_large_activations_are_on_disk(fixed_timing: None, bench: Bench, tmp_path: Path) -> None:
    plan = bench.plan(tmp_path, bench.jobs(methods=["mma"]), cache_memory=0)
    cache = Cache(bench.backbone)
    # the shots of two seeds, and the test images of either half
    expected = 2 * cache.bytes_of(4, 3) + 2 * cache.bytes_of(8, 3)
    found = module.cost(plan, progress=False)
    assert (found.disk, found.memory) == (expected, 10**9)


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_memory_is_what_measuring_took_and_the_activations_that_fit(
    fixed_timing: None, bench: Bench, tmp_path: Path, share: float
) -> None:
    """share: of the room that the activations of the test images need."""
    cache = Cache(bench.backbone)
    train, test = 2 * cache.bytes_of(4, 3), 2 * cache.bytes_of(8, 3)
    room = share * test
    plan = bench.plan(tmp_path, bench.jobs(methods=["mma"]), cache_memory=room / 1e9)
    found = module.cost(plan, progress=False)
    assert (found.disk, found.memory) == (0, pytest.approx(10**9 + train + room, abs=1))


@pytest.mark.parametrize(("on_gpu", "expected"), [(None, 700), (450.0, 450)])
def test_memory_of_a_gpu_is_measured_on_it_or_what_the_process_grew_by(
    fixed_timing: None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    on_gpu: float | None, expected: int,
) -> None:  # fmt: skip
    """It counts from before the backbone is loaded."""
    peak, check, order = module.peak, module.check_images, list[str]()

    def checked(*words: Any) -> None:
        order.append("loaded")
        check(*words)

    def measured(device: Any) -> dict[str, float | None]:
        order.append("measured")
        return {**peak(device), "peak_gpu_mb": on_gpu}

    monkeypatch.setattr(module, "check_images", checked)
    monkeypatch.setattr(module, "peak", measured)
    assert cost(bench, tmp_path, methods=["mma"]).gpu_memory == expected * 10**6
    assert order == ["measured", "loaded", "measured"]


@pytest.mark.ci
def test_gpus_share_the_hours(
    fixed_timing: None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shared_gpus", lambda _: ["0", "1"])
    alone, shared = (cost(bench, tmp_path, count, methods=["mma"]) for count in (1, 4))
    assert (alone.devices, shared.devices) == (1, 2)
    assert shared.hours == pytest.approx(sum(seconds(shared)) / 3600 / 2)


def test_estimated_bytes_are_those_of_held_activations(bench: Bench) -> None:
    images, cache = read_images(bench.colors)["train"], Cache(bench.backbone, progress=False)
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
        return getattr(load_method("zero-shot"), name)

    def fit(self, backbone: Backbone, shots: Any) -> Any:
        time.sleep(0.05 * len(shots.images))
        return self.restore(backbone, shots.known, {})


@pytest.mark.ci
def test_times_are_measured(bench: Bench, tmp_path: Path) -> None:
    slow = bench.plan(tmp_path, bench.jobs(methods=["zero-shot"], seeds=[1]))
    rates = module.time_method(slow.jobs[0], Slow(), slow.lab(), shots=2)  # type: ignore[arg-type]
    assert (rates.images, rates.batch, rates.step, rates.first) == (4, 4, 0, None)
    assert rates.fixed >= 0.2
    ours = bench.plan(tmp_path, bench.jobs(methods=["rmadapter"], seeds=[1]))
    rates = module.time_method(ours.jobs[0], ours.method(ours.jobs[0]), ours.lab(), shots=4)
    assert (rates.images, rates.batch, rates.first) == (8, 8, 3)
    assert min(rates.frozen, rates.step, rates.test_set) > 0


def test_finished_runs_cost_nothing_and_nothing_is_written(
    finished_bench: Path, bench: Bench, tmp_path: Path
) -> None:
    found = cost(bench, finished_bench)
    assert (found.runs, found.left, found.hours, found.order) == (6, 0, 0, ())
    jobs = bench.jobs(methods=["zero-shot", "mma"])
    bench.run(tmp_path, jobs[:1])
    before = sorted(tmp_path.rglob("*"))
    found = cost(bench, tmp_path, methods=["zero-shot", "mma"])
    expected = [("mma", 2, 2), ("zero-shot", 1, 2)]
    assert [(line.method, line.left, line.runs) for line in found.lines] == expected
    assert min(seconds(found)) > 0
    assert len(found.order) == 3
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "values", "reason"),
    [("prompt-kd", {}, "PromptKD"), ("mma", {**QUICK, "first_block": 9}, "blocks")],
)
def test_a_method_that_cannot_be_measured_is_noted(
    method: str, values: Any, reason: str, bench: Bench, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One learns from all images, not from a few; the other does not work on this backbone."""
    plan = replace(
        bench.plan(tmp_path, bench.jobs(methods=[method], seeds=[1])), values={method: values}
    )
    found = module.cost(plan, progress=False)
    assert (found.left, found.unmeasured, found.hours, seconds(found)) == (1, 1, 0, [None])
    error = capsys.readouterr().err
    assert "cannot be measured" in error
    assert reason in error


def test_invalid_benches_are_refused(bench: Bench, tmp_path: Path) -> None:
    images = Path(shutil.copytree(bench.colors / "train", tmp_path / "all"))
    with pytest.raises(UserError, match="no test split"):
        cost(bench.at(images), tmp_path / "out", methods=["zero-shot"], seeds=[1], shots=[6])


@pytest.mark.ci
def test_the_command(rmadapter: Command, bench: Bench, tmp_path: Path) -> None:
    data = ["--datasets", bench.colors.name, "--root", bench.colors.parent]
    model = ["--backbone", bench.backbone.name, "--methods", "zero-shot", "--set", "device=cpu"]
    words = ["bench", "few-shot", *data, *model, "--shots", "1,2", "--seeds", "1", "--plan"]
    code, out, _ = rmadapter(*words, "--out", tmp_path / "x")
    assert code == 0
    assert "2 of 2 runs are left: 0.00 hours on 1 x cpu" in out
    assert f"few-shot {bench.colors.name} zero-shot 1 shots seed 1" in out
    assert "could not be measured" not in out
    code, out, _ = rmadapter(*words, "--out", tmp_path / "x", "--json")
    found = json.loads(out)
    assert (code, found["left"], len(found["lines"]), len(found["order"])) == (0, 2, 2, 2)
    assert 0 <= found["gpu_memory"] <= found["memory"]
    code, out, _ = rmadapter(*words, "--methods", "mma", "--out", tmp_path / "x")
    assert code == 0  # mma starts at block 5 of a backbone that has four
    assert "unknown" in out
    assert "not counted, as they could not be measured: 2" in out
    assert not (tmp_path / "x").exists()
