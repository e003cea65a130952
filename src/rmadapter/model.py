"""AdaptedCLIP: a frozen CLIP-like backbone with RMAdapter's adapters beside its upper blocks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import Adapters, class_weights, loss_terms, token_mean
from rmadapter.backbone import Backbone
from rmadapter.blocks import first_norm
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.towers import States, towers

CHUNK = 1024  # prompts encoded at once; more are encoded in turn, and again when their gradient is needed


class _Hook:
    """Adds the adapter's output to a block's output. An object, so that a deep copy of the model copies it too."""

    def __init__(self, model: AdaptedCLIP, side: str, block: int) -> None:
        self.model, self.side, self.block = model, side, block

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.model.alpha == 0:
            return output
        x = args[0] if self.model.config.norm == "none" else first_norm(module)(args[0])
        if self.model._tape is not None:
            self.model._tape.append((self.block, x))
        delta = self.model.adapters.delta(self.side, self.block, x)
        return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta


class AdaptedCLIP(nn.Module):
    """A frozen backbone and the adapters beside its blocks.

    alpha is a dial: 0 is the untouched backbone bit for bit, `config.alpha` the trained model, anything between a mix.
    Raises UserError when the configured blocks do not exist in the backbone.
    """

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.clip: Any = backbone.model
        image, text = towers(backbone.model)
        deepest = max(image.depth, text.depth)
        if max(config.first_block, config.last_block or 1) > deepest:
            wanted = f"first_block={config.first_block}, last_block={config.last_block}"
            raise UserError(f"{wanted}: the encoders of {backbone.name} have {image.depth} and {text.depth} blocks")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adapters = Adapters(config, (image.width, text.width), (image.depth, text.depth))
        self.towers: dict[str, Any] = {"image": image, "text": text}
        for side, tower in self.towers.items():
            tower.first = min(self.adapters.blocks(side))
        self._tape: list[tuple[int, Tensor]] | None = None
        self._weights: dict[Any, Tensor] = {}
        self.eval()

    # ---- attaching ----

    @contextmanager
    def attached(self) -> Iterator[Any]:
        """Within this block the backbone's own forward pass carries the adapters (Eq. 14, 15); yields the backbone.

        Afterwards the backbone is what it was, bit for bit, so that several models can share one.
        """
        handles = [
            tower.modules[block - 1].register_forward_hook(_Hook(self, side, block))
            for side, tower in self.towers.items()
            for block in self.adapters.blocks(side)
        ]
        try:
            yield self.clip
        finally:
            for handle in handles:
                handle.remove()

    def train(self, mode: bool = True) -> AdaptedCLIP:
        """Training mode of the adapters; the frozen backbone stays in evaluation mode (no dropout)."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def device(self) -> torch.device:
        return next(self.adapters.parameters()).device

    @property
    def alpha(self) -> float:
        return self.adapters.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not math.isfinite(value) or value < 0:
            raise UserError(f"alpha={value}: give a number from 0, the untouched model, upwards")
        self.adapters.alpha = float(value)

    @contextmanager
    def dial(self, alpha: float) -> Iterator[None]:
        """Another alpha for a while; `with model.dial(0):` is the untouched backbone."""
        before, self.alpha = self.alpha, alpha
        try:
            yield
        finally:
            self.alpha = before

    # ---- features ----

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, e], by the backbone's own forward pass; not normalised."""
        with self.attached() as clip:
            return clip.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens [C, L] -> features [C, e], by the backbone's own forward pass; not normalised."""
        with self.attached() as clip:
            return clip.encode_text(tokens)

    def frozen(self, side: str, inputs: Tensor) -> States:
        """What the untouched encoder makes of images [B, 3, H, W] or tokens [C, L], up to the first adapted block."""
        return self.towers[side].frozen(inputs)

    def frozen_text(self, tokens: Tensor) -> list[States]:
        """`frozen` of any number of prompts [C, L], in chunks of at most CHUNK."""
        return [self.frozen("text", chunk) for chunk in tokens.split(CHUNK)]

    def features(self, side: str, states: States, reconstruct: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Adapted features from frozen states, and every adapter's reconstruction error per token if asked for."""
        if self.alpha == 0 and not reconstruct:
            return states.features, []
        return self.towers[side].run(states, self.adapters, reconstruct, self.config.norm)

    def prompts(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Tokens [templates * C, L] of all prompts, template by template."""
        templates = templates or self.config.templates
        return self.backbone.tokenizer([t.format(name) for t in templates for name in names]).to(self.device)

    @torch.no_grad()
    def class_weights(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Normalised class features [C, e] at the present alpha; cached until an adapter or alpha changes."""
        if not names:
            raise UserError("no class names given: name at least one class")
        templates = tuple(templates or self.config.templates)
        key = (tuple(names), templates, self.alpha, self._fingerprint())
        if key not in self._weights:
            chunks = self.frozen_text(self.prompts(names, templates))
            features = torch.cat([self.features("text", chunk)[0] for chunk in chunks])
            self._weights = {k: w for k, w in self._weights.items() if k[-1] == key[-1]}
            self._weights[key] = class_weights(features.float(), len(templates))
        return self._weights[key]

    def _fingerprint(self) -> str:
        """Changes whenever any adapter does, however it was written to."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.adapters.parameters()])
        return hashlib.sha256(flat.cpu().numpy().tobytes()).hexdigest()

    def logits(self, features: Tensor, weights: Tensor) -> Tensor:
        """Cosine similarity over temperature, image features [B, e] and class weights [C, e] -> [B, C]."""
        return self.clip.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ weights.T

    @torch.no_grad()
    def novelty(self, images: Tensor) -> Tensor:
        """Reconstruction error of images [B, 3, H, W], summed over adapters, -> [B]; high: unlike training."""
        _, errors = self.features("image", self.frozen("image", images), reconstruct=True)
        return image_error(errors, len(images)).to(images.device)

    # ---- training ----

    def forward(
        self, labels: Tensor, image: States, text: States | Sequence[States], templates: int = 1
    ) -> dict[str, Tensor]:
        """Loss terms of one batch (Eq. 18) by the lean forward pass, from labels [B] and frozen states.

        text: all prompts at once, or chunks of them: of several, one at a time is kept for the gradient.
        """
        chunks = [text] if isinstance(text, States) else text
        x, image_errors = self.features("image", image, reconstruct=True)
        if len(chunks) == 1:
            parts = [self.features("text", chunks[0], reconstruct=True)]
        else:
            parts = [checkpoint(self.features, "text", c, reconstruct=True, use_reentrant=False) for c in chunks]
        w, frozen = torch.cat([part[0] for part in parts]), torch.cat([chunk.features for chunk in chunks])
        weight = torch.cat([cast(Tensor, chunk.layout.weight) for chunk in chunks])
        text_errors = [torch.cat(errors) for errors in zip(*(part[1] for part in parts), strict=True)]
        return loss_terms(
            self.adapters,
            self.clip.logit_scale.exp(),
            labels,
            (x, image.features, [token_mean(e) for e in image_errors]),
            (
                class_weights(w, templates),
                class_weights(frozen, templates),
                [token_mean(e, weight) for e in text_errors],
            ),
        )

    def reference(
        self, labels: Tensor, images: Tensor, tokens: Tensor, frozen: tuple[Tensor, Tensor], templates: int = 1
    ) -> dict[str, Tensor]:
        """The same terms by the backbone's own forward pass with hooks, on whole sequences: the oracle of `forward`.

        images [B, 3, H, W], tokens [C, L], frozen: features of the untouched encoders for both.
        """
        x, image_errors = self._hooked("image", images)
        w, text_errors = self._hooked("text", tokens)
        real, _ = self.towers["text"].real_tokens(tokens)
        weight = (torch.arange(tokens.shape[1], device=tokens.device) < real[:, None]).float()
        return loss_terms(
            self.adapters,
            self.clip.logit_scale.exp(),
            labels,
            (x, frozen[0], [token_mean(e) for e in image_errors]),
            (
                class_weights(w, templates),
                class_weights(frozen[1], templates),
                [token_mean(e, weight) for e in text_errors],
            ),
        )

    def _hooked(self, side: str, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        self._tape = []
        try:
            features = self.encode_image(inputs) if side == "image" else self.encode_text(inputs)
            tape = self._tape
        finally:
            self._tape = None
        reconstructs = [(block, x) for block, x in tape if getattr(self.adapters, side)[str(block)].reconstructs]
        return features, [self.adapters.reconstruction_error(side, block, x) for block, x in reconstructs]


def image_error(errors: Sequence[Tensor], count: int) -> Tensor:
    """Errors per token [B, L] of every adapter -> their sum per image [B]; NaN without a reconstruction branch."""
    if not errors:
        return torch.full((count,), float("nan"))
    return torch.stack([error.mean(-1) for error in errors]).sum(0)
