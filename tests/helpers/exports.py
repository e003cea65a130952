"""An export made by hand: its probabilities are a softmax of the mean of each colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rmadapter.answers.decider import Decider, write_decider
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.export.engines import GRAPH
from rmadapter.export.runtime import LABELS, TRANSFORM

NAMES = ["red", "=green", "3"]


def write_export(folder: Path, deciding: bool = False) -> Path:
    """Write an export. deciding: whether it promises errors, rejects images and has parents."""
    folder.mkdir(exist_ok=True)
    write_graph(folder / GRAPH, distances=deciding)
    (folder / LABELS).write_text(json.dumps(["red", "=green", 3]), encoding="utf-8", newline="\n")
    facts = {"size": 8, "resize": "shortest", "interpolation": "bicubic"}
    (folder / TRANSFORM).write_text(
        json.dumps({**facts, "mean": [0] * 3, "std": [1] * 3}), encoding="utf-8", newline="\n"
    )
    if deciding:
        shares = np.linspace(0.2, 0.9, 48).round(6).tolist()
        calibration = Calibration((*shares,), tuple(i % 3 for i in range(48)), 3, "held out")
        rejection = RejectionScore((*shares,), (*shares,), "held out")
        tree = Taxonomy.of({"red": "warm", "=green": "cold", "3": "cold"}, NAMES)
        write_decider(folder, Decider(NAMES, 3, calibration, rejection, tree))
    return folder


def write_graph(file: Path, last: str = "", factor: float = 1.0, distances: bool = False) -> None:
    """Write a graph whose probabilities are multiplied by a factor, perhaps after one more
    operation, and perhaps one that gives a third as each distance."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 3, 8, 8]
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["shares"], axis=-1),
        helper.make_node(last or "Identity", ["shares"], ["changed"]),
        helper.make_node("Mul", ["changed", "factor"], ["probabilities"]),
        helper.make_node("ReduceMean", ["shares", "classes"], ["distance"], keepdims=0),
    ]
    entry = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["batch"]),
    ]
    numbers = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("classes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
    ]
    if not distances:
        del nodes[-1], outputs[-1]
    graph = helper.make_graph(nodes, "means", [entry], outputs, numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(file))
