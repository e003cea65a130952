"""RMAdapter+ against its formula by the backbone's own forward passes, and its regression against
scikit-learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.methods.ridge import HEAD, ridge
from rmadapter.methods.rmadapter import PLAIN
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.settings import configured
from rmadapter.training.contract import Fitted, Shots
from tests.helpers.shots import logits_of, noisy_colors, pixels_of, shots_of

QUICK = {"epochs": 2, "first_block": 3, "rank": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def shots(tiny_clip: Backbone) -> Shots:
    return shots_of(tiny_clip, noisy_colors(3))


def fitted_to(shots: Shots, backbone: Backbone, **fields: Any) -> Fitted:
    return configured(RMAdapterPlus(), {**QUICK, **fields}).fit(backbone, shots)


def unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features, dim=-1)


def prompts(encode: Any, backbone: Backbone, name: str, templates: tuple[str, ...]) -> torch.Tensor:
    return unit(
        unit(encode(backbone.tokenizer([template.format(name) for template in templates]))).mean(0)
    )


@torch.no_grad()
def test_logits_are_the_formula_by_the_backbones_own_forward_passes(
    tiny_clip: Backbone, shots: Shots
) -> None:
    with torch.enable_grad():
        fitted = fitted_to(shots, tiny_clip, head=0.7, keep=0.3, general=("art of {}.", "a {}!"))
    model = fitted.method.model(tiny_clip)  # type: ignore[attr-defined]
    model.adapters.load_state_dict(
        {name: tensor for name, tensor in fitted.tensors.items() if name != HEAD}
    )
    pixels, run = pixels_of(tiny_clip, shots.images), shots.templates
    f, g = unit(model.encode_image(pixels)), unit(tiny_clip.model.encode_image(pixels))
    names = ("house", shots.classes[1], "tree")  # a class of the shots among others
    more, expected = (*run, "art of {}.", "a {}!"), []
    for name in names:
        if name in shots.classes:
            r = fitted.tensors[HEAD][shots.classes.index(name)]
            expected.append(f @ prompts(model.encode_text, tiny_clip, name, run) + 0.7 * g @ r)
        else:
            own, untouched = (
                prompts(m.encode_text, tiny_clip, name, more) for m in (model, tiny_clip.model)
            )
            expected.append(0.3 * f @ own + 0.7 * g @ untouched)
    found = fitted.score(names)(fitted.states(pixels))
    torch.testing.assert_close(
        found, tiny_clip.logit_scale * torch.stack(expected, 1), rtol=1e-4, atol=1e-3
    )
    # untouched features that are there already
    both = fitted.score(names)(fitted.states(pixels, features=True))
    torch.testing.assert_close(both, found, rtol=1e-4, atol=1e-3)


def test_the_regression_is_scikit_learns_and_a_weight_of_two_is_an_image_twice() -> None:
    x, labels = unit(torch.randn(12, 5, dtype=torch.float64)), torch.arange(12) % 3
    weights = torch.linspace(0.2, 2, 12, dtype=torch.float64)
    y = F.one_hot(labels, 3).double() - 1 / 3
    for some in (None, weights):
        oracle = Ridge(0.4, fit_intercept=False).fit(
            x.numpy(), y.numpy(), None if some is None else some.numpy()
        )
        torch.testing.assert_close(ridge(x, labels, 3, 0.4, some), torch.from_numpy(oracle.coef_))
    twice = torch.ones(12, dtype=torch.float64)
    twice[0] = 2
    again = ridge(torch.cat([x, x[:1]]), torch.cat([labels, labels[:1]]), 3, 0.4)
    torch.testing.assert_close(ridge(x, labels, 3, 0.4, twice), again)


def test_without_its_pieces_it_is_the_adapters_alone(tiny_clip: Backbone, shots: Shots) -> None:
    plain = configured(PLAIN, QUICK).fit(tiny_clip, shots)
    bare = fitted_to(shots, tiny_clip, head=0.0, keep=1.0, general=())
    for names in (shots.classes, ("house", "tree", shots.classes[0])):
        torch.testing.assert_close(logits_of(bare, shots, names), logits_of(plain, shots, names))
    assert not torch.allclose(
        logits_of(fitted_to(shots, tiny_clip), shots), logits_of(plain, shots), atol=0.1
    )


def test_new_classes_alone_without_the_adapted_share_are_answered_as_by_zero_shot(
    tiny_clip: Backbone, shots: Shots
) -> None:
    untouched = load_method("zero-shot").fit(tiny_clip, shots)
    cautious = fitted_to(shots, tiny_clip, keep=0.0, general=())
    new = ("house", "tree")
    torch.testing.assert_close(logits_of(cautious, shots, new), logits_of(untouched, shots, new))


def test_it_learns_its_shots_and_counts_what_it_learns(tiny_clip: Backbone, shots: Shots) -> None:
    fitted = fitted_to(shots, tiny_clip, epochs=25, learning_rate=0.01)
    assert (logits_of(fitted, shots).argmax(1) == shots.labels).all()
    assert fitted.parameters == fitted.method.parameters(tiny_clip, len(shots.classes)).trained
    assert fitted.parameters == sum(tensor.numel() for tensor in fitted.tensors.values())
