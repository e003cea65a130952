"""The printed figures of the RMAdapter paper (AAAI-26, pp. 23594-23602), their contradictions, and
our figures beside them.

The CSV files in assets/printed hold the tables as they are printed; no figure is typed here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from statistics import fmean, harmonic_mean

from rmadapter import Record
from rmadapter.bench import (
    HM_OF_MEANS,
    Cell,
    Check,
    Column,
    Group,
    PrintedTables,
    TableRow,
    group_records,
)
from rmadapter.data import CATALOG

BACKBONES = ("ViT-B-16/openai", "ViT-B-16-quickgelu/openai")
OTHER_NAMES = {"zero-shot": "clip", "rmadapter-paper": "rmadapter"}
SHOTS = 16
SEEDS = (1, 2, 3)
TOLERANCE = PrintedTables.tolerance
ROUNDING = 0.015 + 1e-9  # points that recomputing from figures rounded to 0.01 may be off by
METRIC_NAMES = {"base": "base", "novel": "novel", "hm": "HM"}
TITLES = {  # of the table of each protocol
    "base-to-novel": "Table 1",
    "cross-dataset": "Table 2",
    "domain-generalization": "Table 3",
    "ablation-components": "Table 4",
    "ablation-sharing": "Table 5",
    "ablation-layers": "Table 6",
}
TRANSFER = ("cross-dataset", "domain-generalization")
ABLATIONS = {  # as the file names them -> protocol
    "components": "ablation-components",
    "sharing": "ablation-sharing",
    "reconstruction_layers": "ablation-layers",
}
FILES = {  # of tables -> protocol of all their rows
    "table1_base_to_novel": "base-to-novel",
    "table2_cross_dataset": "cross-dataset",
    "table3_domain_generalization": "domain-generalization",
    "tables4-6_ablations": "",
}
AVERAGE = "average"
# block and method of a row of Table 1 -> the name printed there
MISNAMED = {("ucf101", "mma"): "ProGrad"}
MISNAMED_BY = {(block, printed): method for (block, method), printed in MISNAMED.items()}
# A data set with another number of test images is another one under the same name.
TEST_IMAGES = {key: one.counts["test"] for key, one in CATALOG.items() if one.counts}

AS_PRINTED = ", as printed"
ROWS_NOTE = "Rows in italics are the paper's figures as they are printed, not measured here."
NO_FIGURES_NOTE = "The paper has no figures for this data set with these shots and test images."

Figures = dict[str, float]


@cache
def tables() -> dict[str, dict[str, dict[str, Figures]]]:
    """Read Tables 1 to 6: protocol -> block -> row as printed -> its figures.

    Blocks of Table 1 are "average" and the data sets. Tables 2 and 3 have the block "", with a
    figure for each data set and their average; the ablations have the block "average".
    """
    found: dict[str, dict[str, dict[str, Figures]]] = {protocol: {} for protocol in TITLES}
    for name, of_all in FILES.items():
        file = files("rmadapter_research") / "assets/printed" / f"{name}.csv"
        for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
            protocol = of_all or ABLATIONS[row.pop("ablation")]
            block = row.pop("dataset", "" if protocol in TRANSFER else AVERAGE)
            method = row.pop("method", "") or row.pop("variant")
            figures = {key: float(value) for key, value in row.items()}
            found[protocol].setdefault(block, {})[method] = figures
    return found


def datasets_in(protocol: str) -> list[str]:
    """Return the data sets of Table 1, 2 or 3, in its order: for transfer the source first."""
    names: Iterable[str] = tables()[protocol]
    if protocol in TRANSFER:
        names = next(iter(_rows(protocol).values()))
    return [name for name in names if name != AVERAGE]


def _rows(protocol: str, block: str = "") -> dict[str, Figures]:
    """Return the printed rows of a protocol and block; of transfer for any block."""
    return tables().get(protocol, {}).get("" if protocol in TRANSFER else block, {})


def printed_name(record: Record, rows: Sequence[str]) -> str | None:
    """Return the printed row about this record's method, or about its variant in an ablation; None
    if there is none.

    Table 4 says that it adds its parts to MMA; ours adds them to RMAdapter's adapters.
    """
    variant = record.variant.replace("RMAdapter's adapters +", "MMA +")
    method = OTHER_NAMES.get(record.method.name, record.method.name)
    name = _plain(variant if record.protocol.startswith("ablation") else method)
    return next((row for row in rows if name and _plain(row) == name), None)


def _plain(text: str) -> str:
    """Return letters, digits and plus signs in lower case, without what is in brackets."""
    return re.sub(r"[^a-z0-9+]", "", re.sub(r"\(.*?\)", "", text.lower()))


def dataset_name(dataset: str) -> str:
    """Return the key of a catalogue data set, given any of its names; any other name in lower case
    with underscores."""
    keys = (one.key for one in CATALOG.values() if dataset in (one.key, one.folder))
    return next(keys, dataset.lower().replace("-", "_"))


def belongs(record: Record) -> bool:
    """Return whether backbone, shots, draw and data set are the paper's, the latter judged by its
    name and test images."""
    task, zero_shot = record.task, record.method.name == "zero-shot"
    same_shots = task.draw == "balanced" and (task.shots == SHOTS or (zero_shot and not task.shots))
    same_source = record.protocol not in TRANSFER or dataset_name(task.data) == "imagenet"
    same_backbone = record.backbone.name in BACKBONES
    return same_backbone and same_shots and same_source and has_paper_images(record)


def has_paper_images(record: Record, metric: str = "") -> bool:
    """Return whether the data set is that of the same name in papers, judged by its number of test
    images; with "average" as the metric, whether all targets are."""
    images = {dataset_name(key): count for key, count in record.tested.items()}
    if metric == "average":
        targets = {key: count for key, count in images.items() if key != "all"}
        source, *needed = datasets_in(record.protocol)
        same_source = dataset_name(record.task.data) == source
        return same_source and targets == {key: TEST_IMAGES[key] for key in needed}
    expected = TEST_IMAGES.get(dataset_name(record.task.data))
    if expected is None:
        return False
    if record.protocol in TRANSFER or "all" in images:
        return images.get("all") == expected
    total = sum(images.values())  # a method that names no new classes is tested on one half alone
    return total == expected if "novel" in images else 0 < total < expected


def printed(record: Record, block: str) -> tuple[str, Figures] | None:
    """Return (row as printed, its figures) of a block, a data set or "average", that belong beside
    this record; None if there is none."""
    if not belongs(record):
        return None
    rows = _rows(record.protocol, block)
    method = record.method.name
    correct = [row for row in rows if MISNAMED_BY.get((block, row), method) == method]
    name = printed_name(record, correct) or MISNAMED.get((block, method))
    if name not in rows:
        return None
    figures = rows[name]
    if record.protocol in TRANSFER:
        figures = _on_same_images(figures, record)
    return name, figures


def _on_same_images(figures: Figures, record: Record) -> Figures:
    """Leave out targets that have other images than the paper's, and then the average, too."""
    counts = {dataset_name(key): count for key, count in record.tested.items()}
    same = {
        key: value
        for key, value in figures.items()
        if key in {"imagenet", "average"} or counts.get(key) == TEST_IMAGES[key]
    }
    if len(same) == len(figures) and counts.keys() <= {*figures, "imagenet", "all"}:
        return same
    return {key: value for key, value in same.items() if key != "average"}


