"""Every benchmark on a tiny model: its JSON. What it measures is never asserted: machines
differ."""

from __future__ import annotations

import json
import mmap
import sys

import common
import figures
import inference
import pytest
import torch
import train_step
from step import Step

from rmadapter.backbones import load_backbone
from tests.helpers.benchmarks import ONCE, Printed, run, tiny_model
from tests.helpers.rounding import FACTOR, SLACK, relative_errors


def test_rounds_are_taken_in_turns_and_end_with_the_budget() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = common.interleaved(functions, 5, budget=0)
    # one round of warming up, then the three that are always measured
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the peak of a part of a run")
def test_peak_is_what_was_held_at_once_beyond_what_was_held_before() -> None:
    torch.ones(50_000_000)  # 200 MB, before the start
    before = common.held()
    kept = torch.ones(25_000_000)  # 100 MB, what is prepared

    def three_times_40_mb() -> None:
        for _ in range(3):
            with mmap.mmap(-1, 40_000_000) as pages:  # new ones, not what was freed before
                pages[:: mmap.PAGESIZE] = b"x" * len(range(0, len(pages), mmap.PAGESIZE))

    most = common.peak_beyond(before, three_times_40_mb)
    assert most is not None
    assert 100 + 35 < most < 100 + 80
    del kept


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*ONCE, "--backbone", tiny_model(tmp_path_factory.mktemp("benchmarks"))]


def rounding_of(model: str, classes: int) -> float:
    """What two float32 passes may differ by: each by its error against float64, where the
    reference's is measured."""
    step, in_float64 = (Step(load_backbone(model), classes, 2, 3) for _ in range(2))
    in_float64.model.double()
    in_float64.images = in_float64.images.double()
    plain, truth = step.gradients("reference"), in_float64.gradients("reference")
    return (1 + FACTOR) * max(relative_errors(plain, truth, 1e-4).values()) + SLACK


@pytest.mark.slow
def test_train_step_prints_one_object_per_class_count(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    given = (*tiny, "--batch", "2", "--classes", "3", "4")
    results = json.loads(run(train_step, monkeypatch, capsys, *given, "--json"))
    assert [result["classes"] for result in results] == [3, 4]
    for result in results:
        assert all(result[key] > 0 for key in train_step.KEYS if "peak" not in key)
        assert result["max_gradient_difference"] <= rounding_of(tiny[-1], result["classes"])
        seconds = result["lean_seconds"]
        assert result["ratio"] == pytest.approx(result["reference_seconds"] / seconds)
        share = result["lean_flops"] / seconds / (result["matmul_gflops"] * 1e9)
        assert result["matmul_share"] == pytest.approx(share)
        assert {"cpu", "cores", "threads", "memory_gb", "torch", "python"} <= {*result["machine"]}
    assert [result["prompts_at_once"] for result in results] == [3, 4]
    one = (*tiny, "--batch", "2", "--classes", "3")
    assert "matmul share" in run(train_step, monkeypatch, capsys, *one)


@pytest.mark.slow
def test_inference_compares_every_engine_with_open_clip(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """But for the compiler, which takes a minute, and is not what is tested."""
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(inference.int8, "MIN_WEIGHT_SIZE", 2**10)
    sizes = ("--classes", "3", "--batches", "1", "3", "--cores", "1", "--size", "32")
    given = (*tiny, *sizes, "--json")
    results = json.loads(run(inference, monkeypatch, capsys, *given))
    rows = {(row["engine"], row["adapters"], row["batch"]): row for row in results}
    assert len(rows) == len(results) == 2 * len(inference.kinds())
    for (name, adapters, batch), row in rows.items():
        plain = rows[inference.REFERENCE, False, batch]
        times = row["images_per_cpu_second"] / plain["images_per_cpu_second"]
        assert row["times"] == pytest.approx(times)
        assert row["images_per_second"] <= row["images_per_second_at_best"]
        assert row["p50_ms"] <= row["p95_ms"]
        exact = "fp32" in name or "compiled" in name
        assert (row["difference"] < 1e-5) == exact, (name, adapters)
    assert "(1.00)" in figures.inference(results)


def test_the_figures_of_the_readme_are_those_of_the_result_files() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert figures.updated(text, figures.SECTIONS) == text, "run python benchmarks/figures.py"
    assert "share of matmul rate" in figures.figures(figures.RESULTS, figures.SECTIONS)
