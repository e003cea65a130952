"""Check that the package works where it was installed, away from its source, with a Python that has
it.

python -m venv /tmp/fresh && /tmp/fresh/bin/pip install dist/*.whl
python tools/smoke.py /tmp/fresh/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COLORS = {"blue": (40, 60, 220), "green": (30, 170, 60), "red": (220, 40, 30)}
WHERE = "import rmadapter, sys; print(rmadapter.__file__); print(sys.prefix)"


def draw(folder: Path, count: int = 4, size: int = 48) -> Path:
    """Write a few images per class, as PPM, which needs no library."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = bytes(max(value - 9 * number, 0) for value in color) * size**2
            (folder / name / f"{number}.ppm").write_bytes(b"P6 %d %d 255\n" % (size, size) + pixels)
    return folder


def steps(images: Path, run: Path, backbone: str) -> Iterator[list[str]]:
    """List commands, each of which must succeed."""
    yield ["--version"]
    yield ["--help"]
    yield ["doctor", "--json"]
    yield ["methods", "--json"]
    yield [
        "fit", str(images), "--method", "zero-shot", "--backbone", backbone, "--out", str(run),
        "--quiet",
    ]  # fmt: skip
    its = ["--backbone", backbone]
    yield ["predict", str(run), str(images), *its, "--json"]
    yield ["eval", str(run), str(images), "--split", "all", *its, "--json"]
    yield ["push", str(run), "somebody/colors", "--out", str(run.with_name("pushed")), "--json"]


def source_of(python: str) -> str:
    """Say what is wrong with where the package is imported from, or ""."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", WHERE], capture_output=True, text=True, env=clean, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        return f"{python}: {(done.stderr.strip() or 'failed').splitlines()[-1]}"
    file, prefix = done.stdout.split("\n")[:2]
    return (
        ""
        if Path(file).is_relative_to(prefix)
        else f"{file} is not what was installed into {prefix}"
    )


def smoke(python: str, backbone: str) -> Iterator[tuple[str, float, str]]:
    """Yield step, seconds, and what went wrong, or ""."""
    with tempfile.TemporaryDirectory() as place:
        images = draw(Path(place, "images"))
        run = Path(place, "run")
        for words in steps(images, run, backbone):
            started = time.perf_counter()
            command = [python, "-m", "rmadapter", *words]
            done = subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)
            fault = (
                (done.stderr.strip() or "no word on stderr").splitlines()[-1]
                if done.returncode
                else ""
            )
            yield words[0], time.perf_counter() - started, fault
            if fault:
                return


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", help="that of the environment, as /tmp/fresh/bin/python")
    parser.add_argument(
        "--backbone", default="pocket", help="by default pocket, which takes PyPI once"
    )
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    words.python = os.path.abspath(
        shutil.which(words.python) or words.python
    )  # commands run in another folder
    if fault := source_of(words.python):
        print(fault, file=sys.stderr)
        return 1
    rows = []
    for step, seconds, fault in smoke(words.python, words.backbone):
        rows.append({"step": step, "seconds": round(seconds, 1), "fault": fault})
        if not words.json:
            print(f"{step:12} {seconds:6.1f} s  {fault or 'ok'}")
    if words.json:
        print(json.dumps(rows))
    return int(any(row["fault"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
