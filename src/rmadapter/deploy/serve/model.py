"""A run or an export as the server calls it: image to pixels, pixels to probabilities and features.

An export, and a run whose export is cached, needs no torch here, unless torch is its engine.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmadapter.artifacts.model_file import MODEL, read_model
from rmadapter.artifacts.record import RECORD, Record, read_record
from rmadapter.deploy.export.engines import ENGINES, FACTS, GRAPH, LITERT, OPENVINO, TORCH
from rmadapter.deploy.export.runtime import Model
from rmadapter.deploy.serve.export_cache import cached
from rmadapter.deploy.serve.options import Wish, answers_of
from rmadapter.errors import UserError, nearest
from rmadapter.metrics import wilson
from rmadapter.predict.answer import best
from rmadapter.support.checksums import Sign, sign
from rmadapter.support.files import last_part, read_json, user_path
from rmadapter.support.machine import version_of

if TYPE_CHECKING:
    from PIL import Image

NAMES = {GRAPH: "onnx", OPENVINO: "openvino", TORCH: "torch", LITERT: "litert"}
OF_RUNS = ("torch", "onnx", "openvino")
LIBRARIES = {
    "onnx": "onnxruntime",
    "litert": "ai-edge-litert",
}  # packages of engines, where their names differ


@dataclass(frozen=True, eq=False)
class Served:
    """labels: of the C classes. transform: RGB image -> float32 [3, H, W]. ask: pixels [B, 3, H,
    W], and whether features are wanted -> probabilities [B, C] and, if wanted, unit features [B,
    e]. features: whether it has any. size: H and W. facts: for /info, JSON. sign: of the folder
    before it was read."""

    labels: tuple[str, ...]
    transform: Callable[[Image.Image], np.ndarray]
    ask: Callable[[np.ndarray, bool], list[np.ndarray]]
    features: bool
    size: int
    facts: dict[str, Any]
    sign: Sign | None = None

    def best(self, probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
        """Labels and probabilities of one image, most probable first. probabilities: [C]."""
        return best(self.labels, probabilities, top)


def open_served(wish: Wish) -> Served:
    """Load a model, and ask it about a grey image once.

    Raises UserError for a folder that is damaged or neither a run nor an export, for an engine that
    cannot run it, and for answers that contain NaN or infinity.
    """
    before = sign(user_path(wish.folder))
    return replace(_opened(user_path(wish.folder), wish), sign=before)


def _opened(folder: Path, wish: Wish) -> Served:
    engine = wish.engine
    if engine and engine not in OF_RUNS:
        raise UserError(f"--engine {engine}{nearest(engine, OF_RUNS)}")
    if graph := next((name for name in ENGINES if (folder / name).is_file()), None):
        if engine not in ("", NAMES[graph]):
            raise UserError(
                f"{folder}: an export for {NAMES[graph]}; leave out --engine {engine}, or name the run"
            )
        return _by_runtime(folder, folder, wish.threads, _of_export(folder))
    if engine in ("", "torch"):
        return _by_torch(folder, wish)
    return _by_runtime(folder, cached(folder, wish), wish.threads, _of_run(folder))


def _by_runtime(folder: Path, export: Path, threads: int, facts: dict[str, Any]) -> Served:
    """folder: as the user named it. export: the folder to open."""
    model, engine = (
        Model(export, threads),
        NAMES[next(name for name in ENGINES if (export / name).is_file())],
    )
    size = model.transform.size
    features = len(_grey(folder, model.ask, size)) > 1
    facts = _facts(facts, model.labels, engine, features, size)
    return Served(
        tuple(model.labels),
        model.transform,
        lambda pixels, _: model.ask(pixels),
        features,
        size,
        facts,
    )


def _by_torch(folder: Path, wish: Wish) -> Served:
    import torch

    from rmadapter.artifacts.checkpoint import load

    if wish.threads:
        torch.set_num_threads(wish.threads)
    saved = load(folder, wish.backbone, method=wish.method)
    backbone, (both, features) = saved.fitted.backbone, answers_of(saved)
    plain = copy.copy(both)
    plain.features = None

    def ask(pixels: np.ndarray, wanted: bool) -> list[np.ndarray]:
        found = (both if wanted else plain)(torch.from_numpy(pixels))
        return [part.cpu().numpy() for part in (found if isinstance(found, tuple) else (found,))]

    _grey(folder, lambda pixels: ask(pixels, features), backbone.image_size)
    labels = [str(label) for label in saved.labels]
    facts = _facts(_of_run(folder), labels, "torch", features, backbone.image_size)
    facts |= {"device": str(backbone.device)}
    return Served(
        tuple(labels),
        lambda image: backbone.preprocess(image).numpy(),
        ask,
        features,
        backbone.image_size,
        facts,
    )


def _grey(
    folder: Path, ask: Callable[[np.ndarray], list[np.ndarray]], size: int
) -> list[np.ndarray]:
    """The answer to a grey image: the first one, which is the slowest."""
    found = ask(np.zeros((1, 3, size, size), np.float32))
    if not all(np.isfinite(part).all() for part in found):
        raise UserError(f"{folder}: its answers contain NaN or infinity; fit again")
    return found


# ---- facts for /info, without paths of this machine ----


def _facts(
    own: dict[str, Any], labels: list[str], engine: str, features: bool, size: int
) -> dict[str, Any]:
    libraries = ("rmadapter", "numpy", "pillow", LIBRARIES.get(engine, engine))
    versions = {"python": platform.python_version()} | {
        name: version_of(name) for name in libraries
    }
    return {
        **own,
        "engine": engine,
        "classes": labels,
        "features": features,
        "image_size": size,
        "versions": versions,
    }


def _of_run(folder: Path) -> dict[str, Any]:
    record = read_record(folder / RECORD) if (folder / RECORD).is_file() else None
    model = read_model(folder / MODEL)
    method = {
        "name": last_part(model.method.name),
        "title": model.method.title,
        "source": model.method.source,
    }
    return {
        "method": method,
        "backbone": {"name": _last(model.backbone.name), "digest": model.backbone.digest},
        "sha256": model.sha256,
        "accuracy": record and worth(record),
    }


def worth(record: Record) -> dict[str, Any] | None:
    """Accuracy in percent with its 95 % interval, on how many images, and on which; None if
    unknown."""
    if record.judgement:
        own = record.judgement.own
        return _accuracy(
            record.judgement.how, record.judgement.images, own.accuracy, (own.low, own.high)
        )
    for score in record.scores:
        if score.accuracy is not None and score.images:
            return _accuracy(score.title, score.images, score.accuracy)
    return None


def _of_export(folder: Path) -> dict[str, Any]:
    """Facts from export.json, which may be missing or hold anything."""
    found = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    found = found if isinstance(found, Mapping) else {}
    parity = found["parity"] if isinstance(found.get("parity"), Mapping) else {}
    after, images = parity.get("after"), parity.get("images")
    accuracy = None
    if (
        isinstance(after, float)
        and isinstance(images, int)
        and 0 <= after <= 100
        and 0 < images < 2**31
    ):
        accuracy = _accuracy(str(parity.get("title")), images, after)
    method, backbone = (
        _words(found.get("method"), "name", "title", "source"),
        _words(found.get("backbone"), "name", "digest"),
    )
    return {
        "method": method,
        "backbone": backbone,
        "sha256": str(found.get("sha256")),
        "accuracy": accuracy,
    }


def _words(found: Any, *wanted: str) -> dict[str, str] | None:
    return (
        {name: _last(str(found.get(name))) for name in wanted}
        if isinstance(found, Mapping)
        else None
    )


def _accuracy(
    of: str, images: int, accuracy: float, ends: tuple[float, float] | None = None
) -> dict[str, Any]:
    low, high = ends or wilson(round(accuracy * images / 100), images)
    return {
        "accuracy": round(accuracy, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "images": images,
        "of": of,
    }


def _last(name: str) -> str:
    """The name alone of a backbone that is a folder."""
    return Path(name).name if Path(name).is_absolute() else name
