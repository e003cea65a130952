"""Prompt templates: an accepted one holds the class name once and can be tokenised."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from rmadapter.prompts import tokenize
from rmadapter.settings import configured
from rmadapter.task import Task
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import TEXTS

PARTS = (
    "{}", "{}", "{", "}", "{{}}", "{0}", "{x}", "{!r}", "{:>9999999999}", "{}", "{.__class__}",
    "%s", "a photo of a ", ".",
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        parts = []
        for _ in range(rng.randrange(5)):
            parts.append(rng.choice(PARTS if rng.random() < 0.7 else TEXTS))
        yield f"template-{number}", "".join(parts).encode("utf-8", "surrogatepass")


def check(name: str, content: bytes, folder: Path) -> object:
    template = content.decode("utf-8", "surrogatepass")
    (kept,) = configured(Task(), {"templates": [template]}).templates
    if kept != template or kept.format("ZEBRA").count("ZEBRA") != 1 + template.count("ZEBRA"):
        raise Changed(f"{template!r} became {kept!r}")
    return tokenize(valid.backbone(), ["zebra"], [kept])
