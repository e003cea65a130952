"""What was found out about a model folder, kept in the cache for as long as its files stay.

A folder is loaded whole once. Later processes read its digest instead of every weight, and class
weights of names that were encoded before instead of the text encoder, which is loaded once
something asks for it. Everything here can be made again; what is missing or damaged is.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from rmadapter.backbones.backbone import Backbone, Facts, structure_of
from rmadapter.backbones.build import Tokenizer, as_backbone, build_front
from rmadapter.backbones.trust import CONFIG
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


def key_of(folder: Path) -> str:
    """Return what changes with any file of a model folder, and with the libraries that read it.
    Hidden files do not count."""
    files = sorted(Path(home, name) for home, _, names in walk(folder) for name in names)
    seen = [file for file in files if not file.name.startswith(".") and file.exists()]
    states = [[str(file), state_of(file.stat())] for file in seen]
    return _digest(str(folder.resolve()), states, _versions())


def read_facts(key: str) -> Facts | None:
    """Return what is known of a folder in this state, if anything."""
    try:
        facts = Facts(**read_json(_place(key, "json")))
    except (UserError, TypeError):
        return None
    return facts if [type(value) for value in facts] == [str, str, int, str, bool] else None


def find_facts(backbone: Backbone, folder: Path, weights: Path) -> Facts:
    """Find out what is to be known of a whole backbone. weights: its file."""
    alone = (folder / CONFIG).is_file() and _is_same(backbone, folder, weights)
    return Facts(
        backbone.digest, backbone.structure, backbone.embedding_size, backbone.tokenizer_digest,
        alone,
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
    return cache_folder() / FOLDER / f"{key[:32]}.{ending}"


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _remove_old() -> None:
    """Remove the oldest files beyond MOST."""
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
    device = backbone.device
    if backbone.facts is None or torch.is_autocast_enabled(device.type):
        return make()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = [backbone.facts.digest, backbone.facts.structure, backbone.tokenizer_digest]
    how = [_versions(), device.type, torch.get_num_threads()]
    file = _place(_digest(*parts, *how, list(names), list(templates)), "safetensors")
    with suppress(SafetensorError, OSError, KeyError):
        weights = load_file(file)[WEIGHTS]
        if weights.shape == (len(names), backbone.embedding_size) and weights.isfinite().all():
            return weights.to(device)
    weights = make()
    with suppress(UserError):
        write_tensors(file, {WEIGHTS: weights})
        _remove_old()
    return weights


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

    @property
    def visible(self) -> nn.Module:
        return self.model if self._front is None else self._front

    @cached_property
    def model(self) -> nn.Module:
        return self._whole.model

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        return self._whole.tokenizer

    def to(self, device: torch.device) -> Backbone:
        self.visible.to(device)
        if "_rest" in vars(self):
            self.model.to(device)
        return self

    @property
    def _whole(self) -> Backbone:
        """Return the whole backbone, with the image encoder that this one has."""
        with self._lock:
            if "_rest" not in vars(self):
                whole = self._load().to(self.device)
                whole.model.visual, whole.model.logit_scale = (
                    self.visible.visual, self.visible.logit_scale
                )  # fmt: skip
                vars(self)["_rest"] = whole
        rest: Backbone = vars(self)["_rest"]
        return rest


def load_image_first(
    name: str, folder: Path, weights: Path, facts: Facts, load: Callable[[], Backbone]
) -> Backbone:
    """Load the image encoder of a model folder. facts: about it; it can be loaded alone. load:
    loads the whole."""
    return ImageFirst.of(_load_front(name, folder, weights), facts, load)


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
    except (UserError, RuntimeError, SafetensorError):
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
