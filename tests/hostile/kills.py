"""Kill runs at random moments, start them again, and compare what they leave with runs that were
not killed.

    python -m tests.hostile.kills --count 200 --seed 1

Every run is the command itself, in a process of its own. Training is on a tiny backbone with random
weights, and saves its state in nearly every step; `pocket` is built from its real wheels, and a
data set comes from a server of this machine. Before every second restart, on average, all files of
the run get a time in the future, as if the clock had been set back by a day. Prints one row per
kind of run and exits with 1 unless all columns behind `runs` are zero.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
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
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import psutil

from rmadapter.artifacts.record import read_record
from rmadapter.cli import main as cli
from rmadapter.errors import UserError
from rmadapter.support.terminal import table
from rmadapter.training import loop
from tests.helpers.images import write_colors
from tests.helpers.models import write_tiny_clip
from tests.helpers.serving import colour_image
from tests.hostile import offline, reloads

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FAULTS = (
    "other weights", "leftovers", "missing files", "lost records", "orphans", "tracebacks",
    "odd exits", "hangs",
)  # fmt: skip
LEARNT = ("model.safetensors", "history.csv", "config.yaml")
FITTED = (*LEARNT, "split.json")  # of `add`, split.json has paths from its own folder
EXPORTED = ("model.onnx", "labels.json", "preprocess.json", "predict.py", "SHA256SUMS")
CONVERTED = ("open_clip_model.safetensors", "open_clip_config.json", "SHA256SUMS")
ALL = ("**/[!.]*",)  # not pocket's .checked, which holds times of its files
TRIED = ("best.yaml", "tune.svg")
# Not model.onnx, whose metadata count what the process has traced before.
SERVED = ("answers.json", "serve/*/labels.json", "serve/*/preprocess.json", "run/*")
DAY = 86_400  # seconds
HANG = 900.0  # seconds that a command may take on a busy machine
PATIENCE = 60.0  # seconds that its children may outlive it
IMPORTED = (
    "open_clip", "sklearn.linear_model", "rmadapter.runs.fit", "rmadapter.classifier",
    "rmadapter.bench.runner", "rmadapter.export.folder", "rmadapter.export.graph",
    "rmadapter.export.web", "rmadapter.export.int8", "onnxruntime", "onnxscript",
    "torch.onnx", "rmadapter.backbones.convert", "rmadapter_research.tune",
    "rmadapter_serve.server",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A command without its folder, which the option or variable `place` names. prepare: called
    before it with that folder and the log. equal: patterns of files that must be equal bit for bit;
    without, the scores of all records must be equal. whole: whether the folder is complete or
    absent, and never resumed."""

    name: str
    words: tuple[str, ...]
    place: str = "--out"
    prepare: Callable[[Path, Path], None] = lambda out, log: None
    equal: tuple[str, ...] = ()
    whole: bool = False


def training_kinds(backbone: Path, data: Path) -> list[Kind]:
    """Return the commands that train: `fit` by several methods, `bench`, and `tune` where Optuna is
    installed."""

    def set_all(*pairs: str) -> tuple[str, ...]:
        return tuple(word for pair in pairs for word in ("--set", pair))

    def fit(method: str, *pairs: str, name: str = "") -> Kind:
        words = ("fit", str(data), "--backbone", str(backbone), "--method", method, "--shots", "4")
        return Kind(f"fit {method}{name}", (*words, *set_all("device=cpu", *pairs)), equal=FITTED)

    short, file = ("first_block=3", "rank=4", "epochs=12", "batch_size=4"), "cache_memory=0"
    methods = "zero-shot,mma,rmadapter,coop,tip-adapter-f"
    fields = [f"{method}.first_block=3" for method in ("mma", "rmadapter")]
    fields += [f"{method}.epochs=3" for method in ("mma", "rmadapter", "coop")]
    bench = ("bench", "base-to-novel", "--datasets", data.name, "--root", str(data.parent))
    bench += ("--backbone", str(backbone), "--methods", methods, "--seeds", "1,2", "--shots", "2")
    bench += set_all("device=cpu", file, *fields)
    tune = ("tune", str(data), "--backbone", str(backbone), "--method", "coop", "--shots", "4")
    tune += ("--trials", "5", "--folds", "2", *set_all("device=cpu", "epochs=3", "batch_size=4"))
    kinds = [
        fit("rmadapter", *short),
        fit("rmadapter", *short, file, name=", activations in a file"),
        fit("mma", *short, "augmentation=standard", "workers=2", name=", augmented by workers"),
        fit("maple", "epochs=6", "batch_size=4"),
        fit("promptsrc", "epochs=6", "batch_size=4"),
        fit("2sfs", "iterations=12", "batch_size=4"),
        fit("prompt-kd", "teaching=4", "epochs=4", "batch_size=4"),
        fit("clip-lora", "iterations=6", file),
        fit("coop", "epochs=12", "batch_size=4"),
        fit("tip-adapter-f", "epochs=12"),
        fit("linear-probe"),
        Kind("bench", bench),
        Kind("bench --jobs 2", (*bench, "--jobs", "2")),
    ]
    if find_spec("optuna"):
        kinds.append(Kind("tune", tune, equal=TRIED))
    else:
        print("tune is left out: Optuna is not installed", file=sys.stderr)
    return kinds


