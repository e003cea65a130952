"""A finished run, loaded and exported once for all tests of deploy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.backbones import Backbone


@pytest.fixture(scope="session")
def saved(finished: Path, tiny_clip: Backbone) -> Saved:
    return load(finished, tiny_clip)


@pytest.fixture(scope="session")
def exported(
    finished: Path, saved: Saved, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ONNX export with features."""
    for needed in ("onnxruntime", "onnxscript"):
        pytest.importorskip(needed, reason="pip install 'rmadapter[export]'")
    from rmadapter.deploy.export.folder import export

    out = tmp_path_factory.mktemp("exports") / "model"
    export(finished, saved, out, data=colors, command="as tested", embeddings=True)
    return out
