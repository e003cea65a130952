"""Run files with figures that the tests know, in the format that the bench writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmadapter.bench.records import Run

TITLES = {"zero-shot": "Zero-shot CLIP", "mma": "MMA", "rmadapter": "RMAdapter"}


def record(method: str, dataset: str, seed: int, metrics: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The content of one run file; `base` and `novel` get their harmonic mean."""
    values = dict(metrics)
    if values.get("base") and values.get("novel"):
        values.setdefault("hm", 2 * values["base"] * values["novel"] / (values["base"] + values["novel"]))
    return {
        "format": 1,
        "protocol": "base-to-novel",
        "dataset": dataset,
        "method": method,
        "title": TITLES.get(method, method),
        "variant": "",
        "axis": "",
        "value": None,
        "backbone": {"name": "pocket", "digest": "ab12cd34ef"},
        "seed": seed,
        "shots": 16,
        "status": "finished",
        "reason": "",
        "metrics": values,
        "counts": {"base": 100, "novel": 80},
        "parameters": 0 if method == "zero-shot" else 1000,
        "seconds": {"frozen": 1.0, "train": 10.0 + seed, "evaluate": 2.0, "total": 13.0 + seed},
        "step_seconds": None if method == "zero-shot" else 0.25,
        "peak_mb": 900.0,
        "config": {"templates": ["a photo of a {}."], "precision": "fp32", "seed": seed},
        "split_digest": f"{dataset}-{seed}",
        "versions": {"rmadapter": "0.1.0", "torch": "2.6.0"},
        "machine": {"cpu": "some", "cores": 2},
        "finished": "2026-01-01T00:00:00+00:00",
        **fields,
    }


def run(method: str, dataset: str, seed: int, metrics: Mapping[str, Any], **fields: Any) -> Run:
    return Run.model_validate(record(method, dataset, seed, metrics, **fields))


def write(folder: Path, *records: Mapping[str, Any]) -> Path:
    """One file per record, named by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for content in records:
        path = folder / f"{len(list(folder.glob('*.json'))):03}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder
