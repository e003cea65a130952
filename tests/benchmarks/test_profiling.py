"""benchmarks/profiling.py: kinds of operations by name, and shares that are the whole."""

from __future__ import annotations

import json
import sys

import profiling
import pytest

from rmadapter.backbones import Backbone


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::mkldnn_linear", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::gelu_backward", "activation"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::copy_", "copies and casts"),
        ("aten::index_select", "copies and casts"),
        ("aten::add", "sums"),
        ("aten::_foreach_addcdiv_", "optimizer"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "other"),
    ],
)
def test_kinds_by_name(name: str, kind: str) -> None:
    assert profiling.kind_of(name) == kind


def test_shares_of_a_step(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--backbone",
        tiny_clip.name,
        "--classes",
        "3",
        "--batch",
        "3",
        "--repeat",
        "1",
        "--allocator",
        "default",
    ]
    monkeypatch.setattr(profiling, "load_method", lambda name: load(name))
    monkeypatch.setattr(sys, "argv", ["x", *small, "--methods", "mma", "--json"])
    profiling.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["format"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        shares = [row[key] for key in (*profiling.KINDS, "other")]
        assert sum(shares) == pytest.approx(1)
        assert row["products"] > 0
        assert row["norm"] > 0


def load(name: str) -> object:
    from rmadapter.methods import load_method

    return load_method(name, {"first_block": 3})