def start(kind: Kind, out: Path, log: Path) -> psutil.Process:
    """Start a command in a process that has imported everything, so that a kill hits its work and
    not its imports."""
    if pid := os.fork():
        return psutil.Process(pid)
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = sys.__stdout__  # pytest has replaced them
        sys.stderr = sys.__stderr__
        loop.SAVE_SECONDS = 0.02
        sys.argv = ["rmadapter", *kind.words]
        if kind.place.startswith("--"):
            sys.argv += [kind.place, str(out)]
        else:
            os.environ[kind.place] = str(out)
        kind.prepare(out, log)
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(process: psutil.Process, faults: Counter[str]) -> int | None:
    """Wait for a process and return its exit code, negative for a signal; kill one that hangs."""
    try:
        return process.wait(HANG)
    except psutil.TimeoutExpired:
        faults["hangs"] += 1
        process.kill()
        process.wait()
        return None


def kill(process: psutil.Process, number: int, after: float, faults: Counter[str]) -> bool:
    """Send a signal after some seconds; return whether the process was still running. No child may
    outlive it."""
    time.sleep(after)
    running, children = False, list[psutil.Process]()
    with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended
        running = process.status() != psutil.STATUS_ZOMBIE
        children = process.children(recursive=True)
        if number == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    code = exit_code(process, faults)
    faults["odd exits"] += code not in (None, 0, -number, 130 if number == signal.SIGINT else 0)
    _, alive = psutil.wait_procs({*children, *session(process.pid)}, timeout=PATIENCE)
    faults["orphans"] += len(alive)
    for orphan in alive:
        orphan.kill()
    return running


def session(leader: int) -> list[psutil.Process]:
    """List the processes of a session."""
    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                members.append(process)
    return members


def set_clock_back(folder: Path) -> None:
    """Give everything in a folder a time that lies in the future."""
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            os.utime(path, (time.time() + DAY,) * 2)


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def records(out: Path) -> dict[str, bytes]:
    """Return the content of all complete records of a run or bench, or the trials of `tune`, by
    name."""
    if (out / "tune.json").exists():
        trials = json.loads((out / "tune.json").read_text())["trials"]
        return {str(trial["number"]): json.dumps(trial).encode() for trial in trials}
    paths = [out / "run.json"]
    if not paths[0].exists():
        paths = list(out.glob("base-to-novel/**/[!.]*.json"))
    complete = {}
    for path in paths:
        with suppress(UserError):
            read_record(path)
            complete[path.relative_to(out).as_posix()] = path.read_bytes()
    return complete


