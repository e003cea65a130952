"""Profile a training step by kind of operation, in float32 and bfloat16.

python research/benchmarks/profiling.py --backbone ViT-B-16-quickgelu/none \\
    --methods mma rmadapter --classes
200 --json

By torch's profiler, whose own overhead is included, so that shares are shown, not seconds. Kinds
are those of `KINDS`; all else is `other`.
"""

from __future__ import annotations

from typing import Any

from common import arguments, set_up, setting, show
from fitting import Fit, shots_for
from torch.profiler import ProfilerActivity, profile

from rmadapter.backbones import load_backbone
from rmadapter.methods import METHODS, load_method

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "matmul"),
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "activation": ("gelu", "sigmoid", "relu", "mul", "silu"),
    "norm": ("layer_norm",),
    "copies and casts": (
        "copy", "to", "cat", "clone", "contiguous", "index", "gather", "scatter", "fill", "zero",
    ),
    "sums": ("add", "sum", "mean"),
    "optimizer": ("foreach", "fused", "addcmul", "addcdiv", "sqrt", "lerp"),
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "classes", backbone="ViT-B-16-quickgelu/none", repeat=2)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["mma"])
    options = parser.parse_args()
    set_up(options)
    rows = [measure(options, name, kind) for name in options.methods for kind in ("fp32", "bf16")]
    show(
        options,
        {"rows": rows, **setting(options, "classes", "batch")},
        ["method", "format", *KINDS, "other"],
        rows,
    )


def measure(options: Any, name: str, kind: str) -> dict[str, Any]:
    """Return the shares of a method's step in a number format."""
    backbone = load_backbone(options.backbone)
    fit = Fit(
        load_method(name), shots_for(backbone, options.classes, options.batch, options.seed, kind)
    )
    fit.step()  # warms up
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(options.repeat):
            fit.step()
    spent = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in found.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {"method": name, "format": kind, **{key: value / total for key, value in spent.items()}}


def kind_of(operation: str) -> str:
    """Return the kind of an operation, by the profiler's name, such as `aten::addmm` or
    `aten::_softmax_backward_data`."""
    name = operation.rpartition("::")[2].strip("_")
    kinds = {word: kind for kind, words in KINDS.items() for word in words}
    return kinds.get(name) or next(
        (kind for word, kind in kinds.items() if len(word) > 3 and word in name), "other"
    )


if __name__ == "__main__":
    main()
