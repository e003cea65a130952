"""Every method on a pretend GPU: that nothing stays on the processor or depends on it, that answers
are the processor's, also after saving, loading and resuming, and in bfloat16."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from rmadapter.training.contract import Fitted
from tests.helpers import pretend_gpu
from tests.helpers.learning import killed_and_resumed, losses
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.pretend_gpu import PretendTensor, limited, plugged_in, without_float64
from tests.helpers.shots import noisy_colors, shots_of
from tests.helpers.slow import ONE_OF_EACH, ci_except

SHOTS, TESTED = noisy_colors(2), noisy_colors(3, seed=5)
OTHERS = ("house", "tree")
STEPWISE = [name for name in METHODS if load_method(name).recipe is not None]


@pytest.fixture(scope="module")
def gpu(tiny_clip: Backbone) -> Iterator[Backbone]:
    """The same backbone on the pretend GPU."""
    with plugged_in() as device:
        yield load_backbone(tiny_clip.name).to(device)


def fit(name: str, backbone: Backbone, **more: Any) -> Fitted:
    settings = {"device": backbone.device.type, "seed": 3, **more}
    return quick_method(name).fit(backbone, shots_of(backbone, SHOTS, **settings))


def answers(fitted: Fitted) -> Tensor:
    return probabilities(fitted, TESTED).cpu()


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_a_method_answers_as_on_the_processor(
    name: str, tiny_clip: Backbone, gpu: Backbone, tmp_path: Path
) -> None:
    """In float32, where steps of a training amplify rounding; after loading, on either device."""
    expected, fitted = answers(fit(name, tiny_clip)), fit(name, gpu)
    found = answers(fitted)
    assert apart(found, expected) < 1e-4
    save(tmp_path, fitted, name)
    on_gpu = load(tmp_path, gpu).fitted
    assert torch.equal(answers(on_gpu), found)
    on_processor = load(tmp_path, tiny_clip, device="cpu").fitted
    assert {x.device.type for x in on_processor.tensors.values()} <= {"cpu"}
    assert apart(answers(on_processor), found) < 1e-5
    about = fitted.method.traits.about
    if about and about.new_classes:
        new = probabilities(on_gpu, TESTED, OTHERS).cpu()
        assert apart(new, probabilities(on_processor, TESTED, OTHERS)) < 1e-5


@pytest.mark.parametrize("name", ci_except(STEPWISE, "coop", "rmadapter"))
def test_a_killed_training_ends_with_the_same_weights(
    name: str, gpu: Backbone, tmp_path: Path
) -> None:
    method, survived = quick_method(name), random.Random(f"{name} {sys.version}")
    shots = shots_of(gpu, SHOTS, device=pretend_gpu.NAME, augmentation="standard", views=2)
    whole, resumed = killed_and_resumed(
        lambda shots: method.fit(gpu, shots), shots, tmp_path, survived
    )
    assert all(torch.equal(whole.tensors[one], resumed.tensors[one]) for one in whole.tensors)


@pytest.mark.parametrize("name", ci_except(STEPWISE, "coop", "rmadapter"))
def test_bfloat16_rounds_as_much_as_on_the_processor(
    name: str, tiny_clip: Backbone, gpu: Backbone
) -> None:
    """By a GPU's autocast, which keeps other operations in float32."""
    exact, there = answers(fit(name, tiny_clip)), answers(fit(name, gpu, precision="bf16"))
    here = answers(fit(name, tiny_clip, precision="bf16"))
    assert apart(there, exact) < 4 * apart(here, exact) + 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["coop", "rmadapter"])
