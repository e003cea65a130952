"""What the thresholds of `rmadapter suspects` for odd images let through.

    python tools/odd_images.py --root DATA --out odd_images.jsonl
    python tools/odd_images.py --out odd_images.jsonl --tables

A line is one set and seed: the share of its images that are called odd as they are; when 5 % of
them are blurred, the share of these that are called so; and when images of another set are added,
as a hundredth of all, the share of these that are called unlike all others. Finished lines are
kept: start it again to go on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from lines import keep, kept, parser
from PIL import ImageFilter

from rmadapter.artifacts.mistakes import nearest
from rmadapter.curate import checks
from rmadapter.data.decode import load_image
from rmadapter.data.duplicates import groups
from rmadapter.data.read import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request

SETS = (
    "trashnet",
    "rsscn7",
    "office_caltech/web",
    "neu_steel",
    "pacs/photo",
    "sign_digits",
    "dtd10",
)
RADII = (1, 2, 4)  # pixels, of images whose shorter side is 128 at most
BLURRED = 0.05
KINDS = ("blurred", "one colour", "tiny")
Line = Mapping[str, Any]


def blurred(images: ImageSet, measured: np.ndarray, radius: float, seed: int) -> float:
    """The share of blurred images that are called so among the others. measured: from
    `checks.measure`."""
    rows = random.Random(seed).sample(range(len(images)), round(BLURRED * len(images)))
    found = measured.copy()
    found[rows] = checks.measure(
        [load_image(images.images[i]).filter(ImageFilter.GaussianBlur(radius)) for i in rows]
    )
    reasons = checks.odd(found)
    return fmean("blurred" in reasons[i] for i in rows)


def strangers(features: np.ndarray, together: np.ndarray, others: np.ndarray, seed: int) -> float:
    """The share of strangers that are called unlike all others. features: [N, e]. together: [N],
    from `groups`. others: [M, e], features of another set; enough of them are drawn to be a
    hundredth of all images."""
    count = max(len(features) // 99, 1)
    rows = random.Random(seed).sample(range(len(others)), count)
    every = np.concatenate([features, others[rows]])
    apart = np.concatenate([together, together.max() + 1 + np.arange(count)])
    near = nearest(every, count=checks.NEIGHBOURS, groups=apart)
    return float(checks.outliers(near.cosines)[-count:].mean())


def table(lines: Sequence[Line]) -> str:
    """A row per set: the mean over its seeds, in per cent."""
    heads = [
        *(f"called {kind} as they are" for kind in KINDS),
        *(f"blurred by {r} px" for r in RADII),
        "strangers",
    ]
    rows = ["| % | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for data in dict.fromkeys(line["data"] for line in lines):
        some = [line for line in lines if line["data"] == data]
        cells = [fmean(line["as they are"][kind] for line in some) for kind in KINDS]
        cells += [fmean(line["blurred"][str(radius)] for line in some) for radius in RADII]
        cells.append(fmean(line["strangers"] for line in some))
        digits = [1] * len(KINDS) + [0] * (len(RADII) + 1)
        rows.append(
            f"| {data} | "
            + " | ".join(f"{100 * c:.{d}f}" for c, d in zip(cells, digits, strict=True))
            + " |"
        )
    return "\n".join(rows)


def main() -> None:
    args = parser(__doc__, SETS).parse_args()
    lines = kept(args.out)
    if args.tables:
        print(table(lines))
        return
    done, lab = (
        {(line["data"], line["seed"]) for line in lines},
        Lab(root=args.root, progress=False),
    )

    def features(data: str) -> tuple[ImageSet, np.ndarray]:
        task = Request.make({"shots": 0}, "zero-shot", data=data).task
        images = lab.draw(task).train
        return images, lab.train_cache(task).features(images)[0].float().numpy()

    for data, other in zip(args.data, [args.data[-1], *args.data], strict=False):
        if all((data, seed) in done for seed in args.seeds):
            continue
        (_, others), (images, own) = features(other), features(data)
        measured, together = (
            checks.measure(images.images),
            groups(images.looks(), images.groups),
        )
        reasons = checks.odd(measured)
        for seed in args.seeds:
            line = {
                "data": data,
                "seed": seed,
                "other": other,
                "images": len(images),
                "as they are": {
                    kind: round(fmean(kind in some for some in reasons), 4) for kind in KINDS
                },
                "blurred": {
                    str(radius): round(blurred(images, measured, radius, seed), 4)
                    for radius in RADII
                },
                "strangers": round(strangers(own, together, others, seed), 4),
            }
            if (data, seed) not in done:
                keep(args.out, [line])
                print(data, seed, flush=True)


if __name__ == "__main__":
    main()
