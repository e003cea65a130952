"""The verbs of cli/machine.py: lists, backbones, and what this machine has."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.cli.machine import diagnose
from rmadapter.data.catalog.sets import CATALOG
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from rmadapter_pocket import TEXT, VISION
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.mark.usefixtures("vit_b16_drawn_once")
def test_methods_lists_all_with_the_papers_counts(rmadapter: Command) -> None:
    found = {method["name"]: method for method in rmadapter.json("methods")}
    assert list(found) == [*METHODS]
    assert found["mma"]["parameters"] == 674_560  # as its paper has it, ViT-B/16
    assert found["zero-shot"]["parameters"] == 0
    assert found["rmadapter"]["settings"]["rank"] == 32
    assert all(method["source"] and method["title"] for method in found.values())
    tracks = {name: method["uses"]["track"] for name, method in found.items()}
    apart = {name: track for name, track in tracks.items() if track != "ranked"}
    assert apart == {
        "zero-shot-descriptions": "extra data", "ss-text-u": "extra data",
        "tda": "test time", "stata": "test time", "tpt": "test time", "prompt-kd": "teacher",
    }  # fmt: skip


@pytest.mark.usefixtures("vit_b16_drawn_once")
def test_methods_fits_80_columns_and_names_all(rmadapter: Command) -> None:
    out = rmadapter.done("methods").out
    assert max(map(len, out.splitlines())) <= 80
    for name in METHODS:
        assert f" {name} " in out


@pytest.mark.parametrize("words", ["doctor", "data", "data dtd", "backbones", "cache"])
def test_lists_fit_80_columns_in_a_pipe(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Except for addresses and commands, which stay whole."""
    monkeypatch.setenv("COLUMNS", "80")
    for line in rmadapter.done(*words.split()).out.splitlines():
        assert len(line) <= 80 or "://" in line


@pytest.mark.usefixtures("vit_b16_drawn_once")
@pytest.mark.parametrize("name", ["rmadapter-plus", "linear-probe"])
def test_methods_explains_one(rmadapter: Command, name: str) -> None:
    method = load_method(name)
    out = rmadapter.done("methods", name).out
    head, *tables = out.partition("\n\n@")[0].splitlines()  # without a BibTeX entry
    assert (name in head, method.source in head) == (True, True)
    assert max(map(len, tables)) <= 80
    for setting in settings_of(method):
        assert f" {setting} " in out
    [facts] = rmadapter.json("methods", name)
    assert facts["name"] == name
    refused(rmadapter("methods", "linear_probe"), "linear-probe")


def test_data_lists_all_and_says_what_one_lacks(rmadapter: Command, tmp_path: Path) -> None:
    assert [row["key"] for row in rmadapter.json("data")] == list(CATALOG)
    [row] = rmadapter.json("data", "dtd", "--status", "--root", tmp_path)
    assert (row["name"], row["status"]) == ("dtd", "absent")
    refused(rmadapter("data", "--download"), "--download needs the name of one data set")


def counts(rmadapter: Command, *words: object) -> tuple[int, int]:
    [method] = rmadapter.json("methods", *words)
    return method["parameters"], method["inference"]


@pytest.mark.usefixtures("vit_b16_drawn_once")
def test_parameters_of_the_paper(rmadapter: Command) -> None:
    assert counts(rmadapter, "rmadapter") == (1_020_928, 666_112)
    assert rmadapter("methods", "mma").out.count("674,560") == 2


@pytest.mark.usefixtures("vit_b16_drawn_once")
def test_parameters_with_other_settings_and_classes(
    rmadapter: Command, tiny_clip: Backbone
) -> None:
    tiny = ["--backbone", tiny_clip.name]
    blocks = ["--set", "rank=2", "--set", "last_block=3"]
    one = sum(2 * width * 2 + 2 + width for width in (64, 48))  # W_down and W_up with their biases
    expected = one + 2 * 2 + 2
    found = counts(rmadapter, "mma", *tiny, *blocks, "--set", "first_block=3")
    assert found == (expected, expected)
    keys, _ = counts(rmadapter, "tip-adapter-f", *tiny, "--classes", 5)
    assert keys == 5 * 16 * 40
    refused(rmadapter("methods", "mma", "--set", "nonsense=1"), "nonsense")
    refused(rmadapter("methods", "--set", "rank=2"), "--set")
    below = rmadapter("methods", "rmadapter", *tiny, *blocks, "--set", "first_block=4")
    refused(below, "last_block=3 is below first_block=4")


