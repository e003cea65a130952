"""2SFS against the backbone's own forward pass with other LayerNorms, and AdamW by hand."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.methods.two_stages import Norms, TwoStages
from rmadapter.settings import configured
from rmadapter.training import traits
from tests.helpers.rounding import assert_same_float32, double
from tests.helpers.shots import noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

NAMES = ("cat", "a small red car. a blue bird", "dog")
TEMPLATES = ("a photo of a {}.", "{}")
WHOLE = {"iterations": 0, "batch_size": 100}


def norms_of(model: Any) -> list[torch.nn.Module]:
    """Those in blocks, by their names, the image encoder's first."""
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)]
    found = [(name, m) for name, m in named if re.search(r"(resblocks|blocks|layer)\.\d", name)]
    return [m for _, m in sorted(found, key=lambda pair: not pair[0].startswith("visual"))]


def with_norms(backbone: Backbone, module: Norms) -> Any:
    """The backbone's model with those that were trained in the place of its own."""
    model: Any = copy.deepcopy(backbone.model)
    for own, other in zip(norms_of(model), module.norms, strict=True):
        own.load_state_dict(other.state_dict())
        own.requires_grad_()
    return model


def plain_features(model: Any, backbone: Backbone, names: tuple[str, ...]) -> torch.Tensor:
    """[C, e] by the text encoder's own forward pass."""
    each = [
        model.encode_text(backbone.tokenizer([t.format(name) for name in names])) for t in TEMPLATES
    ]
    return F.normalize(torch.stack([F.normalize(part, dim=-1) for part in each]).mean(0), dim=-1)


@pytest.mark.parametrize("chunk", [2, 1024])
@pytest.mark.parametrize(
    "name", ci_except(["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"], "tiny_clip")
)
def test_stage_1_is_the_backbones_forward_with_other_norms(
    name: str, chunk: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients and answers; a class that was not trained is answered by the text encoder."""
    # more prompts than fit at once
    monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", chunk)
    given: Backbone = request.getfixturevalue(name)
    backbone, pixels = double(given), torch.randn(4, 3, 32, 32).double()
    shots = shots_of(given, noise_images(4, NAMES), templates=TEMPLATES)
    start = untrained(TwoStages(), backbone, shots)
    module: Norms = start.module
    for parameter in module.norms.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model, states = with_norms(backbone, module), backbone.image.frozen(pixels, 1)
    x, w = F.normalize(model.encode_image(pixels), dim=-1), plain_features(model, backbone, NAMES)
    plain = F.cross_entropy(model.logit_scale.exp() * x @ w.T, shots.labels)
    loss = start.terms(range(4), images=states)["loss"]
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-9)
    theirs = [p for norm in norms_of(model) for p in norm.parameters()]
    found, expected = (
        torch.autograd.grad(value, some, allow_unused=True)
        for value, some in ((loss, list(module.norms.parameters())), (plain, theirs))
    )
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    other_names = ("tree", "cat", "red bird")
    module.classes.data = torch.randn_like(module.classes)
    fitted = TwoStages().restore(backbone, shots.known, module.state_dict())
    with torch.no_grad():
        w = plain_features(model, backbone, other_names)
        w[1] = F.normalize(module.classes[0], dim=-1)
        expected_logits = model.logit_scale.exp() * x @ w.T
    torch.testing.assert_close(
        fitted.score(other_names)(states), expected_logits, rtol=1e-9, atol=1e-9
    )


def test_both_stages_with_the_steps_of_adamw(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five epochs of one step: three of the norms, which then stay, and two of the class
    features."""
    shots = shots_of(tiny_clip, noise_images(6, NAMES, grain=32), templates=TEMPLATES)
    fitted = configured(TwoStages(), {**WHOLE, "epochs": 5, "learning_rate": 0.01}).fit(
        tiny_clip, shots
    )
    monkeypatch.setattr(traits, "RESTART_SHARE", 1.0)
    first = configured(TwoStages(), {**WHOLE, "epochs": 3, "learning_rate": 0.01}).fit(
        tiny_clip, shots
    )
    rest = {name: tensor for name, tensor in fitted.tensors.items() if name != "classes"}
    assert len(rest) == 4 * 4 * 2  # two norms in each of four blocks of either encoder
    assert all(torch.equal(tensor, first.tensors[name]) for name, tensor in rest.items())
    module = Norms(tiny_clip, 3)
    module.load_state_dict(dict(first.tensors))
    assert not torch.equal(module.norms[0].weight, norms_of(tiny_clip.model)[0].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        model, states = with_norms(tiny_clip, module), shots.source(1).batch(torch.arange(6))
        x = F.normalize(module.image_features(states), dim=-1)
        start = plain_features(model, tiny_clip, NAMES)
    assert_same_float32(first.tensors["classes"], start)
    weights = torch.nn.Parameter(first.tensors["classes"].clone())
    optimizer = torch.optim.AdamW([weights], lr=0.01, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2, eta_min=1e-6)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(
            tiny_clip.logit_scale * x @ F.normalize(weights, dim=-1).T, shots.labels
        )
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        scheduler.step()
    history = fitted.trained.history
    assert [step["loss"] for step in history[3:]] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(fitted.tensors["classes"], weights.detach(), rtol=1e-4, atol=1e-5)


def test_the_schedule_is_torchs_cosine_twice(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(9, NAMES, grain=32))
    fitted = configured(TwoStages(), {"batch_size": 5, "iterations": 6}).fit(tiny_clip, shots)
    expected = []
    # 6 iterations x 3 shots: 9 epochs of 2 steps, of which 5.4 are the first stage
    for steps in (10, 8):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
        for _ in range(steps):
            expected.append(float(scheduler.get_last_lr()[0]))
            optimizer.step()
            scheduler.step()
    assert [step["lr"] for step in fitted.trained.history] == pytest.approx(expected, rel=1e-6)


def test_only_norms_are_its_own(tiny_clip: Backbone) -> None:
    module = Norms(tiny_clip, 2)
    own = {id(parameter) for parameter in module.norms.parameters()}
    theirs: dict[int, str] = {
        id(tensor): name for name, tensor in tiny_clip.model.named_parameters()
    }
    assert not own & {*theirs}
    top: Any = module.image.blocks[-1]
    assert theirs[id(top.mlp.c_fc.weight)] == "visual.transformer.resblocks.3.mlp.c_fc.weight"
