"""Measure how many training steps RMAdapter+ needs, and what saves some of them.

    python research/scripts/fewer_steps.py --root DATA \\
        --out research/results/fewer_steps.jsonl --seeds 1
    python research/scripts/fewer_steps.py --out research/results/fewer_steps.jsonl --tables \\
        --beside research/results/steps.jsonl --page research/studies/fewer_steps.md

Each variant trains on the same shots of all classes, and is asked about the same test images:

    N epochs     passes over the shots; the cosine of the learning rate ends with the last one
    rate xN      times the default learning rate
    constant     no cosine
    ridge start  the last adapter of the image encoder starts at a ridge regression (`RidgeStart`)
    plateau      constant rate, two shots of a class held out (`UntilPlateau`)

A training at a constant rate also gives the mean of its weights over the second half of the steps.

The rule: of all that have at least 99 % of the accuracy of the default, as means over the sets for
choosing, the one with the fewest steps is chosen. The sets for reporting compare it, and five
epochs at twice the rate, with the default. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from families import against, average
from reconstruction_tables import differences as paired, read as read_paired
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)
from torch import Tensor

from rmadapter import metrics
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.parts.features import unit
from rmadapter.methods.ridge import HEAD, ridge
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import cosine_logits
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.training.contract import Fitted
from rmadapter.training.shots import Callback, Figures, Shots

METHOD = "rmadapter-plus"
HALF = ("both, 5 epochs", "both, 5 epochs, rate 0.012")
SHARE = 0.99  # of the default's accuracy
SHOWN = ("data", "seed", "variant", "weights", "test", "steps", "cpu_seconds")
SHOTS, HELD = 16, 2  # of a class
PATIENCE, LONGEST = 2, 20  # epochs
LAST, AVERAGED, PLATEAU = "last", "averaged", "plateau"
PENALTIES = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
GAINS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Variant:
    """How to train. epochs: 0 for the start alone. times: the default learning rate."""

    epochs: int
    times: float = 1.0
    constant: bool = False
    ridge: bool = False
    plateau: bool = False

    @property
    def name(self) -> str:
        if self.plateau:
            return PLATEAU
        parts = [f"{self.epochs} epoch{'s' * (self.epochs != 1)}"]
        parts += [f"rate x{self.times:g}"] * (self.times != 1)
        parts += ["constant"] * self.constant + ["ridge start"] * self.ridge
        return ", ".join(parts)


DEFAULT = Variant(10)
VARIANTS = {
    variant.name: variant
    for variant in (
        DEFAULT,
        *(Variant(epochs) for epochs in (1, 2, 3, 5)),
        *(Variant(epochs, 2) for epochs in (1, 2, 3, 5)),
        *(Variant(epochs, 3) for epochs in (2, 3)),
        *(Variant(epochs, constant=True) for epochs in (3, 5)),
        *(Variant(epochs, ridge=True) for epochs in (0, 3)),
        *(Variant(epochs, 2, ridge=True) for epochs in (1, 3)),
        Variant(LONGEST, plateau=True),
    )
}


# Training


class Mean:
    """Mean of tensors over steps."""

    def __init__(self) -> None:
        self.count = 0
        self.tensors: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        self.count += 1
        for name, tensor in tensors.items():
            if self.count == 1:
                self.tensors[name] = tensor.detach().clone()
            else:
                self.tensors[name].lerp_(tensor.detach(), 1 / self.count)


class RidgeStart:
    """A start of the last image adapter by ridge regression.

    At an adapter that adds nothing yet, features are linear in the weights of its second layer up
    to first order: feature + J (W h + b), with h the output of the first layer and J the mean
    derivative by the bias. A ridge regression from h to `gain` times what separates a class's text
    from the mean text gives J W and J b, the pseudo-inverse of J the weights. Penalty and gain are
    those with the least cross-entropy on shots that the regression leaves out, one at a time, in
    closed form.
    """

    def __init__(self, model: AdaptedCLIP, shots: Shots) -> None:
        self.model, self.labels = model, shots.labels
        top = model.adapters.at("image", max(model.adapters.blocks("image")))
        assert top is not None
        self.up = top.up
        self.states = list(shots.cache.stream(shots.images, model.first("image")))
        self.weights = model.class_weights(shots.classes, shots.templates).detach()

    def __call__(self) -> dict[str, float]:
        """Set the adapter, and return what was chosen."""
        hidden, features = self._hidden()
        ones = hidden.new_ones(len(hidden), 1)
        inputs = torch.cat([hidden, ones], 1)  # [N, r + 1]
        apart = self.weights - self.weights.mean(0)
        targets = apart[self.labels] * features.norm(dim=-1, keepdim=True)
        choices = {}
        for penalty in PENALTIES:
            solve, left_out = leave_one_out(inputs, targets, penalty)
            for gain in GAINS:
                logits = cosine_logits(
                    self.model.backbone, features + gain * left_out, self.weights
                )
                loss = float(F.cross_entropy(logits, self.labels))
                choices[penalty, gain] = loss, solve
        penalty, gain = min(choices, key=lambda key: choices[key][0])
        wanted = gain * choices[penalty, gain][1].T  # [e, r + 1]
        found = torch.linalg.pinv(self._derivative()) @ wanted
        with torch.no_grad():
            self.up.weight.copy_(found[:, :-1])
            self.up.bias.copy_(found[:, -1])
        return {"penalty": penalty, "gain": gain}

    @torch.no_grad()
    def _hidden(self) -> tuple[Tensor, Tensor]:
        """Return what enters the second layer for each shot, [N, r], and the features [N, e]."""
        seen: list[Tensor] = []
        hook = self.up.register_forward_pre_hook(lambda up, args: seen.append(args[0]))
        features = [self.model.features("image", states)[0] for states in self.states]
        hook.remove()
        rows = [one.flatten(0, -2) for one in seen]
        return torch.cat(rows).float(), torch.cat(features).float()

    def _derivative(self) -> Tensor:
        """Return the derivative of the mean feature by the bias, [e, d]."""
        total = sum(self.model.features("image", one)[0].float().sum(0) for one in self.states)
        mean = total / len(self.labels)
        assert isinstance(mean, Tensor)
        eye = torch.eye(len(mean), device=mean.device)
        [rows] = torch.autograd.grad(mean, self.up.bias, eye, is_grads_batched=True)
        return rows


def leave_one_out(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the weights [k, e] of a ridge regression from [N, k] to [N, e], and the prediction of
    each row by the regression of the others. penalty: times the mean square of an input."""
    gram = inputs.T @ inputs
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram + penalty * gram.trace() / len(gram) * eye)
    weights = inverse @ inputs.T @ targets
    lever = ((inputs @ inverse) * inputs).sum(1, keepdim=True)
    return weights, (inputs @ weights - lever * targets) / (1 - lever)


