"""The text encoder of a method as a graph gives the method's class features of new names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.export.text_classes import TextClasses
from rmadapter.export.text_encoder import tokenizer_of, write_text_encoder
from rmadapter.methods import load_method
from rmadapter.training.contract import Fitted, NotApplicable
from tests.helpers.shots import noise_images, shots_of
from tests.helpers.slow import slow_except

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

FEW = {"epochs": 1, "batch_size": 4}
UPPER = {"first_block": 3}


def fitted_by(name: str, backbone: Backbone, settings: dict[str, Any], **options: Any) -> Fitted:
    return load_method(name, settings).fit(backbone, shots_of(backbone, noise_images(8), **options))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "settings"),
    slow_except(
        [
            ("rmadapter", {**FEW, **UPPER}),
            ("clip-lora", {"iterations": 2, "batch_size": 4}),
            ("2sfs", {"iterations": 2, "batch_size": 4}),
            ("skip-tuning", FEW),
            ("full-finetune", FEW),
            ("text-refiner", FEW),
            ("biclip", FEW),
            ("prolip", FEW),
            ("maple", FEW),
            ("lweib", {**FEW, "scale": 0.3}),
            ("prompt-kd", {**FEW, "teaching": 1}),
            ("coop", FEW),
        ],
        "rmadapter",
        "coop",
    ),
)
def test_features_of_new_names_equal_the_methods(
    tiny_clip: Backbone, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    same_features(fitted_by(name, tiny_clip, settings), tmp_path)


def test_method_that_asks_another_model_is_refused(
    tiny_clip: Backbone, tiny_hf: Backbone, tmp_path: Path
) -> None:
    fitted = fitted_by("prompt-kd", tiny_clip, {**FEW, "teaching": 1, "teacher": tiny_hf.name})
    with pytest.raises(NotApplicable, match="PromptKD"):
        write_text_encoder(fitted, fitted.classes, tmp_path)


@pytest.mark.ci
def test_hf_encoder_with_several_templates(tiny_hf: Backbone, tmp_path: Path) -> None:
    fitted = fitted_by(
        "rmadapter", tiny_hf, {**FEW, **UPPER}, templates=("a {}.", "a photo of the {}")
    )
    assert same_features(fitted, tmp_path).templates == ["a {}.", "a photo of the {}"]


def same_features(fitted: Fitted, folder: Path) -> TextClasses:
    write_text_encoder(fitted, fitted.classes, folder)
    classes, labels = TextClasses(folder), list(fitted.classes)
    for label in ("red_bird", "small blue car"):
        classes.add(label, labels)
        labels.append(label)
    with torch.no_grad():
        logits: Any = fitted.for_classes((*fitted.classes, "red bird", "small blue car"))
    assert np.abs(classes.weights - logits.weights.numpy()).max() < 1e-5
    assert np.abs(classes.weights[2] - classes.weights[3]).max() > 1e-3
    assert classes.scale == pytest.approx(float(fitted.backbone.logit_scale))
    features = torch.nn.functional.normalize(torch.randn(3, classes.weights.shape[1]), dim=-1)
    expected = (classes.scale * features @ torch.from_numpy(classes.weights).T).softmax(-1)
    assert np.abs(classes.probabilities(features.numpy()) - expected.numpy()).max() < 1e-5
    return classes


@pytest.mark.parametrize("name", ["linear-probe", "tip-adapter"])
def test_methods_without_text_encoder_are_refused(
    tiny_clip: Backbone, name: str, tmp_path: Path
) -> None:
    with pytest.raises(NotApplicable):
        write_text_encoder(fitted_by(name, tiny_clip, {}), ("cat", "dog"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_written_tokenizer_equals_clips(tiny_clip: Backbone) -> None:
    written = tokenizer_of(tiny_clip)
    for text in (
        "a photo of a Cat.",
        "it's 1/2  of\tthe café's",
        "x" * 300,
        "日本 ☃",
        "<|endoftext|> cat",
    ):
        assert written.encode(text).ids == tiny_clip.tokenizer([text])[0].tolist(), text
