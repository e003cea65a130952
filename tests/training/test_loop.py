"""The training loop: recipes and steps by hand, one training however it is computed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rmadapter import Callback
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import Grid, States
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.training.contract import Fitted, Shots
from rmadapter.training.loop import Batch, Trainer, minimise, notify, order
from rmadapter.training.shots import Unfinished
from rmadapter.training.traits import Recipe
from tests.helpers.learning import SMALL, fit_adapters, losses
from tests.helpers.rounding import relative_errors
from tests.helpers.shots import LARGE_WEIGHTS, accuracy_of, noisy_colors, shots_of

IMAGES = noisy_colors(4, size=40, names=("red", "blue"))


def same(one: Fitted, two: Fitted) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


# ---- recipes ----


def test_rate_by_epochs_is_constant_then_dassls_cosine() -> None:
    """Dassl steps torch's scheduler once an epoch, for the first time after the warm-up."""
    recipe = Recipe(learning_rate=0.002, epochs=6, warmup_epochs=2, warmup_rate=1e-5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.002)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    expected = [1e-5, 1e-5]
    for _ in range(4):
        expected.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    found = [recipe.rate(step, 3, 6) for step in range(18)]
    assert found == pytest.approx([rate for rate in expected for _ in range(3)], rel=1e-9)


@pytest.mark.parametrize("final", [0.0, 0.25])
def test_rate_by_steps_is_a_linear_warm_up_and_a_cosine(final: float) -> None:
    recipe = Recipe(
        learning_rate=1.0, epochs=10, schedule="step", warmup_epochs=1, final_rate=final
    )
    rates = [recipe.rate(step, 10, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10:] == pytest.approx(
        [final + (1 - final) * 0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(91)]
    )
    assert rates[10] == 1
    assert rates[100] == pytest.approx(final)  # the step after the last


def test_length_is_epochs_or_steps_per_shot_in_whole_epochs() -> None:
    labels = [0] * 4 + [1] * 3  # 4 shots of the richest class; 3 steps an epoch
    assert Recipe(epochs=5, batch_size=3).length(labels) == (5, 3)
    assert Recipe(iterations=5, batch_size=3).length(labels) == (7, 3)  # 20 steps
    assert Recipe(iterations=6, batch_size=7).length(labels) == (24, 1)


def test_optimisers_are_torchs_with_the_recipes_numbers() -> None:
    weight = nn.Parameter(torch.zeros(1))
    numbers: dict[str, Any] = {"learning_rate": 0.3, "weight_decay": 0.1}
    sgd = Recipe(optimizer="sgd", momentum=0.8, **numbers).make([weight])
    assert type(sgd) is torch.optim.SGD
    assert [sgd.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [0.3, 0.8, 0.1]
    for name, kind in {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.items():
        made = Recipe(optimizer=name, betas=(0.5, 0.6), eps=1e-4, **numbers).make([weight])  # type: ignore[arg-type]
        assert type(made) is kind
        values = {"lr": 0.3, "betas": (0.5, 0.6), "eps": 1e-4, "weight_decay": 0.1}
        assert {name: made.defaults[name] for name in values} == values


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimiser_updates_alike(name: Any) -> None:
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(size)) for size in (3, 5)]
        made = Recipe(optimizer=name, learning_rate=0.03, weight_decay=0.1).make(weights, fused)
        assert bool(made.defaults["fused"]) is fused
        for _ in range(4):
            made.zero_grad()
            torch.stack([(weight - 2).pow(2).sum() for weight in weights]).sum().backward()
            made.step()
        ends.append(torch.cat([weight.detach() for weight in weights]))
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)
    assert ends[0].isfinite().all()


# ---- steps ----


class Toy(nn.Module):
    """A weight, and one that is frozen."""

    def __init__(self, start: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))
        self.frozen = nn.Parameter(torch.ones(1), False)


@pytest.fixture
def shots(tiny_clip: Backbone) -> Shots:
    """Ten images."""
    return shots_of(tiny_clip, noisy_colors(5, names=("red", "blue")))


