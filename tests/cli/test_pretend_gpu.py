"""Every verb that computes, on a pretend GPU: it uses that device, and its answers are those of the
processor."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.encoders import ImageEncoder, States
from rmadapter.export.runtime import Model
from tests.helpers.pretend_gpu import limited, plugged_in, without_float64
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

SETTINGS = ("first_block=3", "rank=4", "epochs=2", "learning_rate=0.02")
SMALL = ["--method", "rmadapter", "--shots", 2, *(f"--set={one}" for one in SETTINGS)]


class Both:
    """Runs a verb on the processor and on the pretend GPU."""

    def __init__(self, rmadapter: Command) -> None:
        self.run = rmadapter

    def on_gpu(self, *words: object) -> Any:
        """Return what a verb prints with --json; it must have used the GPU, which has no float64,
        as Apple's has none; but torch's own scaling of float16 takes it on others."""
        lacking = nullcontext() if any("fp16" in str(word) for word in words) else without_float64()
        with plugged_in(), lacking, limited() as memory:
            found = self.run.json(*words)
        assert memory.peak > 0
        return found

    def same(self, *words: object) -> Any:
        """Check that a verb prints the same on both devices, but for rounding; return it."""
        there, here = self.on_gpu(*words), self.run.json(*words)
        assert leaves(there) == pytest.approx(leaves(here), abs=2e-5)
        return there


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Return numbers and texts of a JSON value by their places in it."""
    if isinstance(value, dict):
        parts = [leaves(one, f"{place}/{name}") for name, one in value.items()]
    elif isinstance(value, list):
        parts = [leaves(one, f"{place}/{number}") for number, one in enumerate(value)]
    else:
        return {place: value}
    return {name: one for part in parts for name, one in part.items()}


@pytest.fixture
def both(rmadapter: Command) -> Both:
    return Both(rmadapter)


