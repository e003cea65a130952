"""RMAdapter+ piece by piece: one training, tested with some of its pieces or without the adapters.

    python research/scripts/plus.py dtd10 sign_digits --root DATA --out research/results/plus.jsonl
    python research/scripts/plus.py --out research/results/plus.jsonl --tables \\
        --pages docs/studies/plus.md research/results/plus.md --figure docs/studies/plus.svg

A line is a data set, number of shots and seed, with the accuracies of `PIECES` on the base and
novel classes. The adapters are trained once; the answers follow from their features and the
untouched ones. Finished lines are kept: repeat the command to resume. In the tables a data set
counts once, with the mean of its seeds, as in reconstruction_tables.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import reconstruction_tables
import torch
from forest import SERIES, forest, interval
from studies import Line, Lines, append_lines, make_parser, read_lines, show
from torch import Tensor

from rmadapter.data.fewshot import half
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.parts.features import unit
from rmadapter.methods.ridge import HEAD, ridge
from rmadapter.methods.rmadapter_plus import Both, RMAdapterPlus
from rmadapter.metrics import harmonic_mean
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine
from rmadapter.support.files import write_text
from rmadapter.support.machine import versions
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted

KEY = ("data", "backbone", "precision", "shots", "seed")
KEEP = 0.5  # the default until docs/studies/answer.md chose another
# Settings of the answers that differ from the whole; `adapters` False is the control without them,
# on the same shots.
PIECES: dict[str, dict[str, Any]] = {
    "zero-shot": {"adapters": False, "head": 0.0, "general": ()},
    "zero-shot, 8 templates": {"adapters": False, "head": 0.0},
    "adapters": {"head": 0.0, "keep": 1.0, "general": ()},
    "and regression": {"keep": 1.0, "general": ()},
    "and untouched": {"general": ()},
    "RMAdapter+": {},
    "without adapters": {"adapters": False},
    **{
        f"without adapters, regression {weight:g}": {"adapters": False, "head": weight}
        for weight in (1, 2, 1000)
    },
    "without regression": {"head": 0.0},
    **{f"regression {weight:g}": {"head": weight} for weight in (0.25, 1, 2)},
    **{f"penalty {value:g}": {"penalty": value} for value in (0.3, 3)},
    **{f"keep {share:g}": {"keep": share} for share in (0.0, 0.25, 0.75, 1.0)},
}
STUDY = Path(__file__).parents[2] / "research/results/reconstruction.jsonl"
CHOSEN_ON = (*reconstruction_tables.CHOOSE, "caltech101")
REPORTED = (
    "zero-shot", "zero-shot, 8 templates", "adapters", "and regression", "and untouched",
    "RMAdapter+", "without adapters", "without adapters, regression 2", "without regression",
    "RMAdapter",
)  # fmt: skip
OTHERS = ("zero-shot", "adapters", "without adapters, regression 2", "RMAdapter")
PAIRS = tuple(("RMAdapter+", other) for other in OTHERS)


@torch.no_grad()
def features(scorer: Both, images: ImageSet, cache: Cache, first: int) -> tuple[Tensor, Tensor]:
    """Return adapted and untouched features, [N, e], of unit length."""
    both = [(scorer.model.features("image", s)[0], s.features) for s in cache.stream(images, first)]
    adapted, untouched = (unit(torch.cat(list(parts))) for parts in zip(*both, strict=True))
    return adapted, untouched


def trial(lab: Lab, data: str, seed: int, shots: int, backbone: str) -> dict[str, Any]:
    """Train once, and return the accuracies of each of PIECES in %."""
    common = {"backbone": backbone, "seed": seed, "shots": shots, "classes": "base", "keep": KEEP}
    request = Request.make(common, "rmadapter-plus", data=data)
    method, task = request.method, request.task
    assert isinstance(method, RMAdapterPlus)
    outcome = run_task(task, method, lab, request.name)
    train = half(lab.draw(task).train, "base")
    fitted = outcome.fitted
    x = unit(lab.train_cache(task).features(train)[0])
    line: dict[str, Any] = {
        "seconds": outcome.record.seconds["train"],
        "split": outcome.record.split_digest,
    }
    for question, images, _ in lab.tests(task):
        whole = scorer_with(method, fitted, x, train.labels, {}, images.classes)
        f, g = features(whole, images, lab.test_cache(task), whole.model.first("image"))
        labels = torch.tensor(images.labels)
        for name, fields in PIECES.items():
            scorer = scorer_with(method, fitted, x, train.labels, fields, images.classes)
            adapted = f if fields.get("adapters", True) else g
            logits = adapted @ scorer.adapted.T + g @ scorer.untouched.T
            right = (logits.argmax(1).cpu() == labels).float().mean()
            line.setdefault(name, {})[question.name] = round(100 * float(right), 4)
    return line


def scorer_with(
    method: RMAdapterPlus, fitted: Fitted, x: Tensor, labels: Sequence[int],
    fields: Mapping[str, Any], names: Sequence[str],
) -> Both:  # fmt: skip
    """Return a scorer with the same adapters and other fields. x, labels: untouched unit features
    [N, e] and labels [N] of the shots."""
    values = {name: value for name, value in fields.items() if name != "adapters"}
    if not fields.get("adapters", True):
        values["adapter"] = replace(method.adapter, alpha=0.0)
    other = replace(method, **values)
    head = ridge(x, torch.tensor(labels, device=x.device), len(fitted.classes), other.penalty)
    tensors = {**fitted.tensors, HEAD: head}
    with torch.no_grad():
        scorer = other.restore(fitted.backbone, fitted.known, tensors).for_classes(names)
    assert isinstance(scorer, Both)
    return scorer


def read(path: Path, study: Path) -> list[dict[str, Any]]:
    """Return a line for each piece of each run, with its harmonic mean; and RMAdapter's lines from
    the study of its losses."""
    lines = []
    for run in read_lines(path):
        common = {name: value for name, value in run.items() if name not in PIECES}
        for name in PIECES:
            hm = harmonic_mean(run[name]["base"], run[name]["novel"])
            lines.append({**common, "variant": name, **run[name], "hm": hm})
    runs = {_run(line) for line in lines}
    for line in reconstruction_tables.read(study):
        if line["variant"] == "both" and _run(line) in runs:
            lines.append({key: line[key] for key in lines[0]} | {"variant": "RMAdapter"})
    return lines


def _run(line: Line) -> tuple[str, int, int, str]:
    return line["data"], line["shots"], line["seed"], line["precision"]


def drawn(lines: Lines) -> str:
    """Draw what RMAdapter+ changes on the data sets for reporting, as SVG."""
    rows = {}
    for one, other in PAIRS[1:]:
        for shots in (4, 16):
            some = [x for x in lines if x["data"] not in CHOSEN_ON and x["shots"] == shots]
            rows[f"{one} - {other},\n{shots} shots"] = {
                name: interval(reconstruction_tables.paired(some, one, other, name.lower()))
                for name in SERIES
            }
    return forest(rows, "plus", "Differences of RMAdapter+ from its controls, in points")


def tables(lines: Lines) -> dict[str, str]:
    """Make every table of docs/studies/plus.md and its records by its name."""
    tables = {}
    for title, choosing in (("choosing", True), ("reporting", False)):
        for shots in (4, 16):
            selected = [
                line
                for line in lines
                if (line["data"] in CHOSEN_ON) == choosing and line["shots"] == shots
            ]
            if not selected:
                continue
            variants = list(PIECES) if choosing else REPORTED
            table = reconstruction_tables.screened(selected, variants, "adapters")
            tables[f"{title}, {shots} shots"] = table
            if not choosing:
                table = reconstruction_tables.differences(selected, PAIRS)
                tables[f"differences, {shots} shots"] = table
    return tables


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--study", type=Path, default=STUDY, help="of reconstruction.py")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="that take the tables")
    parser.add_argument("--figure", type=Path, metavar="SVG")
    args = parser.parse_args()
    if args.tables:
        lines = read(args.out, args.study)
        show(tables(lines), *args.pages)
        if args.figure:
            write_text(args.figure, drawn(lines))
        return
    done = {tuple(line[key] for key in KEY) for line in read_lines(args.out)}
    lab = Lab(Machine(precision=args.precision), args.root, keep=True, progress=False)
    for data, shots, seed in itertools.product(args.data, args.shots, args.seeds):
        key = (data, args.backbone, args.precision, shots, seed)
        if key not in done:
            line = dict(zip(KEY, key, strict=True)) | trial(lab, data, seed, shots, args.backbone)
            append_lines(args.out, [line | {"versions": versions()}])
            print(data, shots, seed, line["RMAdapter+"], flush=True)


if __name__ == "__main__":
    main()
