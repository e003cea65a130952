"""Save a fitted method to a folder and load it again: one format for all methods.

The backbone is named, not stored; its digest prevents loading a model onto another one. Nothing is
ever unpickled, and SHA256SUMS shows whether the files belong together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rmadapter.answers.decider import Decider
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.model_file import Model, Transform, read_model, read_weights
from rmadapter.artifacts.record import BackboneName, MethodName, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder, check_model, find_run
from rmadapter.backbones import Backbone
from rmadapter.backbones.load import is_published, load_known, reload, trust_name
from rmadapter.data.names import Label, custom_names
from rmadapter.errors import UserError
from rmadapter.methods import is_outside, load_method
from rmadapter.methods.uses import backbones_in
from rmadapter.settings import settings_of, to_yaml
from rmadapter.support.files import (
    atomic,
    csv_text,
    sha256,
    write_json,
    write_sums,
    write_tensors,
    write_text,
)
from rmadapter.support.locks import exclusive
from rmadapter.support.machine import find_device, versions
from rmadapter.task import TASK_SETTINGS, Task, qualified_settings
from rmadapter.training.contract import Fitted, Known, Method

EXAMPLES = "fitted to"  # the name of `Fitted.examples` in the file; no method's tensor can have it
MEANS = "class means"  # likewise
OWN_METHODS = "rmadapter.methods."


class Saved(NamedTuple):
    """A loaded model.

    Attributes:
        fitted: The model.
        labels: Names of its classes as the user writes them.
        name: Name of the method, as `load_method` accepts it.
        names: Names of the same classes in prompts.
        parents: Parents of the labels, as in `ImageSet`.
    """

    fitted: Fitted
    labels: tuple[Label, ...]
    name: str
    names: tuple[str, ...]
    parents: Mapping[str, str] = MappingProxyType({})

    @property
    def custom_names(self) -> dict[str, str]:
        """The prompt names that do not follow from the labels, as `read_images` takes them."""
        return custom_names(self.labels, self.names)

    @property
    def tree(self) -> Taxonomy | None:
        """The tree of the labels; None without parents."""
        return Taxonomy.if_any(self.parents, map(str, self.labels))

    def decider(self, error: float | None = None, reject_rate: float | None = None) -> Decider:
        """Return what decides about its answers. Raises UserError as `Fitted.decider`.

        Args:
            error, reject_rate: As for `Decider`.
        """
        labels = [*map(str, self.labels)]
        return self.fitted.decider(self.names, labels, self.tree, error, reject_rate)


# Saving


def save(
    folder: str | Path,
    fitted: Fitted,
    name: str = "",
    labels: tuple[Label, ...] = (),
    names: tuple[str, ...] = (),
    *,
    half: bool = False,
    parents: Mapping[str, str] | None = None,
) -> None:
    """Write a fitted method to a folder; a folder that has model.json is complete.

    Args:
        folder: New folder, or one that `save` wrote.
        fitted: The fitted method.
        name: Name of the method, as `load_method` accepts it.
        labels: Names of its classes as the user writes them; by default `names`.
        names: Names of the same classes in prompts; by default those that it was fitted to.
        half: Whether to store float32 numbers as float16.
        parents: Label or parent -> its parent, as in `ImageSet`.

    Raises:
        UserError: Another process is at work in the folder, nothing can be written there, or it
            holds a run of `fit`, whose figures are of another model.

    Example:
        >>> from rmadapter import load, save
        >>> saved = load("run", "tiny")
        >>> save("model", saved.fitted, saved.name, half=True)
        >>> load("model", "tiny").labels
        ('blue', 'green', 'night sky', 'red')
    """
    run = RunFolder(Path(folder))
    with exclusive(run.path):
        if run.record.exists():
            raise UserError(
                f"{folder}: holds a run of `fit`, which this would overwrite: choose another folder"
            )
        _save(run, fitted, name, labels, names, half, parents)
        write_sums(run.path, [run.weights.name, run.model.name])


def save_run(
    folder: Path,
    fitted: Fitted,
    name: str,
    record: Record,
    labels: tuple[Label, ...] = (),
    parents: Mapping[str, str] | None = None,
) -> None:
    """Write a run: the model as `save` does, its record, its settings for --config, and the loss of
    every step.

    The caller holds the folder's lock. A folder that has run.json is complete.
    """
    run = RunFolder(folder)
    run.record.unlink(missing_ok=True)  # its model will be gone
    if fitted.trained.history:
        _write_history(run.history, fitted.trained.history)
    write_text(run.config, to_yaml(config_of(record)))
    model = _save(run, fitted, name, labels, parents=parents)
    with atomic(run.record) as temporary:
        record.save(temporary)
        run.write_sums(to_come={run.record.name: sha256(temporary)})
    _keep_class_weights(model, fitted)


def _save(
    run: RunFolder,
    fitted: Fitted,
    name: str,
    labels: tuple[Label, ...],
    names: tuple[str, ...] = (),
    half: bool = False,
    parents: Mapping[str, str] | None = None,
) -> Model:
    backbone, method = fitted.backbone, fitted.method
    run.sums.unlink(missing_ok=True)  # of the model that this one replaces
    kept = {EXAMPLES: fitted.examples, MEANS: fitted.means}
    own = {name: tensor for name, tensor in kept.items() if tensor is not None}
    tensors = {**fitted.tensors, **own}
    write_tensors(run.weights, to_half(tensors) if half else tensors)
    settings = json.loads(json.dumps(settings_of(method)))
    model = Model(
        method=MethodName(name=name, title=method.title, source=method.source, settings=settings),
        backbone=BackboneName(
            name=backbone.name, digest=backbone.digest, revision=backbone.revision
        ),
        classes=fitted.classes,
        names=() if names == fitted.classes else names,
        labels=labels or names or fitted.classes,
        templates=fitted.known.templates,
        transform=_transform(backbone),
        sha256=sha256(run.weights),
        tokenizer=backbone.tokenizer_digest,
        temperature=fitted.temperature,
        calibration=fitted.calibration,
        familiarity=fitted.familiarity,
        parents=dict(parents or {}),
        versions=versions(),
    )
    write_json(run.model, model.model_dump(mode="json"))
    return model


def _keep_class_weights(model: Model, fitted: Fitted) -> None:
    """Let class weights be kept before the model is first used. Every method of this package keeps
    all that it encodes to score its classes, others keep none that they adapt."""
    backbone, identity = fitted.backbone, _identity(model, fitted.method)
    if backbone.facts and backbone.has_text and identity:
        known = replace(fitted.known, saved=identity)
        fitted.method.restore(backbone, known, fitted.tensors).score()


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    columns = [*dict.fromkeys(key for step in history for key in step)]
    rows = [[step.get(name) for name in columns] for step in history]
    write_text(path, csv_text(columns, rows, "\r\n"))


def to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert float32 tensors to float16; leave others as they are."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in tensors.items()
    }


def config_of(record: Record) -> dict[str, object]:
    """Return the task and the settings of a run as `--config` reads them."""
    task, method = record.task, record.method
    return {
        "method": method.name,
        **{name: getattr(task, name) for name in TASK_SETTINGS},
        "precision": record.precision,
        **qualified_settings(method.name, method.settings),
    }


# Loading


def load(
    folder: str | Path,
    backbone: Backbone | str | None = None,
    *,
    method: str = "",
    settings: Mapping[str, object] | None = None,
    device: str = "auto",
) -> Saved:
    """Load a fitted method from its folder, or from `hf:OWNER/NAME`.

    A folder may name only backbones of installed packages, such as pocket, and open_clip's
    published ones: the user must name any other folder or repository. The same goes for a method
    from outside, whose code would be run.

    Args:
        folder: Folder of a run or of a saved method.
        backbone: A loaded one or a name, instead of the one that the folder names.
        method: Name of a method from outside, which the user must repeat, since its code is run.
        settings: Settings of the method that replace those it was fitted with.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        `fitted`; `labels` of its classes, as the user writes them; the `name` of the method; and
        `names` of the same classes, as in prompts.

    Raises:
        UserError: A folder without a model, a damaged or foreign file, or another backbone than the
            one that the model was fitted on.

    Example:
        >>> from rmadapter import load
        >>> saved = load("run", "tiny", device="cpu")
        >>> saved.name, saved.labels
        ('rmadapter', ('blue', 'green', 'night_sky', 'red'))
    """
    folder = find_run(folder)
    run = RunFolder(folder)
    check_model(folder)
    model = read_model(run.model)
    name = model.method.name
    if is_outside(name) and name != method:
        raise UserError(f"{folder}: this run uses custom code; to run it, pass --code {name}")
    tensors = _read_float32(run, model)
    run.check_sums(without=[run.weights])  # they are those of model.json
    loaded = _load_backbone(folder, backbone, model.backbone, device)
    _check_preparation(folder, model, loaded)
    with_settings = load_method(name, {**model.method.settings, **(settings or {})})
    for other in backbones_in(name, settings or {}):
        trust_name(other)
    known = Known(model.classes, model.templates, _identity(model, with_settings))
    fitted = _restore(folder, with_settings, loaded, known, tensors)
    fitted = replace(fitted, temperature=model.temperature)
    if not fitted.remembers:  # earlier versions calibrated these, too
        fitted = replace(fitted, calibration=model.calibration, familiarity=model.familiarity)
    return Saved(fitted, model.labels, name, model.names or model.classes, model.parents)


def _identity(model: Model, method: Method) -> str:
    """Return a digest of a saved model and the settings of its method; empty for a method of
    others, whose code may change while its version, which they do not tell, does not."""
    if not type(method).__module__.startswith(OWN_METHODS):
        return ""
    facts = [model.method.name, settings_of(method), model.sha256]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _restore(
    folder: Path, method: Method, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]
) -> Fitted:
    moved = {name: tensor.to(backbone.device) for name, tensor in tensors.items()}
    examples, means = moved.pop(EXAMPLES, None), moved.pop(MEANS, None)
    try:
        return replace(method.restore(backbone, known, moved), examples=examples, means=means)
    except (RuntimeError, KeyError) as error:  # torch's, for names and shapes that do not fit
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its weights do not fit the settings of {method.title} ({first})"
        ) from None


def _load_backbone(
    folder: Path, chosen: Backbone | str | None, saved: BackboneName, device: str
) -> Backbone:
    if isinstance(chosen, Backbone):
        backbone = chosen
    else:
        name = chosen or saved.name
        if not chosen and not is_published(name):
            shown = repr(name)[:300]
            raise UserError(
                f"{folder}: its backbone {shown} is a folder, a file or a repository, and a run's "
                f"word is not enough to read it; name it yourself: --backbone {shown}, in Python "
                f"backbone={shown}"
            )
        trust_name(name)
        backbone = load_known(name, saved.revision if name == saved.name else "")
    if backbone.digest != saved.digest:
        raise UserError(
            f"{folder} was trained on {saved.name} ({saved.digest[:12]}), but {backbone.name} "
            f"({backbone.digest[:12]}) has other weights: load it with the backbone it was trained "
            "on"
        )
    return backbone.to(find_device(device))


def _check_preparation(folder: Path, model: Model, backbone: Backbone) -> None:
    """Raise UserError if the backbone has the same weights, but another tokenizer or image
    transform."""
    part = ""
    if not model.transform.allows(_transform(backbone)):
        part = "image transform"
    digests = {model.tokenizer, backbone.tokenizer_digest} - {""}
    if len(digests) > 1:
        part = "tokenizer"
    if part:
        raise UserError(
            f"{folder}: the {part} of its backbone {backbone.name} has changed since; restore it, "
            "or fit again"
        )


def _transform(backbone: Backbone) -> Transform:
    return Transform(
        image_size=backbone.image_size, mean=backbone.mean, std=backbone.std, **backbone.resizing
    )


def _read_float32(run: RunFolder, model: Model) -> dict[str, Tensor]:
    """Read tensors; float16, which only saves space, becomes float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in read_weights(run, model).items()
    }