def test_a_training_in_a_lower_format_is_saved_loaded_and_resumed(
    name: str, precision: str, gpu: Backbone, tmp_path: Path
) -> None:
    """And ends near one in float32; losses in float16 are scaled, and steps left out until the
    scale fits: four of the six of CoOp."""
    exact, fitted = fit(name, gpu), fit(name, gpu, precision=precision)
    assert losses(fitted)[:2] == pytest.approx(losses(exact)[:2], rel=3e-2)
    found, wanted = answers(fitted), answers(exact)
    still = load_method(name, settings_of(quick_method(name)) | {"learning_rate": 1e-12})
    start = answers(still.fit(gpu, shots_of(gpu, SHOTS, device=gpu.device.type, seed=3)))
    assert 0 < apart(found, wanted) < max(0.9 * apart(start, wanted), 0.005)
    save(tmp_path / "model", fitted, name)
    assert torch.equal(answers(load(tmp_path / "model", gpu).fitted), found)
    method, survived = quick_method(name), random.Random(f"{name} {sys.version}")
    shots = shots_of(gpu, SHOTS, device=gpu.device.type, precision=precision)
    whole, resumed = killed_and_resumed(
        lambda shots: method.fit(gpu, shots), shots, tmp_path, survived
    )
    assert all(torch.equal(whole.tensors[one], resumed.tensors[one]) for one in whole.tensors)


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_a_method_needs_no_float64_on_the_device(name: str, gpu: Backbone, tmp_path: Path) -> None:
    """Which Apple's GPUs lack: what is computed in it is computed on the processor."""
    with without_float64():
        fitted = fit(name, gpu)
        found = answers(fitted)
        save(tmp_path, fitted, name)
        assert torch.equal(answers(load(tmp_path, gpu).fitted), found)


# ---- the pretend GPU itself ----


@pytest.mark.parametrize(
    ("words", "use"),
    [
        ("on the same device", lambda x: x + torch.ones(2)),
        ("on the same device", lambda x: torch.ones(2) @ x),
        ("on the same device", lambda x: nn.functional.linear(torch.ones(1, 2), x[None])),
        ("on the same device", lambda x: torch.cat([x, torch.ones(1)])),
        ("use cpu", lambda x: x.numpy()),
        ("generator", lambda x: torch.randn(2, device=x.device, generator=torch.Generator())),
        ("format|dtype", lambda x: x @ x.bfloat16()),
    ],
)
def test_it_refuses_what_a_gpu_refuses(words: str, use: Callable[[Tensor], Any]) -> None:
    x = torch.ones(2, device=pretend_gpu.NAME)
    assert isinstance(x, PretendTensor)
    with pytest.raises((RuntimeError, TypeError), match=words):
        use(x)


def test_it_computes_with_numbers_and_indices_of_the_processor() -> None:
    x = torch.arange(3.0, device=pretend_gpu.NAME)
    assert (x * torch.tensor(2.0))[torch.tensor([2, 0])].tolist() == [4, 0]
    assert x.cpu().equal(torch.arange(3.0))


def test_autocast_follows_the_rules_of_cuda() -> None:
    x = torch.rand(4, 4, device=pretend_gpu.NAME)
    with torch.autocast(pretend_gpu.NAME, torch.bfloat16):
        products = [x @ x, nn.functional.linear(x, x), torch.einsum("ij,jk->ik", x, x)]
        low = x.bfloat16()
        exact = [low.exp(), low.softmax(-1), low.sum(), nn.functional.layer_norm(low, (4,))]
        kept = low * 2
    assert {one.dtype for one in products} == {torch.bfloat16}
    assert {one.dtype for one in exact} == {torch.float32}
    assert kept.dtype == torch.bfloat16


def test_a_parameter_that_moves_stays_the_same_object_and_can_change_its_format() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    with plugged_in() as device:
        module.to(device)
    assert module.weight is weight
    assert weight.device.type == pretend_gpu.NAME
    weight.data = weight.data.bfloat16()
    assert module.weight.dtype == weight.cpu().dtype == torch.bfloat16


def test_it_can_lack_float64() -> None:
    x = torch.ones(2, device=pretend_gpu.NAME)
    with without_float64():
        for cast in (Tensor.double, lambda x: torch.zeros_like(x, dtype=torch.float64)):
            with pytest.raises(TypeError, match="float64"):
                cast(x)
        assert x.cpu().double().dtype == torch.float64
    assert x.double().dtype == torch.float64


def test_its_memory_ends() -> None:
    with limited(1000) as memory:
        held = torch.zeros(200, device=pretend_gpu.NAME)
        view = held[:100]
        with pytest.raises(torch.OutOfMemoryError):
            held + 1
        assert (memory.used, memory.peak) == (1600, 800)
        del held, view
        torch.zeros(200, device=pretend_gpu.NAME)
    torch.zeros(2000, device=pretend_gpu.NAME)
