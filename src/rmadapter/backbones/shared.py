"""One copy of a backbone in memory for all classifiers of a process, as in cross-validation."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

import torch

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.load import is_published, load_backbone
from rmadapter.errors import UserError

# By name, device and thread: methods hook into the model while they train.
_ALIVE: WeakValueDictionary[tuple[str, str, int], Backbone] = WeakValueDictionary()
_NAMED: set[str] = set()  # by the user, in this process


def name_it(name: str) -> None:
    """Let `again` read this folder, file or repository, since the user named it."""
    _NAMED.add(name)


def check_backbone_named(name: str) -> None:
    """Raise UserError unless the backbone is a published one or the user named it."""
    if not (is_published(name) or name in _NAMED):
        raise UserError(
            f"the model names {name!r:.300}, a folder, a file or a repository, and its word is not enough to read it; "
            f"name it yourself, as `load(run, settings={{...}})` or `eval --set` repeat a setting"
        )


def shared(name: str, device: torch.device) -> Backbone:
    """As `load_backbone(name)`, on a device; the copy in use, if its name alone determines the
    weights. The user gave the name."""
    name_it(name)
    key = (name, str(device), threading.get_ident())
    found = _ALIVE.get(key) if is_published(name) else None
    if found is None:
        found = _ALIVE[key] = load_backbone(name).to(device)
    return found


def again(name: str, digest: str, device: torch.device, *, trusted: bool = False) -> Backbone:
    """The backbone with this digest: the copy in use, or loaded by its name.

    trusted: whether the name is the user's own; a model's word is only enough for a published
    backbone. Raises UserError if it is not enough, if no backbone has this name any more, or if it
    has other weights.
    """
    if not trusted:
        check_backbone_named(name)
    found = _ALIVE.get((name, str(device), threading.get_ident()))
    if found is None or found.digest != digest:
        found = shared(name, device)
    if found.digest != digest:
        raise UserError(
            f"the model was fitted on {name} ({digest[:12]}), but the backbone of that name here "
            f"({found.digest[:12]}) has other weights: restore the original, or fit again"
        )
    return found
