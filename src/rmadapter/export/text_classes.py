"""Classes that are added to an exported model by name alone, with its text encoder."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmadapter.data.names import DESCRIPTION_SEPARATOR, default_name, key
from rmadapter.errors import UserError, damaged
from rmadapter.support.files import read_bytes, read_json, read_text

TEXT_ENCODER, TOKENIZER = "text.onnx", "tokenizer.json"
PROMPTS, WEIGHTS = "prompts.json", "weights.npy"
TOKENS = "tokens"  # input of the text encoder
MAX_PROMPT_SIZE = 1_000  # templates, and characters of one
MAX_PROMPTS_BYTES = 2**24  # of prompts.json
MAX_TOKENIZER_BYTES = 2**26
MAX_WEIGHTS_BYTES = 2**30


class TextClasses:
    """Classes of an exported model, to which others are added by name alone: with its text encoder,
    run by onnxruntime and tokenizers, after ftfy.

    Args:
        folder: The exported folder.

    Attributes:
        weights: Class features [C, e].
        scale: Factor of their cosines with image features.

    Raises:
        UserError: The export has no text encoder, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TEXT_ENCODER).is_file():
            raise UserError(
                "this model takes no other classes; `rmadapter export RUN --text` makes one that "
                "does"
            )
        import ftfy
        import onnxruntime
        import tokenizers

        self._fix_text = ftfy.fix_text
        try:
            facts = read_json(folder / PROMPTS, MAX_PROMPTS_BYTES)
            templates = facts["templates"]
            if not isinstance(templates, list):
                raise ValueError(f"{PROMPTS} holds no list of templates")
            self.templates = [str(template) for template in templates]
            if max(len(templates), *map(len, self.templates)) > MAX_PROMPT_SIZE:
                raise ValueError(f"more than {MAX_PROMPT_SIZE:,} templates, or characters of one")
            self.scale = float(facts["scale"])
            # in prompts; earlier exports have none
            self.names = [str(name) for name in facts.get("names", [])]
            content = io.BytesIO(read_bytes(folder / WEIGHTS, MAX_WEIGHTS_BYTES))
            self.weights: np.ndarray = np.load(content, allow_pickle=False)
            if not np.isfinite(self.scale) or not np.isfinite(self.weights).all():
                raise ValueError(f"NaN or infinity in {PROMPTS} or {WEIGHTS}")
            vocabulary = read_text(folder / TOKENIZER, max_bytes=MAX_TOKENIZER_BYTES)
            self._tokenizer = tokenizers.Tokenizer.from_str(vocabulary)
            self._session = onnxruntime.InferenceSession(
                str(folder / TEXT_ENCODER), providers=["CPUExecutionProvider"]
            )
            np.concatenate([self.weights, self.features("class")])  # raises if these do not fit
        except Exception as error:  # as for the model
            raise damaged(folder, error) from error

    def tokens(self, name: str) -> np.ndarray:
        """Return the tokens of all prompts of a class, int64 [N, L]."""
        texts = [self._clean(template.replace("{}", name)) for template in self.templates]
        return np.array([self._tokenizer.encode(text).ids for text in texts], np.int64)

    def features(self, name: str) -> np.ndarray:
        """Return class features [1, e] of unit length, from all prompts of a class."""
        features: np.ndarray
        (features,) = self._session.run(None, {TOKENS: self.tokens(name)})
        return features

    def _clean(self, text: str) -> str:
        """Clean a text like open_clip before any tokenizer: straight quotes, no ligatures, no HTML
        entities."""
        return " ".join(html.unescape(html.unescape(self._fix_text(text))).split())

    def add(self, label: str, labels: Sequence[str]) -> None:
        """Append a class. Raises UserError for one that is among `labels`, or is not a single
        name."""
        name = default_name(label)
        if not name or DESCRIPTION_SEPARATOR in label:
            raise UserError(f"class {label!r}: give one name of at least one word")
        known_labels = {key(other) for other in labels}
        known_names = {key(other) for other in self.names}
        if key(label) in known_labels or key(name) in known_names:
            raise UserError(f"class {label!r} already exists")
        self.weights = np.concatenate([self.weights, self.features(name)])
        self.names = [*self.names, name]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities [B, C] for features [B, e] of unit length."""
        logits = self.scale * features @ self.weights.T
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
        return shares
