"""Engines that run an exported graph: onnxruntime, OpenVINO, torch or LiteRT, each imported only
for its own graph."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rmadapter.errors import UserError

GRAPH, OPENVINO, TORCH, LITERT = "model.onnx", "model.xml", "model.pt2", "model.tflite"
FACTS = "export.json"  # what describes an exported folder
INPUT, OUTPUTS = "pixels", ("probabilities", "features")  # features only if asked for
HINT = ["rmadapter", "precision"]  # where an OpenVINO model says in which precision to compute
GROUPS = ["rmadapter", "group"]  # and how many activations share a range in 8 bits

# The function that runs a graph, and its batch size if that is fixed, else 0
Engine: TypeAlias = "tuple[Callable[[np.ndarray], Sequence[np.ndarray]], int]"


def _onnx(file: Path, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    return (lambda pixels: session.run(None, {INPUT: pixels})), size if isinstance(size, int) else 0


def _openvino(file: Path, threads: int) -> Engine:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _text(model, HINT)}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    settings |= (
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": _text(model, GROUPS)}
        if model.has_rt_info(GROUPS)
        else {}
    )
    compiled = core.compile_model(model, "CPU", settings)
    size = model.input(INPUT).partial_shape[0]
    return (
        lambda pixels: list(compiled([pixels]).values())
    ), 0 if size.is_dynamic else size.get_length()


def _text(model: Any, place: list[str]) -> str:
    return str(model.get_rt_info(place).astype(str))


def _torch(file: Path, threads: int) -> Engine:
    """Raises UserError for a file that contains a pickle, which torch would load."""
    import torch

    with zipfile.ZipFile(file) as parts:
        inside = {part.filename: part for part in parts.infolist()}
        settings = [
            json.loads(parts.read(name)) for name in inside if name.endswith("_config.json")
        ]
    examples = [part for name, part in inside.items() if "/sample_inputs/" in name]
    weights = [weight for setting in settings for weight in setting["config"].values()]
    if (
        len(settings) != 2
        or len(examples) != 1
        or examples[0].file_size
        or any(w["use_pickle"] for w in weights)
    ):
        raise UserError(f"{file}: not a graph without pickles, as `export` writes it")
    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(str(file))
    (name,) = program.graph_signature.user_inputs
    (size,) = [node.meta["val"].shape[0] for node in program.graph.nodes if node.name == name]
    module = program.module()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            found = module(torch.from_numpy(pixels))
        return [
            tensor.numpy() for tensor in (found if isinstance(found, (tuple, list)) else [found])
        ]

    return run, size if isinstance(size, int) else 0


def _litert(file: Path, threads: int) -> Engine:
    """One image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(file), num_threads=threads or None)
    model.allocate_tensors()
    (given,), wanted = model.get_input_details(), model.get_output_details()
    places = [each["index"] for each in sorted(wanted, key=lambda each: str(each["name"]))]

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        model.set_tensor(given["index"], pixels)
        model.invoke()
        return [model.get_tensor(place) for place in places]

    return run, 1


ENGINES = {OPENVINO: _openvino, TORCH: _torch, LITERT: _litert, GRAPH: _onnx}
