"""Constants of each data set: rows "as published" beside the one setting for all, where authors have such constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import yaml

from rmadapter.bench.protocols import Job
from rmadapter.data.catalog import CATALOG, find
from rmadapter.uses import PUBLISHED

ELEVEN = 11  # sets of the base-to-novel protocol, which the catalogue has first


@cache
def per_set() -> dict[str, dict[str, Any]]:
    """Method -> {"source": where it was read, "sets": {data set of the catalogue: {setting: value}}}."""
    return yaml.safe_load((files("rmadapter") / "assets/per_set.yaml").read_text(encoding="utf-8"))


def constants(method: str, dataset: str) -> Mapping[str, Any]:
    """What a method's authors set for this data set alone; empty where they have nothing, or the set is not theirs."""
    known = find(PurePath(dataset).name)
    return per_set().get(method, {}).get("sets", {}).get(known.key if known else "", {})


def as_published(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, and behind each one of a method with constants for some of its sets the same with those of its own set.

    One of the eleven sets for which its authors have none stands in that row with the one setting for all, so that both
    rows are averages over the same sets; nobody's else does.
    """
    from rmadapter.methods import load_method

    planned = list(jobs)
    some = {job.method for job in planned if not job.variant and constants(job.method, job.task.data)}
    for job in planned:
        yield job
        known = find(PurePath(job.task.data).name)
        if job.method in some and not job.variant and known and known.key in list(CATALOG)[:ELEVEN]:
            label = f"{load_method(job.method).title}, {PUBLISHED} for each set"
            own = constants(job.method, job.task.data)
            yield replace(job, values=(*job.values, *own.items()), variant=label)
