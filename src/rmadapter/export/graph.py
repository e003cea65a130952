"""A fitted method as one graph: pixels [B, 3, H, W] in, probabilities [B, C] out.

No code here depends on the method: its own scoring is traced, and what does not depend on the image
(class features, a cache of shots, learned tokens) becomes constants in the graph.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import at_least_float32
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.backbones.build import first_line
from rmadapter.errors import UserError
from rmadapter.export.engines import (
    DISTANCE,
    FEATURES,
    GRAPH,
    GROUP_KEY,
    INPUT,
    OPENVINO,
    PRECISION_KEY,
    PROBABILITIES,
    Outputs,
    parse_outputs,
)
from rmadapter.prompts import OfFeatures
from rmadapter.runs.evaluate import refuse_stateful
from rmadapter.runs.features import distances, image_features
from rmadapter.support.terminal import silenced
from rmadapter.training.contract import Fitted, NotApplicable

if TYPE_CHECKING:
    import openvino
    from onnx import ModelProto
    from PIL import Image
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

T = TypeVar("T")
BatchAxis = tuple[dict[int, object]] | None  # which axis of the pixels is free
OPSET = 20
MIN_HALF_SIZE = 1024  # numbers in a weight from which 16 bits are worth it
GROUP_SIZE = 64  # numbers that share a range
MAX_GRAPH_BYTES = 2_000_000_000  # in one file: protobuf's limit is 2^31
EXTERNAL_WEIGHTS = f"{GRAPH}.data"  # the weights of a larger graph
WEIGHTS = "model.bin"  # the weights of an OpenVINO model


class AnswerModule(nn.Module):
    """`Fitted.answers` of one model, as a module.

    The distance [B] of each image from the nearest class mean comes last, if the model can tell own
    images from others.

    Args:
        fitted: The model.
        names: Names of its classes.
        embeddings: Whether unit features [B, e] follow the probabilities: those that are compared
            with class features; if the classes are scored otherwise, those of the untouched
            encoder, or, if the method runs blocks itself, those that it compares for unseen
            classes.

    Raises:
        NotApplicable: As `Fitted.score`, and for embeddings of a method without features.
        UserError: A model that remembers images, or reads views of them.
    """

    def __init__(self, fitted: Fitted, names: Sequence[str], embeddings: bool = False) -> None:
        super().__init__()
        refuse_stateful(fitted, "an exported or served run")
        if fitted.method.test_views:
            raise UserError(
                f"an exported or served run reads an image once, but {fitted.method.title} trains "
                "on random crops of it: use `rmadapter predict`, or another method"
            )
        self.fitted = fitted
        with torch.no_grad():
            self.logits = fitted.for_classes(tuple(names))
            self.embeddings = embeddings
            self.means = fitted.means if fitted.decider(names).rejection else None
            wanted = embeddings or self.means is not None
            self.features = image_features(fitted, names, self.logits) if wanted else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of what `forward` returns."""
        more = {FEATURES: self.embeddings, DISTANCE: self.means is not None}
        return (PROBABILITIES, *(name for name, is_wanted in more.items() if is_wanted))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        states = self.fitted.states(pixels)
        features = self.features(states) if self.features else None
        if isinstance(self.logits, OfFeatures) and features is not None:  # compute nothing twice
            logits = self.logits.logits(features)
        else:
            logits = self.logits(states)
        answers = (logits / self.fitted.temperature).float().softmax(-1)
        if features is None:
            return answers
        outputs = [answers]
        if self.embeddings:
            outputs.append(F.normalize(at_least_float32(features), dim=-1))
        if self.means is not None:
            outputs.append(distances(features, self.means))
        return tuple(outputs)


