"""Make evaluations and records, and write the page of a run from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score

from rmadapter.artifacts.page import write_run_page
from rmadapter.artifacts.predictions import Evaluation, predictions_of
from rmadapter.artifacts.record import FORMAT, BackboneName, MethodName, Record, Score
from rmadapter.data.read import ImageSet
from rmadapter.methods import load_method
from rmadapter.settings import settings_of
from rmadapter.task import Task


def evaluation(title: str, n: int, classes: tuple[str, ...], seed: int) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    before, after = (rng.dirichlet(np.ones(len(classes)), n).astype(np.float32) for _ in range(2))
    after[np.arange(n), labels] += 0.3
    after /= after.sum(1, keepdims=True)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 200, 240, 3), dtype=np.uint8)
    images = ImageSet(tuple(pixels), tuple(labels.tolist()), classes)
    return Evaluation(title, images, after, before)


def correct(e: Evaluation) -> tuple[float, float]:
    """Return the accuracy in percent of the untouched model, and of the adapted one."""
    before, after = (accuracy_score(e.labels, p.argmax(1)) for p in (e.zero_shot, e.probabilities))
    return 100 * before, 100 * after


def score(e: Evaluation, name: str, **changes: Any) -> Score:
    before, after = correct(e)
    counts = {"images": len(e.images), "classes": len(e.classes)}
    return Score(**{"name": name, **counts, "zero_shot": before, "accuracy": after, **changes})


def record(
    *scores: Score, method: str = "rmadapter", settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:  # fmt: skip
    usual = load_method("rmadapter" if ":" in method else method)
    named = MethodName(name=method, title=usual.title, settings=settings or settings_of(usual))
    fields = {
        "format": FORMAT,
        "method": named,
        "backbone": BackboneName(name="pocket", digest="ab" * 32),
        "task": Task(data="<i>data</i>", classes="base"),
        "parameters": 464_640,
        "scores": scores,
        "seconds": {"train": 151.2, "total": 152.0},
        "notes": ("<script>alert(1)</script> was skipped",),
        "versions": {"torch": "2.6.0"},
        "command": "rmadapter fit '<i>data</i>' --out \"a b\"",
    }
    return Record(**(fields | changes))


def write(path: Path, its: Record, evaluations: list[Evaluation], history: Any = ()) -> None:
    write_run_page(path, its, predictions_of(its, evaluations), history)


HISTORY = [{"step": i, "epoch": 1, "loss": 3.0 / i, "lr": 0.1} for i in range(1, 30)]
