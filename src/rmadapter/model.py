"""AdaptedCLIP: a frozen CLIP-like backbone with RMAdapter's adapters beside its upper blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rmadapter.adapter import SIDES, Adapters, Side, loss_terms, token_mean
from rmadapter.backbones import Backbone
from rmadapter.encoders import EitherEncoder, OpenClip, States
from rmadapter.errors import UserError
from rmadapter.prompts import (
    class_weights,
    frozen_chunks,
    in_chunks,
    one_at_a_time,
    prompts_each,
    tokenize,
)
from rmadapter.settings import AdapterSettings, LossSettings
from rmadapter.support.machine import seeded
from rmadapter.task import TEMPLATES

# Numbers of adapted blocks, and what their reconstruction branches read, [..., d].
Tape: TypeAlias = list[tuple[int, Tensor]]

# Adapted features, frozen features, reconstruction errors.
Encoded: TypeAlias = tuple[Tensor, Tensor, list[Tensor]]

Output: TypeAlias = "Tensor | tuple[Tensor, ...]"  # of a block


class _Hook:
    """A hook that adds the adapter's output to a block's output; an object, so that a deep copy of
    the model copies it too."""

    def __init__(
        self, model: AdaptedCLIP, side: str, block: int, tape: Tape | None, silent: bool
    ) -> None:
        self.model, self.side, self.block, self.tape, self.silent = model, side, block, tape, silent

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Output:
        adapters, silent = self.model.adapters, self.silent or self.model.alpha == 0
        if silent and self.tape is None:
            return output
        x = self._as_read(args[0])
        tokens = plain = output[0] if isinstance(output, tuple) else output
        if not silent:
            tokens = tokens + adapters.delta(self.side, self.block, x)
        if self.tape is not None:
            read = x
            if adapters.of_output:
                read = self._as_read(adapters.leaving(self.side, self.block, x, plain, tokens))
            self.tape.append((self.block, read))
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    def _as_read(self, x: Tensor) -> Tensor:
        """Return tokens as an adapter of this block reads them."""
        if self.model.adapters.norm == "none":
            return x
        return self.model.encoders[self.side].norm(self.block, x)


class AdaptedCLIP(nn.Module):
    """A frozen backbone and the adapters beside its upper blocks.

    `alpha` may be changed at any time: 0 is the untouched backbone bit for bit, `settings.alpha`
    the trained model, anything between a mix.

    Args:
        backbone: Backbone whose encoders have known blocks.
        settings: Settings of the adapters.
        loss: Settings of the loss; they decide which adapters have a reconstruction branch.
        seed: Seed of the adapters' initialisation.

    Raises:
        UserError: The adapted blocks do not exist in the backbone.

    Example:
        >>> import torch
        >>> from rmadapter import AdaptedCLIP, AdapterSettings, load_backbone
        >>> model = AdaptedCLIP(load_backbone("tiny"), AdapterSettings(first_block=3, rank=4))
        >>> model.class_weights(["cat", "dog"]).shape
        torch.Size([2, 40])
        >>> model.encode_image(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 40])
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
        self.settings = settings or AdapterSettings()
        self.loss = loss or LossSettings()
        self.clip: OpenClip = backbone.visible  # without text as long as it is not needed
        self.encoders: dict[str, EitherEncoder] = {"image": backbone.image, "text": backbone.text}
        widths = (backbone.image.width, backbone.text.width)
        depths = (backbone.image.depth, backbone.text.depth)
        s = self.settings
        if max(s.first_block, s.last_block or 1) > max(depths):
            raise UserError(
                f"first_block={s.first_block}, last_block={s.last_block}: the encoders of "
                f"{backbone.name} have {depths[0]} and {depths[1]} blocks"
            )
        reconstruct = [side for side in SIDES if getattr(self.loss, f"lambda_{side}_rec")]
        with seeded(seed):
            self.adapters = Adapters(widths, depths, **asdict(s), reconstruct=reconstruct)
        self.adapters.to(backbone.device)
        self.eval()

    # ---- attaching ----

    @contextmanager
    def attached(self, tape: Tape | None = None, silent: bool = False) -> Iterator[OpenClip]:
        """Yield the backbone with the adapters in its own forward pass (Eq. 14, 15).

        Afterwards the backbone is what it was, bit for bit, so that several models can share one.

        Args:
            tape: Collects the number of each adapted block, and what its reconstruction branch
                reads.
            silent: Whether the adapters read but add nothing.
        """
        handles = [
            encoder.blocks[block - 1].register_forward_hook(_Hook(self, side, block, tape, silent))
            for side, encoder in self.encoders.items()
            for block in self.adapters.blocks(side)
        ]
        try:
            yield self.backbone.model
        finally:
            for handle in handles:
                handle.remove()

    def train(self, mode: bool = True) -> AdaptedCLIP:
        """Set the mode of the adapters; the backbone stays in evaluation mode, without dropout.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            The model itself.
        """
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Return the device of the backbone."""
        return self.backbone.device

    def first(self, side: str) -> int:
        """Return the lowest adapted block of an encoder, counted from 1; all below it is frozen.

        Args:
            side: "image" or "text".
        """
        return min(self.adapters.blocks(side))

    @property
    def alpha(self) -> float:
        """Return the weight of the adapters' output, 0 or more."""
        return self.adapters.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not math.isfinite(value) or value < 0:
            raise UserError(f"alpha={value}: give 0, the untouched model, or more")
        self.adapters.alpha = float(value)

    # ---- features ----

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images by the backbone's own forward pass.

        Args:
            images: Pixels, [B, 3, H, W].

        Returns:
            Features [B, e], not normalised.
        """
        with self.attached() as clip:
            return clip.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode prompts by the backbone's own forward pass.

        Args:
            tokens: Tokens of the prompts, [C, L].

        Returns:
            Features [C, e], not normalised.
        """
        with self.attached() as clip:
            return clip.encode_text(tokens)

    def frozen(self, images: Tensor) -> States:
        """Run the untouched image encoder up to the first adapted block.

        Args:
            images: Pixels, [B, 3, H, W].

        Returns:
            The states there, and the untouched features.
        """
        return self.backbone.image.frozen(images, self.first("image"))

    def frozen_text(self, tokens: Tensor) -> list[States]:
        """Run the untouched text encoder up to the first adapted block, in chunks of prompts.

        Args:
            tokens: Tokens of the prompts, [C, L].

        Returns:
            The states of each chunk.
        """
        return frozen_chunks(self.backbone, tokens, self.first("text"))

    def features(
        self, side: str, states: States, reconstruct: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return adapted features of frozen states, by the lean pass.

        Args:
            side: "image" or "text".
            states: States of B images or prompts.
            reconstruct: Whether to compute reconstruction errors.

        Returns:
            Features [B, e], and each adapter's reconstruction error per token, [B, L] or [T].
        """
        if self.alpha == 0 and not reconstruct and len(states.features):
            return states.features, []
        assert states.first is not None
        encoder, adapters, layout, x = self.encoders[side], self.adapters, states.layout, states.x
        normed, below = adapters.norm == "block", None
        errors: list[Tensor] = []  # not list[Tensor](), which torch.compile cannot trace
        frozen_target = reconstruct and adapters.target == "frozen"
        untouched = self._untouched(side, states) if frozen_target else {}
        for i in range(states.first, encoder.depth + 1):
            adapter = adapters.at(side, i)
            rebuilds = reconstruct and adapter is not None and adapter.reconstructs
            reads_some = i == encoder.depth and encoder.reads_some(layout)
            top = reads_some and not (rebuilds and adapters.of_output)
            known = i == states.first and top == reads_some
            n = x if known and not normed else encoder.norm(i, x)
            y = states.y if known else encoder.step(i, x, n, layout, top)
            if adapter is not None:
                source = n if normed else x
                plain = y
                y = y + adapters.delta(side, i, layout.read(source) if top else source)
                if rebuilds and adapters.of_output:
                    read = adapters.leaving(side, i, source, plain, y)
                    read = encoder.norm(i, read) if normed else read
                    errors.append(adapters.reconstruction_error(side, i, read))
                elif rebuilds:
                    target = below if adapters.target == "below" else untouched.get(i)
                    errors.append(adapters.reconstruction_error(side, i, source, target))
                below = source
            x = layout.read(y) if reads_some and not top else y
        return encoder.head(x, layout), errors

    @torch.no_grad()
    def _untouched(self, side: str, states: States) -> dict[int, Tensor]:
        """Return what the adapter of each block would read if none added anything."""
        encoder, x, inputs = self.encoders[side], states.x, {}
        for i in self.adapters.blocks(side):
            n = encoder.norm(i, x)
            inputs[i] = n if self.adapters.norm == "block" else x
            if i < encoder.depth:
                x = states.y if i == states.first else encoder.step(i, x, n, states.layout)
        return inputs

    def class_weights(self, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Return normalised class features [C, e] at the present alpha, with gradients.

        Args:
            names: Names of C classes.
            templates: Prompt templates, one {} each; several are averaged.
        """
        parts = [(part, templates) for part in in_chunks(names, templates)]
        return torch.cat(one_at_a_time(self._class_weights, parts))

    def _class_weights(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        chunks = self.frozen_text(tokenize(self.backbone, names, templates))
        features = torch.cat([features for features, _ in self._text(chunks, False)])
        return class_weights(features, prompts_each(names, templates))

    def _text(
        self, chunks: Sequence[States], reconstruct: bool
    ) -> list[tuple[Tensor, list[Tensor]]]:
        """Return `features` of each chunk."""
        return one_at_a_time(self.features, [("text", chunk, reconstruct) for chunk in chunks])

    # ---- training ----

    def forward(
        self, labels: Tensor, image: States, text: Sequence[States], templates: int = 1
    ) -> dict[str, Tensor]:
        """Return the loss and its terms (Eq. 18) for one batch, by the lean pass.

        Args:
            labels: Classes of the images, [B].
            image: States of B images.
            text: States of the prompts, in chunks.
            templates: Number of prompts of each class.
        """
        x, image_errors = self.features("image", image, reconstruct=True)
        parts = self._text(text, reconstruct=True)
        w = torch.cat([features for features, _ in parts])
        frozen = torch.cat([chunk.features for chunk in text])
        weight = torch.cat([chunk.layout.weight for chunk in text])
        text_errors = map(torch.cat, zip(*(errors for _, errors in parts), strict=True))
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
        """Return what `forward` does, by the backbone's own forward pass with hooks; its oracle.

        Args:
            labels: Classes of the images, [B].
            images: Pixels, [B, 3, H, W].
            tokens: Tokens of the prompts, [C, L].
            frozen: Untouched features of images and prompts.
            templates: Number of prompts of each class.
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
        """Encode images or tokens with hooks; return features and reconstruction errors."""
        tape: Tape = []
        with self.attached(tape) as clip:
            features = getattr(clip, f"encode_{side}")(inputs)
        targets: list[Tensor | None] = [None] * len(tape)
        if self.adapters.target == "below":
            targets = [None, *(x for _, x in tape[:-1])]
        elif self.adapters.target == "frozen":
            untouched: Tape = []
            with torch.no_grad(), self.attached(untouched, silent=True) as clip:
                getattr(clip, f"encode_{side}")(inputs)
            targets = [x for _, x in untouched]
        errors = []
        for (block, x), target in zip(tape, targets, strict=True):
            adapter = self.adapters.at(side, block)
            if adapter is not None and adapter.reconstructs:
                errors.append(self.adapters.reconstruction_error(side, block, x, target))
        return features, errors

    def _terms(
        self, labels: Tensor, image: Encoded, text: Encoded, templates: int
    ) -> dict[str, Tensor]:
        s = self.loss
        adapted, frozen, errors = text
        weights = class_weights(adapted, templates)
        if s.consistency_unit != "raw":  # that compares the prompts' features, not normalised
            adapted, frozen = weights, class_weights(frozen, templates)
        return loss_terms(
            self.backbone.logit_scale,
            labels,
            Side(*image, s.lambda_image_rec, s.lambda_image_con),
            Side(adapted, frozen, errors, s.lambda_text_rec, s.lambda_text_con),
            s.consistency_unit,
            weights,
        )
