"""benchmarks/gpu.py on a CPU and a tiny model: that all of it runs, and that all formats take the
same step; on a GPU, that a captured step is the eager one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from step import Step

from rmadapter.backbones import Backbone, load_backbone
from tests.helpers.benchmarks import ONCE, Printed, run, tiny_model


def gradients(backbone: Backbone, variant: str, name: str) -> torch.Tensor:
    step = Step(backbone, 3, 2, 0)
    step.optimizer = torch.optim.SGD(step.model.adapters.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in step.model.adapters.parameters()])
    run = gpu.training(step, variant, name)
    for _ in range(20):  # float16 leaves out steps until its scale fits
        run()
        moved = before - torch.cat([p.detach().flatten() for p in step.model.adapters.parameters()])
        if moved.any():
            break
    return moved


def test_all_formats_take_the_same_step(tmp_path: Path) -> None:
    """That of float16 by scaled losses: scaled back wrongly, it would be another one."""
    backbone = load_backbone(tiny_model(tmp_path))
    plain = gradients(backbone, "lean", "fp32")
    limits = {("reference", "fp32"): 1e-4, ("lean", "fp16"): 0.02, ("lean", "bf16"): 0.1}
    for (variant, name), limit in limits.items():
        found = gradients(backbone, variant, name)
        assert float((found - plain).norm() / plain.norm()) < limit, (variant, name)


@pytest.mark.ci
@pytest.mark.parametrize("variant", gpu.MODES)
def test_a_compiled_step_is_the_same(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the compiler, which takes a minute, and is not what is tested."""
    given: list[dict[str, bool]] = []

    def compile(function: Any, *, options: dict[str, bool]) -> Any:
        given.append(options)
        return function

    backbone = load_backbone(tiny_model(tmp_path))
    plain = gradients(backbone, "lean", "fp32")
    monkeypatch.setattr(torch, "compile", compile)
    torch.testing.assert_close(gradients(backbone, variant, "fp32"), plain)
    step = Step(backbone, 3, 2, 0)
    features = gpu.encoding(step, variant)()
    torch.testing.assert_close(features, gpu.encoding(step, "lean")())
    graphs = variant == "reduce-overhead"
    assert [one.get("triton.cudagraphs", False) for one in given] == [graphs] * 2


