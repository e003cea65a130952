"""Every benchmark on a tiny model: its JSON. What it measures is never asserted: machines
differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import batching
import cpu_parts
import figures
import first_step
import folder
import growth
import past_figures
import predict_many
import profiling
import protocol
import pytest
import start
import torch

from rmadapter.backbones import Backbone
from tests.helpers.benchmarks import ONCE, Printed, run, tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*ONCE, "--backbone", tiny_model(tmp_path_factory.mktemp("benchmarks"))]


def test_the_figures_of_the_page_are_those_of_the_result_files() -> None:
    text = past_figures.README.read_text(encoding="utf-8")
    now = figures.updated(text, past_figures.SECTIONS)
    assert now == text, "run python research/benchmarks/past_figures.py"


def test_the_first_step_needs_only_the_drawn_images(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    images = ("--images", "20", "--distinct", "8", "--pixels", "32", "24")
    words = ("--classes", "2", "--shots", "2", "--set", "first_block=3", "--json")
    where = ("--backbone", tiny_clip.name, "--folder", str(tmp_path / "data"))
    result = json.loads(run(first_step, monkeypatch, capsys, *where, *images, *words))
    assert (result["images"], result["files_decoded"], result["decodes"]) == (20, 4, 4)
    assert len({path.stat().st_ino for path in (tmp_path / "data").rglob("*.jpg")}) == 8


def test_seconds_of_imports_are_added_by_package() -> None:
    head = "import time: self [us] | cumulative | imported package\n"
    modules = [(f"p{i}", i) for i in range(12)] + [("p3.x", 40), ("p3.x.y", 50)]
    lines = [f"import time: {own:>9} | {10 * own:>10} |   {name}" for name, own in modules]
    found = start.packages(head + "\n".join(lines) + "\nnote: import time: 9 | 9 | no")
    assert list(found) == ["p3", *(f"p{i}" for i in range(11, 3, -1)), "p2"]
    assert found["p3"] == pytest.approx(93e-6)


def test_the_parts_of_a_command_add_up_to_the_whole() -> None:
    found = [dict.fromkeys(folder.NAMES, 1.0) | {"train": train} for train in (20.0, 4.0, 5.0)]
    row = folder.row("x", found)
    assert row == {"run": "x", "cpu": len(folder.NAMES) + 4.0, **found[0], "train": 5.0}
    assert sum(row[part] for part in folder.NAMES) == row["cpu"]


def test_a_part_inside_of_another_counts_by_itself() -> None:
    moments = iter((0.0, 1.0, 3.0, 10.0))
    clock = cpu_parts.Clock(lambda: next(moments))
    inner = clock.timed("decode", lambda text: text + "!")
    outer = clock.timed("train", lambda text: inner(text) + "?")
    assert outer("a") == "a!?"
    assert clock.seconds == {"train": 1.0 + 7.0, "decode": 2.0}


def test_a_command_is_measured_part_by_part(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    sizes = ("--classes", "2", "--shots", "2", "--tests", "2", "--pixels", "40", "30")
    words = ("--backbone", tiny_clip.name, "--methods", "rmadapter", "--repeat", "1")
    own = ("--set", "rmadapter:first_block=3", "rmadapter:epochs=1")
    [row] = json.loads(run(folder, monkeypatch, capsys, *sizes, *words, "--json", *own))["rows"]
    assert row["run"] == "rmadapter, now"
    for part in ("imports", "decode", "looks and hashes", "frozen", "train", "answers", "page"):
        assert row[part] > 0, part


def test_products_of_all_blocks_together_are_those_of_each() -> None:
    torch.manual_seed(0)
    side = batching.Side.drawn(3, 7, 6, 2, torch.float64)
    for weights_only, count in ((False, 6), (True, 2)):
        alone = batching.one_by_one([side.blocks], weights_only)
        [together] = batching.at_once([side], weights_only)
        assert [len(products) for products in alone] == [count] * 3
        assert batching.apart(alone, together) < 1e-12
    x, g = side.x[1], side.g[1]
    down, up = (weight[1].clone().requires_grad_() for weight in (side.down, side.up))
    (x @ down.mT @ up.mT).backward(g)
    whole = side.products(False)
    assert torch.allclose(whole[2][1].mT @ x, down.grad)  # of what enters the second layer
    assert torch.allclose(g.mT @ whole[0][1], up.grad)


def test_a_protocol_is_run(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    sizes = ("--classes", "3", "--shots", "2", "--pixels", "32")
    words = ("--backbone", tiny_clip.name, "--set", "rmadapter.first_block=3", "--json")
    found = json.loads(run(protocol, monkeypatch, capsys, *sizes, *words))
    [row] = found["rows"]
    assert (row["classes"], row["what"]) == (3, "run")
    assert row["memory_gb"] > 0
    assert 0 < row["seconds"] < found["process_seconds"]


def test_every_image_of_a_large_folder_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    found = json.loads(run(predict_many, monkeypatch, capsys, "--images", "101", "--json"))
    [row] = found["rows"]
    assert row["images"] == 101
    assert row["cpu_seconds"] > 0
    assert sys.platform != "linux" or row["peak_mb"] > 50


def test_an_exponent_of_growth_is_the_slope_between_the_last_two_points() -> None:
    points = [
        {"images": 1, "a_seconds": 9.0, "b_seconds": 9.0, "a_mb": 1.0, "process_peak_mb": 1.0},
        {"images": 10, "a_seconds": 1.0, "b_seconds": 0.001, "a_mb": 30.0, "process_peak_mb": 9.0},
        {"images": 100, "a_seconds": 100.0, "b_seconds": 9.0, "a_mb": 300, "process_peak_mb": 9.0},
    ]  # fmt: skip
    expected = {"a_seconds": pytest.approx(2), "a_mb": pytest.approx(1)}
    assert growth.exponents("images", points) == expected
    assert growth.exponents("images", points[:1]) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_linear", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::gelu_backward", "activation"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::index_select", "copies and casts"),
        ("aten::add", "sums"),
        ("aten::_foreach_addcdiv_", "optimizer"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "other"),
    ],
)
def test_kinds_of_operations_by_name(name: str, kind: str) -> None:
    assert profiling.kind_of(name) == kind
