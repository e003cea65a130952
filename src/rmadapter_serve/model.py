"""A run or an export as the server calls it: image to pixels, pixels to probabilities and features.

An export, and a run whose export is cached, needs no torch here, unless torch is its engine.
"""

from __future__ import annotations

import copy
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from rmadapter.answers.answer import Answer, Levels, best
from rmadapter.answers.rejection import strangest
from rmadapter.answers.sets import Calibration, CalibrationFacts, chosen, limits_of
from rmadapter.answers.taxonomy import Taxonomy
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
from rmadapter.export.promised import Familiar
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
    """What /info tells of a model. calibration, familiarity: by which images errors are promised,
    and strange images found, if any. device: of torch, and of onnxruntime if it is not the CPU."""

    engine: str
    classes: list[str]
    features: bool
    calibration: CalibrationFacts | None
    familiarity: CalibrationFacts | None
    image_size: int
    versions: dict[str, str]
    device: str


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that the server calls.

    labels: of the C classes. transform: RGB image -> float32 [3, H, W]. predict: pixels [B, 3, H,
    W], and whether more than probabilities is wanted -> what the model gives. features: whether it
    has any. size: H and W. sign: of the folder before it was read. calibration: by which errors are
    promised, if the run had one. known: what tells images of its classes from others, likewise.
    tree: of the labels, if they have parents.
    """

    labels: tuple[str, ...]
    transform: Callable[[Image.Image], np.ndarray]
    predict: Callable[[np.ndarray, bool], Outputs]
    features: bool
    size: int
    facts: ModelFacts
    sign: Sign | None = None
    calibration: Calibration | None = None
    known: Familiar | None = None
    tree: Taxonomy | None = None

    def limits(self, error: float) -> np.ndarray:
        """Return the probabilities [C] from which on classes are in the sets. Raises UserError as
        `limits_of`."""
        known = self.calibration.known if self.calibration else 0
        return limits_of(self.calibration, error, self.labels[:known], self.labels)

    def answer(
        self, image: str, probabilities: np.ndarray, top: int, limits: np.ndarray | None,
        familiar: bool | None,
    ) -> Answer:  # fmt: skip
        """Return the answer for one image with its `top` best classes. probabilities: [C]. limits:
        as from `limits`, if an error is promised. familiar: whether it is of the classes at all, if
        requested."""
        members = [] if limits is None else chosen(probabilities, limits).tolist()
        labels = tuple(self.labels[i] for i in members)
        levels = Levels.of(self.tree, probabilities[None], [members])[0] if self.tree else None
        found = tuple(best(self.labels, probabilities, top))
        return Answer(Path(image), found, labels=labels, familiar=familiar, levels=levels)

    def strangest(self, turn_away: float) -> int:
        """Return how many of the strangest images are none of the classes. Raises UserError as
        `familiar.strangest`."""
        return strangest(self.known.familiarity if self.known else None, turn_away)

    def is_familiar(self, probabilities: np.ndarray, distance: np.ndarray, strangest: int) -> bool:
        """Return whether an image is of the classes. probabilities: [C]. distance: a number.
        strangest: as from `strangest`."""
        assert self.known
        one = Outputs(probabilities[None], None, distance[None])
        return self.known.familiar(one, strangest)[0]


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
    size = model.transform.size
    grey = check_finite(folder, model.grey)
    features, calibration, known = grey.features is not None, model.calibration, model.known
    if known and grey.distances is None:
        raise UserError(f"{folder}: its graph gives no distances of images: export the run again")
    facts = _facts(source, model.labels, engine, features, size, calibration, known)
    if device != CPU:
        facts["device"] = device

    def predict(pixels: np.ndarray, _: bool) -> Outputs:
        return model.ask(pixels)

    return ServedModel(
        tuple(model.labels), model.transform, predict, features, size, facts, before, calibration,
        known, model.tree,
    )  # fmt: skip


def _with_torch(folder: Path, options: ServeOptions, before: Sign | None) -> ServedModel:
    import torch

    from rmadapter.artifacts.checkpoint import load
    from rmadapter.runs.features import known_images

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
    labels = tuple(str(label) for label in saved.labels)
    calibration, own = saved.calibration, known_images(saved.fitted, saved.names)
    known = Familiar(own, len(saved.fitted.classes)) if own else None
    facts = _facts(run_source(folder), labels, "torch", features, size, calibration, known)
    facts["device"] = str(backbone.device)
    return ServedModel(
        labels, transform, predict, features, size, facts, before, calibration, known, saved.tree
    )


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


def _facts(
    source: Source, labels: Sequence[str], engine: str, features: bool, size: int,
    calibration: Calibration | None, known: Familiar | None,
) -> ModelFacts:  # fmt: skip
    libraries = ("rmadapter", "numpy", "pillow", LIBRARIES.get(engine, engine))
    versions = {"python": platform.python_version()}
    versions |= {name: version_of(name) for name in libraries}
    return {
        "method": source["method"],
        "backbone": source["backbone"],
        "sha256": source["sha256"],
        "accuracy": source["accuracy"],
        "engine": engine,
        "classes": list(labels),
        "features": features,
        "calibration": calibration.facts if calibration else None,
        "familiarity": known.familiarity.facts if known else None,
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
