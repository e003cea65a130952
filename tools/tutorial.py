"""Run the commands of docs/guide/start.md in order, write their outputs into the page, and make its
pictures in docs/guide/start/.

python tools/tutorial.py
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from browser import tab
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs/guide/start.md"
PICTURES = PAGE.with_suffix("")
INSTALLS = "pip install"
BLOCK = re.compile(r"^```bash\n(.*?)^```\n(?:\n<!-- output -->\n(.*?)<!-- end -->)?", re.M | re.S)
SECONDS = re.compile(r"(?<=<!-- seconds -->\n).*?(?=<!-- end -->)", re.S)
INK, SOFT = "#1d2129", "#6b7280"
WIDTH = 860  # of a screenshot, in pixels
Run = Callable[[list[str], Path], str]


def blocks(text: str) -> list[list[list[str]]]:
    """Return the commands of each bash block as words; installations are left out."""
    found = [block.group(1).splitlines() for block in BLOCK.finditer(text)]
    return [[shlex.split(line) for line in lines if INSTALLS not in line] for lines in found]


def run_all(text: str, folder: Path, run: Run) -> tuple[list[str], Path]:
    """Run the commands of a page in order, from `folder`; `cd` changes the folder of the next ones.

    Returns the output of each block's last command and the last folder.
    """
    outputs = []
    for commands in blocks(text):
        shown = ""
        for words in commands:
            if words[0] == "cd":
                folder = folder / words[1]
            else:
                shown = run(words, folder)
        outputs.append(shown)
    return outputs, folder


def in_a_shell(words: list[str], folder: Path) -> str:
    """Run a command as a reader does, say how many lines and seconds it took, and return what it
    prints to stdout."""
    print("$", shlex.join(words), flush=True)
    environ, started = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}, time.monotonic()
    done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    done.check_returncode()
    lines = len(done.stdout.splitlines()) + len(done.stderr.splitlines())
    print(f"{lines} lines, {time.monotonic() - started:.0f} s")
    return done.stdout


def fill(text: str, outputs: list[str], seconds: float) -> str:
    """Return the page with these outputs and seconds."""
    rest = iter(outputs)

    def put(block: re.Match[str]) -> str:
        shown = next(rest)
        if block.group(2) is None:
            return block.group()
        lines = "\n".join(f"    {line}".rstrip() for line in shown.splitlines())
        head = block.group().partition("<!-- output -->")[0]
        return f"{head}<!-- output -->\n\n{lines}\n\n<!-- end -->"

    taken = (
        f"All commands after the installation took {seconds:.0f} seconds of processor time "
        "together, on one core.\n"
    )
    return SECONDS.sub(taken, BLOCK.sub(put, text))


def draw_folders(root: Path, out: Path) -> None:
    """Draw the images of each folder in `root` in a row behind the folder's name."""
    from matplotlib.figure import Figure

    rows = [(folder.name, sorted(folder.iterdir())) for folder in sorted(root.iterdir())
            if folder.is_dir()]  # fmt: skip
    columns = max(len(files) for _, files in rows)
    size, margin = 0.85, 1.75  # inches
    figure = Figure(figsize=(margin + size * columns, size * len(rows)), facecolor="white")
    grid = figure.add_gridspec(
        len(rows), columns, left=margin / (margin + size * columns), right=1, top=1, bottom=0,
        wspace=0.05, hspace=0.05,
    )  # fmt: skip
    for line, (name, files) in enumerate(rows):
        y = 1 - (line + 0.5) / len(rows)
        colour = SOFT if name == "unsure" else INK
        figure.text(0.01, y, f"{name}/", va="center", fontsize=11, color=colour)
        for column, file in enumerate(files):
            axes: Any = figure.add_subplot(grid[line, column])
            axes.axis("off")
            with Image.open(file) as image:
                axes.imshow(np.asarray(image.convert("RGB")))
    figure.savefig(out, dpi=90)
    shrink(out)


def photograph(page: Path, out: Path, end: str) -> None:
    """Save a page as seen in a browser, from its top to the end of the element `end` (CSS)."""
    with tempfile.TemporaryDirectory() as home, tab(Path(home), "--hide-scrollbars") as browser:
        size = {"width": WIDTH, "deviceScaleFactor": 1, "mobile": False}
        browser("Emulation.setDeviceMetricsOverride", height=800, **size)
        browser.go(page.resolve().as_uri())
        bottom = browser.script(f"document.querySelector({end!r}).getBoundingClientRect().bottom")
        browser("Emulation.setDeviceMetricsOverride", height=int(bottom) + 12, **size)
        browser.shot(out)
    with Image.open(out) as shot:
        shot.crop((0, 0, WIDTH, int(bottom) + 12)).save(out)
    shrink(out)


def shrink(file: Path) -> None:
    """Save an image with 64 colours, a third of the size."""
    with Image.open(file) as image:
        image.convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        outputs, folder = run_all(text, Path(home), in_a_shell)
        taken = resource.getrusage(resource.RUSAGE_CHILDREN)
        PAGE.write_text(
            fill(text, outputs, taken.ru_utime + taken.ru_stime), encoding="utf-8", newline="\n"
        )
        for name in ("sorted", "sorted-again"):
            draw_folders(folder / name, PICTURES / f"{name}.png")
        photograph(folder / "look/suspects.html", PICTURES / "suspects.png", "body")
        photograph(folder / "runs/first/report.html", PICTURES / "report.png", "#before-after")
        (folder / "photos/vehicle/ship.png").rename(folder / "photos/animal/ship.png")
        draw_folders(folder / "photos", PICTURES / "photos.png")


if __name__ == "__main__":
    main()
