"""Each page in research/studies shows the tables and the figure that its script computes from the
recorded lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import answer
import at_test_time
import demo_draws
import explain_study
import families
import fewer_steps
import fewtrans
import four_ideas
import int8_study
import label_curve
import label_walk
import learning
import mechanism_tables
import pytest
import reconstruction_tables
import steps_drawing
import suggest
from studies import REPORT_ALL, with_verdicts
from suggest_rules import DEFAULT

from rmadapter.bench.report.stats import holm, over_sets

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "research/results"
Line: TypeAlias = dict[str, Any]

pytestmark = pytest.mark.real_plots


def lines_of(name: str) -> list[Line]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def records(name: str) -> str:
    """Return the page of records of a study, if there is one."""
    file = RESULTS / Path(name).name
    return file.read_text(encoding="utf-8") if file.exists() else ""


def marked(tables: Mapping[str, str]) -> list[str]:
    return [f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" for name, table in tables.items()]


def losses() -> list[Line]:
    return reconstruction_tables.read(RESULTS / "reconstruction.jsonl")


def step_tables() -> dict[str, str]:
    half = fewer_steps.half_table(reconstruction_tables.read(RESULTS / "steps.jsonl"))
    return fewer_steps.tables(lines_of("fewer_steps")) | {"half": half}


@pytest.mark.parametrize(
    ("name", "tables", "count"),
    [
        ("studies/mechanism.md", lambda: marked(mechanism_tables.recorded()), 29),
        ("studies/families.md",
         lambda: marked(
             families.tables(families.beside(
                 lines_of("families"), [*lines_of("choice"), *lines_of("learning")]))
             | at_test_time.tables(lines_of("at_test_time"))), 7),
        ("studies/fewtrans.md", lambda: marked(fewtrans.tables(lines_of("fewtrans"))), 6),
        ("studies/four_ideas.md", lambda: marked(four_ideas.tables(lines_of("four_ideas"))), 4),
        ("studies/demo.md",
         lambda: marked(demo_draws.tables(lines_of("demo_draws"))
                        | demo_draws.tables(lines_of("demo_draws_pocket_3"))), 4),
        ("studies/label.md",
         lambda: marked({"labels": label_curve.table(lines_of("label_curve")),
                         "walk": label_walk.table(lines_of("label_walk"))}), 2),
        ("studies/fewer_steps.md", lambda: marked(step_tables()), 4),
        ("studies/reconstruction.md",
         lambda: marked(reconstruction_tables.tables(losses())), 17),
        ("studies/int8.md", lambda: [int8_study.table(lines_of("int8"))], 1),
        ("studies/explain.md", lambda: [explain_study.tables(lines_of("explain"))], 1),
        ("studies/suggest.md", lambda: suggest.tables(lines_of("suggest")).split("\n\n"), 2),
    ],
)  # fmt: skip
def test_tables_of_a_study_are_those_of_its_lines(
    name: str, tables: Callable[[], list[str]], count: int
) -> None:
    computed = tables()
    assert len(computed) == count
    for table in computed:
        assert table in page(f"research/{name}") + records(name)


def test_the_sentences_about_families_show_the_lines() -> None:
    names = ("learning", "families", "choice")
    learnt = learning.merged([lines_of(name) for name in names])
    means = learning.means(learnt, learning.sets_of(REPORT_ALL))
    *above, ridge = (
        f"{means[name][16]:.1f}" for name in ("mmrl", "rmadapter-plain", "mma-adamw", "ridge")
    )
    text = " ".join(page("research/studies/families.md").split())
    assert f"({above[0]}, {above[1]} and {above[2]} to {ridge})" in text
    lines = families.beside(lines_of("families"), learnt)
    [row] = [row for row in families.verdict_table(lines).splitlines() if "| `clap` |" in row]
    points, ends, _, p = (cell.strip() for cell in row.split("|")[4:8])
    assert f"({points.lstrip('-')}, 0.6 to 7.0, p {p})" in text
    assert ends == "-7.0 to -0.6"
    found = {}
    for row in families.through_table(lines).splitlines()[2:]:
        shots, method, _, points, ends, *_ = (cell.strip(" `") for cell in row.split("|")[1:-1])
        found[method, shots] = (points, ends)
    assert found["mmrl-few-shot", "1"] == ("-0.8", "-3.9 to 2.4")
    assert found["mmrl-few-shot", "4"] == ("-4.4", "-6.4 to -2.5")
    assert found["mmrl-few-shot", "16"] == ("-0.2", "-4.5 to 4.2")
    assert found["mmrl-plus-plus-few-shot", "1"] == ("-2.1", "-5.3 to 1.0")
    assert found["mmrl-plus-plus-few-shot", "4"] == ("-6.6", "-9.0 to -4.2")
    assert found["promptsrc-few-shot", "4"] == ("-11.4", "-16.0 to -6.8")
    assert "MMRL++ 6.6 (4.2 to 9.0), PromptSRC 11.4 (6.8 to 16.0)" in text
    assert "MMRL++ (2.1, -1.0 to 5.3)" in text
    for page_of in ("research/studies/families.md", "docs/studies/answer.md"):
        text = " ".join(page(page_of).split())
        assert "4.4 points (2.5 to 6.4) behind with 4 images" in text
        assert re.search(r"0\.8,? \(?-2\.4 to 3\.9\)", text)
        assert re.search(r"0\.2,? \(?-4\.2 to 4\.5", text)
    few, many = (families.scores(lines, families.REPORTING, shots) for shots in (4, 16))
    theirs = [families.average(found["mmrl-few-shot"]) for found in (few, many)]
    ours = families.average(many["rmadapter-plus"])
    text = " ".join(page("README.md").split())
    assert f"`mmrl` has {theirs[0]:.1f}, with 16 images {theirs[1]:.1f} to our {ours:.1f}." in text
    assert f"{theirs[1]:.1f} to {ours:.1f})" in " ".join(
        page("research/studies/families.md").split()
    )


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("label", lambda: label_curve.drawn(lines_of("label_curve"))),
        ("reconstruction", lambda: reconstruction_tables.drawn(losses())),
    ],
)
def test_the_figure_of_a_study_shows_its_lines(name: str, drawn: Callable[[], str]) -> None:
    """Numbers are written in the figure."""
    svg, shown = drawn(), page(f"research/studies/{name}.svg")
    texts = re.findall(r">(.+)</text>", svg)
    assert len([x for x in texts if re.search(r"\d\.\d", x)]) >= 4
    assert texts == re.findall(r">(.+)</text>", shown)
    assert svg.count("<path") == shown.count("<path")
    assert f"]({name}.svg)" in page(f"research/studies/{name}.md")


@pytest.mark.parametrize(
    ("name", "key", "same"),
    [
        ("at_test_time", ("data", "shots", "seed", "method"), ()),
        ("auto", ("data", "shots", "seed", "candidate"), ()),
        ("demo_draws", ("draw", "method"), ()),
        ("demo_draws_pocket_3", ("draw", "method", "shots"), ()),
        ("explain", ("data", "row"), ("backbone",)),
        ("families", ("data", "shots", "seed", "method"), ()),
        ("label_curve", label_curve.KEY, ()),
        ("reconstruction", ("backbone", "precision", "data", "shots", "seed", "variant"), ()),
        ("suggest", suggest.KEY, ("backbone",)),
    ],
)
def test_every_run_is_recorded_once_under_the_same_conditions(
    name: str, key: tuple[str, ...], same: tuple[str, ...]
) -> None:
    lines = lines_of(name)
    keys = [tuple(line[part] for part in key) for line in lines]
    assert len(set(keys)) == len(keys)
    assert all(len({line[part] for line in lines}) == 1 for part in same)


def planned_suggestions() -> list[tuple[Any, ...]]:
    rules = [(kind, rule) for kind, some in suggest.KINDS.items() for rule in some]
    tasks = product((*suggest.CHOOSE, *suggest.REPORT), rules, (1, 2, 3))
    return [(data, kind, rule, seed) for data, (kind, rule), seed in tasks]


def test_no_planned_run_of_suggest_is_missing() -> None:
    keys = [tuple(line[part] for part in suggest.KEY) for line in lines_of("suggest")]
    assert sorted(keys) == sorted(planned_suggestions())


@pytest.mark.parametrize("kind", ["next", "first"])
def test_the_defaults_of_suggest_follow_from_its_lines(kind: str) -> None:
    lines = lines_of("suggest")
    rules = [rule for rule in suggest.KINDS[kind] if rule != "random"]
    assert not any(suggest.proven(lines, kind, rule) for rule in rules)
    assert suggest.default(lines, kind) == DEFAULT


def test_the_picture_of_fewer_steps_shows_the_lines() -> None:
    drawn, shown = (
        steps_drawing.drawn(lines_of("fewer_steps")),
        page("research/studies/fewer_steps.svg"),
    )
    assert re.findall(r">(.+)</text>", drawn) == re.findall(r">(.+)</text>", shown)
    assert re.findall(r'<use xlink:href="[^"]*" x="([^"]*)"', drawn) == re.findall(
        r'<use xlink:href="[^"]*" x="([^"]*)"', shown
    )
    assert "](fewer_steps.svg)" in page("research/studies/fewer_steps.md")


def test_the_sentences_about_the_third_reading_show_the_lines() -> None:
    names = dict.fromkeys(name for pair in answer.ADAPTED for name in pair)
    lines = [*lines_of("adapted"), *lines_of("keeping")]
    tests: dict[tuple[int, str, str, str], float] = {}
    ends = list[float]()
    for shots in (4, 16):
        some = mechanism_tables.shared(answer.of_sets(lines, REPORT_ALL, shots), [*names])
        for figure, value in answer.FIGURES.items():
            for one, other in answer.ADAPTED:
                sets = answer.by_set(some, value, one, other)
                found, mean = over_sets(sets), fmean(map(fmean, sets))
                assert found.p is not None
                assert found.half is not None
                tests[shots, figure, one, other] = found.p
                if figure in ("base", "novel") and other != "neither":
                    ends += [abs(mean - found.half), abs(mean + found.half)]
    every = dict(zip(tests, holm([*tests.values()]).tolist(), strict=True))
    text = " ".join(page("research/studies/mechanism.md").split())
    assert f"by at most {max(ends):.1f} points" in text
    assert f"Of the {len(tests)} differences" in text
    assert f"Corrected for all {len(tests)}, p is {min(every.values()):.3f}" in text
    assert min(every, key=lambda name: every[name]) == (16, "joint", "both, adapted", "both")
    shown = f"[at most {max(ends):.1f} points](../../research/studies/mechanism.md)"
    assert shown in " ".join(page("docs/studies/answer.md").split())


def test_the_sentences_about_full_fine_tuning_show_the_lines() -> None:
    found = fewtrans.tables(lines_of("fewtrans"))
    text = " ".join(page("research/studies/fewtrans.md").split())

    def cells(table: str, name: str) -> list[str]:
        [row] = [row for row in found[table].splitlines() if row.startswith(f"| {name} |")]
        return [cell.strip() for cell in row.split("|")[2:]]

    points, ends, *_ = cells("4 images, compared", "full fine-tuning - RMAdapter+")
    assert f"({points} points, {ends})" in text
    points, ends, _, p, _, _ = cells("4 images, compared", "full fine-tuning - adapters alone")
    assert f"({points.lstrip('+')}, {ends}, p {p} corrected)" in text
    points, ends, *_ = cells("4 images, rate x 1", "full fine-tuning - RMAdapter+")
    low, high = (end.lstrip("-") for end in ends.split(" to "))
    assert f"it is {points.lstrip('-')} points behind RMAdapter+** ({high} to {low})" in text


def test_the_sentences_about_three_seeds_show_the_lines() -> None:
    lines = lines_of("fewtrans")
    table = fewtrans.tables(lines)["4 images, seeds, compared"]
    rows = [row.split(" | ") for row in table.splitlines()]
    found = {row[0].lstrip("| "): row[1:] for row in rows[2:]}
    text = " ".join(page("research/studies/fewtrans.md").split())
    points, ends, *_, verdict = found["full fine-tuning, three seeds - one"]
    assert f"gains {points.lstrip('+')} points ({ends}), not shown" in text
    assert verdict.startswith("not shown")
    points, ends, *_, verdict = found["full fine-tuning, three rates - three seeds"]
    assert f"have {points.lstrip('+')} more ({ends}), not shown either" in text
    assert verdict.startswith("not shown")
    points, ends, *_, verdict = found["RMAdapter+, three rates - three seeds"]
    low, high = (end.lstrip("-") for end in ends.split(" to "))
    assert f"{points.lstrip('-')} points ({high} to {low}) against three seeds" in text
    assert verdict.startswith("behind")
    ours, theirs = (
        fewtrans.of(lines, 4, f"{name}, seeds") for name in ("full fine-tuning", "RMAdapter+")
    )
    gaps = [[a["ensemble"] - b["ensemble"]] for a, b in zip(ours, theirs, strict=True)]
    [(points, ends, *_)] = with_verdicts({"": gaps}, 1).values()
    low, high = (end.lstrip("-") for end in ends.split(" to "))
    assert f"is {points.lstrip('-')} points ({high} to {low}) behind RMAdapter+" in text
    gains = [one["ensemble"] - fmean(one["each"]) for one in ours if len({*one["each"]}) > 1]
    assert len(ours) - len(gains) == 5
    assert f"bring it {min(gains):.1f} to {max(gains):.1f} points" in text
    for seeded, name in fewtrans.SEEDED.items():
        both = zip(fewtrans.of(lines, 4, name), fewtrans.of(lines, 4, seeded), strict=True)
        assert all(rates["each"][1] == seeds["each"][0] for rates, seeds in both)
