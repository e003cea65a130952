"""fewer_steps.py: starts, rules and means against closed forms, and tables by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fewer_steps
import pytest
import torch
from families import against, average
from fewer_steps import (
    AVERAGED,
    DEFAULT,
    HELD,
    LAST,
    VARIANTS,
    Mean,
    RidgeStart,
    UntilPlateau,
    Variant,
)
from studies import CHOOSE_ALL, REPORT_ALL, read_lines, with_verdicts

from rmadapter.backbones import Backbone
from rmadapter.methods.ridge import HEAD
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.prompts import tokenize
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine, configured
from tests.helpers.shots import grouped_noise, noisy_colors, shots_of

RESEARCH = Path(__file__).parents[2] / "research"

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
    start = RidgeStart(method().model(tiny_clip, 1), shots)
    torch.manual_seed(0)
    derivative, step = start._derivative(), 1e-2 * torch.randn(start.up.bias.shape)
    before = start._hidden()[1].mean(0)
    with torch.no_grad():
        start.up.bias += step
    change, expected = start._hidden()[1].mean(0) - before, derivative @ step
    assert (change - expected).norm() < 0.05 * change.norm()


def test_the_ridge_start_moves_the_last_image_adapter_alone(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(4))
    model = method().model(tiny_clip, 1)
    before = {name: tensor.clone() for name, tensor in model.adapters.state_dict().items()}
    text = model.frozen_text(tokenize(tiny_clip, shots.classes, shots.templates))
    chosen = RidgeStart(model, shots)()
    after = model.adapters.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    top = max(model.adapters.blocks("image"))
    assert chosen["gain"] > 0
    assert moved == {f"image.{top}.up.weight", f"image.{top}.up.bias"}

    def loss_with(tensors: dict[str, torch.Tensor]) -> float:
        model.adapters.load_state_dict(tensors)
        states = shots.source(model.first("image")).batch(torch.arange(len(shots.images)))
        return model(shots.labels, states, text)["loss"].item()

    assert loss_with(dict(after)) < loss_with(before)


def test_a_mean_is_that_of_all_steps() -> None:
    torch.manual_seed(0)
    steps, mean = torch.randn(7, 3), Mean()
    for step in steps:
        mean.add({"x": step})
    assert mean.tensors["x"] == pytest.approx(steps.mean(0), abs=1e-6)


def test_shots_are_parted_class_by_class() -> None:
    images = noisy_colors(5)
    learnt, held = fewer_steps.parted(images)
    assert sorted(held.labels) == sorted([*range(len(images.classes))] * HELD)
    assert len(learnt) + len(held) == len(images)
    assert not {id(image) for image in held.images} & {id(image) for image in learnt.images}


def test_a_plateau_ends_the_training(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_steps, "LONGEST", 40)
    own, labels = method(), "ab" * 8
    shots = shots_of(tiny_clip, grouped_noise(labels, labels))  # with nothing to learn
    until = UntilPlateau(own.model(tiny_clip, 1), own, shots)
    assert len(until.learnt.images) == len(labels) - 2 * HELD
    until()
    assert 2 < until.epochs < 40
    assert until.since == fewer_steps.PATIENCE
    until.mean.tensors = dict(until.tensors)
    assert until._held_loss() == pytest.approx(until.best)
    start = own.model(tiny_clip, 1).adapters.state_dict()
    assert not all(torch.equal(until.tensors[name], start[name]) for name in start)


def test_default_trains_as_the_method_does(tiny_clip: Backbone) -> None:
    own, shots = method(), shots_of(tiny_clip, noisy_colors(4))
    model = own.model(tiny_clip, shots.seed)
    found = fewer_steps.for_so_long(model, own, shots, Variant(2))
    fitted = own.fit(tiny_clip, shots).tensors
    plain = {name: tensor for name, tensor in fitted.items() if name != HEAD}
    assert {*plain} == {*found[LAST]}
    assert all(torch.equal(found[LAST][name], plain[name]) for name in plain)
    constant = fewer_steps.for_so_long(
        own.model(tiny_clip, shots.seed), own, shots, Variant(2, constant=True)
    )
    assert any(not torch.equal(constant[LAST][name], plain[name]) for name in plain)
    assert any(not torch.equal(constant[LAST][name], constant[AVERAGED][name]) for name in plain)


def test_every_variant_gives_a_line(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewer_steps, "SHOTS", 4)
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    some = [Variant(1), Variant(0, ridge=True), Variant(1, constant=True)]
    lines = fewer_steps.measure(lab, colors.name, 1, some, tiny_clip.name, **QUICK)
    assert [fewer_steps.title_of(line) for line in lines] == [
        "1 epoch", "0 epochs, ridge start", "1 epoch, constant", "1 epoch, constant, averaged",
    ]  # fmt: skip
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
    assert fewer_steps.chosen(lines()) == "3 epochs, constant, averaged"
    easy = line("rooms", "2 epochs", 99, 20)  # on one set alone
    assert fewer_steps.chosen([*lines(), easy]) == "3 epochs, constant, averaged"
    with pytest.raises(SystemExit, match="no lines of 10 epochs"):
        fewer_steps.chosen([])


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
    assert len(VARIANTS) == 18


@pytest.mark.parametrize(
    ("sets", "shown", "sentence"),
    [
        (CHOOSE_ALL, ["-0.3", "-1.7 to 1.0", "8"],
         "have {} % on eight sets for choosing where ten have {} ({} points, {})"),
        (REPORT_ALL, ["-1.5", "-3.4 to 0.5", "14"],
         "They have {} % where ten have {} ({} points, {}; sign_digits loses ten)"),
    ],
)  # fmt: skip
def test_the_sentences_about_pocket_3_show_its_lines(
    sets: Sequence[str], shown: list[str], sentence: str
) -> None:
    lines = read_lines(RESEARCH / "results" / "fewer_steps_pocket_3.jsonl")
    found = fewer_steps.accuracies(lines, sets)
    fast, slow = Variant(5, 2).name, DEFAULT.name
    [verdict] = with_verdicts({"": against(found, fast, slow)}, 1).values()
    assert verdict[:3] == shown
    means = [f"{average(found[name]):.1f}" for name in (fast, slow)]
    text = " ".join((RESEARCH / "studies" / "fewer_steps.md").read_text("utf-8").split())
    assert sentence.format(*means, *shown) in text
    assert round(fewer_steps.share_of(lines, "cpu_seconds", fast, sets), 1) == 0.5


def test_the_page_on_all_images_says_what_pocket_3_loses() -> None:
    lines = read_lines(RESEARCH / "results" / "fewer_steps_pocket_3.jsonl")
    found = fewer_steps.accuracies(lines, REPORT_ALL)
    fast, slow = Variant(5, 2).name, DEFAULT.name
    assert found[slow]["sign_digits"][0] - found[fast]["sign_digits"][0] == pytest.approx(10)
    steps = [
        line["steps"] for line in lines if line["variant"] == fast and line["data"] in REPORT_ALL
    ]
    page = RESEARCH.parent / "docs" / "studies" / "all_images.md"
    text = " ".join(page.read_text("utf-8").split())
    assert f"in {min(steps)} to {max(steps)} steps" in text
    assert "1.5 points behind ten on 14 sets for reporting (-3.4 to 0.5)" in text
