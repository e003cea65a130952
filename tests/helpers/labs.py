"""Requests for short runs, and labs that have their backbone and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request

SHORT = {"shots": 0, "epochs": 2, "batch_size": 8, "first_block": 3, "rank": 4}  # of RMAdapter


def prepare(
    backbone: Backbone, splits: Mapping[str, ImageSet], method: str = "rmadapter",
    folder: Path | None = None, **settings: object,
) -> tuple[Request, Lab]:  # fmt: skip
    """Return a request on data called "x", which are the splits, and a lab that has them."""
    values = {"device": "cpu", "backbone": backbone.name, **settings}
    if method == "rmadapter":
        values = {**SHORT, **values}
    request = Request.make(values, method, data="x")
    lab = Lab(request.machine, folder=folder, progress=False)
    lab.add_backbone(backbone)
    lab.add("x", splits)
    return request, lab
