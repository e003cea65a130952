"""Every benchmark on a tiny model: its JSON. What it measures is never asserted: machines differ."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
import demo_fit
import figures
import inference
import options
import overhead
import peers
import public
import pytest
import scaling
import torch
import train_step
from PIL import Image
from step import Step

import predict
from rmadapter.backbones import load_backbone
from rmadapter.data.read import ImageSet
from tests.helpers.benchmarks import Printed, run
from tests.helpers.models import CLIP_TEXT, write_model
from tests.helpers.rounding import FACTOR, SLACK, relative_errors
from tests.helpers.shots import noisy_colors
from tests.helpers.slow import slow_except

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (demo_fit, inference, options, overhead, peers, predict, public, scaling, train_step)


def test_rounds_are_taken_in_turns_and_end_with_the_budget() -> None:
    calls: list[str] = []
    seconds = common.interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 5, budget=0
    )
    assert (
        calls == ["a", "b"] * 4
    )  # one round of warming up, then the three that are always measured
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the peak of a part of a process's life"
)
def test_peak_is_what_was_held_at_once_beyond_what_was_held_before() -> None:
    torch.ones(50_000_000)  # 200 MB, before the start
    before = common.held()
    kept = torch.ones(25_000_000)  # 100 MB, what is prepared

    def three_times_40_mb() -> None:
        for _ in range(3):
            torch.ones(10_000_000)

    most = common.peak_beyond(before, three_times_40_mb)
    assert most is not None
    assert 100 + 35 < most < 100 + 80
    del kept


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a backbone of five blocks, so that one of them is adapted by default."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 5}
    model = {"vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "layers": 5}}
    folder = write_model(tmp_path_factory.mktemp("benchmarks") / "model", model)
    return ["--repeat", "1", "--seed", "3", "--allocator", "default", "--backbone", str(folder)]


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
        assert result["ratio"] == pytest.approx(
            result["reference_seconds"] / result["lean_seconds"]
        )
        rate = result["matmul_gflops"] * 1e9
        assert result["matmul_share"] == pytest.approx(
            result["lean_flops"] / result["lean_seconds"] / rate
        )
        assert {"cpu", "cores", "threads", "memory_gb", "torch", "python"} <= {*result["machine"]}
    assert [result["prompts_at_once"] for result in results] == [3, 4]
    assert "matmul share" in run(
        train_step, monkeypatch, capsys, *tiny, "--batch", "2", "--classes", "3"
    )


@pytest.mark.slow
def test_overhead_counts_the_branch_and_cites_the_paper(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    result = json.loads(
        run(overhead, monkeypatch, capsys, *tiny, "--batch", "2", "--classes", "3", "--json")
    )
    # One adapted block (the fifth) in either encoder: r x r and r x d weights with their biases.
    assert result["added_parameters"] == sum(32 * 32 + 32 + 32 * d + d for d in (32, 48))
    assert result["paper"] == {
        "added_parameters": 320_000,
        "memory_percent": 3.0,
        "time_percent": 5.0,
    }
    for forward in ("lean", "reference"):
        ratio = result[forward]["with_seconds"] / result[forward]["without_seconds"]
        assert result[forward]["time_percent"] == pytest.approx(100 * (ratio - 1))
    assert "paper" in run(overhead, monkeypatch, capsys, *tiny, "--batch", "2", "--classes", "3")


@pytest.mark.slow
def test_inference_compares_every_engine_with_open_clip(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """But for the compiler, which takes a minute, and is not what is tested."""
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(inference.int8, "LARGE", 2**10)
    given = (
        *tiny,
        "--classes",
        "3",
        "--batches",
        "1",
        "3",
        "--cores",
        "1",
        "--size",
        "32",
        "--json",
    )
    results = json.loads(run(inference, monkeypatch, capsys, *given))
    rows = {(row["engine"], row["adapters"], row["batch"]): row for row in results}
    assert len(rows) == len(results) == 2 * len(inference.kinds())
    for (name, adapters, batch), row in rows.items():
        plain = rows[inference.REFERENCE, False, batch]
        assert row["times"] == pytest.approx(
            row["images_per_cpu_second"] / plain["images_per_cpu_second"]
        )
        assert row["images_per_second"] <= row["images_per_second_at_best"]
        assert row["p50_ms"] <= row["p95_ms"]
        exact = "fp32" in name or "compiled" in name
        assert (row["difference"] < 1e-5) == exact, (name, adapters)
    assert "(1.00)" in figures.inference(results)


def test_predict_compares_one_pass_with_two(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    given = (*tiny, "--images", "5", "--pixels", "40", "30", "--classes", "3")
    result = json.loads(run(predict, monkeypatch, capsys, *given, "--json"))
    seconds = {row["run"]: row["seconds"] for row in result["rows"]}
    assert list(seconds) == ["file", "model", "predict", "decode", "encode", "prompts", "twice"]
    assert result["share_of_model"] == pytest.approx(seconds["model"] / seconds["file"])
    assert result["ratio"] == pytest.approx(seconds["twice"] / seconds["predict"])
    parts = seconds["decode"] + seconds["encode"] + seconds["prompts"]
    assert result["share_of_parts"] == pytest.approx(parts / seconds["predict"])
    assert all(
        row["images_per_second"] == pytest.approx(5 / row["seconds"]) for row in result["rows"]
    )
    assert result["largest_difference"] < 1e-4
    assert "images/s" in figures.predict(result)


def test_options_compares_losses(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """The compiler itself takes a minute, and is not what is tested."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    given = (*tiny, "--batch", "2", "--classes", "3", "--json")
    result = json.loads(run(options, monkeypatch, capsys, *given))
    rows = {row["option"]: row for row in result["rows"]}
    assert list(rows) == ["float32", "bfloat16", "compiled"]
    assert rows["bfloat16"]["loss"] == pytest.approx(rows["float32"]["loss"], rel=0.1)
    assert rows["bfloat16"]["loss"] != rows["float32"]["loss"] == rows["compiled"]["loss"]
    assert result["compile_seconds"] > 0


