"""A method as one graph answers as the method does, whatever the backbone's kind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.export import graph
from rmadapter.methods import load_method
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.training.contract import Fitted, Known
from tests.helpers.shell import limited_file_size
from tests.helpers.shots import noise_images, pixels_of, shots_of
from tests.helpers.slow import slow_except

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

FEW = {"epochs": 1, "batch_size": 4}
UPPER = {"first_block": 3}
METHODS: dict[str, dict[str, Any]] = {
    "linear-probe": {},
    "lp-plus-plus": FEW,
    "biclip": FEW,
    "prolip": FEW,
    "text-refiner": FEW,
    "2sfs": {"iterations": 2, "batch_size": 4},
    "skip-tuning": FEW,
    "full-finetune": FEW,
    "tip-adapter-f": FEW,
    "clip-lora": {"iterations": 2, "batch_size": 4},
    "maple": FEW,
    "dept": FEW,
    "mmrl": {**FEW, **UPPER},
    "prompt-kd": {**FEW, "teaching": 1},
    "lweib": {**FEW, "scale": 0.3},
    "heba": {**FEW, "scale": 0.3},
    "mail": FEW,
    "mma": {**FEW, **UPPER},
    "rmadapter": {**FEW, **UPPER},
    "rmadapter-plus": {**FEW, **UPPER},
}


def fitted_by(name: str, backbone: Backbone, **settings: Any) -> Fitted:
    return load_method(name, settings).fit(backbone, shots_of(backbone, noise_images(8)))


def ask(model: Any, pixels: Tensor, some: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    parts = [session.run(None, {"pixels": part.numpy()})[0] for part in pixels.split(some)]
    return np.concatenate(parts)


def answers(fitted: Fitted, pixels: Tensor) -> np.ndarray:
    return fitted.answers({"": fitted.score()}, pixels)[""].numpy()


@pytest.mark.ci
@pytest.mark.parametrize("name", slow_except(METHODS, "linear-probe"))
def test_every_method_by_the_same_way(
    tiny_clip: Backbone, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And in silence, unlike the exporter of torch itself."""
    fitted = fitted_by(name, tiny_clip, **METHODS[name])
    pixels = pixels_of(tiny_clip, noise_images(5, seed=1))
    capfd.readouterr()
    model = graph.trace(fitted, fitted.classes)
    assert capfd.readouterr() == ("", "")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == graph.OPSET
    for some in (1, 5):
        assert np.abs(ask(model, pixels, some) - answers(fitted, pixels)).max() < 1e-5


@pytest.mark.ci
@pytest.mark.parametrize("kind", slow_except(["tiny_siglip", "tiny_eva", "tiny_hf"], "tiny_siglip"))
def test_every_kind_of_backbone(kind: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(kind)
    fitted = fitted_by("rmadapter", backbone, **FEW, **UPPER)
    pixels = pixels_of(backbone, noise_images(3))
    model = graph.trace(fitted, fitted.classes)
    assert np.abs(ask(model, pixels, 3) - answers(fitted, pixels)).max() < 1e-5


@pytest.mark.slow
def test_method_with_a_batch_of_one(tiny_hf: Backbone) -> None:
    """CoCoOp: its text encoder comes along, and the graph takes one image at a time."""
    fitted = fitted_by("cocoop", tiny_hf, **{**FEW, "batch_size": 1})
    model = graph.trace(fitted, fitted.classes)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    pixels = pixels_of(tiny_hf, noise_images(3))
    assert np.abs(ask(model, pixels, 1) - answers(fitted, pixels)).max() < 1e-5


def zero_shot(backbone: Backbone) -> Fitted:
    return ZeroShot().restore(backbone, Known(("cat", "dog")), {})


@pytest.mark.ci
def test_untraceable_methods_are_refused(tiny_clip: Backbone) -> None:
    def leaves_torch(states: States) -> Tensor:
        return torch.from_numpy(states.features.numpy())[:, :2]

    fitted = replace(zero_shot(tiny_clip), for_classes=lambda names: leaves_torch)
    with pytest.raises(UserError, match=r"^zero-shot CLIP .* ONNX graph \(.+\)$"):
        graph.trace(fitted, ("cat", "dog"))


@pytest.mark.slow
def test_half_and_external_weights(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, pixels = zero_shot(tiny_clip), pixels_of(tiny_clip, noise_images(3))
    model = graph.trace(fitted, fitted.classes)
    half = graph.in_half(model)
    assert half.ByteSize() < 0.6 * model.ByteSize()
    difference = np.abs(ask(half, pixels, 3) - answers(fitted, pixels)).max()
    assert 1e-7 < difference < 1e-2
    whole = ask(model, pixels, 3)
    monkeypatch.setattr(graph, "MAX_GRAPH_BYTES", 1000)
    graph.write(model, tmp_path / "model.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", graph.EXTERNAL_WEIGHTS}
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert np.array_equal(session.run(None, {"pixels": pixels.numpy()})[0], whole)


def products(model: Any) -> tuple[int, int]:
    """How many there are, and numbers in all weights."""
    count = sum(node.op_type in ("MatMul", "Gemm") for node in model.graph.node)
    return count, sum(int(np.prod(weight.dims)) for weight in model.graph.initializer)


def test_openvino_on_a_full_disk_gives_an_error(tiny_clip: Backbone, tmp_path: Path) -> None:
    """At the start of the weights and at their end."""
    pytest.importorskip("openvino", reason="pip install 'rmadapter[openvino]'")
    model = graph.trace(zero_shot(tiny_clip), ("cat", "dog"))
    graph.write(model, tmp_path / graph.GRAPH)
    graph.write_openvino(tmp_path, "fp32")
    size = (tmp_path / graph.WEIGHTS).stat().st_size
    for limit in (1000, size - 1):
        graph.write(model, tmp_path / graph.GRAPH)
        with limited_file_size(limit), pytest.raises(OSError, match="disk"):
            graph.write_openvino(tmp_path, "fp32")


@pytest.mark.parametrize("fault", [RuntimeError("no space"), OSError("no space")])
def test_litert_on_a_full_disk_gives_an_error(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """By a stand-in for the library, whose newer versions write files in C++."""

    class Converted:
        def export(self, path: str) -> None:
            raise fault

    library = SimpleNamespace(convert=lambda module, pixels: Converted())
    monkeypatch.setitem(sys.modules, "litert_torch", library)
    with pytest.raises(OSError, match="no space"):
        graph.write_litert(zero_shot(tiny_clip), ("cat", "dog"), tmp_path / "model.tflite")


@pytest.mark.slow
def test_low_rank_updates_and_maps_of_tokens_are_folded(tiny_clip: Backbone) -> None:
    plain, weights = products(graph.trace(zero_shot(tiny_clip), ("cat", "dog")))
    counts = {}
    for name in ("clip-lora", "mmrl"):
        fitted = fitted_by(name, tiny_clip, **METHODS[name])
        model = graph.trace(fitted, fitted.classes)
        counts[name] = products(model)
        constants = {weight.name for weight in model.graph.initializer}
        for node in model.graph.node:
            assert node.op_type != "Transpose" or node.input[0] not in constants
    # Three products more: in the top block query, key and value are not one product, and none runs
    # for all tokens.
    assert counts["clip-lora"][0] <= plain + 3
    assert counts["clip-lora"][1] == pytest.approx(weights, abs=100)
    assert counts["mmrl"][0] <= plain + 10