def result(kind: Kind, out: Path) -> object:
    """Return what no kill may change: digests of files, or the scores of every record."""
    if not kind.equal:
        scores = {name: read_record(out / name) for name in sorted(records(out))}
        return [(name, record.key, record.scores) for name, record in scores.items()]
    digests = {}
    for path in [path for pattern in kind.equal for path in out.glob(pattern)]:
        if path.is_file():
            content = path.read_bytes().replace(str(out).encode(), b"")  # pocket names its place
            digests[path.relative_to(out).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


@dataclass
class Reference:
    """A run that was not killed."""

    result: object
    files: set[str]
    seconds: float


def run_undisturbed(kind: Kind, folder: Path) -> Reference:
    out, log, started = folder / "whole", folder / "whole.log", time.monotonic()
    if exit_code(start(kind, out, log), Counter()) != 0:
        raise SystemExit(f"{kind.name}: fails without a kill\n{log.read_text()}")
    return Reference(result(kind, out), files(out), time.monotonic() - started)


def run_with_kills(
    kind: Kind, reference: Reference, folder: Path, rng: random.Random, times: int,
    faults: Counter[str],
) -> int:  # fmt: skip
    """Kill a run some times, then let it finish; return how many kills hit it."""
    out, log, hits = folder / "out", folder / "log", 0
    kept: dict[str, bytes] = {}
    for _ in range(times):
        number, after = rng.choice(SIGNALS), rng.uniform(0, reference.seconds)
        hits += kill(start(kind, out, log), number, after, faults)
        if kind.whole and out.exists():
            faults["missing files"] += len(reference.files - files(out))
            shutil.rmtree(out)
        kept = {**records(out), **kept}
        if rng.random() < 0.5:
            set_clock_back(folder)
    faults["odd exits"] += exit_code(start(kind, out, log), faults) not in (0, None)
    now = records(out)
    faults["lost records"] += sum(now.get(name) != line for name, line in kept.items())
    left, gone = files(out) - reference.files, reference.files - files(out)
    left |= {path.name for path in folder.iterdir()} - {out.name, log.name}
    faults["leftovers"] += len(left)
    faults["missing files"] += len(gone)
    if left or gone:
        print(f"{out}: left {sorted(left)}, missing {sorted(gone)}", file=sys.stderr)
    found = result(kind, out)
    faults["other weights"] += found != reference.result
    if found != reference.result:
        print(f"{out}: {found}, not {reference.result}", file=sys.stderr)
    faults["tracebacks"] += log.read_text().count("Traceback")
    return hits


@contextmanager
def all_kinds(root: Path, only: str) -> Iterator[list[Kind]]:
    """Yield the kinds whose name begins with `only`; what they need is written to `root`."""
    backbone = write_tiny_clip(root / "backbone")
    kinds = training_kinds(backbone, write_colors(root / "colors"))

    def finished(name: str) -> str:
        run, log = root / name, root / f"{name}.log"
        [fit] = [kind for kind in kinds if kind.name == name]
        assert exit_code(start(fit, run, log), Counter()) == 0, log.read_text()
        return str(run)

    with ExitStack() as stack:
        if "add".startswith(only):
            more = root / "more/yellow"
            more.mkdir(parents=True)
            for number in range(6):
                (more / f"{number}.png").write_bytes(colour_image(250, 250, 40 * number))
            words = (
                "add",
                finished("fit rmadapter"),
                str(more.parent),
                "--backbone",
                str(backbone),
            )
            kinds.append(Kind("add", words, equal=LEARNT))
        if "export".startswith(only):
            words = ("export", finished("fit linear-probe"), "--backbone", str(backbone))
            words += ("--data", str(root / "colors"), "--json")
            kinds.append(Kind("export", words, equal=EXPORTED, whole=True))
        if "serve".startswith(only):
            words, prepare = reloads.changing_run(root, backbone)
            kinds.append(Kind("serve", words, "RMADAPTER_CACHE", prepare, SERVED))
        if "convert".startswith(only):
            words = ("backbones", "convert", *offline.checkpoint(root / "architectures"))
            kinds.append(Kind("convert", words, equal=CONVERTED, whole=True))
        if "data".startswith(only):
            prepare = stack.enter_context(offline.data_set())
            words = ("data", "eurosat", "--download")
            kinds.append(Kind("data", words, "--root", prepare, ALL))
        if "pocket".startswith(only):
            words = ("methods", "rmadapter", "--backbone", "pocket", "--classes", "2")
            prepare = offline.wheels(root / "wheels")
            kinds.append(Kind("pocket", words, "RMADAPTER_CACHE", prepare, ALL))
        yield [kind for kind in kinds if kind.name.startswith(only)]


def kill_runs(
    count: int, seed: int, only: str = "", minutes: float = math.inf
) -> list[dict[str, object]]:
    """Kill runs of the kinds whose name begins with `only`, `count` times in all, or as often as
    the minutes allow, of which each kind has an equal share; return one row per kind."""
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
            rows.append(kill_kind(kind, folder, rng, share, 60 * minutes / len(chosen)))
            shutil.rmtree(folder)
    return rows


def kill_kind(
    kind: Kind, folder: Path, rng: random.Random, count: int, seconds: float
) -> dict[str, object]:
    """Kill runs of one kind until `count` kills have hit, and begin none some seconds after the
    undisturbed run; return its row."""
    faults = Counter[str]()
    reference = run_undisturbed(kind, folder)
    end = time.monotonic() + seconds
    hits = runs = 0
    while hits < count and time.monotonic() < end:
        runs, before = runs + 1, faults.total()
        place = folder / str(runs)
        place.mkdir()
        times = min(rng.choice((1, 2, 3)), count - hits)
        hits += run_with_kills(kind, reference, place, rng, times, faults)
        if faults.total() > before:
            log = (place / "log").read_text()
            print(f"{kind.name}, run {runs}: {dict(faults)}\n{log}", file=sys.stderr)
        shutil.rmtree(place)
    row = {"run": kind.name, "seconds": round(reference.seconds, 1), "kills": hits, "runs": runs}
    return row | {fault: faults[fault] for fault in FAULTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="kills in all")
    parser.add_argument("--seed", type=int, default=1, help="of signals and moments")
    parser.add_argument("--only", default="", help="kinds of runs whose name begins so")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of kills, for all kinds")
    options = parser.parse_args()
    rows = kill_runs(options.count, options.seed, options.only, options.minutes)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        total: dict[str, object] = {"run": "all"}
        for name in [name for name in rows[0] if name != "run"]:
            total[name] = sum(row[name] for row in rows)  # type: ignore[misc]
        table(list(total), [[str(value) for value in row.values()] for row in (*rows, total)])
    sys.exit(any(row[fault] for row in rows for fault in FAULTS))


if __name__ == "__main__":
    main()
