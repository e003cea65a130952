"""TPT against one step of torch's AdamW through plain forward passes in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, load_image
from rmadapter.errors import UserError
from rmadapter.export.graph import AnswerModule
from rmadapter.methods.tpt import TPT, Tuned
from rmadapter.runs.evaluate import predict_all
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Known
from tests.helpers.context_prompts import CLASSES, plain_text
from tests.helpers.methods import probabilities
from tests.helpers.rounding import double
from tests.helpers.shots import noise_images
from tests.helpers.slow import ci_except

WORDS = "a photo of a"
SMALL = TPT(views=12, share=0.3)
IMAGES = noise_images(3, CLASSES, size=48, grain=6)


def fitted_on(backbone: Backbone, method: TPT = SMALL) -> Fitted:
    return method.restore(backbone, Known(CLASSES), {})


def plain(method: TPT, backbone: Backbone, pixels: Tensor) -> Tensor:
    """Logits [C] of the first of the pixels [V, 3, H, W], after a step by the surest of all."""
    model: Any = backbone.model
    images = F.normalize(model.encode_image(pixels), dim=-1)
    holders = backbone.tokenizer([f"{WORDS} X."])
    text = getattr(model, "text", model)
    hugging = hasattr(text, "transformer") and hasattr(text.transformer, "encoder")
    table = text.transformer.embeddings.word_embeddings if hugging else text.token_embedding
    context = table(holders)[0, 1:5].detach().clone().requires_grad_()

    def logits() -> Tensor:
        classes = F.normalize(plain_text(backbone, CLASSES, context), dim=-1)
        return model.logit_scale.exp() * images @ classes.T

    shares = logits().softmax(-1)
    entropies = torch.special.entr(shares.detach()).sum(-1).tolist()
    surest = sorted(range(len(shares)), key=lambda i: entropies[i])
    mean = shares[surest[: int(method.share * method.views)]].mean(0)
    torch.special.entr(mean).sum().backward()
    torch.optim.AdamW([context], lr=method.learning_rate).step()
    with torch.no_grad():
        return logits()[0]


@pytest.mark.parametrize("method", [SMALL, TPT(views=3, share=0.7, learning_rate=0.1)])
@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_an_answer_is_that_of_one_plain_step(
    name: str, method: TPT, request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    fitted = fitted_on(backbone, method)
    pixels = torch.stack([fitted.transform(load_image(one)) for one in IMAGES.images]).double()
    assert pixels.shape[:3] == (3, method.views, 3)
    found = fitted.score()(fitted.states(pixels))
    wanted = torch.stack([plain(method, backbone, views) for views in pixels])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    untuned = Tuned(method, backbone, CLASSES)
    before = (
        fitted.backbone.logit_scale
        * F.normalize(fitted.states(pixels).features, dim=-1)
        @ untuned.first.T
    )
    assert (found - before).abs().max() > 1e-3
    assert not any(weight.grad is not None for weight in backbone.model.parameters())


def test_an_image_has_one_answer_in_every_order_and_command(tiny_clip: Backbone) -> None:
    fitted = fitted_on(tiny_clip)
    table = probabilities(fitted, IMAGES)
    backwards = ImageSet(IMAGES.images[::-1], IMAGES.labels[::-1], CLASSES)
    assert torch.equal(probabilities(fitted, backwards), table.flip(0))
    for hold in (True, False):
        cache = Cache(tiny_clip, Machine(device="cpu"), hold=hold, progress=False)
        models = {"it": fitted.score()}
        again = predict_all(models, fitted, cache, IMAGES, seed=1)["it"]
        torch.testing.assert_close(again, table, rtol=0, atol=1e-5)
    [alone] = fitted.probabilities(IMAGES.images[:1])
    torch.testing.assert_close(alone, table[:1], rtol=0, atol=1e-5)


def test_many_classes_are_encoded_in_chunks(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probabilities(fitted_on(tiny_clip), IMAGES)
    monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", 3)
    torch.testing.assert_close(
        probabilities(fitted_on(tiny_clip), IMAGES), whole, atol=1e-5, rtol=0
    )


def test_views_differ_between_images_and_from_each_other(tiny_clip: Backbone) -> None:
    views = fitted_on(tiny_clip).transform
    one, same, other = (views(load_image(IMAGES.images[i])) for i in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one[1], other[1])
    assert all(not torch.allclose(one[i], one[i - 1]) for i in range(1, len(one)))
    assert torch.equal(one[0], tiny_clip.preprocess(load_image(IMAGES.images[0])))


def test_exports_and_services_are_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="TPT"):
        AnswerModule(fitted_on(tiny_clip), CLASSES)
