"""Adapters whose down-projection or reconstruction branch is prepared before training, for R3 of
research/studies/registration.md: can the mechanism that the paper describes work at all?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rmadapter.adapter import SIDES, DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.model import AdaptedCLIP, Tape
from rmadapter.prompts import tokenize
from rmadapter.support.machine import seeded
from rmadapter.training.contract import Fitted, Known, Method, Parameters, Shots

TOKENS, BATCH, RATE = 4096, 256, 1e-3  # of an adapter; of a step; Adam's
IMAGES = 64  # whose tokens are read


@dataclass(frozen=True)
class Prepared(Method):
    """RMAdapter with prepared adapters.

    principal: the down-projection starts at the first principal directions of what the adapter
    reads on the shots. steps: for which reconstruction alone is trained first, while the adapters
    add nothing.
    """

    inner: RMAdapter
    principal: bool = False
    steps: int = 0
    title: str = "RMAdapter, prepared"
    source: str = "a control of this study"

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        model = self.inner.model(backbone, shots.seed)
        with seeded(shots.seed):
            for adapter, tokens in read_by_adapters(model, shots):
                if self.principal:
                    start_at_principal_directions(adapter, tokens)
                train_branch(adapter, tokens, self.steps)
        return self.inner.train(model, shots)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        return self.inner.restore(backbone, known, tensors)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return self.inner.parameters(backbone, classes, shots)


@torch.no_grad()
def read_by_adapters(model: AdaptedCLIP, shots: Shots) -> list[tuple[DualBranchAdapter, Tensor]]:
    """Return each adapter with tokens [N, d] that it reads before training: of images and prompts
    of the shots."""
    rows = torch.randperm(len(shots.images))[:IMAGES]
    inputs = {
        "image": shots.pixels(rows, 0, model.first("image")),
        "text": tokenize(model.backbone, shots.classes, shots.templates),
    }
    found = []
    for side in SIDES:
        tape: Tape = []
        with model.attached(tape, silent=True) as clip:
            getattr(clip, f"encode_{side}")(inputs[side])
        real = None
        if side == "text":
            counts, _ = model.backbone.text.real_tokens(inputs["text"])
            real = torch.arange(inputs["text"].shape[1]) < counts[:, None]
        for block, x in tape:
            tokens = x.flatten(0, 1) if real is None else x[real]
            kept = torch.randperm(len(tokens))[:TOKENS]
            adapter = model.adapters.at(side, block)
            assert adapter is not None
            found.append((adapter, tokens[kept].clone()))
    return found


@torch.no_grad()
def start_at_principal_directions(adapter: DualBranchAdapter, tokens: Tensor) -> None:
    """Point the down-projection at the first r principal directions of the tokens [N, d], with
    outputs of mean 0 and with its rows as long as they were."""
    mean = tokens.double().mean(0)
    centred = tokens.double() - mean
    directions = torch.linalg.eigh(centred.T @ centred)[1][:, -len(adapter.down.weight) :].T
    length = adapter.down.weight.norm(dim=1).mean()
    weight = directions.to(length) * length
    adapter.down.weight.copy_(weight)
    adapter.down.bias.copy_(-weight @ mean.to(weight))


def train_branch(adapter: DualBranchAdapter, tokens: Tensor, steps: int) -> None:
    """Train down-projection and reconstruction branch to reconstruct the tokens [N, d]."""
    parameters = [*adapter.down.parameters(), *adapter.reconstruction_parameters()]
    optimizer = torch.optim.Adam(parameters, RATE)
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (BATCH,))]
        optimizer.zero_grad()
        adapter.reconstruction_error(batch).mean().backward()
        optimizer.step()
