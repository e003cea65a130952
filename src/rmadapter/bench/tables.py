"""Runs of one group as tables: means with intervals over seeds, paired differences, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from rmadapter.bench import paper
from rmadapter.bench.records import TRANSFER, Group, Run, complete, entries
from rmadapter.bench.render import Cell, Row, Table, mark_best
from rmadapter.bench.statistics import RESAMPLES, Measure, hm_of_means, metric, paired, summary

Rows = Mapping[str, Sequence[Run]]
PRINTED = ", as printed"
HALVES = ("base", "novel", "hm")
MEAN_NOTE = "Mean ± half width of the 95 % interval over seeds (Student's t); HM: harmonic mean of base and novel."
PAIR_NOTE = (
    "Pairs are runs of the same data set, shots, seed and images. The interval is a percentile bootstrap over pairs "
    f"({RESAMPLES:,} resamples, seed 0), p that of an exact two-sided sign test without ties. Pairs of one data "
    "set are not independent of each other, so that both are too sure about data sets that were not tested."
)
COST_NOTE = (
    "Medians over the runs. Memory is the peak resident memory of the process, the backbone included. Frozen "
    "activations that runs share count in the time of the run that came first."
)


def reference(rows: Rows) -> str | None:
    """The row that the others are compared with: RMAdapter as it is, else the first."""
    full = [label for label in rows if label == "RMAdapter" or label.endswith("(RMAdapter)")]
    own = [label for label, runs in rows.items() if runs[0].method == "rmadapter" and not runs[0].variant]
    return next(iter([*own, *full, *rows]), None)


def make_tables(group: Group) -> list[Table]:
    """Every table of a group: the average first, then one per data set (or source), paired differences, cost."""
    if group.protocol == "few-shot":
        return [*_few_shot(group), *_pairs(group), _cost(group)]
    if group.protocol in TRANSFER:
        return [*_transfer(group), *_pairs(group), _cost(group)]
    sets = [_halves(group, dataset) for dataset in group.datasets]
    return [*_average(group), *sets, *_pairs(group), _cost(group)]


def facts(group: Group, runs: Sequence[Run]) -> str:
    """Seeds, shots, backbone, images tested and time: what stands under every table."""
    seeds = sorted({run.seed for run in runs})
    per_set: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        for name, count in run.tested.items():
            per_set.setdefault((run.dataset, name), set()).add(count)
    images: dict[str, list[set[int]]] = {}
    for (_, name), counts in per_set.items():
        images.setdefault(name, []).append(counts)
    told = ", ".join(f"{name} {sum(map(max, counts)):,}" for name, counts in images.items())
    shots = sorted({run.shots for run in runs})
    total = sum(run.seconds.get("total", 0) for run in runs)
    parts = [
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'} ({', '.join(map(str, seeds))})",
        f"{', '.join(map(str, shots))} shot{'' if shots == [1] else 's'}",
        f"{group.backbone.name} ({group.backbone.digest[:8]})",
        *([f"images tested: {told}"] if told else []),
        f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {duration(total)}",
    ]
    return "; ".join(parts) + "."


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def machines(runs: Sequence[Run]) -> list[str]:
    """The machines that runs were made on, as text."""
    return sorted({", ".join(f"{k} {v}" for k, v in run.machine.items()) for run in runs if run.machine})


def first_column(group: Group) -> str:
    return group.axis or ("variant" if group.protocol.startswith("ablation") else "method")


def _note(runs: Sequence[Run], seeds: Sequence[int]) -> str:
    have = len({run.seed for run in runs})
    return "" if have == len(seeds) else f"{have} of {len(seeds)} seeds" if have else "not run"


def _printed(runs: Sequence[Run], block: str, columns: Sequence[str]) -> list[Row]:
    """The paper's row for these runs, if it has one."""
    found = paper.printed(runs[0], block) if runs else None
    return [Row(f"{found[0]}{PRINTED}", tuple(Cell(found[1].get(c)) for c in columns), True)] if found else []


def _paper_notes(group: Group, rows: Sequence[Row], block: str) -> tuple[str, ...]:
    if shown := [row.label.removesuffix(PRINTED) for row in rows if row.paper]:
        return tuple(paper.footnotes(group.protocol, block, shown))
    protocols = (*paper.TRANSFER, *paper.ABLATIONS, "base-to-novel")
    if group.backbone.name in paper.BACKBONES and group.protocol in protocols:
        return ("The paper has no figures for this data set with these shots and test images.",)
    return ()