def test_a_model_fitted_on_a_gpu_answers_as_that_of_the_processor(
    both: Both, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """The folder of the one is read on the other."""
    fit = ["fit", colors, "--backbone", tiny_clip.name, *SMALL, "--out"]
    both.on_gpu(*fit, tmp_path / "gpu")
    both.run.done(*fit, tmp_path / "cpu")
    ours, theirs = (read_record(tmp_path / one / "run.json") for one in ("gpu", "cpu"))
    assert ours.scores == theirs.scores
    words = [*sorted(colors.glob("test/*/0.png")), "--backbone", tiny_clip.name]
    found = [both.same("predict", tmp_path / one, *words) for one in ("gpu", "cpu")]
    assert leaves(found[0]) == pytest.approx(leaves(found[1]), abs=1e-4)


@pytest.mark.ci
@pytest.mark.parametrize("verb", ["eval", "suspects", "explain", "add"])
def test_a_verb_answers_as_on_the_processor(
    verb: str, both: Both, finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    its, image = backbone_option(finished), colors / "test/red/0.png"
    if verb == "eval":
        assert both.same("eval", finished, colors, *its)["accuracy"] > 50
    elif verb == "suspects":
        both.same("suspects", colors, *its, "--method", "rmadapter", *SMALL[4:])
    elif verb == "explain":
        found = [
            one("explain", finished, image, *its, "--out", tmp_path / name)["images"]
            for name, one in (("gpu", both.on_gpu), ("cpu", both.run.json))
        ]
        assert leaves(found[0]) == pytest.approx(leaves(found[1]), abs=2e-5)
    else:
        for name, one in (("gpu", both.on_gpu), ("cpu", both.run.json)):
            one("add", finished, "cat,dog", *its, "--out", tmp_path / name)
        wider = [both.same("predict", tmp_path / name, image, *its) for name in ("gpu", "cpu")]
        assert leaves(wider[0]) == pytest.approx(leaves(wider[1]), abs=2e-5)
        assert {one["class"] for one in wider[0][0]["classes"]} >= {"cat", "dog"}


LOWER = [("rmadapter", "bf16"), ("coop", "bf16"), ("rmadapter", "fp16"), ("coop", "fp16")]


@pytest.mark.ci
@pytest.mark.parametrize(("method", "precision"), LOWER)
def test_a_model_trained_in_a_lower_format_answers_alike_on_both_devices(
    method: str, precision: str, both: Both, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """By every verb that computes: only training is in that format. What retrains is in it again,
    and only ends."""
    its, run, image = ["--backbone", tiny_clip.name], tmp_path / "run", colors / "test/red/0.png"
    values = SETTINGS if method == "rmadapter" else ("epochs=2",)
    own, few = [f"--set={one}" for one in values], ["--shots", 2, "--precision", precision]
    both.on_gpu("fit", colors, *its, "--method", method, *few, *own, "--out", run)
    assert read_record(run / "run.json").precision == precision
    both.same("predict", run, image, *its)
    both.same("eval", run, colors, *its)
    explained = [
        one("explain", run, image, *its, "--out", tmp_path / name)["images"]
        for name, one in (("gpu", both.on_gpu), ("cpu", both.run.json))
    ]
    assert leaves(explained[0]) == pytest.approx(leaves(explained[1]), abs=2e-5)
    both.on_gpu("add", run, "cat,dog", *its, "--out", tmp_path / "wider")
    wider = both.same("predict", tmp_path / "wider", image, *its)
    assert {one["class"] for one in wider[0]["classes"]} & {"cat", "dog"}
    format_of = f"--set=precision={precision}"
    both.on_gpu("suspects", colors, *its, "--method", method, *own, format_of)
    data = ["--datasets", colors.name, "--root", colors.parent, *its, "--methods", method, *few]
    own = [f"--set={method}.{one}" for one in values]
    how = ["--seeds", 1, "--out", tmp_path / "bench"]
    [measured] = both.on_gpu("bench", "base-to-novel", *data, *own, *how)
    assert measured["precision"] == precision
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    with plugged_in():
        both.run.json("export", run, "--data", colors, *its, "--out", tmp_path / "model")
    [here] = both.on_gpu("predict", run, image, *its)
    [exact] = Model(tmp_path / "model").predict([image])
    found = {one["class"]: one["probability"] for one in here["classes"]}
    assert found == pytest.approx(dict(exact), abs=1e-5)


@pytest.mark.ci
def test_a_bench_measures_what_the_processor_measures(
    both: Both, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    data = ["--datasets", colors.name, "--root", colors.parent, "--backbone", tiny_clip.name]
    which = ["--methods", "zero-shot,rmadapter", "--shots", 2, "--seeds", 1]
    own = [f"--set=rmadapter.{one}" for one in SETTINGS]
    command = ["bench", "base-to-novel", *data, *which, *own, "--out"]
    found = both.on_gpu(*command, tmp_path / "a"), both.run.json(*command, tmp_path / "b")
    scores = [[run["scores"] for run in runs] for runs in found]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2


@pytest.mark.ci
def test_what_was_fitted_on_a_gpu_is_exported(
    both: Both, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    its = ["--backbone", tiny_clip.name]
    both.on_gpu("fit", colors, *its, *SMALL, "--out", tmp_path / "run")
    exported = tmp_path / "model"
    with plugged_in():
        done = both.run.json("export", tmp_path / "run", "--data", colors, *its, "--out", exported)
    assert done["files"] == ["model.onnx"]
    image = colors / "test/red/0.png"
    [here] = both.on_gpu("predict", tmp_path / "run", image, *its)
    [exact] = Model(exported).predict([image])
    probabilities = {one["class"]: one["probability"] for one in here["classes"]}
    assert probabilities == pytest.approx(dict(exact), abs=1e-5)


@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_full_gpu_is_told_in_one_line(
    verb: str, rmadapter: Command, finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    words = ["predict", finished, colors / "test/red/0.png", *backbone_option(finished)]
    if verb == "fit":
        words = [
            "fit",
            colors,
            "--backbone",
            tiny_clip.name,
            *SMALL,
            "--out",
            tmp_path / "run",
            "-q",
        ]
    with plugged_in(), limited(10_000):
        refused(rmadapter(*words), "memory ended", "set device=cpu")


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_a_gpu_without_memory_for_one_image_is_told_in_one_line(
    verb: str, rmadapter: Command, finished: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(encoder: object, images: Tensor, *_: object) -> list[States]:
        tried.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ImageEncoder, "_frozen_at", full)
    data = sorted(colors.glob("test/*/*.png")) if verb == "predict" else [colors]
    refused(rmadapter(verb, finished, *data, *backbone_option(finished)), "memory ended")
    assert (tried[0], tried[-1]) == (16, 1)