def test_sgd_is_momentum_with_weight_decay_by_hand(shots: Shots) -> None:
    recipe = Recipe(
        learning_rate=0.1,
        weight_decay=0.01,
        epochs=3,
        batch_size=4,
        warmup_epochs=1,
        warmup_rate=1e-3,
    )
    module, targets, seen = Toy(), torch.linspace(-1, 1, 10), []

    def loss(batch: Batch) -> Tensor:
        seen.append(batch.rows)
        assert torch.equal(batch.labels, shots.labels[batch.rows])
        assert len(batch.images.features) == len(batch.rows)
        return ((module.weight - targets[batch.rows]) ** 2).mean()

    done = minimise(module, loss, recipe, shots, shots.source())
    expected: list[float] = []
    w, momentum = 2.0, 0.0
    for step, rows in enumerate(seen):
        t = targets[rows].tolist()
        expected.append(float(sum((w - x) ** 2 for x in t) / len(t)))
        momentum = 0.9 * momentum + sum(2 * (w - x) for x in t) / len(t) + 0.01 * w
        w -= recipe.rate(step, 3, 3) * momentum
    assert module.weight.item() == pytest.approx(w, rel=1e-5)
    assert module.frozen.item() == 1
    assert not module.training
    assert [record["loss"] for record in done.history] == pytest.approx(expected, rel=1e-5)
    assert [record["epoch"] for record in done.history] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [record["lr"] for record in done.history] == [
        recipe.rate(step, 3, 3) for step in range(9)
    ]
    assert done.step == 9
    assert done.step_seconds is not None
    assert 0 < done.step_seconds <= done.seconds


def test_terms_and_the_end_of_an_epoch(shots: Shots) -> None:
    module, ends = Toy(start=1.0), []

    def loss(batch: Batch) -> dict[str, Tensor]:
        weight = module.weight.sum()
        return {"ce": weight * 2, "rest": weight * 1, "loss": weight * 3}

    recipe = Recipe(
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.0,
        epochs=2,
        batch_size=10,
        warmup_epochs=0,
    )

    def after(epoch: int) -> None:
        ends.append((epoch, module.weight.item()))

    done = minimise(module, loss, recipe, shots, shots.source(), after)
    terms = {"ce": 2.0, "rest": 1.0, "loss": 3.0}
    assert done.history[0] == {"step": 1, "epoch": 1, **terms, "lr": 0.01}
    # Adam's first step is the learning rate, whatever the gradient.
    assert ends == [
        (0, pytest.approx(0.99, abs=1e-6)),
        (1, pytest.approx(0.99 - recipe.rate(1, 1, 2), abs=1e-6)),
    ]


def test_every_image_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch_alone(
    shots: Shots,
) -> None:
    def rows_of(seed: int) -> list[list[int]]:
        rows: dict[int, list[int]] = {0: [], 1: []}
        module = Toy()

        def loss(batch: Batch) -> Tensor:
            rows[batch.epoch] += batch.rows.tolist()
            torch.rand(len(rows[0]))  # what a method draws leaves the order alone
            torch.rand(7, generator=batch.generator)
            return module.weight.sum() * 0

        given = replace(shots, seed=seed)
        minimise(module, loss, Recipe(epochs=2, batch_size=3), given, given.source())
        return list(rows.values())

    first, second = rows_of(1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert rows_of(1) == [first, second]
    assert rows_of(2)[0] != first
    assert [len(rows) for rows in order(10, 3, 1, 0)] == [3, 3, 3, 1]
    assert torch.cat(order(10, 3, 1, 0)).tolist() == first


def test_gradients_are_clipped(tiny_clip: Backbone) -> None:
    start = load_method("rmadapter", SMALL).model(tiny_clip).adapters.state_dict()  # type: ignore[attr-defined]

    def moved(clip: float) -> float:
        fields = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "clip_gradient": clip}
        fields |= {"batch_size": 8, "epochs": 1, **LARGE_WEIGHTS}
        end = fit_adapters(shots_of(tiny_clip, IMAGES), **fields).tensors
        return math.sqrt(sum(float((end[k] - start[k]).square().sum()) for k in start))

    assert moved(0.1) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert moved(0) > 0.005


