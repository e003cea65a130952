"""Measure how many training steps RMAdapter+ needs, and what saves some of them.

    python tools/fewer_steps.py --root DATA --out docs/results/fewer_steps.jsonl --seeds 1
    python tools/fewer_steps.py --out docs/results/fewer_steps.jsonl --tables \\
        --page docs/studies/fewer_steps.md

Each variant trains on the same shots of all classes, and is asked about the same test images:

    N epochs     passes over the shots; the cosine of the learning rate ends with the last one
    rate xN      times the default learning rate
    constant     no cosine
    ridge start  the last adapter of the image encoder starts at a ridge regression (`RidgeStart`)
    plateau      constant rate, two shots of a class held out (`until_plateau`)

A training at a constant rate also gives the mean of its weights over the second half of the steps.

The rule: of all that have at least 99 % of the accuracy of the default, as means over the sets for
choosing, the one with the fewest steps is chosen. The sets for reporting compare it, and five
epochs at twice the rate, with the default. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from families import average
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
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
from rmadapter.data.fewshot import split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.parts.features import unit
from rmadapter.methods.ridge import HEAD, ridge
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import cosine_logits, prompts_each, tokenize
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.training.contract import Fitted
from rmadapter.training.loop import Batch, minimise
from rmadapter.training.shots import Shots

METHOD = "rmadapter-plus"
SHARE = 0.99  # of the default's accuracy
SHOWN = ("data", "seed", "variant", "weights", "test", "steps", "cpu_seconds")
HELD, PATIENCE, LONGEST = 2, 2, 20  # shots of a class; epochs
PENALTIES = (0.01, 0.1, 1.0, 10.0)
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
            return "plateau"
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
        first = model.first("image")
        stream = shots.cache.stream(shots.images, first)
        self.states = list(stream)
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
        up, states = self.up, self.states[0]
        mean = self.model.features("image", states)[0].float().mean(0)
        rows = [torch.autograd.grad(one, up.bias, retain_graph=True)[0] for one in mean]
        return torch.stack(rows)


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


def loss_of(model: AdaptedCLIP, shots: Shots, before: Callable[[], None]) -> Any:
    """Return the loss of a batch; `before` is called first."""
    text = model.frozen_text(tokenize(model.backbone, shots.classes, shots.templates))
    count = prompts_each(shots.classes, shots.templates)

    def loss(batch: Batch) -> dict[str, Tensor]:
        before()
        return model(batch.labels, batch.images, text, count)

    return loss


def for_so_long(
    model: AdaptedCLIP, method: RMAdapterPlus, shots: Shots, variant: Variant
) -> dict[str, Mapping[str, Tensor]]:
    """Train for a number of epochs; return the tensors by what they are."""
    if not variant.epochs:
        return {"last": model.adapters.state_dict()}
    rate = variant.times * method.recipe.learning_rate
    recipe = replace(
        method.recipe,
        epochs=variant.epochs,
        learning_rate=rate,
        final_rate=rate if variant.constant else 0.0,
    )
    epochs, per_epoch = recipe.length(shots.images.labels)
    mean, steps = Mean(), itertools.count()

    def before() -> None:
        if variant.constant and next(steps) > epochs * per_epoch / 2:
            mean.add(model.adapters.state_dict())  # as the previous step left them

    loss = loss_of(model, shots, before)
    minimise(model.adapters, loss, recipe, shots, shots.source(model.first("image")))
    last = model.adapters.state_dict()
    if not variant.constant:
        return {"last": last}
    mean.add(last)
    return {"last": last, "averaged": mean.tensors}


def until_plateau(
    model: AdaptedCLIP, method: RMAdapterPlus, shots: Shots
) -> tuple[Mapping[str, Tensor], int]:
    """Train at a constant rate on all shots of a class but HELD, until the loss of these has not
    fallen for PATIENCE epochs. The weights of an epoch are the mean over its steps; return the best
    ones, and the number of steps."""
    learnt, held = parted(shots.images)
    part = replace(shots, images=learnt)
    first = model.first("image")
    states = list(shots.cache.stream(held, first))
    labels = torch.tensor(held.labels)
    best: dict[str, Any] = {"loss": np.inf, "epoch": 0, "tensors": {}}
    epoch_mean = [Mean()]
    tried = method.adapters.model(model.backbone, shots.seed)

    def after(epoch: int) -> None:
        epoch_mean[0].add(model.adapters.state_dict())
        tried.adapters.load_state_dict(epoch_mean[0].tensors)
        with torch.no_grad():
            weights = tried.class_weights(shots.classes, shots.templates)
            features = torch.cat([tried.features("image", one)[0] for one in states])
            logits = cosine_logits(model.backbone, features, weights)
        loss = float(F.cross_entropy(logits, labels))
        if loss < best["loss"]:
            best.update(loss=loss, epoch=epoch + 1, tensors=epoch_mean[0].tensors)
        epoch_mean[0] = Mean()
        if epoch + 1 - best["epoch"] >= PATIENCE:
            raise Plateau

    recipe = replace(method.recipe, epochs=LONGEST, final_rate=method.recipe.learning_rate)
    steps = itertools.count()
    per_epoch = recipe.length(learnt.labels)[1]

    def before() -> None:
        if next(steps) % per_epoch:
            epoch_mean[0].add(model.adapters.state_dict())

    done = LONGEST
    try:
        loss = loss_of(model, part, before)
        minimise(model.adapters, loss, recipe, part, part.source(first), after)
    except Plateau:
        done = best["epoch"] + PATIENCE
    return best["tensors"], done * per_epoch


def parted(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return all shots of a class but HELD, and these."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(images.labels):
        places[label].append(place)
    held = sorted(itertools.chain(*(some[-HELD:] for some in places.values())))
    left = sorted({*range(len(images))} - {*held})
    return images.subset(left), images.subset(held)


# Measuring


@dataclass(frozen=True, eq=False)
class Trial:
    """The variants on the shots of one set. settings: of the method."""

    lab: Lab
    data: str
    shots: int
    seed: int
    backbone: str = "pocket"
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: dict[tuple[str, str], Fitted] = field(default_factory=dict)
    facts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def run(self, variants: Iterable[Variant]) -> list[dict[str, Any]]:
        """Train each, ask all of them about the test images, and return their lines."""
        common = {"backbone": self.backbone, "shots": self.shots, "seed": self.seed}
        request = Request.make({**self.settings, **common}, METHOD, data=self.data)
        task, method = request.task, request.method
        assert isinstance(method, RMAdapterPlus)
        few, backbone = self.lab.draw(task), self.lab.backbone(self.backbone)
        shots = Shots(
            few.train, self.lab.train_cache(task), task.templates, self.seed, progress=False
        )
        shots.source(method.starts_at(backbone))  # encoded once, in no variant's time
        head = ridge(unit(shots.plain_features()), shots.labels, len(shots.classes), method.penalty)
        for variant in variants:
            model = method.adapters.model(backbone, self.seed)
            started = time.process_time()
            per_epoch = method.recipe.length(shots.images.labels)[1]
            more: dict[str, Any] = {"steps": variant.epochs * per_epoch}
            if variant.ridge:
                more |= RidgeStart(model, shots)()
            if variant.plateau:
                best, more["steps"] = until_plateau(model, method, shots)
                found = {"averaged": best}
            else:
                found = dict(for_so_long(model, method, shots, variant))
            more["cpu_seconds"] = round(time.process_time() - started, 2)
            for weights, tensors in found.items():
                key = variant.name, weights
                self.models[key] = method.restore(backbone, shots.known, {**tensors, HEAD: head})
                self.facts[key] = more
        test = self.lab.splits(task.data)["test"]
        answering = {json.dumps(key): one.score() for key, one in self.models.items()}
        any_fitted = next(iter(self.models.values()))
        tables = predict_all(answering, any_fitted, self.lab.test_cache(task), test, self.seed)
        return [
            {
                "data": self.data,
                "shots": self.shots,
                "seed": self.seed,
                "variant": key[0],
                "weights": key[1],
                "classes": len(shots.classes),
                "test": metrics.accuracy(tables[json.dumps(key)].numpy(), test.labels),
                **self.facts[key],
                "precision": self.lab.machine.precision,
                "split_digest": split_digest(few),
                "backbone": backbone.digest,
                "versions": versions(),
            }
            for key in self.models
        ]


# Tables


def accuracies(lines: Lines, sets: Sequence[str]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return accuracies by variant and kind of weights, and by set, of its draws."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["data"] in sets:
            found[line["variant"], line["weights"]][line["data"]].append(line["test"])
    return found


def share_of(lines: Lines, what: str, key: tuple[str, str], sets: Sequence[str]) -> float:
    """Return the median over sets and draws of a figure, in the default's."""
    found: dict[tuple[str, int], dict[tuple[str, str], float]] = defaultdict(dict)
    for line in lines:
        if line["data"] in sets:
            found[line["data"], line["seed"]][line["variant"], line["weights"]] = line[what]
    whole = (DEFAULT.name, "last")
    return median(one[key] / one[whole] for one in found.values() if key in one)


