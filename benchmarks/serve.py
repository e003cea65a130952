"""Measure an HTTP server beside `predict` on the same images, engine and machine.

    python benchmarks/serve.py --backbone pocket --engine torch onnx --minutes 10 --json

In turns: `predict`, files to probabilities in this process; `serve`, the same files, one per
request, to `rmadapter serve` in a process of its own, by clients that each send the next one when
they have their answer. All answers must be the same. CPU seconds are those of the process that
answers: the clients, which run in this one, take theirs from the same cores. Then `latency`:
requests at half that rate, whether or not earlier ones are answered, timed from when each was due.
Then, with --minutes, `soak`: as many clients as before and four hostile ones; every answer is
compared, and memory is that of the server at the start, in the middle and at the end.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from clients import GONE, HOSTILE, Client, closed_loop, form, hostile, metrics, open_loop, threads
from common import MB, arguments, class_names, interleaved, medians, set_up, setting, show

from predict import write_files
from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import load_backbone
from rmadapter.export.folder import export
from rmadapter.export.runtime import Model
from rmadapter.export.targets import ExportOptions
from rmadapter.methods import load_method
from rmadapter.training.contract import Known

KEYS = ("run", "seconds", "images_per_second", "cpu_seconds_per_image")
BODY = 4  # MB that the server takes
NEAR = {
    "torch": 1e-5,
    "onnx": 1e-4,
    "openvino": 1e-4,
}  # difference of a probability from `predict` on the same engine
Answers = list[tuple[str, float]]


def main() -> None:
    parser = arguments(__doc__, "classes", repeat=5)
    parser.add_argument("--images", type=int, default=256, help="files, each of which is a request")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file"
    )
    parser.add_argument("--engine", nargs="+", default=["torch"], help="torch, onnx, openvino")
    parser.add_argument("--concurrency", type=int, default=32, help="clients")
    parser.add_argument("--seconds", type=float, default=20, help="of the measurement of latency")
    parser.add_argument(
        "--minutes", type=float, default=0, help="of full load with hostile clients; 0: none"
    )
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        files = list(write_files(folder / "images", options))
        run = fitted(options, folder / "run")
        results = [measure(options, engine, run, files) for engine in options.engine]
    show(options, results, ("engine", *KEYS), [row for result in results for row in result["rows"]])


def measure(
    options: argparse.Namespace, engine: str, run: Path, files: Sequence[Path]
) -> dict[str, Any]:
    about = setting(options, "images", "pixels", "classes", "concurrency") | {"engine": engine}
    bodies = [form(file.read_bytes()) for file in files]
    model = run if engine == "torch" else exported(options, engine, run)
    ask = asker(options, model, files)
    with server(options, model) as address:
        wanted = ask()
        cpu = {"predict": list[float](), "serve": list[float]()}
        check(engine, wanted, closed_loop(address, bodies, options.concurrency))

        def predict() -> None:
            before = time.process_time()
            ask()
            cpu["predict"].append(time.process_time() - before)

        def serve() -> None:
            before = metrics(address)["process_cpu_seconds_total"]
            check(engine, wanted, closed_loop(address, bodies, options.concurrency))
            cpu["serve"].append(metrics(address)["process_cpu_seconds_total"] - before)

        spent = medians(
            interleaved(
                {"predict": predict, "serve": serve}, options.repeat, text="images", warm_up=False
            )
        )
        rates = {name: len(files) / seconds for name, seconds in spent.items()}
        each = {name: value / len(files) for name, value in medians(cpu).items()}
        rows = [
            dict(zip(KEYS, (name, spent[name], rates[name], each[name]), strict=True))
            for name in spent
        ]
        asked = list(zip(bodies, wanted, strict=True))
        result = {
            "rows": [{"engine": engine, **row} for row in rows],
            "ratio": rates["serve"] / rates["predict"],
            "latency": latency(options, address, bodies, rates["serve"] / 2),
            "soak": soak(options, engine, address, asked, files[0].read_bytes())
            if options.minutes
            else None,
            **about,
        }
    return result


def fitted(options: argparse.Namespace, folder: Path) -> Path:
    """Make a model whose adapters change every answer."""
    backbone = load_backbone(options.backbone)
    method: Any = load_method("rmadapter", {"init": "kaiming"})
    model = method.model(backbone, options.seed)
    names = tuple(class_names(options.classes, options.seed))
    save(folder, method.restore(backbone, Known(names), model.adapters.state_dict()), "rmadapter")
    return folder


def exported(options: argparse.Namespace, engine: str, run: Path) -> Path:
    out = run.with_name(engine)
    export(run, load(run, options.backbone), out, ExportOptions(engine))
    return out


def asker(
    options: argparse.Namespace, folder: Path, files: Sequence[Path]
) -> Callable[[], Answers]:
    """Return a function that returns the best class of each file and its probability, as `predict`
    does. folder: a run, or an export."""
    if RunFolder(folder).model.is_file():
        saved = load(folder, options.backbone)
        labels = saved.labels

        def tables() -> Iterator[np.ndarray]:
            return (part.numpy() for part in saved.fitted.probabilities(files, saved.names))
    else:
        model = Model(folder, options.threads)
        labels = tuple(model.labels)

        def tables() -> Iterator[np.ndarray]:
            return (outputs.probabilities for _, outputs in model.outputs(files))

    def ask() -> Answers:
        found = np.concatenate(list(tables()))
        return [(str(labels[row.argmax()]), float(row.max())) for row in found]

    return ask


@contextmanager
def server(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Start a server; yields its address."""
    words = ["serve", folder, "--port", "0", "--threads", options.threads, "--body", BODY]
    code = "from rmadapter.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, words), "--backbone", options.backbone]
    environment = {name: value for name, value in os.environ.items() if name != "RMADAPTER_API_KEY"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        code_ = process.wait(120)
        print(process.stderr.read(), end="", file=sys.stderr)
        process.stderr.close()
    if code_:
        raise SystemExit(f"the server ended with {code_}")


def check(engine: str, wanted: Answers, found: Sequence[tuple[int, Any]]) -> None:
    if wrong := sum(
        not right(engine, one, answer) for one, answer in zip(wanted, found, strict=True)
    ):
        raise SystemExit(f"{wrong} of {len(wanted)} answers are not those of predict")


def right(engine: str, wanted: tuple[str, float], found: tuple[int, Any]) -> bool:
    status, answer = found
    if status != 200:
        return False
    best = answer["answers"][0]["classes"][0]
    return best["class"] == wanted[0] and abs(best["probability"] - wanted[1]) < NEAR[engine]


def latency(
    options: argparse.Namespace, address: str, bodies: Sequence[tuple[bytes, str]], rate: float
) -> dict[str, Any]:
    spent, statuses = open_loop(address, bodies, rate, options.seconds, 2 * options.concurrency)
    p50, p99 = np.percentile(spent, [50, 99])
    told = {"rate": rate, "requests": len(spent), "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99}
    return {**told, "statuses": {str(status): count for status, count in statuses.items()}}


def soak(
    options: argparse.Namespace,
    engine: str,
    address: str,
    asked: Sequence[tuple[Any, tuple[str, float]]],
    photo: bytes,
) -> dict[str, Any]:
    """Apply full load, including hostile clients. asked: bodies and their answers. photo: a JPEG to
    spoil."""
    started = time.monotonic()
    until = started + 60 * options.minutes
    kinds = dict[str, Counter[int]]()
    statuses = Counter[int]()
    memory = list[tuple[float, float]]()
    wrong = [0] * options.concurrency

    def polite(number: int) -> None:
        client = Client(address)
        place = number
        while time.monotonic() < until:
            place = (place + options.concurrency) % len(asked)
            body, wanted = asked[place]
            try:
                found = client.post(*body)
            except (OSError, http.client.HTTPException):
                found = (GONE, None)
            statuses[found[0]] += 1
            wrong[number] += found[0] == 200 and not right(engine, wanted, found)
        client.connection.close()

    def bad(number: int) -> None:
        for kind, found in hostile(
            address, photo, int(BODY * MB), until, options.seed + number
        ).items():
            kinds.setdefault(kind, Counter()).update(found)

    def watch() -> None:
        while time.monotonic() < until:
            resident = metrics(address)["process_resident_memory_bytes"] / MB
            memory.append((time.monotonic() - started, resident))
            time.sleep(min(5, options.minutes * 3))

    jobs = [polite] * options.concurrency + [bad] * HOSTILE
    threads(len(jobs) + 1, lambda number: jobs[number](number) if number < len(jobs) else watch())

    return {
        "minutes": options.minutes,
        "images_per_second": statuses[200] / (60 * options.minutes),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "wrong": sum(wrong),
        "hostile": {
            kind: {str(s): n for s, n in sorted(found.items())}
            for kind, found in sorted(kinds.items())
        },
        # the first tenth warms up
        "memory_mb": {
            name: _memory_at(memory, share * 60 * options.minutes)
            for name, share in (("start", 0.1), ("middle", 0.5), ("end", 1.0))
        },
        "largest_mb": max(mb for _, mb in memory),
    }


def _memory_at(samples: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the median of the tenth of the samples nearest to a time: a single one may catch a
    large image while it is decoded."""
    near = sorted(samples, key=lambda sample: abs(sample[0] - seconds))
    return statistics.median(mb for _, mb in near[: len(near) // 10 + 1])


if __name__ == "__main__":
    main()
