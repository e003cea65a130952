"""Tables that no tool writes show what their records give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from rmadapter.methods import load_method
from rmadapter.metrics import confidence_interval
from rmadapter.settings import settings_of
from rmadapter_pocket import POCKET, POCKET_3, TEXT, VISION

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "research/results"
Line: TypeAlias = dict[str, Any]


def lines_of(name: str) -> list[Line]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def benchmark(name: str) -> Any:
    return json.loads((RESULTS / f"benchmarks/{name}.json").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def row(*cells: object) -> str:
    return f"\n| {' | '.join(map(str, cells))} |\n"


# docs/studies/defaults.md

BEFORE = {"consistency_unit": "feature", "lambda_image_con": 20, "lambda_text_con": 50}
BEFORE |= {"lambda_image_rec": 1, "lambda_text_rec": 1, "learning_rate": 0.003}
TRIAL = re.compile(r"^\| (pocket\S*) \| (\S+) \| (.+?), (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.M)


def change(trials: list[Line], fields: Line) -> str:
    """Write the change of the only trial with these fields as the page does."""
    texts = [
        f"{t['base'] - t['zero_shot_base']:+.1f} / {t['novel'] - t['zero_shot_novel']:+.1f}"
        for t in trials
        if t["fields"] == fields
    ]
    assert len(texts) <= 1
    return texts[0] if texts else "not run"


def test_the_table_of_defaults_shows_every_trial_of_its_three_settings() -> None:
    every = lines_of("defaults")
    settings = settings_of(load_method("rmadapter"))
    chosen = {name: settings[name] for name in BEFORE}
    columns = (BEFORE, {**chosen, "learning_rate": 0.003}, chosen)
    shown = 0
    for backbone, scale, data, shots, *figures in TRIAL.findall(page("docs/studies/defaults.md")):
        copied = float(scale) in (50, 100)
        name = f"{backbone} at logit scale {scale}" if copied else backbone
        key = (name, data, int(shots))
        trials = [t for t in every if (t["backbone"], t["data"], t["shots"]) == key]
        assert figures == [change(trials, fields) for fields in columns]
        shown += sum(trial["fields"] in columns for trial in trials)
    assert shown == sum(trial["fields"] in columns for trial in every) > 30


def test_the_table_of_passes_shows_means_over_three_sets() -> None:
    plain = load_method("rmadapter").recipe.epochs  # type: ignore[attr-defined]
    groups: dict[tuple[int, int], list[Line]] = {}
    for trial in lines_of("defaults"):
        if set(trial["fields"]) <= {"epochs"}:
            key = trial["shots"], trial["fields"].get("epochs", plain)
            groups.setdefault(key, []).append(trial)
    for (shots, epochs), trials in groups.items():
        sets = sorted(trial["data"] for trial in trials)
        assert sets == ["office_caltech/web", "rsscn7", "trashnet"]
        base, novel = (
            fmean(t[half] - t[f"zero_shot_{half}"] for t in trials) for half in ("base", "novel")
        )
        cells = row(shots, epochs, f"{base:+.1f} / {novel:+.1f}")
        assert cells in page("docs/studies/defaults.md")


# benchmarks/README.md: what bfloat16 costs in accuracy


def test_the_table_of_bfloat16_shows_the_records_and_its_verdict_follows() -> None:
    scores: dict[tuple[str, str, int], tuple[float, ...]] = {}
    for record in lines_of("precision"):
        base, novel = (score["accuracy"] for score in record["scores"])
        key = record["precision"], record["task"]["data"], record["task"]["seed"]
        scores[key] = (base, novel, 2 * base * novel / (base + novel))
    sets = sorted({data for _, data, _ in scores})
    assert {*scores} == {(p, s, n) for p in ("bf16", "fp32") for s in sets for n in (1, 2, 3)}
    columns = [
        [
            fmean(
                scores["bf16", data, n][metric] - scores["fp32", data, n][metric] for n in (1, 2, 3)
            )
            for data in sets
        ]
        for metric in range(3)
    ]
    text = page("benchmarks/README.md")
    for data, *changes in zip(sets, *columns, strict=True):
        assert row(data, *(f"{change:+.2f}" for change in changes)) in text
    means, halves = map(fmean, columns), map(confidence_interval, columns)
    intervals = [(mean, half) for mean, half in zip(means, halves, strict=True)]
    assert row(f"mean of {len(sets)}", *(f"{mean:+.2f}" for mean, _ in intervals)) in text
    ranges = [f"{mean - half:.2f} to {mean + half:.2f}" for mean, half in intervals]
    assert row("95 % interval", *ranges) in text
    assert all(abs(mean) < half for mean, half in intervals)
    assert abs(intervals[2][0]) < 0.3


# docs/reference/pocket.md

HEADS = re.escape("| classes | images | chance | `pocket-1` | `pocket` |")


def pocket_lines() -> dict[tuple[str, str], dict[str, Line]]:
    """Return the lines of all versions by template and set."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in (*lines_of("pocket"), *lines_of("pocket_3_zero_shot")):
        found.setdefault((line["template"], line["set"]), {})[line["backbone"]["name"]] = line
    return found


def test_the_tables_of_the_model_card_show_every_line() -> None:
    tables = re.findall(
        rf"^\| (.*\{{\}}.*?) {HEADS}\n\|[-|]+\n((?:\|.*\n)+)",
        page("docs/reference/pocket.md"),
        re.M,
    )
    shown = {}
    for template, rows in tables:
        for line in rows.splitlines():
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            shown[template, name] = cells
    lines = pocket_lines()
    assert shown.keys() == lines.keys()
    for key, line in lines.items():
        new, old = line["pocket"], line["pocket-1"]
        assert (new["classes"], new["images"]) == (old["classes"], old["images"])
        accuracies = (100 / new["classes"], old["accuracy"], new["accuracy"])
        counts = [str(new["classes"]), f"{new['images']:,}"]
        assert shown[key] == [*counts, *(f"{figure:.1f}" for figure in accuracies)], key


def test_the_model_card_describes_the_shipped_weights() -> None:
    assert {line["pocket"]["backbone"]["digest"] for line in pocket_lines().values()} == {
        POCKET.digest
    }
    for digest in (POCKET.delta_sha256, POCKET.digest, VISION.sha256, TEXT.sha256):
        assert digest in page("docs/reference/pocket.md")


def test_the_table_of_pocket_3_shows_every_line() -> None:
    text = page("docs/reference/pocket.md")
    head = "| a photo of a {}. | classes | images | chance | `pocket` | `pocket-3` |"
    rows = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    lines = {name: line for (_, name), line in pocket_lines().items() if "pocket-3" in line}
    assert {line["pocket-3"]["backbone"]["digest"] for line in lines.values()} == {POCKET_3.digest}
    expected = []
    for name, line in lines.items():
        old, new = line["pocket"], line["pocket-3"]
        assert (new["classes"], new["images"]) == (old["classes"], old["images"])
        figures = (100 / new["classes"], old["accuracy"], new["accuracy"])
        counts = (str(new["classes"]), f"{new['images']:,}")
        expected.append(row(name, *counts, *(f"{figure:.1f}" for figure in figures)).strip())
    assert rows == expected
    for digest in (POCKET_3.delta_sha256, POCKET_3.digest):
        assert digest in text
