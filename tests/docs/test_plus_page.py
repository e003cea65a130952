"""docs/studies/plus.md: its tables are those of its lines, and its sentences say what they say."""

from __future__ import annotations

from pathlib import Path

from plus import CHOSEN_ON, PAIRS, STUDY, read, tables
from reconstruction_tables import by_set, difference, differences

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/studies/plus.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
LINES = read(ROOT / "docs/results/plus.jsonl", STUDY)
CHOSEN, REPORTED = (
    {
        n: [x for x in LINES if (x["data"] in CHOSEN_ON) == chosen and x["shots"] == n]
        for n in (4, 16)
    }
    for chosen in (True, False)
)


def test_every_table_is_that_of_the_lines() -> None:
    found = tables(LINES)
    assert len(found) == 6
    for name, table in found.items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" in PAGE, name


def test_a_line_says_what_was_run() -> None:
    runs = [(line["data"], line["shots"], line["seed"], line["variant"]) for line in LINES]
    assert len(set(runs)) == len(runs)
    assert {line["precision"] for line in LINES} == {"bf16"}
    for lines in REPORTED.values():
        assert {line["seed"] for line in lines} == {1, 2, 3}
        assert {"dtd10", "sign_digits", "pacs/photo", "neu_steel"} <= {
            line["data"] for line in lines
        }


def test_no_difference_in_novel_or_hm_is_shown() -> None:
    for lines in REPORTED.values():
        rows = differences(lines, PAIRS).splitlines()[2:]
        assert len(rows) == 12
        some = [row for row in rows if "| novel |" in row or "| HM |" in row]
        assert len(some) == 8
        assert all("not shown" in row for row in some)


def test_the_figures_in_its_sentences() -> None:
    pair = ("RMAdapter+", "adapters")
    gains = {n: difference(CHOSEN[n], *pair, "hm")[0] for n in (4, 16)}
    assert (
        f"it is {gains[4]:.1f} points of HM above them with 4 shots and {gains[16]:.1f} with 16"
        in TEXT
    )
    four, sixteen = (difference(REPORTED[n], *pair, "hm") for n in (4, 16))
    ends = [
        f"{mean:+.1f} ({mean - half:.1f} to {mean + half:+.1f})"
        for mean, half, _, _ in (four, sixteen)
        if half
    ]
    assert f"that is {' and '.join(ends)}" in TEXT
    base = [
        difference(lines[4], "and regression", "adapters", "base")[0]
        for lines in (CHOSEN, REPORTED)
    ]
    assert f"{base[0]:+.1f} and {base[1]:+.1f} points of base accuracy with 4 shots" in TEXT
    above = [difference(REPORTED[n], "RMAdapter+", "RMAdapter", "base") for n in (4, 16)]
    assert f"{above[0][0]:.1f} points higher with 4 shots and {above[1][0]:.1f} with 16" in TEXT
    assert all(half and mean - half > 0 for mean, half, _, _ in above)
    novel = [difference(REPORTED[n], "RMAdapter+", "zero-shot", "novel") for n in (4, 16)]
    assert f"by {novel[0][0]:.1f} and {novel[1][0]:.1f} points, with intervals that hold 0" in TEXT
    assert all(half and mean - half < 0 < mean for mean, half, _, _ in novel)
    alone = [difference(REPORTED[n], "adapters", "zero-shot", "novel")[0] for n in (4, 16)]
    assert min(alone) > 0
    control = "without adapters, regression 2"
    near = [
        difference(REPORTED[4], "RMAdapter+", control, figure)[0] for figure in ("base", "novel")
    ]
    assert f"within {near[0]:.1f} points of base and {near[1]:.1f} of novel accuracy" in TEXT


def test_what_is_said_of_the_choice() -> None:
    def mean(n: int, variant: str) -> float:
        sets = by_set([x for x in CHOSEN[n] if x["data"] != "caltech101"], variant, "hm")
        return sum(sets.values()) / len(sets)

    near = ("regression 0.25", "regression 1", "penalty 0.3", "penalty 3", "keep 0", "keep 0.25")
    assert all(abs(mean(n, name) - mean(n, "RMAdapter+")) < 1 for n in (4, 16) for name in near)
    assert all(mean(n, "keep 0.75") < mean(n, "RMAdapter+") - 0.75 for n in (4, 16))
    controls = [
        name for name in {x["variant"] for x in CHOSEN[4]} if name.startswith("without adapters")
    ]
    assert (
        max(controls, key=lambda name: mean(4, name) + mean(16, name))
        == "without adapters, regression 2"
    )
