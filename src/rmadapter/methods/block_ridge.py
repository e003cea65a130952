"""Ridge regression on every block of the frozen image encoder, beside a centred zero-shot prior: an
answer in one pass over the images and one solve.

    parts of an image:      class token, mean, standard deviation and maximum of the patches after
                            each block, of unit length (`ImageEncoder.parts`)
    kernel of two images:   the mean of the inner products of some of their parts
    a class of the shots:   heat * r + share * prior
    a class by name alone:  share * prior; where only such classes are asked for, prior
    prior:                  scale * cos(g - centring * mean of the shots' g, w)

r is the regression of one-hot labels, with an intercept; g are the encoder's own features, and w
those of the prompts, of unit length. Kernel, penalty, heat and share have the lowest log loss of
the shots' leave-one-out answers (`rmadapter.regression`). What these answers are worth is measured
across: each half of the shots by what the other half chose.

Parts of all blocks: Evci et al., Head2Toe, ICML 2022 (arXiv 2201.03529). Centring: Zhou et al.,
Test-Time Distribution Normalization, NeurIPS 2023 (arXiv 2302.11084). Kernels of shots beside
zero-shot: Zhang et al., Tip-Adapter, ECCV 2022 (arXiv 2207.09519); Bendou et al., ProKeR, CVPR 2025
(arXiv 2501.11175).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.duplicates import halves
from rmadapter.encoders import PARTS, States
from rmadapter.errors import UserError
from rmadapter.methods.parts.features import Places, unit
from rmadapter.prompts import linear_logits, zero_shot_weights
from rmadapter.regression import Factors, other_groups
from rmadapter.settings import Positive, Share
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Fitted,
    Known,
    LeftOut,
    Method,
    Parameters,
    Shots,
    Trained,
    Traits,
    Uses,
    shaped,
)

Blocks = Literal["choose", "mixed", "all", "late", "last"]

PENALTIES = tuple(10.0 ** (power / 3) for power in range(-12, 4))  # for a kernel with diagonal 1
MAX_EXACT = 5000  # images whose pairs are all compared; of more, the parts are projected
MAX_CHOOSING = 1000  # images by which blocks are chosen
MAX_JUDGING = 5000  # images by which the other settings are chosen
PROJECTED = 1536  # numbers of an image after the projection
LATE = 3  # the upper one of so many blocks is late
WEIGHT, BIAS, MEAN, SHARE = "weight", "bias", "mean", "share"


@dataclass(frozen=True)
class BlockRidge(Method):
    """A ridge regression on every block, beside a centred zero-shot prior.

    Args:
        blocks: Parts in the kernel: last, the class token of the last block; late, class token and
            mean patch of the upper third; all, every part of every block; mixed, these three in
            equal shares; choose, the best of seven such mixtures, and mixed where no answer can be
            left out.
        centring: Share of the shots' mean that is taken out of an image's features before they meet
            the prompts; like the following, chosen in docs/studies/block_ridge.md.
        penalty, heat, share: Lambda, and factors of the regression and the prior, where no answer
            can be left out, such as with one image of each class.
    """

    title = "ridge regression on every block"
    source = (
        "of this project, after Evci et al., ICML 2022 (Head2Toe), Zhou et al., NeurIPS 2023, and "
        "Bendou et al., CVPR 2025 (ProKeR)"
    )
    traits = Traits(
        uses=Uses(tuned=f"{HELD_OUT}; constants: this project's choosing sets"),
        about=About(
            "features",
            "a closed-form regression on every block of the image encoder, beside zero-shot",
            "an answer at once; the default of `fit`",
        ),
        reads="parts",
        without_text=True,
        leaves_out=True,
    )
    blocks: Blocks = "choose"
    centring: Share = 0.7
    penalty: Positive = 0.1
    heat: Positive = 8.0
    share: Share = 0.3

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        rows = Rows.of(backbone, shots, self.blocks)
        g = unit(shots.plain_features()).cpu().double()
        if not bool(rows.parts.isfinite().all() and g.isfinite().all()):
            raise UserError(f"{backbone.name} gives features that are NaN or infinite")
        shown = self.shown(backbone, shots, g)
        name = MIXED if MIXED in rows.mixes else next(iter(rows.mixes))
        given = Choice(name, self.penalty, self.heat, self.share)
        choice, left_out = choose(rows, shown, given, shots.seed)
        weight, bias = rows.solve(choice, shown)
        tensors = {
            WEIGHT: choice.heat * weight,
            BIAS: choice.heat * bias,
            MEAN: g.mean(0),
            SHARE: torch.tensor(choice.share),
        }
        tensors = {name: tensor.float().to(backbone.device) for name, tensor in tensors.items()}
        fitted = self.restore(backbone, shots.known, tensors).after(Trained(weighed=True))
        return replace(fitted, left_out=left_out)

    def shown(self, backbone: Backbone, shots: Shots, g: Tensor) -> Shown:
        """Return what is known of the shots besides their parts; without a text encoder, the prior
        is zero.

        Args:
            backbone: Backbone of the fit.
            shots: The shots.
            g: Their unit features [N, e].
        """
        groups, count = torch.from_numpy(shots.groups), len(shots.classes)
        prior = g.new_zeros(len(g), count)
        if backbone.has_text:
            texts = zero_shot_weights(backbone, shots.classes, shots.templates).to(g)
            images = centred(g, means_left_out(g, groups), self.centring)
            prior = float(backbone.logit_scale) * images @ texts.T
        classes = F.one_hot(shots.labels.cpu(), count).double()
        return Shown(classes, groups, prior.numpy(), shots.weights)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        weight = shaped(tensors, WEIGHT, len(known.classes), -1)
        bias, share = shaped(tensors, BIAS, len(known.classes)), shaped(tensors, SHARE)
        mean = shaped(tensors, MEAN, backbone.embedding_size)

        def for_classes(names: Sequence[str]) -> Scores:
            places = Places.of(self.title, backbone, known.classes, names)
            # of classes known by name alone, the prior is zero-shot, calibrated as such
            factor = backbone.logit_scale * (share if places.old else 1.0)

            def texts(names: list[str]) -> Tensor:
                if not backbone.has_text:
                    return weight.new_empty(len(names), 0)
                return factor * zero_shot_weights(backbone, names, known.templates)

            def trained(old: list[str], rows: list[int]) -> Tensor:
                return torch.cat([weight[rows], bias[rows, None], texts(old)], -1)

            def others(new: list[str]) -> Tensor:
                return torch.cat([weight.new_zeros(len(new), weight.shape[1] + 1), texts(new)], -1)

            joint = places.weights(trained, others)
            size = weight.shape[1]
            return Scores(
                joint[:, :size], joint[:, size], joint[:, size + 1 :], mean, self.centring
            )

        return Fitted(
            self, backbone, known, tensors, for_classes, PARTS, weight.numel() + bias.numel()
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        _, count, size = parts_shape(backbone)
        return Parameters(classes * (count * size + 1))

    def starts_at(self, backbone: Backbone) -> int | None:
        return PARTS


@dataclass(frozen=True)
class Scores:
    """Logits [B, C] of the states of B images.

    Attributes:
        weight: Weights [C, P * d] of the regression.
        bias: Its biases [C].
        texts: Weights [C, e] of the prior; [C, 0] without a text encoder.
        mean: Mean [e] of the shots' features.
        centring: Share of it that is taken out.
    """

    weight: Tensor
    bias: Tensor
    texts: Tensor
    mean: Tensor
    centring: float

    def __call__(self, states: States) -> Tensor:
        logits = linear_logits(states.x.float().flatten(1), self.weight, self.bias)
        if not self.texts.shape[1]:
            return logits
        prior = centred(unit(states.features), self.mean, self.centring)
        return logits + linear_logits(prior, self.texts)


def centred(g: Tensor, means: Tensor, share: float) -> Tensor:
    """Return unit features [N, e] without a share of means [e] or [N, e], of unit length again."""
    return F.normalize(g - share * means, dim=-1)


def means_left_out(g: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of all rows outside the group of each, [N, e]; zeros where there are none.

    Args:
        g: Features [N, e].
        groups: Group numbers [N], from 0 up.
    """
    counts = torch.bincount(groups)
    sums = g.new_zeros(len(counts), g.shape[1]).index_add_(0, groups, g)
    return (g.sum(0) - sums[groups]) / (len(g) - counts[groups]).clamp(min=1)[:, None]