def footnotes(protocol: str, block: str = "average", shown: Sequence[str] = ()) -> list[str]:
    """Describe where printed figures contradict each other: computed, not typed.

    Args:
        protocol: Protocol of the table.
        block: "average", or a data set of Table 1.
        shown: Rows of interest; all when empty.
    """
    notes = []
    for name, row in _rows(protocol, block).items():
        off = [
            f"{METRIC_NAMES.get(figure, figure)} is printed as {row[figure]:.2f}, but {how} is "
            f"{value:.2f}"
            for figure, how, value in _implied(protocol, block, name, row)
            if abs(row[figure] - value) > ROUNDING
        ]
        method = MISNAMED_BY.get((block, name))
        off += [f"this is the row of {method}"] if method else []
        if off and (name in shown or not shown):
            notes.append(f"In the paper, {name}: {'; '.join(off)}.")
    return notes


def _implied(
    protocol: str, block: str, name: str, row: Figures
) -> Iterator[tuple[str, str, float]]:
    """Yield (figure, what it should be, that value) according to the other printed figures."""
    if protocol in TRANSFER:
        targets = [value for key, value in row.items() if key not in {"imagenet", "average"}]
        yield "average", f"the mean of its {len(targets)} printed targets", fmean(targets)
        return
    hm = harmonic_mean([row["base"], row["novel"]])
    yield "hm", "that of its printed base and novel figures", hm
    names = datasets_in("base-to-novel")
    sets = [rows[name] for rows in (_rows(protocol, key) for key in names) if name in rows]
    if (protocol, block) == ("base-to-novel", AVERAGE) and len(sets) == len(names):
        for half in ("base", "novel"):
            mean = fmean(figures[half] for figures in sets)
            yield half, f"the mean of its {len(sets)} printed data sets", mean


