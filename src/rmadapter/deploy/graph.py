"""A fitted method as one ONNX graph: pixels [B, 3, H, W] in, probabilities [B, C] out.

Nothing asks which method it is: its own scoring is traced, and what does not depend on the image (class features, a
cache of shots, tokens that were learned) becomes numbers in the graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.deploy.runtime import GRAPH, HINT, INPUT, OPENVINO
from rmadapter.errors import UserError
from rmadapter.method import Fitted

OPSET = 20
ASKED = 200  # images before an export is done
LARGEST = 2_000_000_000  # bytes of a graph in one file: protobuf ends at 2^31
BESIDE = f"{GRAPH}.data"  # the weights of a larger one
WEIGHTS = "model.bin"  # those of an OpenVINO model


class Answers(nn.Module):
    """What `Fitted.answers` does, of one model. names: of the classes. Raises NotApplicable as `Fitted.score`."""

    def __init__(self, fitted: Fitted, names: Sequence[str]) -> None:
        super().__init__()
        self.fitted, self.score = fitted, fitted.score(names)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.fitted.states(pixels)).float().softmax(-1)


def trace(fitted: Fitted, names: Sequence[str]) -> Any:
    """An onnx.ModelProto whose batch axis is free, or 1 where a method treats each image by itself.

    Raises UserError for a method that cannot be traced, and NotApplicable as `Fitted.score`.
    """
    size, module = fitted.backbone.image_size, Answers(fitted, names).eval()
    pixels = torch.zeros(2, 3, size, size, device=fitted.backbone.device)
    with quiet():
        try:
            return _onnx(module, pixels, {0: torch.export.Dim("batch")})
        except Exception:  # each image has prompts of its own, say
            pass
        try:
            return _onnx(module, pixels[:1], None)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{fitted.method.title} does not become an ONNX graph ({reason})") from error


def _onnx(module: nn.Module, pixels: Tensor, batch: dict[int, Any] | None) -> Any:
    shapes = None if batch is None else (batch,)
    program = torch.export.export(module, (pixels,), dynamic_shapes=shapes, strict=False)
    named = None if batch is None else ({0: "batch"},)
    found = torch.onnx.export(
        program, (), dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
        input_names=[INPUT], output_names=["probabilities"], dynamic_shapes=named,
    )  # fmt: skip
    assert found is not None
    return found.model_proto


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters narrate, warn of their own parts, and log what they do not fold."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write(model: Any, file: Path) -> None:
    """Write a graph; beyond LARGEST its weights lie beside it, in BESIDE. Raises OSError."""
    import onnx

    if sum(len(weight.raw_data) for weight in model.graph.initializer) <= LARGEST:
        file.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, str(file), save_as_external_data=True, location=BESIDE)


def write_openvino(folder: Path, precision: str) -> None:
    """Put OpenVINO's form in the place of the ONNX graph in a folder. precision: fp32; fp16, of the weights alone; or
    bf16, of the products, where the processor has them. Raises OSError."""
    import openvino

    model = openvino.convert_model(folder / GRAPH)
    model.set_rt_info("bf16" if precision == "bf16" else "f32", HINT)
    try:
        openvino.save_model(model, folder / OPENVINO, compress_to_fp16=precision != "fp32")
    except RuntimeError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    for file in (GRAPH, BESIDE):
        (folder / file).unlink(missing_ok=True)


def halved(model: Any) -> Any:
    """The same with weights kept in 16 bits: half the size, and computed in float32 all the same."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    found = onnx.ModelProto()
    found.CopyFrom(model)
    casts = []
    for weight in found.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < 1024:
            continue
        name, weight.name = weight.name, f"{weight.name}_16"
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *found.graph.node]
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found
