"""Features by an encoder that no longer learns, of the images that another module is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmadapter.encoders import States
from rmadapter.training.cache import Held, Source, encoded
from rmadapter.training.loop import Batch


@dataclass
class Still:
    """Features of the images of a source: computed for all images at the first request if all views
    are used within the remaining epochs, else batch by batch.

    of: the states of some images -> [B, d]. epochs: number of epochs in which features will be
    requested.
    """

    source: Source
    of: Callable[[States], Tensor]
    epochs: int
    _held: Held | None = field(default=None, init=False)

    @torch.compiler.disable  # what happens only once would be compiled into every step
    @torch.no_grad()
    def features(self, batch: Batch, source: Source) -> Tensor:
        """Return features [B, d]. source: where the batch comes from; its states are not computed
        again."""
        if 0 < self.source.views <= self.epochs:
            if self._held is None:
                self._held = Held.of_features(encoded(self.source, self.of))
            return self._held.batch(batch.rows, batch.epoch).features
        alike = source is self.source
        return self.of(batch.images if alike else self.source.batch(batch.rows, batch.epoch))
