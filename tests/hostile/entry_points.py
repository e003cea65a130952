"""Functions that open a path, for the kinds `paths` and `special_files`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import load_backbone
from rmadapter.bench.plan import Plan, Progress, finished_records
from rmadapter.bench.protocols import expand
from rmadapter.bench.report.read import read_records
from rmadapter.data.catalog.readers import split_json
from rmadapter.data.catalog.sets import CATALOG, load_dataset, table_of
from rmadapter.data.read import load_image, read_images
from rmadapter.methods import load_method
from rmadapter.runs.request import read_config
from rmadapter.support.files import read_json
from tests.hostile import valid

ENTRY_POINTS: dict[str, Callable[[str], object]] = {
    "config": lambda path: read_config(Path(path)),
    "data": read_images,
    "data set": load_dataset,
    "root": lambda path: load_dataset("dtd", Path(path)),
    "backbone": load_backbone,
    "weights": lambda path: load_backbone(f"ViT-B-32/{path}.safetensors"),
    "run": lambda path: load(path, valid.backbone()),
    "method": lambda path: load_method(f"{path}.py:Method"),
    "record": lambda path: read_record(Path(path)),
    "records": lambda path: read_records(Path(path)),
    "json": lambda path: read_json(Path(path)),
    "split": lambda path: split_json(Path(path)),
    "image": load_image,
    "bench": lambda path: Progress(
        Plan(tuple(expand("base-to-novel", [path], ["mma"], [1])), Path("nowhere"))
    ).remaining(),
    "results": lambda path: finished_records(Path(path)),
}


def inside(place: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Return files that are opened with their folder: name -> path, and function that opens it."""
    flowers, pets = CATALOG["oxford_flowers"], CATALOG["oxford_pets"]
    readers = (finished_records, read_records)
    return {
        "model.json": (place / "model.json", lambda: load(place, valid.backbone())),
        "classnames.json": (place / "classnames.json", lambda: read_images(_colors(place))),
        "labels.mat": (place / "imagelabels.mat", lambda: table_of(flowers, _names(place))),
        "names.json": (place / "cat_to_name.json", lambda: table_of(flowers, place)),
        "pets.txt": (place / "annotations/trainval.txt", lambda: table_of(pets, place)),
        "results.json": (place / "a/run.json", lambda: [f(place) for f in readers]),
        "open_clip": (place / "open_clip_config.json", lambda: load_backbone(str(_weights(place)))),
        "hf": (place / "config.json", lambda: load_backbone(str(_weights(place)))),
    }


def _colors(place: Path) -> Path:
    from PIL import Image

    for name in ("cat", "dog"):
        (place / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(place / name / "a.png")
    return place


def _names(place: Path) -> Path:
    (place / "cat_to_name.json").write_text('{"1": "rose"}')
    return place


def _weights(place: Path) -> Path:
    shutil.copy(Path(valid.backbone().name) / "open_clip_model.safetensors", place)
    return place
