"""Generate class descriptions with a language model, and keep those that help on the shots.

The measurement stands here and not in `fit`, so that one file serves every method that reads
texts, and a method of the zero-shot track stays one. It sees the images that `fit` draws with the
same number of shots and seed, and no others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rmadapter import Backbone, Lab, Task, UserError
from rmadapter.cli import track
from rmadapter.data import descriptions, key, split_digest, texts_of_all
from rmadapter.runs import (
    Folds,
    paired,
    text_features,
    text_weights,
    whole_texts,
    zero_shot_weights,
)
from rmadapter_research.chat import Chat
from rmadapter_research.texts import Form, Named, TextFile, ask_about

PROMPTS, ALL, HELPFUL = "prompts alone", "all texts", "texts that help"
FOLDS = 4
RULE = (
    "a text is left out if the mean cross-entropy of the shots falls without it, all others kept; "
    "each fold is answered by what the other folds chose, and the best of three is taken"
)


def full_texts(
    backbone: Backbone, form: Form, texts: Mapping[str, Sequence[str]]
) -> tuple[list[str], int]:
    """Return the texts that fill the text encoder, so that their end may be cut off, and the number
    of tokens that it reads."""
    whole = [text for name, some in texts.items() for text in whole_texts(form, name, some)]
    tokens = backbone.tokenizer(whole)
    longer = backbone.tokenizer([f"{text} and more" for text in whole])
    same = (tokens == longer).all(1).tolist()
    found = [text for text, is_full in zip(whole, same, strict=True) if is_full]
    return found, int(tokens.shape[1])


# Asking


def ask_all(
    chat: Chat, question: str, classes: Sequence[Named], out: Path, progress: bool = True
) -> Path:
    """Ask about each class, and return the file of answers beside `out`: an object a line, as
    `read_answers` takes it.

    Classes that an earlier, stopped call with the same question has answered are not asked about
    again.

    Args:
        chat: Who answers.
        question: Question about a class.
        classes: The classes.
        out: File of the texts.
        progress: Whether to show how far it is.

    Raises:
        UserError: As `Chat.ask`, and if the file cannot be written.
    """
    file = out.with_name(f"{out.name}.partial")
    answered = _answered(file, chat.who, question) if file.exists() else {}
    known = [answered[key(one.name)] for one in classes if key(one.name) in answered]
    left = [one for one in classes if key(one.name) not in answered]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(known), encoding="utf-8", newline="\n")
        for one in track(left, len(left), "asking", progress):
            answer = chat.ask(ask_about(question, descriptions(one.name)[0]))
            facts = {"class": one.name, "answer": answer, "who": chat.who, "question": question}
            with open(file, "a", encoding="utf-8", newline="\n") as opened_file:
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
    for line in file.read_text("utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            facts = json.loads(line)
            if (facts["who"], facts["question"]) == (who, question) and line.endswith("\n"):
                lines[key(facts["class"])] = line
    return lines


# Measuring


def measure_texts(file: TextFile, form: Form, task: Task, lab: Lab, where: str) -> TextFile:
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

    Returns:
        The file, whose `measured` has the percent of right answers by prompts, all texts, and texts
        chosen on the other folds (`accuracy`); the key of the best of these (`best`); by how many
        points the better texts beat the prompts on the same images (`gain`), with its 95 % interval
        (`low`, `high`) and the p-value of McNemar's test (`p`).

    Raises:
        UserError: A class has no texts, or the shots cannot be divided into folds.
    """
    few = lab.draw(task)
    images, names = few.train, few.train.classes
    texts = file.all_texts()
    written = {key(name): name for name in texts}
    groups = texts_of_all({key(name): some for name, some in texts.items()}, names, where)
    folds = Folds.make(task, few, lab, FOLDS)
    if not folds:
        raise UserError("measuring texts takes two images per class that are not copies: add some")
    backbone = lab.backbone(task.backbone)
    features = lab.train_cache(task).features(images)[0]
    unit = F.normalize(features.float(), dim=-1).double().cpu().numpy()
    with torch.no_grad():
        scale = float(backbone.logit_scale)
        prompts = zero_shot_weights(backbone, names, task.templates).double().cpu().numpy()
        whole = [whole_texts(form, name, some) for name, some in zip(names, groups, strict=True)]
        encoded = text_features(backbone, [text for some in whole for text in some]).double().cpu()
    labels, texts_of_classes = np.array(images.labels), Texts(form, encoded.numpy(), whole)
    tables, helpful = answer_folds(scale * unit, labels, texts_of_classes, prompts, folds.parts)
    right = {name: table.argmax(1) == labels[folds.rows] for name, table in tables.items()}
    rates = {name: 100 * float(hits.mean()) for name, hits in right.items()}
    best = max(rates, key=lambda name: rates[name])  # the first of equal ones
    better = max(ALL, HELPFUL, key=lambda name: rates[name])
    gain, low, high, p = paired(right[PROMPTS], right[better])
    left_out: dict[str, list[str]] = {}
    if best == HELPFUL:
        for name, some, place in zip(names, groups, texts_of_classes.places(), strict=True):
            own = written[key(descriptions(name)[0])]
            marked = [*zip(some, helpful[place], strict=True)]
            texts[own] = [text for text, helps in marked if helps]
            left_out[own] = [text for text, helps in marked if not helps]
    measured = {
        "rule": RULE,
        "data": task.data,
        "shots": task.shots,
        "seed": task.seed,
        "split_digest": split_digest(few),
        "backbone": task.backbone,
        "form": form,
        "folds": len(folds),
        "images": len(folds.rows),
        "accuracy": rates,
        "best": best,
        "gain": gain,
        "low": low,
        "high": high,
        "p": p,
        "texts": sum(map(len, groups)),
        "left_out": sum(map(len, left_out.values())),
    }
    left_out = {name: some for name, some in left_out.items() if some}
    return replace(file, texts=texts, left_out=left_out, measured=measured)


