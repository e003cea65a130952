"""Run a command of `rmadapter`, and write how many CPU seconds each of its parts took.

    python research/benchmarks/cpu_parts.py OUT.json fit FOLDER --out RUN

A part is what some functions take by themselves: what they call for another part counts there.
`imports` are modules, wherever they are imported; `rest` is what no part has. Times are those of
the threads that run the functions, so torch must have one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# part -> the functions whose time it is, as module:name
PARTS = {
    "imports": (),
    "backbone": (
        "rmadapter.backbones.load:load_backbone", "rmadapter.backbones.load:load_known",
        "rmadapter.backbones.load:shared",
    ),
    "decode": (
        "rmadapter.data.decode:load_image", "rmadapter.data.decode:load_hashed",
        "torchvision.transforms.transforms:Compose.__call__",
    ),
    "looks and hashes": (
        "rmadapter.data.decode:content", "rmadapter.data.duplicates:thumbprint",
        "rmadapter.data.duplicates:looks", "rmadapter.data.duplicates:pairs",
    ),
    "frozen": (
        "rmadapter.encoders.image:ImageEncoder.frozen_at",
        "rmadapter.encoders.text:TextEncoder.frozen",
    ),
    "train": ("rmadapter.training.loop:minimise",),
    "probe": ("rmadapter.methods.linear_probe:LinearProbe.fit",),
    "answers": ("rmadapter.runs.evaluate:predict_all", "rmadapter.runs.features:with_means"),
    "page": ("rmadapter.artifacts.page:write_run_page",),
}  # fmt: skip
REST = "rest"


class Clock:
    """CPU seconds of nested parts, each without those inside of it, over all threads."""

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._threads = threading.local()  # .open: the parts that run, .since: of the innermost
        self.seconds: Counter[str] = Counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and counts its time as that of a part."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(None)

        return wrapped

    def _switch(self, part: str | None) -> None:
        """Begin a part in this thread; None ends the innermost."""
        own, now = self._threads, self._now()
        open_ = vars(own).setdefault("open", [])
        if open_:
            with self._lock:
                self.seconds[open_[-1]] += now - own.since
        open_.append(part) if part else open_.pop()
        own.since = now


def watch(clock: Clock) -> None:
    """Count the time of imports, and of the functions of PARTS in modules imported from now on."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for part, functions in PARTS.items():
        for function in functions:
            module, _, name = function.partition(":")
            wanted.setdefault(module, []).append((part, name))

    for loader in (
        importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader
    ):  # fmt: skip
        plain = loader.exec_module

        def exec_module(self: Any, module: Any, plain: Any = plain) -> None:
            clock.timed("imports", plain)(self, module)
            for part, name in wanted.get(module.__name__, ()):
                _replace(clock, module, part, name)

        loader.exec_module = exec_module  # type: ignore[method-assign]


def _replace(clock: Clock, module: Any, part: str, name: str) -> None:
    """Time a function, or a method, of a module; does nothing where it has none of that name."""
    *outer, last = name.split(".")
    owner = functools.reduce(lambda one, inner: getattr(one, inner, None), outer, module)
    if last in vars(owner or object):
        setattr(owner, last, clock.timed(part, vars(owner)[last]))


def main() -> None:
    out, *words = sys.argv[1:]
    sys.argv = ["rmadapter", *words]
    clock = Clock()
    watch(clock)
    try:
        from rmadapter.cli.main import main as command

        command()
    finally:
        whole = time.process_time()
        rest = whole - sum(clock.seconds.values())
        seconds = {part: clock.seconds[part] for part in PARTS}
        Path(out).write_text(
            json.dumps({"cpu": whole, **seconds, REST: rest}), encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    main()
