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
    read_json,
    state_of,
    walk,
    write_json,
    write_tensors,
)
from rmadapter.support.machine import versions

FOLDER = "backbones"  # in the cache
MOST = 500  # files there
WEIGHTS = "weights"
LATER = ("model", "tokenizer")  # fields of a backbone that are found when they are asked for


class Seen(NamedTuple):
    """A model folder as it was when facts about it were known. folder: without links. key: as from
    `key_of`."""

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
    return _digest(str(folder), states, _versions())


def read_facts(key: str) -> Facts | None:
    """Return what is known of a folder in this state, if anything."""
    try:
        file = _place(key, "json")
        facts = Facts(**read_json(file))
    except (UserError, TypeError):
        return None
    _note_use(file)
    kinds = [str, str, int, str, bool, int, int, int]
    return facts if [type(value) for value in facts] == kinds else None


def find_facts(backbone: Backbone, folder: Path, weights: Path) -> Facts:
    """Find out what is to be known of a whole backbone. weights: its file."""
    alone = (folder / CONFIG).is_file() and _is_same(backbone, folder, weights)
    text = backbone.text if backbone.has_text else None
    return Facts(
        backbone.digest, backbone.structure, backbone.embedding_size, backbone.tokenizer_digest,
        alone, text.width if text else 0, text.depth if text else 0,
        backbone.text_length if text else 0,
    )  # fmt: skip


def write_facts(key: str, facts: Facts) -> None:
    """Keep facts; does nothing where nothing can be written."""
    with suppress(UserError):
        write_json(_place(key, "json"), facts._asdict())
        _remove_old()


@cache
def _versions() -> dict[str, str]:
    return versions()


def _place(key: str, ending: str) -> Path:
    """Return the file of a key. Raises UserError if there is no cache folder."""
    return cache_folder() / FOLDER / f"{key[:32]}.{ending}"


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _note_use(file: Path) -> None:
    """Make a file the last to be removed."""
    with suppress(OSError):
        os.utime(file)


def _remove_old() -> None:
    """Remove the files beyond MOST that were not used for longest."""
    with suppress(OSError):
        files = [file for file in (cache_folder() / FOLDER).iterdir() if file.is_file()]
        times = {file: file.stat().st_mtime for file in files} if len(files) > MOST else {}
        for file in sorted(times, key=lambda one: times[one])[: len(files) - MOST]:
            file.unlink()


# Class weights


def kept_weights(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], make: Callable[[], Tensor]
) -> Tensor:
    """Return class weights [C, e] of the untouched text encoder: those that were kept, for a
    backbone with facts, else those of `make`."""
    return _kept(backbone, [list(names), list(templates)], (len(names), _size(backbone)), make)


def kept_adapted(
    backbone: Backbone,
    names: Sequence[str],
    templates: Sequence[str],
    saved: str,
    make: Callable[[], Tensor],
) -> Tensor:
    """Return class weights [C, e] of an adapted text encoder, as `kept_weights` does. saved:
    digest of the saved model that adapts it; if empty, or where gradients are wanted, nothing is
    kept."""
    if not saved or torch.is_grad_enabled():
        return make()
    facts = [list(names), list(templates), saved]
    return _kept(backbone, facts, (len(names), _size(backbone)), make)


def kept_words(backbone: Backbone, text: str, make: Callable[[], Tensor]) -> Tensor:
    """Return embeddings [n, d] of the tokens of a text, as `kept_weights` does."""
    return _kept(backbone, ["words", text], (None, backbone.text.width), make)


def _size(backbone: Backbone) -> int:
    return backbone.facts.embedding_size if backbone.facts else 0


def _kept(
    backbone: Backbone,
    facts: Sequence[object],
    shape: tuple[int | None, int],
    make: Callable[[], Tensor],
) -> Tensor:
    """Return a matrix that was kept, or make and keep it. facts: all that it depends on, besides
    the backbone and the machine. shape: of the matrix; None is any number."""
    device = backbone.device
    if backbone.facts is None or torch.is_autocast_enabled(device.type):
        return make()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = [backbone.facts.digest, backbone.facts.structure, backbone.tokenizer_digest]
    how = [_versions(), device.type, torch.get_num_threads()]
    key = _digest(*parts, *how, *facts)
    with suppress(SafetensorError, OSError, KeyError, UserError):
        file = _place(key, "safetensors")
        found = load_file(file)[WEIGHTS]
        rows = found.shape[:1] if shape[0] is None else shape[:1]
        if found.shape == (*rows, shape[1]) and found.isfinite().all():
            _note_use(file)
            return found.to(device)
    made = make()
    with suppress(UserError):
        write_tensors(_place(key, "safetensors"), {WEIGHTS: made})
        _remove_old()
    return made


# The image encoder alone


class ImageFirst(Backbone):
    """A backbone of which only the image encoder is loaded, until something asks for the rest."""

    _front: nn.Module | None = None
    _load: Callable[[], Backbone]
    _lock: threading.Lock

    @classmethod
    def of(cls, front: Backbone, facts: Facts, load: Callable[[], Backbone]) -> ImageFirst:
        """Return one. front: with a stand-in for the text encoder, and without a tokenizer. facts:
        about the whole. load: loads the whole."""
        new = object.__new__(cls)
        own = {name: value for name, value in vars(front).items() if name not in LATER}
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
                whole.model.visual, whole.model.logit_scale = (
                    self.visible.visual, self.visible.logit_scale
                )  # fmt: skip
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
    """Load the image encoder of a model folder; None if the folder has changed meanwhile. seen: the
    folder; facts say that its image encoder can be loaded alone. load: loads the whole."""
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
    ours, theirs = (
        [
            str(one.preprocess), one.image_size, one.mean, one.std, one.resizing,
            structure_of(one.visible.get_submodule("visual")), type(one.image).__name__,
        ]
        for one in (front, whole)
    )  # fmt: skip
    found, own = _image_tensors(front.visible), _image_tensors(whole.visible)
    alike = ours == theirs and found.keys() == own.keys()
    return alike and all(torch.equal(found[key], own[key]) for key in own)
