"""What users rely on, pinned while the package is rearranged: options, JSON keys, files of a run
and of an export.

`RMADAPTER_PIN=1 pytest tests/test_unchanged.py` writes unchanged.json anew; a difference in it is a
change for users.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

import rmadapter as package
from rmadapter.artifacts.record import Record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import read_images
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_key
from rmadapter.settings import settings_of
from tests.helpers.commands import parser
from tests.helpers.shell import Command, backbone_option, rmadapter

__all__ = ["rmadapter"]  # a fixture

# from which the packages beside the library may import
ROOMS = ("answers", "artifacts", "bench", "cli", "data", "export", "runs")
PINS = Path(__file__).with_name("unchanged.json")
RESULTS = Path(__file__).parents[1] / "research/results"


def same(part: str, now: Any) -> None:
    """Compare with the pinned value, or pin it."""
    pins = json.loads(PINS.read_text("utf-8")) if PINS.exists() else {}
    now = json.loads(json.dumps(now))
    if os.environ.get("RMADAPTER_PIN"):
        PINS.write_text(json.dumps({**pins, part: now}, indent=1, sort_keys=True) + "\n", "utf-8")
    else:
        assert now == pins[part]


def shape(value: Any) -> Any:
    """The keys of a JSON value at every level; a list shows its first element."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def test_options() -> None:
    verbs = {}
    for name, command in parser().commands.items():
        verbs[name] = {
            one.name: [
                one.opts,
                one.secondary_opts,
                repr(one.default),
                one.required,
                one.multiple,
                one.nargs,
            ]
            for one in command.params
        }
    same("options", verbs)


def test_public_names() -> None:
    same("public names", sorted(package.__all__))
    rooms = {name: import_module(f"rmadapter.{name}") for name in ROOMS}
    same("public names of rooms", {name: sorted(one.__all__) for name, one in rooms.items()})
    groups = metadata.entry_points(group="rmadapter.methods")
    same(
        "methods",
        {name: type(load_method(name)).__module__ for name in METHODS}
        | {one.name: "" for one in groups},
    )
    same("settings of methods", {name: settings_of(load_method(name)) for name in METHODS})


def _fields(schema: dict[str, Any]) -> Any:
    return {
        name: {**one, "description": "", "title": ""}
        for name, one in schema.get("properties", {}).items()
    }


def test_schema_of_a_record() -> None:
    schema = Record.model_json_schema()
    same(
        "record",
        {"": _fields(schema), **{name: _fields(one) for name, one in schema["$defs"].items()}},
    )


@pytest.mark.parametrize("method", METHODS)
def test_run_keys(colors: Path, method: str) -> None:
    """The backbone's digest depends on the versions of torch, so it is not the real one."""
    wanted = Request.make({"shots": 2, "backbone": "ViT-B-16/openai"}, method, data="colors")
    backbone: Any = SimpleNamespace(name="ViT-B-16/openai", digest="0" * 64)
    few = few_shot(read_images(colors), 2, 1)
    try:
        same(
            f"key of {method}",
            run_key(wanted.task, wanted.method, method, wanted.machine, backbone, few),
        )
    except FileNotFoundError:
        pytest.skip("needs a file")


def _file(path: Path) -> Any:
    if path.suffix == ".json":
        return shape(json.loads(path.read_text("utf-8")))
    if path.suffix == ".csv":
        return next(csv.reader(path.read_text("utf-8").splitlines()))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return sorted(file.keys())
    if path.suffix == ".yaml":
        return [line.partition(":")[0] for line in path.read_text("utf-8").splitlines()]
    return ""


def _files(folder: Path) -> Any:
    return {
        path.relative_to(folder).as_posix(): _file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.ci
def test_a_run_and_what_is_made_of_it(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone, finished: Path
) -> None:
    run, own = tmp_path / "run", backbone_option(finished)
    small = [
        "--set",
        "device=cpu",
        "--set",
        "epochs=1",
        "--set",
        "first_block=3",
        "--set",
        "rank=4",
    ]
    image = colors / "test/red/0.png"
    outputs = {}
    for name, words in {
        "fit": ["fit", colors, *own, "--method", "rmadapter", "--shots", 2, "--seed", 1, *small,
                "--out", run],
        "eval": ["eval", run, colors, *own],
        "predict": ["predict", run, image, *own],
        "predict --out": ["predict", run, image, *own, "--out", tmp_path / "answers.csv"],
        "explain": ["explain", run, image, *own],
        "suspects": ["suspects", colors, *own, "--method", "linear-probe", "--set", "device=cpu"],
        "add": ["add", run, "white", *own, "--out", tmp_path / "added"],
        "compare": ["compare", run, finished, "--data", colors, *own],
        "export": ["export", run, *own, "--out", tmp_path / "export", "--to", "onnx"],
        "bench": [
            "bench", "base-to-novel", "--datasets", colors.name, "--root", colors.parent, *own,
            "--methods", "zero-shot", "--seeds", 1, "--shots", 2, "--set", "device=cpu",
            "--out", tmp_path / "bench",
        ],
        "report": ["report", tmp_path / "bench", "--out", tmp_path / "report"],
        "methods": ["methods", *own[:1], own[1]],
        "data": ["data"],
        "backbones": ["backbones"],
        "cache": ["cache"],
        "doctor": ["doctor"],
    }.items():  # fmt: skip
        code, out, err = rmadapter(*words, "--json")
        assert code == 0, (name, err)
        try:
            outputs[name] = shape(json.loads(out))
        except ValueError:
            outputs[name] = [shape(json.loads(line)) for line in out.splitlines()[:1]]
    same(
        "JSON", {name: value for name, value in outputs.items() if name not in ("doctor", "cache")}
    )
    same("run", _files(run))
    same("export", _files(tmp_path / "export"))
    same("bench", _files(tmp_path / "bench"))
    same("answers", _file(tmp_path / "answers.csv"))


def test_published_results() -> None:
    sums = {}
    pages = {*RESULTS.glob("*.md")}  # of words and tables, which tests/docs holds
    for path in sorted(RESULTS.rglob("*")):
        if path.is_file() and path not in pages:
            sums[path.relative_to(RESULTS).as_posix()] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
    same("results", sums)
