"""The method against closed forms and the paper's parameter counts."""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import rmadapter.adapter
from rmadapter.adapter import (
    Adapters,
    DualBranchAdapter,
    Side,
    adapted_blocks,
    at_least_float32,
    consistency,
    loss_terms,
    token_mean,
)
from rmadapter.settings import AdapterSettings

VIT_B16 = ((768, 512), (12, 12))  # widths and depths of its image and text encoders


def grown(adapter: DualBranchAdapter) -> DualBranchAdapter:
    """No weight at zero, so that nothing goes untested."""
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


MMA: dict[str, Any] = {
    "cross_modal": True,
    "activation": "relu",
    "init": "kaiming",
    "reconstruct": (),
}


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        (MMA, (674_560, 0)),
        ({}, (1_020_928, 354_816)),
        ({"reconstruct": ("image",)}, (666_112 + 8 * (32 * 32 + 32 + 32 * 768 + 768), 211_200)),
        ({"reconstruct": ()}, (666_112, 0)),
        ({"first_block": 12}, (1_020_928 // 8, 354_816 // 8)),
    ],
)
def test_parameter_counts_of_vit_b16(fields: dict[str, Any], counts: tuple[int, int]) -> None:
    assert Adapters(*VIT_B16, **fields).parameter_counts() == counts


@pytest.mark.parametrize(
    ("share", "layers"), list(itertools.product(["down", "up", "none"], [1, 2, 3]))
)
def test_reconstruction_branch_has_the_requested_layers(share: str, layers: int) -> None:
    d, r = 12, 4
    adapter = DualBranchAdapter(d, r, share=share, reconstruction_layers=layers)
    own = sum(p.numel() for name, p in adapter.named_parameters() if name.startswith("rec"))
    middle, down, up = (layers - 1) * (r * r + r), d * r + r, r * d + d
    assert own == middle + (0 if share == "down" else down) + (0 if share == "up" else up)
    assert adapter.reconstruct(torch.randn(2, 5, d)).shape == (2, 5, d)


def test_both_branches_compute_equations_8_to_10() -> None:
    a, x = grown(DualBranchAdapter(6, 3)), torch.randn(4, 6)
    down = F.gelu(x @ a.down.weight.T + a.down.bias)
    torch.testing.assert_close(a.base(x), down @ a.up.weight.T + a.up.bias)
    hidden = F.gelu(down @ a.rec[0].weight.T + a.rec[0].bias)
    torch.testing.assert_close(a.reconstruct(x), hidden @ a.rec[1].weight.T + a.rec[1].bias)


def test_shared_up_projection_ends_both_branches() -> None:
    a, x = grown(DualBranchAdapter(6, 3, share="up")), torch.randn(4, 6)
    assert a.rec_down is not None
    hidden = F.gelu(
        F.gelu(x @ a.rec_down.weight.T + a.rec_down.bias) @ a.rec[0].weight.T + a.rec[0].bias
    )
    torch.testing.assert_close(a.reconstruct(x), hidden @ a.up.weight.T + a.up.bias)


def test_errors_of_the_three_objectives() -> None:
    a, x = grown(DualBranchAdapter(6, 3)), torch.randn(4, 5, 6)
    gap, guess = a.reconstruct(x) - x, a.reconstruct(x)
    torch.testing.assert_close(a.reconstruction_error(x, "l2"), (gap**2).sum(-1) / 6)
    torch.testing.assert_close(a.reconstruction_error(x, "l1"), gap.abs().sum(-1) / 6)
    cosine = (guess * x).sum(-1) / guess.norm(dim=-1) / x.norm(dim=-1)
    torch.testing.assert_close(a.reconstruction_error(x, "cosine"), 1 - cosine)


