"""A backbone is chosen by the linear probe on folds of the shots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.backbones.names import is_choice
from rmadapter.backbones.published import on_disk
from rmadapter.backbones.speed import megabytes_of
from rmadapter.data.fewshot import half
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.export.hub import anonymise_record
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs import backbones as choosing
from rmadapter.runs.backbones import choose_backbone, prepare_backbone
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from tests.helpers.html import Page
from tests.helpers.labs import prepare
from tests.helpers.models import write_tiny_timm
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "PROBE", LinearProbe(search_steps=0, C=100.0))


@pytest.fixture
def others(tmp_path: Path) -> list[str]:
    """Two more backbones: a vision transformer, and one whose features say nothing of the image."""
    import torch
    from safetensors.torch import load_file, save_file

    good = write_tiny_timm(tmp_path / "good")
    blind = write_tiny_timm(tmp_path / "blind")
    weights = load_file(blind / "model.safetensors")
    weights["patch_embed.proj.weight"] = torch.zeros_like(weights["patch_embed.proj.weight"])
    save_file(weights, blind / "model.safetensors")
    return [f"timm:{good}", f"timm:{blind}"]


def asked(
    backbone: Backbone, colors: Path, method: str, names: str, **settings: object
) -> tuple[Request, Lab]:
    """Return a request that names backbones, and a lab with the images."""
    request, lab = prepare(backbone, read_images(colors), method, **settings)
    return replace(request, task=replace(request.task, backbone=names)), lab


def test_the_most_accurate_one_is_chosen(
    tiny_clip: Backbone, colors: Path, others: list[str]
) -> None:
    good, blind = others
    names = f"{blind},{tiny_clip.name},{good}"
    request, lab = asked(tiny_clip, colors, "linear-probe", names)
    own, choice = choose_backbone(request, lab)
    rows = {row.name: row for row in choice.rows}
    assert [*rows] == [blind, tiny_clip.name, good]
    accuracies = {name: row.accuracy or 0 for name, row in rows.items()}
    assert accuracies[blind] <= 25 < accuracies[good]
    assert accuracies[choice.chosen] == max(accuracies.values())
    assert own.backbone(choice.chosen).name == choice.chosen
    # the accuracy is that of the folds that `fit` makes on the same backbone
    task = replace(request.task, backbone=good)
    folds = Folds.make(task, lab.draw(task), lab.beside(own.backbone(good)), FOLDS)
    answers = folds.answers(choosing.PROBE, "linear-probe")
    right = answers.table.argmax(1) == np.array(folds.judged.labels)
    assert rows[good].accuracy == pytest.approx(100 * right.mean(), abs=1e-4)
    assert (choice.folds, choice.images) == (FOLDS, len(folds.rows))


def test_facts_of_each(tiny_timm: Backbone, colors: Path, others: list[str]) -> None:
    names = ",".join([tiny_timm.name, *others])
    request, lab = asked(tiny_timm, colors, "linear-probe", names)
    _, choice = choose_backbone(request, lab)
    for row in choice.rows:
        assert (row.images_per_second or 0) > 0
        assert row.licence
        assert row.megabytes == megabytes_of(tiny_timm)
    numbers = sum(one.numel() for one in tiny_timm.model.parameters())
    assert megabytes_of(tiny_timm) == round(4 * numbers / 1e6, 1)


@pytest.mark.ci
def test_each_encodes_the_shots_once(
    tiny_timm: Backbone, colors: Path, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ",".join(others)
    request, lab = asked(tiny_timm, colors, "linear-probe", names)
    monkeypatch.setattr(choosing, "speed_of", lambda backbone, device: 1.0)
    own, choice = choose_backbone(request, lab)
    backbone = own.backbone(choice.chosen)
    encoded = []
    inner = backbone.image.frozen_at
    monkeypatch.setattr(
        backbone.image,
        "frozen_at",
        lambda images, *args, **more: encoded.append(len(images)) or inner(images, *args, **more),
    )
    task = replace(request.task, backbone=choice.chosen)
    own.train_cache(task).features(half(own.draw(task).train, "all"))
    assert not encoded


@pytest.mark.ci
def test_what_cannot_be_used_is_left_out(
    tiny_timm: Backbone, tiny_clip: Backbone, colors: Path, empty_hub: Path
) -> None:
    names = f"ViT-B-16/openai,{tiny_timm.name},{tiny_clip.name}"
    request, lab = asked(tiny_clip, colors, "rmadapter", names)
    own, choice = choose_backbone(request, lab)
    unreachable, without_text, used = choice.rows
    assert choice.chosen == used.name == tiny_clip.name
    assert "ViT-B-16" in unreachable.reason or "openai" in unreachable.reason
    assert "no text encoder" in without_text.reason
    assert own.backbone(choice.chosen) is own.backbone(tiny_clip.name)
    task = replace(request.task, backbone=f"{tiny_timm.name},ViT-B-16/openai")
    with pytest.raises(UserError, match="none can be used"):
        choose_backbone(replace(request, task=task), lab)


def test_too_little_time_and_too_few_images(
    tiny_timm: Backbone, colors: Path, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ",".join(others)
    request, lab = asked(tiny_timm, colors, "linear-probe", names)
    with monkeypatch.context() as patch:
        patch.setattr(choosing, "MINUTES", 0.0)
        _, choice = choose_backbone(request, lab)
    assert choice.chosen == others[0]
    assert {row.reason for row in choice.rows} == {"would not finish in time"}
    request, lab = asked(tiny_timm, colors, "ridge", names, shots=1)
    _, choice = choose_backbone(request, lab)
    assert choice.chosen == others[0]
    assert all("too few images" in row.reason for row in choice.rows)


def test_auto_stands_for_what_is_on_this_disk(
    tiny_timm: Backbone, colors: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(empty_hub))  # nothing is on the disk
    assert on_disk(empty_hub) == ["pocket-3"]
    monkeypatch.setattr(choosing, "on_disk", lambda: [tiny_timm.name])
    request, lab = asked(tiny_timm, colors, "linear-probe", "auto")
    request, own, choice = prepare_backbone(request, lab)
    assert choice is not None
    assert request.task.backbone == choice.chosen == tiny_timm.name
    assert own.backbone(tiny_timm.name).name == tiny_timm.name
    assert [is_choice(text) for text in ("auto", "a/b,c/d", "pocket")] == [True, True, False]


@pytest.mark.ci
def test_a_run_records_the_choice(
    rmadapter: Command, colors: Path, tmp_path: Path, others: list[str]
) -> None:
    words = ("fit", colors, "--backbone", ",".join(others), "--method", "ridge", "--shots", "4")
    out = tmp_path / "run"
    answer = rmadapter(*words, "--out", out, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["backbones"]["chosen"] == others[0]
    record = read_record(out / "run.json")
    assert record.backbones is not None
    assert record.backbone.name == record.task.backbone == others[0]
    page = Page(out / "report.html").text
    assert "Which backbone?" in page
    assert f"{others[0]} (chosen)" in page
    hidden = anonymise_record(record)
    assert hidden.backbones is not None
    assert str(tmp_path) not in hidden.line()
    answer = rmadapter(*words, "--out", out, "--verbose")
    assert answer.code == 0
    assert "images/s here" in answer.out


@pytest.mark.ci
def test_python_chooses_as_the_command_does(
    rmadapter: Command, colors: Path, tmp_path: Path, others: list[str]
) -> None:
    from sklearn.base import clone

    from rmadapter import FewShotClassifier

    words = ("fit", colors, "--backbone", ",".join(others), "--method", "ridge", "--shots", "4")
    rmadapter.done(*words, "--out", tmp_path / "run")
    recorded = read_record(tmp_path / "run/run.json").backbones
    assert recorded is not None
    model = FewShotClassifier(tuple(others), method="ridge", shots=4).fit(colors)
    for found, row in zip(model.backbones_.rows, recorded.rows, strict=True):
        measured = {"seconds": row.seconds, "images_per_second": row.images_per_second}
        assert found.model_copy(update=measured) == row
    same = model.backbones_.model_copy(update={"rows": recorded.rows})
    assert same == recorded
    images = [str(path) for path in sorted((colors / "test").glob("*/*.png"))]
    loaded = FewShotClassifier.load(tmp_path / "run", backbone=others[0])
    assert model.fitted_.backbone.name == loaded.backbone == others[0]
    np.testing.assert_array_equal(model.predict(images), loaded.predict(images))
    again = clone(model)
    assert again.get_params() == model.get_params()
    named = again.set_params(backbone=",".join(reversed(others))).fit(colors)
    assert [row.name for row in named.backbones_.rows] == [*reversed(others)]
    assert named.backbones_.chosen == others[0]
    one = FewShotClassifier(others[0], method="ridge", shots=4).fit(colors)
    assert not hasattr(one, "backbones_")
    np.testing.assert_array_equal(one.predict_proba(images), model.predict_proba(images))


def test_a_wrong_name_ends_the_command(rmadapter: Command, colors: Path, others: list[str]) -> None:
    words = ("fit", colors, "--backbone", f"{others[0]},ViT-B-17/openai", "--method", "ridge")
    refused(rmadapter(*words), "ViT-B-17")
