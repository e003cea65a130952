"""What a method is given: the shots in the common transform, and settings that are checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import METHODS, load_method
from rmadapter.bench.methods.adapters import Adapter
from rmadapter.bench.methods.base import Method, Training, configured
from rmadapter.config import Config
from rmadapter.data.fewshot import few_shot
from rmadapter.data.images import read_images
from rmadapter.errors import UserError


@dataclass(frozen=True)
class Plain:
    title: ClassVar[str] = "Plain"
    rate: float = 0.1
    epochs: int = 3
    names: tuple[str, ...] = ()


def test_fields_are_replaced_and_unknown_ones_named() -> None:
    assert configured(Plain(), {"epochs": 5}) == Plain(epochs=5)
    assert configured(Plain(), {}) == Plain()
    with pytest.raises(UserError, match=r"Plain has no field 'epoch'; did you mean 'epochs'.*it has rate, epochs"):
        configured(Plain(), {"epoch": 5})
    with pytest.raises(UserError, match="Plain, epochs='ten': Input should be a valid integer"):
        configured(Plain(), {"epochs": "ten"})
    with pytest.raises(UserError, match=r"Plain, epochs=2.5"):
        configured(Plain(), {"epochs": 2.5})
    assert configured(Plain(), {"names": "one {}."}).names == ("one {}.",)
    assert configured(Plain(), {"names": ["a", "b"], "rate": 1}) == Plain(rate=1.0, names=("a", "b"))


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_is_one(name: str) -> None:
    method = load_method(name)
    assert isinstance(method, Method)
    assert method.title
    assert len(method.source) > 10
    if not isinstance(method, Adapter):  # a Config is checked by itself
        assert configured(method, asdict(cast(Any, method))) == method  # every field has a type that can be checked
    with pytest.raises(UserError, match="colour"):
        load_method(name, {"colour": "red"})


def test_titles_tell_methods_apart() -> None:
    titles = [load_method(name).title for name in METHODS]
    assert len(set(titles)) == len(titles)


def test_an_unknown_method_is_named_with_its_neighbour() -> None:
    with pytest.raises(UserError, match="unknown method 'rmadaptor'; did you mean 'rmadapter'"):
        load_method("rmadaptor")


def test_training_has_views_of_the_shots_and_plain_activations_of_the_rest(tiny_clip: Backbone, colors: Path) -> None:
    words: dict[str, Any] = {"augmentation": "standard", "views": 2, "device": "cpu", "templates": ["a {}.", "the {}."]}
    activations = Activations(tiny_clip, Config.make(words))
    splits = read_images(colors)
    few = few_shot({**splits, "val": splits["test"]}, 2, 1)
    train = Training(few.train, few.val, activations, progress=False)
    assert train.templates == ("a {}.", "the {}.")
    assert train.device == torch.device("cpu")
    shots = train.frozen(3)
    assert (len(shots), shots.views) == (8, 2)
    val = train.frozen(3, train.val)
    assert (len(val), val.views) == (8, 1)
    assert train.frozen(None).features.shape == (16, shots.features.shape[1])
