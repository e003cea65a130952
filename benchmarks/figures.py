"""Writes the figures of docs/results/benchmarks into benchmarks/README.md, between its two markers.

python benchmarks/figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "docs" / "results" / "benchmarks", ROOT / "benchmarks" / "README.md"
START, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


def updated(text: str) -> str:
    """The page with its figures replaced by those in the result files."""
    before, after = text.split(START)[0], text.split(END)[1]
    return before + START + "\n" + figures(RESULTS) + END + after


def figures(folder: Path) -> str:
    """Markdown of whatever result files are there."""
    parts = []
    for name, show in SECTIONS.items():
        if (file := folder / f"{name}.json").exists():
            parts.append(show(json.loads(file.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [
        " | ".join(columns),
        " | ".join("---" for _ in columns),
        *(" | ".join(row) for row in rows),
    ]
    return f"\n### {title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def about(machine: dict[str, Any]) -> str:
    return (
        f"\nMachine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']:.0f} GB, torch {machine['torch']}, Python {machine['python']}.\n"
    )


def train_step(found: list[dict[str, Any]]) -> str:
    backbones = dict.fromkeys(r["backbone"] for r in found)
    return "\n".join(_train_step([r for r in found if r["backbone"] == name]) for name in backbones)


def _train_step(found: list[dict[str, Any]]) -> str:
    columns = [
        "classes",
        "lean s",
        "bf16 s",
        "reference s",
        "ratio",
        "bf16 ratio",
        "ratio of operations",
    ]
    columns += ["share of matmul rate", "gradient difference", "lean MB", "bf16 MB", "reference MB"]
    rows = []
    for r in found:
        operations = (
            r["reference_flops_executed"] / r["lean_flops_executed"]
            if "lean_flops_executed" in r
            else None
        )
        row = [
            str(r["classes"]),
            *(f"{r[f'{name}_seconds']:.2f}" for name in ("lean", "mixed", "reference")),
        ]
        row += [f"{r['ratio']:.2f}", f"{r['mixed_ratio']:.2f}"]
        row += [f"{operations:.2f}" if operations else "not counted", f"{r['matmul_share']:.0%}"]
        row += [f"{r['max_gradient_difference']:.1e}"]
        row += [f"{r[f'{name}_peak_mb']:.0f}" for name in ("lean", "mixed", "reference")]
        rows.append(row)
    title = f"A whole training step of {found[0]['backbone']}, batch 16: lean against reference (`train_step.py`)"
    return table(title, columns, rows) + about(found[0]["machine"])


def overhead(r: dict[str, Any]) -> str:
    rows = [
        [name, f"{r[name]['time_percent']:+.1f} %", f"{r[name]['peak_percent']:+.1f} %"]
        for name in ("lean", "reference")
    ]
    paper = r["paper"]
    rows.append(
        [
            "paper, Table 7",
            f"{paper['time_percent']:+.1f} %",
            f"{paper['memory_percent']:+.1f} % (GPU memory)",
        ]
    )
    added = f"\nParameters added: {r['added_parameters']:,}; the paper says {paper['added_parameters']:,}.\n"
    return (
        table(
            "What reconstruction costs (`overhead.py`)",
            ["forward", "step time", "peak of a step"],
            rows,
        )
        + added
    )


def inference(found: list[dict[str, Any]]) -> str:
    backbones = dict.fromkeys(r["backbone"] for r in found)
    return "\n".join(_inference([r for r in found if r["backbone"] == name]) for name in backbones)


def _inference(found: list[dict[str, Any]]) -> str:
    settings = list(dict.fromkeys((r["threads"], r["batch"]) for r in found))
    columns = [
        "engine",
        "adapters",
        *(f"{threads} threads, {batch} at once" for threads, batch in settings),
    ]
    columns += ["one image: p50, p95 in ms", "peak MB", "largest difference"]
    rows = []
    for key in dict.fromkeys((r["engine"], r["adapters"]) for r in found):
        own = {(r["threads"], r["batch"]): r for r in found if (r["engine"], r["adapters"]) == key}
        one = own[min(settings)]
        row = [key[0], "yes" if key[1] else "no"]
        row += [f"{own[s]['images_per_cpu_second']:.1f} ({own[s]['times']:.2f})" for s in settings]
        peak = "" if one["peak_mb"] is None else f"{one['peak_mb']:.0f}"
        rows.append(
            [
                *row,
                f"{one['p50_ms']:.0f}, {one['p95_ms']:.0f}",
                peak,
                f"{max(r['difference'] for r in own.values()):.1g}",
            ]
        )
    title = f"Images per CPU second (times open_clip), {found[0]['backbone']} (`inference.py`)"
    machine = found[0]["machine"] | {
        "threads": " and ".join(str(n) for n in dict.fromkeys(t for t, _ in settings))
    }
    return table(title, columns, rows) + about(machine)


def predict(r: dict[str, Any]) -> str:
    rows = [
        [row["run"], f"{row['images_per_second']:.1f}", f"{row['times_predict']:.2f}"]
        for row in r["rows"]
    ]
    columns = ["run", "images/s", "time, of predict's"]
    title = f"From files to probabilities, {r['backbone']}, {r['images']} images, {r['classes']} classes (`predict.py`)"
    share = f"{100 * r['share_of_model']:.0f} %"
    text = f"\nEncoding every image once instead of twice: {r['ratio']:.2f} times as fast. In `file`, which is\n"
    text += f"`predict --out` with the untouched backbone's column, the model is at work {share} of the time.\n"
    return table(title, columns, rows) + text + about(r["machine"])


def serve(found: list[dict[str, Any]]) -> str:
    return "\n".join(map(_serve, found))


def _serve(r: dict[str, Any]) -> str:
    rows = [
        [
            row["run"],
            f"{row['images_per_second']:.1f}",
            f"{1000 * row['cpu_seconds_per_image']:.1f}",
        ]
        for row in r["rows"]
    ]
    title = f"Over HTTP, {r['backbone']} by {r['engine']}, {r['concurrency']} clients (`serve.py`)"
    late = r["latency"]
    text = f"\nThroughput is {r['ratio']:.2f} of that of `predict`. At {late['rate']:.1f} requests a second, half of it,\n"
    text += f"half of the answers come within {late['p50_ms']:.0f} ms and 99 % within {late['p99_ms']:.0f} ms.\n"
    more = _soak(r["soak"]) if r["soak"] else ""
    return (
        table(title, ["run", "images/s", "CPU ms an image"], rows)
        + text
        + more
        + about(r["machine"])
    )


def _soak(r: dict[str, Any]) -> str:
    memory = ", ".join(f"{mb:.0f} MB at the {when}" for when, mb in r["memory_mb"].items())
    bad = sum(sum(found.values()) for found in r["hostile"].values())
    statuses = ", ".join(f"{count:,} x {status}" for status, count in r["statuses"].items())
    text = f"\n{r['minutes']:g} minutes of full load with {bad:,} hostile requests in it: statuses of polite ones\n"
    text += f"{statuses}; {r['wrong']} wrong answers; memory {memory}.\n"
    rows = [
        [kind, ", ".join(f"{n} x {s}" for s, n in found.items())]
        for kind, found in r["hostile"].items()
    ]
    return text + table(
        "Hostile requests (0: the client left, or was cut off)", ["kind", "statuses"], rows
    )


def options(r: dict[str, Any]) -> str:
    rows = [
        [row["option"], f"{row['seconds']:.3f}", f"{row['speedup']:.2f}", f"{row['loss']:.4f}"]
        for row in r["rows"]
    ]
    text = table(
        "Number format and compiler (`options.py`, pocket)",
        ["option", "step s", "speed-up", "loss"],
        rows,
    )
    return text + f"\nThe first compiled step took {r['compile_seconds']:.0f} s.\n"


def demo_fit(r: dict[str, Any]) -> str:
    rows = [
        [name, f"{r[f'{name}_seconds']:.1f}", f"{r[f'{name}_last_loss']:.4f}"]
        for name in ("reference", "lean")
    ]
    text = table("Training of the demo (`demo_fit.py`)", ["forward", "seconds", "last loss"], rows)
    return text + f"\nRatio {r['ratio']:.2f}, {r['images']} images of 8 classes.\n"


def folder(r: dict[str, Any]) -> str:
    what = f"{r['classes']} classes, {r['shots']} shots and {r['tests']} test images each"
    return table(
        f"From a folder to a model, {r['backbone']}, {what}: seconds (`folder.py`)",
        *parts(r["rows"]),
    )


def parts(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: seconds and shares of whole commands."""
    names = ["start", "decode", "frozen", "train", "evaluate", "rest"]
    each = [
        [f"{row[part]:.1f} ({row[part] / row['seconds']:.0%})" for part in names] for row in rows
    ]
    cells = [
        [row["run"], f"{row['seconds']:.1f}", *some] for row, some in zip(rows, each, strict=True)
    ]
    return ["method, number format", "s", *names], cells


