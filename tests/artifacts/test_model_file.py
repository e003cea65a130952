"""The weights of a saved model: they are those of its model.json, whatever becomes of the file."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.model_file import Model, read_weights
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.support.files import sha256
from rmadapter.training.contract import Fitted
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.shots import noisy_colors, shots_of

IMAGES = noisy_colors(1)


@pytest.fixture(scope="module")
def fitted(tiny_clip: Backbone) -> Fitted:
    """Tip-Adapter, which computes with the tensors of the file themselves."""
    return quick_method("tip-adapter").fit(tiny_clip, shots_of(tiny_clip, IMAGES))


def header(kind: str) -> bytes:
    """Return the file of a tensor of one byte."""
    text = json.dumps({"x": {"dtype": kind, "shape": [1], "data_offsets": [0, 1]}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0"


def test_a_loaded_model_does_not_change_with_its_file(
    fitted: Fitted, tiny_clip: Backbone, tmp_path: Path
) -> None:
    save(tmp_path, fitted, "tip-adapter")
    loaded = load(tmp_path, tiny_clip).fitted
    expected = probabilities(loaded, IMAGES)
    file = RunFolder(tmp_path).weights
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(probabilities(loaded, IMAGES), expected)
    assert torch.equal(probabilities(fitted, IMAGES), expected)


def test_a_model_that_is_saved_while_another_is_loaded_is_no_part_of_it(
    fitted: Fitted, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, fitted, "tip-adapter")
    other = {**fitted.tensors, "alpha": fitted.tensors["alpha"] + 1}

    def check(run: RunFolder, *_: object, **__: object) -> None:
        save(run.path, replace(fitted, tensors=other), "tip-adapter")

    monkeypatch.setattr(RunFolder, "check_sums", check)
    first, later = (load(tmp_path, tiny_clip).fitted.tensors["alpha"] for _ in range(2))
    assert (first, later) == (fitted.tensors["alpha"], other["alpha"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", header("F8_E8M0"), header("none")])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or not a safetensors file"):
        read_weights(run, Model.model_construct(sha256=sha256(run.weights)))
