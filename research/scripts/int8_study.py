"""Measure what 8-bit weights cost and save: a linear probe of each data set, with every candidate
of `export/int8.py`, on test images.

    python research/scripts/int8_study.py grocery pacs/photo --root DATA \\
        --out research/results/int8.jsonl

    python research/scripts/int8_study.py --out research/results/int8.jsonl --tables

A line is one data set: the ways of `--to onnx`, and that of `--to openvino` if NNCF is installed.
Training images alone decide which of them an export to ONNX would take. Finished lines are kept:
repeat the command to resume. CPU seconds are of one thread.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from studies import Line, Lines, append_lines, make_parser, markdown, read_lines

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.export import graph
from rmadapter.export.engines import GRAPH
from rmadapter.export.folder import transform_facts
from rmadapter.export.int8 import (
    CANDIDATE,
    PLAIN,
    WAYS,
    agreement,
    best_way,
    candidates,
    timed_answers,
    write_balanced,
)
from rmadapter.export.parity import compared_images, training_images
from rmadapter.export.runtime import LABELS, TRANSFORM, Model
from rmadapter.metrics import accuracy
from rmadapter.support.files import write_json
from rmadapter.support.machine import processor, versions

FP32, OTHER = "none: fp32", "--to openvino"
HEAD = (
    "data", "test images", "weights in 8 bits", "MB", "accuracy", "change", "same answers in %",
    "mean difference", "images per CPU second", "of fp32's",
)  # fmt: skip


def study(data: str, root: Path, shots: int, most: int) -> dict[str, Any]:
    """Fit a probe, and make a line: facts of fp32 and of each way."""
    with tempfile.TemporaryDirectory() as folder:
        run, stage = Path(folder) / "run", Path(folder) / "stage"
        options = ("--method", "linear-probe", "--shots", shots, "--folds", 0, "--quiet")
        words = ("fit", root / data, "--out", run, *options)
        command = [sys.executable, "-m", "rmadapter", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        saved = load(run, None, device="cpu")
        _stage(stage, saved)
        model = Model(stage, threads=1)
        tests = compared_images(run, saved, None, False, most)
        rows = compare(
            model,
            stage,
            model.pixels(training_images(run)),
            model.pixels(tests.images),
            tests.labels,
        )
    return {
        "data": data, "shots": shots, "method": "linear-probe",
        "backbone": saved.fitted.backbone.name,
        "images": len(tests.images), "rows": rows, "cpu": processor(),
        "versions": versions() | _engines(),
    }  # fmt: skip


def _engines() -> dict[str, str]:
    names = ("onnxruntime", "openvino", "nncf")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}


def _stage(stage: Path, saved: Saved) -> None:
    stage.mkdir()
    graph.write(graph.trace(saved.fitted, saved.names), stage / GRAPH)
    write_json(stage / LABELS, saved.labels)
    write_json(stage / TRANSFORM, transform_facts(saved.fitted.backbone))


def compare(
    model: Model, stage: Path, training: np.ndarray, test: np.ndarray, labels: Sequence[int]
) -> list[dict[str, Any]]:
    """Return rows of fp32 and of each way, with the one that an export takes marked. training,
    test: pixels [N, 3, H, W]."""
    (known, _), (wanted, seconds) = timed_answers(model, training), timed_answers(model, test)
    rows, measured = [_row(FP32, stage / GRAPH, wanted, wanted, labels, seconds)], []
    for way in candidates(stage, training, (PLAIN, *WAYS)):
        quantised = Model(stage, threads=1, graph=CANDIDATE)
        table, spent = timed_answers(quantised, training)
        measured.append(
            (agreement(table, known) if way is not PLAIN else 0.0, spent)
        )  # an export does not try it
        table, spent = timed_answers(quantised, test)
        rows.append(_row(way.name, stage / CANDIDATE, table, wanted, labels, spent))
    if importlib.util.find_spec("nncf"):
        with tempfile.TemporaryDirectory() as folder:
            other = Path(shutil.copytree(stage, Path(folder) / "openvino"))
            write_balanced(other / GRAPH, other / GRAPH, training)
            graph.write_openvino(other, "int8")
            table, spent = timed_answers(Model(other, threads=1), test)
            rows.append(_row(OTHER, other / graph.WEIGHTS, table, wanted, labels, spent))
    return [{**row, "chosen": place == 1 + best_way(measured)} for place, row in enumerate(rows)]


def _row(
    name: str,
    file: Path,
    table: np.ndarray,
    wanted: np.ndarray,
    labels: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    return {
        "way": name,
        "MB": round(file.stat().st_size / 1e6, 1),
        "accuracy": round(accuracy(table, labels), 2),
        "same": round(100 * agreement(table, wanted), 2),
        "difference": float(f"{np.abs(table - wanted).mean():.2g}"),
        "rate": round(len(table) / seconds, 1),
    }


def table(lines: Lines) -> str:
    """Make a table of what an export takes for each set, and the means of each way over all
    sets."""
    rows, parts = [], []
    for line in lines:
        plain = line["rows"][0]
        parts += [(row, plain) for row in line["rows"]]
        parts += [({**row, "way": "taken"}, plain) for row in line["rows"] if row["chosen"]]
        chosen = [row for row in line["rows"] if row["chosen"]]
        rows += [_cells(line["data"], line["images"], [(row, plain)]) for row in chosen]
    for name in dict.fromkeys(row["way"] for row, _ in parts):
        pairs = [(row, plain) for row, plain in parts if row["way"] == name]
        rows.append(_cells(f"mean of {len(lines)}", sum(line["images"] for line in lines), pairs))
    return markdown(HEAD, rows, spaced=True)


def _cells(data: str, images: int, pairs: Sequence[tuple[Line, Line]]) -> list[str]:
    def mean(key: str) -> float:
        return fmean(row[key] for row, _ in pairs)

    change = fmean(row["accuracy"] - plain["accuracy"] for row, plain in pairs)
    times = fmean(row["rate"] / plain["rate"] for row, plain in pairs)
    return [
        data, str(images), pairs[0][0]["way"], f"{mean('MB'):.1f}", f"{mean('accuracy'):.1f}",
        f"{change:+.1f}",
        f"{mean('same'):.1f}", f"{mean('difference'):.2g}", f"{mean('rate'):.1f}", f"{times:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, seeds=False)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--images", type=int, default=200, help="of the test split, at most")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(table(lines))
        return
    done = {line["data"] for line in lines}
    for data in args.data:
        if data not in done:
            line = study(data, args.root, args.shots, args.images)
            append_lines(args.out, [line])
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