def peers(found: list[dict[str, Any]]) -> str:
    return "\n".join(_peers(r) for r in found)


def _peers(r: dict[str, Any]) -> str:
    columns, plain = (
        ["method", "trainable", "images a step", "step s"],
        any("ratio" in row for row in r["methods"]),
    )
    if plain:
        columns += [
            "bf16 s",
            "reference s",
            "CPU s: lean, bf16, reference",
            "reference/lean",
            "lean/bf16",
        ]
        columns += ["ratio of operations", "loss and gradient difference"]
    rows = []
    for row in r["methods"]:
        peak, step = (row.get(key) for key in ("peak_mb", "step_seconds"))
        cells = [row["method"], f"{row['parameters']:,}", str(row["batch"] or "")]
        if "ratio" in row:
            cells += [both(row, kind) for kind in ("step", "bf16", "reference")]
            cells += [
                ", ".join(
                    f"{row[f'{kind}_cpu_seconds']:.2f}" for kind in ("step", "bf16", "reference")
                )
            ]
            cells += [f"{row[key]:.2f}" for key in ("ratio", "bf16_ratio", "operations")]
            cells += [f"{row['loss_difference']:.0e}, {row['gradient_difference']:.0e}"]
        else:
            cells += ["" if step is None else f"{step:.4f}", *[""] * (len(columns) - 4)]
        rows.append([*cells, "" if peak is None else f"{peak:.0f}"])
    title = f"Training steps of every method, {r['backbone']}, {r['classes']} classes (`peers.py`)"
    text = (
        "\nSeconds are medians, with the least in brackets; ratios are of CPU seconds.\n"
        if plain
        else ""
    )
    return table(title, [*columns, "peak MB"], rows) + text + about(r["machine"])


