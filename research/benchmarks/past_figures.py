"""Write the figures of research/results/benchmarks into the page of this folder.

python research/benchmarks/past_figures.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import Result, Sections, about, by_backbone, table, write

README = Path(__file__).with_name("README.md")


def main() -> None:
    write(README, SECTIONS)


def overhead(r: Result) -> str:
    """What reconstruction costs."""
    paper = r["paper"]
    rows = [
        [name, f"{r[name]['time_percent']:+.1f} %", f"{r[name]['peak_percent']:+.1f} %"]
        for name in ("lean", "reference")
    ]
    memory = f"{paper['memory_percent']:+.1f} % (GPU memory)"
    rows.append(["paper, Table 7", f"{paper['time_percent']:+.1f} %", memory])
    columns = ["forward", "step time", "peak of a step"]
    return (
        table("What reconstruction costs (`overhead.py`)", columns, rows)
        + f"\nParameters added: {r['added_parameters']:,}; "
        f"the paper says {paper['added_parameters']:,}.\n"
    )


def options(r: Result) -> str:
    """Number formats and the compiler."""
    rows = [
        [row["option"], f"{row['seconds']:.3f}", f"{row['speedup']:.2f}", f"{row['loss']:.4f}"]
        for row in r["rows"]
    ]
    columns = ["option", "step s", "speed-up", "loss"]
    title = f"Number format and compiler, {r['backbone']}, {r['classes']} classes (`options.py`)"
    text = table(title, columns, rows)
    first = f"\nThe first compiled step in float32 took {r['compile_seconds']:.0f} s.\n"
    return text + first + about(r["machine"])


def batching(r: Result) -> str:
    """What batching the adapters' products over blocks could save."""
    rows = [
        [
            row["format"], row["products"], f"{row['step_seconds']:.2f}",
            f"{1e3 * row['one_by_one']:.0f}", f"{1e3 * row['batched']:.0f}",
            f"{row['saves']:.1%}", f"{row['difference']:.0e}",
        ]
        for row in r["rows"]
    ]  # fmt: skip
    columns = ["format", "products", "step s", "block by block ms", "batched ms", "saves at most"]
    title = f"Adapters' products of MMA, {r['backbone']}, {r['classes']} classes (`batching.py`)"
    return table(title, [*columns, "largest difference"], rows) + about(r["machine"])


def protocol(r: Result) -> str:
    """A protocol of many classes, planned and run."""
    rows = [
        [
            f"{row['classes']}", row["what"], f"{row['seconds']:.0f}",
            "–" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}",
            f"{row['memory_gb']:.1f}", f"{row['disk_gb']:.1f}",
        ]
        for row in r["rows"]
    ]  # fmt: skip
    title = f"Many classes, {r['shots']} shots, one epoch of {r['method']} (`protocol.py`)"
    columns = ["classes", "", "seconds", "CPU seconds", "memory GB", "disk GB"]
    return table(title, columns, rows) + about(r["machine"])


@by_backbone
def start(results: list[Result]) -> str:
    """Starts of a process, and what is imported."""
    r = results[0]
    rows = [
        [row["run"], f"{row['cpu_seconds']:.2f}", f"{row['times_torch']:.2f}"] for row in r["rows"]
    ]
    title = f"From a command to the answer to one image, {r['backbone']} (`start.py`)"
    text = table(title, ["run", "seconds of the processor", "times `import torch`"], rows)
    for run, packages in r["imports"].items():
        shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in packages.items())
        text += f"\nSeconds on the clock for imports of `{run}`, slowed by measuring: {shares}.\n"
    return text + about(r["machine"])


def demo_fit(r: Result) -> str:
    """Training of the demo."""
    rows = [
        [name, f"{r[f'{name}_seconds']:.1f}", f"{r[f'{name}_last_loss']:.4f}"]
        for name in ("reference", "lean")
    ]
    text = table("Training of the demo (`demo_fit.py`)", ["forward", "seconds", "last loss"], rows)
    return text + f"\nRatio {r['ratio']:.2f}, {r['images']} images of 8 classes.\n"