def test_demo_fit_compares_the_last_loss(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    images: dict[str, ImageSet] = {"train": noisy_colors(2)}
    monkeypatch.setattr(demo_fit, "load_openmoji", lambda: images)
    result = json.loads(run(demo_fit, monkeypatch, capsys, *tiny, "--epochs", "2", "--json"))
    assert result["images"] == 4  # two of each base class
    assert result["lean_last_loss"] == pytest.approx(result["reference_last_loss"], rel=1e-3)
    assert result["reference_seconds"] > 0


@pytest.mark.parametrize("study", slow_except(["classes", "shots", "depth"], "classes"))
def test_scaling_writes_its_points_and_a_plot_of_all_studies(
    study: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    kept = {
        "points": [
            {"size": 8, "lean_seconds": 1.0, "lean_peak_mb": None},
            {"size": 9, "lean_seconds": 1.5},
        ]
    }
    (tmp_path / "scaling.json").write_text(json.dumps({"size": kept}))
    given = (
        *tiny,
        "--batch",
        "2",
        "--classes",
        "3",
        "--study",
        study,
        "--points",
        "1",
        "2",
        "--out",
        str(tmp_path),
    )
    assert run(scaling, monkeypatch, capsys, *given) == ""
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["size"] == kept
    assert [point[study] for point in found[study]["points"]] == [1, 2]
    with Image.open(tmp_path / "scaling.png") as plot:
        plot.verify()


def test_a_resized_backbone_takes_images_of_the_new_size() -> None:
    small = scaling.resized(load_backbone("ViT-S-32-alt/none"), 64)
    assert small.model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 256)  # type: ignore[operator]


def test_a_fresh_process_gives_its_json(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))")
    same = argparse.Namespace(backbone="pocket", seed=3, allocator="keep", threads=1)
    found = common.in_fresh_process(str(script), same, "--classes", "3")
    assert " ".join(found) == "--backbone pocket --seed 3 --threads 1 --allocator keep --classes 3"


@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_help_says_what_is_measured(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    with pytest.raises(SystemExit):
        run(module, monkeypatch, capsys, "--help")
    assert module.__doc__.split("\n")[0] in capsys.readouterr().out


def test_the_figures_of_the_readme_are_those_of_the_result_files() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert figures.updated(text) == text, "run python benchmarks/figures.py"
    assert "share of matmul rate" in figures.figures(figures.RESULTS)
