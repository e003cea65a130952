"""What a run can be exported to, and what each needs; torch is not imported to check it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from rmadapter.errors import UserError
from rmadapter.support.files import check_new

COMMON = "numpy>=1.26\npillow>=12.3\n"


class Target(NamedTuple):
    """A kind of export.

    Attributes:
        precisions: Number formats that it has.
        modules: Modules that are needed to write it.
        requirements: Lines of its requirements.txt.
    """

    precisions: tuple[str, ...]
    modules: tuple[str, ...]
    requirements: str


ONNX = ("onnx", "onnxruntime", "onnxscript")
TARGETS = {
    "onnx": Target(("fp32", "fp16", "int8"), ONNX, f"{COMMON}onnxruntime>=1.22\n"),
    "web": Target(("fp32", "fp16"), ONNX, f"{COMMON}onnxruntime>=1.22\n"),
    "litert": Target(("fp32",), ("litert_torch",), f"{COMMON}ai-edge-litert>=2\n"),
    "openvino": Target(
        ("fp32", "fp16", "bf16", "int8"), (*ONNX, "openvino"), f"{COMMON}openvino>=2025\n"
    ),
}


class ExportOptions(NamedTuple):
    """What an export is to be.

    Attributes:
        to: One of TARGETS.
        precision: Number format of its weights.
        force: Whether a model is kept that differs by more than its precision allows.
        embeddings: Whether it outputs features, too.
        text: Whether classes can be added by name, which implies features.
    """

    to: str = "onnx"
    precision: str = "fp32"
    force: bool = False
    embeddings: bool = False
    text: bool = False

    @property
    def features(self) -> bool:
        """Return whether it outputs features."""
        return self.embeddings or self.text


DEFAULTS = ExportOptions()


def check_options(out: Path, options: ExportOptions) -> None:
    """Check options before slow work. Raises UserError for a folder that exists, options that do
    not work together, and missing packages."""
    to, precision = options.to, options.precision
    if to not in TARGETS:
        raise UserError(f"--to {to}: choose one of {', '.join(TARGETS)}")
    check_new(out)
    target = TARGETS[to]
    if precision not in target.precisions:
        raise UserError(
            f"--precision {precision}: choose one of {', '.join(target.precisions)} for --to {to}"
        )
    if options.text and to != "onnx":
        raise UserError("--text only works with --to onnx")
    if options.embeddings and to == "litert":
        raise UserError("--embeddings does not work with --to litert")
    modules = (*target.modules, *["nncf"] * (to == "openvino" and precision == "int8"))
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        extra = to if to in ("openvino", "litert") else "export"
        raise UserError(
            f"export needs {', '.join(missing)}; run `pip install 'rmadapter[{extra}]'`"
        )
