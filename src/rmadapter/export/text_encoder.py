"""The text encoder of a fitted method as a separate graph, with the tokenizer for class names.

The method makes class features from a name as usual, and is watched: its prompts are the texts that
it passes to the tokenizer, and what it does with their tokens is traced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from open_clip import SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rmadapter.backbones import Backbone
from rmadapter.backbones.build import first_line
from rmadapter.errors import UserError
from rmadapter.export import graph
from rmadapter.export.text_classes import (
    PROMPTS,
    TEXT_ENCODER,
    TOKENIZER,
    TOKENS,
    WEIGHTS,
    TextClasses,
)
from rmadapter.prompts import Cosines
from rmadapter.support.files import write_json
from rmadapter.support.terminal import silenced
from rmadapter.training.contract import Fitted, NotApplicable

# the first shows the prompts; the second is traced, as nothing is cached for it
PLACEHOLDERS = ("anything", "something")
# names that both tokenizers must read alike
ODD_NAMES = ("Éclair au café", "7 1/2's  don't", "women’s ﬁsh &amp; ｃｈｉｐｓ", "日本", "x" * 400)


class _WatchedTokenizer:
    """A backbone's tokenizer that records prompts of PLACEHOLDERS, and returns `tokens` for them
    once these are set."""

    def __init__(self, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[str] = []
        self.tokens: Tensor | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        if not any(name in texts[0] for name in PLACEHOLDERS):
            return self.tokenizer(texts)
        start = len(self.prompts)
        self.prompts += texts
        if self.tokens is None:
            return self.tokenizer(texts)
        return self.tokens[start : len(self.prompts)]


class TextEncoder(nn.Module):
    """Tokens [N, L] of all prompts of one class -> its normalised features [1, e].

    Args:
        fitted: The model.

    Attributes:
        templates: The N prompts, each with one {}.

    Raises:
        NotApplicable: The method scores by anything but the features of prompts.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.tokenizer = _WatchedTokenizer(fitted.backbone.tokenizer)
        backbone = replace(fitted.backbone, tokenizer=self.tokenizer)
        self.fitted = fitted.method.restore(backbone, fitted.known, fitted.tensors)
        with torch.no_grad():
            class_weights(self.fitted, PLACEHOLDERS[:1])
        if not self.tokenizer.prompts:
            raise NotApplicable(f"{fitted.method.title} asks another model about a class name")
        self.templates = [text.replace(PLACEHOLDERS[0], "{}") for text in self.tokenizer.prompts]
        self.example = fitted.backbone.tokenizer(self.tokenizer.prompts)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        self.tokenizer.tokens = tokens
        self.tokenizer.prompts = []
        return class_weights(self.fitted, PLACEHOLDERS[1:]).weights


def class_weights(fitted: Fitted, names: Sequence[str]) -> Cosines:
    """Return the class features of names. Raises NotApplicable for a method that does not score by
    these alone."""
    logits = fitted.for_classes(tuple(names))
    if not isinstance(logits, Cosines):
        raise NotApplicable(f"{fitted.method.title} does not score images by class features alone")
    return logits


def write_text_encoder(fitted: Fitted, names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Put the text encoder beside an exported graph; return its files.

    Args:
        fitted: The model.
        names: Names of its classes.
        folder: Folder of the graph.

    Raises:
        NotApplicable: The method cannot add a class by name.
        UserError: Its text encoder or tokenizer cannot be exported.
        OSError: The disk refuses.
    """
    encoder = TextEncoder(fitted).eval()
    with torch.no_grad():
        logits = class_weights(fitted, (*names, PLACEHOLDERS[0]))
    try:
        with silenced(logging.WARNING, output=True):
            program = torch.export.export(encoder, (encoder.example,), strict=False)
            exported = graph.to_onnx(program, TOKENS, ["weights"])
        graph.write(exported.model_proto, folder / TEXT_ENCODER)
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"the text encoder of {fitted.method.title} cannot be exported as a graph "
            f"({first_line(error)})"
        ) from error
    scale = float(fitted.backbone.logit_scale) / fitted.temperature
    facts = {"templates": encoder.templates, "scale": scale, "names": [*names]}
    write_json(folder / PROMPTS, facts)
    np.save(folder / WEIGHTS, logits.weights[:-1].detach().cpu().numpy())
    tokenizer_of(fitted.backbone).save(str(folder / TOKENIZER))
    check_tokenizer(fitted.backbone, names, folder)
    return TEXT_ENCODER, TOKENIZER, PROMPTS, WEIGHTS


def check_tokenizer(backbone: Backbone, names: Sequence[str], folder: Path) -> None:
    """Raise UserError unless the written tokenizer reads names, and those in ODD_NAMES, as the
    backbone's tokenizer does."""
    classes = TextClasses(folder)
    for name in (*names, *ODD_NAMES):
        texts = [template.replace("{}", name) for template in classes.templates]
        if not np.array_equal(classes.tokens(name), backbone.tokenizer(texts).numpy()):
            raise UserError(
                f"the tokenizer of {backbone.name} cannot be exported: the copy reads "
                f"{name[:50]!r} differently"
            )


def tokenizer_of(backbone: Backbone) -> Tokenizer:
    """Return the backbone's tokenizer as one of tokenizers: CLIP's byte-pair encoding, as
    transformers has it, or one of transformers itself. Raises UserError for any other kind."""
    source: SimpleTokenizer | HFTokenizer = backbone.tokenizer
    inner = None
    if type(source) is SimpleTokenizer:
        start, end = (source.decoder[number] for number in source.all_special_ids[:2])
        ends = {"unk_token": end, "bos_token": start, "eos_token": end, "pad_token": end}
        inner = CLIPTokenizer(source.encoder, list(source.bpe_ranks), **ends).backend_tokenizer
        pad = {"pad_id": 0, "pad_token": "!"}
    elif type(source) is HFTokenizer and not (source.tokenizer_mode or source.strip_sep_token):
        inner = getattr(source.tokenizer, "backend_tokenizer", None)
        pad = {"pad_id": source.tokenizer.pad_token_id, "pad_token": source.tokenizer.pad_token}
    if inner is None:
        raise UserError(f"the tokenizer of {backbone.name} is of a kind that --text cannot export")
    tokenizer = Tokenizer.from_str(inner.to_str())
    tokenizer.enable_truncation(source.context_length)
    tokenizer.enable_padding(length=source.context_length, **pad)
    return tokenizer
