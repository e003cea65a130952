"""What each method uses beyond the shots, so that like is ranked with like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rmadapter.support.files import read_text, user_path
from rmadapter.training.traits import TRACKS as TRACKS
from rmadapter.training.traits import About, Cost
from rmadapter.training.traits import Uses as Uses

if TYPE_CHECKING:
    from rmadapter.training.contract import Method

UNKNOWN = "not stated"  # track of external methods that do not say what they use: shown, not ranked


PUBLISHED = "as published"
# in the variant of a row of `bench --tune N`, followed by the trials on folds of its shots
TUNED = "tuned by"
HELD_OUT = "held-out shots, in every fit"
OURS = "this project's choosing sets (docs/studies/defaults.md)"
_PROMPT = "the words of the prompt"
_TIP = "alpha and beta for ImageNet (authors' main_imagenet.py), here searched on held-out shots"

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
    "stata": Uses(
        track="test time",
        test_time="features of the other images of a batch, in a random order",
        constants=_PROMPT,
        tuned=PUBLISHED,
    ),
    "tpt": Uses(
        track="test time",
        test_time="none: the prompt takes a step by crops of each image alone, and forgets it",
        tuned=PUBLISHED,
    ),
    "linear-probe": Uses(tuned=HELD_OUT),
    "linear-probe-zero-shot": Uses(tuned=PUBLISHED),
    "linear-probe-pair": Uses(tuned=HELD_OUT),
    "ridge": Uses(
        extra="7 general templates",
        tuned="this project's choosing sets (docs/studies/plus.md)",
    ),
    "clap": Uses(tuned=PUBLISHED),
    "lp-plus-plus": Uses(tuned=PUBLISHED),
    "clip-adapter": Uses(
        constants="the ratio",
        tuned="as published for ImageNet",
        on_test="perhaps the ratio, as in most methods with one (abstract of arXiv 2603.04341)",
    ),
    "hoso-adapter": Uses(tuned="one shot of each class, in every fit; the rest as for ImageNet"),
    "tip-adapter": Uses(
        constants="alpha and the grids of alpha and beta", tuned=HELD_OUT, on_test=_TIP
    ),
    "tip-adapter-f": Uses(
        constants="alpha, the grids of alpha and beta, epochs on EuroSAT",
        tuned=HELD_OUT,
        on_test=f"{_TIP}; the epoch (their main.py, issue 11), here the last",
    ),
    "gda": Uses(tuned=HELD_OUT),
    "proker": Uses(constants="the grids of beta and lambda", tuned=HELD_OUT),
    "rehark": Uses(
        constants="the numbers, searched on validation images",
        tuned=HELD_OUT,
        on_test="the numbers for ImageNet (authors' code), here searched on held-out shots",
    ),
    "ss-text": Uses(tuned=PUBLISHED),
    "ss-text-plus": Uses(tuned=PUBLISHED),
    "ss-text-u": Uses(
        track="extra data",
        extra="all train images without labels, and the names of all classes",
        tuned=PUBLISHED,
    ),
    "prolip": Uses(tuned=PUBLISHED),
    "coop": Uses(constants="epochs, on ImageNet", tuned=PUBLISHED),
    "coop-few-shot": Uses(constants="epochs, on ImageNet", tuned=PUBLISHED),
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
        extra="generated descriptions of the trained classes, in a file; without it the run's "
        "prompts",
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
        on_test="the epoch (authors' code), here the last",
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
    "heba": Uses(
        extra="generated texts about each class, in a file; without it the run's prompts",
        files=("descriptions",),
        tuned=PUBLISHED,
    ),
    "mail": Uses(
        constants=f"{_PROMPT}; on eight sets rate, rank, batch, epochs, optimiser, crops or which "
        "projections learn",
        tuned=PUBLISHED,
    ),
    "mma": Uses(constants="batch, on ImageNet", tuned=PUBLISHED),
    "mma-adamw": Uses(tuned=OURS),
    "rmadapter": Uses(tuned=OURS),
    "rmadapter-paper": Uses(tuned="as MMA and PromptSRC published"),
    "rmadapter-plain": Uses(tuned=OURS),
    "rmadapter-plus": Uses(
        extra="7 general templates", tuned="this project's choosing sets (docs/studies/plus.md)"
    ),
}

# How methods of papers depart from their authors' code, and where.
DEPARTURES: Mapping[str, Mapping[str, str]] = {
    "Not written from the authors' code": {
        "rmadapter": "from the paper, as no code was released, with settings of this project",
        "rmadapter-paper": "from the paper, as no code was released, with settings of MMA and "
        "PromptSRC",
        "cocoa-mix": "from the abstract and a summary of the equations, as no code was released",
        "hoso-adapter": "from the abstract, with CLIP-Adapter's recipe, as no code was released",
        "skip-tuning": "from the abstract and notes on the paper, with optimiser, rate, epochs and "
        "weight decay of this project",
    },
    "Parts of the authors' code left out": {
        "rehark": "texts of a language model, and mean and spread of all test images",
        "tpt": "AugMix of the crops, on sets other than ImageNet and its variants",
    },
}

# In the order of their cost, and then of their groups in docs/reference/methods.md.
ABOUT: Mapping[str, About] = {
    "zero-shot": About(
        "nothing",
        "an image goes to the class with the nearest prompt",
        "tasks without labelled images",
    ),
    "zero-shot-ensemble": About(
        "nothing",
        "zero-shot with seven general templates",
        "tasks without labels or a template of your own",
    ),
    "zero-shot-descriptions": About(
        "nothing",
        "zero-shot with texts about each class from a file",
        "classes that you have texts about",
    ),
    "tda": About(
        "nothing",
        "zero-shot that remembers test images in their order",
        "many unlabelled images asked about at once",
    ),
    "stata": About(
        "nothing",
        "zero-shot whose classes move towards a batch of images",
        "many unlabelled images asked about at once",
    ),
    "tpt": About(
        "nothing",
        "zero-shot whose prompt takes a step for each image, by 64 crops of it",
        "studies of single images: each takes 64 passes of the image encoder",
    ),
    "tip-adapter": About(
        "nothing",
        "similar shots add to zero-shot answers",
        "machines that cannot train at all",
        new_classes=False,
    ),
    "gda": About(
        "nothing",
        "normal distributions of the shots' features add to zero-shot answers",
        "an answer in a second, from four shots on",
    ),
    "proker": About(
        "nothing",
        "a kernel regression of what zero-shot gets wrong on the shots",
        "an answer in a second for classes with shots",
        new_classes=False,
    ),
    "rehark": About(
        "nothing",
        "two kernels of what prompts and class means get wrong on the shots",
        "an answer at once for classes with shots",
        new_classes=False,
    ),
    "ss-text": About(
        "nothing",
        "sums of the shots' features, with the prompt as one more",
        "an answer at once, without choosing anything",
    ),
    "ss-text-plus": About(
        "nothing",
        "sums of the shots' features, weighed by their number and moved apart",
        "classes with very different numbers of images",
    ),
    "ss-text-u": About(
        "nothing",
        "sums of features of the shots and of images without labels",
        "few labels and many images without",
    ),
    "linear-probe": About(
        "features",
        "a logistic regression that ignores class names",
        "many shots, or class names that say little",
        new_classes=False,
    ),
    "linear-probe-zero-shot": About(
        "features",
        "a linear probe that starts as the class prompts",
        "class names that mean something",
        new_classes=False,
    ),
    "linear-probe-pair": About(
        "features", "both linear probes, and answers by their mean", new_classes=False
    ),
    "ridge": About(
        "features",
        "a closed-form regression of the shots added to zero-shot answers",
        "an answer at once that also knows new classes by name",
    ),
    "clap": About(
        "features",
        "a linear probe held near the class prompts",
        "few shots of classes whose names CLIP knows",
        new_classes=False,
    ),
    "lp-plus-plus": About(
        "features", "a linear classifier plus a share of text features", new_classes=False
    ),
    "clip-adapter": About(
        "features",
        "a small network behind the image encoder",
        "cheap training that keeps new classes working",
    ),
    "hoso-adapter": About(
        "features",
        "CLIP-Adapter, with its ratio learned from one shot of each class",
        "cheap training that decides how far to trust the shots",
    ),
    "tip-adapter-f": About(
        "features",
        "Tip-Adapter's stored features of the shots",
        "few classes: its size grows with shots and classes",
        new_classes=False,
    ),
    "prolip": About("features", "the projection behind the image encoder"),
    "coop": About(
        "text",
        "word vectors before the class name",
        "trained classes alone; the reference for prompts",
    ),
    "coop-few-shot": About(
        "text", "16 word vectors from noise before the class name", "CoOp's few-shot tables"
    ),
    "cocoop": About(
        "text", "CoOp's vectors, shifted for each image", "studies of prompts that follow the image"
    ),
    "kgcoop": About(
        "text",
        "CoOp's vectors, held near hand-written prompts",
        "new classes, at a price on trained ones",
    ),
    "prograd": About("text", "CoOp's vectors, with no step against CLIP's answers"),
    "cocoa-mix": About("text", "CoOp's vectors, mixed with hand-written prompts"),
    "tcp": About(
        "text", "KgCoOp's vectors, made from each class's name", "trained and new classes alike"
    ),
    "text-refiner": About("text", "CoOp's vectors, refined by image tokens"),
    "mma": About(
        "blocks",
        "adapters beside blocks, tied across encoders",
        "trained classes, with nothing to preserve",
    ),
    "mma-adamw": About("blocks", "MMA with RMAdapter's optimiser", "studies: a control"),
    "rmadapter": About(
        "blocks",
        "adapters with reconstruction and a pull to CLIP",
        "trained and new classes, as in the paper",
    ),
    "rmadapter-paper": About(
        "blocks", "RMAdapter, optimised as its paper suggests", "comparisons with the paper"
    ),
    "rmadapter-plain": About(
        "blocks", "RMAdapter's adapters without its two losses", "studies: a control"
    ),
    "rmadapter-plus": About(
        "blocks",
        "RMAdapter's adapters and a regression of the shots",
        "trained and new classes; the default of `--half`",
    ),
    "mmrl": About(
        "blocks", "tokens that both encoders share", "trained classes first, but new ones must work"
    ),
    "mmrl-plus-plus": About("blocks", "MMRL with shared and low-rank maps"),
    "skip-tuning": About("blocks", "the upper blocks themselves"),
    "clip-lora": About(
        "encoders",
        "low-rank updates of attention in every block",
        "images far from natural photographs",
    ),
    "2sfs": About("encoders", "LayerNorms, and then the class features"),
    "mail": About(
        "encoders", "factors and shifts behind each part of both encoders, tied together"
    ),
    "maple": About(
        "encoders",
        "prompt tokens, the image's made from the text's",
        "studies: the reference for prompts in blocks",
    ),
    "dept": About("encoders", "MaPLe, and a head for the trained classes"),
    "promptsrc": About(
        "encoders",
        "separate prompt tokens, held near CLIP",
        "new classes, when training time does not matter",
    ),
    "coprompt": About(
        "encoders",
        "MaPLe, held near descriptions of the classes",
        "classes that you have descriptions of",
    ),
    "hicropl": About("encoders", "prompts of both encoders that guide each other"),
    "prompt-kd": About(
        "encoders",
        "a student's prompts that copy a teacher's answers",
        "many images without labels",
    ),
    "lweib": About(
        "encoders",
        "small convolutions, and texts about the classes",
        "classes that you have texts about",
    ),
    "heba": About(
        "encoders",
        "bottlenecks in all blocks, and texts about the classes",
        "classes that you have texts about",
    ),
}


def cost_of(name: str, method: Method) -> Cost:
    """Return what a training step of a method runs through; the most, if a method from outside does
    not say."""
    about = ABOUT.get(name, method.traits.about)
    return about.cost if about else "encoders"


def uses_of(name: str, settings: Mapping[str, object], declared: Uses | None = None) -> Uses | None:
    """Return what a method of this name uses. declared: by a method from outside."""
    uses = USES.get(name, declared)
    return None if uses is None else uses.with_settings(settings)


def backbones_in(name: str, settings: Mapping[str, object]) -> list[str]:
    """Return further backbones that settings of this method name, such as a teacher."""
    return _values(settings, USES[name].backbones) if name in USES else []


def _values(settings: Mapping[str, object], fields: Iterable[str]) -> list[str]:
    """Return the values of some settings, where they are set."""
    return [str(settings[field]) for field in fields if settings.get(field)]


def named_sums(name: str, settings: Mapping[str, object]) -> list[str]:
    """Return the SHA-256 of each file that the settings name, or of the method's own, and digest of
    each backbone whose name does not determine its weights, so that other content makes another
    run. Raises UserError if one is missing."""
    if name not in USES:
        code = name.rpartition(":")[0]
        return [_digest(code)] if code.endswith(".py") else []
    import torch  # the service of an export imports this module, and has no torch

    from rmadapter.backbones.load import is_published, shared

    sums = [_digest(file) for file in _values(settings, USES[name].files)]
    for model in backbones_in(name, settings):
        if not is_published(model):
            sums.append(shared(model, torch.device("cpu")).digest)
    return sums


def _digest(file: str) -> str:
    return hashlib.sha256(read_text(user_path(file)).encode()).hexdigest()


def track_of(name: str, settings: Mapping[str, object], declared: Uses | None = None) -> str:
    """Return one of TRACKS, or UNKNOWN."""
    uses = uses_of(name, settings, declared)
    return uses.track if uses else UNKNOWN
