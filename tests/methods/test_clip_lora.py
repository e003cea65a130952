"""CLIP-LoRA against the backbone's own forward pass with the updates merged into its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from rmadapter.backbones import Backbone
from rmadapter.encoders import blocks, encoder
from rmadapter.methods.clip_lora import CLIPLoRA, LowRank, UpdatedCLIP
from rmadapter.prompts import cosine_logits, stems
from rmadapter.settings import configured
from rmadapter.training.contract import Known
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

NAMES = ("cat", "a small red car. a blue bird", "dog")
IMAGE = {"tiny_clip": "visual.transformer.resblocks.{}.attn.in_proj_weight"}
TEXT = {"tiny_clip": "transformer.resblocks.{}.attn.in_proj_weight"}
TIMM = "visual.trunk.blocks.{}.attn.qkv.weight"
BERT = "text.transformer.encoder.layer.{}.attention.self.{}.weight"


def merged(name: str, model: UpdatedCLIP) -> dict[str, torch.Tensor]:
    """Weights of query, key and value with scale * B A in them, by their names in the backbone."""
    clip: Any = model.backbone.model
    weights = {}
    both: Any = model.updates
    for side, updates in zip(("image", "text"), both, strict=True):
        for i, three in enumerate(updates):
            deltas = [update.scale * update.up.weight @ update.down.weight for update in three]
            if side == "text" and name not in TEXT:
                for role, delta in zip(("query", "key", "value"), deltas, strict=True):
                    key = BERT.format(i, role)
                    weights[key] = clip.get_parameter(key) + delta
            else:
                key = (IMAGE if side == "image" else TEXT).get(name, TIMM).format(i)
                weights[key] = clip.get_parameter(key) + torch.cat(deltas)
    return weights


class Both(torch.nn.Module):
    """functional_call reaches one forward alone."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
        x = F.normalize(self.clip.encode_image(images), dim=-1)
        each = [F.normalize(self.clip.encode_text(tokens), dim=-1) for tokens in prompts]
        return self.clip.logit_scale.exp() * x @ F.normalize(torch.stack(each).mean(0), dim=-1).T


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("{}", "a photo of a {}.")])
@pytest.mark.parametrize("chunk", [2, 1024])
def test_logits_and_gradients_are_those_of_merged_weights(
    name: str,
    trained: bool,
    templates: tuple[str, ...],
    chunk: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", chunk)  # more prompts than fit at once
    given: Backbone = request.getfixturevalue(name)
    backbone = double(given)
    random = torch.Generator().manual_seed(1)
    images, shots = torch.randn(4, 3, 32, 32, generator=random).double(), noise_images(4, NAMES)
    method = CLIPLoRA(rank=3, alpha=2.0, dropout=0)
    start = untrained(method, backbone, shots_of(given, shots, templates=templates))
    model = start.module.double()
    if trained:
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random).double()

    states = backbone.image.frozen(images, 1)
    w = model.class_features(stems(backbone, NAMES, templates), len(templates))
    lean = cosine_logits(backbone, model.image_features(states, model.views[0]), w)
    # with updates in copies of the weights
    answers = model.for_classes(NAMES, Known(NAMES, templates))(states)
    torch.testing.assert_close(answers, lean, rtol=1e-9, atol=1e-9)
    prompts = [backbone.tokenizer([t.format(n) for n in NAMES]) for t in templates]
    weights = {f"clip.{key}": value for key, value in merged(name, model).items()}
    whole = functional_call(Both(backbone.model), weights, (images, prompts))
    torch.testing.assert_close(lean, whole, rtol=1e-9, atol=1e-9)
    loss = start.terms(range(4), images=states)["loss"]
    plain = F.cross_entropy(whole, torch.tensor(shots.labels))
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-9)
    found, expected = gradients(model, loss), gradients(model, plain)
    largest = max(float(gradient.norm()) for gradient in expected.values())
    assert largest > 0
    assert all(float((found[key] - expected[key]).norm()) < 1e-8 * largest for key in expected)
    untouched = Both(backbone.model)(images, prompts)
    assert torch.allclose(lean, untouched, rtol=1e-9) is not trained  # B is zero at first


def test_dropout_is_in_front_of_each_update_and_in_training_alone() -> None:
    update, x = LowRank(6, 2, 0.5, 0.25), torch.randn(5, 6)
    torch.nn.init.normal_(update.up.weight)
    torch.manual_seed(3)
    kept = F.dropout(x, 0.25)
    torch.manual_seed(3)
    torch.testing.assert_close(update(x), 0.5 * (kept @ update.down.weight.T) @ update.up.weight.T)
    assert (kept == 0).any()
    torch.testing.assert_close(
        update.eval()(x), 0.5 * (x @ update.down.weight.T) @ update.up.weight.T
    )


@pytest.mark.parametrize("dropout", [0.25, 0.0])
def test_with_dropout_prompts_share_no_prefix(tiny_clip: Backbone, dropout: float) -> None:
    """Each token of each prompt is dropped by itself; without dropout, what all begin with is
    computed once."""
    shots = shots_of(tiny_clip, noise_images(4, NAMES))
    start = untrained(CLIPLoRA(dropout=dropout), tiny_clip, shots)
    seen: list[int] = []
    start.module.updates[1][0][0].register_forward_pre_hook(
        lambda module, given: seen.append(len(given[0]))
    )
    start.terms([0, 1])
    ((_, layout),) = stems(tiny_clip, NAMES, shots.templates, share=dropout == 0)
    assert (layout.prefix > 0) == (dropout == 0)
    assert seen == [len(layout.ids)]


def test_frozen_weights_are_cast_to_bfloat16_once_and_not_in_every_step(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, cast = replace(tiny_clip), []
    monkeypatch.setattr(
        encoder, "cast", lambda block, kind: cast.append(block) or blocks.cast(block, kind)
    )
    start = untrained(CLIPLoRA(), backbone, shots_of(backbone, noise_images(4, NAMES)))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            start.terms([0, 1])["loss"].backward()
        assert len(cast) == backbone.image.depth + backbone.text.depth
    assert all(parameter.grad is not None for parameter in start.module.parameters())


def test_the_schedule_is_torchs_cosine_over_as_many_steps_as_the_shots_ask_for(
    tiny_clip: Backbone,
) -> None:
    shots = shots_of(tiny_clip, noise_images(12, ("cat", "dog", "car"), grain=32))
    method = configured(CLIPLoRA(), {"batch_size": 5, "iterations": 7})
    recipe = method.recipe
    steps = 30  # 7 iterations x 4 shots, and whole epochs of 3
    assert recipe.length(shots.images.labels) == (10, 3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    expected = []
    for step in range(steps):
        expected.append(float(scheduler.get_last_lr()[0]))
        assert recipe.rate(step, 3, 10) == pytest.approx(expected[-1], rel=1e-6)
        optimizer.step()
        scheduler.step()
    assert [step["lr"] for step in method.fit(tiny_clip, shots).trained.history] == pytest.approx(
        expected, rel=1e-6
    )
