"""What the benchmarks share: options, the machine, interleaved timing, peak memory, output.

Every benchmark measures its reference in the same run as what it is compared with, in turns, and
reports medians: a machine that is slower for a while is then slower for both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rmadapter.data.read import ImageSet
from rmadapter.support.machine import describe, keep_freed_memory, peak, reset_peak, versions
from rmadapter.support.terminal import bar, table

CPU = torch.device("cpu")
MB, GB = 1e6, 1e9
Run = Callable[[], Any]
OPTIONS = {"classes": (50, "class names in the prompts"), "batch": (16, "images per step")}


def arguments(description: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """Make a parser of the options that every benchmark has, and of the named ones of OPTIONS."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="ViT-B-16/none", help="any name that load_backbone understands"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of images, labels, class names and adapters"
    )
    parser.add_argument("--repeat", type=int, default=7, help="measured rounds; the median counts")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of torch; 0 leaves torch's own choice"
    )
    parser.add_argument(
        "--allocator",
        choices=["keep", "default"],
        default="keep",
        help="keep: memory freed in a step serves the next",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name in names:
        parser.add_argument(f"--{name}", type=int, default=OPTIONS[name][0], help=OPTIONS[name][1])
    parser.set_defaults(**defaults)
    return parser


def set_up(options: argparse.Namespace) -> None:
    """Set threads, seed and memory allocator of the process."""
    if options.allocator == "keep":
        keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)


# ---- what figures depend on ----


def machine() -> dict[str, Any]:
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
        if hasattr(os, "sysconf")
        else 0.0
    )
    load = (
        os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    )  # processes that wanted a core in the last minute
    software = {name: versions()[name] for name in ("python", "torch", "platform")}
    return {
        **describe(CPU),
        "memory_gb": round(memory, 1),
        "load_before": round(load, 2),
        **software,
    }


def setting(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that a figure depends on, with the machine."""
    every = ("backbone", "seed", "repeat", "allocator", *names)
    return {**{name: getattr(options, name) for name in every}, "machine": machine()}


def class_names(count: int, seed: int) -> list[str]:
    """Draw some of ImageNet's class names, which have one to seven tokens."""
    from open_clip import IMAGENET_CLASSNAMES

    if count > len(IMAGENET_CLASSNAMES):
        raise SystemExit(f"--classes {count}: there are {len(IMAGENET_CLASSNAMES)} class names")
    return random.Random(seed).sample(list(IMAGENET_CLASSNAMES), count)


def noise(count: int, classes: int, size: int, seed: int) -> ImageSet:
    """Make images of noise, of the classes in turn: the values of pixels do not change the work."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return ImageSet(
        tuple(pixels), tuple(i % classes for i in range(count)), tuple(class_names(classes, seed))
    )


# ---- time ----


def interleaved(
    runs: dict[str, Run] | Sequence[tuple[str, Run]],
    repeat: int,
    budget: float = float("inf"),
    text: str = "",
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every call of each run, taken in turns after a warm-up round; a round may contain
    a run several times.

    budget: seconds after which no further round starts, once there are three. clock:
    `time.process_time` for seconds of the processor.
    """
    turns = list(runs.items()) if isinstance(runs, dict) else list(runs)
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    with bar() as display:
        task = display.add_task(text, total=(repeat + warm_up) * len(turns), note="")
        started = time.perf_counter()
        for round_ in range(-warm_up, repeat):
            if round_ >= 3 and time.perf_counter() - started > budget:
                break
            for name, run in turns:
                display.update(task, note=name)
                begun = clock()
                run()
                if round_ >= 0:
                    seconds[name].append(clock() - begun)
                display.advance(task)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


# ---- memory ----


def held() -> float | None:
    """Return the MB that the process holds now, where the system can tell it (Linux)."""
    reset_peak(CPU)
    return peak(CPU)["peak_mb"]


def peak_beyond(before: float | None, run: Run) -> float | None:
    """Return the most MB that the process held at once during a call, beyond what it held
    before."""
    reset_peak(CPU)
    run()
    most = peak(CPU)["peak_mb"]
    return None if most is None or before is None else most - before


def in_fresh_process(script: str, options: argparse.Namespace, *more: str) -> Any:
    """Run a benchmark with these and further options in a process of its own, and return the JSON
    it prints."""
    names = [
        name
        for name in ("backbone", "batch", "seed", "threads", "allocator")
        if hasattr(options, name)
    ]
    same = [text for name in names for text in (f"--{name}", str(getattr(options, name)))]
    done = subprocess.run(
        [sys.executable, script, *same, *more], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


# ---- output ----


def show(
    options: argparse.Namespace, result: Any, keys: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    """Print the result as JSON, or for people as a table of some figures of each row."""
    if options.json:
        print(json.dumps(result, indent=1))
        return
    cells = [[row[key] for key in keys] for row in rows]
    texts = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells
    ]
    table([key.replace("_", " ") for key in keys], texts)