def _halves(group: Group, dataset: str) -> Table:
    lines: list[Row] = []
    here = [run for run in group.runs if run.dataset == dataset]
    for label, all_runs in entries(group.runs).items():
        runs = [run for run in all_runs if run.dataset == dataset]
        own = sorted({run.seed for run in runs})
        cells = tuple(summary(runs, metric(name), [dataset], own) for name in HALVES)
        printed = _printed(runs, paper.dataset_name(dataset), HALVES)
        lines += [Row(label, cells, note=_note(runs, group.seeds)), *printed]
    notes = (MEAN_NOTE, *_paper_notes(group, lines, paper.dataset_name(dataset)))
    columns = (first_column(group), "base", "novel", "HM")
    name = f"{group.slug}-{paper.dataset_name(dataset).replace('/', '-')}"
    return Table(name, dataset, columns, mark_best(lines, (1, 1, 1)), facts(group, here), notes)


def _average(group: Group) -> list[Table]:
    """The average over the data sets that every row has; of one data set there is none."""
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    if len(group.datasets) < 2:
        return []
    of_paper = {paper.dataset_name(d) for d in datasets} == set(paper.halves()) - {"average"}
    lines: list[Row] = []
    for label, runs in rows.items():
        halves = [summary(runs, metric(half), datasets, seeds) for half in HALVES]
        cells = (*halves[:2], hm_of_means(runs, datasets, seeds), halves[2])
        printed = _printed(runs, "average", HALVES) if of_paper and all(map(paper.belongs, runs)) else []
        lines += [Row(label, cells), *(Row(p.label, (*p.cells, Cell()), True) for p in printed)]
    used = [run for run in group.runs if run.dataset in datasets and run.seed in seeds]
    notes = (MEAN_NOTE, *left_out(group, datasets, seeds), *_paper_notes(group, lines, "average"))
    columns = (first_column(group), "base", "novel", "HM of the means", "mean of the HMs")
    title = average_title(datasets, seeds)
    return [Table(f"{group.slug}-average", title, columns, mark_best(lines, (1,) * 4), facts(group, used), notes)]


def average_title(datasets: Sequence[str], seeds: Sequence[int]) -> str:
    if not seeds:
        return "No average: no data set and seed is there for every row"
    return f"Average over {len(datasets)} data set{'' if len(datasets) == 1 else 's'}"


