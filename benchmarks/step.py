"""A training step of one batch, by the lean or the reference forward pass, from inputs made as
training makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import class_names, held, peak_beyond
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import Side, loss_terms, token_mean
from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods import load_method
from rmadapter.prompts import class_weights, tokenize
from rmadapter.task import TEMPLATES

VARIANTS = ("lean", "reference")
MIXED = "mixed"  # the lean pass in bfloat16, as training has it


class Step:
    """A training step on images of noise, whose pixel values do not change the work. All adapter
    weights start random, so that every gradient can be compared, and the learning rate is too small
    to move them.

    chunk: prompts that the reference encodes at once, each chunk again in the backward pass; 0 for
    all, once. fields: settings of the method.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        batch: int = 16,
        seed: int = 0,
        chunk: int = 0,
        **fields: Any,
    ) -> None:
        method: Any = load_method("rmadapter", {"init": "kaiming", "learning_rate": 1e-9, **fields})
        self.model = method.model(backbone, seed).train()
        self.chunk = chunk
        self.recipe = method.recipe
        self.optimizer = self.recipe.make(self.model.adapters.parameters())
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(
            batch, 3, backbone.image_size, backbone.image_size, generator=generator
        )
        self.labels = torch.randint(classes, (batch,), generator=generator)
        self.tokens = tokenize(backbone, class_names(classes, seed), TEMPLATES)
        self._kept: dict[str, Any] = {}

    def frozen(self) -> tuple[States, States]:
        """Compute the frozen states of images and prompts once."""
        if "frozen" not in self._kept:
            (text,) = self.model.frozen_text(self.tokens)
            self._kept["frozen"] = self.model.frozen(self.images), text
        return self._kept["frozen"]

    def untouched(self) -> tuple[Tensor, Tensor]:
        """Compute the features of images and prompts once."""
        if "untouched" not in self._kept:
            backbone = self.model.backbone
            text = torch.cat(
                [backbone.text.frozen(part).features for part in self.tokens.split(256)]
            )
            self._kept["untouched"] = backbone.image.frozen(self.images).features, text
        return self._kept["untouched"]

    def prepare(self, variant: str) -> None:
        """Compute what training computes once."""
        self.untouched() if variant == "reference" else self.frozen()

    def loss(self, variant: str) -> Tensor:
        """Run the forward pass alone."""
        if variant != "reference":
            image, text = self.frozen()
            with torch.autocast("cpu", torch.bfloat16, enabled=variant == MIXED):
                return self.model(self.labels, image, [text])["loss"]
        if self.chunk:
            return self._reference_in_chunks()
        return self.model.reference(self.labels, self.images, self.tokens, self.untouched())["loss"]

    def _reference_in_chunks(self) -> Tensor:
        """Compute `AdaptedCLIP.reference` with only a chunk of the prompts in memory at once."""
        parts = [
            checkpoint(self._encode, "text", part, use_reentrant=False)
            for part in self.tokens.split(self.chunk)
        ]
        features = torch.cat([part[0] for part in parts])
        errors = [torch.cat(e) for e in zip(*(p[1] for p in parts), strict=True)]
        real, _ = self.model.backbone.text.real_tokens(self.tokens)
        weight = (torch.arange(self.tokens.shape[1]) < real[:, None]).float()
        image, of_image = self._encode("image", self.images)
        (x, w), s = self.untouched(), self.model.loss
        image_errors = [token_mean(e) for e in of_image]
        text_errors = [token_mean(e, weight) for e in errors]
        weights = class_weights(features)
        untouched = class_weights(w)
        sides = (
            Side(image, x, image_errors, s.lambda_image_rec, s.lambda_image_con),
            Side(weights, untouched, text_errors, s.lambda_text_rec, s.lambda_text_con),
        )
        scale = self.model.backbone.logit_scale
        return loss_terms(scale, self.labels, *sides, s.consistency_unit)["loss"]

    def _encode(self, side: str, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute adapted features by the backbone's own forward, and the reconstruction errors of
        every token."""
        tape: list[tuple[int, Tensor]] = []
        with self.model.attached(tape) as clip:
            features = clip.encode_image(inputs) if side == "image" else clip.encode_text(inputs)
        adapters = getattr(self.model.adapters, side)
        read = [(block, x) for block, x in tape if adapters[str(block)].reconstructs]
        return features, [
            self.model.adapters.reconstruction_error(side, block, x) for block, x in read
        ]

    def run(self, variant: str) -> Callable[[], None]:
        """Do a whole step: forward, backward, optimizer."""

        def step() -> None:
            self.optimizer.zero_grad()
            self.loss(variant).backward()
            self.optimizer.step()

        return step

    def gradients(self, variant: str) -> dict[str, Tensor]:
        """Return the gradient of every adapter parameter."""
        self.model.zero_grad()
        self.loss(variant).backward()
        return {
            n: p.grad.clone()
            for n, p in self.model.adapters.named_parameters()
            if p.grad is not None
        }

    def peak(self, variant: str) -> float | None:
        """Return the MB that one step needs beyond the model, its frozen activations or features
        included."""
        before = held()
        self.prepare(variant)
        return peak_beyond(before, self.run(variant))
