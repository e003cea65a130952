"""A run is exported into the cache once for each of its states, whoever asks."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.export import cached_export, folder as exporting
from rmadapter.export.runtime import Model
from rmadapter.methods import load_method
from tests.helpers import external_methods
from tests.helpers.shots import shots_of

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached exports, in a cache of this test."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/serve"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a slow stand-in for the export has written."""
    written: list[Path] = []

    def write_slowly(stage: Path, *_: object) -> None:
        written.append(stage)
        time.sleep(0.5)

    monkeypatch.setattr(exporting, "write_export", write_slowly)
    return written


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.slow
def test_a_run_is_exported_once_for_each_of_its_states(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, cache: Path
) -> None:
    run = copied(finished, tmp_path / "run")
    place = cached_export(run, "onnx", tiny_clip.name)
    assert Model(place).grey.features is not None
    assert not list(run.glob("*.onnx"))
    assert [*cache.iterdir()] == [place]
    before = place.stat().st_mtime_ns
    assert cached_export(run, "onnx", tiny_clip.name) == place
    assert place.stat().st_mtime_ns == before
    saved = load(run, tiny_clip)
    (run / "run.json").unlink()  # no model is saved over a record
    save(run, saved.fitted, saved.name, labels=("a", "b", "c", "d"))
    assert Model(cached_export(run, "onnx", tiny_clip.name)).labels == ["a", "b", "c", "d"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.ci
def test_two_wait_for_one_export(
    finished: Path, tiny_clip: Backbone, cache: Path, stages: list[Path]
) -> None:
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(cached_export, finished, "onnx", tiny_clip.name) for _ in range(2)]
        first, second = (call.result() for call in calls)
    assert first == second
    assert len(stages) == 1


def test_a_changed_custom_method_is_exported_again(
    tiny_clip: Backbone, tmp_path: Path, cache: Path, stages: list[Path]
) -> None:
    code = Path(shutil.copy(external_methods.__file__, tmp_path))
    name, run = f"{code}:ExternalMethod", tmp_path / "run"
    save(run, load_method(name).fit(tiny_clip, shots_of(tiny_clip)), name)
    first = cached_export(run, "onnx", tiny_clip.name, name)
    assert cached_export(run, "onnx", tiny_clip.name, name) == first
    code.write_text(
        code.read_text(encoding="utf-8") + "# answers otherwise now\n", encoding="utf-8"
    )
    assert cached_export(run, "onnx", tiny_clip.name, name) != first
    assert len(stages) == 2


@pytest.mark.ci
def test_a_half_saved_run_is_refused_although_its_export_is_cached(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, cache: Path, stages: list[Path]
) -> None:
    run = copied(finished, tmp_path / "run")
    place = cached_export(run, "onnx", tiny_clip.name)
    (run / "SHA256SUMS").unlink()  # first of all
    assert cached_export(run, "onnx", tiny_clip.name) == place
    (run / "model.safetensors").write_bytes(b"of the next model")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        cached_export(run, "onnx", tiny_clip.name)


def test_a_damaged_run_is_not_exported(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="SHA256SUMS"):
        cached_export(run, "onnx", tiny_clip.name)
