"""Measure what reconstruction does to an adapter: accuracy, drift, and what the down-projection
keeps of its input.

python research/scripts/reconstruction.py dtd10 sign_digits --root DATA \\
    --out research/results/reconstruction.jsonl

Each variant is RMAdapter with some settings of its own, trained on the same shots. Two plain
regularisers replace the paper's losses: `output` is the weight of the mean square of the adapters'
outputs, `ema` the decay of the average of the weights over steps, which then answers. At `dials`,
shares of alpha, the trained model is tested once more (as in WiSE-FT, Wortsman et al., CVPR 2022).
`--logit-scale` uses a copy of the backbone with another scale, and `--shuffled` one that knows
nothing: the entries of each weight matrix in a random order. Besides the accuracies of both halves,
a line has, on test images:

    drift      1 - cosine of adapted and untouched features, of images and class names, of each half
    explained  share of the variance of an adapter's input that its reconstruction explains; a mean
    kept       share of the same variance within the row space of the down-projection
    overlap    of that row space with the input's first r principal directions; r / width by chance

Finished lines are kept: repeat the command to resume. research/studies/reconstruction.md has the
results.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from choose_defaults import rescaled
from studies import append_lines, read_lines
from torch import Tensor

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import half
from rmadapter.data.image_set import ImageSet
from rmadapter.encoders import States
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import prompts_each, tokenize
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Known, Method, Parameters, Shots
from rmadapter.training.loop import Batch, minimise

IMAGES, READ = (
    96,
    32,
)  # images of either half to compare features of; of the novel half to read tokens of
OWN = ("method", "output", "ema", "dials")  # fields of a variant that are not settings of RMAdapter
NO_REC = {"lambda_image_rec": 0.0, "lambda_text_rec": 0.0}
NO_CON = {"lambda_image_con": 0.0, "lambda_text_con": 0.0}


def rec(weight: float, **fields: Any) -> dict[str, Any]:
    """Return settings: reconstruction of this weight on both sides, and no constraint."""
    return {"lambda_image_rec": weight, "lambda_text_rec": weight, **NO_CON, **fields}


def combined() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield eight combinations of seven factors, a design of resolution III (Box and Hunter,
    Technometrics 1961), each with reconstruction of weight 10 and without, where three of the
    factors have no effect."""
    for place, (con, norm, alpha) in enumerate(itertools.product((False, True), repeat=3), 1):
        fields: dict[str, Any] = (
            {"lambda_image_con": 0.135, "lambda_text_con": 0.34} if con else dict(NO_CON)
        )
        fields |= {"norm": "block" if norm else "none", "alpha": 0.3 if alpha else 0.1}
        fields |= {"epochs": 30 if con ^ norm ^ alpha else 10}
        reading = {"target": "frozen" if con ^ norm else "input", "local": con ^ alpha}
        reading |= {"share": "none" if norm ^ alpha else "down"}
        yield f"combination {place}, none", NO_REC | fields
        yield f"combination {place}, reconstruction", rec(10) | fields | reading