@pytest.mark.parametrize(("share", "layers"), [("down", 2), ("up", 2), ("none", 3), ("down", 1)])
def test_the_gradient_of_a_squared_error_is_that_of_its_formula(share: str, layers: int) -> None:
    """Of every weight and of what is read, where each token counts differently."""
    a = grown(DualBranchAdapter(6, 3, share=share, reconstruction_layers=layers)).double()
    target = torch.randn(4, 5, 6)
    x, each = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True), torch.rand(4, 5)
    used = [x, *(a.down if a.rec_down is None else a.rec_down).parameters(), *a.rec.parameters()]
    used += a.up.parameters() if share == "up" else []

    def gradients(error: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return error.detach(), *torch.autograd.grad((error * each).sum(), used)

    plain = gradients((a.reconstruct(x) - target).square().mean(-1))
    torch.testing.assert_close(
        gradients(a.reconstruction_error(x, "l2", target, local=False)), plain
    )
    whole = gradients((a.reconstruct(x) - x).square().mean(-1))
    torch.testing.assert_close(gradients(a.reconstruction_error(x, whole=True)), whole)


def test_a_squared_error_under_autocast_is_float32_and_close() -> None:
    a, x = grown(DualBranchAdapter(6, 3)), torch.randn(4, 5, 6)
    exact = a.reconstruction_error(x)
    exact_gradients = torch.autograd.grad(exact.sum(), [*a.rec.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = a.reconstruction_error(x)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0.02)
    mixed_gradients = torch.autograd.grad(mixed.sum(), [*a.rec.parameters()])
    torch.testing.assert_close(mixed_gradients, exact_gradients, rtol=0.05, atol=0.05)


def test_the_cross_entropy_under_autocast_equals_float32() -> None:
    scale, labels = torch.tensor(100.0), torch.arange(3)
    sides = [Side(torch.randn(3, 64), torch.randn(3, 64), [], 0.0, 0.0) for _ in range(2)]
    exact = loss_terms(scale, labels, *sides)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_terms(scale, labels, *sides), exact)


@pytest.mark.parametrize("share", ["down", "up", "none"])
def test_reconstruction_is_local(share: str) -> None:
    """Through a chain of two adapters, the upper one's error moves the upper one alone."""
    lower, upper = grown(DualBranchAdapter(6, 3)), grown(DualBranchAdapter(6, 3, share=share))
    x = torch.randn(2, 6, requires_grad=True)
    middle = x + lower.base(x)
    upper.reconstruction_error(middle).sum().backward()
    assert x.grad is None
    assert all(p.grad is None for p in lower.parameters())
    assert all(p.grad is not None and p.grad.any() for p in upper.rec.parameters())
    if share != "up":
        assert all(p.grad is None for p in upper.up.parameters())


def test_reconstruction_that_is_not_local_has_gradients_below() -> None:
    lower, upper = grown(DualBranchAdapter(6, 3)), grown(DualBranchAdapter(6, 3))
    target = torch.randn(2, 6, requires_grad=True)
    upper.reconstruction_error(
        lower.base(torch.randn(2, 6)), target=target, local=False
    ).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lower.up.parameters())
    assert target.grad is None


@pytest.mark.parametrize("local", [True, False])
def test_the_error_of_what_leaves_a_block_reaches_the_whole_adapter(local: bool) -> None:
    """Its up-projection too, as Eq. 11 asks; the tokens below only where it is not local."""
    fields = {"rank": 3, "first_block": 1, "target": "adapted", "local": local, "alpha": 0.5}
    adapters = Adapters((6, 6), (2, 2), **fields)
    one: Any = adapters.at("image", 1)
    grown(one)
    x, output = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    read = adapters.leaving("image", 1, x, output, output + 0.5 * one.base(x))
    y = output + 0.5 * one.base(x)
    torch.testing.assert_close(read, y)
    adapters.reconstruction_error("image", 1, read).sum().backward()
    expected = torch.autograd.grad(
        (one.reconstruct(y) - y).square().mean(-1).sum(), [one.up.weight, x, output]
    )
    torch.testing.assert_close(one.up.weight.grad, expected[0])
    assert expected[0].abs().max() > 1e-3
    for tensor, gradient in zip((x, output), expected[1:], strict=True):
        if local:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, gradient)


