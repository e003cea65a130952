"""Text encoders on packed prompts, against the backbones' forward on padded ones, in float64."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import pausing
from tests.helpers.models import write_timm_bert
from tests.helpers.rounding import double

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]
PROMPTS = [
    f"a photo of a {name}." for name in ("cat", "a small red car. a blue bird", "dog", "tree house")
]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return double(request.getfixturevalue(request.param))


@pytest.fixture
def tokens(backbone: Backbone) -> Tensor:
    return backbone.tokenizer(PROMPTS)


def own(backbone: Backbone, tokens: Tensor) -> Tensor:
    """By the backbone's own forward."""
    with torch.no_grad():
        return backbone.model.encode_text(tokens)  # type: ignore[operator]


def test_frozen_features_equal_the_backbones(backbone: Backbone, tokens: Tensor) -> None:
    states = backbone.text.frozen(tokens)
    torch.testing.assert_close(states.features, own(backbone, tokens), **EXACT)
    assert states.first is None
    assert len(states.x) == len(states.y) == 0


@pytest.mark.parametrize(
    ("pooler", "config", "kind"),
    [
        ("cls_pooler", {}, "BertText"),  # reads the transformer's own pooler
        ("cls_last_hidden_state_pooler", {}, "BertText"),
        ("mean_pooler", {"is_decoder": True}, "WholeText"),  # causal
    ],
)
def test_kinds_of_bert_encoders(
    pooler: str, config: dict[str, bool], kind: str, tmp_path: Path
) -> None:
    found = double(load_backbone(str(write_timm_bert(tmp_path, pooler, **config))))
    tokens = found.tokenizer(PROMPTS)
    assert type(found.text).__name__ == kind
    torch.testing.assert_close(found.text.frozen(tokens).features, own(found, tokens), **EXACT)


@pytest.mark.parametrize("first", [1, 3, 4])
def test_encode_continues_from_the_states(backbone: Backbone, tokens: Tensor, first: int) -> None:
    encoder, expected = backbone.text, own(backbone, tokens)
    states, seen = encoder.frozen(tokens, first), []
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.encode(states.x, states.layout, first), expected, **EXACT
        )
        encoder.encode(states.x, states.layout, first, lambda i, x: (seen.append(i), x)[1])
        if first == 4:  # the block's own output is there already: the head alone is left
            torch.testing.assert_close(encoder.head(states.y, states.layout), expected, **EXACT)
        else:
            torch.testing.assert_close(
                encoder.encode(states.y, states.layout, first + 1), expected, **EXACT
            )
    assert seen == list(range(first, encoder.depth + 1))


@pytest.mark.parametrize("share", [True, False])
def test_embeddings_may_be_replaced(backbone: Backbone, tokens: Tensor, share: bool) -> None:
    encoder, expected = backbone.text, own(backbone, tokens)
    layout = encoder.layout(tokens, share)
    assert share or layout.prefix == 0
    with torch.no_grad():
        words = encoder.words(layout)
        torch.testing.assert_close(encoder.encode(encoder.stem(layout), layout), expected, **EXACT)
        torch.testing.assert_close(
            encoder.encode(encoder.stem(layout, words), layout), expected, **EXACT
        )
        changed = encoder.encode(encoder.stem(layout, 2 * words), layout)
    assert (changed - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_eva"])
def test_tokens_after_the_end_of_text_change_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(name)
    tokens = backbone.tokenizer(PROMPTS)
    noisy = tokens.clone()
    for row, end in enumerate(tokens.argmax(-1)):
        noisy[row, end + 1 :] = torch.randint(1, 40000, (tokens.shape[1] - int(end) - 1,))
    quiet, loud = (backbone.text.frozen(some, 2) for some in (tokens, noisy))
    assert not torch.equal(tokens, noisy)
    assert torch.equal(quiet.x, loud.x)
    assert torch.equal(quiet.features, loud.features)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("tiny_clip", (True, True, True)),
        ("tiny_eva", (True, True, True)),
        (
            "tiny_siglip",
            (False, False, True),
        ),  # it looks ahead at padding too, and reads the last place
        ("tiny_hf", (True, False, False)),  # it looks ahead, and reads all real tokens
    ],
)
def test_each_backbone_packs_as_expected(
    name: str, saved: tuple[bool, ...], request: pytest.FixtureRequest
) -> None:
    """No padding, a shared beginning, and the top block for the token alone that is read."""
    backbone = request.getfixturevalue(name)
    encoder, tokens = backbone.text, backbone.tokenizer(["a photo of a cat.", "a photo of a dog."])
    layout = encoder.layout(tokens)
    assert (
        len(layout.ids) < tokens.numel(),
        layout.prefix > 0,
        encoder.reads_some(layout),
    ) == saved
    assert encoder.side == "text"
    assert encoder.causal == saved[1]


def test_packed_tokens_are_the_real_tokens(tiny_clip: Backbone, tiny_hf: Backbone) -> None:
    for backbone in (tiny_clip, tiny_hf):
        tokens = backbone.tokenizer(PROMPTS)
        lengths = (tokens != 0).sum(1)
        found, read = backbone.text.real_tokens(tokens)
        assert found.tolist() == lengths.tolist()
        assert read is None or read.tolist() == (lengths - 1).tolist()
        layout = backbone.text.layout(tokens, share=False)
        assert layout.ids.tolist() == tokens[tokens != 0].tolist()


def test_a_pause_comes_before_each_block_in_its_thread_alone(
    tiny_clip: Backbone, tiny_hf: Backbone
) -> None:
    for backbone in (tiny_clip, tiny_hf):
        tokens, calls = backbone.tokenizer(["cat", "a dog"]), list[int]()
        whole = backbone.text.frozen(tokens).features
        with pausing(lambda seen=calls: seen.append(1)):
            assert torch.equal(backbone.text.frozen(tokens).features, whole)
            backbone.image.frozen(torch.zeros(1, 3, 32, 32))
            thread = threading.Thread(target=backbone.text.frozen, args=(tokens,))
            thread.start()
            thread.join()
        backbone.text.frozen(tokens)
        assert len(calls) == backbone.text.depth
