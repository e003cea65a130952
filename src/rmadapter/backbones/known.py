"""What was found out about a model folder, kept in the cache for as long as its files stay.

A folder is loaded whole once. Later processes read its digest instead of every weight, and class
weights of names that were encoded before, also by the adapted text encoder of a saved model,
instead of the text encoder, which is loaded once something asks for it. Everything here can be made
again; what is missing or damaged is.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from rmadapter.backbones.backbone import Backbone, Facts, structure_of
from rmadapter.backbones.build import Tokenizer, as_backbone, build_front
from rmadapter.backbones.trust import CONFIG
from rmadapter.encoders import TextEncoder, text_encoder_of
from rmadapter.errors import UserError
from rmadapter.support.files import (
    cache_folder,
    check_own,
    read_json,
    state_of,
    walk,
    write_json,
    write_tensors,
)
from rmadapter.support.machine import versions

CACHE_FOLDER = "backbones"  # in the cache
MAX_FILES = 500  # files there
VERSION = 2  # of facts; those of 1 had the mean of DINOv3's tokens
TENSOR_NAME, DIGEST = "weights", "sha256"  # of a file of class weights
LATE_FIELDS = ("model", "tokenizer")  # fields of a backbone that are found when they are asked for


class Seen(NamedTuple):
    """A model folder as it was when facts about it were known.

    Attributes:
        folder: Path without links.
        key: As from `key_of`.
        facts: What was known.
    """

    folder: Path
    key: str
    facts: Facts

    @property
    def is_unchanged(self) -> bool:
        return key_of(self.folder) == self.key


def key_of(folder: Path) -> str:
    """Return what changes with any file of a model folder, and with the libraries that read it.
    Hidden files do not count."""
    folder = folder.resolve()
    states = []
    for file in sorted(Path(home, name) for home, _, names in walk(folder) for name in names):
        if not file.name.startswith("."):
            with suppress(OSError):  # a broken link, or a file that is gone by now
                states.append([str(file), state_of(file.stat())])
    return _digest(VERSION, str(folder), states, _versions())


def read_facts(key: str) -> Facts | None:
    """Return what is known of a folder in this state, if anything."""
    try:
        file = _place(key, "json")
        check_own(file)
        facts = Facts(**read_json(file))
    except (UserError, TypeError):
        return None
    _note_use(file)
    kinds = [str, str, int, str, bool, int, int, int]
    return facts if [type(value) for value in facts] == kinds else None


def find_facts(backbone: Backbone, folder: Path, weights: Path) -> Facts:
    """Find out what is to be known of a whole backbone.

    Args:
        backbone: The backbone.
        folder: Its folder.
        weights: Its file of weights.
    """
    alone = (folder / CONFIG).is_file() and _is_same(backbone, folder, weights)
    text = backbone.text if backbone.has_text else None
    return Facts(
        backbone.digest,
        backbone.structure,
        backbone.embedding_size,
        backbone.tokenizer_digest,
        alone,
        text.width if text else 0,
        text.depth if text else 0,
        backbone.text_length if text else 0,
    )


def write_facts(key: str, facts: Facts) -> None:
    """Keep facts; does nothing where nothing can be written."""
    with suppress(UserError):
        file = _place(key, "json")
        check_own(file)
        write_json(file, facts._asdict())
        _remove_old()


@cache
def _versions() -> dict[str, str]:
    return versions()


def _place(key: str, ending: str) -> Path:
    """Return the file of a key. Raises UserError if there is no cache folder."""
    return cache_folder() / CACHE_FOLDER / f"{key[:32]}.{ending}"


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _note_use(file: Path) -> None:
    """Make a file the last to be removed."""
    with suppress(OSError):
        os.utime(file)


def _remove_old() -> None:
    """Remove the files beyond MAX_FILES that were not used for longest."""
    with suppress(OSError):
        files = [file for file in (cache_folder() / CACHE_FOLDER).iterdir() if file.is_file()]
        times = {file: file.stat().st_mtime for file in files} if len(files) > MAX_FILES else {}
        for file in sorted(times, key=lambda one: times[one])[: len(files) - MAX_FILES]:
            file.unlink()


# Class weights


def kept_weights(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], make: Callable[[], Tensor]
) -> Tensor:
    """Return class weights [C, e] of the untouched text encoder: those that were kept, for a
    backbone with facts, else those of `make`."""
    return _kept(backbone, [list(names), list(templates)], len(names), make)


def kept_adapted(
    backbone: Backbone,
    names: Sequence[str],
    templates: Sequence[str],
    saved: str,
    make: Callable[[], Tensor],
) -> Tensor:
    """Return class weights [C, e] of an adapted text encoder, as `kept_weights` does.

    Args:
        backbone: The backbone.
        names: Names of the classes.
        templates: Templates of their prompts.
        saved: Digest of the saved model that adapts the encoder; if empty, or where gradients are
            wanted, nothing is kept.
        make: Makes the weights.
    """
    if not saved or torch.is_grad_enabled():
        return make()
    return _kept(backbone, [list(names), list(templates), saved], len(names), make)


def kept_words(backbone: Backbone, text: str, make: Callable[[], Tensor]) -> Tensor:
    """Return embeddings [n, d] of the tokens of a text, as `kept_weights` does."""
    return _kept(backbone, ["words", text], None, make)


def _kept(
    backbone: Backbone,
    facts: Sequence[object],
    classes: int | None,
    make: Callable[[], Tensor],
) -> Tensor:
    """Return a matrix that was kept, or make and keep it.

    Args:
        backbone: The backbone.
        facts: All that the matrix depends on, besides the backbone and the machine.
        classes: Its rows, of class weights; None for token embeddings, of any number.
        make: Makes the matrix.
    """
    device = backbone.device
    if backbone.facts is None or torch.is_autocast_enabled(device.type):
        return make()
    from safetensors import SafetensorError, safe_open

    parts = [backbone.facts.digest, backbone.facts.structure, backbone.tokenizer_digest]
    how = [_versions(), device.type, torch.get_num_threads()]
    key = _digest(*parts, *how, *facts)
    with suppress(SafetensorError, OSError, KeyError, UserError):
        file = _place(key, "safetensors")
        check_own(file)
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor(TENSOR_NAME)
            stated = (opened.metadata() or {})[DIGEST]
        width = backbone.text.width if classes is None else backbone.facts.embedding_size
        rows = len(found) if classes is None else classes
        if found.shape == (rows, width) and _digest_of(key, found) == stated:
            _note_use(file)
            return found.to(device)
    made = make()
    with suppress(UserError):
        kept = made.detach().cpu()
        file = _place(key, "safetensors")
        check_own(file)
        write_tensors(file, {TENSOR_NAME: kept}, {DIGEST: _digest_of(key, kept)})
        _remove_old()
    return made


def _digest_of(key: str, matrix: Tensor) -> str:
    """Return a digest of a matrix and its key, so that neither another content nor another's
    content is taken for it."""
    content = matrix.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(key.encode() + content).hexdigest()


# The image encoder alone


class ImageFirst(Backbone):
    """A backbone of which only the image encoder is loaded, until something asks for the rest."""

    _front: nn.Module | None = None
    _load: Callable[[], Backbone]
    _lock: threading.Lock

    @classmethod
    def of(cls, front: Backbone, facts: Facts, load: Callable[[], Backbone]) -> ImageFirst:
        """Return one.

        Args:
            front: Backbone with a stand-in for the text encoder, and without a tokenizer.
            facts: What is known about the whole.
            load: Loads the whole.
        """
        new = object.__new__(cls)
        own = {name: value for name, value in vars(front).items() if name not in LATE_FIELDS}
        own |= {"facts": facts, "tokenizer_digest": facts.tokenizer_digest}
        vars(new).update(own, _front=front.model, _load=load, _lock=threading.Lock())
        return new

    def __getstate__(self) -> dict[str, object]:
        state = super().__getstate__()
        if isinstance(state.get("text"), _TextLater):  # which would load that of this one
            del state["text"]
        return state

    @property
    def visible(self) -> nn.Module:
        return self.model if self._front is None else self._front

    @cached_property
    def model(self) -> nn.Module:
        return self._whole.model

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        return self._whole.tokenizer

    @cached_property
    def text(self) -> TextEncoder:
        if self.facts is None or not self.facts.text_depth:
            return text_encoder_of(self.with_text().model)
        later = _TextLater(self.facts, lambda: text_encoder_of(self._whole.model))
        return cast("TextEncoder", later)

    def to(self, device: torch.device) -> Backbone:
        self.visible.to(device)
        if "_rest" in vars(self):
            self.model.to(device)
        return self

    @property
    def _whole(self) -> Backbone:
        """Return the whole backbone, with the image encoder that this one has."""
        # Weights that are made in inference mode could never be trained on.
        with self._lock, torch.inference_mode(False):
            if "_rest" not in vars(self):
                whole = self._load().to(self.device)
                whole.model.visual = self.visible.visual
                whole.model.logit_scale = self.visible.logit_scale
                vars(self)["_rest"] = whole
        rest: Backbone = vars(self)["_rest"]
        return rest


class _TextLater:
    """A text encoder of which only the size is known, until something asks for the rest."""

    side = TextEncoder.side
    opaque = False  # the depth of opaque blocks is unknown, so they are loaded at once

    def __init__(self, facts: Facts, load: Callable[[], TextEncoder]) -> None:
        self.width, self.depth = facts.text_width, facts.text_depth
        self._load = load

    @cached_property
    def _real(self) -> TextEncoder:
        return self._load()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copies and pickles look for
            raise AttributeError(name)
        return getattr(self._real, name)


def load_image_first(
    name: str, weights: Path, seen: Seen, load: Callable[[], Backbone]
) -> Backbone | None:
    """Load the image encoder of a model folder.

    Args:
        name: Name of the backbone.
        weights: The folder's file of weights.
        seen: The folder; its facts say that its image encoder can be loaded alone.
        load: Loads the whole.

    Returns:
        The backbone, None if the folder has changed meanwhile.
    """
    try:
        front = _load_front(name, seen.folder, weights)
    except Exception:  # a folder that is being replaced can raise anything
        if seen.is_unchanged:
            raise
        return None
    rest = partial(_load_rest, seen, load)
    return ImageFirst.of(front, seen.facts, rest) if seen.is_unchanged else None


def _load_rest(seen: Seen, load: Callable[[], Backbone]) -> Backbone:
    """Load the whole of a backbone whose image encoder was loaded before. Raises UserError if its
    folder holds another one by now."""
    changed = UserError(f"{seen.folder}: has changed since it was loaded: load it again")
    try:
        whole = load()
    except UserError as error:
        if seen.is_unchanged:
            raise
        raise changed from error
    facts = (seen.facts.digest, seen.facts.structure, seen.facts.tokenizer_digest)
    # Other files beside the same weights are no other backbone.
    if not seen.is_unchanged and (whole.digest, whole.structure, whole.tokenizer_digest) != facts:
        raise changed
    return whole


def _load_front(name: str, folder: Path, weights: Path) -> Backbone:
    """Load the image encoder and the logit scale. Raises UserError if open_clip cannot build
    them, and RuntimeError or SafetensorError if the file does not hold them as they are."""
    from safetensors import safe_open

    model = build_front(name, read_json(folder / CONFIG))
    with safe_open(weights, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys() if _of_image(key)}  # noqa: SIM118
    if tensors.keys() != _image_tensors(model).keys():
        raise RuntimeError(f"{weights} names them otherwise")
    model.load_state_dict(tensors, strict=False)
    return as_backbone(name, model, Tokenizer(_no_tokenizer, ""))


def _no_tokenizer(texts: list[str]) -> Tensor:
    raise NotImplementedError("the whole backbone has it")


def _of_image(name: str) -> bool:
    return name.startswith("visual.") or name == "logit_scale"


def _image_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: one for key, one in model.state_dict().items() if _of_image(key)}


def _is_same(whole: Backbone, folder: Path, weights: Path) -> bool:
    """Return whether the image encoder that is loaded alone is that of a whole backbone, bit for
    bit, with its transform and logit scale."""
    from safetensors import SafetensorError

    try:
        front = _load_front(whole.name, folder, weights)
    except (UserError, RuntimeError, SafetensorError, OSError):
        return False
    found, own = _image_tensors(front.visible), _image_tensors(whole.visible)
    alike = _image_settings(front) == _image_settings(whole) and found.keys() == own.keys()
    return alike and all(torch.equal(found[key], own[key]) for key in own)


def _image_settings(backbone: Backbone) -> list[object]:
    """Return what has no weights but changes the image features of a backbone."""
    return [
        str(backbone.preprocess),
        backbone.image_size,
        backbone.mean,
        backbone.std,
        backbone.resizing,
        structure_of(backbone.visible.get_submodule("visual")),
        type(backbone.image).__name__,
    ]
