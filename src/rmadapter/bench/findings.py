"""What the runs of a group say, in sentences that are computed: pleasant or not."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rmadapter.bench.records import SHARED, TRANSFER, Group, Run, complete, entries
from rmadapter.bench.render import minus
from rmadapter.bench.statistics import Measure, Paired, hm_of_means, metric, paired, summary
from rmadapter.bench.tables import by_shots, measures_of, reference

LEVEL = 0.05  # of the sign test
# Settings that differ between runs by their nature, or without changing what is computed.
OWN = {"seed", "shots", "classes", "backbone", "dataset", "asked", "targets", "cache_memory", "device", "workers"}
OWN |= {"forward", "compile", *SHARED}


def findings(group: Group) -> list[str]:
    """Sentences about one group, the comparison that the paper is about first, warnings last."""
    if group.protocol == "sensitivity":
        said = list(_sensitivity(group))
    elif group.protocol.startswith("ablation"):
        said = list(_ablation(group))
    else:
        said = [*_against(group, "rmadapter", "mma"), *_against(group, "rmadapter-paper", "mma")]
        said += _against_zero_shot(group)
        said += list(_best(group)) if group.protocol == "base-to-novel" else []
    # A finished run has a reason where it has no answer, as for classes that it cannot name.
    reasons = {run.label: run.reason for run in group.runs if run.reason}
    without = [f"{label} has no figures on novel classes: {reason}." for label, reason in reasons.items()]
    return [*said, *without, *_incomplete(group), *_unlike(group)]


def _of(group: Group, method: str) -> list[Run]:
    return [run for run in group.runs if run.method == method and not run.variant]


def _against(group: Group, method: str, other: str) -> Iterator[str]:
    """One method against another, in each figure that counts for the protocol."""
    mine, theirs = _of(group, method), _of(group, other)
    if not mine or not theirs:
        return
    a, b = mine[0].label, theirs[0].label
    counted = {n: m for n, m in measures_of(group).items() if n not in {"base", "novel", "source"}}
    for name, (measure, runs) in counted.items():
        one, two = ([r for r in some if r in runs] for some in (mine, theirs))
        if (found := paired(one, two, measure)) is not None:
            yield f"{_verdict(a, b, _where(name), found)}{_behind_on(one, two, measure)}"


def _where(name: str) -> str:
    return {"HM": "in HM", "targets": "on the targets", "1 shots": "at 1 shot"}.get(name, f"at {name}")


def _verdict(a: str, b: str, where: str, found: Paired) -> str:
    tail = f"({_interval(found)}{_pairs(found)}, ahead in {found.ahead}, behind in "
    tail += f"{found.behind}{'' if found.p is None else f', sign test p = {found.p:.2g}'})"
    size = f"{minus(f'{abs(found.difference):.2f}')} points"
    if found.difference <= 0:
        how = f"is {size} behind" if found.difference < 0 else "is exactly as good"
        return f"{a} does not beat {b} {where}: it {how} {tail}."
    doubts = ["one pair proves nothing"] if found.low is None else ["the interval includes 0"] * (found.low <= 0)
    if doubts or (found.p is not None and found.p > LEVEL):
        why = next(iter(doubts), "the sign test does not confirm it")
        return f"{a} is {size} ahead of {b} {where} {tail}, but {why}: it is not shown to beat it."
    return f"{a} beats {b} {where} by {size} {tail}."


def _pairs(found: Paired) -> str:
    return f"{found.pairs} pair{'' if found.pairs == 1 else 's'}"


def _interval(found: Paired) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"95 % interval {minus(f'{found.low:.2f}')} to {minus(f'{found.high:.2f}')}, "


def _behind_on(a: Sequence[Run], b: Sequence[Run], measure: Measure) -> str:
    """The data sets on which a's mean lies below b's, where there are several."""
    datasets = sorted({run.dataset for run in a} & {run.dataset for run in b})
    each = {d: paired([r for r in a if r.dataset == d], [r for r in b if r.dataset == d], measure) for d in datasets}
    behind = [d for d, found in each.items() if found is not None and found.difference < 0]
    return f" It is behind on {', '.join(behind)}." if behind and len(datasets) > 1 else ""


def _against_zero_shot(group: Group) -> Iterator[str]:
    """Every method against the untouched model, where forgetting shows: new classes, or other data sets."""
    untouched = _of(group, "zero-shot")
    key, where = ("novel", "on novel classes") if group.protocol == "base-to-novel" else ("targets", "on the targets")
    if not untouched or (key == "targets" and group.protocol not in TRANSFER):
        return
    measure, _ = measures_of(group)[key]
    for label, runs in entries(group.runs).items():
        if runs[0].method == "zero-shot" or (found := paired(runs, untouched, measure)) is None:
            continue
        size = minus(f"{abs(found.difference):.2f}")
        side = "below" if found.difference < 0 else "above" if found.difference > 0 else ""
        position = f"lies {size} points {side}" if side else "equals"
        text = f"{label} {position} zero-shot {where} ({_interval(found)}{_pairs(found)})."
        yield f"{text}{_behind_on(runs, untouched, measure)}"


def _best(group: Group) -> Iterator[str]:
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    values = {label: hm_of_means(runs, datasets, seeds).value for label, runs in rows.items()}
    known = {label: value for label, value in values.items() if isinstance(value, float)}
    if len(known) > 1:
        best = max(known, key=lambda label: known[label])
        rest = sorted((label for label in known if label != best), key=lambda label: -known[label])
        others = [f"{label} {known[label]:.2f}" for label in rest]
        where = datasets[0] if len(datasets) == 1 else f"the average over {len(datasets)} data sets"
        yield f"The best HM on {where} is that of {best}, {known[best]:.2f}; then {', '.join(others)}."


def _ablation(group: Group) -> Iterator[str]:
    rows = entries(group.runs)
    full = reference(rows)
    for label in rows:
        if full is not None and label != full and (found := paired(rows[full], rows[label], metric("hm"))) is not None:
            yield _verdict(full, label, "in HM", found)


def _sensitivity(group: Group) -> Iterator[str]:
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    cells = {label: summary(runs, metric("hm"), datasets, seeds) for label, runs in rows.items()}
    known = {label: cell for label, cell in cells.items() if isinstance(cell.value, float)}
    if len(known) > 1:
        ordered = sorted(known, key=lambda label: -known[label].number)
        best, worst = ordered[0], ordered[-1]
        spread = known[best].number - known[worst].number
        yield (
            f"{group.axis}: the best mean HM is {known[best].text} ({best}), the worst {known[worst].text} ({worst}); "
            f"{spread:.2f} points lie between them."
        )


def _incomplete(group: Group) -> Iterator[str]:
    """Cells of the comparison that nobody ran."""
    rows: dict[Any, list[Run]] = {}
    if group.protocol == "few-shot":
        rows.update({f"{label} ({k} shots)": runs for (label, k), runs in by_shots(group).items()})
    else:
        rows.update(entries(group.runs))
    wanted = [(dataset, seed) for dataset in group.datasets for seed in group.seeds]
    lacking: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label, runs in rows.items():
        have = {(run.dataset, run.seed) for run in runs}
        missing = tuple(f"{dataset} seed {seed}" for dataset, seed in wanted if (dataset, seed) not in have)
        lacking[missing].append(label)
    for missing, labels in lacking.items():
        if missing:
            some = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
            yield f"Incomplete: {some} of {', '.join(labels)}."


def _unlike(group: Group) -> Iterator[str]:
    """Runs that a reader would take for comparable and that are not quite."""
    digests: dict[tuple[str, int, int], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    settings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in group.runs:
        digests[run.dataset, run.shots, run.seed][run.split_digest].add(run.label)
        nested = {k: v for part in run.config.values() if isinstance(part, dict) for k, v in part.items()}
        flat = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
        for name, value in {**nested, **flat}.items():
            if name not in OWN and name != group.axis:
                settings[run.label][name].add(json.dumps(value, sort_keys=True))
    for (dataset, shots, seed), by_digest in digests.items():
        if len(by_digest) > 1:
            sides = " and ".join(", ".join(sorted(labels)) for labels in by_digest.values())
            where = f"{dataset}, {shots} shots, seed {seed}"
            yield f"Not the same images: {sides} differ in the split of {where}, so that they are not paired."
    for label, fields in settings.items():
        varied = [f"{name} ({', '.join(sorted(values))})" for name, values in fields.items() if len(values) > 1]
        if varied:
            yield f"The settings of {label} differ between its runs: {'; '.join(varied)}."
