"""The text encoder of a fitted method as a graph of its own, with the tokenizer for class names.

The method makes class features from a name as usual, and is watched: its prompts are the texts that
it passes to the tokenizer, and what it does with their tokens is traced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.deploy.export import graph
from rmadapter.deploy.export.adding import KNOWN, PROMPTS, TOKENS, TOWER, WORDS, Naming
from rmadapter.errors import UserError
from rmadapter.prompts import Cosines
from rmadapter.support.files import write_json
from rmadapter.support.terminal import silenced
from rmadapter.training.contract import Fitted, NotApplicable

NAMES = (
    "anything",
    "something",
)  # the first shows the prompts; the second is traced, as nothing is cached for it
# Names that both tokenizers must read alike.
ODD = ("Éclair au café", "7 1/2's  don't", "women’s ﬁsh &amp; ｃｈｉｐｓ", "日本", "x" * 400)


class _Tokenizer:
    """A backbone's tokenizer that records prompts of NAMES, and returns `tokens` for them once
    these are set."""

    def __init__(self, own: Any) -> None:
        self.own, self.asked = own, list[str]()
        self.tokens: Tensor | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        if not any(name in texts[0] for name in NAMES):
            return self.own(texts)
        start = len(self.asked)
        self.asked += texts
        return self.own(texts) if self.tokens is None else self.tokens[start : len(self.asked)]


class Tower(nn.Module):
    """Tokens [N, L] of all prompts of one class -> its normalised features [1, e].

    templates: N prompts, one {} each. Raises NotApplicable for a method that scores by anything but
    their features.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.tokenizer = _Tokenizer(fitted.backbone.tokenizer)
        backbone = replace(fitted.backbone, tokenizer=self.tokenizer)
        self.fitted = fitted.method.restore(backbone, fitted.known, fitted.tensors)
        with torch.no_grad():
            weights_of(self.fitted, NAMES[:1])
        if not self.tokenizer.asked:
            raise NotApplicable(f"{fitted.method.title} asks another model about a class name")
        self.templates = [text.replace(NAMES[0], "{}") for text in self.tokenizer.asked]
        self.example = fitted.backbone.tokenizer(self.tokenizer.asked)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        self.tokenizer.tokens, self.tokenizer.asked = tokens, []
        return weights_of(self.fitted, NAMES[1:]).weights


def weights_of(fitted: Fitted, names: Sequence[str]) -> Cosines:
    """Class features of names. Raises NotApplicable for a method that does not score by these
    alone."""
    found = fitted.for_classes(tuple(names))
    if not isinstance(found, Cosines):
        raise NotApplicable(f"{fitted.method.title} does not score images by class features alone")
    return found


def write_text_encoder(fitted: Fitted, names: Sequence[str], folder: Path) -> None:
    """Put the text encoder beside an exported graph. names: of its classes. Raises NotApplicable
    for a method that cannot add a class by name, UserError if its text encoder or tokenizer cannot
    be exported, and OSError."""
    tower = Tower(fitted).eval()
    with torch.no_grad():
        known = weights_of(fitted, (*names, NAMES[0]))
    try:
        with silenced(logging.WARNING, output=True):
            program = torch.export.export(tower, (tower.example,), strict=False)
            found = torch.onnx.export(
                program, (), dynamo=True, opset_version=graph.OPSET, verbose=False,
                input_names=[TOKENS], output_names=["weights"],
            )  # fmt: skip
        assert found is not None
        graph.write(found.model_proto, folder / TOWER)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the text encoder of {fitted.method.title} cannot be exported as a graph ({reason})"
        ) from error
    scale = float(fitted.backbone.logit_scale) / fitted.temperature
    write_json(folder / PROMPTS, {"templates": tower.templates, "scale": scale, "names": [*names]})
    np.save(folder / KNOWN, known.weights[:-1].detach().cpu().numpy())
    tokenizer_of(fitted.backbone).save(str(folder / WORDS))
    check_words(fitted.backbone, names, folder)


def check_words(backbone: Backbone, names: Sequence[str], folder: Path) -> None:
    """Raises UserError unless the written tokenizer reads names, and those in ODD, as the
    backbone's own does."""
    naming = Naming(folder)
    for name in (*names, *ODD):
        texts = [template.replace("{}", name) for template in naming.templates]
        if not np.array_equal(naming.tokens(name), backbone.tokenizer(texts).numpy()):
            raise UserError(
                f"the tokenizer of {backbone.name} cannot be exported: the copy reads {name[:50]!r} differently"
            )


def tokenizer_of(backbone: Backbone) -> Any:
    """The backbone's tokenizer as a tokenizers.Tokenizer. Raises UserError for a kind that cannot
    become one."""
    from open_clip import SimpleTokenizer
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer

    own: Any = backbone.tokenizer
    if type(own) is SimpleTokenizer:
        return _clip(own)
    inner = getattr(getattr(own, "tokenizer", None), "backend_tokenizer", None)
    if type(own) is not HFTokenizer or inner is None or own.tokenizer_mode or own.strip_sep_token:
        raise UserError(f"the tokenizer of {backbone.name} is of a kind that --text cannot export")
    found = Tokenizer.from_str(inner.to_str())
    found.enable_truncation(own.context_length)
    found.enable_padding(
        length=own.context_length,
        pad_id=own.tokenizer.pad_token_id,
        pad_token=own.tokenizer.pad_token,
    )
    return found


def _clip(own: Any) -> Any:
    """CLIP's byte-pair encoding."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    start, end = (own.decoder[number] for number in own.all_special_ids[:2])
    found = Tokenizer(BPE(own.encoder, list(own.bpe_ranks), end_of_word_suffix="</w>"))
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    found.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, own.sot_token_id), (end, own.eot_token_id)],
    )
    found.enable_truncation(own.context_length)
    found.enable_padding(length=own.context_length, pad_id=0, pad_token="!")
    return found
