"""The arithmetic of docs/scale.md: recomputed from the measured rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "scale.md").read_text(encoding="utf-8")
MANY = (1e6, 1e8, 1e9)


def measured(name: str) -> Any:
    return json.loads((DOCS / f"results/benchmarks/{name}.json").read_text(encoding="utf-8"))


def rates() -> dict[str, float]:
    """Images a second on two cores."""
    found = {row["run"]: row["images_per_second"] for row in measured("predict")["rows"]}
    rows = {"read and decode, 500 x 375 pixels": found["decode"]}
    rows["`predict` from files to answers, `pocket`, float32"] = found["predict"]
    asked = (
        ("`pocket` with adapters, OpenVINO int8", "pocket", "openvino int8"),
        ("ViT-B/16 with adapters, float32", "ViT-B-16/none", "rmadapter, torch fp32"),
        ("ViT-B/16 with adapters, OpenVINO int8", "ViT-B-16/none", "openvino int8"),
    )
    for title, *one in asked:
        [rows[f"encode, {title}"]] = [
            row["images_per_second"]
            for row in measured("inference")
            if [row["backbone"], row["engine"]] == one
            and row["adapters"]
            and (row["threads"], row["batch"]) == (2, 8)
        ]
    return rows


def number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def test_hours_are_images_over_measured_rates() -> None:
    for title, rate in rates().items():
        cells = " | ".join(number(count / rate / 3600) for count in MANY)
        assert f"| {title} | {rate:.1f} | {cells} |" in PAGE


def test_storage_is_numbers_times_bytes() -> None:
    for name, width in (("`pocket`", 256), ("ViT-B/16", 512)):
        cells = [
            f"{count * 2 * width / 1e9:,.1f}" if count < 1e7 else f"{count * 2 * width / 1e9:,.0f}"
            for count in MANY
        ]
        sizes = " | ".join(f"{cell} GB" for cell in cells)
        assert f"| features in float16, {name} | {2 * width:,} bytes | {sizes} |" in PAGE
    [one] = [point for point in measured("scaling")["shots"]["points"] if point["shots"] == 1]
    token = one["frozen_mb"] / 20  # MB, of 20 classes
    assert token * 1e6 == (2 * 197 * 768 + 512) * 4
    cells = " | ".join(
        f"{count * token / 1e6:,.1f} TB" if count < 1e7 else f"{count * token / 1e6:,.0f} TB"
        for count in MANY
    )
    assert (
        f"| tokens at the first adapter in float32, ViT-B/16 | {token:.1f} MB | {cells} |" in PAGE
    )


def test_what_plan_predicted_and_what_it_took() -> None:
    found = json.loads((DOCS / "results/plan.json").read_text(encoding="utf-8"))["rows"]
    for row in found:
        assert (
            f"| {row['data']}, {row['method']} | {row['predicted']:.2f} | {row['taken']:.2f} |"
            in PAGE
        )
    predicted, taken = (sum(row[what] for row in found) for what in ("predicted", "taken"))
    assert f"| **all** | {predicted:.1f} | {taken:.1f} |" in PAGE
