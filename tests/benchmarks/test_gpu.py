"""benchmarks/gpu.py on a CPU and a tiny model: that all of it runs, and that all formats take the
same step; on a GPU, that a captured step is the eager one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from step import Step

from rmadapter.backbones import Backbone, load_backbone
from tests.helpers.benchmarks import ONCE, Printed, run, tiny_model


def gradients(backbone: Backbone, variant: str, name: str) -> torch.Tensor:
    step = Step(backbone, 3, 2, 0)
    step.optimizer = torch.optim.SGD(step.model.adapters.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in step.model.adapters.parameters()])
    run = gpu.training(step, variant, name)
    for _ in range(20):  # float16 leaves out steps until its scale fits
        run()
        moved = before - torch.cat([p.detach().flatten() for p in step.model.adapters.parameters()])
        if moved.any():
            break
    return moved


def test_all_formats_take_the_same_step(tmp_path: Path) -> None:
    """That of float16 by scaled losses: scaled back wrongly, it would be another one."""
    backbone = load_backbone(tiny_model(tmp_path))
    plain = gradients(backbone, "lean", "fp32")
    limits = {("reference", "fp32"): 1e-4, ("lean", "fp16"): 0.02, ("lean", "bf16"): 0.1}
    for (variant, name), limit in limits.items():
        found = gradients(backbone, variant, name)
        assert float((found - plain).norm() / plain.norm()) < limit, (variant, name)


@pytest.mark.ci
@pytest.mark.parametrize("variant", gpu.MODES)
def test_a_compiled_step_is_the_same(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the compiler, which takes a minute, and is not what is tested."""
    given: list[dict[str, bool]] = []

    def compile(function: Any, *, options: dict[str, bool]) -> Any:
        given.append(options)
        return function

    backbone = load_backbone(tiny_model(tmp_path))
    plain = gradients(backbone, "lean", "fp32")
    monkeypatch.setattr(torch, "compile", compile)
    torch.testing.assert_close(gradients(backbone, variant, "fp32"), plain)
    step = Step(backbone, 3, 2, 0)
    features = gpu.encoding(step, variant, "fp32")()
    torch.testing.assert_close(features, gpu.encoding(step, "lean", "fp32")())
    graphs = variant == "reduce-overhead"
    assert [one.get("triton.cudagraphs", False) for one in given] == [graphs] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: captures a CUDA graph")
@pytest.mark.parametrize(("variant", "times"), [("graph", 4), ("reduce-overhead", 7)])
def test_a_captured_step_is_the_eager_one(  # pragma: no cover: needs a GPU
    variant: str, times: int, tmp_path: Path
) -> None:
    """Capturing a graph runs three steps."""
    backbone = load_backbone(tiny_model(tmp_path)).to(torch.device("cuda"))
    found = []
    for way, count in (("lean", 7), (variant, times)):
        step = Step(backbone, 3, 2, 0, learning_rate=1e-3)
        step.images, step.labels = step.images.cuda(), step.labels.cuda()
        run = gpu.training(step, way, "fp32")
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        found.append(torch.cat([p.detach().flatten() for p in step.model.adapters.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.ci
def test_all_of_it_runs_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    page = tmp_path / "gpu.md"
    sizes = ["--device", "cpu", "--classes", "3", "--batch", "2", "--squares", "16"]
    more = ["--copied", "1", "--no-compile", "--page", str(page), "--json"]
    printed = run(
        gpu, monkeypatch, capsys, *ONCE, "--backbone", tiny_model(tmp_path), *sizes, *more
    )
    result = json.loads(printed)
    rows = {row["what"]: row for row in result["rows"]}
    names = ["lean, fp32", "lean, bf16", "lean, fp16", "graph, fp32", "graph, bf16"]
    steps = [f"step, {name}" for name in names]
    images = [f"images, {name}" for name in names]
    assert list(rows) == [*steps, "step, reference, fp32", *images]
    for name, row in rows.items():
        if "graph" in name:
            assert row["note"] == "RuntimeError: CUDA graphs need a GPU"
        else:
            assert row["roofline_seconds"] > 0
            assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    table = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[-len(rows) :]] == list(rows)


def test_the_roofline_is_the_larger_of_products_and_bytes() -> None:
    card = gpu.Card(torch.device("cpu"), {"fp32": 2.0, "bf16": None}, 100.0)
    assert card.least(gpu.Cost(4_000_000_000, 100), "fp32") == 2
    assert card.least(gpu.Cost(4_000_000_000, 300), "fp32") == 3
    assert card.least(gpu.Cost(1, 1), "bf16") is None


def test_products_and_bytes_are_counted(tmp_path: Path) -> None:
    """Of one block above the first adapted one, in each encoder."""
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert gpu.counted(lambda: a @ b) == 2 * 3 * 5 * 7
    step = Step(load_backbone(tiny_model(tmp_path)), 3, 2, 0, first_block=4)
    states = gpu.frozen(step)
    frozen = sum(one.x.numel() + one.y.numel() for one in states)
    top = [step.model.encoders[side].blocks[-1] for side in ("image", "text")]
    weights = sum(weight.numel() for block in top for weight in block.parameters())
    assert gpu.step_bytes(step, torch.bfloat16, states) == 2 * (frozen + 2 * weights)


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    page = tmp_path / "gpu.md"
    with pytest.raises(SystemExit) as ended:
        run(gpu, monkeypatch, capsys, "--page", str(page))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu.py: no GPU cuda here; --device cpu tries it\n"
    assert not page.exists()