def chosen(lines: Lines) -> tuple[str, str]:
    """Return the variant with the fewest steps of those with SHARE of the default's accuracy on
    the sets for choosing; of equals the more accurate one."""
    found = accuracies(lines, CHOOSE_ALL)
    least = SHARE * average(found[DEFAULT.name, "last"])
    able = [key for key, by_set in found.items() if average(by_set) >= least]
    return min(
        able, key=lambda key: (share_of(lines, "steps", key, CHOOSE_ALL), -average(found[key]))
    )


def accuracy_table(lines: Lines, sets: Sequence[str]) -> str:
    """Tabulate the mean accuracy of each variant, and what it costs; the chosen one is bold."""
    found, rows = accuracies(lines, sets), []
    whole, pick = average(found[DEFAULT.name, "last"]), chosen(lines)
    count = max(map(len, found.values()))
    for key in sorted(found, key=lambda key: share_of(lines, "steps", key, sets)):
        if len(found[key]) < count:
            continue
        mean, (name, weights) = average(found[key]), key
        shares = (share_of(lines, what, key, sets) for what in ("steps", "cpu_seconds"))
        title = name if weights == "last" else f"{name}, averaged"
        cells = [f"{mean:.1f}", f"{100 * mean / whole:.1f}", *(f"{100 * x:.0f}" for x in shares)]
        rows.append([f"**{title}**" if key == pick else title, *cells])
    heads = ["accuracy", "% of the default's", "% of its steps", "% of its seconds"]
    return f"{count} sets\n\n" + markdown(["variant", *heads], rows)


