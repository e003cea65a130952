"""Compare exported models in an environment without torch with `predict`: image by image, method by
method.

python research/scripts/prove_export.py DATA \\
    --out DIR [--images 200] [--methods rmadapter mma] [--to openvino]
[--json]

Each method is fitted to four shots per class of DATA (a folder with a test split) and exported;
then `predict` and the export's own predict.py answer test images. venv and pip make the
environment, whose size is reported. Exits with 1 if an answer differs, or a probability by more
than 1e-4.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

METHODS = ("rmadapter", "mma", "mmrl", "tip-adapter-f", "clip-lora", "linear-probe")
FIT = ("--shots", "4", "--folds", "0", "--effort", "fast", "--quiet")
FEWER = {"clip-lora": ("--set", "iterations=5")}  # each passes through both encoders as a whole
LARGEST = 1e-4


class NoPip(Exception):
    """pip cannot install; the message says why."""


def fresh(folder: Path, needs: Path) -> Path:
    """Make an environment with the packages of requirements.txt; returns its interpreter. Raises
    NoPip."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [
        str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--requirement",
        str(needs),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPip((done.stderr.strip() or "pip failed").splitlines()[-1])
    return python


def megabytes(folder: Path) -> float:
    """Return the size of all files, without pip and what came with it."""
    own = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return (
        sum(
            path.stat().st_size
            for path in files
            if not any(part.startswith(own) for part in path.parts)
        )
        / 1e6
    )


def rmadapter(*words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "rmadapter", *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )


def answers_of(python: Path, export: Path, images: list[Path], file: Path) -> list[dict[str, str]]:
    """Return rows of the export's own answers, made without torch."""
    without = subprocess.run(
        [str(python), "-I", "-c", "import torch"], capture_output=True, check=False
    )
    if not without.returncode:
        raise SystemExit(f"{python} has torch")
    with open(file, "w", encoding="utf-8", newline="\n") as out:
        subprocess.run(
            [str(python), "-I", str(export / "predict.py"), *map(str, images)],
            check=True,
            stdout=out,
        )
    return rows(file)


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def compare(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> dict[str, Any]:
    """Compare answers on the same images: how many differ, and the largest difference of a label's
    probability."""
    if [row["image"] for row in ours] != [row["image"] for row in theirs]:
        raise SystemExit("answers to other images")

    def shares(row: dict[str, str]) -> dict[str, float]:
        places = [
            name.removeprefix("label") for name in row if name.startswith("label") and row[name]
        ]
        return {row[f"label{place}"]: float(row[f"probability{place}"]) for place in places}

    pairs = [(shares(mine), shares(other)) for mine, other in zip(ours, theirs, strict=True)]
    differences = [
        abs(mine[name] - other[name])
        for mine, other in pairs
        for name in mine.keys() & other.keys()
    ]
    others = sum(mine["label"] != other["label"] for mine, other in zip(ours, theirs, strict=True))
    return {"images": len(ours), "other answers": others, "largest difference": max(differences)}


def prove(
    method: str, to: str, data: Path, images: list[Path], out: Path, python: Path | None
) -> tuple[dict[str, Any], Path]:
    """Return the result of a method, and the interpreter, which the first call makes."""
    run, export = out / method, out / f"{method}-{to}"
    rmadapter("fit", data, "--method", method, "--out", run, *FIT, *FEWER.get(method, ()))
    rmadapter("export", run, "--to", to, "--out", export)
    rmadapter("predict", run, *images, "--no-zero-shot", "--out", out / f"{method}.csv", "--quiet")
    python = python or fresh(out / "venv", export / "requirements.txt")
    facts = compare(
        rows(out / f"{method}.csv"), answers_of(python, export, images, out / f"{method}-{to}.csv")
    )
    size = json.loads((export / "export.json").read_text(encoding="utf-8"))["bytes"]
    return {"method": method, **facts, "MB": round(size / 1e6, 1)}, python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--to", default="onnx")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    files = sorted(path for path in (words.data / "test").rglob("*") if path.is_file())
    images = random.Random(0).sample(files, min(words.images, len(files)))
    words.out.mkdir(parents=True)
    python, results = None, []
    for method in words.methods:
        row, python = prove(method, words.to, words.data, images, words.out, python)
        print(row, file=sys.stderr)
        results.append(row)
    facts = {"environment MB": round(megabytes(words.out / "venv"), 1), "methods": results}
    if words.json:
        print(json.dumps(facts))
    else:
        print(f"environment: {facts['environment MB']} MB\n" + "\n".join(map(str, results)))
    sys.exit(any(row["other answers"] or row["largest difference"] > LARGEST for row in results))


if __name__ == "__main__":
    main()
