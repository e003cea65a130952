"""Each page of a study shows the tables that its tool computes from the recorded lines, and the
package uses what the study chose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import answer
import answer_readme
import at_test_time
import auto
import choice
import default_rule
import demo_draws
import drawing
import explain_study
import familiar
import families
import fewer_steps
import findings
import frontier
import int8_study
import label_curve
import label_walk
import learning
import mechanism_tables
import parity
import performance
import plus
import promises
import pytest
import reconstruction_tables
import steps_drawing
import suggest
import suspects
import unfamiliar
import untouched_share
from PIL import Image

from rmadapter.bench.report.read import read_records
from rmadapter.curate.suggest import DEFAULT, FIRST, NEXT
from rmadapter.curate.suspects import NEIGHBOURS, PROBE
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.runs.folds import FOLDS
from rmadapter.support.files import read_json
from rmadapter.training.contract import NEIGHBOUR

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
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

CHEAP = [
    *("linear-probe", "linear-probe-pair", "linear-probe-zero-shot"),
    *("tip-adapter-f", "zero-shot", "zero-shot-ensemble"),
]


def marked(tables: Mapping[str, str]) -> list[str]:
    return [f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" for name, table in tables.items()]


def pieces() -> list[Line]:
    return plus.read(RESULTS / "plus.jsonl", plus.STUDY)


def losses() -> list[Line]:
    return reconstruction_tables.read(RESULTS / "reconstruction.jsonl")


def auto_tables() -> list[str]:
    tables = []
    for candidates in (CHEAP, [*CHEAP, "rmadapter"]):
        with redirect_stdout(StringIO()) as shown:
            auto.show(auto.accuracies(lines_of("auto"), candidates))
        tables.append(shown.getvalue().strip())
    return tables


def step_tables() -> dict[str, str]:
    half = fewer_steps.half_table(reconstruction_tables.read(RESULTS / "steps.jsonl"))
    return fewer_steps.tables(lines_of("fewer_steps")) | {"half": half}


def answer_tables() -> dict[str, str]:
    learnt, kept = answer_readme.recorded()
    shared = {"keep": untouched_share.choice_table(lines_of("untouched_share"), kept)}
    rule = {"rule": default_rule.recorded_table()}
    return answer.tables(kept) | learning.tables(learnt) | shared | rule


@pytest.mark.parametrize(
    ("name", "tables", "count"),
    [
        ("studies/answer.md", lambda: marked(answer_tables()), 41),
        ("studies/auto.md", auto_tables, 2),
        ("studies/mechanism.md", lambda: marked(mechanism_tables.recorded()), 8),
        ("studies/choice.md", lambda: marked(choice.tables(lines_of("choice"))), 6),
        ("studies/families.md",
         lambda: marked(
             families.tables(families.beside(
                 lines_of("families"), [*lines_of("choice"), *lines_of("learning")]))
             | at_test_time.tables(lines_of("at_test_time"))), 7),
        ("studies/demo.md",
         lambda: marked({f"draws: {name}": demo_draws.table(lines_of("demo_draws"), name)
                         for name in demo_draws.METHODS}), 3),
        ("studies/promises.md", lambda: marked(promises.tables(lines_of("promises"))), 7),
        ("studies/unfamiliar.md",
         lambda: marked({name: table for name, table in familiar.tables(
             lines_of("familiar")).items() if name.startswith(
                 ("reporting: 4", "reporting: 16"))}), 9),
        ("studies/promises.md",
         lambda: marked({name: table for name, table in familiar.tables(
             lines_of("familiar")).items() if name == "reporting: names added"}), 1),
        ("studies/label.md",
         lambda: marked({"labels": label_curve.table(lines_of("label_curve")),
                         "walk": label_walk.table(lines_of("label_walk"))}), 2),
        ("studies/performance.md",
         lambda: marked(performance.tables(performance.RESULTS)), 5),
        ("studies/fewer_steps.md", lambda: marked(step_tables()), 4),
        ("studies/plus.md", lambda: marked(plus.tables(pieces())), 6),
        ("studies/reconstruction.md",
         lambda: marked(reconstruction_tables.tables(losses())), 17),
        ("studies/unfamiliar.md",
         lambda: unfamiliar.tables(lines_of("unfamiliar")).split("\n\n"), 3),
        ("studies/int8.md", lambda: [int8_study.table(lines_of("int8"))], 1),
        ("studies/explain.md", lambda: [explain_study.tables(lines_of("explain"))], 1),
        ("studies/suggest.md", lambda: suggest.tables(lines_of("suggest")).split("\n\n"), 2),
        ("studies/suspects.md", lambda: suspects.tables(lines_of("suspects")).split("\n\n"), 3),
    ],
)  # fmt: skip
def test_tables_of_a_study_are_those_of_its_lines(
    name: str, tables: Callable[[], list[str]], count: int
) -> None:
    computed = tables()
    assert len(computed) == count
    for table in computed:
        assert table in page(f"docs/{name}") + records(name)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        (
            "findings",
            lambda: findings.drawn(read_records(RESULTS / "photographs/records.jsonl").finished),
        ),
        ("parity", lambda: parity.drawn(read_json(parity.RESULTS))),
        ("keeping", lambda: frontier.drawn(lines_of("keeping"))),
        ("label", lambda: label_curve.drawn(lines_of("label_curve"))),
        ("learning", lambda: learning.drawn(answer_readme.recorded()[0])),
        ("plus", lambda: plus.drawn(pieces())),
        ("promises", lambda: promises.drawn(lines_of("promises"))),
        ("reconstruction", lambda: reconstruction_tables.drawn(losses())),
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


def test_the_default_share_is_the_chosen_one() -> None:
    keep = untouched_share.chosen(lines_of("untouched_share"))
    assert RMAdapterPlus().keep == keep == answer.VARIANTS[answer.CHOSEN][1]["keep"]


def test_the_page_of_auto_names_the_candidates_of_its_tables() -> None:
    words = f"--out docs/results/auto.jsonl --tables --candidates {' '.join(CHEAP)}"
    assert words in page("docs/studies/auto.md")


# Lines


@pytest.mark.parametrize(
    ("name", "key", "same"),
    [
        ("at_test_time", ("data", "shots", "seed", "method"), ()),
        ("auto", ("data", "shots", "seed", "candidate"), ()),
        ("choice", ("data", "shots", "seed", "method"), ()),
        ("demo_draws", ("draw", "method"), ()),
        ("explain", ("data", "row"), ("backbone",)),
        ("families", ("data", "shots", "seed", "method"), ()),
        ("familiar", ("data", "shots", "seed", "method"), ()),
        ("keeping", answer.KEY, ()),
        ("label_curve", label_curve.KEY, ()),
        ("learning", ("data", "shots", "seed", "method"), ()),
        ("plus", ("data", "shots", "seed"), ("precision",)),
        ("promises", ("data", "shots", "seed", "method"), ()),
        ("reconstruction", ("backbone", "precision", "data", "shots", "seed", "variant"), ()),
        ("suggest", suggest.KEY, ("backbone",)),
        ("suspects", suspects.KEY, ("backbone",)),
        ("unfamiliar", ("data", "seed", "far"), ("digest",)),
        ("untouched_share", ("data", "shots", "draw"), ()),
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


def planned_suggestions() -> list[tuple[Any, ...]]:
    rules = [(kind, rule) for kind, some in suggest.KINDS.items() for rule in some]
    tasks = product((*suggest.CHOOSE, *suggest.REPORT), rules, (1, 2, 3))
    return [(data, kind, rule, seed) for data, (kind, rule), seed in tasks]


def planned_suspects() -> list[tuple[Any, ...]]:
    command = page("docs/studies/suspects.md").split("--out docs/results/suspects.jsonl ")[1]
    sets = command.splitlines()[0].split()
    return [*product(sets, suspects.KINDS, suspects.SHARES, (1, 2, 3))]


@pytest.mark.parametrize(
    ("name", "key", "planned"),
    [
        ("suggest", suggest.KEY, planned_suggestions),
        ("suspects", suspects.KEY, planned_suspects),
    ],
)
def test_no_planned_run_is_missing(
    name: str, key: tuple[str, ...], planned: Callable[[], list[tuple[Any, ...]]]
) -> None:
    keys = [tuple(line[part] for part in key) for line in lines_of(name)]
    assert sorted(keys) == sorted(planned())


def test_unfamiliar_images_are_compared_with_every_other_set() -> None:
    lines = lines_of("unfamiliar")
    runs = {(line["data"], line["seed"]) for line in lines}
    assert {data for data, _ in runs} <= {*unfamiliar.CHOOSE, *unfamiliar.REPORT}
    assert {(line["data"], line["seed"], line["far"]) for line in lines} == {
        (data, seed, far) for data, seed in runs for far in ("", *unfamiliar.far_of(data))
    }


# Choices


@pytest.mark.parametrize("kind", ["next", "first"])
def test_the_defaults_of_suggest_follow_from_its_lines(kind: str) -> None:
    lines = lines_of("suggest")
    rules = [rule for rule in suggest.KINDS[kind] if rule != "random"]
    assert not any(suggest.proven(lines, kind, rule) for rule in rules)
    assert suggest.default(lines, kind) == DEFAULT


def test_the_page_of_suggest_describes_every_rule() -> None:
    described = page("docs/reference/curate.md")
    assert all(f"\n| {rule} | " in described for rule in {*NEXT, *FIRST})


def test_suspects_uses_the_rule_that_its_study_chose() -> None:
    assert suspects.best(lines_of("suspects")) == f"probe {PROBE['C']:g}, logit margin"
    assert (FOLDS, NEIGHBOURS) == (4, 10)


def test_unfamiliar_uses_the_score_that_its_study_chose() -> None:
    lines = lines_of("unfamiliar")
    usable = filter(unfamiliar.usable, lines[0]["scores"])
    assert unfamiliar.best(lines, usable) == f"neighbour {NEIGHBOUR}, frozen"


# Speed


def test_public_steps_are_compared_only_where_they_agree_with_ours() -> None:
    steps = read_json(performance.RESULTS / "public.json")["mma"]
    assert [step["classes"] for step in steps] == [10, 50, 200]
    for step in steps:
        assert max(step["differences"].values()) < 1e-4
        assert len(step["public_all_seconds"]) >= 3
        assert 0 < performance.share(step, "fp32") < 1


def test_the_picture_of_fewer_steps_shows_the_lines() -> None:
    drawn, shown = (
        steps_drawing.drawn(lines_of("fewer_steps")),
        page("docs/studies/fewer_steps.svg"),
    )
    assert re.findall(r">(.+)</text>", drawn) == re.findall(r">(.+)</text>", shown)
    assert re.findall(r'<use xlink:href="[^"]*" x="([^"]*)"', drawn) == re.findall(
        r'<use xlink:href="[^"]*" x="([^"]*)"', shown
    )
    assert "](fewer_steps.svg)" in page("docs/studies/fewer_steps.md")


def test_the_picture_of_steps_shows_as_many_curves_as_are_recorded() -> None:
    drawn = drawing.drawn(read_json(performance.RESULTS / "public.json")["mma"])
    assert drawn.count("<path") == page("docs/studies/performance.svg").count("<path")
