"""A run is exported once for an engine, and again when it is another one."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.deploy.export import folder as exporting
from rmadapter.deploy.serve import export_cache as caching
from rmadapter.deploy.serve.export_cache import cached
from rmadapter.deploy.serve.model import Wish, open_served
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from tests.helpers.shots import shots_of

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


@pytest.mark.slow
def test_once_a_run(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    (run / "run.json").unlink()  # over which no model is saved
    save(run, saved.fitted, saved.name, labels=("a", "b", "c", "d"))
    assert open_served(wish).labels == ("a", "b", "c", "d")
    assert len(list((tmp_path / "cache/serve").iterdir())) == 2


def test_a_second_server_waits_for_the_first_one_s_export(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    wish, made = Wish(finished, "onnx", 1, tiny_clip.name), []

    def slowly(folder: Path, wish: Wish, place: Path) -> None:
        made.append(place)
        time.sleep(0.5)
        place.mkdir()

    monkeypatch.setattr(caching, "_export", slowly)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: cached(finished, wish), range(2))
    assert made == [first]
    assert first == second
    monkeypatch.setattr(caching, "PATIENCE", 0)
    first.rmdir()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(cached, finished, wish) for _ in range(2)]
        faults = [str(answer.exception()) for answer in answers if answer.exception()]
    assert len(faults) == 1
    assert "another server has been exporting it" in faults[0]


def test_another_code_of_a_method_from_outside_is_another_export(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exporting, "export", lambda folder, saved, place, **_: place.mkdir())
    code = Path(shutil.copy(Path(__file__).parents[2] / "helpers/guests.py", tmp_path))
    name = f"{code}:Guest"
    save(tmp_path / "run", load_method(name).fit(tiny_clip, shots_of(tiny_clip)), name)
    wish = Wish(tmp_path / "run", "onnx", 1, tiny_clip.name, name)
    first = cached(tmp_path / "run", wish)
    assert cached(tmp_path / "run", wish) == first
    code.write_text(code.read_text() + "# answers otherwise now\n")
    assert cached(tmp_path / "run", wish) != first


def test_a_damaged_run_is_not_exported(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="does not match SHA256SUMS"):
        cached(run, Wish(run, "onnx", 1, tiny_clip.name))
