"""Tables of research/studies that no script writes show what their records give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from rmadapter.artifacts.record import parse_record
from rmadapter.methods import load_method
from rmadapter.metrics import confidence_interval
from rmadapter.settings import settings_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "research/results"


def benchmark(name: str) -> Any:
    return json.loads((RESULTS / f"benchmarks/{name}.json").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def row(*cells: object) -> str:
    return f"\n| {' | '.join(map(str, cells))} |\n"


# research/studies/scale.md

MANY = (1e6, 1e8, 1e9)
ENCODERS = {
    "`pocket` with adapters, OpenVINO int8": ("pocket", "openvino int8"),
    "ViT-B/16 with adapters, float32": ("ViT-B-16/none", "rmadapter, torch fp32"),
    "ViT-B/16 with adapters, OpenVINO int8": ("ViT-B-16/none", "openvino int8"),
}


def rates() -> dict[str, float]:
    """Return images per second on two cores by the title of a row."""
    predict = {run["run"]: run["images_per_second"] for run in benchmark("predict")["rows"]}
    found = {
        "read and decode, 500 x 375 pixels": predict["decode"],
        "`predict` from files to answers, `pocket`, float32": predict["predict"],
    }
    conditions = ("backbone", "engine", "adapters", "threads", "batch")
    for title, (backbone, engine) in ENCODERS.items():
        [found[f"encode, {title}"]] = [
            run["images_per_second"]
            for run in benchmark("inference")
            if [run[name] for name in conditions] == [backbone, engine, True, 2, 8]
        ]
    return found


def test_hours_are_images_over_measured_rates() -> None:
    for title, rate in rates().items():
        hours = [count / rate / 3600 for count in MANY]
        cells = [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in hours]
        assert row(title, f"{rate:.1f}", *cells) in page("research/studies/scale.md")


def test_storage_is_numbers_times_bytes() -> None:
    [one] = [p for p in benchmark("scaling")["shots"]["points"] if p["shots"] == 1]
    token = one["frozen_mb"] / 20  # MB, of 20 classes
    assert token * 1e6 == (2 * 197 * 768 + 512) * 4
    rows = [
        ("features in float16, `pocket`", 512, "512 bytes", 1e9, "GB"),
        ("features in float16, ViT-B/16", 1024, "1,024 bytes", 1e9, "GB"),
        (
            "tokens at the first adapter in float32, ViT-B/16",
            token * 1e6,
            f"{token:.1f} MB",
            1e12,
            "TB",
        ),
    ]
    for title, size, each, unit, name in rows:
        cells = [f"{count * size / unit:,.{1 if count < 1e7 else 0}f} {name}" for count in MANY]
        assert row(title, each, *cells) in page("research/studies/scale.md")


def test_predicted_and_measured_hours_of_plan_are_the_recorded_ones() -> None:
    text = page("research/studies/scale.md")
    rows = json.loads((RESULTS / "plan.json").read_text(encoding="utf-8"))["rows"]
    for line in rows:
        title = f"{line['data']}, {line['method']}"
        assert row(title, f"{line['predicted']:.2f}", f"{line['taken']:.2f}") in text
    sums = [f"{sum(line[what] for line in rows):.1f}" for what in ("predicted", "taken")]
    assert row("**all**", *sums) in text


# research/studies/demo.md

SINCE = {"target": "input", "target_norm": False, "local": True}  # settings added after its runs


def test_the_table_of_the_demo_shows_its_records() -> None:
    lines = (RESULTS / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    records = [parse_record(line, "demo.jsonl") for line in lines]
    assert [record.task.seed for record in records] == [1, 2, 3, 4, 5]
    shipped = json.loads(json.dumps(settings_of(load_method("rmadapter"))))
    assert all({**SINCE, **record.method.settings} == shipped for record in records)
    titles = {"base": "base classes", "novel": "novel classes", "hm": "harmonic mean"}
    titles |= {score.name: score.name for score in records[0].scores[2:]}
    text = page("research/studies/demo.md").partition("over five seeds\n")[2]
    assert len(re.findall(r"^\|", text, re.M)) == len(titles) + 2
    for name, title in titles.items():
        values = [record.metric(name) or 0 for record in records]
        score = records[0].score(name)
        before = records[0].metric(name, zero_shot=True) or 0
        gain = (f"{fmean(values) - before:+.1f}", f"± {confidence_interval(values):.1f}")
        accuracies = ", ".join(f"{value:.1f}" for value in values)
        cells = (title, score.images if score else "", f"{before:.1f}", accuracies, *gain)
        assert row(*cells).replace("|  |", "| |") in text.replace("|  |", "| |"), title