class Plateau(Exception):
    """Ends a training."""


def for_so_long(
    model: AdaptedCLIP, method: RMAdapterPlus, shots: Shots, variant: Variant
) -> dict[str, Mapping[str, Tensor]]:
    """Train for a number of epochs; return the tensors by what they are."""
    if not variant.epochs:
        return {LAST: model.adapters.state_dict()}
    rate = variant.times * method.recipe.learning_rate
    recipe = replace(
        method.recipe,
        epochs=variant.epochs,
        learning_rate=rate,
        final_rate=rate if variant.constant else 0.0,
    )
    epochs, per_epoch = recipe.length(shots.images.labels)
    mean = Mean()

    def follow(figures: Figures) -> None:
        if variant.constant and figures["step"] > epochs * per_epoch / 2:
            mean.add(model.adapters.state_dict())

    followed = replace(shots, callbacks=(Callback(on_step=follow),))
    replace(method, recipe=recipe).train(model, followed)
    found: dict[str, Mapping[str, Tensor]] = {LAST: model.adapters.state_dict()}
    return found | ({AVERAGED: mean.tensors} if variant.constant else {})


class UntilPlateau:
    """A training at a constant rate on all shots of a class but HELD, until the loss of these has
    not fallen for PATIENCE epochs. The weights of an epoch are the mean over its steps.

    best, tensors: the least loss, and the weights with it. epochs: done.
    """

    def __init__(self, model: AdaptedCLIP, method: RMAdapterPlus, shots: Shots) -> None:
        self.model, self.method, self.shots = model, method, shots
        learnt, held = (replace(shots, images=images) for images in parted(shots.images))
        self.learnt, self.labels = learnt, held.labels
        self.states = list(shots.cache.stream(held.images, model.first("image")))
        self.tried = method.model(model.backbone, shots.seed)
        self.mean, self.best, self.since, self.epochs = Mean(), math.inf, 0, 0
        self.tensors: Mapping[str, Tensor] = {}

    def __call__(self) -> None:
        """Train."""
        rate = self.method.recipe.learning_rate
        recipe = replace(self.method.recipe, epochs=LONGEST, final_rate=rate)
        callback = Callback(
            lambda figures: self.mean.add(self.model.adapters.state_dict()),
            lambda figures: self._judge(),
        )
        learnt = replace(self.learnt, callbacks=(callback,))
        with suppress(Plateau):
            replace(self.method, recipe=recipe).train(self.model, learnt)

    def _judge(self) -> None:
        """Compare the epoch that just ended with the best one."""
        loss, tensors = self._held_loss(), self.mean.tensors
        self.epochs, self.mean, self.since = self.epochs + 1, Mean(), self.since + 1
        if loss < self.best:
            self.best, self.tensors, self.since = loss, tensors, 0
        if self.since == PATIENCE:
            raise Plateau

    @torch.no_grad()
    def _held_loss(self) -> float:
        self.tried.adapters.load_state_dict(self.mean.tensors)
        weights = self.tried.class_weights(self.shots.classes, self.shots.templates)
        features = torch.cat([self.tried.features("image", one)[0] for one in self.states])
        logits = cosine_logits(self.model.backbone, features, weights)
        return float(F.cross_entropy(logits, self.labels))


