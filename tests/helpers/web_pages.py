"""What tests of exported pages share."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from browser import BROWSER, STATE, Tab, served, tab
from onnx import TensorProto, helper

from rmadapter.deploy.export import web
from rmadapter.deploy.export.runtime import GRAPH, LABELS, TRANSFORM
from rmadapter.errors import UserError
from rmadapter.support.files import write_sums

__all__ = ["NAMES", "STATE", "Tab", "axe", "engine", "needs_browser", "served", "tab", "write_site"]

NAMES = [
    f"a class whose name is rather long, as those of some data sets are, number {i}"
    for i in range(17)
]
NAMES += [
    "تفاحة خضراء كبيرة",
    "非常に長い日本語のクラス名と緑色のりんご",
    "Donaudampfschifffahrtsgesellschaftskapitän",
]
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


def engine() -> None:
    """Skips where the page's engine cannot be had."""
    try:
        web.engine()
    except UserError as error:
        pytest.skip(str(error))


def write_site(out: Path) -> Path:
    """A page around a small graph, which says the more to its class 1 the redder an image is."""
    engine()
    weights = np.zeros((3, len(NAMES)), np.float32)
    weights[:, 1], weights[0, 18], weights[2, 17] = (9, -9, -9), 8, 5
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])
    shares = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, ["batch", len(NAMES)]
    )
    graph = helper.make_graph(
        nodes, "red", [pixels], [shares], [onnx.numpy_helper.from_array(weights, "weights")]
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), out / GRAPH)
    (out / LABELS).write_text(json.dumps(NAMES))
    numbers = {"size": 32, "resize": "shortest", "interpolation": "bicubic", "fill": 0}
    (out / TRANSFORM).write_text(json.dumps(numbers | {"mean": [0, 0, 0], "std": [1, 1, 1]}))
    write_sums(out, (GRAPH, LABELS, TRANSFORM))
    web.add_page(out)
    return out


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core, which knows the rules of accessible pages, by npm."""
    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    command = [
        str(npm),
        "install",
        "axe-core@4.11.0",
        "--prefix",
        str(folder),
        "--ignore-scripts",
        "--silent",
    ]
    if npm is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("npm cannot fetch axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
