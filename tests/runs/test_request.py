"""Requests from flat names of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.errors import UserError
from rmadapter.methods import DEFAULT, METHODS, load_method
from rmadapter.runs.request import Request, read_config, requested
from rmadapter.settings import settings_of
from rmadapter.task import COMMON_SETTINGS, qualified_settings

# A contract: these names are used on command lines and by other programs.
PROMISED = """
    backbone shots seed classes templates augmentation views device precision cache_memory workers
    compile rank first_block last_block alpha norm cross_modal activation share forward init
    reconstruction_layers objective decouple_scale lambda_image_rec lambda_text_rec
    lambda_image_con lambda_text_con optimizer learning_rate weight_decay momentum warmup_epochs
    clip_gradient epochs batch_size
"""


def test_promised_names_are_there() -> None:
    assert {*COMMON_SETTINGS, *settings_of(load_method("rmadapter"))} >= {*PROMISED.split()}


def test_every_name_goes_where_it_belongs() -> None:
    wanted = Request.make(
        {"shots": 4, "precision": "bf16", "rank": 8, "epochs": 3}, "rmadapter", data="images"
    )
    assert (wanted.task.shots, wanted.task.data, wanted.name) == (4, "images", "rmadapter")
    assert wanted.machine.precision == "bf16"
    assert {"rank": 8, "epochs": 3}.items() <= settings_of(wanted.method).items()
    assert Request.make() == Request.make({})


def test_a_field_of_a_method_named_like_a_common_one_takes_a_prefix() -> None:
    """PromptSRC has templates of its own, and the run has some."""
    plain = Request.make({"templates": "a {}."}, "promptsrc")
    assert plain.task.templates == ("a {}.",)
    assert plain.method == load_method("promptsrc")
    own = Request.make({"promptsrc.templates": ["the {}."]}, "promptsrc")
    assert own.task.templates == ("a photo of a {}.",)
    assert settings_of(own.method)["templates"] == ("the {}.",)
    # as `tune` writes what was best
    named = qualified_settings("promptsrc", {"templates": ["the {}."], "n_text": 2})
    assert named == {"promptsrc.templates": ["the {}."], "n_text": 2}
    assert settings_of(Request.make(named, "promptsrc").method)["n_text"] == 2
    assert settings_of(Request.make({"mma.rank": 8}, "mma").method)["rank"] == 8


@pytest.mark.parametrize(
    ("values", "method", "hint"),
    [
        ({"rnak": 8}, "rmadapter", "unknown setting 'rnak'; did you mean 'rank'"),
        ({"shotz": 8}, "rmadapter", "did you mean 'shots'"),
        ({"rank": 8}, "coop", "unknown setting 'rank'"),
        ({"coop.epochs": 8}, "mma", "a setting of 'coop', but the method is 'mma'"),
        ({}, "rmadaptor", "unknown method 'rmadaptor'; did you mean 'rmadapter'"),
        ({"views": 4}, "rmadapter", "views=4: .*set augmentation=standard"),
    ],
)
def test_mistakes_in_settings_are_named(values: dict[str, object], method: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        Request.make(values, method)


def test_every_method_takes_the_common_settings() -> None:
    for name in METHODS:
        values = {"shots": 2, "device": "cpu", "views": 4, "augmentation": "standard"}
        wanted = Request.make(values, name)
        assert wanted.method == load_method(name)
        assert wanted.task.views == 4


def test_effort_scales_the_epochs() -> None:
    fast, normal, thorough = (
        Request.make({}, "rmadapter", effort).method for effort in ("fast", "normal", "thorough")
    )
    assert [settings_of(method)["epochs"] for method in (fast, normal, thorough)] == [3, 10, 30]
    by_name = Request.make({"epochs": 7}, "rmadapter", "fast").method
    assert settings_of(by_name)["epochs"] == 7
    assert Request.make({}, "zero-shot", "fast").method == load_method("zero-shot")
    # around three quarters of its epochs still
    averaged: Any = load_method("promptsrc", effort="thorough")
    assert (averaged.recipe.epochs, averaged.mean, averaged.std) == (60, 45.0, 3.0)
    student: Any = load_method("prompt-kd", effort="fast")
    assert (student.recipe.epochs, student.teaching) == (6, 6)
    tutor = student._tutor()
    assert (tutor.recipe.epochs, tutor.mean, tutor.std) == (6, 4.5, pytest.approx(0.3))
    with pytest.raises(UserError, match="effort='quick'"):
        Request.make({}, "rmadapter", "quick")


def test_an_effort_counts_more_than_a_file_and_less_than_set(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: prompt-kd\nepochs: 7\nteaching: 7\nn_image: 2\n")
    for effort, sets, epochs in (("normal", [], 7), ("fast", [], 6), ("fast", ["epochs=40"], 40)):
        found: Any = requested("", tmp_path / "c.yaml", {}, sets, effort).method
        assert (found.recipe.epochs, found.n_image) == (epochs, 2)
    assert found.teaching == 6


@pytest.mark.parametrize("text", ["method: {}", "rmadapter.method: '{}'"])
def test_a_config_alone_runs_no_code_from_outside(text: str, tmp_path: Path) -> None:
    name = f"{tmp_path / 'evil.py'}:Evil"
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.yaml").write_text(text.format(name))
    with pytest.raises(UserError, match=r"--method .+evil\.py:Evil"):
        requested("", tmp_path / "config.yaml", {}, [])
    read_config(tmp_path / "config.yaml", ("mma", name))


@pytest.mark.parametrize("value", ["5", "[':']", "0x" + "f" * 5000, "null"])
def test_a_config_names_its_method_by_a_text(value: str, tmp_path: Path) -> None:
    """A whole number may have more digits than Python writes."""
    (tmp_path / "config.yaml").write_text(f"method: {value}")
    with pytest.raises(UserError, match=r"config\.yaml: method: .* is no name"):
        read_config(tmp_path / "config.yaml")


def test_precision_auto_is_the_fastest_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fastest = "rmadapter.runs.request.fastest_precision"
    monkeypatch.setattr(fastest, lambda device: ("bf16", "so it is"))
    assert Request.make({"precision": "auto"}).machine.precision == "bf16"
    assert "precision=bf16: so it is" in capsys.readouterr().err
    assert Request.make({"precision": "fp32"}).machine.precision == "fp32"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "precision"),
    [
        ({}, "fp16"),
        ({"device": "cpu"}, "fp32"),
        ({"precision": "fp32"}, "fp32"),
        ({"repeatable": True}, "fp32"),
        ({"repeatable": True, "precision": "auto"}, "fp16"),
    ],
)
def test_a_gpu_trains_in_its_fastest_format_unless_asked_otherwise(
    values: dict[str, object], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 2018, without bfloat16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    found = {"auto": torch.device("cuda"), "cpu": torch.device("cpu")}
    monkeypatch.setattr("rmadapter.runs.request.find_device", found.__getitem__)
    assert Request.make(values).machine.precision == precision


def test_flags_come_before_the_file_and_set_before_both(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: mma\nshots: 3\nseed: 4\nrank: 5\n")
    flags = {"shots": 7, "seed": None}
    found = requested("", tmp_path / "c.yaml", flags, ["rank=9"], data="x")
    assert (found.name, found.task.shots, found.task.seed, found.task.data) == ("mma", 7, 4, "x")
    assert settings_of(found.method)["rank"] == 9
    for flags, sets in (({"seed": 2}, None), ({"seed": 1}, ["seed=2"])):
        assert requested("", None, flags, sets).task.seed == 2


def test_a_method_that_is_not_named_is_the_default(tmp_path: Path) -> None:
    assert requested("", None, {}, None).name == DEFAULT == Request.make().name
    (tmp_path / "config.yaml").write_text("method: rmadapter-plus\n")
    assert requested("", tmp_path / "config.yaml", {}, None).name == "rmadapter-plus"
    assert requested("ridge", tmp_path / "config.yaml", {}, None).name == "ridge"
