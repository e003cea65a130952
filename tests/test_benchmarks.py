"""The benchmarks' counting and their JSON, on tiny models. What they measure is never asserted: machines differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbone import Backbone, load_backbone

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import common  # noqa: E402
import figures  # noqa: E402
import inference  # noqa: E402
import overhead  # noqa: E402
import peers  # noqa: E402
import scaling  # noqa: E402
import train_step  # noqa: E402
import work  # noqa: E402


def tiny_step(backbone: Backbone, **fields: Any) -> common.Step:
    return common.Step(backbone, 5, 3, first_block=2, rank=8, **fields)


def executed(step: common.Step) -> dict[str, int]:
    """Operations of a lean step as torch counts them, by operator."""
    loss = step.run("lean")
    loss()
    with FlopCounterMode(display=False) as counter:
        loss()
    return {str(op).split(".")[-1]: n for op, n in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_eva", "tiny_hf"])
@pytest.mark.parametrize("fields", [{}, {"cross_modal": True}, {"lambda_image_rec": 0.0, "share": "up"}], ids=str)
def test_counted_products_are_those_torch_executes(
    name: str, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """All but attention's, where padding and masked pairs are executed and not counted."""
    step = tiny_step(request.getfixturevalue(name), **{"share": "none", **fields})
    counted = work.step_work(step.model, *step.frozen())
    matrices = sum(n for op, n in executed(step).items() if op in ("mm", "addmm"))
    assert counted["attention"] > 0
    assert sum(counted.values()) - counted["attention"] == matrices


def test_branches_that_share_the_projection_down_count_it_once() -> None:
    """The adapter written out with the shared product computed once, all of whose tokens need a gradient."""
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


def test_pairs_of_attention_are_those_the_mask_lets_through(tiny_clip: Backbone, tiny_hf: Backbone) -> None:
    names = ["cat", "a small red car", "tree house"]
    for backbone, causal in ((tiny_clip, True), (tiny_hf, False)):
        step = tiny_step(backbone)
        tokens = step.model.prompts(names)
        states = step.model.frozen("text", tokens)
        lengths = step.model.towers["text"].real_tokens(tokens)[0].tolist()
        prefix = states.layout.prefix
        if causal:
            whole = sum(int(torch.ones(n, n).tril().sum()) for n in lengths)
            expected = whole - 2 * int(torch.ones(prefix, prefix).tril().sum())  # the prefix of two prompts is shared
        else:
            expected = sum(n * n for n in lengths)
        counted = work.tokens_of(states)
        assert counted.pairs == expected
        assert counted.all == sum(lengths) - 2 * prefix
        assert counted.read_pairs == (sum(lengths) if causal else expected)


def test_the_reference_in_chunks_is_the_reference(tiny_clip: Backbone) -> None:
    whole = tiny_step(tiny_clip).gradients("reference")
    chunks = tiny_step(tiny_clip, chunk=2).gradients("reference")
    assert train_step.largest_difference(chunks, whole) < 1e-5


def test_largest_difference_is_relative_with_a_floor() -> None:
    reference = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-6])}
    near = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2e-6])}
    assert train_step.largest_difference(near, reference) == pytest.approx(0.1)
    assert train_step.largest_difference({**reference, "b": near["b"]}, reference) == pytest.approx(1e-6 / 5e-4)


