"""Have texts about classes written, and measure on the shots which of them help.

The measurement stands here and not in `fit`, so that one file serves every method that reads
texts, and a method of the zero-shot track stays one. It sees the images that `fit` draws with the
same number of shots and seed, and no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rmadapter import metrics
from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.data import descriptions, key, split_digest, texts_of_all
from rmadapter.errors import UserError
from rmadapter.methods.descriptions import text_weights, whole_texts
from rmadapter.prompts import text_features, zero_shot_weights
from rmadapter.runs.folds import FOLDS, split
from rmadapter.runs.lab import Lab
from rmadapter.support.files import JsonObject, opened
from rmadapter.support.terminal import track
from rmadapter.task import Task
from rmadapter_research.texts import Form, Named, Origin, TextFile, ask_about, digest

PARTIAL = ".partial"
PROMPTS, ALL, HELPFUL = "prompts alone", "all texts", "texts that help"
CHUNK = 500  # texts tokenised at once
RULE = (
    "a text is left out if the mean cross-entropy of the shots falls without it, all others kept; "
    "each fold is answered by what the other folds chose, and the best of three is taken"
)


@dataclass(frozen=True)
class Measured:
    """What texts are worth on the shots.

    accuracy: in percent, by what was asked with; of HELPFUL by texts chosen on the other folds.
    best: one of its keys. gain, low, high, p: HELPFUL or ALL, whichever is better, against PROMPTS
    on the same images, as from `metrics.paired`. left_out: number of texts of which `texts` that
    were left out.
    """

    rule: str
    data: str
    shots: int
    seed: int
    split_digest: str
    backbone: str
    form: Form
    folds: int
    images: int
    accuracy: dict[str, float]
    best: str
    gain: float
    low: float
    high: float
    p: float
    texts: int
    left_out: int

    def json(self) -> JsonObject:
        """Return the fields as JSON has them."""
        return asdict(self)


def origin_of(who: str, question: str, texts: Mapping[str, list[str]]) -> Origin:
    """Return where texts that are written now are from."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Origin(who, when, question, tuple(texts), digest(texts))


def full_texts(
    backbone: Backbone, form: Form, texts: Mapping[str, Sequence[str]]
) -> tuple[list[str], int]:
    """Return the texts that fill the text encoder, so that their end may be cut off, and the number
    of tokens that it reads."""
    whole = [text for name, some in texts.items() for text in whole_texts(form, name, some)]
    found: list[str] = []
    length = int(backbone.tokenizer(["a"]).shape[1])
    for start in range(0, len(whole), CHUNK):
        part = whole[start : start + CHUNK]
        tokens = backbone.tokenizer(part)
        longer = backbone.tokenizer([f"{text} and more" for text in part])
        same = (tokens == longer).all(1).tolist()
        found += [text for text, is_full in zip(part, same, strict=True) if is_full]
    return found, length


# Asking


def ask_all(
    ask: Callable[[str], str], who: str, question: str, classes: Sequence[Named], out: Path,
    progress: bool = True,
) -> Path:  # fmt: skip
    """Ask about each class, and return the file of answers beside `out`: an object a line, as
    `read_answers` takes it.

    Classes that an earlier, stopped call with the same question has answered are not asked about
    again. Raises UserError as `ask`, and if the file cannot be written.
    """
    file = out.with_name(out.name + PARTIAL)
    answered = _answered(file, who, question) if file.exists() else {}
    known = [answered[key(one.name)] for one in classes if key(one.name) in answered]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(known), encoding="utf-8")
        left = [one for one in classes if key(one.name) not in answered]
        for one in track(left, len(left), "asking", progress):
            answer = ask(ask_about(question, descriptions(one.name)[0]))
            facts = {"class": one.name, "answer": answer, "who": who, "question": question}
            with open(file, "a", encoding="utf-8") as opened_file:
                opened_file.write(json.dumps(facts) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{file}: cannot be written ({reason}); run the same command again"
        ) from None
    return file


def _answered(file: Path, who: str, question: str) -> dict[str, str]:
    """Return the complete lines of earlier answers to this question, by `key` of the class."""
    lines: dict[str, str] = {}
    with opened(file) as content:
        for raw in content:
            with suppress(ValueError, RecursionError, LookupError, TypeError):
                facts = json.loads(raw)
                if (facts["who"], facts["question"]) == (who, question) and raw.endswith(b"\n"):
                    lines[key(facts["class"])] = raw.decode()
    return lines


