"""From class names to logits, against open_clip's own text encoder and plain arithmetic."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter import prompts
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods.parts.learned_prompts import init_words
from rmadapter.prompts import (
    bounded_text,
    class_weights,
    cosine_logits,
    frozen_prompts,
    linear_logits,
    prompts_each,
    raw_text_features,
    text_features,
    token_chunks,
    tokenize,
    zero_shot_weights,
)
from tests.helpers.models import CLIP_TEXT, write_model
from tests.helpers.rounding import assert_same_float32, double

NAMES = ("cat", "a small red car", "dog")
TEMPLATES = ("the {}.", "a small {}", "{}")
ONE = ("a photo of a {}.",)


def open_clip_features(backbone: Backbone, templates: tuple[str, ...] = TEMPLATES) -> Tensor:
    """[templates, C, e] by the backbone's own forward pass, one template at a time."""
    clip: Any = backbone.model
    with torch.no_grad():
        return torch.stack(
            [
                clip.encode_text(backbone.tokenizer([t.format(name) for name in NAMES]))
                for t in templates
            ]
        )


def test_tokens_are_template_by_template(tiny_clip: Backbone) -> None:
    texts = ["the cat.", "the dog.", "cat", "dog"]
    assert torch.equal(
        tokenize(tiny_clip, ["cat", "dog"], ["the {}.", "{}"]), tiny_clip.tokenizer(texts)
    )
    with pytest.raises(UserError, match="name at least one class"):
        tokenize(tiny_clip, [], ONE)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"])
def test_features_and_weights_equal_open_clips(name: str, request: pytest.FixtureRequest) -> None:
    """In float64; several templates are averaged as unit vectors."""
    backbone = double(request.getfixturevalue(name))
    raw = open_clip_features(backbone)
    torch.testing.assert_close(
        raw_text_features(backbone, NAMES, TEMPLATES), raw, rtol=1e-9, atol=1e-10
    )
    mean = sum(each / each.norm(dim=-1, keepdim=True) for each in raw) / 3
    expected = mean / mean.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        zero_shot_weights(backbone, NAMES, TEMPLATES), expected, rtol=1e-9, atol=1e-10
    )
    one = F.normalize(open_clip_features(backbone, ONE)[0], dim=-1)
    torch.testing.assert_close(zero_shot_weights(backbone, NAMES, ONE), one, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("templates", [ONE, TEMPLATES])
def test_each_description_of_a_class_counts_equally(
    tiny_clip: Backbone, templates: tuple[str, ...]
) -> None:
    """1, 2 and 3 of them, against each prompt encoded alone and the plain average of its unit
    vector."""
    backbone = double(tiny_clip)
    some = [["cat"], ["dog", "a small hound"], ["bird", "crane", "a tall grey bird"]]
    names = tuple(" | ".join(each) for each in some)
    assert prompts_each(names, templates) == 6 * len(templates)
    assert tokenize(backbone, names, templates).shape[0] == 3 * 6 * len(templates)
    clip: Any = backbone.model
    expected = []
    for each in some:
        texts = [t.format(text) for t in templates for text in each]
        with torch.no_grad():
            alone = [
                F.normalize(clip.encode_text(backbone.tokenizer([text])), dim=-1) for text in texts
            ]
        expected.append(F.normalize(torch.stack(alone).mean(0)[0], dim=-1))
    found = zero_shot_weights(backbone, names, templates)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-10)
    assert raw_text_features(backbone, names, templates).shape[:2] == (6 * len(templates), 3)


def test_numbers_of_descriptions_with_a_large_multiple_are_refused() -> None:
    names = [" | ".join("x" * count) for count in (1, 5, 7, 9)]
    with pytest.raises(UserError, match=r"1, 5, 7, 9 descriptions.* 315 .* 100"):
        prompts_each(names, ONE)
    assert prompts_each(names[:3], TEMPLATES) == 3 * 35


def test_prompts_are_bounded(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="100,001"):
        tokenize(tiny_clip, [str(i) for i in range(100_001)], ONE)
    with pytest.raises(UserError, match="100,001"):
        text_features(tiny_clip, ["a"] * 100_001)
    with bounded_text(5, lambda: None):
        assert len(tokenize(tiny_clip, NAMES[:2], TEMPLATES[:1])) == 2
        with pytest.raises(UserError, match="6 prompts"):
            tokenize(tiny_clip, ["a", "b"], ["{}", "{}.", "{}!"])
    assert len(tokenize(tiny_clip, ["a", "b"], ["{}", "{}.", "{}!"])) == 6


def test_a_template_is_no_format(tiny_clip: Backbone) -> None:
    """Its own text is never looked up, whoever checked it."""
    for template in ("{0.__class__}", "{:>100000000000}", "{} {}"):
        tokenize(tiny_clip, ["a"], [template])


