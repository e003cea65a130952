"""What is set for a run: common to all methods, or a method's own; and the list of the methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rmadapter.errors import UserError

SHARED = ("templates", "augmentation", "views", "precision", "device", "cache_memory", "workers")  # reached by --set
COMPARED = ("backbone", "templates", "augmentation", "views", "precision")  # alike in all runs of a comparison
NOT_A_METHODS = ("shots", "classes", "compile")  # fields of a Config that the protocol sets, or that change no figure


def split_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """--set as settings common to all methods, and {method: {field: value}}. Raises UserError for what is neither."""
    shared: dict[str, Any] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        method, dot, own = name.partition(".")
        if dot:
            values.setdefault(method, {})[own] = value
        elif name in SHARED:
            shared[name] = value
        else:
            common = ", ".join(SHARED)
            raise UserError(f"--set {name}: write METHOD.{name} for a method's setting; common to all are {common}")
    return shared, values


def settings_of(method: Any) -> dict[str, Any]:
    """The fields of a method that are its own."""
    from rmadapter.bench.methods.adapters import COMMON, Adapter

    if not isinstance(method, Adapter):
        return asdict(method)
    return {k: v for k, v in method.config().model_dump().items() if k not in {*COMMON, *NOT_A_METHODS}}


def describe_methods(backbone: str, classes: int, shots: int) -> list[dict[str, Any]]:
    """Name, title, source, number of trainable parameters and settings of every method.

    The number is None where the published settings do not fit the backbone; "reason" then says why.
    """
    from rmadapter.backbone import load_backbone
    from rmadapter.bench.methods import METHODS, load_method

    loaded, found = load_backbone(backbone), []
    for name in METHODS:
        method, count, reason = load_method(name), None, ""
        try:
            count = method.parameters(loaded, classes, shots)
        except UserError as error:
            reason = str(error)
        facts = {"name": name, "title": method.title, "source": method.source, "parameters": count, "reason": reason}
        found.append({**facts, "settings": settings_of(method)})
    return found