def verdict_table(lines: Lines) -> str:
    """Compare the chosen variant, and five epochs at twice the rate, with the default on the sets
    for reporting."""
    found = accuracies(lines, REPORT_ALL)
    default = found[DEFAULT.name, "last"]
    asked = dict.fromkeys([chosen(lines), (Variant(5, 2).name, "last")])
    differences = {
        ", ".join(key): [
            [one - other for one, other in zip(found[key][data], default[data], strict=True)]
            for data in default
        ]
        for key in asked
    }
    rows = [[name, *cells] for name, cells in with_verdicts(differences, 1).items()]
    return markdown([f"against {DEFAULT.name}", *TESTED], rows)


def tables(lines: Lines) -> dict[str, str]:
    """Return all tables by their names on the page."""
    return {
        "choosing": accuracy_table(lines, CHOOSE_ALL),
        "reporting": accuracy_table(lines, REPORT_ALL),
        "verdicts": verdict_table(lines),
    }


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=VARIANTS)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {(line["data"], line["seed"], line["variant"]) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        left = [VARIANTS[name] for name in args.variants if (data, seed, name) not in done]
        if left:
            lab = Lab(Machine(precision=args.precision), args.root, keep=True, progress=False)
            measured = Trial(lab, data, args.shots, seed).run(left)
            append_lines(args.out, measured)
            for line in measured:
                print(json.dumps({name: line[name] for name in SHOWN}), flush=True)


if __name__ == "__main__":
    main()