def test_a_loss_that_is_not_finite_is_refused(shots: Shots) -> None:
    module = Toy()
    with pytest.raises(UserError, match="the loss became nan in step 1: lower learning_rate"):
        minimise(
            module, lambda batch: module.weight.sum() * math.nan, Recipe(), shots, shots.source()
        )
    with pytest.raises(UserError, match="lower learning_rate"):
        fit_adapters(shots, learning_rate=1e12, epochs=20)


# ---- the same training, however it is computed ----


def test_training_learns_the_colors(tiny_clip: Backbone) -> None:
    fitted = fit_adapters(
        shots_of(tiny_clip, IMAGES), epochs=10, lambda_image_con=0, lambda_text_con=0
    )
    history = fitted.trained.history
    assert history[-1]["ce"] < 0.1 < history[0]["ce"]
    assert history[-1]["image_rec"] < history[0]["image_rec"]
    assert (len(history), history[-1]["epoch"]) == (20, 10)
    assert accuracy_of(fitted, noisy_colors(4, 1, 40, ("red", "blue"))) == 1


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"optimizer": "sgd"}, {}),
        ({"norm": "block", "cross_modal": True}, {"templates": ("a {}.", "the {}.")}),
        ({}, {"precision": "bf16"}),
        ({}, {"augmentation": "standard"}),
        ({}, {"augmentation": "standard", "views": 2}),
    ],
    ids=str,
)
def test_the_lean_loop_equals_the_reference_loop(
    tiny_clip: Backbone, fields: dict[str, Any], given: dict[str, Any]
) -> None:
    lean, plain = (
        fit_adapters(shots_of(tiny_clip, IMAGES, **given), forward=way, **fields)
        for way in ("lean", "reference")
    )
    assert lean.trained.history[0].keys() == plain.trained.history[0].keys()
    # Rounding makes 1e-6 of these few steps on any processor, bfloat16 (8 bits) 1e-2; another
    # gradient makes 1e-1.
    assert losses(lean) == pytest.approx(losses(plain), rel=5e-2 if "precision" in given else 1e-3)


def test_half_precision_trains_and_is_close(tiny_clip: Backbone) -> None:
    whole, half = (
        fit_adapters(shots_of(tiny_clip, IMAGES, precision=p), **LARGE_WEIGHTS)
        for p in ("fp32", "bf16")
    )
    assert losses(half) == pytest.approx(losses(whole), rel=5e-2)
    assert losses(half) != losses(whole)
    assert {tensor.dtype for tensor in half.tensors.values()} == {torch.float32}
    with pytest.raises(UserError, match="precision=fp16 needs a GPU: write precision=bf16 or fp32"):
        fit_adapters(shots_of(tiny_clip, IMAGES, precision="fp16"))


def test_held_and_live_activations_train_alike(tiny_clip: Backbone) -> None:
    held = shots_of(tiny_clip, IMAGES)
    live = replace(held, cache=replace(held.cache, hold=False))
    assert losses(fit_adapters(live)) == pytest.approx(losses(fit_adapters(held)), rel=1e-4)


def test_augmentation_is_new_in_every_epoch_or_repeats_the_kept_views(tiny_clip: Backbone) -> None:
    """Three epochs with three views kept see what three fresh ones show; workers change nothing."""

    def augmented(**given: Any) -> Fitted:
        return fit_adapters(shots_of(tiny_clip, IMAGES, augmentation="standard", **given))

    fresh = augmented()
    again = augmented(workers=2)
    kept = augmented(views=3)
    one = augmented(views=1)
    assert same(fresh, again)
    # Rounding makes 1e-6 of it; another view of the images makes 1e-3.
    assert losses(kept) == pytest.approx(losses(fresh), rel=1e-4)
    assert losses(one)[0] == pytest.approx(losses(fresh)[0], rel=1e-4)
    assert losses(one)[-1] != pytest.approx(losses(fresh)[-1], rel=1e-4)
    assert losses(fresh)[0] != pytest.approx(
        losses(fit_adapters(shots_of(tiny_clip, IMAGES)))[0], rel=1e-4
    )