NEITHER = rec(0.0)
# as `rmadapter-paper` was when these lines were written, before it had the losses as printed
PAPER = {
    "method": "rmadapter-paper",
    "norm": "none",
    "target": "input",
    "consistency_unit": "feature",
    "lambda_image_con": 10.0,
    "lambda_text_con": 25.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    # Which of the two losses does what
    "both": {},
    "neither": NEITHER,
    "constraint": NO_REC,
    "reconstruction": NO_CON,
    # Weight of reconstruction, alone and beside the constraint
    **{f"reconstruction {w:g}": rec(w) for w in (0.01, 1, 10, 100)},
    **{f"both {w:g}": {"lambda_image_rec": w, "lambda_text_rec": w} for w in (1.0, 10.0)},
    # What the equations leave open, and the paper's ablations
    **{f"target {t}": rec(10, target=t) for t in ("frozen", "below")},
    **{f"target output {w:g}": rec(w, target="output") for w in (0.1, 1, 10)},
    "target normed": rec(10, target_norm=True),
    "into the trunk": rec(1, local=False),
    "share none": rec(10, share="none"),
    "share up": rec(10, share="up"),
    "1 layer": rec(10, reconstruction_layers=1),
    "3 layers": rec(10, reconstruction_layers=3),
    "cosine": rec(10, objective="cosine"),
    "image alone": rec(10, lambda_text_rec=0.0),
    "text alone": rec(10, lambda_image_rec=0.0),
    # Other adapters and trainings, each with and without it
    **{
        f"{name}, {what}": fields | {key: value}
        for key, value, name in [
            ("norm", "block", "norm"),
            ("alpha", 0.3, "alpha 0.3"),
            ("epochs", 30, "30 epochs"),
        ]
        for what, fields in [("neither", NEITHER), ("reconstruction 10", rec(10))]
    },
    # Plain regularisers
    **{f"weight decay {w:g}": NEITHER | {"weight_decay": w} for w in (0.5, 5, 20)},
    **{f"output {w:g}": NEITHER | {"output": w} for w in (0.01, 0.1, 1)},
    **{f"ema {d:g}": NEITHER | {"ema": d} for d in (0.8, 0.9, 0.95)},
    **{f"{n} epochs": NEITHER | {"epochs": n} for n in (3, 5)},
    **dict(combined()),
    # Half the steps
    **{
        f"both, 5 epochs{text}": {"epochs": 5, **own}
        for text, own in [("", {}), (", rate 0.012", {"learning_rate": 0.012})]
    },
    "neither, dialled": NEITHER | {"dials": (0.25, 0.5, 0.75)},
    # Why the preset nearest the paper stays at zero-shot
    "paper": PAPER,
    "paper, no constraint": PAPER | NO_CON,
    "paper, no reconstruction": PAPER | NO_REC,
    "paper, neither": PAPER | NEITHER,
    "paper, norm": PAPER | {"norm": "block"},
    "paper, neither, norm": PAPER | NEITHER | {"norm": "block"},
    "paper, no constraint, norm": PAPER | NO_CON | {"norm": "block"},
    "paper, 50 epochs": PAPER | {"epochs": 50},
    "MMA": {"method": "mma"},
    "MMA, trained as RMAdapter": {"method": "mma-adamw"},
}


@dataclass(frozen=True)
class Controlled(Method):
    """RMAdapter with a plain regulariser: a penalty on the adapters' output, or a mean of their
    weights over steps."""

    inner: RMAdapter
    output: float = 0.0
    ema: float = 0.0
    title: str = "RMAdapter with a plain regulariser"
    source: str = "a control of this study"

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        model = self.inner.model(backbone, shots.seed)
        outputs = list[Tensor]()
        text = model.frozen_text(tokenize(backbone, shots.classes, shots.templates))
        average = Average(model.adapters.state_dict(), self.ema)
        for module in model.adapters.modules():
            if isinstance(module, DualBranchAdapter):
                module.up.register_forward_hook(
                    lambda up, args, out: outputs.append(out.float().square().mean())
                )

        def loss(batch: Batch) -> dict[str, Tensor]:
            outputs.clear()
            average.add(model.adapters.state_dict())  # as the previous step left them
            terms = model(
                batch.labels, batch.images, text, prompts_each(shots.classes, shots.templates)
            )
            return {**terms, "loss": terms["loss"] + self.output * torch.stack(outputs).sum()}

        done = minimise(
            model.adapters, loss, self.inner.recipe, shots, shots.source(model.first("image"))
        )
        average.add(model.adapters.state_dict())
        return self.inner.restore(backbone, shots.known, average.tensors).after(done)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        return self.inner.restore(backbone, known, tensors)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return self.inner.parameters(backbone, classes, shots)


