"""A run is exported once for an engine, and again when it is another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from rmadapter.checkpoint import load, save
from rmadapter.deploy import export as exporting
from rmadapter.deploy.serve.cached import cached
from rmadapter.deploy.serve.served import Wish, open_served
from rmadapter.errors import UserError

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


def test_once_a_run(finished: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    wish = Wish(run, "onnx", 1, tiny_clip.name)
    served = open_served(wish)
    assert (served.features, served.facts["engine"]) == (True, "onnx")
    assert served.facts["accuracy"] == open_served(wish._replace(engine="")).facts["accuracy"]
    (place,) = (tmp_path / "cache/serve").iterdir()
    assert not [path for path in run.iterdir() if path.suffix == ".onnx"]
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "export", None)  # it is not asked
        assert cached(run, wish) == place
    saved = load(run, tiny_clip)
    save(run, saved.fitted, saved.name, labels=("a", "b", "c", "d"))
    assert open_served(wish).labels == ("a", "b", "c", "d")
    assert len(list((tmp_path / "cache/serve").iterdir())) == 2


def test_a_damaged_run_is_not_exported(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="not the file that SHA256SUMS belongs to"):
        cached(run, Wish(run, "onnx", 1, tiny_clip.name))
