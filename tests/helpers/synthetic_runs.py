"""Make records with given figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import BackboneName, MethodName, Record, Score
from rmadapter.task import Question, Task

TITLES = {"zero-shot": "Zero-shot CLIP", "mma": "MMA", "rmadapter": "RMAdapter"}
HALVES = {"base": 100, "novel": 80}
VIT = {"backbone": BackboneName(name="ViT-B-16/openai", digest="99")}


def record(
    method: str, data: str, seed: int, accuracies: Mapping[str, float | None], *,
    shots: int = 16, templates: tuple[str, ...] = ("a photo of a {}.",), title: str = "",
    counts: Mapping[str, int] = HALVES, **fields: Any,
) -> Record:  # fmt: skip
    """Make a record. accuracies: on "base" and "novel", or on "all" and on targets by their names.
    counts: of images, 9 by default."""
    own = ("base", "novel", "all")
    scores = []
    for name, value in accuracies.items():
        target = "" if name in own else name
        images = counts.get(name, 9)
        scores.append(Score(name=name, images=images, classes=2, data=target, accuracy=value))
    tests = tuple(Question(score.name, score.data) for score in scores if "all" in accuracies)
    defaults = {
        "protocol": "base-to-novel",
        "backbone": BackboneName(name="pocket", digest="ab12cd34ef"),
        "parameters": 0 if method == "zero-shot" else 1000,
        "seconds": {"frozen": 1.0, "train": 10.0 + seed, "evaluate": 2.0, "total": 13.0 + seed},
        "step_seconds": None if method == "zero-shot" else 0.25,
        "peak_mb": 900.0,
        "split_digest": f"{data}-{seed}",
        "versions": {"rmadapter": "0.1.0", "torch": "2.6.0"},
        "machine": {"cpu": "some", "cores": 2},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Record(
        format=2,
        task=Task(data=data, shots=shots, seed=seed, templates=templates, tests=tests),
        method=MethodName(name=method, title=title or TITLES.get(method, method)),
        scores=tuple(scores),
        **{**defaults, **fields},
    )


def with_method(run: Record, **fields: Any) -> Record:
    """Replace fields of a run's method, such as `settings`."""
    return run.model_copy(update={"method": run.method.model_copy(update=fields)})


def write(folder: Path, *records: Record) -> Path:
    """Write one file per record, named by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        one.save(folder / f"{len(list(folder.glob('*.json'))):03}.json")
    return folder