def test_the_global_random_state_is_neither_read_nor_changed(tiny_clip: Backbone) -> None:
    torch.manual_seed(1)
    one = fit_adapters(shots_of(tiny_clip, IMAGES))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = fit_adapters(shots_of(tiny_clip, IMAGES))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one, two)


def process(rank: int, folder: Path, name: str, trainings: list[dict[str, Any]]) -> None:
    """One of two that train together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    fitted = [
        fit_adapters(shots_of(load_backbone(name), IMAGES.subset(range(7))), **fields)
        for fields in trainings
    ]
    if rank == 1:  # of the batch of one image it had none
        torch.save([(dict(one.tensors), losses(one)) for one in fitted], folder / "fitted.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not dist.is_available(), reason="this torch was built without torch.distributed"
)
def test_two_processes_train_like_one(tiny_clip: Backbone, tmp_path: Path) -> None:
    """Seven images in batches of three leave one image over, fewer than there are processes; a
    process that counted it twice, or an average of the two processes' averages, would be off by
    1e-2. (Adapters do not start from zero, where the consistency loss has its kink, and rounding
    decides the sign of its gradient.)"""
    every = {"batch_size": 3, "init": "kaiming"}
    trainings: list[dict[str, Any]] = [
        {**every, "optimizer": "sgd"},
        {**every, "optimizer": "sgd", "clip_gradient": 0.5},
        # a smaller eps divides gradients by themselves, noise and all
        {**every, "optimizer": "adamw", "eps": 1e-3},
    ]
    torch.multiprocessing.spawn(process, (tmp_path, tiny_clip.name, trainings), nprocs=2)  # type: ignore[no-untyped-call]
    for fields, (tensors, found) in zip(trainings, torch.load(tmp_path / "fitted.pt"), strict=True):
        alone = fit_adapters(shots_of(tiny_clip, IMAGES.subset(range(7))), **fields)
        assert found == pytest.approx(losses(alone), rel=1e-4)
        assert max(relative_errors(tensors, alone.tensors).values()) < 1e-4


@pytest.mark.skipif(
    not dist.is_available(), reason="this torch was built without torch.distributed"
)
def test_a_step_adds_up_all_gradients_in_one_message(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it reports in another, however many parameters there are."""
    sent: list[int] = []
    reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *given: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, *given)

    monkeypatch.setattr(dist, "all_reduce", counted)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        fitted = fit_adapters(shots_of(tiny_clip, IMAGES), epochs=2, batch_size=3)
    finally:
        dist.destroy_process_group()
    parameters = sum(tensor.numel() for tensor in fitted.tensors.values())
    terms = len(fitted.trained.history[0]) - len(("step", "epoch", "lr"))
    steps = len(fitted.trained.history)
    assert len(fitted.tensors) > 2
    assert sorted(sent[1:]) == sorted([terms, parameters] * steps)  # the first: where each begins


# ---- callbacks ----

METHOD = load_method("rmadapter", {"first_block": 4, "rank": 2, "epochs": 3, "batch_size": 6})


def test_figures_of_an_epoch_are_means_of_its_steps() -> None:
    seen: list[Any] = []
    callback = Callback(on_epoch=lambda figures: seen.append(dict(figures)))
    steps = range(1, 5)
    history = [{"step": n, "epoch": 1 + (n > 2), "loss": float(n), "lr": 0.1 * n} for n in steps]
    for count in range(1, 5):
        notify([callback], history[:count], 2)
    assert seen == [
        {"step": 2, "epoch": 1, "loss": 1.5, "lr": 0.2},
        {"step": 4, "epoch": 2, "loss": 3.5, "lr": 0.4},
    ]


