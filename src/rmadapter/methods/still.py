"""What an encoder that no longer learns makes of the images that another module is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmadapter.cache import Held, Source, encoded
from rmadapter.encoders import States
from rmadapter.train import Batch


@dataclass
class Still:
    """Features of the images of a source: of all at once, by the first batch that asks, where each view comes again
    within the epochs that are left; batch by batch elsewhere.

    of: the states of some images -> [B, d]. epochs: in which features will be asked for.
    """

    source: Source
    of: Callable[[States], Tensor]
    epochs: int
    _held: Held | None = field(default=None, init=False)

    @torch.compiler.disable  # what happens once would be compiled with every step
    @torch.no_grad()
    def features(self, batch: Batch, source: Source) -> Tensor:
        """[B, d]. source: the one that the batch is of, whose states are not asked for again."""
        if 0 < self.source.views <= self.epochs:
            if self._held is None:
                self._held = Held.of_features(encoded(self.source, self.of))
            return self._held.batch(batch.rows, batch.epoch).features
        alike = source is self.source
        return self.of(batch.images if alike else self.source.batch(batch.rows, batch.epoch))
