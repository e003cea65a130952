"""Rows "as published", with the constants that authors set for each data set, beside one setting
for all sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import yaml

from rmadapter.bench.protocols import Job
from rmadapter.data.catalog.sets import ELEVEN, find
from rmadapter.methods.uses import PUBLISHED


@cache
def per_set() -> dict[str, dict[str, Any]]:
    """Method -> {"source": where it was read, "sets": {data set of the catalogue: {setting:
    value}}}."""
    return yaml.safe_load((files("rmadapter") / "assets/per_set.yaml").read_text(encoding="utf-8"))


def constants(method: str, dataset: str) -> Mapping[str, Any]:
    """The constants that a method's authors set for this data set only; empty if there are none."""
    known = find(PurePath(dataset).name)
    return per_set().get(method, {}).get("sets", {}).get(known.key if known else "", {})


def as_published(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs; after each job of a method with constants for some of the sets, the same job with
    those of its own set.

    If the authors have no constants for one of the eleven sets, it enters this row with the one
    setting for all, so that both rows average over the same sets. Other sets do not enter it.
    """
    from rmadapter.methods import load_method

    planned = list(jobs)
    some = {
        job.method for job in planned if not job.variant and constants(job.method, job.task.data)
    }
    for job in planned:
        yield job
        known = find(PurePath(job.task.data).name)
        if job.method in some and not job.variant and known and known.key in ELEVEN:
            label = f"{load_method(job.method).title}, {PUBLISHED} for each set"
            own = constants(job.method, job.task.data)
            yield replace(job, values=(*job.values, *own.items()), variant=label)
