"""PromptSRC against a plain reimplementation, and what a fit does."""

from __future__ import annotations

import math

import pytest
import torch

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.methods.promptsrc import PromptSRC, gaussian
from rmadapter.errors import UserError
from test_deep import LABELS, NAMES, double, eight_images, hooked, learns, pictures, same

TEMPLATES = ("a photo of a {}.", "the small {}")


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_terms_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    backbone = double(request.getfixturevalue(name))
    method = PromptSRC(depth=3, n_image=2)
    module = method.module(backbone).double()
    pixels, count = pictures(backbone), len(NAMES)
    states, text = module.tower.frozen(pixels), module.prompted(NAMES)
    w_0 = module.frozen_classes(NAMES, TEMPLATES)
    lean = method.loss(module, LABELS, states, text, w_0)

    with hooked(backbone, list(module.text), list(module.image)) as model:
        w = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        f = model.encode_image(pixels)
    f_0 = model.encode_image(pixels)
    raw = [model.encode_text(backbone.tokenizer([t.format(name) for name in NAMES])) for t in TEMPLATES]
    mean = (raw[0] + raw[1]) / 2
    f, w, f_0, mean = (x / x.norm(dim=-1, keepdim=True) for x in (f, w, f_0, mean))
    torch.testing.assert_close(w_0, mean, rtol=1e-9, atol=1e-10)
    scale = model.logit_scale.exp()
    p, q = ((scale * a @ b.T).softmax(-1) for a, b in ((f, w), (f_0, mean)))
    plain = {
        "ce": -p[torch.arange(5), LABELS].log().mean(),
        "text": 25 * (w - mean).abs().mean(),
        "image": 10 * (f - f_0).abs().mean(),
        "logits": (q * (q / p).log()).sum() / (5 * count),
    }
    same(module, lean, {"loss": sum(plain.values()), **plain})


def test_weights_of_epochs_are_a_gaussian_of_their_number() -> None:
    densities = [math.exp(-0.5 * (epoch - 15) ** 2) / math.sqrt(2 * math.pi) for epoch in range(1, 21)]
    expected = torch.tensor(densities, dtype=torch.float64) / sum(densities)
    torch.testing.assert_close(gaussian(20, 15, 1), expected)
    assert gaussian(1, 15, 1).tolist() == [1]  # far below the mean, but all there is


def test_prompts_are_averaged_over_epochs(tiny_clip: Backbone) -> None:
    """With all weight on the first epoch, whose rate is that of the warm-up, nothing has moved; on the last, it has."""
    scores = []
    for fields in ({"mean": 1.0}, {"mean": 6.0}, {"epochs": 1, "mean": 1.0}):
        train = eight_images(tiny_clip)
        method = PromptSRC(**{"epochs": 6, "std": 0.1, "learning_rate": 0.1, **fields})  # type: ignore[arg-type]
        fitted = method.fit(tiny_clip, train)
        states = train.frozen(fitted.first).batch(torch.arange(8), train.device)
        scores.append(fitted.for_classes(train.images.classes)(states))
    first, last, one = scores
    torch.testing.assert_close(first, one)
    assert (last - one).abs().max() > 0.1


def test_it_learns_eight_images(tiny_clip: Backbone) -> None:
    fields = {"text_weight": 0.0, "image_weight": 0.0, "mean": 120.0, "batch_size": 8}
    learns(PromptSRC(epochs=120, learning_rate=0.05, **fields), tiny_clip)  # type: ignore[arg-type]


def test_templates_need_a_place_for_the_name() -> None:
    with pytest.raises(UserError, match=r"promptsrc\.templates"):
        PromptSRC(templates=("a photo",))


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    return load_backbone("ViT-B-16/none")


def test_parameters_are_the_codes(vit_b16: Backbone) -> None:
    # Counted in the released code: 4 tokens of 512 and 4 of 768 in 9 blocks.
    assert PromptSRC().parameters(vit_b16) == 9 * (4 * 512 + 4 * 768) == 46_080
