"""Prompt templates, of a setting or in a run: an accepted one holds the class name once and can be
tokenised."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from rmadapter.artifacts.checkpoint import load
from rmadapter.prompts import tokenize
from rmadapter.settings import configured
from rmadapter.support.files import SUMS
from rmadapter.task import Task, check_templates
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import TEXTS

PARTS = (
    "{}", "{}", "{", "}", "{{}}", "{0}", "{x}", "{!r}", "{:>9999999999}", "{}", "{.__class__}",
    "%s", "a photo of a ", ".",
)  # fmt: skip
RUNS = ("zero-shot", "coop")
MANY = (1, 10, 100, 1_000, 10_000, 110_000)  # templates or classes


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    for method in RUNS:
        valid.run(method)  # else the first input would take the time to fit
    rng = random.Random(seed)
    for number in range(count):
        parts = []
        for _ in range(rng.randrange(5)):
            parts.append(rng.choice(PARTS if rng.random() < 0.7 else TEXTS))
        text = "".join(parts)
        if rng.random() < 0.1:
            text = text * 10 ** rng.randrange(7)
        kind = rng.choice(("setting", "run"))
        yield f"{kind}-{number}", text[:2_000_000].encode("utf-8", "surrogatepass")


def check(name: str, content: bytes, folder: Path) -> object:
    template = content.decode("utf-8", "surrogatepass")
    if name.startswith("run"):
        return check_run(int(name.rpartition("-")[2]), template, folder)
    (kept,) = configured(Task(), {"templates": [template]}).templates
    if kept != template or kept.replace("{}", "ZEBRA").count("ZEBRA") != 1 + template.count(
        "ZEBRA"
    ):
        raise Changed(f"{template!r} became {kept!r}")
    return tokenize(valid.backbone(), ["zebra"], [kept])


def check_run(number: int, template: str, folder: Path) -> object:
    """Load a forged run. Of three, one has many templates, and one many classes."""
    method = RUNS[number // 3 % 2]
    run = valid.copy_folder(valid.run(method), folder / "run", SUMS)
    model = json.loads((run / "model.json").read_text())
    model["templates"] = [template]
    if number % 3 == 1:
        model["templates"] = [f"{i} {{}}" for i in range(MANY[number // 9 % len(MANY)])]
    elif number % 3 == 2:
        model["classes"] = [f"{template[:9]} {i}" for i in range(MANY[number // 9 % len(MANY)])]
        model["labels"], model["names"] = model["classes"], []
    (run / "model.json").write_text(json.dumps(model))
    fitted = load(run, valid.backbone()).fitted
    for kept in fitted.known.templates:
        check_templates([kept])
    return fitted.score(fitted.known.classes[:2])
