"""ReHARK: Islam, "ReHARK: Refined Hybrid Adaptive RBF Kernels for Robust One-Shot Vision-Language
Adaptation", 2026 (arXiv 2603.11542).

Kernel ridge regression of what a prior leaves of the one-hot labels Y of the shots:

logits = scale x p^T + k(x, s) A,    A = (k(s, s) + lambda I)^-1 (Y - scale s p^T)
k(x, s) = mix exp(-narrow |x - s|^2) + (1 - mix) exp(-wide |x - s|^2)
p_c = unit((1 - share) t_c + share unit(mean of x_i in c))

x are features, t prompts, each unit(sign(f) |f|^power) of the encoders' unit features f. s are the
shots, and once more the shots moved towards their class: unit(x_i + bridge p_c).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import pydantic.dataclasses
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.features import columns, held_out, unit
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import STRICT, Count, option
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Fitted,
    Known,
    Shots,
    ToLogits,
    Traits,
    Untrained,
    Uses,
    shaped,
)

# Where the released code draws the numbers from; `penalty` on a logarithmic scale.
RANGES = {
    "narrow": (0.1, 30.0),
    "wide": (0.01, 5.0),
    "mix": (0.0, 1.0),
    "penalty": (0.001, 5.0),
    "share": (0.0, 1.0),
    "bridge": (0.0, 2.0),
    "scale": (1.0, 20.0),
    "power": (0.5, 1.0),
}


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Numbers:
    """The middle of each range."""

    narrow: float = option(15.0, "sharpness of the first kernel", gt=0)
    wide: float = option(2.5, "sharpness of the second kernel", gt=0)
    mix: float = option(0.5, "share of the first kernel", ge=0, le=1)
    penalty: float = option(0.07, "lambda", gt=0)
    share: float = option(0.5, "share of the shots' mean in a class's prior", ge=0, le=1)
    bridge: float = option(1.0, "how far shots are moved towards their class", ge=0)
    scale: float = option(10.0, "factor of the prior's cosines", gt=0)
    power: float = option(0.75, "exponent of the features", gt=0, le=1)


@dataclass(frozen=True)
class ReHARK(Untrained):
    """Two kernels of what prompts and class means get wrong on the shots; nothing is trained.

    Every view of a shot counts. Only answers for the classes of its shots. The released code takes
    ten views and 1,000 trials of Optuna on validation images, those of ImageNet being the test
    images. It also moves features to the mean and spread of all test images, and mixes texts of a
    language model into the prompts; this does neither.

    Args:
        trials: How many numbers are drawn at random from their ranges, to keep those with the most
            hits on validation images, else on parts of the shots held out in turn; with one shot
            per class they stay as given.
    """

    title = "ReHARK"
    source = "Islam, 2026 (arXiv 2603.11542); trainers/rehark.py of github.com/Jahid12012021/ReHARK"
    traits = Traits(
        uses=Uses(
            constants="the numbers, searched on validation images",
            tuned=HELD_OUT,
            on_test="the numbers for ImageNet (authors' code), here searched on held-out shots",
        ),
        about=About(
            "nothing",
            "two kernels of what prompts and class means get wrong on the shots",
            "an answer at once for classes with shots",
            new_classes=False,
        ),
        reads="features",
        left_out="texts of a language model, and mean and spread of all test images",
    )
    numbers: Numbers = field(default_factory=Numbers)
    trials: Count = 100

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        views = unit(shots.features())
        prompts = zero_shot_weights(backbone, shots.classes, shots.templates)
        numbers = self._search(shots, views, prompts)
        tensors = regression(numbers, views, shots.labels, prompts)
        chosen = {name: torch.tensor(value) for name, value in asdict(numbers).items()}
        return self.restore(backbone, shots.known, {**tensors, **chosen})

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        count, size = len(known.classes), backbone.embedding_size
        support, prior = (
            shaped(tensors, "support", -1, size),
            shaped(tensors, "prior", count, size),
        )
        values = shaped(tensors, "values", len(support), count)
        numbers = Numbers(**{name: float(shaped(tensors, name)) for name in RANGES})

        def for_classes(names: Sequence[str]) -> ToLogits:
            chosen = columns(self.title, known.classes, names)
            ours = {"support": support, "values": values[:, chosen], "prior": prior[chosen]}
            return lambda states: logits(numbers, bent(unit(states.features), numbers), ours)

        return Fitted(self, backbone, known, tensors, for_classes)

    def _search(self, shots: Shots, views: Tensor, prompts: Tensor) -> Numbers:
        """Return the first numbers with the most hits on held-out images, the given ones first.

        Args:
            shots: Images of the fit.
            views: Unit features [V, N, e] of the shots.
            prompts: Class features [C, e].
        """
        parts, best, most = held_out(shots), self.numbers, -1
        for numbers in self._drawn(shots.seed) if parts else ():
            hits = 0
            for rows, features, targets in parts:
                fit = regression(numbers, views[:, rows], shots.labels[rows], prompts)
                table = logits(numbers, bent(unit(features), numbers), fit)
                hits += int((table.argmax(-1) == targets).sum())
            if hits > most:
                best, most = numbers, hits
        return best

    def _drawn(self, seed: int) -> Iterator[Numbers]:
        """Return the given numbers, and then random ones."""
        yield self.numbers
        draws = torch.rand(self.trials, len(RANGES), generator=torch.Generator().manual_seed(seed))
        for row in draws.tolist():
            values = {
                name: low + one * (high - low)
                for one, (name, (low, high)) in zip(row, RANGES.items(), strict=True)
            }
            low, high = RANGES["penalty"]
            values["penalty"] = low * (high / low) ** row[[*RANGES].index("penalty")]
            yield replace(self.numbers, **values)


def bent(features: Tensor, numbers: Numbers) -> Tensor:
    """Return unit features [..., e] whose numbers are taken to a power, with their signs."""
    return unit(features.sign() * features.abs() ** numbers.power)


def kernel(numbers: Numbers, x: Tensor, support: Tensor) -> Tensor:
    """Return the kernel [B, M] of unit features [B, e] and [M, e]."""
    distance = (2 - 2 * x @ support.T).clamp(min=0)
    narrow, wide = (-numbers.narrow * distance).exp(), (-numbers.wide * distance).exp()
    return numbers.mix * narrow + (1 - numbers.mix) * wide


def regression(
    numbers: Numbers, views: Tensor, labels: Tensor, prompts: Tensor
) -> dict[str, Tensor]:
    """Return the support [2M, e], its values [2M, C] and the prior [C, e], for M views of shots
    [V, N, e] with labels [N] of classes with prompts [C, e], both of unit length."""
    x, every = bent(views.flatten(0, 1), numbers), labels.repeat(len(views))
    members = F.one_hot(every, len(prompts)).to(x)
    means = unit(members.T @ x)
    prior = unit((1 - numbers.share) * bent(prompts, numbers) + numbers.share * means)
    support = torch.cat([x, unit(x + numbers.bridge * prior[every])])
    rest = members.repeat(2, 1) - numbers.scale * support @ prior.T
    ours = kernel(numbers, support, support) + numbers.penalty * torch.eye(len(support)).to(x)
    return {"support": support, "values": torch.linalg.solve(ours, rest), "prior": prior}


def logits(numbers: Numbers, x: Tensor, fit: Mapping[str, Tensor]) -> Tensor:
    """Return logits [B, C] of bent features [B, e] by what `regression` returned."""
    ours = kernel(numbers, x, fit["support"]) @ fit["values"]
    return numbers.scale * x @ fit["prior"].T + ours
