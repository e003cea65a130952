"""Step 9: train the last four blocks, the norm, the projection and the scale (33 minutes on two
cores).

Starts between the untouched encoder and `pocket`. The defaults are those of the shipped delta.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pools import HELD_OUT, read
from rows import Rows
from states import read_untouched
from student import COSINE, KEPT, MIX, Student, Texts, loss_terms, write_delta
from texts import PLAIN_PROMPT
from torch import Tensor, nn

from rmadapter.backbones import load_backbone

WARMUP = 80  # steps
REPORT, WATCH = 50, 400  # steps between two lines
READ = 2000  # rows that the readout is fitted on before the training
RIDGE = 0.01


@torch.no_grad()
def watch(student: Student, rows: Rows, texts: Texts, batch: int = 250) -> dict[str, float]:
    """Measure the accuracy in percent on held-out rows, among the classes of their pool."""
    scores = {}
    for pool, (chosen, labels) in rows.watched.items():
        classes, truth = np.unique(labels, return_inverse=True)
        features = texts.features[PLAIN_PROMPT][texts.heaviest(torch.from_numpy(classes).long())]
        hits = 0
        for start in range(0, len(chosen), batch):
            states = torch.from_numpy(rows.states[pool][chosen[start : start + batch]]).float()
            with torch.autocast("cpu", torch.bfloat16):
                images = student.whole(states)
            best = (student.aligned(images) @ features.T).argmax(1).numpy()
            hits += int((best == truth[start : start + batch]).sum())
        scores[pool if pool != HELD_OUT else "unseen emoji"] = round(
            100 * hits / max(1, len(chosen)), 1
        )
    return scores


def make_optimizer(
    student: Student, readout: nn.Linear, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Make the optimizer. Matrices of the blocks decay; projection and scale learn twice as
    fast."""
    fast = [student.proj.weight, student.logit_scale, *readout.parameters()]
    slow = [*student.blocks.parameters(), *student.norm.parameters()]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in slow if p.ndim > 1],
            "lr": learning_rate,
            "weight_decay": weight_decay,
        },
        {"params": [p for p in slow if p.ndim == 1], "lr": learning_rate, "weight_decay": 0.0},
        {"params": fast, "lr": 2 * learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def sampled(
    student: Student, rows: Rows, number: int, seed: int, batch: int = 64
) -> tuple[np.ndarray, Tensor]:
    """Draw rows that are trained on; return them and their unit features, [number, 384]."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(np.flatnonzero(rows.weight > 0), number, replace=False))
    parts = []
    for start in range(0, number, batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(student.whole(rows.tokens(drawn[start : start + batch])))
    return drawn, F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def share_of_aligned(student: Student, rows: Rows, number: int) -> float:
    """Return the mean length of the aligned part of unit features, over rows drawn at random."""
    _, features = sampled(student, rows, number, seed=1)
    return float(features[:, : len(student.text_proj)].norm(dim=1).mean())


@torch.no_grad()
def fit_readout(student: Student, rows: Rows, number: int, batch: int = 64) -> nn.Linear:
    """Return the ridge regression from unit features to the untouched encoder's class tokens."""
    drawn, x = sampled(student, rows, number, seed=2, batch=batch)
    y = rows.class_tokens(drawn)
    center, gram = x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))
    readout = nn.Linear(x.shape[1], y.shape[1])
    ridge = RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    weight = torch.linalg.solve(gram + ridge, (x - center).T @ (y - y.mean(0))).T
    readout.weight.data, readout.bias.data = weight, y.mean(0) - weight @ center
    left = 1 - F.cosine_similarity(readout(x), y).mean()
    print(f"readout of the untouched class token: {left:.3f} from it", flush=True)
    return readout


