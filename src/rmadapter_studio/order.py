"""Choose the images of an unlabelled pool that are most worth a label, and write them as a list and
as a page.

The rules pick from unit features [N, e] and probabilities [N, C]; research/studies/suggest.md
compares them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.page import thumbnail, write_html
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.duplicates import groups, looks
from rmadapter.data.formats.registry import find_images
from rmadapter.data.image_set import ImageReader
from rmadapter.data.names import prompt_names
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.errors import UserError, did_you_mean
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import csv_text, inert, inert_path, path_from, write_text
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import note, track
from rmadapter.training.contract import Fitted, Known, answers

MOST_CLUSTERS = 500  # as in Hacohen et al.
WIDER = 10  # times as many images as wanted are clustered by `mix`, as in Zhdanov's paper
DEFAULT, RANDOM = "typicality", "random"  # research/studies/suggest.md has the figures
UNPROVEN = "no rule was shown to be better than drawing at random"
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
    RANDOM: "Drawn at random.",
}
PoolFiles = Sequence[str | Path] | str | Path  # files, folders, patterns or tables


# Rules


class Pool(NamedTuple):
    """unit: features [N, e] of images to choose from. known: [M, e] of labelled ones. table:
    probabilities [N, C]; empty if there are no classes. seed: for everything random."""

    unit: np.ndarray
    known: np.ndarray
    table: np.ndarray
    seed: int = 1


class Picked(NamedTuple):
    """rows: of the pool, in the order to label them. scores: by the rule, higher is more wanted."""

    rows: np.ndarray
    scores: np.ndarray


Rule = Callable[[Pool, int], Picked]


def closeness(table: np.ndarray) -> np.ndarray:
    """Return 1 - the margin of the best class over the second: [N], 0 to 1 (Scheffer et al., IDA
    2001)."""
    best = np.sort(table, axis=1)
    closeness: np.ndarray = 1 - (best[:, -1] - best[:, -2])
    return closeness


def margin(pool: Pool, n: int) -> Picked:
    """Pick the images with the smallest margin between the best two classes."""
    return _highest(closeness(pool.table), n)


def entropy(pool: Pool, n: int) -> Picked:
    """Pick the images with the highest entropy, in nats (Shannon)."""
    return _highest(-(pool.table * np.log(np.maximum(pool.table, 1e-12))).sum(1), n)


def chance(pool: Pool, n: int) -> Picked:
    """Pick images at random."""
    rows = np.random.default_rng(pool.seed).permutation(len(pool.unit))[:n]
    return Picked(rows, np.zeros(len(rows)))


def coverage(pool: Pool, n: int) -> Picked:
    """Pick always the image farthest, by 1 - cosine, from all that are labelled or picked: greedy
    k-centre (Sener and Savarese, ICLR 2018). With nothing labelled it starts at the image nearest
    to the mean."""
    if len(pool.known):
        far = 1 - (pool.unit @ pool.known.T).max(1)
    else:
        far = pool.unit @ pool.unit.mean(0)
    rows, scores = [], []
    for turn in range(min(n, len(pool.unit))):
        row = int(far.argmax())
        rows.append(row)
        scores.append(float(far[row]))
        near = 1 - pool.unit @ pool.unit[row]
        far = near if not turn and not len(pool.known) else np.minimum(far, near)
        far[rows] = -np.inf
    return Picked(np.array(rows, int), np.array(scores))


def typicality(pool: Pool, n: int) -> Picked:
    """Pick an image of each cluster (after TypiClust: Hacohen et al., ICML 2022).

    One cluster is made per labelled and wanted image. Clusters are taken in turn, fewest labelled
    and then largest first, and of each the image nearest to its centre, by cosine.
    """
    count = len(pool.known)
    points = np.concatenate([pool.known, pool.unit])
    clusters, centres = _clusters(points, min(count + n, MOST_CLUSTERS), pool.seed)
    labelled = np.bincount(clusters[:count], minlength=len(centres))
    cluster = clusters[count:]
    near = (pool.unit * _unit(centres)[cluster]).sum(1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    members = [rows[np.argsort(-near[rows], kind="stable")] for rows in members]
    order = sorted(range(len(centres)), key=lambda c: (labelled[c], -len(members[c])))
    picked = np.array(_in_turn([members[c] for c in order])[:n], int)
    return Picked(picked, near[picked])


def _in_turn(queues: Sequence[np.ndarray]) -> list[int]:
    """Take the first row of each queue, then the second, and so on."""
    turns = range(max(map(len, queues), default=0))
    return [int(queue[turn]) for turn in turns for queue in queues if turn < len(queue)]


def mix(pool: Pool, n: int) -> Picked:
    """Cluster the images with the smallest margin, ten times as many as wanted, into n clusters, in
    which small margins weigh more, and pick the image nearest to each centre (Zhdanov 2019, arXiv
    1901.05954)."""
    wide = margin(pool, WIDER * n)
    cluster, centres = _clusters(pool.unit[wide.rows], n, pool.seed, np.maximum(wide.scores, 1e-6))
    far = np.linalg.norm(pool.unit[wide.rows] - centres[cluster], axis=1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    best = np.array(sorted(rows[far[rows].argmin()] for rows in members if len(rows)), int)
    # in place of empty clusters
    rest = np.setdiff1d(np.arange(len(wide.rows)), best)[: n - len(best)]
    best = np.sort(np.concatenate([best, rest]))
    return Picked(wide.rows[best], wide.scores[best])


def balanced(pool: Pool, n: int) -> Picked:
    """Pick equally many of each class, as far as the probabilities are right: the classes in turn,
    and of each the typical images among those for which it is the most probable class."""
    classes = pool.table.shape[1]
    answer = pool.table.argmax(1)
    queues = []
    scores = np.zeros(len(pool.unit))
    for c in range(classes):
        rows = np.flatnonzero(answer == c)
        if len(rows):
            part = pool._replace(unit=pool.unit[rows], known=pool.known[:0], table=pool.table[rows])
            picked = typicality(part, min(-(-n // classes), len(rows)))
            scores[rows[picked.rows]] = picked.scores
            queues.append(rows[picked.rows])
    taken = _in_turn(queues)[:n]
    if len(taken) < n:  # classes that are the answer too rarely leave room
        rest = np.setdiff1d(np.arange(len(pool.unit)), taken)
        part = pool._replace(unit=pool.unit[rest], known=pool.unit[taken], table=pool.table[rest])
        more = typicality(part, n - len(taken))
        scores[rest[more.rows]] = more.scores
        taken += rest[more.rows].tolist()
    return Picked(np.array(taken, int), scores[taken])


FIRST: Mapping[str, Rule]
NEXT: Mapping[str, Rule]
FIRST = {"typicality": typicality, "balanced": balanced, "coverage": coverage, RANDOM: chance}
NEXT = {
    "margin": margin,
    "entropy": entropy,
    "coverage": coverage,
    "typicality": typicality,
    "mix": mix,
    RANDOM: chance,
}


def pick(rule: Rule, pool: Pool, n: int, together: np.ndarray | None = None) -> Picked:
    """Pick at most n rows by a rule. together: [N] group numbers, as of near-duplicates; only the
    first image of each group can be picked."""
    firsts = np.arange(len(pool.unit))
    if together is not None:
        firsts = np.sort(np.unique(together, return_index=True)[1])
    table = pool.table[firsts] if len(pool.table) else pool.table
    picked = rule(pool._replace(unit=pool.unit[firsts], table=table), min(n, len(firsts)))
    return Picked(firsts[picked.rows], picked.scores)


def _highest(scores: np.ndarray, n: int) -> Picked:
    rows = np.argsort(-scores, kind="stable")[:n]
    return Picked(rows, scores[rows])


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _clusters(
    points: np.ndarray, k: int, seed: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each point [N], and the centres [k, e], by k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        model = KMeans(min(k, len(points)), n_init=1, random_state=seed % 2**32)
        model.fit(points, sample_weight=weights)
    return model.labels_, model.cluster_centers_


# Suggestions


class Suggestion(NamedTuple):
    """rank: from 1. score: by the rule, higher is more wanted; None if drawn at random. best: the
    two most probable labels with their probabilities; empty if no class is known."""

    image: Path
    rank: int
    score: float | None
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

    @property
    def scored(self) -> bool:
        """Whether the rule gives scores, which random does not."""
        return self.rule != RANDOM


def suggest_images(
    run: str | Path | Saved, pool: PoolFiles, n: int = 50, *, rule: str = "", seed: int = 1,
    backbone: Backbone | str | None = None, skip_bad: bool = False, column: str = "",
    outside: bool = False, progress: bool = True, device: str = "auto",
) -> Suggestions:  # fmt: skip
    """Choose the images of a pool to label next, for a run to learn from.

    Images that the run was fitted to are left out, and all but the first of near-duplicates.

    Args:
        run: Folder of a run, or what `load` returned.
        pool: Files, folders, patterns or tables, as `predict` takes them.
        n: Number of images to choose.
        rule: "margin", "entropy", "coverage", "typicality" (the default), "mix" or "random"; no
            other was shown to be better than "random" (research/studies/suggest.md).
        seed: Seed of everything random.
        backbone: Backbone or name, instead of the one that the run names.
        skip_bad: Whether to leave out unreadable images.
        column: Column of the images, if a table has an unusual name for it.
        outside: Whether a table may name images outside its folder.
        progress: Whether to show a bar on stderr.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        The `rule`; the size of the `pool`; how many images are `known` to the run, and how many
        `copies` of others; the `suggestions`, each with `image`, `rank`, `score` and the `best`
        labels.

    Raises:
        UserError: As for `load`; an unknown rule; no or only unreadable images; nothing left of the
            pool.

    Example:
        >>> from rmadapter import suggest_images
        >>> found = suggest_images("run", "colors/test", 3, backbone="tiny")
        >>> [one.rank for one in found.suggestions]
        [1, 2, 3]
    """
    rule = _check_rule(rule or DEFAULT, NEXT)
    saved = run if isinstance(run, Saved) else load(run, backbone, device=device)
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
    outside: bool = False, progress: bool = True, device: str = "auto",
) -> Suggestions:  # fmt: skip
    """Choose the images of a pool to label first, where nothing is labelled yet.

    Args:
        pool: Files, folders, patterns or tables, as `predict` takes them.
        n: Number of images to choose.
        names: Class names, if they are known; "balanced" needs them.
        rule: "typicality" (the default), "balanced", "coverage" or "random".
        seed: Seed of everything random.
        backbone: Backbone or name.
        skip_bad: Whether to leave out unreadable images.
        column: Column of the images, if a table has an unusual name for it.
        outside: Whether a table may name images outside its folder.
        progress: Whether to show a bar on stderr.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        As `suggest_images`.

    Raises:
        UserError: As for `suggest_images`; `balanced` without names; a single name.

    Example:
        >>> from rmadapter import first_images
        >>> found = first_images("colors/train", 4, backbone="tiny")
        >>> found.pool, len(found.suggestions)
        (24, 4)
    """
    rule = _check_rule(rule or DEFAULT, FIRST)
    if rule == "balanced" and not names:
        raise UserError(
            "rule balanced needs the names of the classes: --names cat,dog (names=[...])"
        )
    if names and len(set(names)) < 2:
        raise UserError("only one class name: give at least two")
    if isinstance(backbone, Backbone):
        loaded = backbone
    else:
        wanted = find_device(device)  # an impossible one is refused before anything is loaded
        loaded = load_backbone(backbone).to(wanted)
    if names:
        loaded.with_text("--names")
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
    stream = with_hint(decode_batches(files, fitted.transform, fitted.batch, bad))
    batches = -(-len(files) // fitted.batch)
    for batch, pixels in track(stream, batches, "looking at the pool", progress):
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
        points = None if rule == RANDOM else round(float(score), 6)
        suggestions.append(Suggestion(images[fresh[i]], rank, points, best))
    known = len(images) - len(fresh)
    copies = len(fresh) - len(np.unique(together))
    return Suggestions(rule, len(images), known, copies, tuple(suggestions))


# The list and the page


def write_csv(path: Path, suggested: Suggestions) -> None:
    """Write one suggestion per row, in the order to label them, atomically. "label" is left for the
    user to fill in; paths are relative to the list, as in every table of images. Images drawn at
    random have no column "score"."""
    rows = []
    for one in suggested.suggestions:
        best: list[str | float] = []
        for label, share in one.best:
            best += [inert(label), share]
        score = [] if one.score is None else [one.score]
        image = inert_path(path_from(path.parent, one.image))
        rows.append([image, "", one.rank, *score, *best, *[""] * (4 - len(best))])
    columns = [column for column in COLUMNS if column != "score" or suggested.scored]
    write_text(path, csv_text(columns, rows))


def write_page(path: Path, suggested: Suggestions, pool: str, table: Path) -> None:
    """Write the page atomically; it needs no network and no script. pool: its name on the page.
    table: the list."""
    shown = suggested.suggestions[:MOST]
    cards = [{"src": thumbnail(one.image), **one._asdict()} for one in shown]
    names = {"pool": pool, "table": table.name, "meaning": MEANINGS[suggested.rule]}
    names["unproven"] = UNPROVEN
    write_html(path, "suggest.html.j2", found=suggested, cards=cards, **names)