def test_callbacks_get_every_step_once_as_recorded(tiny_clip: Backbone) -> None:
    steps: list[Any] = []
    epochs: list[Any] = []
    callbacks = [Callback(steps.append, epochs.append), Callback()]
    shots = replace(shots_of(tiny_clip), callbacks=callbacks)
    trained = METHOD.fit(tiny_clip, shots).trained
    assert steps == trained.history
    assert [step["step"] for step in steps] == list(range(1, 10))
    assert [(epoch["epoch"], epoch["step"]) for epoch in epochs] == [(1, 3), (2, 6), (3, 9)]
    assert epochs[1]["loss"] == pytest.approx(sum(step["loss"] for step in steps[3:6]) / 3)


def test_callbacks_cannot_change_figures_and_their_errors_end_the_training(
    tiny_clip: Backbone,
) -> None:
    method, shots = METHOD, shots_of(tiny_clip)

    def spoil(figures: Any) -> None:
        figures.clear()

    spoiled = method.fit(tiny_clip, replace(shots, callbacks=[Callback(spoil)]))
    plain = method.fit(tiny_clip, shots)
    assert spoiled.trained.history == plain.trained.history

    def stop(figures: Any) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        method.fit(tiny_clip, replace(shots, callbacks=[Callback(stop)]))


def test_callbacks_get_the_remaining_steps_after_a_resume(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.training.loop.SAVE_SECONDS", 0)
    seen: list[Any] = []

    def stop(figures: Any) -> None:
        if figures["step"] == 5:
            raise RuntimeError

    shots = replace(shots_of(tiny_clip), unfinished=Unfinished(tmp_path / "state"))
    method = METHOD
    with pytest.raises(RuntimeError):
        method.fit(tiny_clip, replace(shots, callbacks=[Callback(stop)]))
    done = method.fit(tiny_clip, replace(shots, callbacks=[Callback(seen.append, seen.append)]))
    assert [figures["step"] for figures in seen] == [5, 6, 6, 7, 8, 9, 9]
    mean = sum(step["loss"] for step in done.trained.history[3:6]) / 3
    assert seen[2]["loss"] == pytest.approx(mean)


# ---- float16 on a CPU, which `minimise` leaves to GPUs ----


def first_step(backbone: Backbone, precision: str, factor: float) -> tuple[Tensor, list[float]]:
    """Return the weights, zero at first, after the first SGD step that moves them, and the scales
    of the loss until then."""
    module = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(module.weight)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    trainer = Trainer(module, recipe, shots_of(backbone, precision=precision), lambda name: 1.0)
    labels, states = torch.zeros(8, dtype=torch.long), States(None, Grid(None))
    batch = Batch(0, torch.arange(8), labels, states, torch.Generator())
    scales = list[float]()
    while not module.weight.any() and len(scales) < 20:
        scales.append(trainer.scaler.get_scale())
        trainer.step(lambda _: factor * (module(x) - 1).float().square().mean(), batch, [1.0], 1.0)
    return module.weight.detach(), scales


def test_an_overflowing_step_is_skipped_and_the_next_scaled_less(tiny_clip: Backbone) -> None:
    plain, once = first_step(tiny_clip, "fp32", 1000.0)
    half, scales = first_step(tiny_clip, "fp16", 1000.0)
    assert once == [1.0]
    assert len(scales) > 1
    assert all(b == a / 2 for a, b in pairwise(scales))
    torch.testing.assert_close(half, plain, rtol=5e-3, atol=1.0)


def test_gradients_too_small_for_the_format_are_not_lost(tiny_clip: Backbone) -> None:
    plain, half = (first_step(tiny_clip, precision, 1e-7)[0] for precision in ("fp32", "fp16"))
    torch.testing.assert_close(half, plain, rtol=5e-2, atol=1e-10)
