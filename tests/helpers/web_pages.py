"""Serve pages to a browser, and check how they look and what screen readers hear."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest
from browser import BROWSER, STATE, Tab, served, tab
from onnx import TensorProto, helper

from rmadapter.answers.decider import Decider, write_decider
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.errors import UserError
from rmadapter.export import web
from rmadapter.export.engines import GRAPH
from rmadapter.export.runtime import LABELS, TRANSFORM
from rmadapter.support.files import write_sums

__all__ = ["STATE", "Tab", "served", "tab"]  # for tests

NAMES = [
    f"a class whose name is rather long, as those of some data sets are, number {i}"
    for i in range(17)
]
NAMES += [
    "تفاحة خضراء كبيرة",
    "非常に長い日本語のクラス名と緑色のりんご",
    "Donaudampfschifffahrtsgesellschaftskapitän",
]
Test = TypeVar("Test", bound=Callable[..., None])
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def needs_browser(test: Test) -> Test:
    """Mark a test in a browser: for CI, as these take long."""
    marked: Test = pytest.mark.ci(pytest.mark.skipif(BROWSER is None, reason="no Chromium")(test))
    return marked


def engine() -> None:
    """Skip where the page's engine cannot be fetched."""
    try:
        web.engine()
    except UserError as error:
        pytest.skip(str(error))


def write_site(out: Path) -> Path:
    """Write a page around a small graph: the redder an image, the likelier its class 1, and the
    lighter, the farther from its classes."""
    engine()
    weights = np.zeros((3, len(NAMES)), np.float32)
    weights[:, 1], weights[0, 18], weights[2, 17] = (9, -9, -9), 8, 5
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["distance"], keepdims=0),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])
    shape = ["batch", len(NAMES)]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    distance = helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["batch"])
    matrix = onnx.numpy_helper.from_array(weights, "weights")
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(nodes, "red", [pixels], [output, distance], [matrix, axes])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), out / GRAPH)
    (out / LABELS).write_text(json.dumps(NAMES), encoding="utf-8", newline="\n")
    numbers = {"size": 32, "resize": "shortest", "interpolation": "bicubic", "fill": 0}
    (out / TRANSFORM).write_text(
        json.dumps(numbers | {"mean": [0, 0, 0], "std": [1, 1, 1]}), encoding="utf-8", newline="\n"
    )
    shares = [0.02, 0.05, *np.linspace(0.06, 0.99, 58).round(6).tolist()]
    calibration = Calibration((*shares,), (*range(len(NAMES)),) * 3, len(NAMES), "folds")
    sure, far = np.linspace(0.5, 0.99, 60).round(6), np.linspace(0, 0.45, 60).round(6)
    rejection = RejectionScore((*sure.tolist(),), (*far.tolist(),), "folds")
    tree = Taxonomy.of({NAMES[1]: "warm", NAMES[18]: "warm"}, NAMES)
    write_decider(out, Decider(NAMES, len(NAMES), calibration, rejection, tree))
    write_sums(out, sorted(file.name for file in out.iterdir()))
    web.add_page(out)
    return out


def until_count(page: Tab, selector: str, count: int) -> None:
    page.until(f"document.querySelectorAll({json.dumps(selector)}).length === {count}")


def check_layout(page: Tab, width: int, ignored: str = ".heard") -> None:
    """Check that nothing is cut off on a screen of this width, and no list item is huge."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page("Emulation.setDeviceMetricsOverride", **size)
    assert page.script("document.documentElement.scrollWidth") <= width
    every = f"[...document.querySelectorAll('main *:not({ignored})')]"
    is_cut = "(e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1"
    assert page.script(f"{every}.filter({is_cut}).map((e) => e.outerHTML)") == []
    heights = page.script("[...document.querySelectorAll('li')].map((e) => e.offsetHeight)")
    assert all(height < 900 for height in heights)


def check_with_axe(page: Tab, axe: str) -> None:
    """Check that axe-core reports nothing, and that it looked at colours."""
    page.script(f"{axe}; 0")
    report = page.script("axe.run()")
    assert [(each["id"], each["nodes"][0]["html"]) for each in report["violations"]] == []
    assert "color-contrast" in [each["id"] for each in report["passes"]]


def set_color_scheme(page: Tab, scheme: str) -> None:
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fetch axe-core by npm; it knows the rules of accessible pages."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    options = ["--prefix", str(folder), "--ignore-scripts", "--silent"]
    command = [str(npm), "install", "axe-core@4.11.0", *options]
    if npm is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("npm cannot fetch axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
