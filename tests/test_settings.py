"""What --set reaches, and what a method's own settings are."""

from __future__ import annotations

import json

import pytest

from rmadapter.backbone import Backbone
from rmadapter.bench.methods import METHODS, load_method
from rmadapter.bench.methods.adapters import COMMON
from rmadapter.bench.settings import SHARED, describe_methods, settings_of, split_settings
from rmadapter.config import Config, parse_overrides
from rmadapter.errors import UserError


def test_with_a_methods_name_it_is_the_methods_without_it_is_everybodys() -> None:
    given = parse_overrides(["coop.epochs=10", "coop.learning_rate=2e-3", "mma.rank=8", "precision=bf16", "views=4"])
    shared, values = split_settings(given)
    assert shared == {"precision": "bf16", "views": 4}
    assert values == {"coop": {"epochs": 10, "learning_rate": 0.002}, "mma": {"rank": 8}}
    with pytest.raises(UserError, match=r"write METHOD.rank .* common to all are templates, augmentation"):
        split_settings({"rank": 8})


def test_what_is_shared_is_common_to_all_methods() -> None:
    assert set(SHARED) | {"backbone", "seed"} == set(COMMON)
    assert set(SHARED) <= set(Config.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_json_and_make_the_same_method(name: str) -> None:
    settings = settings_of(load_method(name))
    assert settings_of(load_method(name, json.loads(json.dumps(settings)))) == settings
    assert not set(settings) & {*COMMON, "shots"} - {"templates"}  # zero-shot may have prompts of its own


def test_published_settings_that_do_not_fit_a_backbone_are_told(tiny_clip: Backbone) -> None:
    found = {method["name"]: method for method in describe_methods(tiny_clip.name, 10, 16)}
    assert (found["zero-shot"]["parameters"], found["zero-shot"]["reason"]) == (0, "")
    assert found["rmadapter"]["parameters"] is None  # it begins at block 5 of 4
    assert "have 4 and 4 blocks" in found["rmadapter"]["reason"]
