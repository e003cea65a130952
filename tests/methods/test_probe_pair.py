"""Both linear probes together: against the two of them, apart."""

from __future__ import annotations

from pathlib import Path

import torch

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.methods.clap import ZeroShotProbe
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.probe_pair import ProbePair
from rmadapter.settings import configured
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import logits_of, shots_of


def test_probabilities_are_the_normalised_geometric_mean(tiny_clip: Backbone, colors: Path) -> None:
    shots = shots_of(tiny_clip, read_images(colors)["train"])
    pair = configured(ProbePair(), {"epochs": 3})
    both = [LinearProbe(), ZeroShotProbe(pair.recipe)]
    tables = [
        logits_of(method.fit(tiny_clip, shots), shots).softmax(-1).double() for method in both
    ]
    mean = (tables[0] * tables[1]).sqrt()
    fitted = pair.fit(tiny_clip, shots)
    found = logits_of(fitted, shots).softmax(-1)
    assert_same_float32(found, (mean / mean.sum(-1, keepdim=True)).float())
    assert not torch.equal(found.argmax(1), torch.zeros(len(found)))
    assert fitted.parameters == pair.parameters(tiny_clip, len(shots.classes)).trained
    assert fitted.parameters == sum(
        m.parameters(tiny_clip, len(shots.classes)).trained for m in both
    )
