"""Step 9: train the last four blocks, the norm, the projection and the scale (41 minutes on two
cores).

Starts from `pocket`, or from the delta of --start. The other defaults are those of the shipped
delta, which started from the first version's (README.md). Writes a folder with the delta alone and
as a whole model, which `evaluate.py --backbones FOLDER` measures.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pools import HELD_OUT, read
from rows import Rows
from student import COSINE, Student, Texts, loss_terms, write_model
from texts import PLAIN_PROMPT
from torch import Tensor, nn

from rmadapter.backbones import load_backbone

WARMUP = 80  # steps
REPORT, WATCH = 50, 800  # steps between two lines


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
                images = student.image(states)
            best = (images @ features.T).argmax(1).numpy()
            hits += int((best == truth[start : start + batch]).sum())
        scores[pool if pool != HELD_OUT else "unseen emoji"] = round(
            100 * hits / max(1, len(chosen)), 1
        )
    return scores


def make_optimizer(
    student: Student, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Make the optimizer. Matrices of the blocks decay; projection and scale learn twice as
    fast."""
    fast = [student.proj.weight, student.logit_scale]
    slow = [*student.blocks.parameters(), *student.norm.parameters()]
    groups = [
        {
            "params": [p for p in slow if p.ndim > 1],
            "lr": learning_rate,
            "weight_decay": weight_decay,
        },
        {"params": [p for p in slow if p.ndim == 1], "lr": learning_rate, "weight_decay": 0.0},
        {"params": fast, "lr": 2 * learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def train(
    student: Student, rows: Rows, texts: Texts, class_states: Tensor, a: argparse.Namespace
) -> None:
    """Train. class_states: [1000, 9, 384]. The clock drives the schedule, so that a run ends at
    its time."""
    rng = np.random.default_rng(a.seed)
    prompts = student.text(class_states)  # [1000, 9, 256]
    basis = F.linear(F.normalize(class_states[:, PLAIN_PROMPT], dim=-1), student.text_proj)
    optimizer = make_optimizer(student, a.learning_rate, a.weight_decay)
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
            features = student.image(rows.tokens(batch, keep))
        classes = prompts[:, int(rng.integers(prompts.shape[1]))]
        drawn = rng.choice(len(texts.words), min(a.texts, len(texts.words)), replace=False)
        others = texts.words[torch.from_numpy(drawn)]
        template = int(rng.integers(len(texts.features)))
        terms = loss_terms(
            student, features, rows.targets(batch), texts, classes, basis, others, template
        )
        optimizer.zero_grad()
        (terms[0] + terms[1] + COSINE * terms[2]).backward()
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
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument(
        "--start", type=Path, help="delta to start from (default: that of `pocket`)"
    )
    parser.add_argument(
        "--minutes", type=float, default=41.0, help="length of the run (default %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=100_000, help="end earlier after this many steps"
    )
    parser.add_argument("--batch", type=int, default=256, help="rows a step (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=4e-4, help="peak (default %(default)s)"
    )
    parser.add_argument("--weight-decay", type=float, default=0.05, help="default %(default)s")
    parser.add_argument(
        "--keep", type=int, default=26, help="of 64 patches, drawn a step (default %(default)s)"
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
    student = Student(load_backbone("pocket"))
    rows = Rows(a.work)
    if a.start:
        student.load(a.start)
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
    write_model(student, a.out)


if __name__ == "__main__":
    main()
