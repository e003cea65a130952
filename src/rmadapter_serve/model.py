"""A run or an export as the server calls it: image to pixels, pixels to probabilities and features.

An export, and a run whose export is cached, needs no torch here, unless torch is its engine.
"""

from __future__ import annotations

import copy
import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from rmadapter.answers import Decider, HeldOutFacts
from rmadapter.artifacts.model_file import check_weights, read_model
from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.errors import UserError, did_you_mean
from rmadapter.export import FACTS
from rmadapter.export.engines import (
    CPU,
    GRAPH,
    LITERT,
    OPENVINO,
    Outputs,
    find_graph,
    parse_outputs,
)
from rmadapter.export.runtime import Model
from rmadapter.metrics import wilson
from rmadapter.support.files import (
    Sign,
    cache_folder,
    check_sums,
    last_part,
    read_json,
    sha256,
    sign,
    user_path,
)
from rmadapter.support.locks import hold
from rmadapter.support.machine import version_of
from rmadapter.support.terminal import note

if TYPE_CHECKING:
    from PIL import Image

    from rmadapter.artifacts.checkpoint import Saved
    from rmadapter.export.graph import Answers

ENGINE_NAMES = {GRAPH: "onnx", OPENVINO: "openvino", LITERT: "litert"}
RUN_ENGINES = ("torch", "onnx", "openvino")
# packages of engines, where their names differ
LIBRARIES = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}
PATIENCE = 1800  # seconds to wait for another server's export


class ServeOptions(NamedTuple):
    """How to open a model: a folder of `fit`, `save` or `export`.

    engine: "" for the folder's own. threads: 0 leaves it to the engine. backbone, method: as in
    `checkpoint.load`. device: as there, or as in `runtime.Model` for what onnxruntime computes;
    auto: a GPU for torch if there is one, the CPU for any other engine.
    """

    folder: Path
    engine: str = ""
    threads: int = 0
    backbone: str | None = None
    method: str = ""
    device: str = "auto"


class Accuracy(TypedDict):
    """Accuracy in percent with its 95 % interval. of: which images."""

    accuracy: float
    low: float
    high: float
    images: int
    of: str


class Source(TypedDict):
    """What a folder says of its model, without paths of this machine. accuracy: None if unknown."""

    method: dict[str, str] | None
    backbone: dict[str, str] | None
    sha256: str
    accuracy: Accuracy | None