class FittedModel:
    """A run that answers pixels as an exported `Model` does.

    Args:
        saved: The run.
        threads: Threads of torch; 0 leaves it to torch.
        embeddings: Whether it also gives features; by default, if the method has any.

    Attributes:
        decider: What decides about its answers.
        size: Height and width of an image, in pixels.
        device: Device that it computes on.

    Raises:
        NotApplicable: As `AnswerModule`.
        UserError: As `AnswerModule`.
    """

    def __init__(self, saved: Saved, threads: int = 0, embeddings: bool | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        fitted, backbone = saved.fitted, saved.fitted.backbone
        self.decider, self.size = saved.decider(), backbone.image_size
        self.device, self._preprocess = str(backbone.device), backbone.preprocess
        try:
            self._all = AnswerModule(fitted, saved.names, embeddings is not False)
        except NotApplicable:
            if embeddings:
                raise
            self._all = AnswerModule(fitted, saved.names)
        self._probabilities = copy.copy(self._all)  # which computes nothing else
        self._probabilities.embeddings = False
        self._probabilities.means = self._probabilities.features = None

    @property
    def gives_features(self) -> bool:
        return self._all.embeddings

    def transform(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as float32 [3, size, size]."""
        return self._preprocess(image).numpy()

    def ask(self, pixels: np.ndarray) -> Outputs:
        """Return all that the model gives for float32 [B, 3, size, size]."""
        outputs = self._all(torch.from_numpy(pixels))
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return parse_outputs([part.cpu().numpy() for part in parts])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities [B, C] for float32 [B, 3, size, size]."""
        table: np.ndarray = self._probabilities(torch.from_numpy(pixels)).cpu().numpy()
        return table


def trace(fitted: Fitted, names: Sequence[str], embeddings: bool = False) -> ModelProto:
    """Trace a method as an ONNX graph with a free batch axis, or a batch of 1 if the method treats
    each image by itself. Arguments are those of `AnswerModule`.

    Raises:
        NotApplicable: As `AnswerModule`.
        UserError: The method cannot be traced.
    """
    return _traced(AnswerModule(fitted, names, embeddings), _onnx, "an ONNX graph")


def _traced(module: AnswerModule, make: Callable[..., T], what: str) -> T:
    fitted = module.eval().fitted
    pixels = torch.zeros(2, 3, *[fitted.backbone.image_size] * 2, device=fitted.backbone.device)
    with silenced(logging.WARNING, output=True):
        try:
            return make(module, pixels, ({0: torch.export.Dim("batch")},))
        except Exception:  # for example, prompts that depend on the image
            pass
        try:
            return make(module, pixels[:1], None)
        except Exception as error:
            raise UserError(
                f"{fitted.method.title} cannot be exported as {what} ({first_line(error)})"
            ) from error


def _onnx(module: AnswerModule, pixels: Tensor, batch: BatchAxis) -> ModelProto:
    from onnxscript.optimizer import fold_constants

    program = torch.export.export(module, (pixels,), dynamic_shapes=batch, strict=False)
    exported = to_onnx(program, INPUT, module.outputs, batch and ({0: "batch"},))
    # such as transposed weights
    fold_constants(
        exported.model, input_size_limit=MAX_GRAPH_BYTES, output_size_limit=MAX_GRAPH_BYTES
    )
    return exported.model_proto


def to_onnx(
    program: ExportedProgram,
    entry: str,
    exits: Sequence[str],
    dynamic_shapes: tuple[dict[int, str]] | None = None,
) -> ONNXProgram:
    """Return a traced module as an ONNX graph.

    Args:
        program: The module, which takes one tensor.
        entry: Name of its input.
        exits: Names of its outputs.
        dynamic_shapes: Names of the input's free axes.
    """
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        input_names=[entry],
        output_names=list(exits),
        dynamic_shapes=dynamic_shapes,
    )
    assert exported is not None
    return exported


def write(model: ModelProto, file: Path) -> None:
    """Write a graph; the weights of a very large one go into a file beside it. Raises OSError."""
    import onnx

    if sum(len(weight.raw_data) for weight in model.graph.initializer) <= MAX_GRAPH_BYTES:
        file.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, str(file), save_as_external_data=True, location=EXTERNAL_WEIGHTS)


@contextmanager
def _written_by_a_library() -> Iterator[None]:
    """Raise OSError where a library's writer raises RuntimeError, as on a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"is the disk full? {error}") from error


def write_litert(fitted: Fitted, names: Sequence[str], file: Path) -> None:
    """Write a graph of one image for LiteRT. Raises OSError, UserError if it cannot be converted,
    and NotApplicable."""
    import litert_torch

    def convert(module: AnswerModule, pixels: Tensor, batch: BatchAxis) -> Any:
        return litert_torch.convert(module, (pixels[:1],))

    converted = _traced(AnswerModule(fitted, names), convert, "a LiteRT graph")
    with _written_by_a_library():
        converted.export(str(file))


def write_openvino(folder: Path, precision: str) -> None:
    """Replace the ONNX graph in a folder by OpenVINO's form.

    Args:
        folder: Folder of the graph.
        precision: fp32; fp16 for weights alone; bf16 for products, if the processor has them; int8
            for weights, and for activations in groups of GROUP_SIZE numbers that share a range.

    Raises:
        OSError: The disk refuses.
    """
    import openvino

    model = openvino.convert_model(folder / GRAPH)
    if precision == "int8":
        model = _in_8_bits(model)
    model.set_rt_info("bf16" if precision == "bf16" else "f32", PRECISION_KEY)
    with _written_by_a_library():
        openvino.save_model(
            model, folder / OPENVINO, compress_to_fp16=precision in ("fp16", "bf16")
        )
    for file in (GRAPH, EXTERNAL_WEIGHTS):
        (folder / file).unlink(missing_ok=True)


def _in_8_bits(model: openvino.Model) -> openvino.Model:
    import nncf

    nncf.set_log_level(logging.ERROR)
    with silenced(logging.WARNING, output=True):
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    compressed.set_rt_info(str(GROUP_SIZE), GROUP_KEY)
    return compressed


def in_half(model: ModelProto) -> ModelProto:
    """Return the model with weights stored in 16 bits: half the size, but still computed in
    float32."""
    import onnx
    from onnx import numpy_helper

    half = onnx.ModelProto()
    half.CopyFrom(model)
    casts = []
    for weight in half.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < MIN_HALF_SIZE:
            continue
        name = weight.name
        weight.name = f"{name}_16"
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
        to = onnx.TensorProto.FLOAT
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=to))
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half