def to_values(fitted: Fitted) -> dict[str, Any]:
    """Return a model as plain values with the name of its backbone, to be pickled by others."""

    def plain(tensor: Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor.cpu().numpy()

    return {
        "settings": settings_of(fitted.method),
        "backbone": (fitted.backbone.name, fitted.backbone.digest, fitted.backbone.revision),
        "known": fitted.known,
        "tensors": {name: plain(tensor) for name, tensor in fitted.tensors.items()},
        "kept": {"examples": plain(fitted.examples), "means": plain(fitted.means)},
        "rest": {
            "trained": fitted.trained,
            "temperature": fitted.temperature,
            "calibration": fitted.calibration,
            "familiarity": fitted.familiarity,
        },
    }


def from_values(values: Mapping[str, Any], name: str, device: str) -> Fitted:
    """Restore what `to_values` returned on the copy of its backbone in memory, or load that by its
    name.

    Args:
        values: What `to_values` returned.
        name: Name of the method.
        device: Device, as for `load`.

    Raises:
        UserError: The backbone of that name has other weights.
    """
    for other in backbones_in(name, values["settings"]):
        trust_name(other)
    home = find_device(device)
    place, digest, revision = values["backbone"]
    backbone = reload(place, digest, home, trusted=True, revision=revision)

    def tensors(part: str) -> dict[str, Any]:
        arrays = values[part].items()
        return {key: None if x is None else torch.from_numpy(x).to(home) for key, x in arrays}

    method = load_method(name, values["settings"])
    fitted = method.restore(backbone, values["known"], tensors("tensors"))
    return replace(fitted, **tensors("kept"), **values["rest"])


def find_finished(folder: Path, key: str) -> Record | None:
    """Return the record of a finished run of the same key, None if there is none. Raises UserError
    if the folder holds another run."""
    run = RunFolder(folder)
    if not run.record.exists() or not run.weights.exists():
        return None
    record = read_record(run.record)
    if record.key != key:
        raise UserError(f"{folder} holds another run: choose another --out or delete that folder")
    return record


def read_draw(folder: Path) -> tuple[Task, str]:
    """Return the task of a run, and the digest of the images that were drawn for it. Raises
    UserError for a folder with only a model."""
    run = RunFolder(folder)
    if not run.record.is_file():
        raise UserError(
            f"{folder}: a model that was saved by itself does not say which images it was fitted to"
        )
    run.check_sums([run.record])
    record = read_record(run.record)
    return record.task, record.split_digest
