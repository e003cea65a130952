"""The jobs, folders and settings of a bench: all that a process needs to know to take part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmadapter.bench.protocols import Job
from rmadapter.settings import Machine
from rmadapter.support.files import ACTIVATIONS


@dataclass(frozen=True)
class Plan:
    """The plan of a bench. values: settings of methods, {method: {setting: value}}. outside, crops:
    as in `Lab`. tune: searches settings for a job with trials, (method, job, lab) -> (method,
    sentence, seconds)."""

    jobs: tuple[Job, ...]
    out: Path
    root: Path = Path()
    machine: Machine = field(default_factory=Machine)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outside: bool = False
    crops: bool = False
    tune: Callable[..., tuple[Any, str, float]] | None = None

    def lab(self) -> Any:
        from rmadapter.runs.run import Lab

        folder = self.out / ACTIVATIONS
        return Lab(
            self.machine,
            self.root,
            folder,
            keep=True,
            progress=False,
            outside=self.outside,
            crops=self.crops,
        )

    def method(self, job: Job) -> Any:
        """The method with the values of --set, overridden by those of the protocol."""
        from rmadapter.methods import load_method

        return load_method(job.method, {**self.values.get(job.method, {}), **dict(job.values)})
