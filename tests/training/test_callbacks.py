"""Callbacks get every step and epoch once, also after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter import Callback
from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.training.callbacks import notify
from rmadapter.training.loop import Unfinished
from tests.helpers.shots import shots_of

SETTINGS: dict[str, Any] = {"first_block": 4, "rank": 2, "epochs": 3, "batch_size": 6}


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
    trained = load_method("rmadapter", SETTINGS).fit(tiny_clip, shots).trained
    assert steps == trained.history
    assert [step["step"] for step in steps] == list(range(1, 10))
    assert [(epoch["epoch"], epoch["step"]) for epoch in epochs] == [(1, 3), (2, 6), (3, 9)]
    assert epochs[1]["loss"] == pytest.approx(sum(step["loss"] for step in steps[3:6]) / 3)


def test_callbacks_cannot_change_figures_and_their_errors_end_the_training(
    tiny_clip: Backbone,
) -> None:
    method, shots = load_method("rmadapter", SETTINGS), shots_of(tiny_clip)

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
    method = load_method("rmadapter", SETTINGS)
    with pytest.raises(RuntimeError):
        method.fit(tiny_clip, replace(shots, callbacks=[Callback(stop)]))
    done = method.fit(tiny_clip, replace(shots, callbacks=[Callback(seen.append, seen.append)]))
    assert [figures["step"] for figures in seen] == [5, 6, 6, 7, 8, 9, 9]
    mean = sum(step["loss"] for step in done.trained.history[3:6]) / 3
    assert seen[2]["loss"] == pytest.approx(mean)
