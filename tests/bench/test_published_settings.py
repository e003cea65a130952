"""Constants of each data set are settings that exist, and make rows of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench.protocols import expand
from rmadapter.bench.published_settings import as_published, constants, per_set
from rmadapter.data.catalog.sets import CATALOG
from rmadapter.methods import load_method
from rmadapter.settings import settings_of
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # a fixture
PAPER = list(CATALOG)[:11]


@pytest.mark.parametrize("method", per_set())
def test_the_table_names_data_sets_and_settings_that_exist(method: str) -> None:
    row = per_set()[method]
    assert "github.com/" in row["source"]
    assert set(row["sets"]) <= set(PAPER)
    plain = load_method(method)
    for dataset in row["sets"]:
        own = constants(method, f"below/{dataset}")
        assert settings_of(load_method(method, own)) == settings_of(plain) | own


def test_what_the_sources_say() -> None:
    assert constants("mmrl", "eurosat") == {"regularisation": 0.01, "width": 2048}
    assert constants("coprompt", "oxford_pets") == {"n_ctx": 2, "depth": 12, "consistency": 0.1}
    assert constants("tip-adapter", "eurosat") == {
        "alpha": 2.0,
        "largest_beta": 12.0,
        "largest_alpha": 10.0,
    }
    assert constants("tip-adapter-f", "eurosat") == constants("tip-adapter", "eurosat") | {
        "epochs": 100
    }
    assert constants("mmrl", "my-images") == constants("mma", "eurosat") == {}
    assert constants("mma", "imagenet") == {"batch_size": 128}


def test_a_second_row_where_there_are_constants() -> None:
    jobs = expand("base-to-novel", ["dtd", "sun397", "my-images"], ["maple", "prompt-kd"], [1])
    assert constants("prompt-kd", "sun397") == {}
    found, own = list(as_published(jobs)), "PromptKD, as published for each set"
    assert [(job.task.data, job.method, job.variant) for job in found] == [
        ("dtd", "maple", ""),
        ("dtd", "prompt-kd", ""),
        ("dtd", "prompt-kd", own),
        ("sun397", "maple", ""),
        ("sun397", "prompt-kd", ""),
        ("sun397", "prompt-kd", own),  # so that the two rows have the same sets
        ("my-images", "maple", ""),
        ("my-images", "prompt-kd", ""),
    ]
    assert (found[2].values, found[5].values) == ((("weight", 200.0),), ())
    assert found[2].path != found[1].path
    assert list(as_published(jobs[2:])) == jobs[2:]  # nothing but equal rows
    ablation = expand("ablation-layers", ["dtd"], [], [1])
    assert list(as_published(ablation)) == ablation


def test_the_bench_runs_both(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    shutil.copytree(colors, tmp_path / "dtd")
    given = [
        "bench",
        "few-shot",
        "--datasets",
        "dtd",
        "--root",
        tmp_path,
        "--backbone",
        tiny_clip.name,
    ]
    given += ["--methods", "tip-adapter", "--seeds", "1", "--shots", "1", "--set", "device=cpu"]
    code, out, _ = rmadapter(*given, "--out", tmp_path / "out", "--per-set", "--json")
    assert code == 0
    plain, own = (parse_record(json.dumps(record), "") for record in json.loads(out))
    assert (plain.variant, own.variant) == ("", "Tip-Adapter, as published for each set")
    assert (plain.method.settings["alpha"], own.method.settings["alpha"]) == (1.17, 2.0)
