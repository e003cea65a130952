"""Sum up records in a title and three sentences that say no more than the test over data sets
shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rmadapter.bench.report.groups import TRANSFER, Group, alike, by_size, entries
from rmadapter.bench.report.stats import ENOUGH, LEVEL, Paired
from rmadapter.bench.report.tables import columns_of, differences, reference

MAIN = "base-to-novel"  # the protocol to sum up if it was run


class Finding(NamedTuple):
    """group: the one it is about; None if no two methods were compared."""

    group: Group | None
    title: str
    sentences: tuple[str, ...]


def finding(groups: Sequence[Group]) -> Finding:
    """Sum up a group that compares methods: base-to-novel if there is one, tested over the most
    data sets, then of the most methods, then with the most shots."""
    there = [group for group in groups if _compared(group)[2]]
    if not there:
        count = sum(len(group.records) for group in groups)
        return Finding(
            None, f"{count} run{'' if count == 1 else 's'}, and no two methods to compare", ()
        )
    group = max(
        there, key=lambda group: (group.protocol == MAIN, *_size(group), by_size(group.shots or 0))
    )
    first, figure, pairs = _compared(group)
    return Finding(group, _title(first, figure, pairs), _sentences(group, first, figure, pairs))


def _size(group: Group) -> tuple[int, int]:
    """The data sets of the pair that has most, and the pairs."""
    pairs = _compared(group)[2].values()
    return max(pair.sets for pair in pairs), len(pairs)


def _compared(group: Group) -> tuple[str, str, Mapping[str, Paired]]:
    """The row that the others are compared with, the figure, and the differences: as in the table
    of pairs."""
    rows, columns = entries(alike(group.records)), columns_of(group)
    first = reference(rows)
    if first is None or not group.compared:
        return "", "", {}
    column = columns[-1]  # HM, the targets, or the most shots
    figure = "accuracy on the targets" if group.protocol in TRANSFER else column.head
    return first, figure, differences(rows, first, column)


def _title(first: str, figure: str, pairs: Mapping[str, Paired]) -> str:
    if all(pair.sets < ENOUGH for pair in pairs.values()):
        many = "is" if {pair.sets for pair in pairs.values()} == {1} else "are"
        return f"{_sets(pairs)} {many} too few to compare {first} with {_named(list(pairs))} in {figure}"
    ahead, behind = (
        [label for label in pairs if pairs[label].verdict == word] for word in ("ahead", "behind")
    )
    rest = [label for label in pairs if label not in (*ahead, *behind)]
    groups = {"ahead of": ahead, "behind": behind, "not shown to differ from": rest}
    *parts, last = [f"{words} {_named(labels)}" for words, labels in groups.items() if labels]
    told = f"{', '.join(parts)} and {last}" if parts else last
    return f"{first} is {told} in {figure}, tested over {_sets(pairs)}"


def _named(labels: Sequence[str]) -> str:
    return " and ".join(labels) if len(labels) < 3 else f"{len(labels)} others"


def _sets(pairs: Mapping[str, Paired]) -> str:
    counts = sorted({pair.sets for pair in pairs.values()})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} data set{'' if counts == [1] else 's'}"


def _sentences(
    group: Group, first: str, figure: str, pairs: Mapping[str, Paired]
) -> tuple[str, ...]:
    rows, sets, seeds = len(entries(group.records)), len(group.datasets), len(group.seeds)
    label, pair = max(pairs.items(), key=lambda item: abs(item[1].difference))
    ends = (
        ""
        if pair.low is None or pair.high is None
        else f"95 % interval {_signed(pair.low)} to {_signed(pair.high)}, "
    )
    words = {"ahead": "is shown", "behind": "is shown", "not shown": "is not shown"}.get(
        pair.verdict, "is not tested"
    )
    return (
        f"This is of {group.title}: {len(group.records)} runs, {rows} rows, {sets} data set{'' if sets == 1 else 's'}, "
        f"{seeds} seed{'' if seeds == 1 else 's'}.",
        f"The largest difference in {figure} is that of {first} to {label}, {_signed(pair.difference)} points "
        f"({ends}n = {pair.sets}), which {words}.",
        f"A difference is shown where Student's t over data sets gives p below {LEVEL}, on {ENOUGH} of them or more"
        f"{f'; p is corrected by Holm for {len(pairs)} comparisons' if len(pairs) > 1 else ''}.",
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