def test_targets_of_reconstruction() -> None:
    x, other = torch.randn(2, 6) + 3, torch.randn(2, 6)
    for fields, wanted in [
        ({}, other),
        ({"target_norm": True}, (other - other.mean(-1, keepdim=True))),
    ]:
        adapters = Adapters((6, 6), (2, 2), rank=3, first_block=1, **fields)
        one: Any = adapters.at("image", 1)
        if fields:
            wanted = wanted / (wanted.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = (one.reconstruct(x) - wanted).square().mean(-1)
        torch.testing.assert_close(adapters.reconstruction_error("image", 1, x, other), expected)


def test_decoupled_scale_trains_as_if_alpha_were_one() -> None:
    a, x = grown(DualBranchAdapter(6, 3)), torch.randn(2, 6, requires_grad=True)
    target = torch.randn(2, 6)

    def gradients(alpha: float, decouple: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a.zero_grad()
        x.grad = None
        output = a.scaled_base(x, alpha, decouple=decouple)
        (output * target).sum().backward()
        assert a.down.weight.grad is not None
        assert x.grad is not None
        return output.detach(), a.down.weight.grad.clone(), x.grad.clone()

    output, weight, trunk = gradients(0.01, True)
    plain_output, _, plain_trunk = gradients(0.01, False)
    _, weight_at_one, _ = gradients(1.0, False)
    torch.testing.assert_close(output, plain_output)
    torch.testing.assert_close(weight, weight_at_one)
    torch.testing.assert_close(trunk, plain_trunk)


def test_initialisations() -> None:
    x = torch.randn(3, 8)
    assert not DualBranchAdapter(8, 4).base(x).any()
    assert 0 < DualBranchAdapter(8, 4, init="small").base(x).abs().max() < 0.05
    torch.manual_seed(0)
    wide = DualBranchAdapter(400, 300, init="kaiming")
    # fan-out of down is its rank
    assert wide.down.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not wide.up.bias.any()


@pytest.mark.parametrize(
    ("first", "last", "depth", "deepest", "blocks"),
    [
        (5, 12, 12, 12, list(range(5, 13))),
        (5, None, 12, 12, list(range(5, 13))),
        (5, None, 6, 12, [3, 4, 5, 6]),
        (1, None, 6, 12, [1, 2, 3, 4, 5, 6]),
        (12, 12, 6, 12, [6]),
        (1, 1, 6, 12, [1]),
        (5, 8, 24, 24, [5, 6, 7, 8]),
    ],
)
def test_blocks_keep_their_relative_height(
    first: int, last: int | None, depth: int, deepest: int, blocks: list[int]
) -> None:
    assert adapted_blocks(first, last, depth, deepest) == blocks


def test_encoders_of_unequal_depth_share_projections_from_the_top() -> None:
    adapters = Adapters((8, 6), (12, 6), cross_modal=True, rank=2)
    assert adapters.blocks("image") == list(range(5, 13))
    assert adapters.blocks("text") == [3, 4, 5, 6]
    grown(adapters)
    before = {
        (s, b): adapters.delta(s, b, torch.ones(8 if s == "image" else 6))
        for s in ("image", "text")
        for b in (5, 6)
    }
    adapters.cross["0"].weight.data += 1  # beside the top blocks, image 12 and text 6
    after = {(s, b): adapters.delta(s, b, torch.ones(8 if s == "image" else 6)) for s, b in before}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {("text", 6)}


def test_consistency_is_the_mean_difference_of_unit_vectors() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert consistency(a, b).item() == pytest.approx((0.6 + 0.2) / 2)


def test_consistency_as_printed_is_the_sum_of_plain_differences() -> None:
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert consistency(a, b, raw=True).item() == pytest.approx((3 + 2) / 2)
    side = Side(a, b, [], 0.0, 2.0)
    text = Side(a, a, [], 0.0, 0.0)
    terms = loss_terms(torch.tensor(7.0), torch.tensor([0, 1]), side, text, "raw")
    assert terms["image_con"].item() == pytest.approx(5)


@pytest.mark.parametrize("raw", [False, True])
def test_differences_within_rounding_have_no_gradient(raw: bool) -> None:
    frozen = torch.randn(2, 5) * 100
    adapted = (frozen * (1 + 1e-8)).requires_grad_()
    value = consistency(adapted, frozen, raw)
    value.backward()
    assert value.item() == 0
    assert adapted.grad is not None
    assert not adapted.grad.any()


def test_padding_has_no_weight() -> None:
    error = torch.tensor([[1.0, 3.0, 1e9]])
    assert token_mean(error, torch.tensor([[1.0, 1.0, 0.0]])).item() == 2
    assert token_mean(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])).item() == 1.5


