"""Labels of keys: a short list of texts with weights that add up to 1."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pools import read
from sources import package
from timm.data.imagenet_info import ImageNetInfo

Weighted = list[tuple[str, float]]
SYMBOLS = 8  # group of emojibase whose rows are drawn less often
SYMBOL_WEIGHT = 0.3


class Labels:
    """Everything that labels are made of.

    wnid: a WordNet id of ImageNet. word: a noun. clip: a noun and kinds, of clip art. caption:
    sentences. emoji: code points in hex.
    """

    def __init__(self, sources: Path, nouns: dict[str, Any], classnames: dict[str, str]) -> None:
        self.nouns = nouns
        self.classnames = classnames
        imagenet: Any = ImageNetInfo("imagenet-1k")  # untyped
        self.imagenet = imagenet
        self.wnids = self.imagenet.label_names()
        self.places = {wnid: place for place, wnid in enumerate(self.wnids)}
        emoji = read(package("emojibase-data", sources) / "en/data.json")
        self.emoji = {row["hexcode"]: row for row in emoji}
        keywords = read(package("emojilib", sources) / "dist/emoji-en-US.json")
        self.keywords = {
            character.replace("\ufe0f", ""): words for character, words in keywords.items()
        }

    def of(self, key: list[Any]) -> Weighted | None:
        """Return the label of a key; None if nothing is known about it."""
        kind, value = key
        if kind == "wnid":
            return self._of_wnid(value)
        if kind == "word":
            synonyms = self.nouns.get(value, {}).get("synonyms", [])
            return normalised(
                [(value, 0.7), *((word, 0.07) for word in synonyms), *self._kinds(value)]
            )
        if kind == "clip":
            return normalised(
                [(value[0], 0.7), *((word, 0.15) for word in value[1:]), *self._kinds(value[0])]
            )
        if kind == "caption":
            return normalised((sentence.strip().rstrip("."), 1.0) for sentence in value)
        return self._of_emoji(value)

    def place(self, key: list[Any]) -> int:
        """Return the place among the teacher's 1000 classes, or -1."""
        return self.places.get(key[1], -1) if key[0] == "wnid" else -1

    def weight(self, key: list[Any]) -> float:
        """Return how often a row of the key is drawn, compared with others of its pool."""
        symbol = key[0] == "emoji" and self.emoji.get(key[1], {}).get("group") == SYMBOLS
        return SYMBOL_WEIGHT if symbol else 1.0

    def synonyms(self, wnid: str) -> list[str]:
        """Return WordNet's words for one of the 1000 classes."""
        return [
            word.strip()
            for word in self.imagenet.index_to_description(self.places[wnid]).split(",")
        ]

    def definition(self, wnid: str) -> str:
        detailed = self.imagenet.index_to_description(self.places[wnid], detailed=True)
        return detailed.split(":", 1)[1].strip()

    def _of_wnid(self, wnid: str) -> Weighted | None:
        if wnid not in self.classnames or wnid not in self.places:
            return None
        name, words = self.classnames[wnid], self.synonyms(wnid)[:3]
        kinds = next((found for word in (name, *words) if (found := self._kinds(word.lower()))), [])
        return normalised(
            [(name, 0.65), *((w, 0.1) for w in words if w.lower() != name.lower()), *kinds]
        )

    def _of_emoji(self, code: str) -> Weighted | None:
        if not (emoji := self.emoji.get(code)):
            return None
        name = emoji["label"].lower()
        more = self.keywords.get(emoji["emoji"].replace("\ufe0f", ""), [])[1:]
        words = [word.replace("_", " ").lower() for word in (*emoji.get("tags", []), *more)]
        good = [
            w for w in dict.fromkeys(words) if re.fullmatch(r"[a-z][a-z \-]{2,}", w) and w != name
        ][:10]
        plain = " ".join(re.sub(r"\b(face|with|button)\b", " ", name).split())
        kinds = self._kinds(name) or self._kinds(plain)
        return normalised([(name, 0.5), *((word, 0.3 / len(good)) for word in good), *kinds])

    def _kinds(self, word: str) -> Weighted:
        """Return what it is a kind of, by its own entry or that of its last word; each step up
        counts half."""
        noun = self.nouns.get(word) or self.nouns.get((word.split() or [""])[-1]) or {"kinds": []}
        return [(kind, 0.2 / 2**step) for step, kind in enumerate(noun["kinds"])]


def normalised(pairs: Iterable[tuple[str, float]]) -> Weighted:
    """Add the weights of the same text, and scale all to a sum of 1."""
    sums: dict[str, float] = defaultdict(float)
    for text, weight in pairs:
        sums[text.strip()] += weight
    total = sum(sums.values())
    return [(text, weight / total) for text, weight in sums.items()]
