"""Every field, its limits, and what the sentences say that refuse a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rmadapter.config import MMA, Config, parse_overrides
from rmadapter.errors import UserError

# A contract: these names are used on command lines and by other programs.
PROMISED = {
    *("rank", "first_block", "last_block", "alpha", "norm", "cross_modal", "share", "reconstruction_layers"),
    *("objective", "lambda_image_rec", "lambda_text_rec", "lambda_image_con", "lambda_text_con"),
    *("learning_rate", "epochs", "batch_size", "backbone", "shots", "seed", "classes"),
}


def test_promised_fields_are_there() -> None:
    assert set(Config.model_fields) >= PROMISED


@pytest.mark.parametrize("name", list(Config.model_fields))
def test_every_field_has_one_documented_line(name: str) -> None:
    text = Config.model_fields[name].description
    assert text
    assert "\n" not in text
    assert len(text) < 100


def test_a_config_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().rank = 3  # type: ignore[misc]


def test_presets() -> None:
    assert Config.make() == Config()
    mma = Config.make(preset="mma").model_dump()
    assert {name: mma[name] for name in MMA} == MMA
    assert {name for name, value in mma.items() if value != Config().model_dump()[name]} <= set(MMA)
    assert Config.make({"alpha": 0.5}, "mma").alpha == 0.5  # what the user says goes before the preset
    with pytest.raises(UserError, match="unknown preset 'mmma'; did you mean 'mma'"):
        Config.make(preset="mmma")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rnak": 8}, ["unknown field 'rnak'; did you mean 'rank'?"]),
        ({"learning-rate": 1}, ["did you mean 'learning_rate'?"]),
        ({3: 1}, ["unknown field 3"]),
        ({"rank": 0}, ["rank=0", "greater than or equal to 1", "width r of the bottleneck"]),
        ({"rank": "many"}, ["rank='many'", "valid integer"]),
        ({"rank": 2.5}, ["rank=2.5", "integer"]),
        ({"classes": "old"}, ["classes='old'", "'all', 'base' or 'novel'"]),
        ({"norm": "layer"}, ["norm='layer'", "'none' or 'block'"]),
        ({"reconstruction_layers": 4}, ["reconstruction_layers=4", "1, 2 or 3"]),
        ({"learning_rate": 0}, ["learning_rate=0", "greater than 0"]),
        ({"learning_rate": float("inf")}, ["learning_rate=inf", "finite"]),
        ({"alpha": float("nan")}, ["alpha=nan", "finite"]),
        ({"momentum": 1}, ["momentum=1", "less than 1"]),
        ({"first_block": 6, "last_block": 5}, ["last_block=5 lies below first_block=6"]),
        ({"decouple_scale": True, "alpha": 0}, ["decouple_scale divides by alpha"]),
        ({"templates": []}, ["templates is empty"]),
        ({"templates": ["a photo"]}, ["'a photo' needs exactly one {}", '"a photo of a {}."']),
        ({"templates": ["a {}.", "{} and {}"]}, ["'{} and {}' needs exactly one {}"]),
        ({"templates": ["a {} of {size}"]}, ["exactly one {}"]),  # str.format would raise KeyError in training
        ({"templates": ["a {} in {"]}, ["exactly one {}"]),
        ({"templates": ["a {0}"]}, ["exactly one {}"]),
    ],
)
def test_a_bad_value_is_refused_in_a_sentence(values: dict[Any, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Config.make(values)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_one_template_may_be_plain_text() -> None:
    assert Config.make({"templates": "a sketch of a {}."}).templates == ("a sketch of a {}.",)


def test_replace_validates_again() -> None:
    config = Config.make({"rank": 8}, "mma")
    assert config.replace(epochs=2).model_dump() == {**config.model_dump(), "epochs": 2}
    with pytest.raises(UserError, match="decouple_scale divides"):
        config.replace(alpha=0)


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = Config.make(
        {"templates": ["ein Bild: {}, groß", "{}"], "learning_rate": 1e-5, "last_block": 9, "cross_modal": True}, "mma"
    )
    config.save(path)
    assert Config.load(path) == config
    assert list(yaml.safe_load(path.read_text("utf-8"))) == list(Config.model_fields)  # a reader finds our order
    Config().save(path)
    assert Config.load(path) == Config()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.yaml: not a readable config"),
        (b"rank: [", "config.yaml: not a readable config"),
        (b"rank: \xff", "config.yaml: not a readable config"),
        (b"seed: 2024-13-45", "config.yaml: not a readable config"),
        (b"- rank", "config.yaml: a config is a list of 'field: value' lines"),
        (b"", "config.yaml: a config is a list of 'field: value' lines"),
        (b"rang: 3", "did you mean 'rank'"),
        (b"!!python/object/apply:os.getcwd []", "config.yaml: not a readable config"),  # YAML must not run code
    ],
)
def test_a_bad_yaml_file_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=words):
        Config.load(tmp_path / "config.yaml")


def test_overrides_are_read_as_what_they_look_like() -> None:
    pairs = ["rank=8", "learning_rate=1e-3", "last_block=null", "norm=none", "cross_modal=true", " alpha =.5"]
    values = parse_overrides([*pairs, 'templates=["a {}.", "b = {}"]', "backbone=ViT-B-16/openai"])
    assert values == {
        "rank": 8,
        "learning_rate": 0.001,
        "last_block": None,
        "norm": "none",
        "cross_modal": True,
        "alpha": 0.5,
        "templates": ["a {}.", "b = {}"],
        "backbone": "ViT-B-16/openai",
    }
    assert [type(values[name]) for name in ("rank", "learning_rate")] == [int, float]
    assert Config.make(values).templates == ("a {}.", "b = {}")
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("rank", "--set 'rank': write it as field=value, as in --set rank=8"),
        ("rank:8", "write it as field=value"),
        ("templates=[a", "the value is not readable"),
        ("seed=2024-13-45", "the value is not readable"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(pair: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_overrides([pair])


def test_the_paper_preset_is_mmas_training_of_rmadapters_equations() -> None:
    paper, mma, own = (Config.make({}, preset) for preset in ("paper", "mma", "rmadapter"))
    training = ("optimizer", "learning_rate", "weight_decay", "epochs", "batch_size", "augmentation", "alpha")
    assert [getattr(paper, name) for name in training] == [getattr(mma, name) for name in training]
    equations = ("norm", "cross_modal", "activation", "share", "reconstruction_layers", "objective", "rank")
    assert [getattr(paper, name) for name in equations] == [getattr(own, name) for name in equations]
    assert paper.lambda_image_rec > 0
    assert paper.lambda_text_con > 0