class Average:
    """Exponential moving average of tensors; a decay of 0 keeps the last."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.decay = decay

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.tensors[name].lerp_(tensor.detach(), 1 - self.decay)


@torch.no_grad()
def subspace(adapter: Any, tokens: Tensor) -> dict[str, float]:
    """Return `kept`, `overlap` and, if the adapter reconstructs, `explained`, of the tokens [N, d]
    that it reads."""
    rows = torch.linalg.qr(adapter.down.weight.double().T)[0]  # [d, r], orthonormal
    centred = tokens.double() - tokens.double().mean(0)
    _, principal = torch.linalg.eigh(centred.T @ centred)
    total = centred.square().sum()
    measures = {
        "kept": float((centred @ rows).square().sum() / total),
        "overlap": float((rows.T @ principal[:, -rows.shape[1] :]).square().sum() / rows.shape[1]),
    }
    if adapter.reconstructs:
        error = (adapter.reconstruct(tokens) - tokens).double().square().sum()
        measures["explained"] = float(1 - error / total)
    return measures


@torch.no_grad()
def inside(model: AdaptedCLIP, lab: Lab, task: Task) -> dict[str, float]:
    """Return all measures of a model but its accuracy, on test images of both halves and their
    class names."""
    measures: dict[str, float] = {}
    images = lab.splits(task.data)["test"]
    cache = lab.test_cache(task)
    for name in ("base", "novel"):
        compared = spread(half(images, name), IMAGES)
        tokens = tokenize(model.backbone, compared.classes, task.templates)
        streams = {
            "image": cache.stream(compared, model.first("image")),
            "text": model.frozen_text(tokens),
        }
        for side, stream in streams.items():
            drifts = torch.cat([drift(model, side, states) for states in stream])
            measures[f"drift_{side}_{name}"] = float(drifts.mean())
    tensors = cache.tensors(spread(half(images, "novel"), READ), 0, False)
    pixels = torch.stack([tensors[i] for i in range(len(tensors))]).to(model.device)
    tape: list[tuple[int, Tensor]] = []
    with model.attached(tape) as clip:
        clip.encode_image(pixels)
    each = [subspace(model.adapters.image[str(block)], x.flatten(0, -2)) for block, x in tape]
    return measures | {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def spread(images: ImageSet, count: int) -> ImageSet:
    """Return at most `count` images, evenly over the set."""
    return images.subset(range(0, len(images), -(-len(images) // count)))


def drift(model: AdaptedCLIP, side: str, states: States) -> Tensor:
    """Return 1 - cosine of adapted and untouched features, [B]."""
    return 1 - F.cosine_similarity(model.features(side, states)[0], states.features)


@torch.no_grad()
def shuffled(backbone: Backbone) -> Backbone:
    """Return a copy with the entries of each weight matrix in random order: as large as before, but
    with nothing learnt."""
    model = copy.deepcopy(backbone.model)
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        if weights.ndim > 1:
            order = torch.randperm(weights.numel(), generator=generator)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return replace(backbone, model=model, name=f"{backbone.name}, shuffled")


def trial(
    lab: Lab, data: str, seed: int, shots: int, backbone: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Train once, and measure everything."""
    values = {name: value for name, value in fields.items() if name not in OWN}
    common = {"backbone": backbone, "seed": seed, "shots": shots, "classes": "base"}
    request = Request.make({**values, **common}, fields.get("method", "rmadapter"), data=data)
    assert isinstance(request.method, RMAdapter)
    plain = {name: fields[name] for name in ("output", "ema") if name in fields}
    method = Controlled(request.method, **plain) if plain else request.method
    outcome = run_task(request.task, method, lab, request.name)
    record = outcome.record
    model = request.method.model(lab.backbone(backbone))
    model.adapters.load_state_dict(dict(outcome.fitted.tensors))
    halves = ("base", "novel")
    line = {name: record.metric(name) for name in halves}
    line |= {f"zero_shot_{name}": record.metric(name, zero_shot=True) for name in halves}
    line |= {name: round(value, 5) for name, value in inside(model, lab, request.task).items()}
    for dial in fields.get("dials", ()):
        adapter = replace(request.method.adapter, alpha=dial * request.method.adapter.alpha)
        turned = replace(request.method, adapter=adapter).restore(
            model.backbone, outcome.fitted.known, outcome.fitted.tensors
        )
        _, scores = evaluate(turned, lab.tests(request.task), lab.test_cache(request.task))
        line |= {f"{score.name} at {dial:g}": score.accuracy for score in scores}
    return line | {"seconds": record.seconds["train"], "split": record.split_digest}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="data sets below --root")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--logit-scale", type=float, default=0.0, help="0: the backbone's own")
    parser.add_argument("--shuffled", action="store_true", help="a backbone that knows nothing")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    done = {_key(line) for line in read_lines(args.out)}
    lab = Lab(Machine(precision=args.precision), args.root, keep=True, progress=False)
    backbone = rescaled(args.backbone, args.logit_scale)
    if args.shuffled:
        backbone = shuffled(backbone)
    name = backbone.name.replace(",", "")  # which separates the names of two
    lab.add_backbone(replace(backbone, name=name))
    for data, shots, seed, variant in itertools.product(
        args.data, args.shots, args.seeds, args.variants
    ):
        fields = VARIANTS[variant]
        line = {"data": data, "backbone": backbone.name, "precision": args.precision}
        line |= {"shots": shots, "seed": seed, "variant": variant, "fields": fields}
        if _key(line) not in done:
            line |= trial(lab, data, seed, shots, name, fields)
            append_lines(args.out, [line | {"versions": versions()}])
            print(data, shots, seed, variant, line["base"], line["novel"], flush=True)


def _key(line: Mapping[str, Any]) -> str:
    names = ("data", "backbone", "precision", "shots", "seed", "fields")
    return json.dumps([line[name] for name in names], sort_keys=True)


if __name__ == "__main__":
    main()
