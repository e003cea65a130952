"""benchmarks/profiling.py: kinds of operations by name, and shares that are the whole."""

from __future__ import annotations

import profiling
import pytest


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
