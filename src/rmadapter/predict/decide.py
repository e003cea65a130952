"""Decide for each image which classes may be right, and whether it is of the model's classes at
all: the same for `predict` and `explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rmadapter.answers.sets import Source, chosen, limits_of
from rmadapter.encoders import States
from rmadapter.metrics import most_missed, most_of_any
from rmadapter.runs.features import distances, shared_features, strangest
from rmadapter.training.contract import Fitted


class Decider:
    """A model that scores classes, and what it promises of them.

    names: of the classes, as in prompts. error: share of images whose prediction sets may miss the
    right class; 0 for no sets. turn_away: share of images of its classes that may be called none of
    these; 0 to call none so. Raises NotApplicable as `Fitted.score` does, and UserError as
    `limits_of` and `strangest`.
    """

    def __init__(
        self, fitted: Fitted, names: Sequence[str], error: float = 0.0, turn_away: float = 0.0
    ) -> None:
        self.fitted = fitted
        self.names = tuple(names)
        self.error, self.turn_away = error, turn_away
        self.limits = None
        if error:
            known, remembers = fitted.classes, fitted.remembers
            self.limits = limits_of(fitted.calibration, error, known, self.names, remembers)
        self.strangest = strangest(fitted, turn_away, self.names) if turn_away else None
        if turn_away:
            self._features, self.score = shared_features(fitted, self.names)
        else:
            self.score = fitted.score(self.names)

    def sets(self, table: Tensor) -> list[list[int]]:
        """Return the indices of the classes in the set of each image, the most probable first; none
        if no error is promised. table: probabilities [B, C]."""
        if self.limits is None:
            return [[] for _ in table]
        return [chosen(row, self.limits).tolist() for row in table.numpy()]

    @torch.no_grad()
    def familiar(self, table: Tensor, states: States) -> Sequence[bool | None]:
        """Return whether each image is of the classes that the model was fitted to, or else most
        probably of one that was added by name; None if that was not requested.

        table: probabilities [B, C], which `score` gave for the same states just before: features
        are not computed again.
        """
        if self.strangest is None:
            return [None] * len(table)
        fitted = self.fitted
        assert fitted.familiarity is not None
        assert fitted.means is not None
        far, known = distances(self._features(states), fitted.means), len(fitted.classes)
        found = fitted.familiarity.familiar(table.numpy(), far.cpu().numpy(), self.strangest, known)
        answers: list[bool] = found.tolist()
        return answers

    def promises(self) -> Iterator[str]:
        """Yield sentences that say what is promised, and by which images."""
        calibration, familiarity = self.fitted.calibration, self.fitted.familiarity
        if self.error and calibration:
            most = 100 * most_of_any(calibration.behind(self.error), self.error)
            stay = "would stay" if calibration.source == "folds" else "stay"
            yield (
                f"{calibration.promise(self.error)}; this is the mean over such calibrations, of "
                f"which 95 % {stay} below {most:.1f} %{_if_exact(calibration.source)}"
            )
            yield from calibration.details(self.error, len(self.names))
        if self.turn_away and familiarity:
            most = 100 * most_missed(len(familiarity.sure), self.turn_away)
            yield (
                f"{familiarity.promise(self.turn_away)}, on average; for 95 % of such draws of "
                f"images it is at most {most:.1f} %{_if_exact(familiarity.source)}"
            )


def _if_exact(source: Source) -> str:
    """Return what restricts a bound, which folds only approximate."""
    return ", if the folds were such a draw" if source == "folds" else ""
