"""MAIL against the backbones' own forward passes with hooks, and its merged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import blocks, encoder
from rmadapter.methods.mail import MAIL, AgentCLIP
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.prompts import stems
from rmadapter.training.contract import Known
from tests.helpers.deep_prompts import NAMES, pixels
from tests.helpers.models import (
    CLIP_TEXT,
    PATCH,
    SIZE,
    WIDTH,
    timm_vision,
    write_bert,
    write_model,
)
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

KINDS = ["tiny_clip", "tiny_hf", "tiny_siglip", "uneven", "headless"]
PLACES = {  # in a block: ours -> open_clip's, timm's, BERT's
    "norm": ("ln_1", "norm1", "attention.output.LayerNorm"),
    "attention": ("attn", "attn", "attention.output.dense"),
    "norm2": ("ln_2", "norm2", "output.LayerNorm"),
    "mlp": ("mlp", "mlp", "output.dense"),
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Four blocks of images and two of text."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "head_width": 16}
    config = {"vision_cfg": {**vision, "layers": 4}, "text_cfg": {**CLIP_TEXT, "layers": 2}}
    folder: Path = tmp_path_factory.mktemp("uneven")
    return load_backbone(str(write_model(folder, config)))


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """No projection of images, and two layers with an activation behind a BERT."""
    folder: Path = tmp_path_factory.mktemp("headless")
    vision = timm_vision(folder / "vit", "vit_small_patch14_dinov2", "token", init_values=0.1)
    bert = str(write_bert(folder / "bert"))
    text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "hf_model_pretrained": False}
    text |= {"context_length": 16, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
    write_bert(folder)
    config = {"vision_cfg": {**vision, "timm_proj": "none"}, "text_cfg": text, "custom_text": True}
    return load_backbone(str(write_model(folder, {**config, "embed_dim": WIDTH})))


class Projection(nn.Linear):
    """x W + bias, for W [d, e]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(1, 1)
        self.numbers, self.added = (weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.numbers + (0 if self.added is None else self.added)


def changed(values: dict[str, Tensor], agent: str, text: str = "") -> Callable[[Tensor], Tensor]:
    """The agent layer of this name. text: name of the one at the other end of its bridge."""
    scale = values[f"{agent}.scale"]
    if text:
        low = values[f"{text}.scale"] @ values[f"{agent}.down"]
        scale = scale + low @ values[f"{agent}.up"]
    return lambda x: scale * x + values[f"{agent}.shift"]


def hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Have the module give what the agent layer makes of its output."""

    def after(module: nn.Module, given: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return change(output[0]), *output[1:]
        return change(output)

    module.register_forward_hook(after)


def plain(
    backbone: Backbone, module: AgentCLIP, images: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Features of images, and unit features of texts, by the model's own forward passes."""
    model: Any = copy.deepcopy(backbone.model)
    visual, text = model.visual, getattr(model, "text", model)
    values = dict(module.agents.named_parameters())
    weights = dict(module.projections)
    timm, bert = hasattr(visual, "trunk"), hasattr(text.transformer, "encoder")
    stacks = {
        "image": (visual.trunk.blocks if timm else visual.transformer.resblocks, int(timm)),
        "text": (
            text.transformer.encoder.layer if bert else text.transformer.resblocks,
            2 * int(bert),
        ),
    }
    share = len(stacks["image"][0]) // len(stacks["text"][0])
    for side, (stack, kind) in stacks.items():
        for i, block in enumerate(stack, 1):
            for place, names in PLACES.items():
                beside = f"text.{-(-i // share)}.{place}" if side == "image" else ""
                change = changed(values, f"{side}.{i}.{place}", beside)
                hook(block.get_submodule(names[kind]), change)
    hook(
        visual.trunk if timm else visual.ln_post,
        changed(values, "image.top.norm", "text.top.norm"),
    )
    hook(text.pooler if bert else text.ln_final, changed(values, "text.top.norm"))
    if "image" in weights and timm:
        visual.head.proj = Projection(weights["image"], visual.head.proj.bias)
    elif "image" in weights:
        visual.proj = weights["image"]
    if "text" not in weights:
        assert isinstance(text.proj, nn.Sequential)
    elif bert:
        text.proj = Projection(weights["text"], text.proj.bias)
    elif isinstance(text.text_projection, nn.Linear):
        text.text_projection = Projection(weights["text"], text.text_projection.bias)
    else:
        text.text_projection = weights["text"]
    last = changed(values, "image.top.projection", "text.top.projection")
    f = last(model.encode_image(images))
    w = changed(values, "text.top.projection")(model.encode_text(tokens))
    return f, F.normalize(w, dim=-1)


def shaken(module: AgentCLIP) -> AgentCLIP:
    """Move all that is trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += 0.2 * noise
    return module


@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_features_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """In training, and for answers with the agent layers merged into the weights."""
    backbone = double(request.getfixturevalue(name))
    module, images = shaken(MAIL(rank=3).module(backbone).double()), pixels(backbone)
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    states = backbone.image.frozen(images, 1)
    f = module.image_features(states)
    w = module.class_features(stems(backbone, NAMES, ("a photo of a {}.",)), 1)
    f_plain, w_plain = plain(backbone, module, images, tokens)
    torch.testing.assert_close(f, f_plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(w, w_plain, rtol=1e-9, atol=1e-10)
    merged = module.image_features(states, module.merged())
    torch.testing.assert_close(merged, f, rtol=1e-9, atol=1e-10)
    goal = torch.randn(len(f), len(w), generator=torch.Generator().manual_seed(2)).double()
    found, expected = (
        gradients(module, (x @ y.T * goal).sum()) for x, y in ((f, w), (f_plain, w_plain))
    )
    assert found.keys() == {name for name, _ in module.named_parameters()}
    for own, value in expected.items():
        assert value.norm() > 0, own
        assert (found[own] - value).norm() <= 1e-8 * value.norm(), own


@pytest.mark.parametrize("projections", [True, False])
@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_untrained_it_is_zero_shot(
    name: str, projections: bool, request: pytest.FixtureRequest
) -> None:
    backbone, known = double(request.getfixturevalue(name)), Known(NAMES)
    method = MAIL(projections=projections)
    module = method.module(backbone).double()
    assert len(module.projections) == (2 if projections and name != "headless" else 0)
    states = backbone.image.frozen(pixels(backbone), 1)
    answers = module.for_classes(NAMES, known)(states)
    expected = ZeroShot().restore(backbone, known, {}).score()(states)
    torch.testing.assert_close(answers, expected, rtol=1e-9, atol=1e-9)


def test_merged_weights_are_all_that_a_model_has_of_its_own(tiny_clip: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_clip.model.state_dict().items()}
    merged: Any = shaken(MAIL().module(tiny_clip)).merged()
    theirs = {tensor.data_ptr(): name for name, tensor in tiny_clip.model.named_parameters()}
    own = [p for p in merged.visual.parameters() if p.data_ptr() not in theirs]
    # weight and bias of two norms, the output of attention and that of the MLP, in four blocks
    assert len(own) == 4 * 4 * 2
    assert all(torch.equal(tensor, before[n]) for n, tensor in tiny_clip.model.state_dict().items())


def test_all_blocks_start_with_equal_bridges_drawn_by_the_seed(tiny_clip: Backbone) -> None:
    first, again, other = (MAIL().module(tiny_clip, seed).state_dict() for seed in (1, 1, 2))
    downs = [name for name in first if name.endswith(".down")]
    assert len(downs) == 4 * 4 + 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in downs)
    in_blocks = [first[name] for name in downs if ".top." not in name]
    assert all(torch.equal(one, in_blocks[0]) for one in in_blocks)
    assert in_blocks[0].std() == pytest.approx(48**-0.5, rel=0.1)  # the text encoder's width


def test_frozen_weights_are_cast_to_bfloat16_once_and_not_in_every_step(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, cast = replace(tiny_clip), []
    monkeypatch.setattr(
        encoder, "cast", lambda block, kind: cast.append(block) or blocks.cast(block, kind)
    )
    start = untrained(MAIL(), backbone, shots_of(backbone, noise_images(4, NAMES)))
    shaken(start.module)
    exact = float(start.terms([0, 1])["loss"].detach())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = start.terms([0, 1])["loss"]
        loss.backward()
    assert len(cast) == backbone.image.depth + backbone.text.depth
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05)
    assert all(parameter.grad is not None for parameter in start.module.parameters())