def test_templates_are_averaged_as_unit_vectors() -> None:
    # 2 templates x 2 classes
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 5.0]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]])
    torch.testing.assert_close(class_weights(features, 2), expected)
    torch.testing.assert_close(class_weights(features[:2]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert class_weights(features.bfloat16(), 2).dtype == torch.float32
    assert class_weights(features.double(), 2).dtype == torch.float64


@pytest.mark.parametrize("first", [None, 3])
def test_prompts_in_chunks_equal_prompts_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, first: int | None
) -> None:
    (whole,) = frozen_prompts(tiny_clip, NAMES, TEMPLATES, first)
    monkeypatch.setattr(prompts, "CHUNK_PROMPTS", 4)
    parts = frozen_prompts(tiny_clip, NAMES, TEMPLATES, first)
    assert [len(part.features) for part in parts] == [4, 4, 1]
    assert all(part.first == first and (len(part.x) > 0) == (first is not None) for part in parts)
    assert_same_float32(torch.cat([part.features for part in parts]), whole.features)


def test_prompts_whose_every_token_is_read_are_split_further(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 tokens, CLIP reads those of the text, and other encoders the padding, too."""
    tokens = tokenize(tiny_clip, NAMES, TEMPLATES)
    read, _ = tiny_clip.text.real_tokens(tokens)
    monkeypatch.setattr(prompts, "MAX_TOKENS", int(read.sum()))
    assert [len(part) for part in token_chunks(tiny_clip, tokens)] == [9]
    monkeypatch.setattr(
        type(tiny_clip.text), "real_tokens", lambda _, all_: (2 * read[: len(all_)], None)
    )
    assert [len(part) for part in token_chunks(tiny_clip, tokens)] == [4, 4, 1]
    monkeypatch.setattr(prompts, "MAX_TOKENS", 1)
    assert [len(part) for part in token_chunks(tiny_clip, tokens)] == [1] * 9


def test_logits_are_cosines_over_the_temperature(tiny_clip: Backbone) -> None:
    features, weights = torch.randn(3, 40), F.normalize(torch.randn(2, 40), dim=-1)
    clip: Any = tiny_clip.model
    expected = clip.logit_scale.exp() * F.cosine_similarity(
        features[:, None], weights[None], dim=-1
    )
    torch.testing.assert_close(cosine_logits(tiny_clip, features, weights), expected)
    assert cosine_logits(tiny_clip, features.bfloat16(), weights).dtype == torch.float32


def test_logits_are_not_rounded_by_autocast(tiny_clip: Backbone) -> None:
    """bfloat16 has steps of 0.5 where logits are near 100."""
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    weights = F.normalize(x[:4] + 0.01, dim=-1)
    exact = cosine_logits(tiny_clip, x, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_logits(tiny_clip, x, weights)
        linear = linear_logits(100 * x, weights)
    assert found.dtype == linear.dtype == torch.float32
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(linear, 100 * x @ weights.T)


def test_class_weights_are_computed_once_and_returned_as_copies(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zero_shot_weights(tiny_clip, ["cat", "dog"], ["a {}."])
    encoded, encode = [], prompts.raw_text_features
    monkeypatch.setattr(
        prompts, "raw_text_features", lambda *asked: encoded.append(asked[1]) or encode(*asked)
    )
    first.zero_()
    again = zero_shot_weights(tiny_clip, ("cat", "dog"), ("a {}.",))
    assert encoded == []
    torch.testing.assert_close(again.norm(dim=-1), torch.ones(2))
    assert not torch.equal(zero_shot_weights(tiny_clip, ["dog", "cat"], ["a {}."]), again)
    assert not torch.equal(zero_shot_weights(tiny_clip, ["cat", "dog"], ["{}"]), again)
    assert len(encoded) == 2


def test_class_weights_are_those_of_float32_in_autocast_too(tiny_clip: Backbone) -> None:
    expected = zero_shot_weights(tiny_clip, NAMES, TEMPLATES)
    fresh = replace(tiny_clip)
    with torch.autocast("cpu", torch.bfloat16):
        inside = zero_shot_weights(fresh, NAMES, TEMPLATES)
    for weights in (inside, zero_shot_weights(fresh, NAMES, TEMPLATES)):
        assert torch.equal(weights, expected)


def test_kept_class_weights_keep_no_backbone_alive(tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    backbone = load_backbone(
        str(write_model(tmp_path, {"vision_cfg": vision, "text_cfg": CLIP_TEXT}))
    )
    zero_shot_weights(backbone, ["cat", "dog"], ["a {}."])
    init_words(backbone, "a photo")
    gone = ref(backbone)
    del backbone
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("templates", [["a {}."], ["a {}.", "the {} there.", "{}"]])
def test_classes_in_chunks_equal_classes_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, templates: list[str]
) -> None:
    """No more prompts than CHUNK_PROMPTS are encoded at once, or those of one class; some have two
    descriptions."""
    names = ["cat", "dog | hound", "car", "red house", "blue bird"]
    sizes = []
    frozen = tiny_clip.text.frozen
    whole = zero_shot_weights(tiny_clip, names, templates)
    monkeypatch.setattr(prompts, "CHUNK_PROMPTS", 5)
    monkeypatch.setattr(
        type(tiny_clip.text),
        "frozen",
        lambda _, t, first=None: sizes.append(len(t)) or frozen(t, first),
    )
    prompts._KEPT.clear()
    torch.testing.assert_close(
        zero_shot_weights(tiny_clip, names, templates), whole, rtol=1e-5, atol=1e-5
    )
    assert 2 <= max(sizes) <= 5
    assert [list(some) for some in prompts.in_chunks(names[2:], templates * 9)] == [
        ["car"],
        ["red house"],
        ["blue bird"],
    ]


def test_learnt_weights_in_chunks_equal_those_at_once() -> None:
    """Values and gradients; of several chunks none is kept for the gradient, but computed again."""
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = []

    def encode(x: Tensor) -> Tensor:
        runs.append(len(x))
        return x.sin()

    found = []
    for size in (6, 4):
        x = start.clone().requires_grad_()
        weights = prompts.learnt_weights(encode, [(part,) for part in x.split(size)], 2)
        weights.cos().sum().backward()
        found.append((weights, x.grad))
    assert runs == [6, 4, 2, 2, 4]
    torch.testing.assert_close(*(weights for weights, _ in found))
    torch.testing.assert_close(*(gradient for _, gradient in found))
    assert weights.shape == (3, 5)
