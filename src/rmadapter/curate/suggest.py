"""Choose the images of an unlabelled pool that are most worth a label, and write them as a list and
as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.page import thumbnail, write_html
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.curate.acquisition import FIRST, NEXT, Pool, Rule, pick
from rmadapter.data.duplicates import groups, looks
from rmadapter.data.formats.registry import find_images
from rmadapter.data.image_set import ImageReader
from rmadapter.data.names import prompt_names
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.errors import UserError, did_you_mean
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import csv_text, inert, inert_path, path_from, write_text
from rmadapter.support.terminal import note, track
from rmadapter.training.cache import BATCH
from rmadapter.training.contract import Fitted, Known, answers

DEFAULT_NEXT, DEFAULT_FIRST = "random", "typicality"  # docs/suggest.md has the figures
SAME = 2e-5  # 1 - cosine of an image to itself, kept in float16, is below this
COLUMNS = ("image", "label", "rank", "score", "guess", "probability", "guess_2", "probability_2")
MOST = 300  # images on the page
MEANINGS = {
    "margin": "The model is least sure which of two classes these belong to.",
    "entropy": "The model is least sure what these are.",
    "coverage": "Each is as far as possible from all labelled images and those listed before it.",
    "typicality": "Each represents a cluster of images; large clusters without labels come first.",
    "mix": "Different kinds of images that the model is unsure about.",
    "balanced": "Typical images, equally many of each class as the untouched model sees them.",
    "random": "Drawn at random.",
}
PoolFiles = Sequence[str | Path] | str | Path  # files, folders, patterns or tables


class Suggestion(NamedTuple):
    """rank: from 1. score: by the rule, higher is more wanted; 0 for random. best: the two most
    probable labels with their probabilities; empty if no class is known."""

    image: Path
    rank: int
    score: float
    best: tuple[tuple[str, float], ...]

    def json(self) -> dict[str, object]:
        best = [{"class": label, "probability": share} for label, share in self.best]
        return {"image": str(self.image), "rank": self.rank, "score": self.score, "best": best}


@dataclass(frozen=True)
class Suggestions:
    """rule: the one applied. pool: number of images. known: how many of them the model was fitted
    to. copies: how many were left out as near-duplicates of others."""

    rule: str
    pool: int
    known: int
    copies: int
    suggestions: tuple[Suggestion, ...]


def suggest_images(
    run: str | Path | Saved, pool: PoolFiles, n: int = 50, *, rule: str = "", seed: int = 1,
    backbone: Backbone | str | None = None, skip_bad: bool = False, column: str = "",
    outside: bool = False, progress: bool = True,
) -> Suggestions:  # fmt: skip
    """Choose the n images of a pool to label next, for a run to learn from.

    pool: files, folders, patterns or tables, as `predict` takes them. column, outside: as in
    `find_images`. rule: one of NEXT; none of them is sure to beat the default, random
    (docs/suggest.md). Images that the run was fitted to are left out, and all but the first of
    near-duplicates. Raises UserError as `load` and `find_images` do, for an unknown rule, and if
    nothing is left of the pool.
    """
    rule = _check_rule(rule or DEFAULT_NEXT, NEXT)
    saved = run if isinstance(run, Saved) else load(run, backbone)
    fitted = saved.fitted
    if fitted.examples is None and not isinstance(fitted.method, ZeroShot):
        note(
            "the run has no features of its training images, so those in the pool are not left out"
        )
    files = _find_files(pool, column, outside)
    labels = [str(label) for label in saved.labels]
    encoded = _encode(files, fitted, saved.names, labels, skip_bad, progress)
    return _choose(encoded, rule, NEXT, n, seed, fitted)


def first_images(
    pool: PoolFiles, n: int = 50, *, names: Sequence[str] = (), rule: str = "", seed: int = 1,
    backbone: Backbone | str = "pocket", skip_bad: bool = False, column: str = "",
    outside: bool = False, progress: bool = True,
) -> Suggestions:  # fmt: skip
    """Choose the n images of a pool to label first, where nothing is labelled yet.

    names: of the classes, if known; the rule `balanced` needs them. rule: one of FIRST. The rest as
    for `suggest_images`.
    """
    rule = _check_rule(rule or DEFAULT_FIRST, FIRST)
    if rule == "balanced" and not names:
        raise UserError(
            "rule balanced needs the names of the classes: --names cat,dog (names=[...])"
        )
    if names and len(set(names)) < 2:
        raise UserError("only one class name: give at least two")
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
    prompts = tuple(prompt_names(names, where="--names: ").values()) if names else ()
    fitted = ZeroShot().restore(loaded, Known(prompts or ("image",)), {})
    files = _find_files(pool, column, outside)
    encoded = _encode(files, fitted, prompts, list(names), skip_bad, progress)
    return _choose(encoded, rule, FIRST, n, seed, fitted)


def _check_rule(rule: str, rules: Mapping[str, Rule]) -> str:
    if rule not in rules:
        raise UserError(f"unknown rule {rule!r:.80}{did_you_mean(rule, rules)}")
    return rule


def _find_files(pool: PoolFiles, column: str, outside: bool) -> list[Path]:
    words = [pool] if isinstance(pool, (str, Path)) else pool
    inputs = find_images([str(word) for word in words], column, outside)
    if inputs.note:
        note(inputs.note)
    return list(dict.fromkeys(inputs.files))


class _Encoded(NamedTuple):
    """A pool as a model sees it: unit features [N, e], probabilities [N, C] of labels."""

    images: list[Path]
    unit: torch.Tensor
    table: np.ndarray
    labels: list[str]


def _encode(
    files: list[Path], fitted: Fitted, names: Sequence[str], labels: list[str], skip_bad: bool,
    progress: bool,
) -> _Encoded:  # fmt: skip
    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    models = {"adapted": fitted.score(names)} if names else {}
    images, features, tables = [], [], []
    stream = with_hint(decode_batches(files, fitted.backbone.preprocess, BATCH, bad))
    for batch, pixels in track(stream, -(-len(files) // BATCH), "looking at the pool", progress):
        states = fitted.states(pixels, features=True)
        images += batch
        features.append(F.normalize(states.features.float(), dim=-1).cpu())
        if models:
            tables += [table["adapted"] for table in answers(models, [states])]
    for _, text in bad or []:
        note(f"left out: {text}")
    if not images:
        raise UserError("no readable image in the pool")
    table = torch.cat(tables).numpy().astype(float) if tables else np.empty((0, 0))
    return _Encoded(images, torch.cat(features), table, labels)


def _choose(
    encoded: _Encoded, rule: str, rules: Mapping[str, Rule], n: int, seed: int, fitted: Fitted
) -> Suggestions:
    if n < 1:
        raise UserError(f"n={n}: ask for at least one image")
    images, unit, all_probabilities, labels = encoded
    examples = torch.empty(0, unit.shape[1])
    if fitted.examples is not None:
        examples = F.normalize(fitted.examples.float().cpu(), dim=-1)
    fresh = np.arange(len(images))
    if len(examples):
        fresh = np.flatnonzero((1 - (unit @ examples.T).max(1).values > SAME).numpy())
    if not len(fresh):
        raise UserError("the run was fitted to every image of the pool: give others")
    together = groups(looks(ImageReader().thumbprints([images[i] for i in fresh])))
    table = all_probabilities[fresh] if len(all_probabilities) else all_probabilities
    pool = Pool(unit[fresh].numpy(), examples.numpy(), table, seed)
    picked = pick(rules[rule], pool, n, together)
    suggestions = []
    for rank, (i, score) in enumerate(zip(picked.rows, picked.scores, strict=True), 1):
        best: tuple[tuple[str, float], ...] = ()
        if len(table):
            classes = np.argsort(-table[i], kind="stable")[:2].tolist()
            best = tuple((labels[c], round(float(table[i, c]), 6)) for c in classes)
        suggestions.append(Suggestion(images[fresh[i]], rank, round(float(score), 6), best))
    known = len(images) - len(fresh)
    copies = len(fresh) - len(np.unique(together))
    return Suggestions(rule, len(images), known, copies, tuple(suggestions))


# The list and the page


def write_csv(path: Path, suggested: Suggestions) -> None:
    """Write one suggestion per row, in the order to label them, atomically. "label" is left for the
    user to fill in; paths are relative to the list, as in every table of images."""
    rows = []
    for one in suggested.suggestions:
        best: list[str | float] = []
        for label, share in one.best:
            best += [inert(label), share]
        image = inert_path(path_from(path.parent, one.image))
        rows.append([image, "", one.rank, one.score, *best, *[""] * (4 - len(best))])
    write_text(path, csv_text(COLUMNS, rows))


def write_page(path: Path, suggested: Suggestions, pool: str, table: Path) -> None:
    """Write the page atomically; it needs no network and no script. pool: its name on the page.
    table: the list."""
    shown = suggested.suggestions[:MOST]
    cards = [{"src": thumbnail(one.image), **one._asdict()} for one in shown]
    names = {"pool": pool, "table": table.name, "meaning": MEANINGS[suggested.rule]}
    write_html(path, "suggest.html.j2", found=suggested, cards=cards, **names)
