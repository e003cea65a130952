"""Ask what limits `rmadapter suspects`: the features, the method that judges, or the wrong labels
that it learns from. The table is in docs/studies/suspects.md.

    python research/scripts/suspect_judges.py --root DATA \\
        --out research/results/suspect_judges.jsonl
    python research/scripts/suspect_judges.py --out research/results/suspect_judges.jsonl \\
        --tables --page docs/studies/suspects.md

SHARE per cent of the labels of 32 images per class are flipped at random, with one seed, and the
logit margin of models that had not seen an image ranks it. A line is one set and judge. A judge
that learns from true labels is the limit of what its features and its method can do. Finished lines
are kept: repeat the command to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from studies import (
    CHOOSE,
    REPORT,
    TESTED,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)
from suspects import METHOD, PROBE, Study, flipped, precisions

from rmadapter import metrics
from rmadapter.runs.lab import Lab
from rmadapter.runs.labels import logit_margin
from rmadapter.runs.request import Request
from rmadapter.support.machine import versions

SHOTS, SHARE, SEED = 32, 10, 1
# of suspects.py, but for two with many classes
SETS = tuple(data for data in (*CHOOSE, *REPORT) if data not in ("caltech101", "grocery"))


class Judge(NamedTuple):
    """What answers about the labels.

    Attributes:
        backbone: Its backbone.
        method: Its method.
        settings: Those of the method that are not the default.
        true: Whether it learns from the labels before they were flipped.
    """

    backbone: str
    method: str
    settings: Mapping[str, object] = {}
    true: bool = False


JUDGES: Mapping[str, Judge] = {
    "probe on `pocket`": Judge("pocket", METHOD, PROBE),
    "probe on `pocket-3`": Judge("pocket-3", METHOD, PROBE),
    "RMAdapter+ on `pocket`": Judge("pocket", "rmadapter-plus"),
    "probe on `pocket`, true labels": Judge("pocket", METHOD, PROBE, true=True),
    "probe on `pocket-3`, true labels": Judge("pocket-3", METHOD, PROBE, true=True),
    "RMAdapter+ on `pocket`, true labels": Judge("pocket", "rmadapter-plus", true=True),
}
FIRST = next(iter(JUDGES))  # with which the others are compared


def measure(study: Study, judge: Judge) -> dict[str, Any]:
    """Rank the flipped labels of a set; accuracy is that of the answers, against true labels."""
    true = np.array(study.images.labels)
    labels = flipped(true, None, SHARE, len(study.images.classes), SEED)
    method = Request.make(judge.settings, judge.method, data=study.data).method
    rows, table = study.answers(true if judge.true else labels, method, judge.method, SEED)
    wrong = (labels != true)[rows]
    ap, at_k = precisions(logit_margin(table, labels[rows]), wrong)
    return {
        "images": len(rows),
        "flips": int(wrong.sum()),
        "average_precision": ap,
        "precision_at_k": at_k,
        "accuracy": round(metrics.accuracy(table, true[rows]), 2),
        "backbone": study.lab.backbone(study.task.backbone).digest,
        "versions": versions(),
    }


# Tables


def by_set(lines: Lines, judge: str, what: str) -> dict[str, float]:
    """Return a figure of a judge by data set."""
    return {line["data"]: line[what] for line in lines if line["judge"] == judge}


def tables(lines: Lines) -> dict[str, str]:
    """Return the tables by their names on the page: means over the sets, precisions by set, and
    each judge against the first, tested together."""
    means, rows, found = [], [], {}
    present = [data for data in SETS if data in by_set(lines, FIRST, "accuracy")]
    first = by_set(lines, FIRST, "average_precision")
    for name in JUDGES:
        own = by_set(lines, name, "average_precision")
        if own.keys() < {*present}:
            continue
        accuracy = fmean(by_set(lines, name, "accuracy").values())
        means.append([name, f"{accuracy:.1f}", f"{fmean(own.values()):.2f}"])
        rows.append([name, *(f"{own[data]:.2f}" for data in present)])
        if name != FIRST:
            found[name] = [[100 * (own[data] - first[data])] for data in present]
    tested = [[name, *cells] for name, cells in with_verdicts(found, 1).items()]
    columns = ["right in %", "average precision"]
    return {
        "judges": markdown([f"mean of {len(present)} sets", *columns], means),
        "judges by set": markdown(["average precision", *present], rows),
        "judges, compared": markdown([f"against {FIRST}, in hundredths", *TESTED], tested),
    }


def main() -> None:
    parser = make_parser(__doc__, SETS, seeds=False)
    parser.add_argument("--judges", nargs="+", default=[*JUDGES], choices=JUDGES, metavar="NAME")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {(line["data"], line["judge"]) for line in lines}
    for name in args.judges:
        lab = Lab(root=args.root, progress=False)
        for data in args.data:
            if (data, name) not in done:
                judge = JUDGES[name]
                found = measure(Study(lab, data, SHOTS, judge.backbone), judge)
                key = {"data": data, "judge": name, "shots": SHOTS, "share": SHARE, "seed": SEED}
                append_lines(args.out, [{**key, **found}])
                print(data, name, found["accuracy"], found["average_precision"], flush=True)


if __name__ == "__main__":
    main()
