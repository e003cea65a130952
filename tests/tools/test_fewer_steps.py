"""tools/fewer_steps.py: starts, rules and means against closed forms, and tables by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fewer_steps
import pytest
import torch
from fewer_steps import DEFAULT, HELD, VARIANTS, Mean, RidgeStart, Trial, Variant

from rmadapter.backbones import Backbone
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine, configured
from tests.helpers.shots import grouped_noise, noisy_colors, shots_of

QUICK = {"epochs": 2, "first_block": 3, "rank": 4, "batch_size": 4}


def method() -> RMAdapterPlus:
    return configured(RMAdapterPlus(), QUICK)


def test_a_row_is_left_out_as_if_it_had_not_been_there() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    weights, left_out = fewer_steps.leave_one_out(inputs, targets, 0.5)
    penalty = 0.5 * (inputs.T @ inputs).trace() / 3 * torch.eye(3)
    for row in range(9):
        rest = [i for i in range(9) if i != row]
        x, y = inputs[rest], targets[rest]
        other = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        assert left_out[row] == pytest.approx(inputs[row] @ other)
    assert not torch.allclose(inputs @ weights, left_out, atol=1e-2)


def test_the_derivative_tells_what_the_bias_changes(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(3))
    start = RidgeStart(method().adapters.model(tiny_clip, 1), shots)
    derivative, step = start._derivative(), 1e-3 * torch.randn(start.up.bias.shape)
    before = start._hidden()[1][: len(start.states[0].features)].mean(0)
    with torch.no_grad():
        start.up.bias += step
    after = start._hidden()[1][: len(start.states[0].features)].mean(0)
    assert after - before == pytest.approx(derivative @ step, abs=2e-2 * float(step.norm()))
    assert (after - before).abs().max() > 0


def test_the_ridge_start_moves_the_last_image_adapter_alone(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(4))
    model = method().adapters.model(tiny_clip, 1)
    before = {name: tensor.clone() for name, tensor in model.adapters.state_dict().items()}
    loss = fewer_steps.loss_of(model, shots, lambda: None)
    chosen = RidgeStart(model, shots)()
    after = model.adapters.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    top = max(model.adapters.blocks("image"))
    assert chosen["gain"] > 0
    assert moved == {f"image.{top}.up.weight", f"image.{top}.up.bias"}

    def loss_with(tensors: dict[str, torch.Tensor]) -> float:
        model.adapters.load_state_dict(tensors)
        rows = torch.arange(len(shots.images))
        states = shots.source(model.first("image")).batch(rows)
        batch = fewer_steps.Batch(0, rows, shots.labels, states, torch.Generator())
        return loss(batch)["loss"].item()

    assert loss_with(dict(after)) < loss_with(before)


def test_a_mean_is_that_of_all_steps() -> None:
    torch.manual_seed(0)
    steps, mean = torch.randn(7, 3), Mean()
    for step in steps:
        mean.add({"x": step})
    assert mean.tensors["x"] == pytest.approx(steps.mean(0), abs=1e-6)


def test_the_held_shots_are_not_trained_on(tiny_clip: Backbone) -> None:
    images = noisy_colors(5)
    learnt, held = fewer_steps.parted(images)
    assert len(held) == HELD * len(images.classes)
    assert len(learnt) + len(held) == len(images)
    assert not {id(image) for image in held.images} & {id(image) for image in learnt.images}


def test_a_plateau_ends_the_training(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_steps, "LONGEST", 40)
    own = method()
    labels = "ab" * 8
    shots = shots_of(tiny_clip, grouped_noise(labels, labels))  # with nothing to learn
    tensors, steps = fewer_steps.until_plateau(own.adapters.model(tiny_clip, 1), own, shots)
    each = own.recipe.length(fewer_steps.parted(shots.images)[0].labels)[1]
    assert steps % each == 0
    assert 2 * each < steps < 40 * each
    start = own.adapters.model(tiny_clip, 1).adapters.state_dict()
    assert not all(torch.equal(tensors[name], start[name]) for name in start)


def test_default_trains_as_the_method_does(tiny_clip: Backbone) -> None:
    own, shots = method(), shots_of(tiny_clip, noisy_colors(4))
    model = own.adapters.model(tiny_clip, shots.seed)
    found = fewer_steps.for_so_long(model, own, shots, Variant(2))
    plain = own.adapters.fit(tiny_clip, shots).tensors
    assert all(torch.equal(found["last"][name], plain[name]) for name in plain)
    constant = fewer_steps.for_so_long(
        own.adapters.model(tiny_clip, shots.seed), own, shots, Variant(2, constant=True)
    )
    assert any(not torch.equal(constant["last"][name], plain[name]) for name in plain)
    assert any(
        not torch.equal(constant["last"][name], constant["averaged"][name]) for name in plain
    )


def test_every_variant_gives_a_line(tiny_clip: Backbone, colors: Path) -> None:
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    some = [Variant(1), Variant(0, ridge=True), Variant(1, constant=True)]
    lines = Trial(lab, colors.name, 4, 1, tiny_clip.name, QUICK).run(some)
    names = [(line["variant"], line["weights"]) for line in lines]
    assert names == [
        ("1 epoch", "last"),
        ("0 epochs, ridge start", "last"),
        ("1 epoch, constant", "last"),
        ("1 epoch, constant", "averaged"),
    ]
    assert all(0 <= line["test"] <= 100 for line in lines)
    assert lines[1]["steps"] == 0 < lines[0]["steps"]


# Tables


def line(data: str, name: str, test: float, steps: int, weights: str = "last") -> dict[str, Any]:
    return {
        "data": data, "shots": 16, "seed": 1, "variant": name, "weights": weights, "test": test,
        "steps": steps, "cpu_seconds": float(steps),
    }  # fmt: skip


def lines() -> list[dict[str, Any]]:
    half = Variant(5, 2).name
    found = []
    for data, whole in (("rooms", 60.0), ("clouds", 40.0), ("food", 50.0), ("sports", 70.0)):
        found += [line(data, DEFAULT.name, whole, 100), line(data, half, whole - 0.2, 50)]
        found += [line(data, "1 epoch", whole - 10, 10)]
        found += [line(data, "3 epochs, constant", whole - 20, 30)]
        found += [line(data, "3 epochs, constant", whole - 0.5, 30, "averaged")]
    return found


def test_the_quickest_with_nearly_all_of_the_accuracy_is_chosen() -> None:
    assert fewer_steps.chosen(lines()) == ("3 epochs, constant", "averaged")


def test_tables_show_shares_of_the_default() -> None:
    table = fewer_steps.accuracy_table(lines(), ("rooms", "clouds"))
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("|")}
    assert "| 50.0 | 100.0 | 100 | 100 |" in rows[DEFAULT.name]
    assert "| 49.5 | 99.0 | 30 | 30 |" in rows["**3 epochs, constant, averaged**"]
    assert "| 30.0 | 60.0 | 30 | 30 |" in rows["3 epochs, constant"]


def test_verdicts_compare_the_chosen_and_half_the_steps_with_the_default() -> None:
    rows = fewer_steps.verdict_table(lines()).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows]
    assert [cell[1] for cell in cells] == ["-0.5", "-0.2"]


def test_names_of_variants_are_apart() -> None:
    assert all(name == variant.name for name, variant in VARIANTS.items())
    assert len(VARIANTS) == 18
