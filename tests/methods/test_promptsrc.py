"""PromptSRC against a plain reimplementation, and what a fit does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.methods import promptsrc
from rmadapter.methods.promptsrc import PromptSRC, gaussian
from rmadapter.settings import configured
from rmadapter.training.loop import minimise
from tests.helpers.deep_prompts import (
    LABELS,
    NAMES,
    assert_same_terms,
    eight_images,
    pixels,
    prompts_inserted,
)
from tests.helpers.rounding import assert_same_float32, double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

TEMPLATES = ("a photo of a {}.", "the small {}")


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("own", [True, False])
def test_terms_and_gradients_are_plain_ones(
    name: str, own: bool, request: pytest.FixtureRequest
) -> None:
    """own: the templates are the method's, or else the run's."""
    given = request.getfixturevalue(name)
    backbone, images, count = double(given), pixels(given), len(NAMES)
    shots = shots_of(given, noise_images(5, NAMES), **({} if own else {"templates": TEMPLATES}))
    method = PromptSRC(depth=3, n_image=2, templates=TEMPLATES if own else ())
    start = untrained(method, backbone, shots)
    module: Any = start.module.double().prompts
    lean = start.terms(range(5), images=backbone.image.frozen(images, 1))

    with prompts_inserted(backbone, list(module.text_prompts), list(module.image_prompts)) as model:
        w = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        f = model.encode_image(images)
    f_0 = model.encode_image(images)
    raw = [
        model.encode_text(backbone.tokenizer([t.format(name) for name in NAMES])) for t in TEMPLATES
    ]
    mean = (raw[0] + raw[1]) / 2
    f, w, f_0, mean = (x / x.norm(dim=-1, keepdim=True) for x in (f, w, f_0, mean))
    torch.testing.assert_close(
        method.frozen_classes(backbone, NAMES, shots.templates), mean, rtol=1e-9, atol=1e-10
    )
    scale = model.logit_scale.exp()
    p, q = ((scale * a @ b.T).softmax(-1) for a, b in ((f, w), (f_0, mean)))
    plain = {
        "ce": -p[torch.arange(5), LABELS].log().mean(),
        "text": 25 * (w - mean).abs().mean(),
        "image": 10 * (f - f_0).abs().mean(),
        "logits": (q * (q / p).log()).sum() / (5 * count),
    }
    assert_same_terms(module, lean, {"loss": sum(plain.values()), **plain})  # type: ignore[dict-item]


def test_weights_of_epochs_are_a_gaussian_of_their_number() -> None:
    densities = [
        math.exp(-0.5 * (epoch - 15) ** 2) / math.sqrt(2 * math.pi) for epoch in range(1, 21)
    ]
    expected = torch.tensor(densities, dtype=torch.float64) / sum(densities)
    torch.testing.assert_close(gaussian(20, 15, 1), expected)
    assert gaussian(1, 15, 1).tolist() == [1]  # far below the mean, but all there is


def test_prompts_are_averaged_over_epochs(tiny_clip: Backbone) -> None:
    """With all weight on the first epoch, whose rate is that of the warm-up, nothing has moved; on
    the last, it has."""
    scores = []
    for fields in ({"mean": 1.0}, {"mean": 6.0}, {"epochs": 1, "mean": 1.0}):
        shots = eight_images(tiny_clip)
        method = configured(PromptSRC(), {"epochs": 6, "std": 0.1, "learning_rate": 0.1, **fields})
        scores.append(logits_of(method.fit(tiny_clip, shots), shots))
    first, last, one = scores
    assert_same_float32(first, one)  # weights of 1 and 0 up to the last digit
    assert (last - one).abs().max() > 0.1


def test_the_average_is_that_of_the_prompts_at_the_end_of_each_epoch(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[dict[str, torch.Tensor]] = []

    def watched(
        module: Any, loss: Any, recipe: Any, shots: Any, source: Any, after_epoch: Any
    ) -> Any:
        def after(epoch: int) -> None:
            ends.append(
                {name: tensor.clone() for name, tensor in module.prompts.state_dict().items()}
            )
            after_epoch(epoch)

        return minimise(module, loss, recipe, shots, source, after)

    monkeypatch.setattr(promptsrc, "minimise", watched)
    fields = {"epochs": 3, "mean": 2.0, "std": 1.0, "learning_rate": 0.1, "depth": 2}
    fitted = configured(PromptSRC(), fields).fit(tiny_clip, eight_images(tiny_clip))
    assert len(ends) == 3
    side = math.exp(-0.5)
    for name, found in fitted.tensors.items():
        before, at, after = (end[name] for end in ends)
        torch.testing.assert_close(found, (side * before + at + side * after) / (1 + 2 * side))
        assert not torch.equal(before, after)


@pytest.mark.ci
@pytest.mark.parametrize("iterations", [3, 30])
def test_the_average_is_over_the_epochs_that_are_trained(
    tiny_clip: Backbone, iterations: int
) -> None:
    """Where their number follows from steps per shot: fewer than `epochs`, or more."""
    shots = eight_images(tiny_clip)
    fields = {"epochs": 20, "learning_rate": 1e-9, "warmup_epochs": 0, "batch_size": 8}
    fitted = configured(PromptSRC(), {"iterations": iterations, **fields}).fit(tiny_clip, shots)
    start = PromptSRC().module(tiny_clip, shots.seed).state_dict()
    for name, tensor in fitted.tensors.items():
        torch.testing.assert_close(tensor, start[name], rtol=1e-4, atol=1e-5)
