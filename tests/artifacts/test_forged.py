"""Weights that somebody has changed, their digest with them: refused, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import METHODS
from rmadapter.support.checksums import sha256
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.shots import noisy_colors, shots_of

FORGED: dict[str, Callable[[Tensor], Tensor]] = {
    "more rows": lambda x: torch.cat([x, x]) if x.ndim else torch.stack([x, x]),
    "one number less": lambda x: x.flatten()[:-1],
    "a number": lambda x: torch.tensor(1.0) if x.ndim else torch.tensor(1),
    "one more side": lambda x: x[None],
    "whole numbers": lambda x: torch.ones(x.shape, dtype=torch.int64),
    "float8": lambda x: torch.ones(x.shape).to(torch.float8_e4m3fn),
    "double": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
}
# Those that make no module of their tensors, which torch would check, and some that do.
BY_HAND = (
    "linear-probe",
    "linear-probe-zero-shot",
    "linear-probe-pair",
    "clap",
    "lp-plus-plus",
    "tip-adapter-f",
)
BY_HAND += ("zero-shot-descriptions", "rmadapter-plus", "prompt-kd", "lweib", "mma")


@pytest.mark.parametrize("name", BY_HAND)
def test_forged_weights_are_refused_or_asked(
    name: str, tiny_clip: Backbone, tmp_path: Path
) -> None:
    assert name in METHODS
    images = noisy_colors(1)
    save(tmp_path, quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images)), name)
    file, model = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, said = load_file(file), json.loads(model.read_text())
    last = {what.rpartition(".")[2]: what for what in whole}  # one of each kind
    for what in last.values():
        for how, change in FORGED.items():
            save_file({**whole, what: change(whole[what]).contiguous()}, file)
            model.write_text(json.dumps({**said, "sha256": sha256(file)}))
            try:
                loaded = load(tmp_path, tiny_clip).fitted
            except UserError:
                continue
            assert how in ("double", "bfloat16", "whole numbers"), what
            assert probabilities(loaded, images).shape == (len(images), len(images.classes))