# Kernels

LAST, LATEST, ALL, MIXED = "last", "late", "all", "mixed"


def parts_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Return the number of parts of a block, of parts in all and of numbers in each."""
    size = backbone.image_size
    blank = torch.zeros(1, 3, size, size, device=backbone.device)
    _, count, width = backbone.image.frozen(blank, PARTS).x.shape
    return max(count // max(backbone.image.depth, 1), 1), count, width


def mixes_of(kinds: int, count: int) -> dict[str, Tensor]:
    """Return the weights [P] of parts in kernels, which sum to 1, by name.

    Args:
        kinds: Number of parts of a block: with 4, the class token is the first, and the mean of the
            patches the second; with 3, there is no class token.
        count: Number P of parts in all.
    """
    if count == kinds:
        return {ALL: torch.full((count,), 1 / count, dtype=torch.double)}
    last, late = torch.zeros(2, count, dtype=torch.double)
    last[count - kinds] = 1.0
    for block in range(count - kinds * max(count // kinds // LATE, 1), count, kinds):
        late[block : block + kinds - 2] = 1.0
    single = {LAST: last, LATEST: late / late.sum(), ALL: torch.ones(count).double() / count}
    pairs = {
        f"{one}, {two}": (single[one] + single[two]) / 2 for one, two in combinations(single, 2)
    }
    return {**single, **pairs, MIXED: sum(single.values(), last.new_zeros(())) / 3}


@dataclass(frozen=True, eq=False)
class Rows:
    """The parts of N images.

    Attributes:
        parts: [N, P, d]; of more than MAX_EXACT images projected, [N, P, q].
        mixes: Kernels to choose from: the weights [P] of their parts by name.
        projections: What projected the parts, [P, d, q]; None for nothing.
    """

    parts: Tensor
    mixes: Mapping[str, Tensor]
    projections: Tensor | None = None

    @classmethod
    def of(cls, backbone: Backbone, shots: Shots, blocks: Blocks) -> Rows:
        """Read the parts of the shots.

        Args:
            backbone: Backbone of the fit.
            shots: The shots.
            blocks: As for `BlockRidge`; where "choose" is asked of more than MAX_EXACT images, all
                blocks are taken.
        """
        kinds, count, width = parts_shape(backbone)
        mixes = mixes_of(kinds, count)
        many = len(shots.images) > MAX_EXACT
        if blocks != "choose" or many or len(mixes) == 1:
            name = blocks if blocks in mixes else ALL
            mixes = {name: mixes[name]}
        if not many:
            return cls(shots.parts().cpu(), mixes)
        size = min(width, max(PROJECTED // count, 1))
        draw = torch.Generator().manual_seed(0)
        normal = torch.randn(count, width, size, generator=draw)
        projections = torch.linalg.qr(normal)[0] * (width / size) ** 0.5
        on_device = projections.to(backbone.device)

        def project(states: States) -> Tensor:
            return torch.einsum("npd,pdq->npq", states.x.float(), on_device)

        return cls(shots.parts(project).cpu(), mixes, projections)

    def __len__(self) -> int:
        return len(self.parts)

    def candidates(
        self, names: Sequence[str], weights: Tensor | None, some: Tensor | None = None
    ) -> Iterator[tuple[str, Factors]]:
        """Yield the decompositions of kernels, with their names.

        Args:
            names: Names of mixes.
            weights: Weights [N] of the images; None for equal ones.
            some: Images to take, as rows; None for all.
        """
        parts = self.parts if some is None else self.parts[some]
        weights = weights if some is None or weights is None else weights[some]
        if self.projections is not None:
            for name in names:
                scale = self.mixes[name].float().sqrt()[:, None]
                yield name, Factors.of_features((parts.float() * scale).flatten(1), weights)
            return
        size = len(parts)
        kernels = {name: torch.zeros(size, size, dtype=torch.double) for name in names}
        for part in range(parts.shape[1]):
            used = {name: float(self.mixes[name][part]) for name in names if self.mixes[name][part]}
            if used:
                x = parts[:, part].float()
                products = (x @ x.T).double()
                for name, share in used.items():
                    kernels[name].add_(products, alpha=share)
        for name in names:
            yield name, Factors.of_kernel(kernels.pop(name), weights)

    def solve(self, choice: Choice, shown: Shown) -> tuple[Tensor, Tensor]:
        """Return weights [C, P * d] and biases [C] of the regression.

        Args:
            choice: Kernel and penalty.
            shown: Targets and weights of the images.
        """
        mix, [(_, factors)] = self.mixes[choice.mix], self.candidates([choice.mix], shown.weights)
        y = shown.classes.to(factors.vectors)
        duals = factors.duals(y, choice.penalty).float()
        share = (factors.roots**2 / len(self)).float()
        weights, bias = [], factors.mean(y).float()
        for part, times in enumerate(mix.tolist()):
            x = self.parts[:, part].float()
            weight = times * duals.T @ x
            bias = bias - weight @ (share @ x)
            weights.append(
                weight if self.projections is None else weight @ self.projections[part].T
            )
        return torch.cat(weights, -1), bias


# The choice


class Choice(NamedTuple):
    """A solution.

    Attributes:
        mix: Name of the kernel.
        penalty: Lambda.
        heat, share: Factors of the regression and of the prior.
    """

    mix: str
    penalty: float
    heat: float
    share: float


@dataclass(frozen=True, eq=False)
class Shown:
    """What is known of N images besides their parts.

    Attributes:
        classes: One-hot labels [N, C].
        groups: Group numbers [N].
        prior: Logits [N, C] of the prior, by means without the group.
        weights: Weights [N]; None for equal ones.
    """

    classes: Tensor
    groups: Tensor
    prior: np.ndarray
    weights: Tensor | None

    @property
    def labels(self) -> Tensor:
        return self.classes.argmax(1)

    @property
    def others(self) -> Tensor:
        """Return how many other groups the class of each image has, [N]."""
        return other_groups(self.labels, self.groups)

    @property
    def can_choose(self) -> bool:
        """Return whether leave-one-out answers can choose: most images leave their class two
        groups."""
        return float((self.others > 1).double().mean()) > 0.5

    def subset(self, rows: Tensor) -> Shown:
        weights = None if self.weights is None else self.weights[rows]
        return Shown(self.classes[rows], self.groups[rows], self.prior[rows.numpy()], weights)


class Found(NamedTuple):
    """The best choice for some images.

    Attributes:
        loss: Its log loss there.
        choice: The choice.
        logits: Leave-one-out logits [N, C] of all images by it.
    """

    loss: float
    choice: Choice
    logits: np.ndarray


def choose(rows: Rows, shown: Shown, given: Choice, seed: int) -> tuple[Choice, LeftOut]:
    """Return the best choice, and the leave-one-out answers that say what it is worth: each half of
    the groups is answered by what the other half chose.

    Args:
        rows: Parts of N images.
        shown: Their labels, groups, prior and weights.
        given: What to take where these images cannot choose.
        seed: Seed of what is drawn where there are many images.
    """
    judged, groups = (shown.others > 0).numpy(), shown.groups.numpy()
    if not shown.can_choose:
        logits = shown.prior
        if judged.any():
            [(_, factors)] = rows.candidates([given.mix], shown.weights)
            scores = factors.left_out(
                shown.classes.to(factors.vectors), given.penalty, shown.groups
            )
            logits = given.heat * scores.double().numpy() + given.share * shown.prior
        return given, LeftOut(softmax(logits, axis=1), judged, groups)
    draw = np.random.default_rng(seed)
    names = [*rows.mixes]
    if len(names) > 1 and len(judged) > MAX_CHOOSING:
        some = np.sort(draw.choice(len(judged), MAX_CHOOSING, replace=False))
        names = [best_mix(rows, shown, torch.from_numpy(some))]
    by = np.flatnonzero(judged)
    if len(by) > MAX_JUDGING:
        by = np.sort(draw.choice(by, MAX_JUDGING, replace=False))
    half = halves(groups, seed)
    sides = [by, by[half[by] == 0], by[half[by] == 1]]
    sides = [side if len(side) else by for side in sides]  # one half may hold all that is judged
    candidates = rows.candidates(names, shown.weights)
    both, first, second = search(candidates, shown, sides)
    logits = np.where(half[:, None] == 0, second.logits, first.logits)
    return both.choice, LeftOut(softmax(logits, axis=1), judged, groups)


def best_mix(rows: Rows, shown: Shown, some: Tensor) -> str:
    """Return the kernel with the least log loss on some of the images; all blocks, which are seldom
    behind others where there are many images, if these cannot choose.

    Args:
        rows: Parts of N images.
        shown: What is known of them.
        some: Some of the images, as rows.
    """
    part = shown.subset(some)
    if not part.can_choose:
        return ALL
    candidates = rows.candidates([*rows.mixes], shown.weights, some)
    [best] = search(candidates, part, [np.flatnonzero(part.others > 0)])
    return best.choice.mix


def search(
    candidates: Iterable[tuple[str, Factors]], shown: Shown, sides: Sequence[np.ndarray]
) -> list[Found]:
    """Return the choice with the least log loss of leave-one-out answers, for each of some sets of
    images.

    Args:
        candidates: Kernels of N images, with their names.
        shown: Labels, groups, prior and weights of the images.
        sides: Sets of images, as rows.
    """
    best: list[Found | None] = [None] * len(sides)
    labels = shown.labels.numpy()
    weights = np.ones(len(labels)) if shown.weights is None else shown.weights.numpy()
    for name, factors in candidates:
        y, factors_of = shown.classes.to(factors.vectors), [START] * len(sides)
        for penalty in PENALTIES:
            scores = factors.left_out(y, penalty, shown.groups).double().numpy()
            for place, rows in enumerate(sides):
                table = Table(scores[rows], shown.prior[rows], labels[rows], weights[rows])
                heat, share, loss = table.factors(factors_of[place])
                factors_of[place] = heat, share
                before = best[place]
                if before is None or loss < before.loss:
                    logits = heat * scores + share * shown.prior
                    best[place] = Found(loss, Choice(name, penalty, heat, share), logits)
    return [found for found in best if found is not None]


START = 8.0, 0.3  # heat and share that the search begins with
MIN_SHARE = 0.02  # of the prior, which alone ranks classes known by name


class Table(NamedTuple):
    """Leave-one-out outputs of N images.

    Attributes:
        scores: Outputs of the regression, [N, C].
        prior: Logits of the prior, [N, C].
        labels: [N].
        weights: [N].
    """

    scores: np.ndarray
    prior: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def factors(self, start: tuple[float, float]) -> tuple[float, float, float]:
        """Return heat and share of the logits with the least log loss, and that loss, which is
        convex in both. Targets are smoothed as in `metrics.temperature`.

        Args:
            start: Heat and share to begin with.
        """
        count, classes = self.scores.shape
        targets = np.full((count, classes), 1 / (count + 1) / classes)
        targets[np.arange(count), self.labels] += count / (count + 1)
        weights = self.weights / self.weights.sum()

        def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
            logits = factors[0] * self.scores + factors[1] * self.prior
            logits -= logits.max(1, keepdims=True)
            powers = np.exp(logits)
            sums = powers.sum(1, keepdims=True)
            errors = powers / sums - targets
            slopes = [weights @ (errors * part).sum(1) for part in (self.scores, self.prior)]
            return weights @ (targets * (np.log(sums) - logits)).sum(1), np.array(slopes)

        share = (MIN_SHARE, None) if self.prior.any() else (0.0, 0.0)
        found = minimize(
            loss, np.array(start), jac=True, bounds=[(0.0, None), share], method="L-BFGS-B"
        )
        return float(found.x[0]), float(found.x[1]), float(found.fun)
