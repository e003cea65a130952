"""Answer a stream of images: each is decoded once, in threads while the model works, and encoded
once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rmadapter.conformal import chosen, limits_of
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.encoders import States
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.predict.answer import Answer
from rmadapter.runs.features import distances, shared_features, strangest
from rmadapter.training.cache import BATCH
from rmadapter.training.contract import Fitted, Known, answers

BadImages = list[tuple[Path, str]]  # unreadable images, each with the reason


class Answers(Protocol):
    """What answers images: a `Predictor` in this process, or a cluster."""

    def predict(
        self, images: Sequence[Path], zero_shot: bool = False, bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]: ...  # fmt: skip


class Predictor:
    """A model and the classes that it chooses from.

    names: of the classes, as in prompts. labels: of the classes, as in answers. top: answers per
    image. error: share of images whose prediction sets may miss the right class; 0 for no sets.
    turn_away: share of images of its classes that may be called none of these; 0 to call none so.
    Raises NotApplicable as `Fitted.score` does, and UserError as `limits_of` and `strangest`.
    """

    def __init__(
        self,
        fitted: Fitted,
        names: Sequence[str],
        labels: Sequence[str],
        top: int = 5,
        error: float = 0.0,
        turn_away: float = 0.0,
    ) -> None:
        self.fitted = fitted
        self.names = tuple(names)
        self.labels = labels
        self.top = min(top, len(labels))
        self.error = error
        self.limits = (
            limits_of(fitted.calibration, error, fitted.classes, self.names) if error else None
        )
        self.turn_away = turn_away
        self.strangest = strangest(fitted, turn_away, self.names) if turn_away else None
        if turn_away:
            self._features, self._score = shared_features(fitted, self.names)
        else:
            self._score = fitted.score(self.names)

    def predict(
        self, images: Iterable[Path], zero_shot: bool = False, bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:  # fmt: skip
        """Yield answers in the order of the images, in batches; nothing else is kept.

        zero_shot: also answer with the untouched backbone. bad: as in `decode_batches`. unfamiliar:
        also measure how unfamiliar each image is. Raises UserError for an unreadable image, and as
        `Fitted.unfamiliar` does.
        """
        fitted = self.fitted
        models = {fitted.method.title: self._score}
        if zero_shot:
            known = Known(self.names, fitted.known.templates)
            models["untouched"] = ZeroShot().restore(fitted.backbone, known, {}).score()
        for batch, pixels in with_hint(
            decode_batches(images, fitted.backbone.preprocess, BATCH, bad)
        ):
            states = fitted.states(pixels, features=zero_shot or unfamiliar)
            tables = next(answers(models, [states]))
            table, untouched = tables[fitted.method.title], tables.get("untouched")
            familiar = self._familiar(table, states)
            yield self._answers(batch, table, untouched, states if unfamiliar else None, familiar)

    @torch.no_grad()
    def _familiar(self, table: Tensor, states: States) -> Sequence[bool | None]:
        """Return whether each image is of the classes that the model was fitted to, or else most
        probably of one that was added by name; None if that was not requested."""
        if self.strangest is None:
            return [None] * len(table)
        fitted, rows = self.fitted, table.numpy()
        assert fitted.familiarity is not None
        assert fitted.means is not None
        far = distances(self._features(states), fitted.means).cpu().numpy()
        known = len(fitted.classes)
        answers: list[bool] = fitted.familiarity.familiar(rows, far, self.strangest, known).tolist()
        return answers

    def _answers(
        self,
        images: Sequence[Path],
        table: Tensor,
        untouched: Tensor | None,
        states: States | None,
        familiar: Sequence[bool | None],
    ) -> list[Answer]:
        """table, untouched: probabilities [B, C]. states: of the images, to tell how unfamiliar
        they are. familiar: whether each of them is."""
        shares, places = (part[:, : self.top] for part in table.sort(descending=True, stable=True))
        zero_shot = [""] * len(images)
        if untouched is not None:
            zero_shot = [self.labels[i] for i in untouched.argmax(-1).tolist()]
        unlike: list[float | None] = [None] * len(images)
        if states is not None:
            values = self.fitted.unfamiliar(states.features).tolist()
            unlike = [round(value, 6) for value in values]
        sets: list[tuple[str, ...]] = [()] * len(images)
        if self.limits is not None:
            chosen_rows = [chosen(line, self.limits) for line in table.numpy()]
            sets = [tuple(self.labels[i] for i in which) for which in chosen_rows]
        rows = zip(images, places.tolist(), shares.tolist(), strict=True)
        extras = zip(zero_shot, unlike, sets, familiar, strict=True)
        result = []
        for (image, row, probabilities), extra in zip(rows, extras, strict=True):
            pairs = zip(row, probabilities, strict=True)
            best = tuple((self.labels[i], round(share, 6)) for i, share in pairs)
            result.append(Answer(image, best, *extra))
        return result
