"""Pass hostile inputs to the library and judge the outcome.

accepted   a result, equal to that of the valid input where that is known
refused    a UserError of one line
traceback  any other exception, or a refusal that is longer than a line
hang       no result in time
memory     more memory than the kind may take
changed    a result that differs from that of the valid input
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.errors import UserError
from tests.hostile import valid

# kind, which is a module of this folder -> how many of 100 inputs are of it
KINDS = {
    "sets": 14, "templates": 6, "configs": 14, "records": 14, "runs": 10, "backbones": 5,
    "exports": 4, "paths": 4, "special_files": 3, "names": 5, "matlab": 1, "images": 12,
    "tables": 6, "pickles": 4, "bulky": 1,
}  # fmt: skip
SECONDS, MEGABYTES = 5.0, 300.0  # that an input may take
LINE = 1200  # characters of a message at most
START = 60.0  # further seconds that a process may take to import and to begin
BAD = ("traceback", "hang", "memory", "changed")
VERDICTS = ("accepted", "refused", *BAD)


class Changed(AssertionError):
    """A result that differs from that of the valid input."""


class Hang(BaseException):
    pass


class Result(NamedTuple):
    kind: str
    name: str
    verdict: str
    seconds: float
    megabytes: float
    detail: str = ""


class Kind(NamedTuple):
    """Inputs of one kind, and the function that receives them.

    cases: (seed, count) -> names and contents. check: called with a name, a content and an empty
    folder; passes the content to the library. seconds, megabytes: that one input may take.
    """

    cases: Callable[[int, int], Iterator[tuple[str, bytes]]]
    check: Callable[[str, bytes, Path], object]
    seconds: float = SECONDS
    megabytes: float = MEGABYTES


def kind_of(name: str) -> Kind:
    module = import_module(f"tests.hostile.{name}")
    seconds = getattr(module, "SECONDS", SECONDS)
    return Kind(module.cases, module.check, seconds, getattr(module, "MEGABYTES", MEGABYTES))


def run(name: str, seed: int, count: int, start: int = 0) -> Iterator[Result]:
    """Judge the inputs from number `start` on, in this process."""
    kind = kind_of(name)
    valid.backbone()  # else the first input would take the time of imports
    for number, (case, content) in enumerate(kind.cases(seed, count)):
        if number >= start:
            yield judge(name, kind, case, content)


def run_isolated(kind: str, seed: int, count: int) -> Iterator[Result]:
    """Like `run`, but in another process, so that a crash or an endless loop is a result; a new
    process continues after an input that ended the last."""
    done = 0
    while done < count:
        before = done
        for result in _results(kind, seed, count, done):
            done += 1
            yield result
        if done < count and done - 1 == before and result.name.startswith("number"):
            return  # a process without any result would have none the next time


def _results(kind: str, seed: int, count: int, start: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    results, end = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(kind, seed, count, start, end), daemon=True)
    process.start()
    end.close()
    number = start
    while True:
        try:
            if results.poll(START + 10 * SECONDS):
                if (result := results.recv()) is None:
                    return
                number += 1
                yield result
                continue
            verdict, detail = "hang", "no signal reached it"
        except EOFError:
            process.join()
            verdict, detail = "traceback", f"the process ended with {process.exitcode}"
        process.kill()
        yield Result(kind, f"number {number}", verdict, 0.0, 0.0, detail)
        return


def _send(kind: str, seed: int, count: int, start: int, results: Any) -> None:
    for result in run(kind, seed, count, start):
        results.send(result)
    results.send(None)


def judge(name: str, kind: Kind, case: str, content: bytes) -> Result:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, started = _resident(reset=True), time.perf_counter()
        verdict, detail = _verdict(kind, case, content, Path(folder))
        took, peak = time.perf_counter() - started, _peak() - before
    if verdict in ("accepted", "refused") and peak > kind.megabytes:
        verdict, detail = "memory", f"{peak:.0f} MB; {verdict} {detail}"
    return Result(name, case, verdict, took, peak, detail[:300])


def _verdict(kind: Kind, case: str, content: bytes, folder: Path) -> tuple[str, str]:
    try:
        with _limited(kind.seconds):
            kind.check(case, content, folder)
    except Hang:
        return "hang", f"no result in {kind.seconds:g} s"
    except UserError as error:
        text = str(error)
        if len(text) > LINE:
            return "traceback", f"a message of {len(text):,} characters"
        return "refused", text
    except Changed as error:
        return "changed", str(error)
    except MemoryError as error:
        return "memory", f"MemoryError: {error}"
    except (Exception, SystemExit) as error:
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
        return "traceback", f"{type(error).__name__} in {place}: {str(error)[:200]}"
    return "accepted", ""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _resident(reset: bool = False) -> float:
    """Return the resident memory in MB; with `reset`, restart the measurement of `_peak`."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS:")


def _peak() -> float:
    return _status("VmHWM:")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):  # no Linux: a high-water mark that only grows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def table(results: list[Result]) -> list[dict[str, Any]]:
    """Return one row for each kind and one for all kinds."""
    rows = []
    for kind in [*dict.fromkeys(result.kind for result in results), ""]:
        own = [result for result in results if kind in ("", result.kind)]
        counts = Counter(result.verdict for result in own)
        row = {"kind": kind or "all", "tried": len(own), **{v: counts[v] for v in VERDICTS}}
        row["slowest"] = max(result.seconds for result in own)
        row["largest"] = max(result.megabytes for result in own)
        rows.append(row)
    return rows
