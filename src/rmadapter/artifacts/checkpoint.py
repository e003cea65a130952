"""A fitted method on disk, one format for all: model.safetensors, model.json, config.yaml and
run.json.

The backbone is named, not stored; its digest prevents loading a model onto another one. Nothing is
ever unpickled, and SHA256SUMS tells whether the files belong together.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmadapter.artifacts.mistakes import WHY
from rmadapter.artifacts.model_file import MODEL, Model, Transform, no_model, read_model
from rmadapter.artifacts.predictions import PREDICTIONS, SPLIT
from rmadapter.artifacts.record import RECORD, BackboneName, MethodName, Record, read_record
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.load import is_published
from rmadapter.backbones.shared import name_it
from rmadapter.data.names import Label, given_names
from rmadapter.errors import UserError
from rmadapter.methods import is_outside, load_method
from rmadapter.methods.uses import backbones_in
from rmadapter.settings import settings_of, to_yaml
from rmadapter.support.checksums import SUMS, check_sums, sha256, write_sums
from rmadapter.support.files import atomic, write_json, write_tensors, write_text
from rmadapter.support.hub import run_folder
from rmadapter.support.locks import exclusive
from rmadapter.support.machine import find_device, versions
from rmadapter.task import TASK_SETTINGS, qualified_settings
from rmadapter.training.contract import Fitted, Known, Method

WEIGHTS, CONFIG, HISTORY = "model.safetensors", "config.yaml", "history.csv"
IMAGES = "images.csv"  # of a run that grew; it replaces a folder of data
PAGE = "report.html"
FILES = (WEIGHTS, MODEL, CONFIG, RECORD, HISTORY, SPLIT, PREDICTIONS, WHY, PAGE, IMAGES)
EXAMPLES = "fitted to"  # name beside the method's own tensors, none of which can have it


class Saved(NamedTuple):
    """A loaded model. labels: of the classes it answers, as the user writes them. names: the same
    as in prompts. name: of the method, as `load_method` accepts it."""

    fitted: Fitted
    labels: tuple[Label, ...]
    name: str
    names: tuple[str, ...]

    @property
    def given(self) -> dict[str, str]:
        """The prompt names that do not follow from the labels, as `read_images` takes them."""
        return given_names(self.labels, self.names)


def save(
    folder: str | Path,
    fitted: Fitted,
    name: str = "",
    labels: tuple[Label, ...] = (),
    names: tuple[str, ...] = (),
    *,
    half: bool = False,
) -> None:
    """Write a fitted method. name: of the method, as `load_method` accepts it. half: float32
    numbers as float16.

    names, labels: as in `Saved`; by default the classes that it was fitted to. A folder that has
    model.json is complete. Raises UserError if another process is at work in the folder, if nothing
    can be written there, and if it holds a run of `fit`, whose figures are of another model.
    """
    with exclusive(Path(folder)):
        if (Path(folder) / RECORD).exists():
            raise UserError(
                f"{folder}: holds a run of `fit`, which this would overwrite: choose another folder"
            )
        _save(Path(folder), fitted, name, labels, names, half)
        write_sums(Path(folder), (WEIGHTS, MODEL))


def _save(
    folder: Path, fitted: Fitted, name: str, labels: tuple[Label, ...], names: tuple[str, ...] = (),
    half: bool = False,
) -> None:  # fmt: skip
    backbone, method = fitted.backbone, fitted.method
    (folder / SUMS).unlink(missing_ok=True)  # of the model that this one replaces
    tensors = {**fitted.tensors, **({} if fitted.examples is None else {EXAMPLES: fitted.examples})}
    write_tensors(folder / WEIGHTS, halved(tensors) if half else tensors)
    settings = json.loads(json.dumps(settings_of(method)))
    model = Model(
        method=MethodName(name=name, title=method.title, source=method.source, settings=settings),
        backbone=BackboneName(name=backbone.name, digest=backbone.digest),
        classes=fitted.classes,
        names=() if names == fitted.classes else names,
        labels=labels or names or fitted.classes,
        templates=fitted.known.templates,
        transform=_transform(backbone),
        sha256=sha256(folder / WEIGHTS),
        tokenizer=backbone.tokenizer_digest,
        temperature=fitted.temperature,
        versions=versions(),
    )
    write_json(folder / MODEL, model.model_dump(mode="json"))


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 tensors as float16, others as they are."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in tensors.items()
    }


def save_run(
    folder: Path, fitted: Fitted, name: str, record: Record, labels: tuple[Label, ...] = ()
) -> None:
    """Write a run: the model, its record, its settings for --config, and the loss of every step;
    the rest as in `save`.

    The caller holds the folder's lock. A folder that has run.json is complete.
    """
    (folder / RECORD).unlink(missing_ok=True)  # of a run whose model is gone
    if history := fitted.trained.history:
        with (
            atomic(folder / HISTORY) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(
                file, list(dict.fromkeys(key for step in history for key in step))
            )
            writer.writeheader()
            writer.writerows(history)
    write_text(folder / CONFIG, to_yaml(flat(record)))
    _save(folder, fitted, name, labels)
    with atomic(folder / RECORD) as temporary:
        record.save(temporary)
        write_sums(folder, FILES, {RECORD: sha256(temporary)})


def flat(record: Record) -> dict[str, Any]:
    """Task and settings of a run as `--config` reads them."""
    task, method = {name: getattr(record.task, name) for name in TASK_SETTINGS}, record.method
    return {
        "method": method.name,
        **task,
        "precision": record.precision,
        **qualified_settings(method.name, method.settings),
    }


def finished(folder: Path, key: str) -> Record | None:
    """The record of a finished run of the same key. Raises UserError when the folder holds another
    run."""
    if not (folder / RECORD).exists() or not (folder / WEIGHTS).exists():
        return None
    record = read_record(folder / RECORD)
    if record.key != key:
        raise UserError(f"{folder} holds another run: choose another --out or delete that folder")
    return record


def load(
    folder: str | Path, backbone: Backbone | str | None = None, *,
    method: str = "", settings: Mapping[str, Any] | None = None, device: str = "auto",
) -> Saved:  # fmt: skip
    """Load a fitted method from its folder, or from `hf:OWNER/NAME`. backbone: a loaded one or a
    name, instead of the one that the folder names.

    A folder may name only pocket and open_clip's published backbones: the user must name any other
    folder or repository. The same goes for a method from outside, whose code would be run: `method`
    must repeat its name. settings: of the method, over those it was fitted with. Raises UserError
    for a folder without a model, a damaged or foreign file, and a backbone other than the one the
    model was fitted on.
    """
    folder = run_folder(folder)
    if not (folder / MODEL).is_file():
        raise UserError(f"{folder}: {no_model(folder)}")
    model = read_model(folder / MODEL)
    if is_outside(model.method.name) and model.method.name != method:
        raise UserError(
            f"{folder}: its method {model.method.name!r} is code from outside; name it yourself to run it: "
            f"--method {model.method.name}"
        )
    if sha256(folder / WEIGHTS) != model.sha256:
        raise UserError(f"{folder / WEIGHTS}: does not match {MODEL}; the folder is damaged")
    check_sums(folder)
    tensors = _tensors(folder / WEIGHTS)
    loaded = _backbone(folder, backbone, model.backbone, device)
    _check_surroundings(folder, model, loaded)
    found = load_method(model.method.name, {**model.method.settings, **(settings or {})})
    for name in backbones_in(model.method.name, settings or {}):
        name_it(name)
    fitted = _restored(folder, found, loaded, Known(model.classes, model.templates), tensors)
    fitted = replace(fitted, temperature=model.temperature)
    return Saved(fitted, model.labels, model.method.name, model.names or model.classes)


def _restored(
    folder: Path, method: Method, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]
) -> Fitted:
    moved = {name: tensor.to(backbone.device) for name, tensor in tensors.items()}
    examples = moved.pop(EXAMPLES, None)
    try:
        return replace(method.restore(backbone, known, moved), examples=examples)
    except (
        RuntimeError,
        KeyError,
    ) as error:  # what torch raises for names and shapes that do not fit
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its weights do not fit the settings of {method.title} ({first})"
        ) from None


def _backbone(
    folder: Path, given: Backbone | str | None, wanted: BackboneName, device: str
) -> Backbone:
    if not isinstance(given, Backbone):
        name = given or wanted.name
        if not given and not is_published(name):
            shown = repr(name)[:300]
            raise UserError(
                f"{folder}: its backbone {shown} is a folder, a file or a repository, and a run's word is not enough "
                f"to read it; name it yourself: --backbone {shown}, in Python backbone={shown}"
            )
        name_it(name)
        given = load_backbone(name)
    if given.digest != wanted.digest:
        raise UserError(
            f"{folder} was trained on {wanted.name} ({wanted.digest[:12]}), but {given.name} "
            f"({given.digest[:12]}) has other weights: load it with the backbone it was trained on"
        )
    return given.to(find_device(device))


def _check_surroundings(folder: Path, model: Model, backbone: Backbone) -> None:
    """Raise UserError if the backbone has the same weights, but another tokenizer or image
    transform."""
    if (
        model.tokenizer
        and backbone.tokenizer_digest
        and model.tokenizer != backbone.tokenizer_digest
    ):
        part = "tokenizer"
    elif not model.transform.allows(_transform(backbone)):
        part = "image transform"
    else:
        return
    raise UserError(
        f"{folder}: the {part} of its backbone {backbone.name} has changed since; restore it, or fit again"
    )


def _transform(backbone: Backbone) -> Transform:
    return Transform(
        image_size=backbone.image_size, mean=backbone.mean, std=backbone.std, **backbone.resizing
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; float16, which only saves space, becomes float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in read_tensors(file).items()
    }


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors as stored. Raises UserError for a damaged file, 8-bit floats and numbers that are
    not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: damaged or not a safetensors file ({error})") from None
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.element_size() < 2:
            raise UserError(
                f"{file}: {name[:100]!r} is in {tensor.dtype}, which training never uses; fit again"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{file}: {name[:100]!r} holds numbers that are not finite; fit again")
    return found


def drawn(folder: Path) -> tuple[int, int, str]:
    """Shots and seed of a run, and the digest of the images that were drawn for it. Raises
    UserError for a folder with only a model."""
    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder}: a model that was saved by itself does not say which images it was fitted to"
        )
    check_sums(folder, [RECORD])
    record = read_record(folder / RECORD)
    return record.task.shots, record.task.seed, record.split_digest
