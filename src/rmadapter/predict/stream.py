"""Answer a stream of images: each is decoded once, in threads while the model works, and encoded
once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rmadapter.answers.answer import Answer, Levels
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.encoders import States
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.predict.decide import Decider
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
    image. error, turn_away: as for `Decider`, which also says what is raised. tree: of the labels,
    if they have one.
    """

    def __init__(
        self,
        fitted: Fitted,
        names: Sequence[str],
        labels: Sequence[str],
        top: int = 5,
        error: float = 0.0,
        turn_away: float = 0.0,
        tree: Taxonomy | None = None,
    ) -> None:
        self.fitted = fitted
        self.tree = tree
        self.decider = Decider(fitted, names, error, turn_away)
        self.names = self.decider.names
        self.labels = labels
        self.top = min(top, len(labels))

    def predict(
        self, images: Iterable[Path], zero_shot: bool = False, bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:  # fmt: skip
        """Yield answers in the order of the images, in batches; nothing else is kept.

        zero_shot: also answer with the untouched backbone, if it has a text encoder. bad: as in
        `decode_batches`. unfamiliar: also measure how unfamiliar each image is. Raises UserError
        for an unreadable image, and as `Fitted.unfamiliar` does.
        """
        fitted = self.fitted
        zero_shot = zero_shot and fitted.backbone.has_text
        models = {fitted.method.title: self.decider.score}
        if zero_shot:
            known = Known(self.names, fitted.known.templates)
            models["untouched"] = ZeroShot().restore(fitted.backbone, known, {}).score()
        for batch, pixels in with_hint(decode_batches(images, fitted.transform, fitted.batch, bad)):
            states = fitted.states(pixels, features=zero_shot or unfamiliar)
            tables = next(answers(models, [states]))
            table, untouched = tables[fitted.method.title], tables.get("untouched")
            familiar = self.decider.familiar(table, states)
            yield self._answers(batch, table, untouched, states if unfamiliar else None, familiar)

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
        members = self.decider.sets(table)
        sets = [tuple(self.labels[i] for i in which) for which in members]
        levels: Sequence[Levels | None] = [None] * len(images)
        if self.tree:
            levels = Levels.of(self.tree, table.numpy(), members)
        rows = zip(images, places.tolist(), shares.tolist(), strict=True)
        extras = zip(zero_shot, unlike, sets, familiar, levels, strict=True)
        result = []
        for (image, row, probabilities), extra in zip(rows, extras, strict=True):
            pairs = zip(row, probabilities, strict=True)
            best = tuple((self.labels[i], round(share, 6)) for i, share in pairs)
            result.append(Answer(image, best, *extra))
        return result
