"""The training loop: it learns, resumes exactly, follows its schedule, and needs no global random state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter import train as training
from rmadapter.backbone import Backbone
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP
from rmadapter.train import epochs, find_device, learning_rate, make_optimizer, train

COLORS = {"red": (220, 30, 30), "blue": (30, 40, 220)}


@pytest.fixture(scope="module")
def pictures() -> ImageSet:
    """Noisy red and blue squares, four of each."""
    rng = np.random.default_rng(0)
    arrays, labels = [], []
    for name, color in COLORS.items():
        for _ in range(4):
            arrays.append(np.clip(np.array(color) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8))
            labels.append(name)
    return ImageSet.from_lists(arrays, labels)


def configured(**fields: Any) -> Config:
    small = {
        "first_block": 2,
        "rank": 4,
        "device": "cpu",
        "batch_size": 4,
        "epochs": 3,
        "learning_rate": 0.01,
        "alpha": 1,
    }
    return Config.make({**small, **fields})


def run(backbone: Backbone, pictures: ImageSet, **fields: Any) -> tuple[AdaptedCLIP, list[dict[str, float]]]:
    model = AdaptedCLIP(backbone, configured(**fields))
    return model, train(model, pictures, progress=False).history


def same(one: AdaptedCLIP, two: AdaptedCLIP) -> bool:
    pairs = zip(one.adapters.state_dict().values(), two.adapters.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_the_colors(tiny_clip: Backbone, pictures: ImageSet) -> None:
    model, history = run(tiny_clip, pictures, epochs=10, lambda_image_con=0, lambda_text_con=0)
    assert history[-1]["ce"] < 0.1 < history[0]["ce"]
    assert history[-1]["image_rec"] < history[0]["image_rec"]
    assert not model.training
    assert len(history) == 20
    assert history[-1]["epoch"] == 10


@pytest.mark.parametrize(
    "fields", [{"optimizer": "sgd"}, {"norm": "block", "cross_modal": True}, {"precision": "bf16"}]
)
def test_the_lean_loop_is_the_reference_loop(tiny_clip: Backbone, pictures: ImageSet, fields: dict[str, Any]) -> None:
    _, lean = run(tiny_clip, pictures, **fields)
    _, plain = run(tiny_clip, pictures, forward="reference", **fields)
    tolerance = 5e-2 if "precision" in fields else 1e-3
    for a, b in zip(lean, plain, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)


def test_standard_augmentation_is_fresh_in_every_epoch(tiny_clip: Backbone, pictures: ImageSet) -> None:
    """Same seed, same training; and it is not the training without augmentation."""
    one, _ = run(tiny_clip, pictures, augmentation="standard")
    two, _ = run(tiny_clip, pictures, augmentation="standard")
    three, _ = run(tiny_clip, pictures)
    assert same(one, two)
    assert not same(one, three)
    _, lean = run(tiny_clip, pictures, augmentation="standard")
    _, plain = run(tiny_clip, pictures, augmentation="standard", forward="reference")
    assert lean[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=1e-3)


def test_as_many_cached_views_as_epochs_are_fresh_augmentation(tiny_clip: Backbone, pictures: ImageSet) -> None:
    _, fresh = run(tiny_clip, pictures, augmentation="standard")
    _, cached = run(tiny_clip, pictures, augmentation="standard", views=3)
    _, repeated = run(tiny_clip, pictures, augmentation="standard", views=1)
    assert [r["loss"] for r in cached] == pytest.approx([r["loss"] for r in fresh], rel=1e-4)
    assert repeated[0]["loss"] == pytest.approx(fresh[0]["loss"], rel=1e-4)
    assert repeated[-1]["loss"] != pytest.approx(fresh[-1]["loss"], rel=1e-4)


def test_workers_change_nothing(tiny_clip: Backbone, pictures: ImageSet) -> None:
    one, _ = run(tiny_clip, pictures, augmentation="standard")
    two, _ = run(tiny_clip, pictures, augmentation="standard", workers=2)
    assert same(one, two)


class Killed(BaseException):
    """What SIGKILL leaves behind: nothing runs after it."""


@pytest.mark.parametrize("fields", [{}, {"optimizer": "sgd"}, {"augmentation": "standard"}])
@pytest.mark.parametrize("survived", [1, 3, 5])
def test_a_killed_training_ends_with_the_same_adapter(
    tiny_clip: Backbone,
    pictures: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    survived: int,
) -> None:
    whole, history = run(tiny_clip, pictures, **fields)
    config, state = configured(**fields), tmp_path / "training.safetensors"
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    real = learning_rate

    def dies(config: Config, step: int, steps: int) -> float:
        if step == survived:
            raise Killed
        return real(config, step, steps)

    monkeypatch.setattr(training, "learning_rate", dies)
    with pytest.raises(Killed):
        train(AdaptedCLIP(tiny_clip, config), pictures, state=state, key="k", progress=False)
    monkeypatch.setattr(training, "learning_rate", real)
    resumed = AdaptedCLIP(tiny_clip, config)
    done = train(resumed, pictures, state=state, key="k", progress=False)
    assert same(whole, resumed)
    assert [record["loss"] for record in done.history] == [record["loss"] for record in history]


def test_a_foreign_or_damaged_state_is_refused(tiny_clip: Backbone, pictures: ImageSet, tmp_path: Path) -> None:
    state = tmp_path / "training.safetensors"
    state.write_bytes(b"no safetensors")
    model = AdaptedCLIP(tiny_clip, configured())
    with pytest.raises(UserError, match="not a readable training state"):
        train(model, pictures, state=state, progress=False)
    training.save_state(state, "mine", model, make_optimizer(model, model.config), training.Progress())
    with pytest.raises(UserError, match="holds another, unfinished training"):
        train(model, pictures, state=state, key="yours", progress=False)


def test_the_global_random_state_is_neither_read_nor_moved(tiny_clip: Backbone, pictures: ImageSet) -> None:
    torch.manual_seed(1)
    one, _ = run(tiny_clip, pictures)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two, _ = run(tiny_clip, pictures)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one, two)


def test_every_image_is_seen_once_an_epoch_in_another_order() -> None:
    config = configured()
    seen = {epoch: torch.cat(steps).tolist() for epoch, steps in epochs(10, config, 0)}
    assert all(sorted(rows) == list(range(10)) for rows in seen.values())
    assert seen[0] != seen[1]
    every = [rows.tolist() for _, steps in epochs(10, config, 0) for rows in steps]
    for skip in range(10):
        assert [rows.tolist() for _, steps in epochs(10, config, skip) for rows in steps] == every[skip:]


def test_schedule_is_a_warm_up_and_a_cosine() -> None:
    config = configured(epochs=10, learning_rate=1.0, warmup_epochs=1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(90)])


def test_optimizer_holds_the_adapters_alone(tiny_clip: Backbone) -> None:
    model = AdaptedCLIP(tiny_clip, configured(optimizer="sgd", momentum=0.8, weight_decay=0.1))
    optimizer = make_optimizer(model, model.config)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.adapters.parameters()}
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.8, 0.1)


def test_gradients_are_clipped(tiny_clip: Backbone, pictures: ImageSet) -> None:
    start = AdaptedCLIP(tiny_clip, configured()).adapters.state_dict()

    def moved(clip: float) -> float:
        fields = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "batch_size": 8, "epochs": 1}
        model, _ = run(tiny_clip, pictures, clip_gradient=clip, **fields)
        return math.sqrt(sum(float((model.adapters.state_dict()[k] - start[k]).square().sum()) for k in start))

    assert moved(0.1) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert moved(0) > 0.005


def test_a_diverging_loss_is_a_sentence(tiny_clip: Backbone, pictures: ImageSet) -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        run(tiny_clip, pictures, learning_rate=1e30, epochs=20)


def test_devices() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="write auto"):
        find_device("toaster")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so none can be missed")
    assert find_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no usable GPU"):
        find_device("cuda")


def test_half_precision_needs_a_gpu(tiny_clip: Backbone, pictures: ImageSet) -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        run(tiny_clip, pictures, precision="fp16")
