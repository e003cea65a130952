"""A fitted method without its backbone, as plain values: what a pickled classifier stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rmadapter.backbones.shared import again, name_it
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.uses import backbones_in
from rmadapter.settings import settings_of
from rmadapter.support.machine import find_device
from rmadapter.training.contract import Fitted, Known, Trained


@dataclass(frozen=True)
class Packed:
    """method, settings: for `load_method`. backbone, digest: its name and SHA-256. The rest: as in
    Fitted."""

    method: str
    settings: dict[str, Any]
    backbone: str
    digest: str
    known: Known
    tensors: dict[str, np.ndarray]
    trained: Trained
    temperature: float
    examples: np.ndarray | None


def pack(fitted: Fitted, method: str) -> Packed:
    """method: its name for `load_method`."""
    backbone, examples = fitted.backbone, fitted.examples
    return Packed(
        method=method,
        settings=settings_of(fitted.method),
        backbone=backbone.name,
        digest=backbone.digest,
        known=fitted.known,
        tensors={name: tensor.cpu().numpy() for name, tensor in fitted.tensors.items()},
        trained=fitted.trained,
        temperature=fitted.temperature,
        examples=None if examples is None else examples.cpu().numpy(),
    )


def _there(device: str) -> torch.device:
    """The device that it was made for, or the best one here."""
    try:
        return find_device(device)
    except UserError:
        return find_device("auto")


def unpack(packed: Packed, device: str = "auto") -> Fitted:
    """Restore it on a device, if that is there. Raises UserError if the backbone cannot be loaded
    by its name or has other weights."""
    backbone = again(
        packed.backbone, packed.digest, _there(device), trusted=True
    )  # as all of a pickle is
    for name in backbones_in(packed.method, packed.settings):
        name_it(name)
    tensors = {
        name: torch.from_numpy(array).to(backbone.device) for name, array in packed.tensors.items()
    }
    examples = (
        None if packed.examples is None else torch.from_numpy(packed.examples).to(backbone.device)
    )
    fitted = load_method(packed.method, packed.settings).restore(backbone, packed.known, tensors)
    return replace(
        fitted, trained=packed.trained, temperature=packed.temperature, examples=examples
    )
