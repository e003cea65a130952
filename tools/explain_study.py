"""Do heat maps show what an answer rests on? Deletion and insertion (Petsiuk et al., BMVC 2018,
arXiv 1806.07421).

    python tools/explain_study.py --root DATA --out docs/results/explain.jsonl
    python tools/explain_study.py --out docs/results/explain.jsonl --tables

The patches of test images are covered with the mean colour, the most important first (deletion), or
all but the most important (insertion). A good map keeps the mean probability of the predicted class
high on insertion and low on deletion; the score is their difference. Controls: patches in random
order, and those in the middle first. A line is one image; the sets take turns. Finished lines are
kept: start it again to go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from explain_maps import CANDIDATES, covered, occlusion, probabilities, trace
from lines import keep, kept, parser
from torch import Tensor

from rmadapter.data.transforms import decoded
from rmadapter.metrics import confidence_interval
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.training.contract import Fitted

SETS = ("office_caltech/web", "pacs/photo", "dtd10")
METHODS: Mapping[str, Mapping[str, Any]] = {"linear-probe": {"search_steps": 0, "C": 3.0}}
SHOTS = 4
SHARES = (0.1, 0.4)  # of the patches
CONTROLS = ("random", "centre")
NAMES = (*CANDIDATES, "occlusion", *CONTROLS)
Line = Mapping[str, Any]


def curves(fitted: Fitted, pixels: Tensor, target: int, order: Tensor, side: int) -> list[float]:
    """Mean probability of a class over SHARES of patches shown alone (insertion), and covered
    (deletion).

    pixels: [3, H, W]. order: [S * S] patches, the most important first.
    """
    counts = [round(share * len(order)) for share in SHARES]
    shown = torch.zeros(len(counts), len(order), dtype=torch.bool)
    for row, count in zip(shown, counts, strict=True):
        row[order[:count]] = True
    shown = torch.cat([shown, ~shown]).unflatten(1, (side, side))
    found = probabilities(fitted, covered(pixels, shown))[:, target]
    return [round(float(part.mean()), 5) for part in found.chunk(2)]


def maps(fitted: Fitted, pixels: Tensor, target: int, seed: int) -> tuple[dict[str, Tensor], int]:
    """Every map [S, S] of an image [3, H, W], and S."""
    found = trace(fitted, pixels[None])
    drawn = {name: make(found, torch.tensor([target]))[0] for name, make in CANDIDATES.items()}
    drawn["occlusion"] = occlusion(fitted, pixels, target, found.side)
    drawn["random"] = torch.rand(
        found.side, found.side, generator=torch.Generator().manual_seed(seed)
    )
    middle = (torch.arange(found.side) - (found.side - 1) / 2) ** 2
    drawn["centre"] = -(middle[:, None] + middle)
    return drawn, found.side


class Study:
    """A model fitted to one set, and the test images to explain, in random order."""

    def __init__(self, lab: Lab, data: str, name: str, images: int) -> None:
        wanted = Request.make({"shots": SHOTS, **METHODS[name]}, name, data=data)
        self.data, self.name = data, name
        few = lab.draw(wanted.task)
        self.fitted = learn(wanted.method, few.train, wanted.task, few, lab)
        self.test = lab.splits(data)["test"]
        self.rows = np.random.default_rng(1).permutation(len(self.test))[:images].tolist()

    def line(self, row: int) -> dict[str, Any]:
        [(_, pixels)] = decoded([self.test.images[row]], self.fitted.backbone.preprocess, 1)
        target = int(probabilities(self.fitted, pixels).argmax())
        drawn, side = maps(self.fitted, pixels[0], target, row)
        scores = {
            what: curves(
                self.fitted, pixels[0], target, one.flatten().argsort(descending=True), side
            )
            for what, one in drawn.items()
        }
        facts = {
            "data": self.data,
            "method": self.name,
            "row": row,
            "right": target == self.test.labels[row],
        }
        return {
            **facts,
            "scores": scores,
            "backbone": self.fitted.backbone.digest,
            "versions": versions(),
        }


# What the lines say. A set counts once.


def mean(lines: Sequence[Line], data: str, method: str, name: str) -> tuple[float, float, float]:
    """Insertion, deletion and their difference."""
    some = [
        line["scores"][name] for line in lines if (line["data"], line["method"]) == (data, method)
    ]
    insertion, deletion = (fmean(pair[i] for pair in some) for i in (0, 1))
    return insertion, deletion, insertion - deletion


def ahead(lines: Sequence[Line], method: str, name: str, of: str) -> list[float]:
    """By set, by how much the score of a map exceeds that of another one (`of`)."""
    sets = dict.fromkeys(line["data"] for line in lines)
    return [mean(lines, data, method, name)[2] - mean(lines, data, method, of)[2] for data in sets]


def better(lines: Sequence[Line], method: str, name: str, of: str) -> bool:
    """Whether a map is ahead of another one by more than the 95 % interval over sets."""
    points = ahead(lines, method, name, of)
    return fmean(points) > confidence_interval(points)


def tables(lines: Sequence[Line]) -> str:
    """The tables of docs/explain.md, one per method."""
    sets, parts = list(dict.fromkeys(line["data"] for line in lines)), []
    for method in dict.fromkeys(line["method"] for line in lines):
        heads = [method, "insertion", "deletion", "more than random", "more than centre", *sets]
        rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        found = {name: [mean(lines, data, method, name) for data in sets] for name in NAMES}
        for name in sorted(NAMES, key=lambda name: -fmean(three[2] for three in found[name])):
            cells = [f"{fmean(three[i] for three in found[name]):.3f}" for i in (0, 1)]
            for control in CONTROLS:
                points = ahead(lines, method, name, control)
                same = name == control
                cells.append(
                    "" if same else f"{fmean(points):+.3f} ± {confidence_interval(points):.3f}"
                )
            rows.append(
                "| "
                + " | ".join([name, *cells, *(f"{three[2]:+.3f}" for three in found[name])])
                + " |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def main() -> None:
    words = parser(__doc__, SETS, seeds=False)
    words.add_argument("--methods", nargs="+", default=list(METHODS))
    words.add_argument("--images", type=int, default=20)
    args = words.parse_args()
    lines = kept(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {(line["data"], line["method"], line["row"]) for line in lines}
    lab = Lab(root=args.root, progress=False)
    for name in args.methods:
        studies = [Study(lab, data, name, args.images) for data in args.data]
        for study, row in (
            (study, study.rows[turn]) for turn in range(args.images) for study in studies
        ):
            if (study.data, name, row) not in done:
                keep(args.out, [study.line(row)])


if __name__ == "__main__":
    main()