def left_out(group: Group, datasets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """What an average does not contain, since not every row has it."""
    sets = [dataset for dataset in group.datasets if dataset not in datasets]
    missing = [str(seed) for seed in group.seeds if seed not in seeds] if datasets else []
    kinds = (("data set", sets), ("seed", missing))
    told = [f"{what}{'' if len(names) == 1 else 's'} {', '.join(names)}" for what, names in kinds if names]
    return [f"Incomplete: the average leaves out {' and '.join(told)}, which not every row has."] if told else []


def common_targets(runs: Sequence[Run]) -> list[str]:
    """Targets that all of these runs have, sorted."""
    each = [set(targets) for run in runs if isinstance(targets := run.metrics.get("targets"), dict)]
    return sorted(set.intersection(*each)) if each else []


def target_average(targets: Sequence[str]) -> Measure:
    def measure(run: Run) -> float | None:
        values = [run.metric(f"target:{name}") for name in targets]
        return None if None in values or not values else fmean(v for v in values if v is not None)

    return measure


def _transfer(group: Group) -> list[Table]:
    tables = []
    for source in group.datasets:
        here = [run for run in group.runs if run.dataset == source]
        shared = common_targets(here)
        targets = sorted({name for run in here if isinstance(t := run.metrics.get("targets"), dict) for name in t})
        measures = [metric("source"), *(metric(f"target:{name}") for name in targets), target_average(shared)]
        lines: list[Row] = []
        for label, runs in entries(here).items():
            own = sorted({run.seed for run in runs})
            cells = tuple(summary(runs, measure, [source], own) for measure in measures)
            keys = ("imagenet", *map(paper.dataset_name, targets), "average")
            lines += [Row(label, cells, note=_note(runs, group.seeds)), *_printed(runs, "", keys)]
        partial = [] if shared == targets else [f"The average is over the targets of all rows: {', '.join(shared)}."]
        notes = (MEAN_NOTE.split(";")[0] + ".", *partial, *_paper_notes(group, lines, ""))
        columns = (first_column(group), f"{source} (source)", *targets, "average of the targets")
        name = f"{group.slug}-from-{source.replace('/', '-')}"
        best = mark_best(lines, (1,) * len(measures))
        tables.append(Table(name, f"Trained on {source}", columns, best, facts(group, here), notes))
    return tables


def by_shots(group: Group) -> dict[tuple[str, int], list[Run]]:
    """Runs of few-shot by method and shots."""
    cells: dict[tuple[str, int], list[Run]] = {}
    for label, runs in entries(group.runs).items():
        for run in sorted(runs, key=lambda run: run.shots):
            cells.setdefault((label, run.shots), []).append(run)
    return cells


def _few_shot(group: Group) -> list[Table]:
    cells = by_shots(group)
    labels = list(dict.fromkeys(label for label, _ in cells))
    shots = sorted({k for _, k in cells})
    columns = (first_column(group), *(f"{k} shot{'' if k == 1 else 's'}" for k in shots))
    note = MEAN_NOTE.split(";")[0] + ", of the accuracy over all classes."

    def table(name: str, title: str, datasets: list[str], seeds: list[int] | None, notes: tuple[str, ...]) -> Table:
        lines = []
        for label in labels:
            have = {k: [r for r in cells.get((label, k), []) if r.dataset in datasets] for k in shots}
            used = {k: sorted({r.seed for r in runs}) if seeds is None else seeds for k, runs in have.items()}
            found = tuple(summary(have[k], metric("accuracy"), datasets, used[k]) for k in shots)
            short = [k for k in shots if seeds is None and len(used[k]) < len(group.seeds)]
            missing = f"fewer than {len(group.seeds)} seeds at {', '.join(map(str, short))} shots" if short else ""
            lines.append(Row(label, found, note=missing))
        runs = [r for r in group.runs if r.dataset in datasets and (seeds is None or r.seed in seeds)]
        return Table(name, title, columns, mark_best(lines, (1,) * len(shots)), facts(group, runs), notes)

    sets = [table(f"{group.slug}-{d.replace('/', '-')}", d, [d], None, (note,)) for d in group.datasets]
    datasets, seeds = complete(cells)
    if len(group.datasets) < 2:
        return sets
    notes = (note, *left_out(group, datasets, seeds))
    return [table(f"{group.slug}-average", average_title(datasets, seeds), datasets, seeds, notes), *sets]


def measures_of(group: Group) -> dict[str, tuple[Measure, Sequence[Run]]]:
    """What is compared in pairs: name -> (measure, the runs that have it)."""
    if group.protocol == "few-shot":
        shots = sorted({run.shots for run in group.runs})
        return {f"{k} shots": (metric("accuracy"), [r for r in group.runs if r.shots == k]) for k in shots}
    if group.protocol in TRANSFER:
        # Each source has its own targets, so that an average is taken within it.
        shared = {s: target_average(common_targets([r for r in group.runs if r.dataset == s])) for s in group.datasets}
        return {"source": (metric("source"), group.runs), "targets": (lambda r: shared[r.dataset](r), group.runs)}
    return {name: (metric(key), group.runs) for key, name in paper.NAMES.items()}


def _pairs(group: Group) -> list[Table]:
    rows = entries(group.runs)
    first = reference(rows)
    if first is None or len(rows) < 2 or group.protocol == "sensitivity":
        return []
    lines = []
    for label in (label for label in rows if label != first):
        for name, (measure, runs) in measures_of(group).items():
            mine, other = ([r for r in rows[side] if r in runs] for side in (first, label))
            if (found := paired(mine, other, measure)) is not None:
                p = None if found.p is None else f"{found.p:.3g}"
                values = (found.difference, found.low, found.high, found.pairs, found.ahead, found.behind, p)
                lines.append(Row(label, (Cell(name), *map(Cell, values))))
    columns = ("compared with", "figure", "difference", "95 % from", "to", "pairs", "ahead", "behind", "p")
    title = f"{first} minus the others, in points"
    return [Table(f"{group.slug}-pairs", title, columns, tuple(lines), facts(group, group.runs), (PAIR_NOTE,))]


def _cost(group: Group) -> Table:
    most = max(run.shots for run in group.runs)
    used = [run for run in group.runs if group.protocol != "few-shot" or run.shots == most]
    on_gpu = any(run.peak_gpu_mb is not None for run in used)
    lines = []
    for label, runs in entries(used).items():
        times = [[r.seconds[name] for r in runs if name in r.seconds] for name in ("train", "evaluate", "total")]
        steps = [r.step_seconds for r in runs if r.step_seconds is not None]
        memory = [r.peak_mb for r in runs if r.peak_mb is not None]
        gpu = [r.peak_gpu_mb for r in runs if r.peak_gpu_mb is not None]
        numbers = sorted({r.parameters for r in runs if r.parameters is not None})
        trained = f"{numbers[0]:,} to {numbers[-1]:,}" if len(numbers) > 1 else numbers[0] if numbers else None
        figures = [memory, *([gpu] if on_gpu else []), times[0], steps, times[1], times[2]]
        medians = (median(v) if v else None for v in figures)
        lines.append(Row(label, (Cell(trained), *map(Cell, medians), Cell(len(runs)))))
    heads = ["trainable parameters", "peak memory, MB", *(["peak GPU memory, MB"] if on_gpu else [])]
    heads += ["training, s", "one step, s", "evaluation, s", "all, s", "runs"]
    where = machines(used)
    mixed = ("Measured on different machines, so that times cannot be compared: ",) if len(where) > 1 else ("On ",)
    notes = (COST_NOTE, *(f"{mixed[0]}{'; '.join(where)}." for _ in where[:1]))
    return Table(f"{group.slug}-cost", "Cost", (first_column(group), *heads), tuple(lines), facts(group, used), notes)
