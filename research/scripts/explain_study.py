"""Measure whether heat maps show what an answer rests on, by deletion and insertion (Petsiuk et
al., BMVC 2018, arXiv 1806.07421).

    python research/scripts/explain_study.py --root DATA --out research/results/explain.jsonl
    python research/scripts/explain_study.py --out research/results/explain.jsonl --tables

A heat map says how much each patch of an image counted for an answer. The patches of test images
are covered with the mean colour, the most important first (deletion), or all but the most important
(insertion). A good map keeps the mean probability of the predicted class high on insertion and low
on deletion; the score is their difference. Controls: patches in random order, and those in the
middle first. A line is one image; the sets take turns. Finished lines are kept: repeat the command
to resume.

The maps come from one differentiable pass, for every method (`trace`), and from occlusion. B
images, L tokens, h heads, C classes, S patches per side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from studies import Lines, append_lines, make_parser, markdown, read_lines, with_interval
from torch import Tensor

from rmadapter.data.transforms import decode_batches
from rmadapter.encoders import States
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.training.contract import Fitted, NotApplicable

SETS = ("office_caltech/web", "pacs/photo", "dtd10")
METHODS: Mapping[str, Mapping[str, Any]] = {"linear-probe": {"search_steps": 0, "C": 3.0}}
SHOTS = 4
SHARES = (0.1, 0.4)  # of the patches
CONTROLS = ("random", "centre")
WINDOW = 2  # side, in patches, of what occlusion covers at once


@dataclass(frozen=True)
class Watched:
    """A `Grid` of images that records the attention of every block that runs over it, [B, h, L or
    1, L], in order."""

    read_index: int | None
    last: int = 0
    extras: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        self.seen.append(weights)
        return (weights @ v).transpose(1, 2).flatten(2)

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if self.last:
            return self.attend(q, k, v, heads)
        return self.attend(q[:, None], k, v, heads)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, -self.last :]], 1) if self.last else x[:, self.read_index]


class Trace(NamedTuple):
    """A pass that gradients flow through.

    logits: [B, C]. attention: of the blocks, from the first. tokens: [B, L, d], normed, as the top
    block's attention reads them. side: S. stop: end of the S * S patch tokens, after which methods
    may append tokens of their own. read: the token that the head reads.
    """

    logits: Tensor
    attention: Sequence[Tensor]
    tokens: Tensor
    side: int
    stop: int
    read: int | None

    def patches(self, values: Tensor) -> Tensor:
        """Select patches: [B, L, ...] -> [B, S * S, ...]."""
        return values[:, self.stop - self.side**2 : self.stop]

    def grid(self, values: Tensor) -> Tensor:
        """Lay out patches: [B, L] -> [B, S, S]."""
        return self.patches(values).unflatten(1, (self.side, self.side)).detach()


def trace(fitted: Fitted, pixels: Tensor, names: Sequence[str] | None = None) -> Trace:
    """Pass pixels [B, 3, H, W] from block 1 on, whichever block the method starts at.

    Raises NotApplicable for an encoder whose blocks cannot be taken apart, for a method that
    remembers images or reads views of them, and as `Fitted.for_classes` does.
    """
    encoder = fitted.backbone.image
    entered: list[Tensor] = []
    if fitted.remembers or fitted.method.test_views:
        raise NotApplicable(f"the answers of {fitted.method.title} depend on more than one image")
    if encoder.opaque:
        raise NotApplicable(f"the blocks of {fitted.backbone.name} do not show what they attend to")
    with torch.no_grad():
        score = fitted.for_classes(fitted.classes if names is None else tuple(names))
    states = encoder.frozen(pixels.to(fitted.backbone.device), 1)
    watched: Any = Watched(states.layout.read_index)
    norm: Any = encoder.views[-1].norm
    handle = norm.register_forward_hook(lambda module, args, output: entered.append(output))
    try:
        with torch.enable_grad():
            x = states.x.detach().requires_grad_()
            first = fitted.first
            if first is None:
                logits = score(States(None, watched, encoder.encode(x, watched)))
            else:
                for i in range(1, first):
                    x = encoder.step(i, x, encoder.norm(i, x), watched)
                top = first == encoder.depth and encoder.reads_some(watched)
                features = encoder.encode(x, states.layout, first)
                y = encoder.step(first, x, encoder.norm(first, x), watched, top)
                logits = score(States(first, watched, features, x, y))
                [used] = torch.autograd.grad(
                    logits.sum(), [watched.seen[first - 1]], retain_graph=True, allow_unused=True
                )
                if used is None:  # it reads only the tokens, and ran the block itself
                    del watched.seen[first - 1]
    finally:
        handle.remove()
    count = states.x.shape[1]
    return Trace(logits, watched.seen, entered[-1], math.isqrt(count), count, watched.read_index)


def _gradients(trace: Trace, targets: Tensor, of: Sequence[Tensor]) -> Sequence[Tensor]:
    logit = trace.logits.gather(1, targets[:, None]).sum()
    return torch.autograd.grad(logit, list(of), retain_graph=True)


def _rolled(trace: Trace, layers: Sequence[Tensor], residual: float) -> Tensor:
    """Return the relevance [B, S, S] for the token that is read: the product of the layers [B, Q,
    L], each plus `residual` times the identity. Q is L, or less in a top block that runs only for
    what is read."""
    read = trace.read or 0
    total = torch.eye(layers[0].shape[-1], device=layers[0].device).expand(len(layers[0]), -1, -1)
    for layer in layers:
        rows, length = layer.shape[1:]
        # appended tokens show nothing
        total = F.pad(total[:, :length], (0, 0, 0, max(length - total.shape[1], 0)))
        same = total
        if rows < length:  # its first row is the token that is read
            layer = layer[:, :1]
            same = total[:, read : read + 1]
        total = layer @ total + residual * same
    if total.shape[1] == 1:
        return trace.grid(total[:, 0])
    return trace.grid(total.mean(1) if trace.read is None else total[:, read])


def rollout(trace: Trace, targets: Tensor) -> Tensor:
    """Compute the attention rollout (Abnar and Zuidema, ACL 2020): heads averaged, each block half
    residual. It is the same for every class."""
    return _rolled(trace, [layer.mean(1) / 2 for layer in trace.attention], 0.5)


def relevance(trace: Trace, targets: Tensor) -> Tensor:
    """Multiply attention by its gradient, keep the positive part, through all blocks (Chefer et
    al., ICCV 2021, equations 5, 6)."""
    gradients = _gradients(trace, targets, trace.attention)
    pairs = zip(trace.attention, gradients, strict=True)
    return _rolled(trace, [(layer * slope).clamp(min=0).mean(1) for layer, slope in pairs], 1.0)


def grad_cam(trace: Trace, targets: Tensor) -> Tensor:
    """Weight what the top block's attention reads by its mean gradient over patches (Selvaraju et
    al., ICCV 2017)."""
    [slope] = _gradients(trace, targets, [trace.tokens])
    weights = trace.patches(slope).mean(1, keepdim=True)
    return trace.grid((trace.tokens * weights).sum(-1)).clamp(min=0)


CANDIDATES: Mapping[str, Callable[[Trace, Tensor], Tensor]] = {
    "attention rollout": rollout, "attention x gradient": relevance, "Grad-CAM": grad_cam,
}  # fmt: skip


def occlusion(fitted: Fitted, pixels: Tensor, target: int, side: int) -> Tensor:
    """Return [S, S]: by how much the log-probability of a class falls when windows of WINDOW x
    WINDOW patches of one image [3, H, W] are covered with the mean colour (Zeiler and Fergus, ECCV
    2014)."""
    windows = [(i, j) for i in range(0, side, WINDOW) for j in range(0, side, WINDOW)]
    shown = torch.ones(len(windows) + 1, side, side, dtype=torch.bool)
    for n, (i, j) in enumerate(windows):
        shown[n, i : i + WINDOW, j : j + WINDOW] = False
    logs = probabilities(fitted, covered(pixels, shown))[:, target].clamp(min=1e-12).log()
    return ((logs[-1] - logs[:-1])[:, None, None] * ~shown[:-1]).sum(0)


def covered(pixels: Tensor, shown: Tensor) -> Tensor:
    """Return copies [M, 3, H, W] of an image [3, H, W], with the mean colour, which is 0, where
    shown [M, S, S] is False."""
    size = pixels.shape[-1]
    wide = shown[:, None].float()
    return pixels * F.interpolate(wide, (size, size), mode="nearest")


def probabilities(fitted: Fitted, pixels: Tensor) -> Tensor:
    """Return the probabilities [B, C] on the CPU."""
    return fitted.answers({"it": fitted.score()}, pixels)["it"]


NAMES = (*CANDIDATES, "occlusion", *CONTROLS)


def curves(fitted: Fitted, pixels: Tensor, target: int, order: Tensor, side: int) -> list[float]:
    """Return the mean probability of a class over SHARES of patches shown alone (insertion), and
    covered (deletion).

    pixels: [3, H, W]. order: [S * S] patches, the most important first.
    """
    counts = [round(share * len(order)) for share in SHARES]
    shown = torch.zeros(len(counts), len(order), dtype=torch.bool)
    for row, count in zip(shown, counts, strict=True):
        row[order[:count]] = True
    shown = torch.cat([shown, ~shown]).unflatten(1, (side, side))
    scores = probabilities(fitted, covered(pixels, shown))[:, target]
    return [round(float(part.mean()), 5) for part in scores.chunk(2)]


def maps(fitted: Fitted, pixels: Tensor, target: int, seed: int) -> tuple[dict[str, Tensor], int]:
    """Return every map [S, S] of an image [3, H, W], and S."""
    traced = trace(fitted, pixels[None])
    side = traced.side
    made = {name: make(traced, torch.tensor([target]))[0] for name, make in CANDIDATES.items()}
    made["occlusion"] = occlusion(fitted, pixels, target, side)
    made["random"] = torch.rand(side, side, generator=torch.Generator().manual_seed(seed))
    middle = (torch.arange(side) - (side - 1) / 2) ** 2
    made["centre"] = -(middle[:, None] + middle)
    return made, side


class Study:
    """A model fitted to one set, and the test images to explain, in random order."""

    def __init__(self, lab: Lab, data: str, name: str, images: int) -> None:
        request = Request.make({"shots": SHOTS, **METHODS[name]}, name, data=data)
        self.data, self.name = data, name
        few = lab.draw(request.task)
        self.fitted = learn(request.method, few.train, request.task, few, lab)
        self.test = lab.splits(data)["test"]
        self.rows = np.random.default_rng(1).permutation(len(self.test))[:images].tolist()

    def line(self, row: int) -> dict[str, Any]:
        """Score every map of one image."""
        [(_, pixels)] = decode_batches([self.test.images[row]], self.fitted.backbone.preprocess, 1)
        target = int(probabilities(self.fitted, pixels).argmax())
        made, side = maps(self.fitted, pixels[0], target, row)
        scores = {}
        for name, heat in made.items():
            order = heat.flatten().argsort(descending=True)
            scores[name] = curves(self.fitted, pixels[0], target, order, side)
        return {
            "data": self.data,
            "method": self.name,
            "row": row,
            "right": target == self.test.labels[row],
            "scores": scores,
            "backbone": self.fitted.backbone.digest,
            "versions": versions(),
        }


# Tables of the lines. A set counts once.


def mean(lines: Lines, data: str, method: str, name: str) -> tuple[float, float, float]:
    """Average insertion, deletion and their difference."""
    key = (data, method)
    scores = [line["scores"][name] for line in lines if (line["data"], line["method"]) == key]
    insertion, deletion = (fmean(pair[i] for pair in scores) for i in (0, 1))
    return insertion, deletion, insertion - deletion


def ahead(lines: Lines, method: str, name: str, other: str) -> list[float]:
    """Return by set by how much the score of a map exceeds that of another one."""
    sets = dict.fromkeys(line["data"] for line in lines)
    return [
        mean(lines, data, method, name)[2] - mean(lines, data, method, other)[2] for data in sets
    ]


def tables(lines: Lines) -> str:
    """Make the tables of research/studies/explain.md, one per method."""
    sets = list(dict.fromkeys(line["data"] for line in lines))
    parts = []
    for method in dict.fromkeys(line["method"] for line in lines):
        heads = [method, "insertion", "deletion", "more than random", "more than centre", *sets]
        means = {name: [mean(lines, data, method, name) for data in sets] for name in NAMES}
        rows = []
        for name in sorted(NAMES, key=lambda name: -fmean(three[2] for three in means[name])):
            cells = [f"{fmean(three[i] for three in means[name]):.3f}" for i in (0, 1)]
            for control in CONTROLS:
                points = ahead(lines, method, name, control)
                cells.append("" if name == control else with_interval(points, 3))
            rows.append([name, *cells, *(f"{three[2]:+.3f}" for three in means[name])])
        parts.append(markdown(heads, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = make_parser(__doc__, SETS, seeds=False)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {(line["data"], line["method"], line["row"]) for line in lines}
    lab = Lab(root=args.root, progress=False)
    for name in args.methods:
        studies = [Study(lab, data, name, args.images) for data in args.data]
        for turn in range(args.images):
            for study in studies:
                if (study.data, name, study.rows[turn]) not in done:
                    append_lines(args.out, [study.line(study.rows[turn])])


if __name__ == "__main__":
    main()
