"""What all visitors share: the backbone, which serves one at a time, and what the server offers."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rmadapter.artifacts.checkpoint import copy_run
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.run_folder import RunFolder, runs_below
from rmadapter.backbones import Backbone
from rmadapter.encoders import pausing
from rmadapter.errors import UserError
from rmadapter.prompts import MOST_PROMPTS, at_most
from rmadapter.support.locks import exclusive
from rmadapter_studio.fitting import Fitting
from rmadapter_studio.images import safe_name
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.labelling import Labelling
from rmadapter_studio.project import Project

KEPT = "runs"  # folder of a project, for what was trained on its labels
PREFIX = "rmadapter-app-"  # of temporary folders
FRESH = 60.0  # seconds in which a new folder gets its lock


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
    """What all visitors share. runs: a folder of runs that any of them may open. project: a folder
    of images that they label together; without one, each may have their own. lock: of the backbone,
    which serves one visitor at a time."""

    backbone: Backbone
    jobs: Jobs
    runs: Path | None = None
    project: Project | None = None
    lock: FairLock = field(default_factory=FairLock)

    def __post_init__(self) -> None:
        self.labelling = self.label(self.project, keep=True) if self.project else None

    def label(self, project: Project, keep: bool = False) -> Labelling:
        """Return what labels a project. keep: as in `Fitting`."""
        return Labelling(Fitting(project, self.backbone, self.held, keep))

    @contextmanager
    def held(self, most: int = MOST_PROMPTS) -> Iterator[None]:
        """Hold the backbone, and give way to others before each block of its text encoder, which
        may have a thousand prompts to read. most: prompts."""
        with self.lock, pausing(self.lock.give_way), at_most(most):
            yield

    def run_folders(self) -> dict[str, Path]:
        """Return the runs by name, those of `kept` first."""
        kept, others = self.kept(), runs_below(self.runs) if self.runs else []
        return kept | {run.name: run for run in others if run.name not in kept}

    def kept(self) -> dict[str, Path]:
        """Return the runs that were trained on the labels of the project, the newest first."""
        if self.project is None:
            return {}
        runs = runs_below(self.project.folder / KEPT)
        return {run.name: run for run in sorted(runs, key=_number, reverse=True)}

    def keep(self, run: Path) -> None:
        """Copy a run into the folder of the project, below `KEPT`, under its method and a number.
        Raises UserError if the disk refuses."""
        assert self.project is not None
        home = self.project.folder / KEPT
        number = 1 + max(map(_number, self.kept().values()), default=0)
        method = read_model(RunFolder(run).model).method.name
        part = home / f".{number}.part"
        try:
            home.mkdir(exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            copy_run(run, part)
            part.rename(home / f"{safe_name(method)}-{number}")
        except OSError as error:
            raise UserError(
                f"the classifier cannot be kept in {KEPT} of the folder of images "
                f"({error.strerror or error}): make room there, and train again"
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def visitors_folder() -> Iterator[Path]:
    """Yield a temporary folder for what visitors send, and remove it in the end; those of killed
    servers are removed at once."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with exclusive(folder):
            _remove_others(folder)
            yield folder


def _remove_others(folder: Path) -> None:
    """Remove the folders of this user's servers that are no longer running."""
    for other in folder.parent.glob(f"{PREFIX}*"):
        with suppress(OSError, UserError):
            status = other.lstat()
            is_own = status.st_uid == folder.stat().st_uid
            if other != folder and is_own and time.time() - status.st_mtime > FRESH:
                with exclusive(other):  # which a running server holds
                    shutil.rmtree(other)


def _number(run: Path) -> int:
    """Return the number at the end of a run's name, 0 for none."""
    match = re.search(r"-(\d{1,9})$", run.name)
    return int(match[1]) if match else 0
