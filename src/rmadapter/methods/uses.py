"""What the method of a record uses beyond the shots, so that like is ranked with like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from rmadapter.methods.registry import METHODS, traits_of
from rmadapter.support.files import read_text, user_path
from rmadapter.training.traits import UNKNOWN, Uses


def uses_of(name: str, settings: Mapping[str, object], declared: Uses | None = None) -> Uses | None:
    """Return what a method uses; None if it does not say.

    Args:
        name: Name that `load_method` accepts.
        settings: Settings of the method by flat name.
        declared: What a method from outside says, as its code may not be run.
    """
    uses = traits_of(name).uses if name in METHODS else declared
    return None if uses is None else uses.with_settings(settings)


def track_of(name: str, settings: Mapping[str, object], declared: Uses | None = None) -> str:
    """Return one of TRACKS, or UNKNOWN; arguments as for `uses_of`."""
    uses = uses_of(name, settings, declared)
    return uses.track if uses else UNKNOWN


def backbones_in(name: str, settings: Mapping[str, object]) -> list[str]:
    """Return further backbones that settings of this method name, such as a teacher."""
    uses = uses_of(name, settings)
    return _values(settings, uses.backbones) if uses else []


def _values(settings: Mapping[str, object], fields: Iterable[str]) -> list[str]:
    """Return the values of some settings, where they are set."""
    return [str(settings[field]) for field in fields if settings.get(field)]


def named_sums(name: str, settings: Mapping[str, object]) -> list[str]:
    """Return the SHA-256 of each file that the settings name, or of the method's own, and digest of
    each backbone whose name does not determine its weights, so that other content makes another
    run. Raises UserError if one is missing."""
    uses = uses_of(name, settings)
    if uses is None:
        code = name.rpartition(":")[0]
        return [_digest(code)] if code.endswith(".py") else []
    import torch

    from rmadapter.backbones.load import is_published, shared

    sums = [_digest(file) for file in _values(settings, uses.files)]
    for model in _values(settings, uses.backbones):
        if not is_published(model):
            sums.append(shared(model, torch.device("cpu")).digest)
    return sums


def _digest(file: str) -> str:
    return hashlib.sha256(read_text(user_path(file)).encode()).hexdigest()
