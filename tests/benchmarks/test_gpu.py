"""benchmarks/gpu.py on a CPU and a tiny model: that all of it runs, and that all formats take the
same step."""

from __future__ import annotations

from pathlib import Path

import gpu
import torch
from step import Step

from rmadapter.backbones import Backbone, load_backbone
from tests.helpers.benchmarks import tiny_model


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
