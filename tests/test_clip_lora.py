"""CLIP-LoRA against the backbone's own forward pass with the updates merged into its weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import clip_lora
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.clip_lora import LAST_RATE, CLIPLoRA, LowRank, UpdatedCLIP
from rmadapter.bench.methods.zero_shot import ZeroShot
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError

CPU = torch.device("cpu")
NAMES = ("cat", "a small red car. a blue bird", "dog")
IMAGE = {"tiny_clip": "visual.transformer.resblocks.{}.attn.in_proj_weight"}
TEXT = {"tiny_clip": "transformer.resblocks.{}.attn.in_proj_weight"}
TIMM, BERT = "visual.trunk.blocks.{}.attn.qkv.weight", "text.transformer.encoder.layer.{}.attention.self.{}.weight"


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

    def forward(self, pictures: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
        x = F.normalize(self.clip.encode_image(pictures), dim=-1)
        each = [F.normalize(self.clip.encode_text(tokens), dim=-1) for tokens in prompts]
        return self.clip.logit_scale.exp() * x @ F.normalize(torch.stack(each).mean(0), dim=-1).T


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
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
    monkeypatch.setattr(clip_lora, "CHUNK", chunk)  # more prompts than fit at once
    given: Backbone = request.getfixturevalue(name)
    backbone = replace(given, model=copy.deepcopy(given.model).double())
    random = torch.Generator().manual_seed(1)
    pictures = torch.randn(4, 3, 32, 32, generator=random).double()
    labels = torch.tensor([0, 1, 2, 0])
    model = CLIPLoRA(rank=3, alpha=2.0).model(backbone, 5).double().eval()
    if trained:
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random).double()

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters())))

    states = model.image.frozen(pictures)
    lean = model.logits(states, model.class_weights(model.prompts(NAMES, templates, share=True), len(templates)))
    prompts = [backbone.tokenizer([t.format(n) for n in NAMES]) for t in templates]
    weights = {f"clip.{key}": value for key, value in merged(name, model).items()}
    whole = functional_call(Both(backbone.model), weights, (pictures, prompts))
    torch.testing.assert_close(lean, whole, rtol=1e-9, atol=1e-9)
    pairs = list(zip(gradients(lean), gradients(whole), strict=True))
    largest = max(float(plain.norm()) for _, plain in pairs)
    assert largest > 0
    assert all(float((own - plain).norm()) < 1e-8 * largest for own, plain in pairs)
    untouched = Both(backbone.model)(pictures, prompts)
    assert torch.allclose(lean, untouched, rtol=1e-9) is not trained  # B is zero at first


def test_dropout_is_in_front_of_each_update_and_in_training_alone() -> None:
    update, x = LowRank(6, 2, 0.5, 0.25), torch.randn(5, 6)
    torch.nn.init.normal_(update.up.weight)
    torch.manual_seed(3)
    kept = F.dropout(x, 0.25)
    torch.manual_seed(3)
    torch.testing.assert_close(update(x), 0.5 * (kept @ update.down.weight.T) @ update.up.weight.T)
    assert (kept == 0).any()
    torch.testing.assert_close(update.eval()(x), 0.5 * (x @ update.down.weight.T) @ update.up.weight.T)


def noise(backbone: Backbone, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> Training:
    """Pictures of one random colour each, without any meaning."""
    arrays = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    images = ImageSet(tuple(arrays), tuple(i % len(classes) for i in range(count)), classes)
    return Training(images, None, Activations(backbone, Config.make({"device": "cpu"})), progress=False)


def logits(done: Classifier, train: Training, names: tuple[str, ...] | None = None) -> torch.Tensor:
    states = train.frozen(done.first).batch(torch.arange(len(train.images)), CPU)
    return done.for_classes(names or train.images.classes)(states)


def test_eight_images_are_learnt_by_heart_and_the_backbone_stays(tiny_clip: Backbone) -> None:
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    train, method = noise(tiny_clip, 8), CLIPLoRA(learning_rate=0.02, iterations=15)
    state = torch.random.get_rng_state()
    done, again = method.fit(tiny_clip, train), method.fit(tiny_clip, train)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (logits(done, train).argmax(1) == torch.tensor(train.images.labels)).all()
    assert done.history[-1]["loss"] < 0.1 * done.history[0]["loss"]
    assert torch.equal(logits(done, train), logits(again, train))
    assert logits(done, train, ("tree", "a blue house", "cat")).shape == (8, 3)
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tiny_clip.model.parameters())
    plain, zero = ZeroShot().fit(tiny_clip, train), CLIPLoRA(iterations=0).fit(tiny_clip, train)
    torch.testing.assert_close(logits(zero, train), logits(plain, train), rtol=1e-4, atol=1e-4)


def test_the_schedule_is_torchs_cosine_over_as_many_steps_as_the_shots_ask_for(tiny_clip: Backbone) -> None:
    train = noise(tiny_clip, 12, ("cat", "dog", "car"))
    method = CLIPLoRA(batch_size=5, iterations=7)
    recipe = method._recipe(train)
    steps = 30  # 7 iterations x 4 shots, and whole epochs of 3
    assert recipe.epochs * 3 == steps
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=LAST_RATE)
    for step in range(steps):
        assert recipe.rate(step, 3) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()
    assert len(method.fit(tiny_clip, train).history) == steps


def test_parameters_of_vit_b16() -> None:
    # 12 blocks x 3 matrices x rank 2 x (768 + 768), and the same with 512 in the text encoder: the sum over
    # get_lora_parameters of the released code, applied to its own ViT-B/16
    assert CLIPLoRA().parameters(load_backbone("ViT-B-16/none")) == 110_592 + 73_728


def test_what_cannot_be_updated_says_so(tiny_eva: Backbone, tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match=r"blocks \(EvaBlock\) that cannot be taken apart"):
        CLIPLoRA().parameters(tiny_eva)
    with pytest.raises(UserError, match="rank=0"):
        CLIPLoRA(rank=0).parameters(tiny_clip)
