"""Write the figures of research/results/benchmarks into benchmarks/README.md, between its
markers.

python benchmarks/figures.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "research/results/benchmarks", ROOT / "benchmarks/README.md"
START, END = "<!-- figures -->", "<!-- end of figures -->"
FORWARDS = ("lean", "mixed", "reference")

Result: TypeAlias = Mapping[str, Any]  # of a benchmark, or a row of it
Sections: TypeAlias = Mapping[str, Callable[[Any], str]]  # by the name of a result file


def main() -> None:
    write(README, SECTIONS)


def write(page: Path, sections: Sections) -> None:
    page.write_text(
        updated(page.read_text(encoding="utf-8"), sections), encoding="utf-8", newline="\n"
    )


def updated(text: str, sections: Sections) -> str:
    """Return a page with its figures replaced by those in the result files."""
    before, after = text.split(START)[0], text.split(END)[1]
    return before + START + "\n" + figures(RESULTS, sections) + END + after


def figures(folder: Path, sections: Sections) -> str:
    """Make Markdown of the result files in a folder."""
    parts = []
    for name, section in sections.items():
        file = folder / f"{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table with a heading."""
    lines = [" | ".join(row) for row in (columns, ["---"] * len(columns), *rows)]
    return f"\n### {title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def about(machine: Result) -> str:
    """Describe the machine of a benchmark."""
    return (
        f"\nMachine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']:.0f} GB, torch {machine['torch']}, Python {machine['python']}.\n"
    )


def by_backbone(section: Callable[[list[Result]], str]) -> Callable[[Sequence[Result]], str]:
    """Make one section for each backbone."""

    def sections(results: Sequence[Result]) -> str:
        names = dict.fromkeys(r["backbone"] for r in results)
        return "\n".join(section([r for r in results if r["backbone"] == name]) for name in names)

    return sections


@by_backbone
def train_step(results: list[Result]) -> str:
    """Whole training steps: lean against reference."""
    columns = ["classes", "lean s", "bf16 s", "reference s", "ratio", "bf16 ratio"]
    columns += ["ratio of operations", "share of matmul rate", "gradient difference"]
    columns += ["lean MB", "bf16 MB", "reference MB"]
    rows = []
    for r in results:
        operations = "not counted"
        if "lean_flops_executed" in r:
            operations = f"{r['reference_flops_executed'] / r['lean_flops_executed']:.2f}"
        row = [str(r["classes"]), *(f"{r[f'{name}_seconds']:.2f}" for name in FORWARDS)]
        row += [f"{r['ratio']:.2f}", f"{r['mixed_ratio']:.2f}"]
        row += [operations, f"{r['matmul_share']:.0%}", f"{r['max_gradient_difference']:.1e}"]
        row += [f"{r[f'{name}_peak_mb']:.0f}" for name in FORWARDS]
        rows.append(row)
    setting = f"{results[0]['backbone']}, batch 16: lean against reference"
    title = f"A whole training step of {setting} (`train_step.py`)"
    return table(title, columns, rows) + about(results[0]["machine"])


@by_backbone
def inference(results: list[Result]) -> str:
    """Images per CPU second of each engine."""
    settings = list(dict.fromkeys((r["threads"], r["batch"]) for r in results))
    columns = ["engine", "adapters"]
    columns += [f"{threads} threads, {batch} at once" for threads, batch in settings]
    columns += ["one image: p50, p95 in ms", "peak MB", "largest difference"]
    rows = []
    for key in dict.fromkeys((r["engine"], r["adapters"]) for r in results):
        own = [r for r in results if (r["engine"], r["adapters"]) == key]
        by_setting = {(r["threads"], r["batch"]): r for r in own}
        one = by_setting[min(settings)]
        row = [key[0], "yes" if key[1] else "no"]
        for setting in settings:
            r = by_setting[setting]
            row.append(f"{r['images_per_cpu_second']:.1f} ({r['times']:.2f})")
        row.append(f"{one['p50_ms']:.0f}, {one['p95_ms']:.0f}")
        row.append("" if one["peak_mb"] is None else f"{one['peak_mb']:.0f}")
        row.append(f"{max(r['difference'] for r in own):.1g}")
        rows.append(row)
    title = f"Images per CPU second (times open_clip), {results[0]['backbone']} (`inference.py`)"
    threads = " and ".join(str(n) for n in dict.fromkeys(threads for threads, _ in settings))
    return table(title, columns, rows) + about({**results[0]["machine"], "threads": threads})


