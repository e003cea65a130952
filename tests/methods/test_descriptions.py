"""Zero-shot CLIP with texts about the classes, against open_clip's own encoders and the two papers'
formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.descriptions import TEXTS, WEIGHTS, Descriptions, clause
from rmadapter.prompts import zero_shot_weights
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.shots import REQUIRED_SETTINGS, logits_of, noisy_colors, pixels_of, shots_of
from tests.helpers.slow import ci_except

__all__ = ["rmadapter"]  # a fixture

FILE = REQUIRED_SETTINGS["zero-shot-descriptions"]["descriptions"]
GIVEN: dict[str, list[str]] = json.loads(Path(FILE).read_text("utf-8"))
CLASSES = ("blue", "green", "night sky", "red")
ARE = ("a field of red", "a dark sky at night", "a blue wall")  # the others are parts of a thing


def encoded(backbone: Backbone, texts: list[str]) -> torch.Tensor:
    """Unit features [S, e] by open_clip."""
    clip: Any = backbone.model
    with torch.no_grad():
        return F.normalize(clip.encode_text(backbone.tokenizer(texts)), dim=-1)


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("form", ["sentences", "descriptors"])
def test_logits_are_those_of_the_papers(
    name: str, form: str, request: pytest.FixtureRequest
) -> None:
    """CuPL: one vector a class; DCLIP: the mean of the scores of "NAME, which has DESCRIPTOR"."""
    backbone: Backbone = request.getfixturevalue(name)
    shots = shots_of(backbone)
    method = load_method("zero-shot-descriptions", {"descriptions": FILE, "form": form})
    found = logits_of(method.fit(backbone, shots), shots)
    clip: Any = backbone.model
    with torch.no_grad():
        images = F.normalize(clip.encode_image(pixels_of(backbone, shots.images)), dim=-1)
    columns = []
    for one in CLASSES:
        if form == "sentences":
            vector = encoded(backbone, GIVEN[one]).mean(0)
            columns.append(images @ (vector / vector.norm()))
        else:
            verbs = ["is" if text in ARE else "has" for text in GIVEN[one]]
            clauses = zip(verbs, GIVEN[one], strict=True)
            texts = [f"{one}, which {verb} {text}" for verb, text in clauses]
            columns.append((images @ encoded(backbone, texts).T).mean(1))
    torch.testing.assert_close(
        found, clip.logit_scale.exp() * torch.stack(columns, 1), rtol=1e-4, atol=1e-4
    )


def test_a_descriptor_becomes_a_clause() -> None:
    texts = ("four legs", "antlers", "canine teeth", "may have spots")
    assert [clause(text) for text in texts] == [
        "which has four legs", "which has antlers", "which has canine teeth", "which may have spots"
    ]  # fmt: skip
    assert [clause(text) for text in ("a beak", "An ear", "used to cut")] == [
        "which is a beak", "which is An ear", "which is used to cut"
    ]  # fmt: skip


def test_a_new_class_is_known_by_its_texts_or_else_by_the_runs_prompts(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    """And the file is needed no more."""
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(GIVEN), encoding="utf-8")
    shots = shots_of(tiny_clip, templates=("a {}.", "the {}"))
    fitted = Descriptions(descriptions=str(file)).fit(tiny_clip, shots)
    save(tmp_path / "run", fitted, "zero-shot-descriptions")
    file.unlink()
    fitted = load(tmp_path / "run", tiny_clip).fitted
    found: Any = fitted.for_classes(("red", "Yellow", "car | lorry"))
    yellow = encoded(tiny_clip, GIVEN["yellow"])[0]
    car = zero_shot_weights(tiny_clip, ["car | lorry"], ("a {}.", "the {}"))
    torch.testing.assert_close(found.weights[0], fitted.tensors[WEIGHTS][3])
    torch.testing.assert_close(found.weights[1], yellow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weights[2], car[0], rtol=1e-4, atol=1e-5)


def test_without_a_file_and_with_a_damaged_model_it_says_so(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match="needs a file of texts about the classes: --set descriptions=FILE"
    ):
        Descriptions().fit(tiny_clip, shots_of(tiny_clip))
    fitted = Descriptions(descriptions=FILE).fit(tiny_clip, shots_of(tiny_clip))
    for tensors in ({WEIGHTS: fitted.tensors[WEIGHTS][:2]}, {TEXTS: fitted.tensors[TEXTS][:-1]}):
        with pytest.raises(RuntimeError):
            fitted.method.restore(tiny_clip, fitted.known, {**fitted.tensors, **tensors})


@pytest.mark.ci
def test_a_run_with_texts_from_a_file_accepts_more_classes(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "few.json"
    command = ["fit", colors, "--backbone", tiny_clip.name, "--shots", 1, "--set", "device=cpu"]
    command += ["--method", "zero-shot-descriptions", "--out", run]
    file.write_text(
        json.dumps({name: GIVEN[name] for name in ("red", "green", "blue")}), encoding="utf-8"
    )
    refused(rmadapter(*command, "--set", f"descriptions={file}"), "'night sky' has no texts")
    assert not (run / "model.json").exists()
    rmadapter.done(*command, "--set", f"descriptions={FILE}", "--json")
    file.write_text(json.dumps({**GIVEN, "red": ["red"]}), encoding="utf-8")
    other = [*command[:-1], tmp_path / "other", "--set", f"descriptions={file}"]
    rmadapter.done(*other)
    file.write_text(json.dumps(GIVEN), encoding="utf-8")
    refused(rmadapter(*other), "holds another run")  # for its texts are others
    more, option = tmp_path / "more", backbone_option(run)
    grown = rmadapter.json("add", run, "yellow", "house", "--out", more, *option)
    assert grown["labels"] == ["blue", "green", "night_sky", "red", "yellow", "house"]
    image = colors / "test" / "red" / "0.png"
    [answer] = rmadapter.json("predict", more, image, *option, "--top", 6)
    assert len(answer["classes"]) == 6


def test_shots_do_not_change_the_answers(tiny_clip: Backbone) -> None:
    """It learns nothing from the shots."""
    one, other = (
        Descriptions(descriptions=FILE).fit(tiny_clip, shots_of(tiny_clip, noisy_colors(2, seed)))
        for seed in (0, 1)
    )
    assert torch.equal(one.tensors[WEIGHTS], other.tensors[WEIGHTS])