def run(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    """What a benchmark prints; what it would run in fresh processes, whose start takes seconds, runs in this one."""

    def here(script: str, *options: str) -> Any:
        assert script == module.__file__
        monkeypatch.setattr(sys, "argv", [script, *options])
        module.main()
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(module, "in_fresh_process", here, raising=False)
    monkeypatch.setattr(common, "SQUARES", (16,))
    monkeypatch.setattr(train_step, "SQUARES", (16,))
    monkeypatch.setattr(sys, "argv", [module.__file__, *options])
    module.main()
    return capsys.readouterr().out


TINY = ("--repeat", "1", "--seed", "3", "--allocator", "default", "--backbone")


def folder(tmp_path: Path, size: int = 32) -> str:
    from conftest import CLIP_TEXT, write_model

    vision = {"image_size": size, "patch_size": 8, "width": 32, "head_width": 16, "layers": 5}
    return str(write_model(tmp_path / "model", {"vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "layers": 5}}))


def test_train_step_prints_one_object_per_class_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*TINY, folder(tmp_path), "--batch", "2", "--classes", "3", "4")
    results = json.loads(run(train_step, monkeypatch, capsys, *options, "--json"))
    assert [result["classes"] for result in results] == [3, 4]
    for result in results:
        numbers = [result[key] for key in train_step.KEYS]
        assert all(number > 0 for number in numbers)
        assert result["max_gradient_difference"] < 1e-4
        assert result["ratio"] == pytest.approx(result["reference_seconds"] / result["lean_seconds"])
        rate = result["matmul_gflops"] * 1e9
        assert result["matmul_share"] == pytest.approx(result["lean_flops"] / result["lean_seconds"] / rate)
    assert "ratio" in run(train_step, monkeypatch, capsys, *options)


def test_overhead_counts_the_branch_and_cites_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*TINY, folder(tmp_path), "--batch", "2", "--classes", "3", "--json")
    result = json.loads(run(overhead, monkeypatch, capsys, *options))
    # One adapted block (the fifth) in either encoder: r x r and r x d weights with their biases.
    assert result["added_parameters"] == sum(32 * 32 + 32 + 32 * d + d for d in (32, 48))
    assert result["paper"] == {"added_parameters": 320_000, "memory_percent": 3.0, "time_percent": 5.0}
    for forward in ("lean", "reference"):
        ratio = result[forward]["with_seconds"] / result[forward]["without_seconds"]
        assert result[forward]["time_percent"] == pytest.approx(100 * (ratio - 1))


def test_inference_compares_with_the_untouched_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*TINY, folder(tmp_path), "--batches", "1", "3", "--json")
    results = json.loads(run(inference, monkeypatch, capsys, *options))
    assert [result["batch"] for result in results] == [1, 3]
    for result in results:
        speeds = result["adapted_images_per_second"], result["untouched_images_per_second"]
        assert result["ratio"] == pytest.approx(speeds[0] / speeds[1])


def test_rounds_are_taken_in_turns_and_end_with_the_budget() -> None:
    calls: list[str] = []
    seconds = common.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 5, budget=0)
    assert calls == ["a", "b"] * 4  # one round of warming up, then the three that are always measured
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak includes what came before")
def test_peak_is_what_was_held_at_once() -> None:
    torch.ones(50_000_000)  # 200 MB, before the start
    peak = common.Peak()
    held = torch.ones(25_000_000)
    peak.start()
    for _ in range(3):
        torch.ones(10_000_000)  # 40 MB, one after the other
    assert 100 + 35 < peak.stop() < 100 + 80
    del held


@pytest.mark.parametrize("study", ["classes", "shots", "depth"])
def test_scaling_writes_its_points_and_a_plot(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scaling.json").write_text('{"size": "kept"}')
    options = (*TINY, folder(tmp_path), "--batch", "2", "--study", study, "--points", "1", "2", "--out")
    assert run(scaling, monkeypatch, capsys, *options, str(tmp_path / "out")) == ""
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert found["size"] == "kept"
    assert [point[study] for point in found[study]["points"]] == [1, 2]
    with Image.open(tmp_path / "out" / f"scaling_{study}.png") as plot:
        plot.verify()


def test_a_resized_backbone_takes_images_of_the_new_size() -> None:
    small = scaling.resized(load_backbone("ViT-S-32-alt/none"), 64)
    assert small.model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 256)  # type: ignore[operator]


def test_a_fresh_process_gives_its_json(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))")
    assert common.in_fresh_process(str(script), "--classes", "3") == ["--classes", "3"]


@pytest.mark.parametrize("script", ["train_step", "overhead", "inference", "scaling"])
def test_help_says_what_is_measured(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        module.main()
    assert module.__doc__.split("\n")[0] in capsys.readouterr().out


def test_the_figures_of_the_readme_are_those_of_the_result_files() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert figures.updated(text) == text, "run python benchmarks/figures.py"
    assert "share of matmul rate" in figures.figures(figures.RESULTS)


def test_every_peer_is_measured_with_its_published_batch_and_a_single_pass(tiny_clip: Backbone) -> None:
    assert {name: peers.batch_of(name) for name in ("coop", "cocoop", "maple", "mma")} == {
        "coop": 32,
        "cocoop": 1,
        "maple": 4,
        "mma": 16,
    }
    assert peers.quick("coop").epochs == 1
    assert peers.quick("rmadapter").config().epochs == 1


def test_a_peers_figures(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    monkeypatch.setattr(peers, "load_backbone", lambda name: tiny_clip)
    options = SimpleNamespace(backbone="tiny", classes=3, seed=0)
    found = peers.measure(options, "kgcoop")  # type: ignore[arg-type]
    assert found["parameters"] == 4 * 48
    assert found["image_seconds"] == found["step_seconds"] / 128
    assert peers.measure(options, "zero-shot")["step_seconds"] is None  # type: ignore[arg-type]
