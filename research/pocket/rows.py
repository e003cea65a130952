"""The cached rows of all pools: which are trained on, how often each is drawn, and which are held
out for validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pools import HELD_OUT, PHOTOGRAPHS, TRAINED, read
from student import Targets
from torch import Tensor

WATCHED = ("mini",)  # pools of which some rows a class are held out
HELD_OUT_PER_CLASS = 4
SHARES = (0.44, 0.16, 0.40)  # of a batch: photographs, restyled photographs, drawings


class Rows:
    """One row after the other, pool after pool, as TRAINED has them.

    pool, row: where a row lies. origin_pool, origin_row: where the teacher's logits of it lie,
    which for a restyled photograph is not the same. weight: 0 for what is not trained on.
    """

    def __init__(self, work: Path) -> None:
        self.states = {
            pool: np.load(work / f"{pool}_states.npy", mmap_mode="r")
            for pool in (*TRAINED, HELD_OUT)
        }
        self.logits = {
            pool: np.load(work / f"{pool}_logits.npy", mmap_mode="r") for pool in PHOTOGRAPHS
        }
        untouched = {pool: np.load(work / f"{pool}_untouched.npy") for pool in TRAINED}
        center = np.concatenate([*untouched.values()]).mean(0, dtype=np.float32)
        self.untouched = {pool: table - center for pool, table in untouched.items()}
        labels = {pool: np.load(work / f"{pool}_labels.npy") for pool in (*TRAINED, HELD_OUT)}
        counts = [len(labels[pool]) for pool in TRAINED]
        self.pool = np.repeat(np.arange(len(TRAINED)), counts)
        self.row = np.concatenate([np.arange(count) for count in counts])
        self.label = np.concatenate([labels[pool] for pool in TRAINED])
        self.origin_pool = self.pool.copy()
        self.origin_row = self.row.copy()
        restyled, drawings = (self.pool == TRAINED.index(pool) for pool in ("restyled", "drawings"))
        origins = read(work / "origins.json")
        self.origin_pool[restyled] = [TRAINED.index(pool) for pool, _ in origins]
        self.origin_row[restyled] = [row for _, row in origins]
        self.taught = ~drawings

        self.watched = self._held_out(labels)
        self.weight = self._weights(work)
        self.place = np.array([label["place"] for label in read(work / "labels.json")])[self.label]
        groups = (~restyled & ~drawings, restyled, drawings)
        self.groups = [np.flatnonzero(of_group & (self.weight > 0)) for of_group in groups]

    def _held_out(self, labels: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return pool -> (rows, labels) held out for validation: some of two pools, and all of the
        one that is never trained on."""
        held_out = {}
        rng = np.random.default_rng(3)
        for pool in WATCHED:
            groups = [
                np.flatnonzero(labels[pool] == label)
                for label in np.unique(labels[pool][labels[pool] >= 0])
            ]
            drawn = [
                rng.choice(group, min(HELD_OUT_PER_CLASS, len(group) // 2), replace=False)
                for group in groups
            ]
            rows = np.sort(np.concatenate(drawn))
            held_out[pool] = (rows, labels[pool][rows])
        rows = np.flatnonzero(labels[HELD_OUT] >= 0)
        return held_out | {HELD_OUT: (rows, labels[HELD_OUT][rows])}

    def _weights(self, work: Path) -> np.ndarray:
        """Return how often a row is drawn, compared with others of its group; 0 without label, near
        an evaluation image or watched.

        A restyled photograph goes with its origin.
        """
        pools = np.array([PHOTOGRAPHS.get(pool, 1.0) for pool in TRAINED])
        of_labels = np.array([label["weight"] for label in read(work / "labels.json")])
        weight = np.where(self.label < 0, 0, pools[self.pool] * of_labels[self.label])
        near = read(work / "near.json")
        for number, pool in enumerate(TRAINED):
            left_out = [
                *near.get(pool, {"rows": []})["rows"],
                *(self.watched[pool][0] if pool in self.watched else []),
            ]
            weight[(self.origin_pool == number) & np.isin(self.origin_row, left_out)] = 0
        return weight

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield rows of one batch after the other, without end, in fixed shares of the three
        groups."""
        shares = [round(size * share) for share in SHARES]
        shares[0] = size - sum(shares[1:])
        streams = [
            in_turn(group, self.weight[group], share, rng)
            for group, share in zip(self.groups, shares, strict=True)
        ]
        while True:
            yield np.sort(np.concatenate([next(stream) for stream in streams]))

    def tokens(self, rows: np.ndarray, keep: np.ndarray | None = None) -> Tensor:
        """Return states [N, tokens, 384] behind the frozen blocks. keep: tokens that are wanted."""
        one = self.states[TRAINED[0]].shape[1:]
        tokens = torch.empty(len(rows), one[0] if keep is None else len(keep), one[1])
        for number in np.unique(self.pool[rows]):
            places = np.flatnonzero(self.pool[rows] == number)
            states = self.states[TRAINED[number]][self.row[rows[places]]]
            tokens[torch.from_numpy(places)] = torch.from_numpy(
                states if keep is None else states[:, keep]
            ).float()
        return tokens

    def class_tokens(self, rows: np.ndarray) -> Tensor:
        """Return the untouched encoder's class tokens less their mean, unit, [N, 384]."""
        pairs = zip(self.pool[rows], self.row[rows], strict=True)
        tokens = np.stack([self.untouched[TRAINED[pool]][row] for pool, row in pairs])
        return F.normalize(torch.from_numpy(tokens), dim=-1)

    def targets(self, rows: np.ndarray) -> Targets:
        logits = np.zeros((len(rows), 1000), np.float32)
        for number in np.unique(self.origin_pool[rows]):
            if TRAINED[number] in self.logits:
                places = np.flatnonzero(self.origin_pool[rows] == number)
                logits[places] = self.logits[TRAINED[number]][self.origin_row[rows[places]]]
        label, place, taught = (
            torch.from_numpy(x[rows]) for x in (self.label, self.place, self.taught)
        )
        return Targets(label.long(), place.long(), torch.from_numpy(logits), taught, ~taught)


def in_turn(
    group: np.ndarray, weight: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield endless parts of `size` rows of a group: pass after pass of systematic resampling by
    weight, shuffled."""
    ends = np.cumsum(weight)
    while True:
        number = max(size, len(group))
        points = (np.arange(number) + rng.random()) * ends[-1] / number
        drawn = rng.permutation(
            group[np.minimum(np.searchsorted(ends, points, side="right"), len(group) - 1)]
        )
        yield from (drawn[start : start + size] for start in range(0, number - size + 1, size))