@dataclass(frozen=True)
class Claim:
    """A printed figure and the records that measure it.

    Attributes:
        table: Table of the paper.
        row: Row, as printed.
        figure: What it is.
        value: The printed figure.
        datasets: The data set that it is for, or those that it averages over.
        records: Records of the same method.
    """

    table: str
    row: str
    figure: str
    value: float
    datasets: list[str]
    records: list[Record]

    def check(self, tolerance: float, seeds: Sequence[int]) -> Check:
        """Compare the figure with the mean of the records."""
        cells = {(record.task.data, record.task.seed) for record in self.records}
        run = [s for s in seeds if all((dataset, s) in cells for dataset in self.datasets)]
        metric = "all" if self.figure == "imagenet" else self.figure
        metric = HM_OF_MEANS if metric == "hm" and len(self.datasets) > 1 else metric
        ours = Column("", metric).cell(self.records, self.datasets, run).value
        result: Check = {
            "table": self.table,
            "row": self.row,
            "figure": METRIC_NAMES.get(self.figure, self.figure),
            "paper": self.value,
            "ours": None,
            "difference": None,
            "within": None,
            "status": "not measured",
        }
        if not isinstance(ours, float):
            return result
        difference, whole = ours - self.value, len(run) == len(seeds)
        return {
            **result,
            "ours": ours,
            "difference": difference,
            "within": abs(difference) <= tolerance if whole else None,
            "status": "measured" if whole else f"{len(run)} of {len(seeds)} seeds",
        }


def check(
    records: Sequence[Record], tolerance: float = TOLERANCE, seeds: Sequence[int] = SEEDS
) -> list[Check]:
    """Compare each printed figure with the mean of ours over `seeds`, in points.

    An average is measured once every data set of its table is. Our average HM is that of the mean
    base and novel figures.
    """
    groups = group_records([_renamed(record) for record in records if belongs(record)])
    return [claim.check(tolerance, seeds) for claim in _claims(groups)]


def _renamed(record: Record) -> Record:
    """Return the record with its data sets named as in the catalogue."""
    scores = [
        s.model_copy(update={"name": dataset_name(s.name)}) if s.data else s for s in record.scores
    ]
    task = replace(record.task, data=dataset_name(record.task.data))
    return record.model_copy(update={"task": task, "scores": tuple(scores)})


def _claims(groups: Sequence[Group]) -> Iterator[Claim]:
    averaged = {"": ["imagenet"], AVERAGE: datasets_in("base-to-novel")}
    printed_rows = [
        (protocol, block, rows)
        for protocol, blocks in tables().items()
        for block, rows in blocks.items()
    ]
    for protocol, block, rows in printed_rows:
        of_protocol = [group for group in groups if group.protocol == protocol]
        table = TITLES[protocol]
        if protocol == "base-to-novel":
            table += f", {block}"
        for name, figures in rows.items():
            for row, records in _our_rows(of_protocol, block, name):
                for figure, value in figures.items():
                    measuring = [r for r in records if figure in (printed(r, block) or ("", {}))[1]]
                    yield Claim(table, row, figure, value, averaged.get(block, [block]), measuring)


def _our_rows(groups: Sequence[Group], block: str, name: str) -> list[tuple[str, list[Record]]]:
    """Return (row, records) for each of our methods that a printed row is about, by group; without
    records if none was run."""
    rows: dict[str, list[Record]] = {}
    for group in groups:
        for record in group.records:
            row = printed(record, block)
            if row and row[0] == name:
                method = record.method.name
                who = method if record.protocol.startswith("ablation") else record.variant or method
                rows.setdefault(f"{name} ({who}, {group.slug})", []).append(record)
    return list(rows.items()) if len(rows) > 1 else [(name, list(*rows.values()))]


class RMAdapterTables(PrintedTables):
    """The paper's tables, for `rmadapter report`."""

    def is_average(self, group: Group, datasets: Sequence[str]) -> bool:
        """Return whether an average over these data sets is one of the paper's."""
        same_sets = {dataset_name(one) for one in datasets} == {*datasets_in("base-to-novel")}
        return same_sets and all(map(belongs, group.records))

    def rows(self, record: Record, block: str, columns: Sequence[Column]) -> list[TableRow]:
        """Return the row about the record's method, if there is one."""
        found = printed(record, dataset_name(block))
        if found is None:
            return []
        name, figures = found
        cells = (Cell(figures.get(dataset_name(column.printed))) for column in columns)
        return [TableRow(f"{name}{AS_PRINTED}", tuple(cells), "paper")]

    def notes(self, group: Group, block: str, rows: Sequence[TableRow]) -> list[str]:
        """Write the footnotes of a table with these rows."""
        shown = [row.label.removesuffix(AS_PRINTED) for row in rows if row.source == "paper"]
        if shown:
            return [ROWS_NOTE, *footnotes(group.protocol, dataset_name(block), shown)]
        in_paper = group.backbone.name in BACKBONES and group.protocol in TITLES
        return [NO_FIGURES_NOTE] if in_paper and block else []

    def check(self, records: Sequence[Record], tolerance: float) -> list[Check]:
        """Compare each printed figure with the mean of ours, as the function `check`."""
        return check(records, tolerance)


TABLES = RMAdapterTables()