def test_half_precision_is_too_coarse_and_float64_stays() -> None:
    kinds = {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float64: torch.float64,
    }
    assert all(
        at_least_float32(torch.ones(2, dtype=given)).dtype == kind for given, kind in kinds.items()
    )


def test_loss_is_the_sum_of_its_weighted_terms() -> None:
    x, w = torch.randn(4, 5), torch.randn(3, 5)
    labels = torch.tensor([0, 1, 2, 0])
    frozen = torch.randn(4, 5)
    errors = [torch.tensor(0.25), torch.tensor(0.5)]
    image, text = Side(x, frozen, errors, 3.0, 2.0), Side(w, w, [], 1.0, 0.0)
    terms = loss_terms(torch.tensor(7.0), labels, image, text)
    assert list(terms) == ["loss", "ce", "image_rec", "image_con"]
    cosine = F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T
    log_p = (7 * cosine).log_softmax(-1)
    assert terms["ce"].item() == pytest.approx(-log_p[range(4), labels].mean().item(), rel=1e-5)
    assert terms["image_rec"].item() == pytest.approx(3 * 0.75)
    assert terms["image_con"].item() == pytest.approx(2 * consistency(x, frozen).item())
    parts = terms["ce"] + terms["image_rec"] + terms["image_con"]
    assert terms["loss"].item() == pytest.approx(parts.item())
    scaled = loss_terms(torch.tensor(7.0), labels, image, text, "logit")
    assert scaled["image_con"].item() == pytest.approx(7 * terms["image_con"].item())
    assert (scaled["ce"], scaled["image_rec"]) == (terms["ce"], terms["image_rec"])
    other = loss_terms(
        torch.tensor(7.0), labels, image._replace(lambda_rec=0.0), Side(w, -w, errors, 1.0, 5.0)
    )
    assert list(other) == ["loss", "ce", "image_con", "text_rec", "text_con"]
    assert other["text_rec"].item() == pytest.approx(0.75)
    assert other["text_con"].item() == pytest.approx(
        5 * 2 * F.normalize(w, dim=-1).abs().mean().item(), rel=1e-5
    )


def test_only_torch_is_imported_by_the_method() -> None:
    tree = ast.parse(Path(rmadapter.adapter.__file__).read_text(encoding="utf-8"))
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    third_party = {name.split(".")[0] for name in names} - {*sys.stdlib_module_names}
    assert third_party == {"torch"}


def test_arguments_and_defaults_equal_those_of_the_settings() -> None:
    """So that a record of the settings configures the adapters, and so does nothing at all."""
    words = inspect.signature(Adapters).parameters
    defaults = {
        name: word.default for name, word in words.items() if word.kind is word.KEYWORD_ONLY
    }
    assert defaults.pop("reconstruct") == ("image", "text")
    assert defaults == asdict(AdapterSettings())
    adapters = Adapters(
        (8, 6), (4, 4), **asdict(AdapterSettings(rank=3, first_block=2, last_block=3))
    )
    assert [adapters.at("image", block) is not None for block in (1, 2, 3, 4)] == [
        False,
        True,
        True,
        False,
    ]
