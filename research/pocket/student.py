"""The part of `pocket` that is trained, the loss, and the way back to a model that open_clip can
read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from states import FROZEN_BLOCKS
from torch import Tensor, nn

from rmadapter.backbones import Backbone

SHARPNESS = 20  # of the softmax over texts near a label
OWN_TEXTS = 0.7  # of a target over all texts, what is the label's own
NAMED, DRAWN = 0.7, 1.4  # weight of that loss for rows with a target over class names, and without
TRUTH = 0.5  # of a target over class names, where both teacher and label are known
CONSE = 0.75  # of the direction that features are drawn to, what the class names give
COSINE = 3.0  # weight of that loss
KEPT = 2.0  # weight of the loss that keeps the untouched class token readable
MIX = 0.5  # of the weights at the start, what those of `pocket` are; the others are untouched


class Student(nn.Module):
    """The end of the image encoder, the projection and the scale, and the frozen text projection.

    They start between the untouched encoder and `pocket` (WiSE-FT, Wortsman et al., CVPR 2022):
    blocks and norm are MIX of the latter's. The projection is that of `pocket`, with rows for what
    it leaves out: features [N, 384] are aligned with texts in their first 256 numbers.

    Args:
        pocket: The backbone `pocket`.
        untouched: Tensors of the image encoder in the wheel (`read_vision`).
        mix: From 0 (untouched) to 1 (`pocket`).
    """

    def __init__(self, pocket: Backbone, untouched: dict[str, Tensor], mix: float = MIX) -> None:
        super().__init__()
        model: Any = pocket.model
        trunk = model.visual.trunk
        self.blocks = copy.deepcopy(trunk.blocks[FROZEN_BLOCKS:])
        self.norm = copy.deepcopy(trunk.norm)
        self._mix_in(untouched, mix)
        aligned = model.visual.head.proj.weight.detach()
        self.proj = nn.Linear(aligned.shape[1], aligned.shape[1], bias=False)
        rest = torch.linalg.svd(aligned)[2][len(aligned) :]
        self.proj.weight.data = torch.cat([aligned, rest])
        self.logit_scale = nn.Parameter(model.logit_scale.detach().clone())
        self.requires_grad_(True)
        self.text_proj: Tensor = model.text.proj.weight.detach().clone()

    @torch.no_grad()
    def _mix_in(self, untouched: dict[str, Tensor], mix: float) -> None:
        for place, part in (("blocks", self.blocks), ("norm", self.norm)):
            for name, tensor in part.state_dict().items():
                tensor.lerp_(untouched[f"visual.trunk.{place}.{name}"], 1 - mix)

    def whole(self, x: Tensor) -> Tensor:
        """Convert token states [N, 1 + patches, 384] -> features [N, 384] of the class token."""
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x)[:, 0]).float()

    def aligned(self, features: Tensor) -> Tensor:
        """Return the unit part of features that texts are compared with, [N, 256]."""
        return F.normalize(features[:, : len(self.text_proj)], dim=-1)

    def text(self, states: Tensor) -> Tensor:
        """Convert MiniLM's states [..., 384] -> unit features [..., 256]."""
        return F.normalize(F.linear(states, self.text_proj), dim=-1)

    @property
    def scale(self) -> Tensor:
        return self.logit_scale.exp().clamp(max=100)

    def delta(self) -> dict[str, Tensor]:
        """Return what is stored: float16 tensors under open_clip's names."""
        more = torch.zeros(len(self.proj.weight) - len(self.text_proj), self.text_proj.shape[1])
        tensors = {
            "text.proj.weight": torch.cat([self.text_proj, more]),
            "visual.head.proj.weight": self.proj.weight,
            "logit_scale": self.logit_scale,
        }
        tensors |= {
            f"visual.trunk.norm.{name}": tensor for name, tensor in self.norm.state_dict().items()
        }
        for number, block in enumerate(self.blocks, FROZEN_BLOCKS):
            tensors |= {
                f"visual.trunk.blocks.{number}.{name}": tensor
                for name, tensor in block.state_dict().items()
            }
        return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


