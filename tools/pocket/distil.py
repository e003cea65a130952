"""Step 4: train blocks 9-12, the final norm and the image projection of `pocket`; writes the delta.

The text projection is put in closed form. Loss: KL divergence from the teacher's softmax over the 1000 class names, and
the cosine to the mixture of class texts that this softmax gives (ConSE, Norouzi et al. 2014); both targets are mixed
with the true label where there is one. The defaults are those of the shipped delta (28 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sources import FROZEN_BLOCKS, POOLS, SELECTION, TINY_HELD_OUT, imagenet_wnids, vision_source
from torch import Tensor, nn

WIDTH, DIMENSION, PATCHES, CLASSES = 384, 256, 64, 1000
# Sentences drawn for a class and step: the plain one twice as often, the bare synonym (8) never.
SENTENCES = (0, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10)
WARMUP = 60  # steps


def text_projection(names: Tensor, power: float = 0.5) -> Tensor:
    """[256, 384]: principal components of the class names, partly whitened, their mean direction removed."""
    x = F.normalize(names, dim=-1)
    mean = x.mean(0)
    direction = F.normalize(mean, dim=0)
    without_mean = torch.eye(x.shape[1]) - torch.outer(direction, direction)
    centred = (x - mean) @ without_mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0)[:DIMENSION], vectors.flip(1)[:, :DIMENSION]
    scale = (values / values[0]).clamp(min=1e-4) ** (-power / 2)
    return ((vectors * scale).T @ without_mean).contiguous()


class Student(nn.Module):
    """The trained end of the image encoder, and the frozen text projection."""

    def __init__(self, vision: Any, projection: Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(vision.blocks[FROZEN_BLOCKS:]).requires_grad_(True)
        self.norm = vision.norm.requires_grad_(True)
        self.proj = nn.Linear(WIDTH, DIMENSION, bias=False)
        nn.init.normal_(self.proj.weight, std=WIDTH**-0.5)
        self.text_proj = nn.Parameter(projection, requires_grad=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(15.0)))

    def image(self, x: Tensor) -> Tensor:
        """Token states [N, 1 + patches, 384] -> unit features [N, 256] of the class token."""
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.proj(self.norm(x)[:, 0]).float(), dim=-1)

    def text(self, embeddings: Tensor) -> Tensor:
        return F.normalize(F.linear(embeddings, self.text_proj), dim=-1)

    def delta(self) -> dict[str, Tensor]:
        """float16 tensors under open_clip's names."""
        names = {
            "proj.weight": "visual.head.proj.weight",
            "text_proj": "text.proj.weight",
            "logit_scale": "logit_scale",
        }
        result = {}
        for name, tensor in self.state_dict().items():
            if name.startswith("blocks."):
                _, number, rest = name.split(".", 2)
                name = f"visual.trunk.blocks.{int(number) + FROZEN_BLOCKS}.{rest}"
            elif name.startswith("norm."):
                name = f"visual.trunk.{name}"
            result[names.get(name, name)] = tensor.half().contiguous()
        return result