@pytest.mark.ci
@pytest.mark.parametrize("what", [partial(gpu.training, name="fp32"), gpu.encoding])
def test_nothing_is_compiled_twice(
    what: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each call hooks the blocks of the encoder anew."""
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, options: compile(function, backend=counting)
    )
    run = what(Step(load_backbone(tiny_model(tmp_path)), 3, 2, 0), variant="compiled")
    run()
    first = len(graphs)
    for _ in range(11):
        run()
    assert len(graphs) == first > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: captures a CUDA graph")
@pytest.mark.parametrize(("variant", "times"), [("graph", 4), ("reduce-overhead", 7)])
def test_a_captured_step_is_the_eager_one(  # pragma: no cover: needs a GPU
    variant: str, times: int, tmp_path: Path
) -> None:
    """Capturing a graph runs three steps."""
    backbone = load_backbone(tiny_model(tmp_path)).to(torch.device("cuda"))
    found = []
    for way, count in (("lean", 7), (variant, times)):
        step = Step(backbone, 3, 2, 0, learning_rate=1e-3)
        step.images, step.labels = step.images.cuda(), step.labels.cuda()
        run = gpu.training(step, way, "fp32")
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        found.append(torch.cat([p.detach().flatten() for p in step.model.adapters.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def small(folder: Path, *more: str) -> list[str]:
    """Return the options of a quick run on the processor, which leaves its files in a folder."""
    sizes = ["--device", "cpu", "--classes", "3", "--batch", "2", "--squares", "16", "--fit", "3"]
    files = ["--page", str(folder / "gpu.md"), "--out", str(folder / "gpu.json")]
    model = ["--backbone", tiny_model(folder), "--copied", "1"]
    return [*ONCE, *sizes, *files, *model, "--no-compile", *more]


def rows_of(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return what the rows of the page are about, and the JSON file."""
    lines = (folder / "gpu.md").read_text("utf-8").splitlines()
    cells = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    return cells[2:], json.loads((folder / "gpu.json").read_text("utf-8"))


def here(function: Any, *inputs: object, seconds: float) -> Any:
    """Stand in for `gpu.apart`: a process takes seconds to start."""
    assert seconds > 0
    return function(*inputs)


@pytest.mark.ci
def test_all_of_it_runs_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(gpu, "apart", here)
    printed = run(gpu, monkeypatch, capsys, *small(tmp_path, "--json"))
    result = json.loads(printed)
    rows = {row["what"]: row for row in result["rows"]}
    eager = ["lean, fp32", "lean, bf16", "lean, fp16"]
    steps = [f"step, {name}" for name in [*eager, "reference, fp32"]]
    fits = ["fit, fp32", "fit, bf16"]
    graphs = [f"{what}, graph, fp32" for what in ("step", "images")] + ["step, graph, bf16"]
    assert sorted(list(rows)[:5]) == sorted([*steps, "images, lean, fp32"])
    assert list(rows)[5:7] == fits
    assert sorted(list(rows)[7:]) == sorted(graphs)
    for name, row in rows.items():
        if "graph" in name:
            assert row["note"] == "RuntimeError: CUDA graphs need a GPU"
        else:
            assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
            assert row["peak_mb"] is None or row["peak_mb"] > 0
    assert all(rows[name]["roofline_seconds"] > 0 for name in steps)
    assert rows_of(tmp_path) == ([*rows], result)
    failure = result["first_failure"]
    assert failure["what"] in graphs
    assert "in captured" in failure["text"]  # where it was raised
    assert failure["text"].splitlines()[-1] in (tmp_path / "gpu.md").read_text("utf-8")


def test_rows_that_say_most_come_first() -> None:
    options = argparse.Namespace(batch=[16, 128], classes=[50, 1000], fit=1000, compile=True)
    ways = gpu.lineup(options)
    assert [way.batch for way in ways[:9]] == [128] * 9
    late = [way.variant in gpu.MODES for way in ways]
    assert late == sorted(late)
    eager = [way.variant in ("lean", "reference") for way in ways]
    whole = [ways.index(gpu.Way("fit", "fit", name, 16, 1000)) for name in ("fp32", "bf16")]
    assert eager[: min(whole)] == [True] * min(whole)
    assert max(whole) < late.index(True)
    assert len({*ways}) == len(ways) == 2 * 2 * (3 + 1 + 6) + 2 * (1 + 3) + 2


class Killed(BaseException):
    """A stand-in for SIGKILL, after which nothing runs."""


def test_killed_after_three_rows_it_leaves_a_page_with_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    measured: list[gpu.Way] = []

    def dies(function: Any, *inputs: Any, seconds: float) -> Any:
        if function is gpu.look:
            return here(function, *inputs, seconds=seconds)
        if len(measured) == 3:
            raise Killed
        measured.append(inputs[-1])
        return {"seconds": 1.0}, "its process died" if len(measured) == 2 else ""

    monkeypatch.setattr(gpu, "apart", dies)
    with pytest.raises(Killed):
        run(gpu, monkeypatch, capsys, *small(tmp_path))
    names, result = rows_of(tmp_path)
    assert names == [row["what"] for row in result["rows"]]
    assert names == [way.about["what"] for way in measured]
    assert len(names) == 3
    assert result["first_failure"] == {"what": names[1], "text": "its process died"}
    assert f"the first failure, {names[1]}:\nits process died" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ChildProcessError("died"), TimeoutError("no end")])
