"""research/pocket: pinned sources, and its computations against oracles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import duplicates
import evaluate
import numpy as np
import photographs
import pools
import pytest
import sources
import states
import student
import texts
import torch
import torch.nn.functional as F
import vector
from PIL import Image
from safetensors.torch import load_file

from rmadapter.backbones import Backbone
from rmadapter.prompts import raw_text_features
from rmadapter_pocket import POCKET
from tests.helpers.rounding import assert_same_float32

# Sources


def test_every_source_is_pinned_and_names_a_licence() -> None:
    known = sources.known()
    assert all(len(row["sha256"]) == 64 for row in known["npm"])
    assert all(len(row["commit"]) == 40 for row in known["github"])
    assert all(row["licence"] for part in known.values() for row in part)
    packages = {f"@iconify-json/{name}" for name in (*vector.EMOJI, *vector.ICONS)}
    assert packages == {row["package"] for row in known["npm"] if "iconify" in row["package"]}
    checkouts = {sources.checkout(row, Path()).as_posix(): row["pool"] for row in known["github"]}
    folders = {source.folder: pool for pool, source in photographs.SOURCES.items()}
    assert checkouts == {folder: pool for folder, pool in folders.items() if folder != "alignment"}
    used = {row["pool"] for part in known.values() for row in part if "pool" in row}
    assert used <= {*pools.POOLS}


# Images


def test_images_are_near_if_at_most_four_bits_differ() -> None:
    rng = np.random.default_rng(0)
    some = np.where(rng.random((5, 64)) > 0.5, 1, -1).astype(np.float32)
    four, five = some.copy(), some.copy()
    four[:, :4] *= -1
    five[:, 10:15] *= -1
    assert duplicates.near(four, some, chunk=2).all()
    assert not duplicates.near(five, some).any()


# Texts


def test_states_of_texts_are_those_of_the_library(pocket: Backbone) -> None:
    names = ["cat", "a sentence of several words", "dog"]
    model: Any = pocket.model
    ours = F.linear(texts.embed(names, pocket, batch=2), model.text.proj.weight)
    assert_same_float32(ours, raw_text_features(pocket, names, ["{}"])[0])


# Training


def test_the_student_is_the_end_of_the_model(pocket: Backbone) -> None:
    """From the frozen blocks on, its features are the model's, and what it stores is what is
    shipped."""
    model: Any = pocket.model
    some, trunk = student.Student(pocket).eval(), model.visual.trunk
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x = trunk._pos_embed(trunk.patch_embed(images))
        for block in trunk.blocks[: states.FROZEN_BLOCKS]:
            x = block(x)
        assert_same_float32(some.image(x), F.normalize(model.encode_image(images), dim=-1))
    shipped, delta = load_file(POCKET.file), some.delta()
    assert delta.keys() == shipped.keys()
    assert all(torch.equal(delta[name], shipped[name]) for name in shipped)
    some.load_state_dict({name: torch.zeros_like(part) for name, part in some.state_dict().items()})
    some.load(POCKET.file)
    assert all(torch.equal(some.delta()[name], shipped[name]) for name in shipped)


def test_the_loss_is_what_its_terms_say(pocket: Backbone) -> None:
    """Against loops over rows in float64: a photograph with teacher and truth, one with a teacher
    alone, a drawing."""
    torch.manual_seed(0)
    some = student.Student(pocket)
    listed = [{"texts": [(0, 0.75), (1, 0.25)]}, {"texts": [(2, 1.0)]}]
    every = student.Texts.of(some, torch.randn(6, 5, 384), listed, torch.tensor([False] * 5))
    features, classes = (F.normalize(torch.randn(n, 256), dim=-1) for n in (3, 1000))
    basis, logits = torch.randn(1000, 256), torch.randn(3, 1000)
    taught, drawing = torch.tensor([True, True, False]), torch.tensor([False, False, True])
    targets = student.Targets(
        torch.tensor([0, 1, 0]), torch.tensor([7, -1, -1]), logits, taught, drawing
    )
    terms = student.loss_terms(
        some, features, targets, every, classes, basis, torch.tensor([4, 3]), 2
    )

    sums, scale = np.zeros(3), float(some.scale.detach())
    for row in range(3):
        f, own = features[row].double(), [{0: 0.75, 1: 0.25}, {2: 1.0}][int(targets.labels[row])]
        direction = F.normalize(
            sum(w * every.features[2][t].double() for t, w in own.items()), dim=-1
        )
        rivals = every.features[2].double()  # all five are candidates here
        near = (20 * rivals @ direction).softmax(0)
        target = torch.stack([0.7 * own.get(t, 0.0) + 0.3 * near[t] for t in range(5)])
        sums[1] += (0.7, 0.7, 1.4)[row] * F.kl_div(
            (scale * rivals @ f).log_softmax(0), target, reduction="sum"
        ).item()
        if row < 2:
            one = F.one_hot(torch.tensor(7), 1000).double()
            soft, softer = (logits[row].double() / t for t in (1, 2))
            mix = [(one + s.softmax(0)) / 2 if row == 0 else s.softmax(0) for s in (soft, softer)]
            predicted = (scale * classes.double() @ f).log_softmax(0)
            sums[0] += F.kl_div(predicted, mix[0], reduction="sum").item()
            direction = F.normalize(
                0.75 * F.normalize(mix[1] @ basis.double(), dim=-1) + 0.25 * direction, dim=-1
            )
        sums[2] += 1 - float(f @ direction)
    assert [term.item() for term in terms] == pytest.approx(sums / 3, rel=1e-3)


# Evaluation


def test_accuracy_is_that_of_the_plain_model(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sets = tmp_path / "sets"
    (sets / "several").mkdir(parents=True)
    for name in ("plain", "several/day", "several/night"):
        (sets / name).symlink_to(colors)
    pools.write(sets / "several/classnames.json", {"night_sky": "stars at night"})
    (sets / "no set").mkdir()
    words = ["evaluate", "--root", str(sets), "--backbones", tiny_clip.name, "--json"]
    monkeypatch.setattr(sys, "argv", words)
    evaluate.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["set"] for line in lines] == ["plain", "several/day", "several/night"]
    files = sorted((colors / "test").rglob("*.png"))
    images = torch.stack([tiny_clip.preprocess(Image.open(f).convert("RGB")) for f in files])
    model: Any = tiny_clip.model
    for line, sky in zip(lines, ("night sky", "stars at night"), strict=False):
        prompts = [f"a photo of a {name}." for name in ("blue", "green", sky, "red")]
        with torch.inference_mode():
            texts = F.normalize(model.encode_text(tiny_clip.tokenizer(prompts)), dim=-1)
            scores = model.encode_image(images) @ texts.T
        hits = scores.argmax(1) == torch.arange(4).repeat_interleave(4)
        assert line["accuracy"] == pytest.approx(100 * hits.float().mean().item())
        facts = (line["classes"], line["images"], line["backbone"]["digest"])
        assert facts == (4, 16, tiny_clip.digest)
        assert "torch" in line["versions"]
