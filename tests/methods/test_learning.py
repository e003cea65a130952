"""Methods learn eight images by heart, and nothing but the seed decides how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.methods import load_method
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import NEW, eight_shots
from tests.helpers.deep_prompts import eight_images
from tests.helpers.learning import PROMPTSRC, assert_learns
from tests.helpers.shots import logits_of, noise_images, shots_of
from tests.helpers.slow import ci_except, slow_except


def noise(backbone: Backbone) -> Shots:
    return shots_of(backbone, noise_images(8))


def flat(backbone: Backbone) -> Shots:
    """One colour an image."""
    return shots_of(backbone, noise_images(8, grain=32))


def uneven(backbone: Backbone) -> Shots:
    colors = noise_images(8, grain=32)
    return shots_of(backbone, ImageSet(colors.images, (0, 1, 0, 1, 1, 0, 0, 1), colors.classes))


def named(backbone: Backbone) -> Shots:
    return shots_of(
        backbone, noise_images(8, ("cat", "a small red car. a blue bird", "dog", "house"))
    )


CONTEXT = {"epochs": 120, "learning_rate": 0.02}
DEEP = {"learning_rate": 0.05, "batch_size": 8}
TIP = {"search": False, "alpha": 50, "beta": 50}
TIP_F = TIP | {"alpha": 5, "beta": 20, "epochs": 200, "learning_rate": 0.01}
HICROPL = DEEP | {"n_ctx": 2, "epochs": 60, "learning_rate": 0.01, "consistency": 0.1}
MMRL = {"first_block": 2, "epochs": 20, "learning_rate": 0.005}

# Name of the method, shots, bound on the last loss relative to the first, settings
CASES: list[tuple[str, Callable[[Backbone], Shots], float, dict[str, Any]]] = [
    ("linear-probe", noise, 1, {"search_steps": 0, "C": 1e6}),
    ("lp-plus-plus", noise, 0.1, {}),
    ("clip-adapter", uneven, 1, {"learning_rate": 0.2, "epochs": 300}),
    ("biclip", noise, 1, {"learning_rate": 0.01, "epochs": 60}),
    ("tip-adapter", flat, 1, TIP),
    ("tip-adapter-f", flat, 0.1, TIP_F),
    ("prolip", noise, 0.1, {"strength": 1e-6, "learning_rate": 0.02}),
    ("coop", eight_shots, 0.2, CONTEXT),
    ("cocoop", eight_shots, 0.2, CONTEXT | {"epochs": 30}),
    ("kgcoop", eight_shots, 0.2, CONTEXT | {"distance_weight": 0.1}),
    # With the projection, the answers of zero-shot CLIP stand against some of the labels.
    ("prograd", eight_shots, 0.2, CONTEXT | {"strength": 0.0}),
    ("cocoa-mix", eight_shots, 0.2, CONTEXT),
    ("tcp", eight_shots, 0.2, CONTEXT | {"epochs": 60, "distance_weight": 0.1}),
    ("text-refiner", eight_shots, 0.2, CONTEXT | {"likeness": 0.0}),
    ("clip-lora", flat, 0.1, {"learning_rate": 0.02, "iterations": 15}),
    ("2sfs", noise, 0.5, {"learning_rate": 0.05, "iterations": 0, "epochs": 40}),
    ("full-finetune", named, 1, {"learning_rate": 0.001, "epochs": 40}),
    ("skip-tuning", named, 1, {"learning_rate": 0.01, "epochs": 40}),
    ("maple", eight_images, 1, DEEP | {"epochs": 80}),
    ("dept", eight_images, 1, DEEP | {"epochs": 60, "learning_rate": 0.02}),
    ("promptsrc", eight_images, 1, PROMPTSRC),
    ("coprompt", eight_images, 1, DEEP | {"epochs": 80, "consistency": 0.1}),
    ("hicropl", eight_images, 1, HICROPL),
    ("mmrl", eight_images, 1, MMRL),
    ("mmrl-plus-plus", eight_images, 1, MMRL),
    ("lweib", eight_images, 1, DEEP | {"epochs": 60, "learning_rate": 2.0, "scale": 0.3}),
    ("heba", eight_images, 1, DEEP | {"epochs": 60, "scale": 0.3}),
    ("mail", noise, 0.1, {"learning_rate": 0.005, "epochs": 40, "batch_size": 8}),
]
SLOW = (
    *("cocoop", "maple", "dept", "promptsrc", "coprompt", "hicropl", "lweib", "heba"),
    # They train prompts as CoOp does, which is among the quick ones.
    *("kgcoop", "prograd", "cocoa-mix", "text-refiner"),
)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "make", "falls", "settings"),
    slow_except(CASES, *(case[0] for case in CASES if case[0] not in SLOW)),
)
def test_eight_images_are_learned_by_heart(
    name: str,
    make: Callable[[Backbone], Shots],
    falls: float,
    settings: dict[str, Any],
    tiny_clip: Backbone,
) -> None:
    assert_learns(load_method(name, settings), make(tiny_clip), falls)


CONTEXTS = ("coop", "kgcoop", "prograd", "cocoop", "cocoa-mix", "tcp", "text-refiner")


@pytest.mark.parametrize("backbone", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("name", ci_except(CONTEXTS, "coop", "cocoop"))
def test_only_the_seed_changes_a_fit(
    name: str, backbone: str, request: pytest.FixtureRequest
) -> None:
    settings = {"context": ""} if name in ("coop", "kgcoop", "prograd") else {}
    method, model = load_method(name, {"epochs": 2, **settings}), request.getfixturevalue(backbone)
    shots = [eight_shots(model, seed) for seed in (1, 1, 2)]
    once, again, other = (logits_of(method.fit(model, some), some, NEW) for some in shots)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
