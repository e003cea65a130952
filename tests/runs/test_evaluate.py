"""Images in a random order, asked one after the other, and answers in their own order again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.evaluate import predict_all, refuse_stateful, shuffled
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Known
from tests.helpers.shots import noise_images, shots_of

IMAGES = noise_images(70, ("cat", "dog"))


def counting() -> Callable[[States], Tensor]:
    """The n-th image has n as its logit."""
    seen = [0]

    def score(states: States) -> Tensor:
        first = seen[0]
        seen[0] += len(states.features)
        return torch.stack(
            [torch.zeros(len(states.features)), torch.arange(first, seen[0]) / 10.0], 1
        )

    return score


@pytest.mark.parametrize("hold", [True, False])
def test_a_method_that_remembers_is_asked_in_a_random_order(
    tiny_clip: Backbone, hold: bool
) -> None:
    cache = Cache(tiny_clip, Machine(device="cpu"), hold=hold, progress=False)
    plain, tda = (
        load_method(name).restore(tiny_clip, Known(IMAGES.classes), {})
        for name in ("zero-shot", "tda")
    )
    for fitted, order in ((plain, torch.arange(70)), (tda, shuffled(70, 3))):
        found = predict_all(
            {"it": counting(), "zero-shot": plain.score()}, fitted, cache, IMAGES, 3
        )
        places = torch.empty(70).scatter_(0, order, torch.arange(70.0))  # when each image was asked
        torch.testing.assert_close(found["it"][:, 1].logit(), places / 10, rtol=1e-3, atol=1e-3)
        expected = torch.cat(list(plain.probabilities(IMAGES.images)))
        torch.testing.assert_close(found["zero-shot"], expected, rtol=1e-3, atol=1e-4)


def test_an_order_is_that_of_its_seed() -> None:
    assert shuffled(50, 1).sort().values.tolist() == [*range(50)]
    assert torch.equal(shuffled(50, 1), shuffled(50, 1))
    assert not torch.equal(shuffled(50, 1), shuffled(50, 2))


def test_stateful_methods_are_refused_where_images_are_independent(tiny_clip: Backbone) -> None:
    fitted: Fitted = load_method("zero-shot").fit(tiny_clip, shots_of(tiny_clip, IMAGES))
    refuse_stateful(fitted, "a window")
    with pytest.raises(UserError, match=r"a window .* TDA"):
        refuse_stateful(load_method("tda").fit(tiny_clip, shots_of(tiny_clip, IMAGES)), "a window")
