"""The model card of a run on the Hugging Face hub: what it is, how good it is, and what is
untested."""

from __future__ import annotations

import re
from typing import Any

from rmadapter.artifacts.model_file import Model
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.run_folder import HUB
from rmadapter.backbones.choice import licence_of
from rmadapter.backbones.load import is_published
from rmadapter.support.html import template

LIBRARY, TASK = "rmadapter", "image-classification"
MOST = 50  # classes listed at most


def modelcard(
    model: Model, record: Record | None, repository: str, licence: str, examples: bool
) -> str:
    """README.md with the hub's metadata. record: None if the model was saved by itself. licence: of
    what was trained. examples: whether the weights include features of the training images."""
    return template("modelcard.md.j2", escape=False, cell=_cell, percent=_percent).render(
        metadata=_metadata(model, record, repository, licence),
        model=model,
        labels=[*map(str, model.labels)],
        most=MOST,
        record=record,
        repository=repository,
        hub=HUB,
        licence=licence,
        known=is_published(model.backbone.name),
        its_licence=licence_of(model.backbone.name),
        examples=examples,
    )


def _cell(text: Any) -> str:
    """Text as one line of Markdown, escaped so that no class or folder name can break it or become
    HTML."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(str(text).split()))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _metadata(model: Model, record: Record | None, repository: str, licence: str) -> str:
    """The hub's metadata, as YAML."""
    from huggingface_hub import ModelCardData

    results = _results(record) if record else []
    base = hub_name(model.backbone.name)
    card = ModelCardData(
        license=licence,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[
            LIBRARY,
            "clip",
            "few-shot",
            "adapter",
            re.sub(r"[^a-z0-9-]+", "-", model.method.name.lower()),
        ],
        base_model=base,
        metrics=["accuracy"] if results else None,
        base_model_relation="adapter" if base else None,
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def hub_name(backbone: str) -> str | None:
    """The repository on the hub that a backbone's weights come from, if one is known."""
    import open_clip

    if backbone.startswith("hf-hub:"):
        return backbone.removeprefix("hf-hub:")
    architecture, _, tag = backbone.partition("/")
    place = open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "") if tag else ""
    return "/".join(place.split("/")[:2]) or None


def _results(record: Record) -> list[Any]:
    """Scores that the hub shows beside the card, as fractions of 1."""
    data = record.task.data or "unknown"
    if judged := record.judgement:
        own = judged.own
        rates = {
            "accuracy": own.accuracy,
            "f1": own.macro_f1,
            "expected_calibration_error": own.calibration_error,
        }
        return [_result(data, judged.how, kind, value) for kind, value in rates.items()]
    return [
        _result(score.data or data, score.title, "accuracy", score.accuracy)
        for score in record.scores
        if score.accuracy is not None
    ]


def _result(data: str, split: str, kind: str, value: float) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=TASK, dataset_type=re.sub(r"[^\w.-]+", "-", data), dataset_name=data, dataset_split=split,
        metric_type=kind, metric_value=round(value / 100, 4),
    )  # fmt: skip