class Rows:
    """The cached images: states, logits, labels, and which are for training and which for selection."""

    def __init__(self, work: Path) -> None:
        number = min(int((work / f"{kind}.done").read_text()) for kind in ("student", "teacher"))
        order = np.load(work / "order.npy")[:number]
        self.states = np.load(work / "student.npy", mmap_mode="r")
        self.logits = np.load(work / "teacher.npy", mmap_mode="r")
        labels = [np.load(work / f"{pool}_labels.npy") for pool in POOLS]
        self.label = np.array([labels[pool][row] for pool, row in order])  # in the pool's own classes
        self.known = np.full(number, -1)  # in the teacher's classes, where the label may be used
        wnids = imagenet_wnids()
        tiny_wnids = np.array([wnids.index(wnid) for wnid in json.loads((work / "tiny_classes.json").read_text())])
        tiny, imagenet = (order[:, 0] == POOLS.index(pool) for pool in ("tiny", "imagenet"))
        self.known[tiny] = tiny_wnids[self.label[tiny]]
        self.known[imagenet] = self.label[imagenet]
        held_out = TINY_HELD_OUT * len(tiny_wnids)
        rng = np.random.default_rng(3)
        self.selection = {"tiny": np.arange(held_out)}
        for pool, most in SELECTION.items():
            of_pool = np.flatnonzero(order[:, 0] == POOLS.index(pool))
            drawn = rng.choice(of_pool, min(most, len(of_pool) // 2), replace=False)
            self.selection[pool] = np.sort(drawn)
        self.train = np.setdiff1d(np.arange(held_out, number), np.concatenate(list(self.selection.values())))

    def tokens(self, rows: np.ndarray, keep: np.ndarray | None = None) -> Tensor:
        states = self.states[rows] if keep is None else self.states[rows][:, keep]
        return torch.from_numpy(states).float()


@torch.no_grad()
def selection_scores(student: Student, rows: Rows, texts: dict[str, Tensor], batch: int = 250) -> dict[str, float]:
    """Zero-shot accuracy in percent on the held-out images."""
    scores = {}
    for pool, chosen in rows.selection.items():
        classes, hits = student.text(texts[pool]), 0
        for part in np.split(chosen, range(batch, len(chosen), batch)):
            with torch.autocast("cpu", torch.bfloat16):
                features = student.image(rows.tokens(part))
            hits += int((features @ classes.T).argmax(1).eq(torch.from_numpy(rows.label[part])).sum())
        scores[pool] = round(hits / len(chosen) * 100, 1)
    return scores


def loss_terms(
    student: Student, features: Tensor, texts: Tensor, basis: Tensor, logits: Tensor, known: Tensor, label_weight: float
) -> tuple[Tensor, Tensor]:
    """KL divergence and cosine distance, each averaged over the batch.

    features [N, 256], texts [1000, 384], basis [1000, 256], teacher's logits [N, 1000], known labels [N] (-1: none).
    """
    weight = (known >= 0).float()[:, None] * label_weight
    truth = F.one_hot(known.clamp(min=0), CLASSES).float()
    target = (1 - weight) * logits.softmax(-1) + weight * truth
    mixture = (1 - weight) * (logits / 2).softmax(-1) + weight * truth
    scale = student.logit_scale.exp().clamp(max=100)
    predicted = (scale * features @ student.text(texts).T).log_softmax(-1)
    kl = (target * (target.clamp(min=1e-8).log() - predicted)).sum(1).mean()
    cosine = 1 - (features * F.normalize(mixture @ basis, dim=-1)).sum(1).mean()
    return kl, cosine


def make_optimizer(student: Student, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Matrices of the blocks decay; the new projection and the scale learn twice as fast."""
    new = [student.proj.weight, student.logit_scale]
    old = [*student.blocks.parameters(), *student.norm.parameters()]
    groups = [
        {"params": [p for p in old if p.ndim > 1], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in old if p.ndim == 1], "lr": learning_rate, "weight_decay": 0.0},
        {"params": new, "lr": 2 * learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def train(
    student: Student, rows: Rows, embeddings: Tensor, selection: dict[str, Tensor], a: argparse.Namespace
) -> None:
    """`embeddings` [1000, 11, 384]. The clock drives the schedule, so that a run ends when it was told to."""
    rng = np.random.default_rng(a.seed)
    basis = F.normalize(embeddings[:, 0], dim=-1) @ student.text_proj.T
    optimizer = make_optimizer(student, a.learning_rate, a.weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    order, position, step, progress, start = rng.permutation(rows.train), 0, 0, 0.0, time.monotonic()
    while progress < 1:
        progress = max(step / a.steps, (time.monotonic() - start) / 60 / a.minutes)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * min(1, progress)))
        if position + a.batch > len(order):
            order, position = rng.permutation(rows.train), 0
        batch = np.sort(order[position : position + a.batch])
        position += a.batch
        keep = None  # all patches towards the end, a random part before
        if progress <= 1 - a.whole:
            keep = np.concatenate([[0], 1 + np.sort(rng.choice(PATCHES, a.keep, replace=False))])
        with torch.autocast("cpu", torch.bfloat16):
            features = student.image(rows.tokens(batch, keep))
        texts = embeddings[torch.arange(CLASSES), torch.from_numpy(rng.choice(SENTENCES, CLASSES))]
        logits, known = torch.from_numpy(rows.logits[batch]).float(), torch.from_numpy(rows.known[batch])
        kl, cosine = loss_terms(student, features, texts, basis, logits, known, a.label)
        optimizer.zero_grad()
        (kl + a.cosine * cosine).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"{step} ({progress:.0%}) kl {kl:.3f} cosine {cosine:.3f}", flush=True)
        if step % 400 == 0:
            print("   selection", selection_scores(student, rows, selection), flush=True)
    print(f"{step} steps, {step * a.batch / len(rows.train):.2f} epochs, {time.monotonic() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 1 to 3")
    parser.add_argument("--out", type=Path, required=True, help="the delta, as .safetensors")
    parser.add_argument("--minutes", type=float, default=28.0, help="length of the run (default %(default)s)")
    parser.add_argument("--steps", type=int, default=100_000, help="end earlier after this many steps")
    parser.add_argument("--batch", type=int, default=256, help="images a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="peak (default %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="default %(default)s")
    parser.add_argument("--keep", type=int, default=24, help="of 64 patches, drawn a step (default %(default)s)")
    parser.add_argument("--whole", type=float, default=0.12, help="part of the time with all patches, at the end")
    parser.add_argument("--label", type=float, default=0.5, help="weight of a true label (default %(default)s)")
    parser.add_argument("--cosine", type=float, default=4.0, help="weight of the cosine term (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    embeddings = torch.from_numpy(np.load(arguments.work / "class_texts.npy"))
    selection = {pool: torch.from_numpy(np.load(arguments.work / f"{pool}_texts.npy")) for pool in ("tiny", *SELECTION)}
    rows = Rows(arguments.work)
    student = Student(vision_source(arguments.work), text_projection(embeddings[:, 0]))
    print(len(rows.train), "rows to train on", flush=True)
    train(student, rows, embeddings, selection, arguments)
    print("selection", selection_scores(student, rows, selection))
    save_file(student.delta(), arguments.out)
    print(arguments.out, len(student.delta()), "tensors")


if __name__ == "__main__":
    main()
