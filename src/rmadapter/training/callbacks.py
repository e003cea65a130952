"""Callbacks that a training calls after every step and epoch, to feed TensorBoard or Weights &
Biases, for example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

Figures: TypeAlias = Mapping[str, float]


def _nothing(figures: Figures) -> None:
    pass


@dataclass(frozen=True)
class Callback:
    """on_step({"step", "epoch", every term of the loss, "lr"}) is called after each step; steps
    count from 1.

    on_epoch(the same, with each term averaged over the epoch) is called after the epoch's last
    step. An exception in either ends the training.
    """

    on_step: Callable[[Figures], object] = _nothing
    on_epoch: Callable[[Figures], object] = _nothing


def tell(callbacks: Iterable[Callback], history: Sequence[Figures], per_epoch: int) -> None:
    """Call the callbacks after a step. history: figures of all steps so far. per_epoch: steps of an
    epoch."""
    last = history[-1]
    for callback in callbacks:
        callback.on_step(dict(last))
        if last["step"] % per_epoch == 0:
            steps = history[-per_epoch:]
            plain = ("step", "epoch", "lr")
            callback.on_epoch(
                {
                    name: v if name in plain else fmean(s[name] for s in steps)
                    for name, v in last.items()
                }
            )
