"""The model card: metadata that the hub's own library reads back, and every figure of the record."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import BackboneName, read_record
from rmadapter.deploy.hub.model_card import hub_name, modelcard


def test_metadata_and_figures(finished: Path) -> None:
    model, record = read_model(finished / "model.json"), read_record(finished / "run.json")
    judged = record.judgement
    assert judged is not None
    card = ModelCard(modelcard(model, record, "anna/colors", "mit", examples=False))
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "mit",
        "rmadapter",
        "image-classification",
    )
    assert {"few-shot", "rmadapter"} <= {*data["tags"]}
    assert "base_model" not in data  # a folder is none
    results = {one.metric_type: one for one in card.data.eval_results or ()}
    assert results["accuracy"].metric_value == round(judged.own.accuracy / 100, 4)
    assert (results["accuracy"].dataset_name, results["accuracy"].dataset_split) == (
        "colors",
        judged.how,
    )
    for row in judged.rows:
        assert f"| {row.name} | {row.accuracy:.1f} | {row.low:.1f} to {row.high:.1f} |" in card.text
    for text in (
        *judged.doubts,
        "blue, green, night\\_sky, red",
        "training images per class: 4, drawn with seed 1",
    ):
        assert text in card.text
    assert 'FewShotClassifier.load("hf:anna/colors", backbone="BACKBONE")' in card.text
    assert "rmadapter predict hf:anna/colors photos --backbone BACKBONE\n" in card.text
    assert (
        f"BACKBONE is the folder, file or repository of {model.backbone.name}".replace("_", "\\_")
        in card.text
    )
    published = model.model_copy(update={"backbone": BackboneName(name="pocket", digest="0")})
    text = modelcard(published, record, "anna/colors", "mit", examples=False)
    assert 'FewShotClassifier.load("hf:anna/colors")' in text
    assert "rmadapter predict hf:anna/colors photos\n" in text
    assert "BACKBONE" not in text
    assert "of the backbone's weights: its publisher's, not known here" in card.text
    assert "No images or file names are included" in card.text


def test_without_a_record_nothing_was_measured(finished: Path) -> None:
    model = read_model(finished / "model.json")
    card = ModelCard(modelcard(model, None, "anna/colors", "unknown", examples=True))
    assert card.data.eval_results is None
    assert "metrics" not in card.data.to_dict()
    assert "Nothing was measured." in card.text
    assert "can tell whether a given image was among these" in card.text


def test_names_break_nothing(finished: Path) -> None:
    model, record = read_model(finished / "model.json"), read_record(finished / "run.json")
    odd = "<b>a|b</b>\n---\nlicense: mine"
    model = model.model_copy(update={"labels": (odd, *model.labels[1:])})
    task = record.task.__class__(**{**vars(record.task), "data": odd})
    text = modelcard(
        model, record.model_copy(update={"task": task}), "anna/colors", "mit", examples=False
    )
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert "<b>" not in card.text
    assert "\\<b\\>a\\|b" in card.text


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai"),
        ("hf-hub:a/b", "a/b"),
        ("pocket", None),
        ("ViT-B-16/none", None),
        ("folder", None),
    ],
)
def test_where_a_backbone_comes_from(backbone: str, name: str | None) -> None:
    assert hub_name(backbone) == name
