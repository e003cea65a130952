"""The title of a report claims what the test over data sets shows, and no more."""

from __future__ import annotations

import re

import pytest
from scipy.stats import ttest_1samp

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.summary import finding
from tests.helpers.synthetic_runs import record


def runs(
    gaps: list[float], method: str = "rmadapter", other: str = "mma", **changes: float
) -> list[Record]:
    """Two methods of which the first has an HM that is so much larger, data set by data set."""
    values = [(60.0 + gap, 60.0) for gap in gaps]
    return [
        record(name, f"set {number}", seed, {"base": own, "novel": own}, **changes)
        for number, pair in enumerate(values)
        for name, own in zip((method, other), pair, strict=True)
        for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("gaps", "title"),
    [
        ([1.0, 1.5, 2.0], "RMAdapter is ahead of MMA in HM, tested over n = 3 data sets"),
        ([-1.0, -1.5, -2.0], "RMAdapter is behind MMA in HM, tested over n = 3 data sets"),
        (
            [-3.0, 2.0, 4.0],
            "RMAdapter is not shown to differ from MMA in HM, tested over n = 3 data sets",
        ),
        ([5.0, 5.1], "n = 2 data sets are too few to compare RMAdapter with MMA in HM"),
        ([5.0], "n = 1 data set is too few to compare RMAdapter with MMA in HM"),
    ],
)
def test_the_title(gaps: list[float], title: str) -> None:
    found = finding(group_records(runs(gaps)))
    assert found.title == title
    assert len(found.sentences) == 3
    if len(gaps) > 2:
        assert ("not shown" in title) == (ttest_1samp(gaps, 0).pvalue >= 0.05)
        assert ("is not shown." in found.sentences[1]) == ("not shown" in title)
    else:
        assert found.sentences[1].endswith("which is not tested.")
    mean = sum(gaps) / len(gaps)
    assert f"to MMA, {mean:+.2f} points".replace("-", "−") in found.sentences[1]
    assert f"n = {len(gaps)})" in found.sentences[1]
    assert f"{4 * len(gaps)} runs, 2 rows, {len(gaps)} data set" in found.sentences[0]


@pytest.mark.parametrize(
    ("gaps", "told"),
    [
        ([1.0, 1.1, 1.2], "ahead of coop and MMA and behind tcp"),
        ([1.0, 1.5, 2.0], "behind tcp and not shown to differ from coop and MMA"),
    ],
)
def test_several_others_are_counted_and_corrected_for(gaps: list[float], told: str) -> None:
    """1, 1.5 and 2 points are shown alone, with a p of 0.035, and not when they are two of three
    differences."""
    own, far = runs(gaps), runs([5.0, 5.5, 5.2], other="coop")
    worse = runs([-1.0, -1.5, -2.0], other="tcp")
    together = [*own, *(r for r in (*far, *worse) if r.method.name != "rmadapter")]
    shifted = [
        r.model_copy(
            update={"scores": tuple(s.model_copy(update={"accuracy": 70.0}) for s in r.scores)}
        )
        if r.method.name == "tcp"
        else r
        for r in together
    ]
    found = finding(group_records(shifted))
    assert found.title == f"RMAdapter is {told} in HM, tested over n = 3 data sets"
    assert found.sentences[2].endswith("p is corrected by Holm for 3 comparisons.")


def test_it_is_of_base_to_novel_on_the_most_data_sets() -> None:
    few = [
        record(m, "one", 1, {"all": 50.0}, shots=4, protocol="few-shot")
        for m in ("mma", "rmadapter")
    ]
    found = finding(group_records([*few, *runs([1.0], shots=1), *runs([1.0, 2.0, 1.5])]))
    assert found.group is not None
    assert (found.group.protocol, found.group.shots) == ("base-to-novel", 16)
    assert re.match("This is of base-to-novel: pocket, 16 shots: 12 runs", found.sentences[0])
    of_two = [
        record(m, f"set {n}", 1, {"all": 50.0}, shots=16) for m in ("x", "y") for n in range(9)
    ]
    assert finding(
        group_records([*runs([1.0, 2.0, 1.5], shots=1), *runs([1.0, 2.0]), *of_two])
    ).title.endswith("n = 3 data sets")
    alone = finding(group_records(few))
    assert alone.title == "n = 1 data set is too few to compare RMAdapter with MMA in 4 shots"


def test_where_nothing_is_compared_nothing_is_claimed() -> None:
    assert finding([]) == (None, "0 runs, and no two methods to compare", ())
    found = finding(group_records(runs([1.0], other="rmadapter")[:1]))
    assert found == (None, "1 run, and no two methods to compare", ())
