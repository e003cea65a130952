"""What each method uses beyond the shots, so that like is ranked with like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rmadapter.support.files import read_text, user_path
from rmadapter.training.traits import TRACKS as TRACKS
from rmadapter.training.traits import Uses as Uses

UNKNOWN = "not stated"  # track of external methods that do not say what they use: shown, not ranked


PUBLISHED = "as published"
# in the variant of a row of `bench --tune N`, followed by the trials on folds of its shots
TUNED = "tuned by"
HELD_OUT = "held-out shots, in every fit"
OURS = "this project's choosing sets (docs/defaults.md)"
_PROMPT = "the words of the prompt"

USES: Mapping[str, Uses] = {
    "zero-shot": Uses(tuned="nothing"),
    "zero-shot-ensemble": Uses(extra="7 general templates", tuned="ImageNet, by CLIP's authors"),
    "zero-shot-descriptions": Uses(
        track="extra data",
        extra="generated texts about each class, in a file",
        files=("descriptions",),
        tuned="nothing",
    ),
    "tda": Uses(
        track="test time",
        test_time="features of the test images before, in a random order",
        constants="alpha and beta, the words of the prompts",
        tuned="as published for ImageNet",
    ),
    "linear-probe": Uses(tuned=HELD_OUT),
    "linear-probe-zero-shot": Uses(tuned=PUBLISHED),
    "linear-probe-pair": Uses(tuned=HELD_OUT),
    "clap": Uses(tuned=PUBLISHED),
    "lp-plus-plus": Uses(tuned=PUBLISHED),
    "clip-adapter": Uses(constants="the ratio", tuned="as published for ImageNet"),
    "tip-adapter": Uses(constants="alpha and the grids of alpha and beta", tuned=HELD_OUT),
    "tip-adapter-f": Uses(
        constants="alpha, the grids of alpha and beta, epochs on EuroSAT", tuned=HELD_OUT
    ),
    "prolip": Uses(tuned=PUBLISHED),
    "coop": Uses(constants="epochs, on ImageNet", tuned=PUBLISHED),
    "cocoop": Uses(tuned=PUBLISHED),
    "kgcoop": Uses(constants=_PROMPT, tuned=PUBLISHED),
    "prograd": Uses(constants=f"{_PROMPT}, strength and epochs by shots", tuned=PUBLISHED),
    "cocoa-mix": Uses(extra="148 general words", tuned="as published, as far as known"),
    "tcp": Uses(constants=f"{_PROMPT}, the epoch tested", tuned=PUBLISHED),
    "text-refiner": Uses(constants="the rate, by files that name no set", tuned=PUBLISHED),
    "clip-lora": Uses(tuned=PUBLISHED),
    "2sfs": Uses(tuned=PUBLISHED),
    "skip-tuning": Uses(tuned="as published where that is known to us, the rest by nothing"),
    "maple": Uses(tuned=PUBLISHED),
    "dept": Uses(tuned=PUBLISHED),
    "promptsrc": Uses(extra="20 general templates", tuned=PUBLISHED),
    "coprompt": Uses(
        extra="generated descriptions of the trained classes, in a file; without it the run's prompts",
        files=("descriptions",),
        constants="number and depth of prompts, weight of consistency, epochs",
        tuned="as published for ImageNet",
    ),
    "hicropl": Uses(
        extra="descriptions of all classes, where they have some; without them the run's prompts",
        constants="epochs and batch on ImageNet",
        tuned=PUBLISHED,
    ),
    "prompt-kd": Uses(
        track="teacher",
        extra="all train images without labels, 20 general templates",
        teacher="PromptSRC, fitted to the same shots, on another backbone where one is named",
        backbones=("teacher",),
        constants="weight of the loss",
        tuned=PUBLISHED,
    ),
    "mmrl": Uses(
        constants="weight of regularisation, width on EuroSAT, epochs on ImageNet", tuned=PUBLISHED
    ),
    "mmrl-plus-plus": Uses(
        constants="weight of regularisation, beta, epochs on ImageNet", tuned=PUBLISHED
    ),
    "lweib": Uses(
        extra="generated texts about each class, in a file; without it the run's prompts",
        files=("descriptions",),
        constants="scales, batch, rate and epochs where a model of ImageNet goes to other sets",
        tuned=PUBLISHED,
    ),
    "mma": Uses(constants="batch, on ImageNet", tuned=PUBLISHED),
    "mma-adamw": Uses(tuned=OURS),
    "rmadapter": Uses(tuned=OURS),
    "rmadapter-paper": Uses(tuned="as MMA and PromptSRC published"),
    "rmadapter-plain": Uses(tuned=OURS),
    "rmadapter-plus": Uses(
        extra="7 general templates", tuned="this project's choosing sets (docs/plus.md)"
    ),
}


def uses_of(name: str, settings: Mapping[str, Any], own: Uses | None = None) -> Uses | None:
    """What a method uses, by its name. own: what an external method says itself, which may be
    nothing."""
    known = USES.get(name, own)
    return known and known.given(settings)


def backbones_in(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Further backbones that settings of this method name, such as a teacher."""
    return (
        [settings[field] for field in USES[name].backbones if settings.get(field)]
        if name in USES
        else []
    )


def named_sums(name: str, settings: Mapping[str, Any]) -> list[str]:
    """SHA-256 of each file that the settings name, or of the method's own, and digest of each
    backbone whose name does not determine its weights, so that other content makes another run.
    Raises UserError if one is missing."""
    if name not in USES:
        code = name.rpartition(":")[0]
        return [_sum(code)] if code.endswith(".py") else []
    import torch  # the service of an export imports this module, and has no torch

    from rmadapter.backbones.load import is_published
    from rmadapter.backbones.shared import shared

    files, models = (
        [settings[f] for f in USES[name].files if settings.get(f)],
        backbones_in(name, settings),
    )
    return [*map(_sum, files)] + [
        shared(model, torch.device("cpu")).digest for model in models if not is_published(model)
    ]


def _sum(file: str) -> str:
    return hashlib.sha256(read_text(user_path(file)).encode()).hexdigest()


def track_of(name: str, settings: Mapping[str, Any], own: Uses | None = None) -> str:
    """One of TRACKS, or UNKNOWN."""
    found = uses_of(name, settings, own)
    return found.track if found else UNKNOWN
