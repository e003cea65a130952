"""Pass hostile inputs to the library and judge the outcome.

accepted   an answer, equal to that of the valid input where that is known
refused    a UserError of one line
traceback  any other exception, or a refusal that is longer than a line
hang       no answer in time
memory     more memory than the kind may take
changed    an answer that differs from that of the valid input
"""

from __future__ import annotations

import contextlib
import resource
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

# How many inputs of each kind, of 100.
KINDS = {
    "sets": 14,
    "templates": 6,
    "configs": 14,
    "records": 14,
    "runs": 14,
    "backbones": 5,
    "paths": 4,
    "special_files": 3,
    "names": 6,
    "matlab": 1,
    "images": 12,
    "tables": 6,
}
SECONDS, MEGABYTES, LINE = 5.0, 300.0, 1200
BAD = ("traceback", "hang", "memory", "changed")
VERDICTS = ("accepted", "refused", *BAD)


class Changed(AssertionError):
    """An answer that differs from that of the valid input."""


class Hang(BaseException):
    pass


class Result(NamedTuple):
    kind: str
    name: str
    verdict: str
    seconds: float
    megabytes: float
    detail: str = ""


def kinds() -> list[str]:
    """Return the kinds whose modules exist."""
    here = Path(__file__).parent
    return [kind for kind in KINDS if (here / f"{kind}.py").is_file()]


class Kind(NamedTuple):
    """Inputs of one kind, and the function that receives them.

    cases: (seed, count) -> names and contents; ask: called with a name, a content and an empty
    folder; seconds, megabytes: limits for one input.
    """

    cases: Callable[[int, int], Iterator[tuple[str, bytes]]]
    ask: Callable[[str, bytes, Path], object]
    seconds: float = SECONDS
    megabytes: float = MEGABYTES


def kind_of(name: str) -> Kind:
    module = import_module(f"tests.hostile.{name}")
    if name in ("images", "tables"):
        from tests.hostile import readers

        if name == "tables":
            return Kind(module.cases, readers.ask_table, 20.0)
        # the time that a file may take, and four times the memory of an ordinary photograph of 24
        # megapixels
        return Kind(module.cases, readers.ask_image, 40.0, 1000.0)
    return Kind(module.cases, module.ask, getattr(module, "SECONDS", SECONDS))


def run(name: str, seed: int, count: int, start: int = 0) -> Iterator[Result]:
    """Judge the inputs from number `start` on, in this process."""
    kind = kind_of(name)
    valid.backbone()  # imports do not count for the first input
    for number, (case, content) in enumerate(kind.cases(seed, count)):
        if number >= start:
            yield judge(name, kind, case, content)


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
            kind.ask(case, content, folder)
    except Hang:
        return "hang", f"no answer in {kind.seconds:g} s"
    except UserError as error:
        text = str(error)
        return (
            ("refused", text)
            if len(text) <= LINE
            else ("traceback", f"a message of {len(text):,} characters")
        )
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
            Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def _peak() -> float:
    return _status("VmHWM:")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):  # no Linux: a high-water mark that only grows
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def table(results: list[Result]) -> list[dict[str, Any]]:
    """Return one row for each kind and one for all kinds."""
    rows = []
    for kind in [*dict.fromkeys(result.kind for result in results), ""]:
        own = [result for result in results if kind in ("", result.kind)]
        counts = Counter(result.verdict for result in own)
        worst = {"slowest": max(r.seconds for r in own), "largest": max(r.megabytes for r in own)}
        rows.append(
            {"kind": kind or "all", "tried": len(own), **{v: counts[v] for v in VERDICTS}, **worst}
        )
    return rows
