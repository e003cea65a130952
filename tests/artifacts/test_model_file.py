"""model.json: what is refused of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter import FewShotClassifier
from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.record import read_model
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": ["a", " "]}, "classes.1: .*empty"),
        ({"classes": ["a", "b\0"]}, "classes.1: .*not text"),
        ({"labels": ["a"]}, "1 labels for 2 classes"),
        ({"names": ["a", "b", "c"]}, "2 labels for 3 classes"),
        ({"classes": ["a", "a"]}, "a class appears twice"),
        ({"labels": ["a", "a"]}, "a class appears twice"),
        ({"labels": ["1", 1]}, "a class appears twice"),
        ({"labels": ["a", ""]}, "labels.1"),
        ({"labels": ["a", "b\ud800"]}, "labels.1"),
        ({"names": ["c", "c"]}, "a class appears twice"),
        ({"templates": []}, "templates: Tuple"),
        ({"format": 9}, "format: Input should be 2"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"temperature": float("nan")}, "temperature: Input should be"),
    ],
    ids=str,
)
def test_an_inconsistent_file_is_refused(
    finished: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    sound = json.loads((finished / "model.json").read_text())
    sound |= {"classes": ["a", "b"], "labels": ["a", "b"]}
    file = tmp_path / "model.json"
    file.write_text(json.dumps(sound))
    assert read_model(file).labels == ("a", "b")
    file.write_text(json.dumps(sound | changes))
    with pytest.raises(UserError, match=words):
        read_model(file)


def test_added_classes_are_stored_beside_the_fitted_ones(
    finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    image = colors / "test/red/0.png"
    wider = FewShotClassifier.load(finished, backbone=tiny_clip.name).add_classes(["sea-horse"])
    wider.save(tmp_path)
    again = FewShotClassifier.load(tmp_path, backbone=tiny_clip.name)
    assert again.classes_.tolist() == wider.classes_.tolist()
    np.testing.assert_array_equal(again.predict_proba(image), wider.predict_proba(image))
    model = read_model(tmp_path / "model.json")
    assert (len(model.classes), model.names[-1], model.labels[-1]) == (4, "sea horse", "sea-horse")
    assert read_model(finished / "model.json").names == ()


def test_a_temperature_comes_back(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    saved = load(finished, tiny_clip)
    save(tmp_path, replace(saved.fitted, temperature=2.5), saved.name)
    image = [colors / "test" / "red" / "0.png"]
    [plain], [tempered] = (
        list(f.probabilities(image)) for f in (saved.fitted, load(tmp_path, tiny_clip).fitted)
    )
    torch.testing.assert_close(tempered, (plain.log() / 2.5).softmax(-1))
