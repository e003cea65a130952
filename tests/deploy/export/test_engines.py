"""What computes an exported graph, and what it refuses to open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.record import read_record
from rmadapter.deploy.export.engines import open_torch
from rmadapter.deploy.export.folder import export
from rmadapter.errors import UserError


def test_a_pickle_in_a_graph_of_torch_is_not_opened(tmp_path: Path) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * pixels

    program = torch.export.export(Doubled(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "model.pt2")  # with its example, pickled
    with pytest.raises(UserError, match=r"model\.pt2"):
        open_torch(tmp_path / "model.pt2", 1)
    program.example_inputs = None
    torch.export.save(program, tmp_path / "model.pt2")
    run, size = open_torch(tmp_path / "model.pt2", 0)
    assert size == 2
    assert run(np.ones(2, np.float32))[0].tolist() == [2, 2]


def test_litert(finished: Path, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="pip install 'rmadapter[litert]'")
    saved = load(finished, read_record(finished / "run.json").backbone.name)
    facts = export(finished, saved, tmp_path / "model", data=colors, to="litert")
    assert facts["files"] == ["model.tflite"]
    assert facts["parity"]["same"] == 1
    assert facts["parity"]["difference"] <= 1e-4
    with pytest.raises(UserError, match="--embeddings"):
        export(finished, saved, tmp_path / "other", data=colors, to="litert", embeddings=True)
