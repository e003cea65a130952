"""Engines that run an exported graph, each imported only for its own file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rmadapter.errors import UserError

GRAPH, OPENVINO, LITERT = "model.onnx", "model.xml", "model.tflite"
INPUT, PROBABILITIES, FEATURES, DISTANCE = "pixels", "probabilities", "features", "distance"
# where an OpenVINO model says in which precision to compute, and how many activations share a range
# in 8 bits
PRECISION_KEY, GROUP_KEY = ["rmadapter", "precision"], ["rmadapter", "group"]

CPU = "cpu"
# device -> onnxruntime's provider, and the package that brings it
PROVIDERS = {
    CPU: ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}
NUMBERED = ("cuda", "tensorrt")  # a machine may have several
Provider: TypeAlias = "str | tuple[str, dict[str, str]]"

# the function that runs a graph, and its batch size and the side of its images if fixed, else 0
Engine: TypeAlias = "tuple[Callable[[np.ndarray], Sequence[np.ndarray]], int, int]"


def providers(device: str, available: Collection[str]) -> list[Provider]:
    """Return onnxruntime's providers for a device, the wanted one first.

    Args:
        device: Name of the device.
        available: Providers that are installed.

    Raises:
        UserError: A device of no known name, or without an installed provider.
    """
    name, colon, number = device.partition(":")
    provider, package = PROVIDERS.get(name, ("", ""))
    if not provider or (colon and not (name in NUMBERED and number.isdecimal())):
        raise UserError(f"--device {device}: write {', '.join(PROVIDERS)}, or cuda:1")
    if provider not in available:
        raise UserError(
            f"--device {device}: the installed onnxruntime has no {provider}; install {package} in "
            "its place, or leave out --device"
        )
    if name not in NUMBERED:
        return [provider]
    first = (provider, {"device_id": number or "0"})
    cuda = (PROVIDERS["cuda"][0], first[1])  # for what TensorRT lacks
    return [first, cuda] if name == "tensorrt" and cuda[0] in available else [first]


def open_onnx(file: Path, threads: int, device: str = CPU) -> Engine:
    """Open a graph in onnxruntime. Raises UserError as `providers`, and if the device's provider
    does not start."""
    import onnxruntime

    wanted = providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=wanted)
    provider = PROVIDERS[device.partition(":")[0]][0]
    if provider not in session.get_providers():  # it goes on with another, and logs a warning
        raise UserError(
            f"--device {device}: onnxruntime has {provider} but cannot start it; install the "
            "libraries and the driver that it needs, or leave out --device"
        )
    batch, *_, side = (
        size if isinstance(size, int) else 0 for size in session.get_inputs()[0].shape
    )

    def run(pixels: np.ndarray) -> Sequence[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, {INPUT: pixels})
        return outputs

    return run, batch, side


def only_cpu(file: Path, device: str) -> None:
    """Raise UserError for another device, since this graph is not for onnxruntime."""
    if device != CPU:
        raise UserError(
            f"--device {device}: only exports for onnxruntime choose a device, and {file.name} is "
            "for another engine; leave out --device"
        )


def open_openvino(file: Path, threads: int, device: str = CPU) -> Engine:
    """Open a graph in OpenVINO. Raises UserError for a device other than the processor."""
    only_cpu(file, device)
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    settings: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": _runtime_info(model, PRECISION_KEY)
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if model.has_rt_info(GROUP_KEY):
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _runtime_info(model, GROUP_KEY)
    compiled = core.compile_model(model, "CPU", settings)
    shape = model.input(INPUT).partial_shape
    batch, *_, side = (0 if size.is_dynamic else size.get_length() for size in shape)

    def run(pixels: np.ndarray) -> Sequence[np.ndarray]:
        return list(compiled([pixels]).values())

    return run, batch, side


def _runtime_info(model: Any, place: list[str]) -> str:
    return str(model.get_rt_info(place).astype(str))


def open_litert(file: Path, threads: int, device: str = CPU) -> Engine:
    """Open a graph that takes one image at a time."""
    only_cpu(file, device)
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(file), num_threads=threads or None)
    model.allocate_tensors()
    (entry,) = model.get_input_details()
    exits = sorted(model.get_output_details(), key=lambda each: str(each["name"]))

    def run(pixels: np.ndarray) -> Sequence[np.ndarray]:
        model.set_tensor(entry["index"], pixels)
        model.invoke()
        return [model.get_tensor(each["index"]) for each in exits]

    return run, 1, int(entry["shape"][-1])


ENGINES = {OPENVINO: open_openvino, LITERT: open_litert, GRAPH: open_onnx}
ENGINE_NAMES = {OPENVINO: "openvino", LITERT: "litert", GRAPH: "onnx"}


def find_graph(folder: Path) -> str:
    """Return the name of the graph in an exported folder, "" if there is none."""
    return next((name for name in ENGINES if (folder / name).is_file()), "")


def engine_of(folder: Path) -> str:
    """Return the name of the engine that an exported folder is for, "" for any other folder."""
    return ENGINE_NAMES.get(find_graph(folder), "")


class Outputs(NamedTuple):
    """What a graph gives for B images.

    Attributes:
        probabilities: [B, C].
        features: [B, e] of unit length, if it was exported with them.
        distances: [B], of each image from the nearest class mean, if the run could tell how
            familiar images are.
    """

    probabilities: np.ndarray
    features: np.ndarray | None = None
    distances: np.ndarray | None = None


def parse_outputs(outputs: Sequence[np.ndarray]) -> Outputs:
    """Return outputs, in the order of the graph, by their names. (Engines give them no names that
    last, but only distances have a single axis.)"""
    probabilities, *more = outputs
    features = next((each for each in more if each.ndim == 2), None)
    return Outputs(probabilities, features, next((each for each in more if each.ndim == 1), None))


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return what a graph gives for several batches, at least one, as for one batch."""
    columns = zip(*parts, strict=True)
    return Outputs._make(None if one[0] is None else np.concatenate(one) for one in columns)
