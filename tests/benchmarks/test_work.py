"""The floating-point work that the benchmarks count, against what torch executes, on tiny
models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import train_step
import work
from step import Step
from torch.utils.flop_counter import FlopCounterMode

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.prompts import tokenize
from tests.helpers.rounding import double


def tiny_step(backbone: Backbone, **fields: Any) -> Step:
    return Step(backbone, 5, 3, first_block=2, rank=8, **fields)


def exact(backbone: Backbone, **fields: Any) -> Step:
    """A step in float64."""
    step = tiny_step(double(backbone), **fields)
    step.model.double()
    step.images = step.images.double()
    return step


def executed(step: Step) -> dict[str, int]:
    """Operations of a lean step as torch counts them, by operator."""
    loss = step.run("lean")
    loss()
    with FlopCounterMode(display=False) as counter:
        loss()
    return {str(op).split(".")[-1]: n for op, n in counter.get_flop_counts()["Global"].items()}


def computed_again(step: Step) -> int:
    """Of a reconstruction, its wide difference once more for the gradient, and that of the bias as
    one more column."""
    adapters, found = step.model.adapters, 0
    for side, states in zip(("image", "text"), step.frozen(), strict=True):
        for block in adapters.blocks(side):
            adapter: Any = adapters.at(side, block)
            width, rank = adapter.up.weight.shape
            found += adapter.reconstructs * 2 * work.tokens_of(states).all * width * (rank + 1)
    return found


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_eva", "tiny_hf"])
@pytest.mark.parametrize(
    "fields", [{}, {"cross_modal": True}, {"lambda_image_rec": 0.0, "share": "up"}], ids=str
)
def test_counted_products_are_those_torch_executes(
    name: str, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """All but attention's, where padding and masked pairs are executed and not counted, and what
    need not be done."""
    step = tiny_step(request.getfixturevalue(name), **{"share": "none", **fields})
    counted = work.step_work(step.model, *step.frozen())
    matrices = sum(n for op, n in executed(step).items() if op in ("mm", "addmm"))
    assert counted["attention"] > 0
    assert sum(counted.values()) - counted["attention"] == matrices - computed_again(step)


def test_branches_that_share_the_projection_down_count_it_once() -> None:
    """The adapter written out with the shared product computed once, all of whose tokens need a
    gradient."""
    adapter, x = DualBranchAdapter(48, 8), torch.randn(5, 48, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        hidden = adapter.down(x)
        (adapter.up(hidden).sum() + adapter.rec[1](adapter.rec[0](hidden)).sum()).backward()
    assert work.adapter_work(adapter, 5, 5, goes_on=True) == counter.get_total_flops()


def test_attention_counts_the_products_of_its_plain_form() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(2, 4, 9, 16, requires_grad=True) for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    assert work.attention(width=4 * 16, pairs=2 * 9 * 9) == counter.get_total_flops()


def test_pairs_of_attention_are_those_the_mask_lets_through(
    tiny_clip: Backbone, tiny_hf: Backbone
) -> None:
    for backbone, causal in ((tiny_clip, True), (tiny_hf, False)):
        tokens = tokenize(backbone, ["cat", "a small red car", "tree house"], ["a photo of a {}."])
        states = backbone.text.frozen(tokens, 2)
        lengths = backbone.text.real_tokens(tokens)[0].tolist()
        prefix = states.layout.prefix
        expected = sum(n * n for n in lengths)
        if causal:  # the prefix of two prompts is shared
            whole = sum(n * (n + 1) // 2 for n in lengths)
            expected = whole - prefix * (prefix + 1)
        counted = work.tokens_of(states)
        assert counted.pairs == expected
        assert counted.all == sum(lengths) - 2 * prefix
        assert counted.read_pairs == (sum(lengths) if causal else expected)


@pytest.mark.parametrize("fields", [{}, {"lambda_text_rec": 0.0}], ids=str)
def test_the_reference_in_chunks_is_the_reference(
    tiny_clip: Backbone, fields: dict[str, Any]
) -> None:
    whole = exact(tiny_clip, **fields).gradients("reference")
    chunks = exact(tiny_clip, chunk=2, **fields).gradients("reference")
    assert train_step.largest_difference(chunks, whole) < 1e-11


def test_largest_difference_is_relative_with_a_floor() -> None:
    reference = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-6])}
    near = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2e-6])}
    assert train_step.largest_difference(near, reference) == pytest.approx(0.1)
    small = {**reference, "b": near["b"]}
    assert train_step.largest_difference(small, reference) == pytest.approx(1e-6 / 5e-4)
