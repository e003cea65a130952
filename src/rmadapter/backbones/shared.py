"""Keep one copy of a backbone in memory for all classifiers of a process."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

import torch

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.load import is_published, load_backbone
from rmadapter.errors import UserError

# By name, device and thread: methods hook into the model while they train.
_ALIVE: WeakValueDictionary[tuple[str, str, int], Backbone] = WeakValueDictionary()
_NAMED: set[str] = set()  # what the user named in this process


def name_it(name: str) -> None:
    """Record that the user named this folder, file or repository, so that `again` may read it."""
    _NAMED.add(name)


def check_backbone_named(name: str) -> None:
    """Raise UserError unless the backbone is a published one or the user named it."""
    if not (is_published(name) or name in _NAMED):
        raise UserError(
            f"the model names {name!r:.300}, a folder, a file or a repository; to trust it, name "
            "it "
            "yourself: repeat the setting in `load(run, settings={...})` or `eval --set`"
        )


def shared(name: str, device: torch.device) -> Backbone:
    """Load a backbone that the user named on a device, or return the copy in use if the name alone
    determines the weights."""
    name_it(name)
    key = (name, str(device), threading.get_ident())
    backbone = _ALIVE.get(key) if is_published(name) else None
    if backbone is None:
        backbone = _ALIVE[key] = load_backbone(name).to(device)
    return backbone


def again(name: str, digest: str, device: torch.device, *, trusted: bool = False) -> Backbone:
    """Return the backbone with this digest: the copy in use, or loaded by its name.

    trusted: whether the user gave the name; else only published backbones are loaded. Raises
    UserError for a backbone that is not trusted, is gone, or has other weights.
    """
    if not trusted:
        check_backbone_named(name)
    backbone = _ALIVE.get((name, str(device), threading.get_ident()))
    if backbone is None or backbone.digest != digest:
        backbone = shared(name, device)
    if backbone.digest != digest:
        raise UserError(
            f"the model was fitted on {name} ({digest[:12]}), but the backbone of that name here "
            f"({backbone.digest[:12]}) has other weights: restore the original, or fit again"
        )
    return backbone
