"""Choose the images of an unlabelled pool that are most worth a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.curate.acquisition import FIRST, NEXT, Pool, pick
from rmadapter.data.duplicates import groups, looks
from rmadapter.data.image_reader import ImageReader
from rmadapter.data.inputs import Inputs, find_images
from rmadapter.data.names import prompt_names
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.errors import UserError, did_you_mean
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.terminal import note, track
from rmadapter.training.cache import BATCH
from rmadapter.training.contract import Fitted, Known, answers

DEFAULT_NEXT, DEFAULT_FIRST = "random", "typicality"  # docs/suggest.md has the figures
SAME = 2e-5  # 1 - cosine of an image to itself, kept in float16, is below this


class Suggestion(NamedTuple):
    """rank: from 1. score: by the rule, higher is more wanted; 0 for random. best: the two most
    probable labels with their probabilities; empty if no class is known."""

    image: Path
    rank: int
    score: float
    best: tuple[tuple[str, float], ...]

    def json(self) -> dict[str, Any]:
        best = [{"class": label, "probability": share} for label, share in self.best]
        return {"image": str(self.image), "rank": self.rank, "score": self.score, "best": best}


@dataclass(frozen=True)
class Suggested:
    """rule: the one applied. pool: number of images. known: how many of them the model was fitted
    to. copies: how many were left out as near-duplicates of others."""

    rule: str
    pool: int
    known: int
    copies: int
    suggestions: tuple[Suggestion, ...]


def suggest_images(
    run: str | Path | Saved, pool: Sequence[str | Path] | str | Path, n: int = 50, *, rule: str = "", seed: int = 1,
    backbone: Backbone | str | None = None, skip_bad: bool = False, column: str = "", outside: bool = False,
    progress: bool = True,
) -> Suggested:  # fmt: skip
    """The n images of a pool to label next, for a run to learn from.

    pool: files, folders, patterns or tables, as `predict` takes them. column, outside: as in
    `find_images`. rule: one of NEXT; none of them is sure to beat the default, random
    (docs/suggest.md). Images that the run was fitted to are left out, and all but the first of
    near-duplicates. Raises UserError as `load` and `find_images` do, for an unknown rule, and if
    nothing is left of the pool.
    """
    chosen = _known(rule or DEFAULT_NEXT, NEXT)
    saved = run if isinstance(run, Saved) else load(run, backbone)
    labels = [str(label) for label in saved.labels]
    if saved.fitted.examples is None and not isinstance(saved.fitted.method, ZeroShot):
        note(
            "the run holds no features of its training images, so those in the pool are not left out"
        )
    seen = _look(
        _files(pool, column, outside), saved.fitted, saved.names, labels, skip_bad, progress
    )
    return _picked(seen, chosen, NEXT, n, seed, saved.fitted)


def first_images(
    pool: Sequence[str | Path] | str | Path, n: int = 50, *, names: Sequence[str] = (), rule: str = "", seed: int = 1,
    backbone: Backbone | str = "pocket", skip_bad: bool = False, column: str = "", outside: bool = False,
    progress: bool = True,
) -> Suggested:  # fmt: skip
    """The n images of a pool to label first, where nothing is labelled yet.

    names: of the classes, if known; the rule `balanced` needs them. rule: one of FIRST. The rest as
    for `suggest_images`.
    """
    chosen = _known(rule or DEFAULT_FIRST, FIRST)
    if chosen == "balanced" and not names:
        raise UserError(
            "rule balanced needs the names of the classes: --names cat,dog (names=[...])"
        )
    if names and len(set(names)) < 2:
        raise UserError("only one class name: give at least two")
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
    prompts = tuple(prompt_names(names, where="--names: ").values()) if names else ()
    fitted = ZeroShot().restore(loaded, Known(prompts or ("image",)), {})
    seen = _look(_files(pool, column, outside), fitted, prompts, list(names), skip_bad, progress)
    return _picked(seen, chosen, FIRST, n, seed, fitted)


def _known(rule: str, rules: Mapping[str, Any]) -> str:
    if rule not in rules:
        raise UserError(f"unknown rule {rule!r:.80}{did_you_mean(rule, rules)}")
    return rule


def _files(pool: Sequence[str | Path] | str | Path, column: str, outside: bool) -> list[Path]:
    words = [pool] if isinstance(pool, (str, Path)) else pool
    found: Inputs = find_images([str(word) for word in words], column, outside)
    if found.note:
        note(found.note)
    return list(dict.fromkeys(found.files))


class _Seen(NamedTuple):
    """A pool as a model sees it: unit features [N, e], probabilities [N, C] of labels."""

    images: list[Path]
    unit: torch.Tensor
    table: np.ndarray
    labels: list[str]


def _look(
    files: list[Path],
    fitted: Fitted,
    names: Sequence[str],
    labels: list[str],
    skip_bad: bool,
    progress: bool,
) -> _Seen:
    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    models = {"own": fitted.score(names)} if names else {}
    images, features, tables = [], [], []
    stream = with_hint(decode_batches(files, fitted.backbone.preprocess, BATCH, bad))
    for some, pixels in track(stream, -(-len(files) // BATCH), "looking at the pool", progress):
        states = fitted.states(pixels, features=True)
        images += some
        features.append(F.normalize(states.features.float(), dim=-1).cpu())
        tables += [found["own"] for found in answers(models, [states])] if models else []
    for _, text in bad or []:
        note(f"left out: {text}")
    if not images:
        raise UserError("no readable image in the pool")
    table = torch.cat(tables).numpy().astype(float) if tables else np.empty((0, 0))
    return _Seen(images, torch.cat(features), table, labels)


def _picked(
    seen: _Seen, rule: str, rules: Mapping[str, Any], n: int, seed: int, fitted: Fitted
) -> Suggested:
    if n < 1:
        raise UserError(f"n={n}: ask for at least one image")
    examples = (
        torch.empty(0, seen.unit.shape[1])
        if fitted.examples is None
        else fitted.examples.float().cpu()
    )
    examples = F.normalize(examples, dim=-1)
    fresh = np.arange(len(seen.images))
    if len(examples):
        fresh = np.flatnonzero((1 - (seen.unit @ examples.T).max(1).values > SAME).numpy())
    if not len(fresh):
        raise UserError("the run was fitted to every image of the pool: give others")
    together = groups(looks(ImageReader().thumbprints([seen.images[i] for i in fresh])))
    table = seen.table[fresh] if len(seen.table) else seen.table
    found = pick(
        rules[rule], Pool(seen.unit[fresh].numpy(), examples.numpy(), table, seed), n, together
    )
    suggestions = []
    for rank, (row, score) in enumerate(zip(fresh[found.rows], found.scores, strict=True), 1):
        best = np.argsort(-seen.table[row], kind="stable")[:2].tolist() if len(seen.table) else []
        shares = tuple((seen.labels[i], round(float(seen.table[row, i]), 6)) for i in best)
        suggestions.append(Suggestion(seen.images[row], rank, round(float(score), 6), shares))
    copies = len(fresh) - len(np.unique(together))
    return Suggested(
        rule, len(seen.images), len(seen.images) - len(fresh), copies, tuple(suggestions)
    )
