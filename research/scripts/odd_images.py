"""Measure what the thresholds of `rmadapter suspects` for odd images let through.

    python research/scripts/odd_images.py --root DATA --out odd_images.jsonl
    python research/scripts/odd_images.py --out odd_images.jsonl --tables

A line is one set and seed: the share of its images that are called odd as they are; when 5 % of
them are blurred, the share of these that are called so; and when images of another set are added,
as a hundredth of all, the share of these that are called unlike all others. Finished lines are
kept: repeat the command to resume.
"""

from __future__ import annotations

import random
from statistics import fmean

import numpy as np
from PIL import ImageFilter
from studies import Lines, append_lines, make_parser, markdown, read_lines

from rmadapter.artifacts.predictions import nearest
from rmadapter.curate.suspects import NEIGHBOURS, measure, odd_reasons, outliers
from rmadapter.data.decode import load_image
from rmadapter.data.duplicates import groups
from rmadapter.data.read import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request

SETS = (
    "trashnet", "rsscn7", "office_caltech/web", "neu_steel", "pacs/photo", "sign_digits", "dtd10",
)  # fmt: skip
RADII = (1, 2, 4)  # pixels, of images whose shorter side is 128 at most
BLURRED = 0.05
KINDS = ("blurred", "one colour", "tiny")


def blurred(images: ImageSet, measured: np.ndarray, radius: float, seed: int) -> float:
    """Return the share of blurred images that are called so among the others. measured: from
    `measure`."""
    rows = random.Random(seed).sample(range(len(images)), round(BLURRED * len(images)))
    blur = ImageFilter.GaussianBlur(radius)
    changed = measured.copy()
    changed[rows] = measure([load_image(images.images[i]).filter(blur) for i in rows])
    reasons = odd_reasons(changed)
    return fmean("blurred" in reasons[i] for i in rows)


def strangers(features: np.ndarray, together: np.ndarray, others: np.ndarray, seed: int) -> float:
    """Return the share of strangers that are called unlike all others. features: [N, e]. together:
    [N], from `groups`. others: [M, e], features of another set; enough of them are drawn to be a
    hundredth of all images."""
    count = max(len(features) // 99, 1)
    rows = random.Random(seed).sample(range(len(others)), count)
    every = np.concatenate([features, others[rows]])
    apart = np.concatenate([together, together.max() + 1 + np.arange(count)])
    near = nearest(every, count=NEIGHBOURS, groups=apart)
    return float(outliers(near.cosines)[-count:].mean())


def table(lines: Lines) -> str:
    """Make a table with a row per set: the mean over its seeds, in per cent."""
    called = [f"called {kind} as they are" for kind in KINDS]
    heads = ["%", *called, *(f"blurred by {r} px" for r in RADII), "strangers"]
    rows = []
    for data in dict.fromkeys(line["data"] for line in lines):
        of_set = [line for line in lines if line["data"] == data]
        cells = [f"{100 * fmean(x['as they are'][kind] for x in of_set):.1f}" for kind in KINDS]
        cells += [f"{100 * fmean(x['blurred'][str(r)] for x in of_set):.0f}" for r in RADII]
        cells.append(f"{100 * fmean(x['strangers'] for x in of_set):.0f}")
        rows.append([data, *cells])
    return markdown(heads, rows)


def main() -> None:
    args = make_parser(__doc__, SETS).parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(table(lines))
        return
    done = {(line["data"], line["seed"]) for line in lines}
    lab = Lab(root=args.root, progress=False)

    def read(data: str) -> tuple[ImageSet, np.ndarray]:
        task = Request.make({"shots": 0}, "zero-shot", data=data).task
        images = lab.draw(task).train
        return images, lab.train_cache(task).features(images)[0].float().numpy()

    for data, other in zip(args.data, [args.data[-1], *args.data], strict=False):
        seeds = [seed for seed in args.seeds if (data, seed) not in done]
        if not seeds:
            continue
        _, others = read(other)
        images, features = read(data)
        measured = measure(images.images)
        together = groups(images.looks(), images.groups)
        reasons = odd_reasons(measured)
        odd = {kind: round(fmean(kind in each for each in reasons), 4) for kind in KINDS}
        for seed in seeds:
            shares = {str(r): round(blurred(images, measured, r, seed), 4) for r in RADII}
            unlike = round(strangers(features, together, others, seed), 4)
            line = {"data": data, "seed": seed, "other": other, "images": len(images)}
            line |= {"as they are": odd, "blurred": shares, "strangers": unlike}
            append_lines(args.out, [line])
            print(data, seed, flush=True)


if __name__ == "__main__":
    main()
