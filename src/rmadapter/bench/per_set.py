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
from rmadapter.data.catalog import find
from rmadapter.uses import PUBLISHED


@cache
def per_set() -> dict[str, dict[str, Any]]:
    """Method -> {"source": where it was read, "sets": {data set of the catalogue: {setting: value}}}."""
    return yaml.safe_load((files("rmadapter") / "assets/per_set.yaml").read_text(encoding="utf-8"))


def constants(method: str, dataset: str) -> Mapping[str, Any]:
    """What a method's authors set for this data set alone; empty where they have nothing, or the set is not theirs."""
    known = find(PurePath(dataset).name)
    return per_set().get(method, {}).get("sets", {}).get(known.key if known else "", {})


def as_published(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, and behind each one the same with its data set's own constants, where there are any."""
    from rmadapter.methods import load_method

    for job in jobs:
        yield job
        if not job.variant and (own := constants(job.method, job.task.data)):
            label = f"{load_method(job.method).title}, {PUBLISHED} for each set"
            yield replace(job, values=(*job.values, *own.items()), variant=label)
