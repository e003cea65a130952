"""The methods by name. A row is a module and the object in it that carries the published settings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rmadapter.errors import UserError, nearest

METHODS: dict[str, str] = {
    "zero-shot": "zero_shot:ZeroShot()",
    "zero-shot-ensemble": "zero_shot:ZeroShotEnsemble()",
    "linear-probe": "linear_probe:LinearProbe()",
    "linear-probe-zero-shot": "linear_probe:ZeroShotProbe()",
    "clip-adapter": "clip_adapter:CLIPAdapter()",
    "tip-adapter": "tip_adapter:TipAdapter()",
    "tip-adapter-f": "tip_adapter:TipAdapterF()",
    "coop": "coop:CoOp()",
    "cocoop": "cocoop:CoCoOp()",
    "kgcoop": "kgcoop:KgCoOp()",
    "tcp": "tcp:TCP()",
    "clip-lora": "clip_lora:CLIPLoRA()",
    "maple": "maple:MaPLe()",
    "promptsrc": "promptsrc:PromptSRC()",
    "coprompt": "coprompt:CoPrompt()",
    "mmrl": "mmrl:MMRL()",
    "mma": "adapters:MMA",
    "mma-adamw": "adapters:MMA_ADAMW",
    "rmadapter": "adapters:RMADAPTER",
    "rmadapter-paper": "adapters:PAPER",
}


def load_method(name: str, values: Mapping[str, Any] | None = None) -> Any:
    """A method with its published settings, some of them replaced. Raises UserError for unknown names and fields."""
    from dataclasses import replace

    from rmadapter.bench.methods.adapters import Adapter
    from rmadapter.bench.methods.base import configured

    if name not in METHODS:
        raise UserError(f"unknown method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found = getattr(import_module(f"rmadapter.bench.methods.{module}"), attribute.removesuffix("()"))
    method = found() if attribute.endswith("()") else found
    if isinstance(method, Adapter):
        method = replace(method, values={**method.values, **(values or {})})
        method.config()  # complains now rather than after the data is read
        return method
    return configured(method, dict(values or {}))