def train(
    student: Student, rows: Rows, texts: Texts, class_states: Tensor, a: argparse.Namespace
) -> None:
    """Train. class_states: [1000, 9, 384]. The clock drives the schedule, so that a run ends at
    its time."""
    rng = np.random.default_rng(a.seed)
    prompts = student.text(class_states)  # [1000, 9, 256]
    basis = F.linear(F.normalize(class_states[:, PLAIN_PROMPT], dim=-1), student.text_proj)
    readout = fit_readout(student, rows, READ)
    optimizer = make_optimizer(student, readout, a.learning_rate, a.weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = rows.batches(a.batch, rng)
    step = 0
    progress = 0.0
    start = time.monotonic()
    while progress < 1:
        progress = max((step + 1) / a.steps, (time.monotonic() - start) / 60 / a.minutes)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = (
                peak
                * min(1, (step + 1) / WARMUP)
                * (0.5 + 0.5 * math.cos(math.pi * min(1, progress)))
            )
        batch = next(batches)
        keep = None  # all patches towards the end, some before
        if progress <= 1 - a.whole:
            patches = rows.states[HELD_OUT].shape[1] - 1
            keep = np.concatenate([[0], 1 + np.sort(rng.choice(patches, a.keep, replace=False))])
        with torch.autocast("cpu", torch.bfloat16):
            features = student.whole(rows.tokens(batch, keep))
        kept = F.cosine_similarity(
            readout(F.normalize(features, dim=-1)), rows.class_tokens(batch), dim=-1
        )
        classes = prompts[:, int(rng.integers(prompts.shape[1]))]
        drawn = rng.choice(len(texts.words), min(a.texts, len(texts.words)), replace=False)
        others = texts.words[torch.from_numpy(drawn)]
        template = int(rng.integers(len(texts.features)))
        aligned, targets = student.aligned(features), rows.targets(batch)
        terms = (
            *loss_terms(student, aligned, targets, texts, classes, basis, others, template),
            1 - kept.mean(),
        )
        optimizer.zero_grad()
        (terms[0] + terms[1] + COSINE * terms[2] + a.kept * terms[3]).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % REPORT == 0:
            shown = " ".join(f"{term:.3f}" for term in terms)
            print(
                f"{step} ({progress:.0%}) loss terms {shown} scale {student.scale:.1f}", flush=True
            )
        if step % WATCH == 0:
            print("   held out", watch(student, rows, texts), flush=True)
    print(f"{step} steps, {step * a.batch} rows, {time.monotonic() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 2 to 8")
    parser.add_argument("--out", type=Path, required=True, help="file for the delta")
    parser.add_argument(
        "--mix", type=float, default=MIX, help="1: start from `pocket`; 0: untouched encoder"
    )
    parser.add_argument("--kept", type=float, default=KEPT, help="weight of the readout's loss")
    parser.add_argument(
        "--minutes", type=float, default=33.0, help="length of the run (default %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=100_000, help="end earlier after this many steps"
    )
    parser.add_argument("--batch", type=int, default=128, help="rows a step (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=2e-4, help="peak (default %(default)s)"
    )
    parser.add_argument("--weight-decay", type=float, default=0.05, help="default %(default)s")
    parser.add_argument(
        "--keep", type=int, default=80, help="of 256 patches, drawn a step (default %(default)s)"
    )
    parser.add_argument(
        "--whole", type=float, default=0.14, help="part of the time with all patches, at the end"
    )
    parser.add_argument(
        "--texts", type=int, default=5000, help="drawn a step as rivals (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    student = Student(load_backbone("pocket"), read_untouched(a.work), a.mix)
    rows = Rows(a.work)
    states, alone = (
        torch.from_numpy(np.load(a.work / f"{name}.npy")) for name in ("texts", "sentences")
    )
    texts = Texts.of(student, states, read(a.work / "labels.json"), alone)
    print(
        [len(group) for group in rows.groups],
        "rows to train on; held out",
        watch(student, rows, texts),
        flush=True,
    )
    train(student, rows, texts, torch.from_numpy(np.load(a.work / "class_texts.npy")), a)
    print("held out", watch(student, rows, texts))
    share = share_of_aligned(student, rows, READ)
    student.logit_scale.data -= math.log(share)  # features are longer than their aligned part
    print(f"aligned part {share:.3f} of unit features")
    write_delta(student, a.out)


if __name__ == "__main__":
    main()