def folder(r: Result) -> str:
    """Whole commands, from a folder to a model."""
    counts = f"{r['classes']} classes, {r['shots']} shots and {r['tests']} test images each"
    title = f"From a folder to a model, {r['backbone']}, {counts}: CPU seconds (`folder.py`)"
    return table(title, *parts(r["rows"])) + about(r["machine"])


def backbones(r: Result) -> str:
    """What backbones cost beside each other."""
    title = "Backbones with random weights, float32, batches of 8 (`backbones.py`)"
    licence = "MobileCLIP's weights have Apple's licence, for research only (`apple-amlr`).\n"
    return table(title, *costs(r["rows"])) + about(r["machine"]) + licence


def costs(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells: what an image costs each architecture, and its weights."""
    last = rows[-1]["architecture"]
    heads = ["architecture", "pixels", "CPU ms an image", f"images in the time of one of {last}"]
    cells = []
    for row in rows:
        figures_of = [f"{row['cpu_ms_per_image']:.0f}", f"{row['times']:.1f}"]
        cells.append(
            [row["architecture"], str(row["pixels"]), *figures_of, f"{row['megabytes']:,.0f}"]
        )
    return [*heads, "MB"], cells


def predict_many(r: Result) -> str:
    """The command `predict` on folders of more and more images."""
    title = "Folders of more and more images, a tiny model (`predict_many.py`)"
    rows = [
        [f"{row['images']:,}", f"{row['cpu_seconds']:.1f}", f"{row['peak_mb']:.0f}"]
        for row in r["rows"]
    ]
    return table(title, ["images", "CPU s", "peak MB"], rows) + about(r["machine"])


def parts(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells: CPU seconds of whole commands and of their parts."""
    names = [key for key in rows[0] if key not in ("run", "cpu")]
    cells = [
        [row["run"], f"{row['cpu']:.1f}", *(f"{row[part]:.1f}" for part in names)] for row in rows
    ]
    return ["method, version", "CPU s", *names], cells


def peers(results: Sequence[Result]) -> str:
    """Training steps of every method, one section for each number of classes."""
    return "\n".join(map(_peers, results))


def _peers(r: Result) -> str:
    columns = ["method", "trainable", "images a step", "step s"]
    ratios = any("ratio" in row for row in r["methods"])
    if ratios:
        columns += ["bf16 s", "reference s", "CPU s: lean, bf16, reference", "reference/lean"]
        columns += ["lean/bf16", "ratio of operations", "loss and gradient difference"]
    kinds = ("step", "bf16", "reference")
    rows = []
    for row in r["methods"]:
        peak = row.get("peak_mb")
        step = row.get("step_seconds")
        cells = [row["method"], f"{row['parameters']:,}", str(row["batch"] or "")]
        if "ratio" in row:
            cells += [both(row, kind) for kind in kinds]
            cells.append(", ".join(f"{row[f'{kind}_cpu_seconds']:.2f}" for kind in kinds))
            cells += [f"{row[key]:.2f}" for key in ("ratio", "bf16_ratio", "operations")]
            cells.append(f"{row['loss_difference']:.0e}, {row['gradient_difference']:.0e}")
        else:
            cells += ["" if step is None else f"{step:.4f}", *[""] * (len(columns) - 4)]
        rows.append([*cells, "" if peak is None else f"{peak:.0f}"])
    title = f"Training steps of every method, {r['backbone']}, {r['classes']} classes (`peers.py`)"
    text = "\nSeconds are medians, with the least in brackets; ratios are of CPU seconds.\n"
    return table(title, [*columns, "peak MB"], rows) + text * ratios + about(r["machine"])


def both(row: Result, kind: str) -> str:
    """Write the median seconds and the least."""
    return f"{row[f'{kind}_seconds']:.2f} ({row[f'{kind}_least_seconds']:.2f})"


def public(results: Mapping[str, Sequence[Result]]) -> str:
    """Training steps of the authors' public code and ours."""
    columns = ["method", "public code", "classes", "images a step", "public s", "fp32 s", "bf16 s"]
    columns += ["times public: fp32", "bf16", "CPU s: public, fp32, bf16", "gradient difference"]
    kinds = ("public", "fp32", "bf16")
    measured = [row for of_method in results.values() for row in of_method]
    rows = []
    for row in measured:
        code = f"{row['repository']} at {row['commit'][:7]}"
        cells = [row["method"], code, str(row["classes"]), str(row["batch"])]
        cells += [both(row, kind) for kind in kinds]
        cells += [f"{row['fp32_ratio']:.2f}", f"{row['bf16_ratio']:.2f}"]
        cells.append(", ".join(f"{row[f'{kind}_cpu_seconds']:.1f}" for kind in kinds))
        rows.append([*cells, f"{row['differences']['gradients']:.0e}"])
    last = measured[-1]
    allocator = "the system's allocator"
    allocator += ", told to keep freed memory" * (last["allocator"] == "keep")
    title = "A whole training step of the authors' public code and ours"
    text = (
        f"\nBoth in one process, with {allocator}; medians in turns, the least in brackets, "
        "of which the ratios are.\n"
    )
    title = f"{title}, {last['backbone']} (`public.py`)"
    return table(title, columns, rows) + text + about(last["machine"])


def scaling(studies: Mapping[str, Result]) -> str:
    """Cost against classes, shots, image size and depth."""
    text = ""
    for study, record in studies.items():
        points = record["points"]
        keys = max((list(point) for point in points), key=len)
        rows = [[f"{point[k]:.4g}" if k in point else "" for k in keys] for point in points]
        text += table(f"Cost against {study}", [key.replace("_", " ") for key in keys], rows)
    image = "../results/benchmarks/scaling.png"
    return f"{text}\n![Cost against depth, classes, image size and shots]({image})\n"


def growth(studies: Mapping[str, Result]) -> str:
    """Growth with classes, images and templates."""
    text = ""
    for study, record in studies.items():
        points = record["points"]
        keys = dict.fromkeys(key for point in points for key in point)
        names = [key.rpartition("_")[0] for key in keys if key.endswith("_seconds")]
        rows = []
        for point in points:
            cells = [_growth_cell(point, name) for name in names]
            rows.append([f"{point[study]:,}", *cells, f"{point['process_peak_mb'] or 0:.0f}"])
        slopes = record["exponents"]
        cells = []
        for name in names:
            pair = (slopes.get(f"{name}_seconds"), slopes.get(f"{name}_mb"))
            cells.append(", ".join("–" if x is None else f"{x:.2f}" for x in pair))
        rows.append(["exponent", *cells, ""])
        title = f"Growth with {study}: s, MB (`growth.py`)"
        text += table(title, [study, *names, "process MB"], rows) + about(record["machine"])
    image = "../results/benchmarks/growth.png"
    return f"{text}\n![Growth with classes, images and templates]({image})\n"


def _growth_cell(point: Result, part: str) -> str:
    if f"{part}_seconds" not in point:
        return ""
    memory = point.get(f"{part}_mb")
    return f"{point[f'{part}_seconds']:.2f}" + ("" if memory is None else f", {memory:.0f}")


SECTIONS: Sections = {
    "overhead": overhead, "start": start, "options": options, "batching": batching,
    "protocol": protocol, "folder": folder, "backbones": backbones, "demo_fit": demo_fit,
    "peers": peers, "public": public, "scaling": scaling, "growth": growth,
    "predict_many": predict_many,
}  # fmt: skip

if __name__ == "__main__":
    main()