def parted(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return all shots of a class but HELD, and these."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(images.labels):
        places[label].append(place)
    held = sorted(itertools.chain(*(some[-HELD:] for some in places.values())))
    left = sorted({*range(len(images))} - {*held})
    return images.subset(left), images.subset(held)


# Measuring


def measure(
    lab: Lab,
    data: str,
    seed: int,
    variants: Iterable[Variant],
    backbone: str = "pocket",
    shots_each: int = SHOTS,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train each variant on the shots of a set, ask all of them about its test images, and return
    their lines. shots_each: of a class, 0 for all. settings: of the method."""
    common = {"backbone": backbone, "shots": shots_each, "seed": seed}
    request = Request.make({**settings, **common}, METHOD, data=data)
    task, method, loaded = request.task, request.method, lab.backbone(backbone)
    assert isinstance(method, RMAdapterPlus)
    few = lab.draw(task)
    shots = Shots(few.train, lab.train_cache(task), task.templates, seed, progress=False)
    first = method.starts_at(loaded)
    shots.source(first)  # encoded once in either format, in no variant's time
    shots.cache.source(shots.images, first)
    head = ridge(unit(shots.plain_features()), shots.labels, len(shots.classes), method.penalty)
    models: dict[str, Fitted] = {}
    facts: dict[str, dict[str, Any]] = {}
    for variant in variants:
        found, more = trained(method, loaded, shots, variant)
        for weights, tensors in found.items():
            own = {"variant": variant.name, "weights": weights}
            name = title_of(own)
            models[name] = method.restore(loaded, shots.known, {**tensors, HEAD: head})
            facts[name] = own | more
    test = lab.splits(task.data)["test"]
    asked = {name: fitted.score() for name, fitted in models.items()}
    tables = predict_all(asked, next(iter(models.values())), lab.test_cache(task), test, seed)
    same = {"data": data, "shots": shots_each, "seed": seed, "classes": len(shots.classes)}
    how: dict[str, Any] = {"precision": lab.machine.precision, "split_digest": split_digest(few)}
    how |= {"backbone": loaded.digest, "versions": versions()}
    return [
        {**same, **facts[name], "test": metrics.accuracy(table.numpy(), test.labels), **how}
        for name, table in tables.items()
    ]


def trained(
    method: RMAdapterPlus, backbone: Backbone, shots: Shots, variant: Variant
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """Train a variant; return its tensors by what they are, and steps, seconds and what the ridge
    regression chose."""
    model, per_epoch = method.model(backbone, shots.seed), per_epoch_of(method, shots)
    started = time.process_time()
    more: dict[str, Any] = {"steps": variant.epochs * per_epoch}
    if variant.ridge:
        more |= RidgeStart(model, shots)()
    if variant.plateau:
        until = UntilPlateau(model, method, shots)
        until()
        found = {AVERAGED: until.tensors}
        more["steps"] = until.epochs * per_epoch_of(method, until.learnt)
    else:
        found = for_so_long(model, method, shots, variant)
    more["cpu_seconds"] = round(time.process_time() - started, 2)
    return found, more


def per_epoch_of(method: RMAdapterPlus, shots: Shots) -> int:
    return method.recipe.length(shots.images.labels)[1]


def title_of(line: Line) -> str:
    """Return the name of a variant with its kind of weights, where there are two."""
    both = line["weights"] == AVERAGED and line["variant"] != PLATEAU
    return f"{line['variant']}, {AVERAGED}" if both else str(line["variant"])


# Tables


def accuracies(lines: Lines, sets: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return accuracies by title, set and draw, of all variants that have the default's draws on
    these sets. Raises SystemExit if there are none of the default."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["data"] in sets:
            found[title_of(line)][line["data"]].append(line["test"])
    if DEFAULT.name not in found:
        raise SystemExit(f"no lines of {DEFAULT.name} on {', '.join(sets)}")
    draws = {data: len(tests) for data, tests in found[DEFAULT.name].items()}
    return {
        title: by_set
        for title, by_set in found.items()
        if {data: len(tests) for data, tests in by_set.items()} == draws
    }


def share_of(lines: Lines, what: str, title: str, sets: Sequence[str]) -> float:
    """Return the median over sets and draws of a figure, in the default's."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line["data"] in sets:
            found[line["data"], line["seed"]][title_of(line)] = line[what]
    return median(one[title] / one[DEFAULT.name] for one in found.values())


def chosen(lines: Lines) -> str:
    """Return the variant with the fewest steps of those with SHARE of the default's accuracy on the
    sets for choosing; of equals the more accurate one."""
    found = accuracies(lines, CHOOSE_ALL)
    means = {title: average(by_set) for title, by_set in found.items()}
    able = [title for title, mean in means.items() if mean >= SHARE * means[DEFAULT.name]]
    steps = {title: share_of(lines, "steps", title, CHOOSE_ALL) for title in able}
    return min(able, key=lambda title: (steps[title], -means[title]))


def accuracy_table(lines: Lines, sets: Sequence[str]) -> str:
    """Tabulate the mean accuracy of each variant, and what it costs; the chosen one is bold."""
    found, pick, rows = accuracies(lines, sets), chosen(lines), []
    whole = average(found[DEFAULT.name])
    for title in sorted(found, key=lambda title: share_of(lines, "steps", title, sets)):
        mean = average(found[title])
        shares = [share_of(lines, what, title, sets) for what in ("steps", "cpu_seconds")]
        cells = [f"{mean:.1f}", f"{100 * mean / whole:.1f}", *(f"{100 * x:.0f}" for x in shares)]
        rows.append([f"**{title}**" if title == pick else title, *cells])
    heads = ["accuracy", "% of the default's", "% of its steps", "% of its seconds"]
    return f"{len(found[DEFAULT.name])} sets\n\n" + markdown(["variant", *heads], rows)


def verdict_table(lines: Lines) -> str:
    """Compare the chosen variant, and five epochs at twice the rate, with the default on the sets
    for reporting."""
    found = accuracies(lines, REPORT_ALL)
    asked = dict.fromkeys([chosen(lines), Variant(5, 2).name])
    differences = {title: against(found, title, DEFAULT.name) for title in asked}
    rows = [[title, *cells] for title, cells in with_verdicts(differences, 1).items()]
    return markdown([f"against {DEFAULT.name}", *TESTED], rows)


def tables(lines: Lines) -> dict[str, str]:
    """Return the tables of RMAdapter+ by their names on the page."""
    return {
        "choosing": accuracy_table(lines, CHOOSE_ALL),
        "reporting": accuracy_table(lines, REPORT_ALL),
        "verdicts": verdict_table(lines),
    }


def half_table(lines: Lines) -> str:
    """Compare RMAdapter with half the steps, also at twice the rate, with its default, from base to
    novel classes, by the lines of `reconstruction.py`."""
    parts = []
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        own = [line for line in lines if line["data"] in sets]
        parts += [title, paired(own, [(name, "both") for name in HALF])]
    return "\n\n".join(parts)


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=VARIANTS)
    parser.add_argument("--backbone", default="pocket", help="give each a file of its own, --out")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--beside", type=Path, help="lines of reconstruction.py")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        half = {"half": half_table(read_paired(args.beside))} if args.beside else {}
        show(tables(lines) | half, args.page)
        return
    done = {(line["data"], line["seed"], line["variant"]) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        left = [VARIANTS[name] for name in args.variants if (data, seed, name) not in done]
        if left:
            lab = Lab(Machine(precision=args.precision), args.root, keep=True, progress=False)
            measured = measure(lab, data, seed, left, args.backbone)
            append_lines(args.out, measured)
            for line in measured:
                print(json.dumps({name: line[name] for name in SHOWN}), flush=True)


if __name__ == "__main__":
    main()