@pytest.mark.parametrize(
    ("verb", "now"),
    [("plan", "bench ... --plan"), ("params", "methods NAME"), ("convert", "backbones convert")],
)
def test_a_verb_that_has_moved_names_the_new_one(rmadapter: Command, verb: str, now: str) -> None:
    refused(rmadapter(verb, "few-shot", "--json"), now)
    refused(rmadapter("help", verb), now)


def test_mistakes_in_convert_are_named(rmadapter: Command) -> None:
    refused(rmadapter("backbones", "convert", "a.pt", "--out", "b"), "--architecture")
    refused(rmadapter("backbones", "convert", "a.pt", "--architecture", "ViT-B-16"), "--out")
    refused(rmadapter("backbones", "get", "pocket", "--out", "b"), "--out")
    refused(
        rmadapter("backbones", "convert", "a.pt", "--architecture", "ViT-B-16", "--out", "b"),
        "a.pt: not a checkpoint",
    )


def test_facts_of_this_machine() -> None:
    facts = diagnose()
    assert json.loads(json.dumps(facts)) == facts  # what --json prints
    assert facts["rmadapter"] == metadata.version("rmadapter")
    assert facts["torch"] == metadata.version("torch")
    assert facts["python"] == platform.python_version()
    assert facts["cpu count"] == os.cpu_count()
    assert facts["cpu threads"] == torch.get_num_threads()
    assert (facts["gpu"] == "none") == (not torch.cuda.is_available())
    extras = {name for name in facts if name.startswith("extra ")}
    assert extras >= {"extra demo", "extra export", "extra openvino", "extra serve"}
    assert not extras & {"extra dev", "extra release"}
    assert facts["extra report"] == "installed"  # pandas, as the tests need it
    assert sum(str(value).count("docs/reference/pocket.md") for value in facts.values()) == 1


def test_an_extra_that_is_not_there_has_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "pyarrow":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "onnxruntime" else installed(name)  # too old

    monkeypatch.setattr(metadata, "version", version)
    facts = diagnose()
    for name in ("parquet", "export", "openvino"):  # the last takes what export does
        assert facts[f"extra {name}"] == f"pip install 'rmadapter[{name}]'"
    assert facts["extra report"] == "installed"


def test_doctor_builds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache folder is there, pocket is not: to look must not mean to fetch it."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    facts = diagnose()
    assert facts["pocket"] == "made when first used: 174 MB to download"
    assert list(tmp_path.iterdir()) == []


def test_licences_and_files_that_would_run_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {
        name: tmp_path / f"models--{name.replace('/', '--')}" for name in ("a/card", "b/code")
    }
    for place in places.values():
        (place / "snapshots" / "0").mkdir(parents=True)
    rows = [
        {"name": f"hf-hub:{name}", "mb": 1, "folder": str(place)} for name, place in places.items()
    ]
    absent = {"mb": None, "folder": "", "state": "absent"}
    rows += [{"name": name, **absent} for name in ("ViT-L-14/openai", "pocket")]
    monkeypatch.setattr("rmadapter.cli.machine.listed", lambda: rows)
    (places["a/card"] / "snapshots" / "0" / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n"
    )
    facts = diagnose()
    assert facts["files that would run code"] == "none"
    assert "laptop, accuracy, phone" in facts["backbones from the hub"]
    read_it = "its publisher's; read it at https://huggingface.co"
    assert facts["licence of hf-hub:a/card"] == f"{read_it}/a/card (its card here says apache-2.0)"
    assert facts["licence of hf-hub:b/code"] == f"{read_it}/b/code"
    for part in (VISION, TEXT):
        assert f"{part.project} {part.version} " in facts["licence of pocket"]
    assert "licence of ViT-L-14/openai" not in facts
    (places["b/code"] / "snapshots" / "0" / "README.md").mkdir()  # no card
    (places["b/code"] / "snapshots" / "0" / "model.py").write_text("")
    assert "model.py is code" in diagnose()["files that would run code"]
