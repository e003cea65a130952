"""Whatever is fitted comes back the same from plain values."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from rmadapter.artifacts.pickling import pack, unpack
from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from tests.helpers.shots import logits_of, shots_of


def test_without_its_device_it_comes_back_on_the_best_one(tiny_clip: Backbone) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the others lack")
    shots = shots_of(tiny_clip)
    fitted = load_method("zero-shot", {}).fit(tiny_clip, shots)
    assert unpack(pack(fitted, "zero-shot"), "cuda").backbone.device.type == tiny_clip.device.type


@pytest.mark.parametrize("name", ["rmadapter", "linear-probe", "tip-adapter", "zero-shot"])
def test_it_comes_back(tiny_clip: Backbone, name: str) -> None:
    shots = shots_of(tiny_clip)
    method = load_method(
        name, {"first_block": 4, "rank": 2, "epochs": 1} if name == "rmadapter" else {}
    )
    fitted = replace(method.fit(tiny_clip, shots), temperature=1.7).fitted_to(
        shots.plain_features()
    )
    packed = pack(fitted, name)
    again = unpack(pickle.loads(pickle.dumps(packed)), "cpu")
    assert (again.method, again.known, again.trained, again.temperature) == (
        fitted.method, fitted.known, fitted.trained, 1.7,
    )  # fmt: skip
    torch.testing.assert_close(logits_of(again, shots), logits_of(fitted, shots), rtol=0, atol=0)
    assert again.examples is not None
    assert fitted.examples is not None
    assert torch.equal(again.examples, fitted.examples)
