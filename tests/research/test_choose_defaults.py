"""choose_defaults.py: copies of a backbone with another logit scale, and that it goes on
where it was."""

from __future__ import annotations

import choose_defaults
import pytest
import torch

from rmadapter.backbones import Backbone


def test_a_copy_differs_in_the_logit_scale_alone(tiny_clip: Backbone) -> None:
    copy = choose_defaults.rescaled(tiny_clip.name, 50)
    assert copy.logit_scale.item() == pytest.approx(50)
    assert copy.digest != tiny_clip.digest
    states = copy.model.state_dict(), tiny_clip.model.state_dict()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == [
        "logit_scale"
    ]
    assert choose_defaults.rescaled(tiny_clip.name, 0).digest == tiny_clip.digest
