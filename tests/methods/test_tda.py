"""TDA against its authors' caches written down a second time, and what comes of a memory of test
images."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.methods.tda import TDA
from rmadapter.training.contract import Known
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.shots import near_prompts, noise_images, shots_of, states_of

__all__ = ["rmadapter"]  # a fixture

NAMES = ("cat", "dog", "car", "tree")


def plain(images: Tensor, weights: Tensor, scale: float, method: TDA) -> tuple[Tensor, int]:
    """As tda_runner.py goes about it: lists of a class, sorted by entropy. Also how many lie in the
    negative cache."""
    caches: tuple[dict[int, list[Any]], dict[int, list[Any]]] = ({}, {})
    found = []
    for image in images:
        f = image / image.norm()
        clip = scale * f @ weights.T
        p = clip.softmax(0)
        entropy = float(-(p * p.log()).sum())
        wanted = [method.size]
        if method.lowest < entropy / math.log2(len(weights)) < method.highest:
            wanted.append(method.negative_size)
        for cache, capacity in zip(caches, wanted, strict=False):
            kept = cache.setdefault(int(clip.argmax()), [])
            if len(kept) < capacity:
                kept.append((entropy, f, p))
            elif entropy < kept[-1][0]:
                kept[-1] = (entropy, f, p)
            kept.sort(key=lambda item: item[0])
        logits = clip.clone()
        for place, kept in caches[0].items():
            for _, key, _ in kept:
                logits += (
                    method.alpha
                    * torch.exp(-method.beta * (1 - f @ key))
                    * F.one_hot(torch.tensor(place), len(p))
                )
        for kept in caches[1].values():
            for _, key, said in kept:
                affinity = torch.exp(-method.negative_beta * (1 - f @ key))
                logits -= method.negative_alpha * affinity * ((said > method.mask) & (said < 1))
        found.append(logits)
    return torch.stack(found), sum(map(len, caches[1].values()))


@pytest.mark.parametrize(
    "fields", [{}, {"size": 1, "alpha": 4.0, "beta": 8.0, "negative_alpha": 2.0, "mask": 0.2}]
)
def test_logits_are_those_of_the_authors_caches(
    tiny_clip: Backbone, fields: dict[str, Any]
) -> None:
    weights, images = near_prompts(tiny_clip, NAMES)
    method = TDA(**fields)
    scale = 400.0  # of random encoders, whose prompts are much alike
    backbone = replace(tiny_clip, model=tiny_clip.model)
    stream: Any = method.restore(backbone, Known(NAMES), {}).for_classes(NAMES)
    stream.backbone = type("Scaled", (), {"logit_scale": scale})
    expected, kept = plain(images, weights, scale, method)
    assert kept >= 4  # else the negative cache would go untested
    torch.testing.assert_close(stream(states_of(images)), expected, rtol=1e-4, atol=1e-3)
    plain_clip = scale * F.normalize(images, dim=-1) @ weights.T
    assert (expected - plain_clip).abs().max() > 0.1


def test_batches_do_not_matter_but_the_order_does(tiny_clip: Backbone) -> None:
    """And each call starts with nothing."""
    fitted = load_method("tda").fit(tiny_clip, shots_of(tiny_clip, noise_images(4, NAMES)))
    assert fitted.remembers
    _, images = near_prompts(tiny_clip, NAMES)
    whole = fitted.score()(states_of(images))
    stream = fitted.score()
    torch.testing.assert_close(
        torch.cat([stream(states_of(part)) for part in images.split(7)]),
        whole,
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(fitted.score()(states_of(images)), whole)
    assert not torch.allclose(fitted.score()(states_of(images.flip(0))).flip(0), whole, atol=1e-2)
    assert fitted.score(("cat",))(states_of(images)).shape == (60, 1)
    assert fitted.score(("cat",))(states_of(images)).isfinite().all()


def fit_command(data: Path, backbone: Backbone, method: str) -> list[object]:
    options = f"--method {method} --shots 1 --set device=cpu"
    return ["fit", data, "--backbone", backbone.name, *options.split()]


def test_the_record_holds_the_order_of_images_and_eval_repeats_it(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    for seed in (1, 4):
        run = tmp_path / str(seed)
        command = [*fit_command(colors, tiny_clip, "tda"), "--seed", seed]
        rmadapter.done(*command, "--out", run)
        [score] = json.loads((run / "run.json").read_text("utf-8"))["scores"]
        assert score["order"] == seed
        found = rmadapter.json("eval", run, colors, *backbone_option(run))
        assert found["accuracy"] == score["accuracy"]
    other = fit_command(colors, tiny_clip, "zero-shot")
    rmadapter.done(*other, "--out", tmp_path / "other")
    assert "order" not in json.loads((tmp_path / "other/run.json").read_text("utf-8"))["scores"][0]


@pytest.mark.ci
def test_predict_notes_that_it_learns_and_export_and_serve_are_refused(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "answers.csv"
    command = fit_command(colors, tiny_clip, "tda")
    rmadapter.done(*command, "--out", run)
    asked = ["predict", run, colors / "test", *backbone_option(run), "--out", out]
    assert "TDA learns from these images in their order" in rmadapter.done(*asked).err
    out.unlink()
    out.with_name("answers.csv.partial").write_text("{}\n")
    refused(rmadapter(*asked), "TDA cannot resume; delete it to start again")
    refused(rmadapter(*asked, "--ray"), "a worker of --ray", "TDA")
    for words in (["export", run, "--out", tmp_path / "exported"], ["serve", run]):
        refused(rmadapter(*words, *backbone_option(run)), "an exported or served run", "TDA")
    assert not (tmp_path / "exported").exists()