def predict(r: Result) -> str:
    """From files to probabilities."""
    rows = [
        [row["run"], f"{row['images_per_second']:.1f}", f"{row['times_predict']:.2f}"]
        for row in r["rows"]
    ]
    counts = f"{r['images']} images, {r['classes']} classes"
    title = f"From files to probabilities, {r['backbone']}, {counts} (`predict.py`)"
    text = (
        f"\nEncoding every image once instead of twice: {r['ratio']:.2f} times as fast. "
        "In `file`, which is\n`predict --out` with the untouched backbone's column, "
        f"the model is at work {100 * r['share_of_model']:.0f} % of the time.\n"
    )
    columns = ["run", "images/s", "time, of predict's"]
    return table(title, columns, rows) + text + about(r["machine"])


def serve(results: Sequence[Result]) -> str:
    """Over HTTP, one section for each engine."""
    return "\n".join(map(_serve, results))


def _serve(r: Result) -> str:
    rows = []
    for row in r["rows"]:
        cpu = f"{1000 * row['cpu_seconds_per_image']:.1f}"
        rows.append([row["run"], f"{row['images_per_second']:.1f}", cpu])
    title = f"Over HTTP, {r['backbone']} by {r['engine']}, {r['concurrency']} clients (`serve.py`)"
    latency = r["latency"]
    text = (
        f"\nThroughput is {r['ratio']:.2f} of that of `predict`. "
        f"At {latency['rate']:.1f} requests a second, half of it,\n"
        f"half of the answers come within {latency['p50_ms']:.0f} ms "
        f"and 99 % within {latency['p99_ms']:.0f} ms.\n"
    )
    soak = _soak(r["soak"]) if r["soak"] else ""
    columns = ["run", "images/s", "CPU ms an image"]
    return table(title, columns, rows) + text + soak + about(r["machine"])


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {status}" for status, count in statuses.items())


def _soak(r: Result) -> str:
    memory = ", ".join(f"{mb:.0f} MB at the {when}" for when, mb in r["memory_mb"].items())
    bad = sum(sum(statuses.values()) for statuses in r["hostile"].values())
    text = (
        f"\n{r['minutes']:g} minutes of full load with {bad:,} hostile requests in it: "
        f"statuses of polite ones\n{_counts(r['statuses'])}; {r['wrong']} wrong answers; "
        f"memory {memory}.\n"
    )
    rows = [
        [kind, ", ".join(f"{count} x {status}" for status, count in statuses.items())]
        for kind, statuses in r["hostile"].items()
    ]
    title = "Hostile requests (0: the client left, or was cut off)"
    return text + table(title, ["kind", "statuses"], rows)


def gpu(r: Result) -> str:
    """Training and inference on a GPU."""
    keys = {"seconds": ".4f", "images_per_second": ".0f", "peak_mb": ".0f", "share_of_rate": ".0%"}
    rows = []
    for row in r["rows"]:
        figures = [
            "" if row.get(key) is None else format(row[key], style) for key, style in keys.items()
        ]
        setting = [row["what"], str(row["classes"] or ""), str(row["batch"])]
        rows.append([*setting, *figures, row.get("note", "")])
    columns = ["what", "classes", "batch", "s", "images/s", "peak MB", "share of the rate", "note"]
    rates = ", ".join(f"{name} {rate / 1000:.1f}" for name, rate in r["gflops"].items() if rate)
    text = f"\nDevice: {r['device']}. Large square products, TFLOP/s: {rates}.\n"
    title = f"On a GPU, {r['backbone']} (`gpu.py`)"
    return table(title, columns, rows) + text + about(r["machine"])


SECTIONS: Sections = {
    "train_step": train_step, "inference": inference, "predict": predict, "serve": serve,
    "gpu": gpu,
}  # fmt: skip

if __name__ == "__main__":
    main()