def both(row: dict[str, Any], kind: str) -> str:
    """Median and least."""
    return f"{row[f'{kind}_seconds']:.2f} ({row[f'{kind}_least_seconds']:.2f})"


def public(found: dict[str, list[dict[str, Any]]]) -> str:
    columns = ["method", "public code", "classes", "images a step", "public s", "fp32 s", "bf16 s"]
    columns += ["times public: fp32", "bf16", "CPU s: public, fp32, bf16", "gradient difference"]
    rows, measured = [], [row for some in found.values() for row in some]
    for row in measured:
        cells = [
            row["method"],
            f"{row['repository']} at {row['commit'][:7]}",
            str(row["classes"]),
            str(row["batch"]),
        ]
        cells += [both(row, kind) for kind in ("public", "fp32", "bf16")]
        cells += [f"{row['fp32_ratio']:.2f}", f"{row['bf16_ratio']:.2f}"]
        cells += [
            ", ".join(f"{row[f'{kind}_cpu_seconds']:.1f}" for kind in ("public", "fp32", "bf16"))
        ]
        rows.append([*cells, f"{row['differences']['gradients']:.0e}"])
    last = measured[-1]
    kept = "the system's allocator" + ", told to keep freed memory" * (last["allocator"] == "keep")
    title = f"A whole training step of the authors' public code and ours, {last['backbone']} (`public.py`)"
    text = f"\nBoth in one process, with {kept}; medians in turns, the least in brackets, of which the ratios are.\n"
    return table(title, columns, rows) + text + about(last["machine"])