def test_rows_are_measured_though_the_rates_of_the_card_are_not(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    cards: list[gpu.Card] = []

    def broken(function: Any, *inputs: Any, seconds: float) -> Any:
        if function is gpu.look:
            raise error
        cards.append(inputs[1])
        return {"seconds": 1.0}, ""

    monkeypatch.setattr(gpu, "apart", broken)
    run(gpu, monkeypatch, capsys, *small(tmp_path))
    names, result = rows_of(tmp_path)
    assert len(names) == len(cards) == result["planned"]
    assert cards[0].least(gpu.Cost(1, 1), "fp32") is None
    assert result["first_failure"]["text"] == str(error)
    assert str(error) in (tmp_path / "gpu.md").read_text("utf-8")


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_script_leaves_its_rows(tmp_path: Path) -> None:
    """A real one, with a process for each row."""
    command = [sys.executable, str(gpu.__file__), *small(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as script:
        end = time.monotonic() + 300
        while time.monotonic() < end and script.poll() is None:
            time.sleep(0.1)
            if (tmp_path / "gpu.md").exists() and len(rows_of(tmp_path)[0]) >= 3:
                break
        assert script.poll() is None
        script.kill()
    names, result = rows_of(tmp_path)
    assert names == [row["what"] for row in result["rows"]][: len(names)]
    assert 3 <= len(names) < result["planned"]
    assert result["rows"][0]["seconds"] > 0


def test_minutes_end_it_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    now = [0.0]

    def slow(function: Any, *inputs: Any, seconds: float) -> Any:
        now[0] += 100
        return here(function, *inputs, seconds=seconds) if function is gpu.look else ({}, "")

    monkeypatch.setattr(gpu, "apart", slow)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    run(gpu, monkeypatch, capsys, *small(tmp_path, "--minutes", "5"))
    assert len(rows_of(tmp_path)[0]) == 2  # of 100 seconds each, after as many for the rates


@pytest.mark.ci
def test_a_process_that_dies_or_hangs_is_told_and_takes_no_other_with_it() -> None:
    with pytest.raises(ChildProcessError, match="ended with 3"):
        gpu.apart(os._exit, 3, seconds=60)
    with pytest.raises(TimeoutError, match="1 seconds"):
        gpu.apart(time.sleep, 600, seconds=1)
    assert gpu.apart(os.getpid, seconds=60) != os.getpid()
    assert gpu.apart(abs, -2, seconds=60) == 2
    died = gpu.Way("step", "lean", "fp32", 2, 3)
    options = argparse.Namespace(allocator="keep", threads=0, seed="no number")
    row, failure = gpu.one_row(options, gpu.Card(torch.device("cpu"), {}, 1.0), died, 1e-3)
    assert row == died.about | {"note": f"TimeoutError: {failure}"}


def test_the_roofline_is_the_larger_of_products_and_bytes() -> None:
    card = gpu.Card(torch.device("cpu"), {"fp32": 2.0, "bf16": None}, 100.0)
    assert card.least(gpu.Cost(4_000_000_000, 100), "fp32") == 2
    assert card.least(gpu.Cost(4_000_000_000, 300), "fp32") == 3
    assert card.least(gpu.Cost(1, 1), "bf16") is None


def test_products_and_bytes_are_counted(tmp_path: Path) -> None:
    """Of one block above the first adapted one, in each encoder."""
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert gpu.counted(lambda: a @ b) == 2 * 3 * 5 * 7
    step = Step(load_backbone(tiny_model(tmp_path)), 3, 2, 0, first_block=4)
    states = gpu.frozen(step)
    frozen = sum(one.x.numel() + one.y.numel() for one in states)
    top = [step.model.encoders[side].blocks[-1] for side in ("image", "text")]
    weights = sum(weight.numel() for block in top for weight in block.parameters())
    assert gpu.step_bytes(step, torch.bfloat16, states) == 2 * (frozen + 2 * weights)


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    page = tmp_path / "gpu.md"
    with pytest.raises(SystemExit) as ended:
        run(gpu, monkeypatch, capsys, "--page", str(page))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu.py: no GPU cuda here; --device cpu tries it\n"
    assert not page.exists()