class Texts(NamedTuple):
    """All texts under every template [6, T, 256]; for each label its texts and their weights [L,
    K], padded with 0."""

    features: Tensor
    members: Tensor
    weights: Tensor
    words: Tensor  # those that are no sentences

    @classmethod
    def of(
        cls, student: Student, states: Tensor, labels: list[dict[str, Any]], alone: Tensor
    ) -> Texts:
        most = max(len(label["texts"]) for label in labels)
        members = torch.zeros(len(labels), most, dtype=torch.long)
        weights = torch.zeros(len(labels), most)
        for row, label in enumerate(labels):
            for column, (text, weight) in enumerate(label["texts"]):
                members[row, column], weights[row, column] = text, weight
        features = torch.stack([student.text(of_template.float()) for of_template in states])
        return cls(features, members, weights, torch.nonzero(~alone)[:, 0])

    def direction(self, template: int, labels: Tensor) -> Tensor:
        """Return unit features of labels: [N] -> [N, 256]."""
        mixed = self.features[template][self.members[labels]] * self.weights[labels][..., None]
        return F.normalize(mixed.sum(1), dim=-1)

    def heaviest(self, labels: Tensor) -> Tensor:
        """Return the text of each label that weighs most, [N]."""
        return self.members[labels, self.weights[labels].argmax(1)]


class Targets(NamedTuple):
    """What is known of N rows. place: in the 1000 classes, or -1. taught: whether the teacher's
    logits are there."""

    labels: Tensor
    place: Tensor
    logits: Tensor
    taught: Tensor
    drawing: Tensor

    @property
    def named(self) -> Tensor:
        """Return which rows have a target over the class names, [N] bool."""
        return (self.taught | (self.place >= 0)) & ~self.drawing

    def over_classes(self, temperature: float = 1.0) -> Tensor:
        """Return [N, 1000]: the teacher's softmax mixed with the truth; the truth alone where there
        is no teacher."""
        truth = torch.where(self.place >= 0, torch.where(self.taught, TRUTH, 1.0), 0.0)[:, None]
        one = F.one_hot(self.place.clamp(min=0), self.logits.shape[1]).float()
        return (1 - truth) * (self.logits / temperature).softmax(-1) + truth * one


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Compute KL(target || softmax(logits)), [N]."""
    return (target * (target.clamp(min=1e-8).log() - logits.log_softmax(-1))).sum(1)


def loss_terms(
    student: Student,
    features: Tensor,
    targets: Targets,
    texts: Texts,
    classes: Tensor,
    basis: Tensor,
    others: Tensor,
    template: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the KL over class names, the KL over texts, and distance to the label's direction;
    each a mean over rows.

    features [N, 256]; classes [1000, 256] of a prompt; basis [1000, 256]: ConSE's vectors; others:
    texts [M] beside those of the batch's labels; template: the one under which texts are taken.
    """
    scale, named = student.scale, targets.named
    over_classes = divergence(targets.over_classes(), scale * features @ classes.T)

    members, weights = texts.members[targets.labels], texts.weights[targets.labels]
    candidates = torch.unique(torch.cat([members.flatten(), others]))
    rivals = texts.features[template][candidates]
    direction = texts.direction(template, targets.labels)
    own = torch.zeros(len(features), len(candidates))
    own.scatter_add_(1, torch.searchsorted(candidates, members), weights)
    target = OWN_TEXTS * own + (1 - OWN_TEXTS) * (SHARPNESS * direction @ rivals.T).softmax(-1)
    over_texts = divergence(target, scale * features @ rivals.T) * torch.where(named, NAMED, DRAWN)

    conse = F.normalize(targets.over_classes(temperature=2) @ basis, dim=-1)
    mixed = F.normalize(CONSE * conse + (1 - CONSE) * direction, dim=-1)
    distance = 1 - (features * torch.where(named[:, None], mixed, direction)).sum(1)
    return (over_classes * named).mean(), over_texts.mean(), distance.mean()


def write_delta(student: Student, out: Path) -> None:
    """Write the file that `Pocket.delta` names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(student.delta(), out)