def scaling(found: dict[str, Any]) -> str:
    text = ""
    for study, record in found.items():
        points = record["points"]
        keys = max((list(point) for point in points), key=len)
        rows = [[f"{point[k]:.4g}" if k in point else "" for k in keys] for point in points]
        text += table(f"Cost against {study}", [key.replace("_", " ") for key in keys], rows)
    return (
        text
        + "\n![Cost against depth, classes, image size and shots](../docs/results/benchmarks/scaling.png)\n"
    )


def gpu(r: dict[str, Any]) -> str:
    keys = {"seconds": ".4f", "images_per_second": ".0f", "peak_mb": ".0f", "share_of_rate": ".0%"}
    rows = [
        [row["what"], str(row["classes"] or ""), str(row["batch"])]
        + ["" if row.get(key) is None else format(row[key], style) for key, style in keys.items()]
        + [row.get("note", "")]
        for row in r["rows"]
    ]
    columns = ["what", "classes", "batch", "s", "images/s", "peak MB", "share of the rate", "note"]
    rates = ", ".join(f"{name} {rate / 1000:.1f}" for name, rate in r["gflops"].items() if rate)
    text = f"\nDevice: {r['device']}. Large square products, TFLOP/s: {rates}.\n"
    return (
        table(f"On a GPU, {r['backbone']} (`gpu.py`)", columns, rows) + text + about(r["machine"])
    )


def growth(found: dict[str, Any]) -> str:
    text = ""
    for study, record in found.items():
        points = record["points"]
        parts = list(
            dict.fromkeys(
                key.rpartition("_")[0] for p in points for key in p if key.endswith("_seconds")
            )
        )
        rows = [[_part(point, part) for part in parts] for point in points]
        rows = [
            [f"{p[study]:,}", *row, f"{p['process_peak_mb'] or 0:.0f}"]
            for p, row in zip(points, rows, strict=True)
        ]
        slopes = record["exponents"]
        both = [(slopes.get(f"{part}_seconds"), slopes.get(f"{part}_mb")) for part in parts]
        rows.append(
            [
                "exponent",
                *(", ".join("–" if x is None else f"{x:.2f}" for x in pair) for pair in both),
                "",
            ]
        )
        text += table(
            f"Growth with {study}: s, MB (`growth.py`)", [study, *parts, "process MB"], rows
        )
        text += about(record["machine"])
    return (
        text
        + "\n![Growth with classes, images and templates](../docs/results/benchmarks/growth.png)\n"
    )


def _part(point: dict[str, Any], part: str) -> str:
    if f"{part}_seconds" not in point:
        return ""
    memory = point.get(f"{part}_mb")
    return f"{point[f'{part}_seconds']:.2f}" + ("" if memory is None else f", {memory:.0f}")


SECTIONS: dict[str, Any] = {
    "train_step": train_step,
    "overhead": overhead,
    "inference": inference,
    "predict": predict,
    "serve": serve,
    "options": options,
    "folder": folder,
    "demo_fit": demo_fit,
    "peers": peers,
    "public": public,
    "scaling": scaling,
    "growth": growth,
    "gpu": gpu,
}

if __name__ == "__main__":
    main()
