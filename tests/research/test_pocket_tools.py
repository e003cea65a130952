"""research/pocket: pinned sources, and its computations against oracles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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
import train
import vector
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.prompts import raw_text_features
from rmadapter_pocket import POCKET_3
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
    assert checkouts == folders
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


@pytest.fixture(scope="module")
def untouched(pocket_3: Backbone) -> dict[str, Tensor]:
    """What `read_untouched` returns, with weights of our own in the trained blocks."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"visual.trunk.{name}": torch.randn(tensor.shape, generator=generator)
        for name, tensor in pocket_3.model.visual.trunk.state_dict().items()
    }


def test_the_student_starts_between_pocket_and_the_untouched_encoder(
    pocket: Backbone, untouched: dict[str, Tensor]
) -> None:
    """Of pocket alone, its aligned features are pocket's; in the middle, weights are means."""
    model: Any = pocket.model
    trunk = model.visual.trunk
    same, mean = (student.Student(pocket, untouched, mix).eval() for mix in (1.0, 0.5))
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x = trunk._pos_embed(trunk.patch_embed(images))
        for block in trunk.blocks[: states.FROZEN_BLOCKS]:
            x = block(x)
        features = same.whole(x)
        expected = F.normalize(model.encode_image(images), dim=-1)
        assert_same_float32(same.aligned(features), expected)
    assert features.shape == (2, 384)
    assert torch.linalg.matrix_rank(same.proj.weight) == 384  # the class token can be read from it
    for name in ("blocks.11.mlp.fc2.weight", "norm.bias"):
        middle = (trunk.state_dict()[name] + untouched[f"visual.trunk.{name}"]) / 2
        torch.testing.assert_close(mean.state_dict()[name], middle)


def test_the_student_stores_what_is_shipped(pocket: Backbone, untouched: dict[str, Tensor]) -> None:
    delta, shipped = student.Student(pocket, untouched).delta(), load_file(POCKET_3.file)
    assert {name: part.shape for name, part in delta.items()} == {
        name: part.shape for name, part in shipped.items()
    }
    assert torch.equal(delta["text.proj.weight"], shipped["text.proj.weight"])
    assert not shipped["text.proj.weight"][256:].any()  # what the image encoder alone says


def test_the_readout_is_the_ridge_regression(
    pocket: Backbone, untouched: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against scikit-learn."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 384), F.normalize(torch.randn(40, 384), dim=-1)
    some = student.Student(pocket, untouched)
    monkeypatch.setattr(some, "whole", lambda states: states)
    rows = SimpleNamespace(
        weight=np.ones(40), tokens=lambda drawn: x[drawn], class_tokens=lambda drawn: y[drawn]
    )
    readout = train.fit_readout(some, cast(Any, rows), 40, batch=16)
    x = F.normalize(x, dim=-1)
    ridge = train.RIDGE * float((x - x.mean(0)).square().sum()) / 384
    oracle = Ridge(alpha=ridge).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(
        readout(x).detach().numpy(), oracle.predict(x.double().numpy()), atol=1e-4
    )


def test_the_loss_is_what_its_terms_say(pocket: Backbone, untouched: dict[str, Tensor]) -> None:
    """Against loops over rows in float64: a photograph with teacher and truth, one with a teacher
    alone, a drawing."""
    torch.manual_seed(0)
    some = student.Student(pocket, untouched)
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