# Measuring


def measure(
    file: TextFile, form: Form, task: Task, lab: Lab, where: str
) -> tuple[TextFile, Measured]:
    """Measure on the shots of a task which texts help, and return a file with these alone.

    A text is left out if the mean cross-entropy of the shots falls without it, while all others
    are kept; a class keeps one at least. Folds of the shots say what that is worth: each is
    answered by what the others chose. If all texts or the prompts alone are right at least as
    often, no text is left out. Texts that were left out earlier are measured again.

    Args:
        file: The texts of all classes.
        form: How the encoder reads the texts, as for the method `zero-shot-descriptions`.
        task: Names the data, backbone, shots, seed and templates; its tests are not read.
        lab: Holds the data.
        where: Names the file in messages.

    Raises:
        UserError: A class has no texts, or the shots cannot be divided into folds.
    """
    few = lab.draw(task)
    images, names = few.train, few.train.classes
    texts = file.all_texts()
    by_key = {key(name): some for name, some in texts.items()}
    groups = texts_of_all(by_key, names, where)
    parts = split(images, FOLDS, task.seed, lab.progress)
    if not parts:
        raise UserError("measuring texts takes two images per class that are not copies: add some")
    backbone = lab.backbone(task.backbone)
    features = lab.train_cache(task).features(images)[0]
    unit = F.normalize(at_least_float32(features), dim=-1).double().cpu().numpy()
    with torch.no_grad():
        scale = float(backbone.logit_scale)
        prompts = zero_shot_weights(backbone, names, task.templates).double().cpu().numpy()
        whole = [whole_texts(form, name, some) for name, some in zip(names, groups, strict=True)]
        encoded = text_features(backbone, [text for some in whole for text in some]).double().cpu()
    labels = np.array(images.labels)
    tables, helpful = answer_folds(
        scale * unit, labels, encoded.numpy(), whole, form, prompts, parts
    )
    rows = np.array([row for part in parts for row in part])
    right = {name: table.argmax(1) == labels[rows] for name, table in tables.items()}
    rates = {name: 100 * float(hits.mean()) for name, hits in right.items()}
    best = max(rates, key=lambda name: rates[name])  # the first of equal ones
    better = max(ALL, HELPFUL, key=lambda name: rates[name])
    gain, low, high, p = metrics.paired(right[PROMPTS], right[better])
    kept, out = _divided(names, groups, helpful if best == HELPFUL else None)
    result = Measured(
        RULE, task.data, task.shots, task.seed, split_digest(few), task.backbone, form,
        len(parts), len(rows), rates, best, gain, low, high, p,
        sum(map(len, groups)), sum(map(len, out.values())),
    )  # fmt: skip
    written = {key(name): name for name in texts}
    own = {written[key(descriptions(name)[0])]: some for name, some in kept.items()}
    left = {written[key(descriptions(name)[0])]: some for name, some in out.items()}
    return replace(file, texts={**texts, **own}, left_out=left, measured=result.json()), result


