"""Open a run or an export for the server, and say what it is.

An export, and a run whose export is cached, needs no torch here, unless torch is its engine.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypedDict

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from rmadapter import UserError
from rmadapter.answers import HeldOutFacts
from rmadapter.artifacts import RunFolder, read_model, read_record, version_of
from rmadapter.export import Model, Outputs, cached_export, engine_of
from rmadapter.runs import wilson

if TYPE_CHECKING:
    from rmadapter import Record
    from rmadapter.export import FittedModel

RUN_ENGINES = ("torch", "onnx", "openvino")
# packages of engines, where their names differ
LIBRARIES = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}


Sign: TypeAlias = tuple[int, int, int]


class ServeOptions(NamedTuple):
    """How to open a model.

    Attributes:
        folder: Folder of `fit`, `save` or `export`.
        engine: Engine that runs it; "" for the folder's own.
        threads: Threads of the engine; 0 leaves it to the engine.
        backbone: Backbone of a run, as for `load`.
        method: Method of a run, as for `load`.
        device: As for `load`, or as for `Model` of what onnxruntime computes; auto: a GPU for
            torch if there is one, the CPU for any other engine.
    """

    folder: Path
    engine: str = ""
    threads: int = 0
    backbone: str | None = None
    method: str = ""
    device: str = "auto"


class Accuracy(TypedDict):
    """Accuracy in percent with its 95 % interval.

    Attributes:
        accuracy: The accuracy.
        low, high: The interval.
        images: Number of images.
        of: Which images.
    """

    accuracy: float
    low: float
    high: float
    images: int
    of: str


class ModelSource(TypedDict):
    """What a folder says of its model, without paths of this machine.

    Attributes:
        method: Name, title and source of the method.
        backbone: Name and digest of the backbone.
        sha256: Digest of the weights.
        accuracy: Recorded accuracy.
    """

    method: dict[str, str] | None
    backbone: dict[str, str] | None
    sha256: str
    accuracy: Accuracy | None


class ModelFacts(ModelSource, total=False):
    """What /info tells of a model.

    Attributes:
        calibration, familiarity: Images by which errors are promised, and images of other classes
            are found, if any.
        device: Device of torch, and of onnxruntime if it is not the CPU.
    """

    engine: str
    classes: list[str]
    features: bool
    calibration: HeldOutFacts | None
    familiarity: HeldOutFacts | None
    image_size: int
    versions: dict[str, str]
    device: str


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that the server calls.

    Attributes:
        model: What answers.
        facts: What /info tells.
        sign: Sign of the folder before it was read.
    """

    model: Model | FittedModel
    facts: ModelFacts
    sign: Sign | None = None


def sign(folder: Path) -> Sign | None:
    """Return a value that changes when the folder is saved again, or None while SHA256SUMS, which
    is removed first and written last, is missing."""
    try:
        status = RunFolder(folder).sums.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_served(options: ServeOptions) -> ServedModel:
    """Load a model, and let it answer a black image once.

    Raises UserError for a folder that is damaged or neither a run nor an export, for an engine that
    cannot run it, and for answers that contain NaN or infinity.
    """
    folder = options.folder
    before, exported = sign(folder), engine_of(folder)
    engine = options.engine or exported or "torch"
    if exported and engine != exported:
        raise UserError(
            f"{folder}: an export for {exported}; remove --engine {engine}, or name the run"
        )
    if not exported and engine not in RUN_ENGINES:
        raise UserError(f"--engine {engine}: choose one of {', '.join(RUN_ENGINES)}")
    model: Model | FittedModel
    if engine == "torch":
        model = _fitted(options)
        device, source = model.device, run_source(folder)
    else:
        place = folder
        if not exported:
            place = cached_export(folder, engine, options.backbone, options.method)
        device = "cpu" if options.device == "auto" else options.device
        model = Model(place, options.threads, device=device)
        source = export_source(model.facts) if exported else run_source(folder)
    first = model.ask(np.zeros((1, 3, model.size, model.size), np.float32))
    check_finite(folder, first)
    if model.decider.rejection and first.distances is None:
        raise UserError(f"{folder}: its graph gives no distances of images: export the run again")
    libraries = ("rmadapter", "numpy", "pillow", LIBRARIES.get(engine, engine))
    versions = {name: version_of(name) for name in libraries}
    possible = model.decider.possible()
    facts: ModelFacts = {
        "method": source["method"],
        "backbone": source["backbone"],
        "sha256": source["sha256"],
        "accuracy": source["accuracy"],
        "engine": engine,
        "classes": list(model.decider.labels),
        "features": first.features is not None,
        "calibration": possible["calibration"],
        "familiarity": possible["familiarity"],
        "image_size": model.size,
        "versions": {"python": platform.python_version(), **versions},
    }
    if engine == "torch" or device != "cpu":
        facts["device"] = device
    return ServedModel(model, facts, before)


def _fitted(options: ServeOptions) -> FittedModel:
    from rmadapter import load
    from rmadapter.export import FittedModel

    saved = load(options.folder, options.backbone, method=options.method, device=options.device)
    return FittedModel(saved, options.threads)


def check_finite(folder: Path, outputs: Outputs) -> None:
    """Raise UserError if an answer has NaN or infinity."""
    if not all(np.isfinite(part).all() for part in outputs if part is not None):
        raise UserError(f"{folder}: its answers contain NaN or infinity; fit again")


# What a folder says of its model


class _Compared(BaseModel):
    """The part of an export's comparison that /info tells; the file may hold anything."""

    title: str
    images: int = Field(gt=0, lt=2**31)
    after: float = Field(ge=0, le=100)


def export_source(facts: Mapping[str, object]) -> ModelSource:
    """Return what export.json says, which may hold anything."""
    try:
        compared = _Compared.model_validate(facts.get("parity"))
        accuracy = _accuracy(compared.title, compared.images, compared.after)
    except ValidationError:
        accuracy = None
    return {
        "method": _texts(facts.get("method"), "name", "title", "source"),
        "backbone": _texts(facts.get("backbone"), "name", "digest"),
        "sha256": str(facts.get("sha256")),
        "accuracy": accuracy,
    }


def run_source(folder: Path) -> ModelSource:
    """Read what the files of a run say."""
    run = RunFolder(folder)
    model = read_model(run.model)
    return {
        "method": _texts(dict(model.method), "name", "title", "source"),
        "backbone": _texts(dict(model.backbone), "name", "digest"),
        "sha256": model.sha256,
        "accuracy": accuracy_of(read_record(run.record)) if run.record.is_file() else None,
    }


def _texts(value: object, *keys: str) -> dict[str, str] | None:
    """Return texts of a mapping, of paths the last part; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    return {key: _without_folder(str(value.get(key))) for key in keys}


def _without_folder(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def accuracy_of(record: Record) -> Accuracy | None:
    """Return the accuracy that a run recorded, by its judgement or else on its first test images;
    None if unknown."""
    judgement = record.judgement
    if judgement:
        rates = judgement.fitted
        interval = (rates.low, rates.high)
        return _accuracy(judgement.how, judgement.images, rates.accuracy, interval)
    for score in record.scores:
        if score.accuracy is not None and score.images:
            return _accuracy(score.title, score.images, score.accuracy)
    return None


def _accuracy(
    of: str, images: int, accuracy: float, interval: tuple[float, float] | None = None
) -> Accuracy:
    """Return an accuracy with its interval, by default Wilson's."""
    if interval is None:
        interval = wilson(round(accuracy * images / 100), images)
    low, high = interval
    return {
        "accuracy": round(accuracy, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "images": images,
        "of": of,
    }
