"""Each page of a study shows the tables that its tool computes from the recorded lines, and the
package uses what the study chose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import alarms
import all_images
import answer
import answer_readme
import block_ridge
import choice
import default_rule
import drawing
import familiar
import findings
import frontier
import learning
import parity
import performance
import plus
import pocket_3
import promises
import pytest
import reconstruction_tables
import suspect_judges
import suspects
import unfamiliar
import untouched_share
import wrong
from forest import interval
from PIL import Image
from studies import CHOOSE_ALL, REPORT_ALL

from rmadapter.bench.report.read import read_records
from rmadapter.curate.suspects import MIN_MARGIN, NEIGHBOURS
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.runs.folds import FOLDS
from rmadapter.support.files import read_json
from rmadapter.training.contract import NEIGHBOUR_RANK

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


# Tables


def marked(tables: Mapping[str, str]) -> list[str]:
    return [f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" for name, table in tables.items()]


def pieces() -> list[Line]:
    return plus.read(RESULTS / "plus.jsonl", plus.STUDY)


def answer_tables() -> dict[str, str]:
    learnt, kept = answer_readme.recorded()
    shared = {"keep": untouched_share.choice_table(lines_of("untouched_share"), kept)}
    rule = {"rule": default_rule.recorded_table()}
    rule["learning, draws"] = learning.draws_table(lines_of("choice"))
    return answer.tables(kept) | learning.tables(learnt) | shared | rule


@pytest.mark.parametrize(
    ("name", "tables", "count"),
    [
        ("studies/answer.md", lambda: marked(answer_tables()), 46),
        ("studies/choice.md", lambda: marked(choice.tables(lines_of("choice"))), 6),
        ("studies/all_images.md",
         lambda: marked(all_images.tables(lines_of("all_images"), lines_of("choice"))), 4),
        ("studies/block_ridge.md",
         lambda: marked(block_ridge.tables(lines_of("block_ridge"), lines_of("pocket_3"))), 8),
        ("reference/pocket.md", lambda: marked(pocket_3.tables(lines_of("pocket_3"))), 2),
        ("studies/promises.md", lambda: marked(promises.tables(lines_of("promises"))), 9),
        ("studies/promises.md", lambda: marked(wrong.tables(lines_of("wrong"))), 4),
        ("studies/unfamiliar.md",
         lambda: marked({name: table for name, table in familiar.tables(
             lines_of("familiar")).items() if name.startswith(
                 ("reporting: 4", "reporting: 16"))}), 9),
        ("studies/promises.md",
         lambda: marked({name: table for name, table in familiar.tables(
             lines_of("familiar")).items() if name == "reporting: names added"}), 1),
        ("studies/performance.md",
         lambda: marked(performance.tables(performance.RESULTS)), 5),
        ("studies/plus.md", lambda: marked(plus.tables(pieces())), 6),
        ("studies/unfamiliar.md",
         lambda: unfamiliar.tables(lines_of("unfamiliar")).split("\n\n"), 3),
        ("studies/suspects.md", lambda: suspects.tables(lines_of("suspects")).split("\n\n"), 3),
        ("studies/suspects.md", lambda: [alarms.tables(lines_of("alarms"))], 1),
        ("studies/suspects.md",
         lambda: marked(suspect_judges.tables(lines_of("suspect_judges"))), 3),
    ],
)  # fmt: skip
def test_tables_of_a_study_are_those_of_its_lines(
    name: str, tables: Callable[[], list[str]], count: int
) -> None:
    computed = tables()
    assert len(computed) == count
    for table in computed:
        assert table in page(f"docs/{name}") + records(name)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        (
            "findings",
            lambda: findings.drawn(read_records(RESULTS / "photographs/records.jsonl").finished),
        ),
        ("parity", lambda: parity.drawn(read_json(parity.RESULTS))),
        ("keeping", lambda: frontier.drawn(lines_of("keeping"))),
        ("learning", lambda: learning.drawn(answer_readme.recorded()[0])),
        ("plus", lambda: plus.drawn(pieces())),
        ("promises", lambda: promises.drawn(lines_of("promises"))),
    ],
)
def test_the_figure_of_a_study_shows_its_lines(name: str, drawn: Callable[[], str]) -> None:
    """Numbers are written in the figure."""
    svg, shown = drawn(), page(f"docs/studies/{name}.svg")
    texts = re.findall(r">(.+)</text>", svg)
    assert len([x for x in texts if re.search(r"\d\.\d", x)]) >= 4
    assert texts == re.findall(r">(.+)</text>", shown)
    assert svg.count("<path") == shown.count("<path")
    where = "answer" if name in ("keeping", "learning") else name
    assert f"]({name}.svg)" in page(f"docs/studies/{where}.md")


def test_the_figure_and_the_table_of_the_readme_show_the_lines() -> None:
    learnt, kept = answer_readme.recorded()
    assert f"<!-- answer -->\n\n{answer_readme.table(learnt, kept)}\n\n" in page("README.md")
    with Image.open(ROOT / "docs/answer.png") as image:
        shown = image.info["Description"]
    assert shown == answer_readme.words(answer_readme.figure(learnt, kept))


def test_the_figures_of_the_readme_are_those_of_the_lines() -> None:
    learnt, kept = answer_readme.recorded()
    sets, again = learning.sets_of(REPORT_ALL), lines_of("choice")
    by_method = learning.accuracies(learnt, sets, answer_readme.SHOTS)
    some = answer.of_sets(kept, REPORT_ALL, answer_readme.SHOTS)
    best = by_method[learning.BEST]
    leads = [[[best[x] - by_method["ridge"][x]] for x in sets]]
    found = {(line["method"], line["data"], line["seed"]): line["test"]
             for line in again if line["shots"] == answer_readme.SHOTS}  # fmt: skip
    leads += [
        [[found[learning.BEST, x, n] - found[name, x, n] for n in learning.DRAWS] for x in sets]
        for name in learning.DRAWN_AGAIN
    ]
    base, novel = (answer.FIGURES[name] for name in ("base", "novel"))
    leads.append(answer.by_set(some, base, "neither", "both"))
    leads.append(answer.by_set(some, novel, "both", "neither"))
    text = page("README.md").partition("<!-- end -->")[2].partition("![Learning")[0]
    figures = re.findall(r"(-?\d+\.\d)(?: points)?\s\((\S+) to (\S+)\)", text)
    assert figures == [tuple(f"{value:.1f}" for value in interval(lead)) for lead in leads]


def test_what_the_answer_says_afterwards_is_what_its_tables_have() -> None:
    kept, text = lines_of("keeping"), " ".join(page("docs/studies/answer.md").split())
    some = answer.of_sets(kept, REPORT_ALL, 4)
    ends = ("from the trained model", "from the untouched one")
    behind = {
        name: answer.estimate(answer.by_set(some, answer.EQUAL_BASE[name], "both", "plus"))
        for name in ends
    }
    first, second = (
        answer.estimate(answer.by_set(some, answer.EQUAL_BASE[name], "both", "neither"))
        for name in ends
    )
    assert f"the losses bring {first.lstrip('+')} or {second.lstrip('+')} with 4 images" in text
    assert len({*behind.values()}) == 1
    assert f"is {behind[ends[0]].lstrip('+')} behind RMAdapter" in text
    shown = answer.corrected_together(kept)
    assert len(shown) == 4
    assert f"p being {min(row[-1] for row in shown)} and more" in text


def test_the_rule_as_registered_takes_auto_and_as_amended_rmadapter_plus() -> None:
    learnt, kept = answer_readme.recorded()
    sets = learning.sets_of(CHOOSE_ALL)
    curves = {name: curve for name, curve in learning.means(learnt, sets).items() if curve}
    auto = default_rule.auto_curve(lines_of("choice"), sets)
    winners, novel = [], []
    for shared in ([], lines_of("untouched_share")):
        novel.append(default_rule.novel(kept, shared, [4, 16]))
        winners.append(default_rule.winner(curves, novel[-1], auto))
    assert winners == ["auto", "rmadapter-plus"]
    missed = novel[0]["zero-shot"][4] - default_rule.WITHIN - novel[0]["rmadapter-plus"][4]
    assert f"missed that by {missed:.1f} points" in page("docs/studies/answer.md")


def test_the_default_share_is_the_chosen_one() -> None:
    keep = untouched_share.chosen(lines_of("untouched_share"))
    assert RMAdapterPlus().keep == keep == answer.VARIANTS[answer.CHOSEN][1]["keep"]


# Lines


@pytest.mark.parametrize(
    ("name", "key", "same"),
    [
        ("alarms", ("data", "share", "seed"), ("backbone",)),
        ("all_images", ("data", "seed", "variant"), ("backbone",)),
        ("choice", ("data", "shots", "seed", "method"), ()),
        ("familiar", ("data", "shots", "seed", "method"), ()),
        ("keeping", answer.KEY, ()),
        ("learning", ("data", "shots", "seed", "method"), ()),
        ("plus", ("data", "shots", "seed"), ("precision",)),
        ("pocket_3", ("data", "seed", "backbone_name", "shots", "variant"), ("weights",)),
        ("promises", ("data", "shots", "seed", "method"), ()),
        ("suspect_judges", ("data", "judge"), ("shots", "share", "seed")),
        ("suspects", suspects.KEY, ("backbone",)),
        ("unfamiliar", ("data", "seed", "far"), ("digest",)),
        ("untouched_share", ("data", "shots", "draw"), ()),
        ("wrong", ("data", "method", "shots", "seed"), ("backbone",)),
        ("units", ("data", "draw"), ()),
    ],
)
def test_every_run_is_recorded_once_under_the_same_conditions(
    name: str, key: tuple[str, ...], same: tuple[str, ...]
) -> None:
    lines = lines_of(name)
    keys = [tuple(line[part] for part in key) for line in lines]
    assert len(set(keys)) == len(keys)
    assert all(len({line[part] for line in lines}) == 1 for part in same)


@pytest.mark.parametrize("name", ["plus", "reconstruction"])
def test_every_reported_row_has_three_seeds(name: str) -> None:
    seeds: dict[tuple[Any, ...], set[int]] = {}
    for line in lines_of(name):
        variant = line.get("variant", "all")
        if line["data"] not in plus.CHOSEN_ON and variant in ("all", *reconstruction_tables.MAIN):
            seeds.setdefault((line["data"], line["shots"], variant), set()).add(line["seed"])
    assert {"dtd10", "neu_steel", "pacs/photo", "sign_digits"} <= {data for data, *_ in seeds}
    assert all(some == {1, 2, 3} for some in seeds.values())


def planned_suspects() -> list[tuple[Any, ...]]:
    command = page("docs/studies/suspects.md").split("--out research/results/suspects.jsonl ")[1]
    sets = command.splitlines()[0].split()
    return [*product(sets, suspects.KINDS, suspects.SHARES, (1, 2, 3))]


def test_the_margin_of_suspects_is_the_one_that_was_chosen() -> None:
    assert alarms.chosen(lines_of("alarms")) == MIN_MARGIN


def test_no_planned_run_of_suspects_is_missing() -> None:
    keys = [tuple(line[part] for part in suspects.KEY) for line in lines_of("suspects")]
    assert sorted(keys) == sorted(planned_suspects())


def test_the_sentences_on_what_limits_suspects_show_the_lines() -> None:
    lines, text = lines_of("suspect_judges"), " ".join(page("docs/studies/suspects.md").split())
    found = suspect_judges.tables(lines)
    compared = [row.split(" | ") for row in found["judges, compared"].splitlines()[2:]]
    cells = {row[0].lstrip("| "): row[1:] for row in compared}
    points, ends, *_ = cells["probe on `pocket-3`"]
    assert f"by {points.lstrip('+')} hundredths ({ends})" in text
    points, ends, _, p, *_ = cells["RMAdapter+ on `pocket`"]
    assert f"RMAdapter+ on `pocket` by {points.lstrip('+')} ({ends}, p {p})" in text
    each = {
        name: suspect_judges.by_set(lines, name, "average_precision")
        for name in suspect_judges.JUDGES
    }
    plain, true = (
        f"{fmean(each[name].values()):.2f}"
        for name in ("probe on `pocket`", "probe on `pocket`, true labels")
    )
    assert f"the true labels has {true} instead of {plain}" in text
    six = [f"{own['rsscn7']:.2f}" for own in each.values()]
    assert f"{six[0]}, {six[1]} and {six[2]}, with true labels {six[3]}, {six[4]} and" in text
    assert f"and {six[5]}. With true labels, RMAdapter+ has run on five sets" in text
    assert len(each["RMAdapter+ on `pocket`, true labels"]) == 5


def test_the_sentences_about_promises_show_the_lines() -> None:
    lines, text = lines_of("promises"), " ".join(page("docs/studies/promises.md").split())
    kept: dict[tuple[bool, str, int], list[bool]] = {}
    for line in lines:
        for error, (missed, *_) in line["folds"].items():
            place = (line["data"] in promises.REPORT_ALL, line["method"], line["shots"])
            kept.setdefault(place, []).append(missed <= float(error))

    def counted(reported: bool) -> str:
        all_runs = [one for place, runs in kept.items() if place[0] == reported for one in runs]
        return f"{sum(all_runs)} of {len(all_runs)}"

    assert f"missed at most what was promised in {counted(True)} runs" in text
    assert f"and in {counted(False)} " in text
    many = [
        one for place, runs in kept.items() if place[1:] == ("rmadapter-plus", 16) for one in runs
    ]
    assert f"keeps it in {sum(many)} of {len(many)} " in text
    plus = [line["folds"] for line in lines if line["method"] == "rmadapter-plus"]
    worst = [max(one[error][0] for one in plus if error in one) for error in ("5", "10")]
    assert f"at most {worst[0]:.1f} % were missed of 5 and {worst[1]:.1f} of 10" in text
    missed = {(row[1], row[2]): row[4] for row in promises.shifted(lines)}
    assert f"RMAdapter+ missed {missed['pacs/art_painting', 'RMAdapter+']} % in place" in text
    others = (missed[f"office_caltech/{name}", "RMAdapter+"] for name in ("desk", "product"))
    assert f"it missed {' and '.join(others)} %" in text


def test_the_sentences_about_wrong_answers_show_the_lines() -> None:
    text = " ".join(page("docs/studies/promises.md").split())
    probe, plus = (
        [
            {
                (row[1], row[0]): row
                for row in wrong.rows_of(
                    [
                        one
                        for one in lines_of("wrong")
                        if one["data"] in sets and one["method"] == method
                    ]
                )
            }
            for sets in (REPORT_ALL, CHOOSE_ALL)
        ]
        for method in wrong.METHODS
    )
    reported, chosen = probe
    keys = [(rule, share) for share in ("10 %", "20 %") for rule in ("earlier", "present")]
    ten, now, twenty, later = ((reported[key], chosen[key]) for key in keys)
    assert (
        f"keeps 10 % after {ten[0][2]} and {ten[1][2]} % of calibrations, the present one after "
        f"{now[0][2]} and {now[1][2]} %; 20 % after {twenty[0][2]} and {twenty[1][2]}, now "
        f"{later[0][2]} and {later[1][2]} %"
    ) in text
    assert (
        f"sure after {now[0][3]} and {now[1][3]} % of calibrations, before after {ten[0][3]} and "
        f"{ten[1][3]} %"
    ) in text
    mine = [rows["present", "10 %"] for rows in plus]
    assert (
        f"keeps 10 % after {mine[0][2]} and {mine[1][2]} % of calibrations by halves, with any "
        f"answer after {mine[0][3]} and {mine[1][3]} %"
    ) in text


def test_unfamiliar_images_are_compared_with_every_other_set() -> None:
    lines = lines_of("unfamiliar")
    runs = {(line["data"], line["seed"]) for line in lines}
    assert {data for data, _ in runs} <= {*unfamiliar.CHOOSE, *unfamiliar.REPORT}
    assert {(line["data"], line["seed"], line["far"]) for line in lines} == {
        (data, seed, far) for data, seed in runs for far in ("", *unfamiliar.far_of(data))
    }


# Choices


def test_suspects_uses_the_rule_that_its_study_chose() -> None:
    probe = suspects.PROBE["C"]
    assert suspects.best(lines_of("suspects")) == f"probe {probe:g}, logit margin"
    assert (FOLDS, NEIGHBOURS) == (4, 10)


def test_unfamiliar_uses_the_score_that_its_study_chose() -> None:
    lines = lines_of("unfamiliar")
    usable = filter(unfamiliar.usable, lines[0]["scores"])
    assert unfamiliar.best(lines, usable) == f"neighbour {NEIGHBOUR_RANK}, frozen"


# Speed


def test_public_steps_are_compared_only_where_they_agree_with_ours() -> None:
    steps = read_json(performance.RESULTS / "public.json")["mma"]
    assert [step["classes"] for step in steps] == [10, 50, 200]
    for step in steps:
        assert max(step["differences"].values()) < 1e-4
        assert len(step["public_all_seconds"]) >= 3
        assert 0 < performance.share(step, "fp32") < 1


def test_the_picture_of_steps_shows_as_many_curves_as_are_recorded() -> None:
    drawn = drawing.drawn(read_json(performance.RESULTS / "public.json")["mma"])
    assert drawn.count("<path") == page("docs/studies/performance.svg").count("<path")