def _divided(
    names: Sequence[str], groups: Sequence[list[str]], helpful: np.ndarray | None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the texts to keep and those to leave out, by class. helpful: [S] bool; None for
    all."""
    kept, out = dict(zip(names, groups, strict=True)), dict[str, list[str]]()
    flags = iter([] if helpful is None else helpful.tolist())
    for name, some in kept.items() if helpful is not None else ():
        own = [next(flags) for _ in some]
        kept[name] = [text for text, helps in zip(some, own, strict=True) if helps]
        if not all(own):
            out[name] = [text for text, helps in zip(some, own, strict=True) if not helps]
    return kept, out


def answer_folds(
    features: np.ndarray, labels: np.ndarray, texts: np.ndarray,
    groups: Sequence[Sequence[object]], form: Form, prompts: np.ndarray,
    parts: Sequence[Sequence[int]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:  # fmt: skip
    """Return logits [M, C] of the images in folds, fold after fold, by prompts, by all texts and by
    those that the other folds chose; and which texts [S] all images choose.

    features: unit features times the logit scale, [N, e]. texts: unit features [S, e], class after
    class, as in `groups`. prompts: class weights [C, e].
    """
    weights = _weights(form, texts, groups, np.ones(len(texts), bool))
    gains = losses_without(features, labels, texts, groups, form)
    rows = np.concatenate([np.array(part) for part in parts])
    chosen = []
    for part in parts:
        rest = np.setdiff1d(np.arange(len(labels)), part)
        keep = choose_texts(gains[rest].mean(0), groups)
        chosen.append(features[np.array(part)] @ _weights(form, texts, groups, keep).T)
    tables = {
        PROMPTS: features[rows] @ prompts.T,
        ALL: features[rows] @ weights.T,
        HELPFUL: np.concatenate(chosen),
    }
    return tables, choose_texts(gains.mean(0), groups)


def losses_without(
    features: np.ndarray, labels: np.ndarray, texts: np.ndarray,
    groups: Sequence[Sequence[object]], form: Form,
) -> np.ndarray:  # fmt: skip
    """Return by how much the cross-entropy of each image rises without each text, all others kept:
    [N, S]; 0 for the only text of a class.

    Arguments are as for `answer_folds`. Only the logit of the text's class changes.
    """
    logits = features @ _weights(form, texts, groups, np.ones(len(texts), bool)).T
    every = np.logaddexp.reduce(logits, axis=1)
    own = logits[np.arange(len(labels)), labels]
    gains = np.zeros((len(labels), len(texts)), np.float32)
    first = 0
    for number, group in enumerate(groups):
        place, first = first, first + len(group)
        if len(group) < 2:
            continue
        part = texts[place:first]
        means = (part.sum(0) - part) / (len(group) - 1)
        if form == "sentences":
            means /= np.linalg.norm(means, axis=1, keepdims=True)
        new = features @ means.T  # [N, K]
        others = _without(logits, every, number)
        right = np.where((labels == number)[:, None], new, own[:, None])
        before = every - own
        gains[:, place:first] = np.logaddexp(others[:, None], new) - right - before[:, None]
    return gains


def _without(logits: np.ndarray, every: np.ndarray, number: int) -> np.ndarray:
    """Return the log-sum-exp [N] of all logits but one class's. every: that of all, [N]."""
    share = np.exp(logits[:, number] - every)
    with np.errstate(divide="ignore"):
        result: np.ndarray = every + np.log1p(-np.minimum(share, 1.0))
    large = share > 0.5  # where the difference would lose digits
    result[large] = np.logaddexp.reduce(np.delete(logits[large], number, axis=1), axis=1)
    return result


def choose_texts(gains: np.ndarray, groups: Sequence[Sequence[object]]) -> np.ndarray:
    """Return which texts help, [S] bool: without which the loss does not fall, and in each class
    the best one. gains: mean of `losses_without` over images, [S]."""
    keep: np.ndarray = gains >= 0
    first = 0
    for group in groups:
        part = slice(first, first + len(group))
        if not keep[part].any():
            keep[first + int(gains[part].argmax())] = True
        first += len(group)
    return keep


def _weights(
    form: Form, texts: np.ndarray, groups: Sequence[Sequence[object]], keep: np.ndarray
) -> np.ndarray:
    """Return class weights [C, e] by the texts to keep, [S] bool."""
    flags = iter(keep.tolist())
    kept = [[text for text in group if next(flags)] for group in groups]
    return text_weights(form, torch.from_numpy(texts[keep]), kept).numpy()


def describe_measured(measured: Measured) -> Iterator[str]:
    """Yield what a measurement found, in sentences."""
    if measured.best == PROMPTS:
        yield (
            "the texts do not help on these shots: a method without them is right at least as often"
        )
    elif measured.left_out:
        yield f"{measured.left_out:,} of {measured.texts:,} texts are left out"
    else:
        yield "no text is left out: all of them together are right at least as often"
    if measured.low <= 0 <= measured.high:
        yield (
            f"{measured.images:,} images do not show whether texts or prompts are better "
            f"({measured.gain:+.1f} points, 95 % interval {measured.low:+.1f} to "
            f"{measured.high:+.1f})"
        )
