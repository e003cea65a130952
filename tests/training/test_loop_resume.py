"""Exact resume: a killed and restarted training ends with the weights of an undisturbed one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.training import loop as training
from rmadapter.training.contract import Shots
from rmadapter.training.disk_cache import checksum
from rmadapter.training.loop import Batch, key_of, minimise
from rmadapter.training.shots import Unfinished
from rmadapter.training.traits import Recipe
from tests.helpers.learning import fit_adapters, killed_and_resumed, losses
from tests.helpers.shots import noisy_colors, shots_of

IMAGES = noisy_colors(4, names=("red", "blue"))  # eight, two steps an epoch


@pytest.mark.ci
@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "sgd"}, {}),
        ({}, {"augmentation": "standard"}),
        ({}, {"precision": "bf16"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("survived", [3, 4])  # within an epoch, and at its end
def test_a_killed_training_ends_with_the_same_weights(
    tiny_clip: Backbone,
    tmp_path: Path,
    fields: dict[str, Any],
    given: dict[str, Any],
    survived: int,
) -> None:
    """Bit for bit, whether it was killed at the end of an epoch of two steps or within it."""
    shots = shots_of(tiny_clip, IMAGES, **given)
    whole, resumed = killed_and_resumed(
        lambda shots: fit_adapters(shots, **fields), shots, tmp_path, survived
    )
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    assert losses(whole) == losses(resumed)
    assert resumed.trained.step == 6


@pytest.mark.parametrize("threads", [2, 3])
def test_another_number_of_threads_is_noted(
    threads: int, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    counts = iter((2, 2, threads))  # of the whole run, the killed one and the resumed one

    def fit(shots: Shots) -> Any:
        count = next(counts)
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
        return fit_adapters(shots)

    killed_and_resumed(fit, shots_of(tiny_clip, IMAGES), tmp_path, 3)
    assert ("3 instead of 2 threads" in capsys.readouterr().err) == (threads == 3)


class Averaged(nn.Module):
    """A weight, and its average in a buffer."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((16,), 2.0))
        self.register_buffer("average", torch.zeros(16))

    def keep(self, epoch: int) -> None:
        self.average.lerp_(self.weight.detach(), 1 / (epoch + 2))


def dropped(batch: Batch, weight: Tensor) -> Tensor:
    """By torch's global generator."""
    return F.dropout(weight, 0.5)


def masked(batch: Batch, weight: Tensor) -> Tensor:
    return weight * torch.rand(len(weight), generator=batch.generator).round()


@pytest.mark.parametrize("draw", [dropped, masked])
@pytest.mark.parametrize("survived", [3, 4])  # within an epoch, and at its end
def test_random_draws_and_buffers_resume_exactly(
    tiny_clip: Backbone, tmp_path: Path, draw: Callable[[Batch, Tensor], Tensor], survived: int
) -> None:
    recipe = Recipe(optimizer="adam", learning_rate=0.1, epochs=3, batch_size=4, warmup_epochs=0)

    def train(shots: Shots) -> tuple[Averaged, list[float]]:
        module = Averaged()

        def loss(batch: Batch) -> Tensor:
            return (
                (draw(batch, module.weight) - module.average - batch.rows.float().mean())
                .square()
                .mean()
            )

        done = minimise(module, loss, recipe, shots, shots.source(), module.keep)
        return module, [record["loss"] for record in done.history]

    (whole, found), (resumed, again) = killed_and_resumed(
        train, shots_of(tiny_clip, IMAGES), tmp_path, survived
    )
    assert found == again
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.average, resumed.average)
    assert whole.average.any()


def test_a_foreign_or_damaged_state_is_refused(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    shots, path = shots_of(tiny_clip, IMAGES), tmp_path / "training.safetensors"
    fit_adapters(replace(shots, unfinished=Unfinished(path, "mine")))
    whole = path.read_bytes()
    with pytest.raises(UserError, match="holds another, unfinished training: choose another --out"):
        fit_adapters(replace(shots, unfinished=Unfinished(path, "yours")))
    assert path.read_bytes() == whole
    for damaged in (b"no safetensors", whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"training.safetensors: not a readable training state .*; delete it"
        ):
            fit_adapters(replace(shots, unfinished=Unfinished(path, "mine")))


def test_no_changed_byte_of_a_state_is_resumed(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its numbers nor of their names, shapes and history."""
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    shots, path = shots_of(tiny_clip, IMAGES), tmp_path / "training.safetensors"
    unfinished = replace(shots, unfinished=Unfinished(path, "mine"))
    fit_adapters(unfinished)
    whole, rng = path.read_bytes(), random.Random(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in [*rng.sample(range(head), 30), *rng.sample(range(head, len(whole)), 20)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(UserError, match="not a readable training state"):
            fit_adapters(unfinished)
    path.write_bytes(whole)
    fit_adapters(unfinished)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "{", '{"key": 7}'])
def test_a_damaged_training_never_has_the_key(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t", {"progress": text})
    assert key_of(Unfinished(tmp_path / "t", "x")) in ("", "7")


def test_a_state_whose_history_has_another_form_is_refused(
    tmp_path: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    path = tmp_path / "training.safetensors"
    unfinished = replace(shots_of(tiny_clip, IMAGES), unfinished=Unfinished(path, "mine"))
    fit_adapters(unfinished)
    with safe_open(path, "pt") as file:
        text = file.metadata()["progress"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["history"] = torch.ones(2, 3)  # as an earlier version wrote it
    save_file(tensors, path, {"progress": text, "sum": checksum(tensors, text)})
    with pytest.raises(UserError, match="not a readable training state"):
        fit_adapters(unfinished)
