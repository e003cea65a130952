"""Callbacks of a training, called after every step and epoch, for TensorBoard or Weights & Biases,
say."""

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
    """Functions of the figures of a training: "step" and "epoch", counted from 1, every term of the
    loss, and "lr".

    on_step is called after each step; on_epoch after the last step of an epoch, with the mean of
    each term over the epoch. An exception in either ends the training.
    """

    on_step: Callable[[Figures], object] = _nothing
    on_epoch: Callable[[Figures], object] = _nothing


def notify(callbacks: Iterable[Callback], history: Sequence[Figures], per_epoch: int) -> None:
    """Call the callbacks after a step. history: figures of all steps so far. per_epoch: steps in an
    epoch."""
    last = history[-1]
    for callback in callbacks:
        callback.on_step(dict(last))
        if last["step"] % per_epoch == 0:
            figures = dict(last)
            for term in last.keys() - {"step", "epoch", "lr"}:
                figures[term] = fmean(step[term] for step in history[-per_epoch:])
            callback.on_epoch(figures)