class ModelFacts(Source, total=False):
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
        decider: What decides about its answers, with the labels of the C classes.
        transform: Function from an RGB image to float32 [3, H, W].
        predict: Function from pixels [B, 3, H, W], and whether more than probabilities is wanted,
            to what the model gives.
        features: Whether it has any.
        size: H and W.
        facts: What /info tells.
        sign: Sign of the folder before it was read.
    """

    decider: Decider
    transform: Callable[[Image.Image], np.ndarray]
    predict: Callable[[np.ndarray, bool], Outputs]
    features: bool
    size: int
    facts: ModelFacts
    sign: Sign | None = None


def open_served(options: ServeOptions) -> ServedModel:
    """Load a model, and let it answer a grey image once.

    Raises UserError for a folder that is damaged or neither a run nor an export, for an engine that
    cannot run it, and for answers that contain NaN or infinity.
    """
    folder, engine = user_path(options.folder), options.engine
    before = sign(folder)
    if engine and engine not in RUN_ENGINES:
        raise UserError(f"--engine {engine}{did_you_mean(engine, RUN_ENGINES)}")
    graph = find_graph(folder)
    if not graph and engine in ("", "torch"):
        return _with_torch(folder, options, before)
    if not graph:
        export, source = cached_export(folder, options), run_source(folder)
    elif engine in ("", ENGINE_NAMES[graph]):
        export, source = folder, _export_source(folder)
    else:
        raise UserError(
            f"{folder}: an export for {ENGINE_NAMES[graph]}; remove --engine {engine}, or name the "
            "run"
        )
    return _with_runtime(folder, export, options, source, before)


def _with_runtime(
    folder: Path, export: Path, options: ServeOptions, source: Source, before: Sign | None
) -> ServedModel:
    """folder: as the user named it. export: the folder to open."""
    device = CPU if options.device == "auto" else options.device
    model = Model(export, options.threads, device=device)
    engine = ENGINE_NAMES[find_graph(export)]
    size, decider = model.transform.size, model.decider
    grey = check_finite(folder, model.grey)
    features = grey.features is not None
    if decider.rejection and grey.distances is None:
        raise UserError(f"{folder}: its graph gives no distances of images: export the run again")
    facts = _facts(source, decider, engine, features, size)
    if device != CPU:
        facts["device"] = device

    def predict(pixels: np.ndarray, _: bool) -> Outputs:
        return model.ask(pixels)

    return ServedModel(decider, model.transform, predict, features, size, facts, before)


def _with_torch(folder: Path, options: ServeOptions, before: Sign | None) -> ServedModel:
    import torch

    from rmadapter.artifacts.checkpoint import load

    if options.threads:
        torch.set_num_threads(options.threads)
    saved = load(folder, options.backbone, method=options.method, device=options.device)
    backbone = saved.fitted.backbone
    module, features = answers_module(saved)
    probabilities = copy.copy(module)
    probabilities.embeddings, probabilities.means, probabilities.features = False, None, None

    def transform(image: Image.Image) -> np.ndarray:
        return backbone.preprocess(image).numpy()

    def predict(pixels: np.ndarray, wanted: bool) -> Outputs:
        outputs = (module if wanted else probabilities)(torch.from_numpy(pixels))
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return parse_outputs([part.cpu().numpy() for part in parts])

    size = backbone.image_size
    check_finite(folder, predict(np.zeros((1, 3, size, size), np.float32), features))
    decider = saved.decider()
    facts = _facts(run_source(folder), decider, "torch", features, size)
    facts["device"] = str(backbone.device)
    return ServedModel(decider, transform, predict, features, size, facts, before)


def answers_module(saved: Saved) -> tuple[Answers, bool]:
    """Return a run as a module, and whether it gives features besides probabilities."""
    from rmadapter.export.graph import Answers
    from rmadapter.training.contract import NotApplicable

    try:
        return Answers(saved.fitted, saved.names, embeddings=True), True
    except NotApplicable:
        return Answers(saved.fitted, saved.names), False


def check_finite(folder: Path, outputs: Outputs) -> Outputs:
    """Return the first answer, to a grey image. Raises UserError if it has NaN or infinity."""
    if not all(np.isfinite(part).all() for part in outputs if part is not None):
        raise UserError(f"{folder}: its answers contain NaN or infinity; fit again")
    return outputs


# Exports of runs, cached under a digest of their contents


def cached_export(folder: Path, options: ServeOptions) -> Path:
    """Return the export of a run for an engine other than torch; it is made now if not cached.

    Raises UserError as `checkpoint.load` and `export`.
    """
    run = RunFolder(folder)
    if not run.model.is_file():
        raise UserError(
            f"{folder}: not a run that --engine {options.engine} can serve; `rmadapter fit` makes "
            "one"
        )
    check_sums(folder)
    check_weights(run, read_model(run.model))  # while it is being saved, there are no sums
    # model.json holds the digests of the weights and of the backbone
    words = [sha256(run.model), options.engine, metadata.version("rmadapter")]
    code = user_path(options.method.rpartition(":")[0])  # the file of a custom method
    if options.method and code.is_file():
        words.append(sha256(code))
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:32]
    place = cache_folder() / "serve" / digest
    if place.is_dir():
        return place
    busy = UserError(f"{folder}: another server has been exporting it for {PATIENCE // 60} minutes")
    failed = f"{place}: cannot be written (%s); point RMADAPTER_CACHE elsewhere"
    # servers of one run share the cache
    with hold(place.with_name(f".{place.name}.lock"), PATIENCE, busy, failed):
        if not place.is_dir():
            export_run(folder, options, place)
    return place


def export_run(folder: Path, options: ServeOptions, place: Path) -> None:
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.export.folder import export
    from rmadapter.export.targets import check_options

    check_options(place, options.engine, "fp32")
    note(f"{folder}: exporting it for {options.engine} and comparing, once; the cache keeps it")
    saved = load(folder, options.backbone, method=options.method, device="cpu")
    _, features = answers_module(saved)
    export(folder, saved, place, to=options.engine, embeddings=features)


# Facts for /info, without paths of this machine


def _facts(source: Source, decider: Decider, engine: str, features: bool, size: int) -> ModelFacts:
    libraries = ("rmadapter", "numpy", "pillow", LIBRARIES.get(engine, engine))
    versions = {"python": platform.python_version()}
    versions |= {name: version_of(name) for name in libraries}
    possible = decider.possible()
    return {
        "method": source["method"],
        "backbone": source["backbone"],
        "sha256": source["sha256"],
        "accuracy": source["accuracy"],
        "engine": engine,
        "classes": list(decider.labels),
        "features": features,
        "calibration": possible["calibration"],
        "familiarity": possible["familiarity"],
        "image_size": size,
        "versions": versions,
    }


def run_source(folder: Path) -> Source:
    run = RunFolder(folder)
    model = read_model(run.model)
    method, backbone = model.method, model.backbone
    return {
        "method": {
            "name": last_part(method.name),
            "title": method.title,
            "source": method.source,
        },
        "backbone": {"name": _without_folder(backbone.name), "digest": backbone.digest},
        "sha256": model.sha256,
        "accuracy": accuracy_of(read_record(run.record)) if run.record.is_file() else None,
    }


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


def _export_source(folder: Path) -> Source:
    """Read facts from export.json, which may be missing or hold anything."""
    facts = _mapping(read_json(folder / FACTS) if (folder / FACTS).is_file() else {})
    return {
        "method": _texts(facts.get("method"), "name", "title", "source"),
        "backbone": _texts(facts.get("backbone"), "name", "digest"),
        "sha256": str(facts.get("sha256")),
        "accuracy": _export_accuracy(_mapping(facts.get("parity"))),
    }


def _export_accuracy(parity: Mapping[str, object]) -> Accuracy | None:
    percent, images = parity.get("after"), parity.get("images")
    if not isinstance(percent, float) or not isinstance(images, int):
        return None
    if not 0 <= percent <= 100 or not 0 < images < 2**31:
        return None
    return _accuracy(str(parity.get("title")), images, percent)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object, *keys: str) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        return None
    return {key: _without_folder(str(value.get(key))) for key in keys}


def _accuracy(
    of: str, images: int, accuracy: float, interval: tuple[float, float] | None = None
) -> Accuracy:
    low, high = interval or wilson(round(accuracy * images / 100), images)
    return {
        "accuracy": round(accuracy, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "images": images,
        "of": of,
    }


def _without_folder(name: str) -> str:
    """Return the last part of a name that is a path."""
    return Path(name).name if Path(name).is_absolute() else name
