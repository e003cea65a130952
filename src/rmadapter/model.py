"""AdaptedCLIP: a frozen CLIP-like backbone with RMAdapter's adapters beside its upper blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import SIDES, Adapters, Side, loss_terms, token_mean
from rmadapter.backbones import Backbone
from rmadapter.encoders import Encoder, States
from rmadapter.errors import UserError
from rmadapter.prompts import CHUNK, class_weights, in_chunks, prompts_each, tokenize
from rmadapter.settings import AdapterSettings, LossSettings
from rmadapter.support.machine import seeded
from rmadapter.task import TEMPLATES

Tape: TypeAlias = list[
    tuple[int, Tensor]
]  # numbers of adapted blocks, and what their adapters read, [..., d]


class _Hook:
    """Adds the adapter's output to a block's output. An object, so that a deep copy of the model
    copies it too."""

    def __init__(
        self, model: AdaptedCLIP, side: str, block: int, tape: Tape | None, silent: bool
    ) -> None:
        self.model, self.side, self.block, self.tape, self.silent = model, side, block, tape, silent

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        silent = self.silent or self.model.alpha == 0
        if silent and self.tape is None:
            return output
        x = args[0]
        if self.model.adapters.norm == "block":
            x = self.model.encoders[self.side].norm(self.block, x)
        if self.tape is not None:
            self.tape.append((self.block, x))
        if silent:
            return output
        delta = self.model.adapters.delta(self.side, self.block, x)
        return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta


class AdaptedCLIP(nn.Module):
    """A frozen backbone and the adapters beside its blocks.

    seed: of the adapters' initialisation. alpha is a dial: 0 is the untouched backbone bit for bit,
    `settings.alpha` the trained model, anything between a mix. Raises UserError when the adapted
    blocks do not exist in the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: AdapterSettings | None = None,
        loss: LossSettings | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone.with_blocks("image", "text")
        self.settings, self.loss = settings or AdapterSettings(), loss or LossSettings()
        self.clip: Any = backbone.model
        self.encoders: dict[str, Encoder[Any]] = {"image": backbone.image, "text": backbone.text}
        sizes = [(encoder.width, encoder.depth) for encoder in self.encoders.values()]
        (widths, depths), s = zip(*sizes, strict=True), self.settings
        if max(s.first_block, s.last_block or 1) > max(depths):
            wanted = f"first_block={s.first_block}, last_block={s.last_block}"
            raise UserError(
                f"{wanted}: the encoders of {backbone.name} have {depths[0]} and {depths[1]} blocks"
            )
        reconstruct = [side for side in SIDES if getattr(self.loss, f"lambda_{side}_rec")]
        with seeded(seed):
            self.adapters = Adapters(widths, depths, **asdict(s), reconstruct=reconstruct)
        self.adapters.to(backbone.device)
        self.eval()

    # ---- attaching ----

    @contextmanager
    def attached(self, tape: Tape | None = None, silent: bool = False) -> Iterator[Any]:
        """In this context the backbone's own forward pass carries the adapters (Eq. 14, 15); yields
        the backbone.

        Afterwards the backbone is what it was, bit for bit, so that several models can share one.
        tape: collects the number of each adapted block, and what its adapter read. silent: the
        adapters read but add nothing.
        """
        handles = [
            encoder.blocks[block - 1].register_forward_hook(_Hook(self, side, block, tape, silent))
            for side, encoder in self.encoders.items()
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
        return self.backbone.device

    def first(self, side: str) -> int:
        """The lowest adapted block of an encoder, counted from 1; all below it is frozen."""
        return min(self.adapters.blocks(side))

    @property
    def alpha(self) -> float:
        return self.adapters.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not math.isfinite(value) or value < 0:
            raise UserError(f"alpha={value}: give 0, the untouched model, or more")
        self.adapters.alpha = float(value)

    # ---- features ----

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, e], by the backbone's own forward pass; not
        normalised."""
        with self.attached() as clip:
            return clip.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens [C, L] -> features [C, e], by the backbone's own forward pass; not normalised."""
        with self.attached() as clip:
            return clip.encode_text(tokens)

    def frozen(self, images: Tensor) -> States:
        """What the untouched image encoder makes of images [B, 3, H, W], up to the first adapted
        block."""
        return self.backbone.image.frozen(images, self.first("image"))

    def frozen_text(self, tokens: Tensor) -> list[States]:
        """The same for any number of prompts [C, L], in chunks of at most CHUNK."""
        return [
            self.backbone.text.frozen(chunk, self.first("text")) for chunk in tokens.split(CHUNK)
        ]

    def features(
        self, side: str, states: States, reconstruct: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Adapted features from frozen states, by the lean pass, and every adapter's reconstruction
        error per token ([B, L] or [T]) if asked for."""
        if self.alpha == 0 and not reconstruct and len(states.features):
            return states.features, []
        assert states.first is not None
        encoder, adapters, layout, x = self.encoders[side], self.adapters, states.layout, states.x
        normed, errors, below = adapters.norm == "block", [], None
        untouched = (
            self._untouched(side, states) if reconstruct and adapters.target == "frozen" else {}
        )
        for i in range(states.first, encoder.depth + 1):
            top = i == encoder.depth and encoder.reads_some(layout)
            n = encoder.norm(i, x) if normed or i > states.first else x
            y = encoder.step(i, x, n, layout, top) if i > states.first else states.y
            if adapter := adapters.at(side, i):
                source = n if normed else x
                if reconstruct and adapter.reconstructs:
                    target = below if adapters.target == "below" else untouched.get(i)
                    errors.append(adapters.reconstruction_error(side, i, source, target))
                y = y + adapters.delta(side, i, layout.read(source) if top else source)
                below = source
            x = y
        return encoder.head(x, layout), errors

    @torch.no_grad()
    def _untouched(self, side: str, states: States) -> dict[int, Tensor]:
        """What the adapter of each block would read if none added anything."""
        encoder, x, found = self.encoders[side], states.x, {}
        for i in self.adapters.blocks(side):
            n = encoder.norm(i, x)
            found[i] = n if self.adapters.norm == "block" else x
            if i < encoder.depth:
                x = states.y if i == states.first else encoder.step(i, x, n, states.layout)
        return found

    def class_weights(self, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Normalised class features [C, e] at the present alpha; differentiable with respect to the
        adapters."""
        some = list(in_chunks(names, templates))
        if len(some) == 1:
            return self._class_weights(names, templates)
        each = [
            checkpoint(self._class_weights, part, templates, use_reentrant=False) for part in some
        ]
        return torch.cat(each)

    def _class_weights(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        chunks = self.frozen_text(tokenize(self.backbone, names, templates))
        features = torch.cat([features for features, _ in self._text(chunks, False)])
        return class_weights(features, prompts_each(names, templates))

    def _text(
        self, chunks: Sequence[States], reconstruct: bool
    ) -> list[tuple[Tensor, list[Tensor]]]:
        """`features` of each chunk; if there are several, the gradient keeps only one at a time in
        memory."""
        if len(chunks) == 1:
            return [self.features("text", chunks[0], reconstruct)]
        return [
            checkpoint(self.features, "text", chunk, reconstruct, use_reentrant=False)
            for chunk in chunks
        ]

    # ---- training ----

    def forward(
        self, labels: Tensor, image: States, text: Sequence[States], templates: int = 1
    ) -> dict[str, Tensor]:
        """Loss terms of one batch (Eq. 18) by the lean pass, from labels [B], and states of images
        and prompts."""
        x, image_errors = self.features("image", image, reconstruct=True)
        parts = self._text(text, reconstruct=True)
        w, frozen = (
            torch.cat([part[0] for part in parts]),
            torch.cat([chunk.features for chunk in text]),
        )
        weight = torch.cat([chunk.layout.weight for chunk in text])
        text_errors = [
            torch.cat(errors) for errors in zip(*(part[1] for part in parts), strict=True)
        ]
        return self._terms(
            labels,
            (x, image.features, [token_mean(e) for e in image_errors]),
            (w, frozen, [token_mean(e, weight) for e in text_errors]),
            templates,
        )

    def reference(
        self,
        labels: Tensor,
        images: Tensor,
        tokens: Tensor,
        frozen: tuple[Tensor, Tensor],
        templates: int = 1,
    ) -> dict[str, Tensor]:
        """The same terms by the backbone's own forward pass with hooks, on whole sequences: the
        oracle of `forward`.

        images [B, 3, H, W], tokens [C, L], frozen: features of the untouched encoders for both.
        """
        x, image_errors = self._hooked("image", images)
        w, text_errors = self._hooked("text", tokens)
        real, _ = self.backbone.text.real_tokens(tokens)
        weight = (torch.arange(tokens.shape[1], device=tokens.device) < real[:, None]).float()
        return self._terms(
            labels,
            (x, frozen[0], [token_mean(e) for e in image_errors]),
            (w, frozen[1], [token_mean(e, weight) for e in text_errors]),
            templates,
        )

    def _hooked(self, side: str, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        tape: Tape = []
        untouched: Tape = []
        with self.attached(tape) as clip:
            features = getattr(clip, f"encode_{side}")(inputs)
        if self.adapters.target == "frozen":
            with torch.no_grad(), self.attached(untouched, silent=True) as clip:
                getattr(clip, f"encode_{side}")(inputs)
        read = [x for _, x in tape]
        targets: dict[str, list[Tensor | None]] = {
            "frozen": [x for _, x in untouched],
            "below": [None, *read[:-1]],
        }
        each = zip(tape, targets.get(self.adapters.target, [None] * len(tape)), strict=True)
        adapters = getattr(self.adapters, side)
        return features, [
            self.adapters.reconstruction_error(side, block, x, target)
            for (block, x), target in each
            if adapters[str(block)].reconstructs
        ]

    def _terms(
        self, labels: Tensor, image: tuple[Any, ...], text: tuple[Any, ...], templates: int
    ) -> dict[str, Tensor]:
        """image, text: adapted features, frozen features, reconstruction errors."""
        w, frozen = (class_weights(features, templates) for features in text[:2])
        s = self.loss
        return loss_terms(
            self.backbone.logit_scale,
            labels,
            Side(image[0], image[1], image[2], s.lambda_image_rec, s.lambda_image_con),
            Side(w, frozen, text[2], s.lambda_text_rec, s.lambda_text_con),
            s.consistency_unit,
        )
