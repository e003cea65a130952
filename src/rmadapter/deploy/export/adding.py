"""Classes added to an exported model by name: its text encoder, run by onnxruntime and tokenizers,
after ftfy."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np

from rmadapter.data.names import OR, default_name, key
from rmadapter.errors import UserError

TOWER, WORDS, PROMPTS, KNOWN = "text.onnx", "tokenizer.json", "prompts.json", "weights.npy"
TOKENS = "tokens"


class Naming:
    """weights: class features [C, e]. scale: factor of their cosines with image features. Raises
    UserError if the export has no text encoder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / TOWER).is_file():
            raise UserError(
                "this model takes no other classes; `rmadapter export RUN --text` makes one that does"
            )
        import ftfy
        import onnxruntime
        import tokenizers

        facts = json.loads((folder / PROMPTS).read_text("utf-8"))
        self.templates, self.scale = facts["templates"], float(facts["scale"])
        self.names: list[str] = facts.get("names", [])  # in prompts; earlier exports have none
        self.weights: np.ndarray = np.load(folder / KNOWN, allow_pickle=False)
        self._mend = ftfy.fix_text
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / WORDS))
        self._session = onnxruntime.InferenceSession(
            str(folder / TOWER), providers=["CPUExecutionProvider"]
        )

    def tokens(self, name: str) -> np.ndarray:
        """Tokens of all prompts of a class, int64 [N, L]."""
        texts = [self._clean(template.replace("{}", name)) for template in self.templates]
        return np.array([self._tokenizer.encode(text).ids for text in texts], np.int64)

    def _clean(self, text: str) -> str:
        """As open_clip before any tokenizer: straight quotes, no ligatures, no HTML entities."""
        return " ".join(html.unescape(html.unescape(self._mend(text))).split())

    def add(self, label: str, labels: list[str]) -> None:
        """Append a class, and its label to `labels`. Raises UserError for one that exists, or is
        not a single name."""
        name = default_name(label)
        if not name or OR in label:
            raise UserError(f"class {label!r}: give one name of at least one word")
        if key(label) in {key(other) for other in labels} or key(name) in {
            key(other) for other in self.names
        }:
            raise UserError(f"class {label!r} already exists")
        (weights,) = self._session.run(None, {TOKENS: self.tokens(name)})
        self.weights = np.concatenate([self.weights, weights])
        labels.append(label)
        self.names = [*self.names, name]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features [B, e] of unit length -> [B, C]"""
        logits = self.scale * features @ self.weights.T
        found = np.exp(logits - logits.max(-1, keepdims=True))
        return found / found.sum(-1, keepdims=True)