@dataclass(frozen=True, eq=False)
class Texts:
    """Encoded texts about classes.

    Attributes:
        form: Kind of the texts.
        features: Unit features [S, e], class after class.
        groups: The texts of each class.
    """

    form: Form
    features: np.ndarray
    groups: Sequence[Sequence[object]]

    def weights(self, keep: np.ndarray | None = None) -> np.ndarray:
        """Return class weights [C, e] by all texts, or by those to keep, [S] bool."""
        flags = np.ones(len(self.features), bool) if keep is None else keep
        kept = [np.flatnonzero(flags[place]).tolist() for place in self.places()]
        return text_weights(self.form, torch.from_numpy(self.features[flags]), kept).numpy()

    def places(self) -> Iterator[slice]:
        """Yield the place of each class among the texts."""
        first = 0
        for group in self.groups:
            yield slice(first, first + len(group))
            first += len(group)


def answer_folds(
    features: np.ndarray,
    labels: np.ndarray,
    texts: Texts,
    prompts: np.ndarray,
    parts: Sequence[Sequence[int]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Answer the images of each fold by prompts, by all texts and by those that the other folds
    chose.

    Args:
        features: Unit features times the logit scale, [N, e].
        labels: Classes [N].
        texts: Texts about the classes.
        prompts: Class weights [C, e].
        parts: Rows of the images in each fold.

    Returns:
        Logits [M, C] of the images in folds, fold after fold; and which texts [S] all images
        choose.
    """
    gains = losses_without(features, labels, texts)
    chosen = []
    for part in parts:
        rest = np.setdiff1d(np.arange(len(labels)), part)
        keep = choose_texts(gains[rest].mean(0), texts)
        chosen.append(features[np.array(part)] @ texts.weights(keep).T)
    rows = np.concatenate([np.array(part) for part in parts])
    tables = {
        PROMPTS: features[rows] @ prompts.T,
        ALL: features[rows] @ texts.weights().T,
        HELPFUL: np.concatenate(chosen),
    }
    return tables, choose_texts(gains.mean(0), texts)


def losses_without(features: np.ndarray, labels: np.ndarray, texts: Texts) -> np.ndarray:
    """Return by how much the cross-entropy of each image rises without each text, all others kept:
    [N, S]; 0 for the only text of a class.

    Arguments are as for `answer_folds`. Only the logit of the text's class changes.
    """
    logits = features @ texts.weights().T
    every = np.logaddexp.reduce(logits, axis=1)
    own = logits[np.arange(len(labels)), labels]
    gains = np.zeros((len(labels), len(texts.features)), np.float32)
    for number, place in enumerate(texts.places()):
        part = texts.features[place]
        if len(part) < 2:
            continue
        means = (part.sum(0) - part) / (len(part) - 1)
        if texts.form == "sentences":
            means /= np.linalg.norm(means, axis=1, keepdims=True)
        new = features @ means.T  # [N, K]
        others = _without(logits, every, number)
        right = np.where((labels == number)[:, None], new, own[:, None])
        before = every - own
        gains[:, place] = np.logaddexp(others[:, None], new) - right - before[:, None]
    return gains


def _without(logits: np.ndarray, every: np.ndarray, number: int) -> np.ndarray:
    """Return the log-sum-exp [N] of all logits but one class's, given that of all, [N]."""
    share = np.exp(logits[:, number] - every)
    with np.errstate(divide="ignore"):
        result: np.ndarray = every + np.log1p(-np.minimum(share, 1.0))
    large = share > 0.5  # where the difference would lose digits
    result[large] = np.logaddexp.reduce(np.delete(logits[large], number, axis=1), axis=1)
    return result


def choose_texts(gains: np.ndarray, texts: Texts) -> np.ndarray:
    """Return which texts help, [S] bool: without which the loss does not fall, and in each class
    the best one.

    Args:
        gains: Mean of `losses_without` over images, [S].
        texts: The texts.
    """
    keep: np.ndarray = gains >= 0
    for place in texts.places():
        if not keep[place].any():
            keep[place.start + int(gains[place].argmax())] = True
    return keep


def describe_measured(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a measurement found, in sentences."""
    if measured["best"] == PROMPTS:
        yield (
            "the texts do not help on these shots: a method without them is right at least as often"
        )
    elif measured["left_out"]:
        yield f"{measured['left_out']:,} of {measured['texts']:,} texts are left out"
    else:
        yield "no text is left out: all of them together are right at least as often"
    if measured["low"] <= 0 <= measured["high"]:
        yield (
            f"{measured['images']:,} images do not show whether texts or prompts are better "
            f"({measured['gain']:+.1f} points, 95 % interval {measured['low']:+.1f} to "
            f"{measured['high']:+.1f})"
        )
