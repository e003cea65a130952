"""What all visitors share: the backbone, which serves one at a time, and what the server offers."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rmadapter import Backbone, UserError
from rmadapter.artifacts import RunFolder, read_record
from rmadapter.runs import bounded_text
from rmadapter_studio.copies import copy_run
from rmadapter_studio.fitting import Fitting
from rmadapter_studio.images import safe_name
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.labelling import Labelling
from rmadapter_studio.project import Project

RUNS_FOLDER = "runs"  # folder of a project, for what was trained on its labels
MAX_PROMPTS = 100_000  # of the classes of a run of the server's own


class FairLock:
    """A lock whose holder can give way to a thread that waits for it. (A `threading.Lock` that is
    released and taken again is mostly taken by the same thread.)"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = threading.Lock()  # held by the thread that gets the lock next

    def __enter__(self) -> None:
        with self._next:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def give_way(self) -> None:
        """Release the lock, and wait for it again behind the thread that waits, if there is one."""
        self._lock.release()
        self.__enter__()


@dataclass(eq=False)
class Shared:
    """What all visitors share.

    Attributes:
        backbone: Backbone of every classifier on the page.
        jobs: Commands that visitors started.
        runs: Folder of runs that any of them may open.
        project: Folder of images that they label together; without one, each may have their own.
        secret: What the address has to hold that a browser opens first; "" if anyone may come.
        lock: Lock of the backbone, which serves one visitor at a time.
    """

    backbone: Backbone
    jobs: Jobs
    runs: Path | None = None
    project: Project | None = None
    secret: str = ""
    lock: FairLock = field(default_factory=FairLock)

    def __post_init__(self) -> None:
        self.labelling = self.label(self.project, keep=True) if self.project else None

    def label(self, project: Project, keep: bool = False) -> Labelling:
        """Return what labels a project, and may keep features as in `Fitting`."""
        return Labelling(Fitting(project, self.backbone, self.held, keep))

    @contextmanager
    def held(
        self, prompts: int = MAX_PROMPTS, check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the backbone for at most so many prompts, and give way to others before each block
        of its text encoder, which may have a thousand prompts to read; `check` then raises
        UserError to end it."""

        def pause() -> None:
            self.lock.give_way()
            check()

        with self.lock, bounded_text(prompts, pause):
            yield

    def run_folders(self) -> dict[str, Path]:
        """Return the runs by name, those of `kept` first."""
        others = _runs_in(self.runs) if self.runs else {}
        return {**self.kept(), **others, **self.kept()}

    def kept(self) -> dict[str, Path]:
        """Return the runs that were trained on the labels of the project, the newest first."""
        runs = _runs_in(self.project.folder / RUNS_FOLDER) if self.project else {}
        return {name: runs[name] for name in sorted(runs, key=_number, reverse=True)}

    def keep(self, run: Path) -> None:
        """Copy a run into the folder of the project, below `RUNS_FOLDER`, under its method and a
        number. Raises UserError if the disk refuses."""
        assert self.project is not None
        home = self.project.folder / RUNS_FOLDER
        number = 1 + max(map(_number, self.kept()), default=0)
        method = read_record(RunFolder(run).record).method.name
        part = home / f".{number}.part"
        try:
            home.mkdir(exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            copy_run(run, part)
            part.rename(home / f"{safe_name(method)}-{number}")
        except OSError as error:
            raise UserError(
                f"the classifier cannot be kept in {RUNS_FOLDER} of the folder of images "
                f"({error.strerror or error}): make room there, and train again"
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _runs_in(folder: Path) -> dict[str, Path]:
    runs = sorted(folder.glob("*"))
    return {run.name: run for run in runs if RunFolder(run).model.exists()}


def _number(name: str) -> int:
    """Return the number at the end of a run's name, 0 for none."""
    match = re.search(r"-(\d{1,9})$", name)
    return int(match[1]) if match else 0
