"""Images -> answers: each image is decoded and encoded once, decoded in threads while the model
works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rmadapter.data.transforms import decoded, hinted
from rmadapter.predict.answer import Answer
from rmadapter.training.cache import BATCH
from rmadapter.training.contract import Fitted, Known, answers


class Asker:
    """A model and the classes that it chooses from.

    names: of the classes, as in prompts. labels: of the classes, as in answers. top: answers per
    image. Raises NotApplicable as `Fitted.score` does.
    """

    def __init__(
        self, fitted: Fitted, names: Sequence[str], labels: Sequence[str], top: int = 5
    ) -> None:
        self.fitted, self.names, self.labels, self.top = (
            fitted,
            tuple(names),
            labels,
            min(top, len(labels)),
        )
        self._own = fitted.score(self.names)

    def ask(
        self,
        images: Iterable[Path],
        zero_shot: bool = False,
        bad: list[tuple[Path, str]] | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:
        """Answers in the order of the images, in batches; nothing else is kept.

        zero_shot: also ask the untouched backbone. bad: as in `decoded`. unfamiliar: also tell how
        unfamiliar each image is. Raises UserError for an unreadable image, and as
        `Fitted.unfamiliar` does.
        """
        from rmadapter.methods.zero_shot import ZeroShot

        title, backbone = self.fitted.method.title, self.fitted.backbone
        models = {title: self._own}
        if zero_shot:
            known = Known(self.names, self.fitted.known.templates)
            models["untouched"] = ZeroShot().restore(backbone, known, {}).score()
        for some, pixels in hinted(decoded(images, backbone.preprocess, BATCH, bad)):
            states = self.fitted.states(pixels, features=zero_shot or unfamiliar)
            tables = next(answers(models, [states]))
            ordered = tables[title].sort(descending=True, stable=True)
            shares, places = (part[:, : self.top].tolist() for part in ordered)
            untouched = (
                [self.labels[i] for i in tables["untouched"].argmax(-1).tolist()]
                if zero_shot
                else [""] * len(some)
            )
            far = (
                self.fitted.unfamiliar(states.features).tolist()
                if unfamiliar
                else [None] * len(some)
            )
            yield [
                Answer(
                    image,
                    tuple(
                        (self.labels[i], round(share, 6))
                        for i, share in zip(row, line, strict=True)
                    ),
                    other,
                    None if distance is None else round(distance, 6),
                )
                for image, row, line, other, distance in zip(
                    some, places, shares, untouched, far, strict=True
                )
            ]
