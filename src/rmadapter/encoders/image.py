"""Image encoders: open_clip's own vision transformer, a timm trunk with a projection, any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.encoders.blocks import HOOKS, Opaque
from rmadapter.encoders.encoder import EMPTY, PARTS, Encoder, States, in_halves, joined, weights_of
from rmadapter.encoders.layouts import Grid

if TYPE_CHECKING:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer


class _StopForward(Exception):
    """Raised inside a forward pass to skip its rest."""


class ImageEncoder(Encoder[Grid]):
    """An image encoder as stem, blocks and head.

    Attributes:
        pre_norm: Module that is applied to the embeddings before block 1.
        read_index: Token that the head reads, if it reads just one.
        front: Number of tokens before those of the patches.
    """

    side = "image"
    pre_norm: nn.Module = nn.Identity()
    front = 0

    def __init__(
        self, visual: nn.Module, blocks: Sequence[nn.Module], width: int, read_index: int | None
    ) -> None:
        super().__init__(blocks, width)
        self.visual = visual
        self.read_index = read_index

    def top_norm(self, x: Tensor) -> Tensor:
        """Apply the norm after the top block to single tokens [..., d]."""
        raise NotImplementedError

    def parts(self, x: Tensor) -> Tensor:
        """Return what the tokens [B, L, d] that leave a block know of each image, through the norm
        after the top block: the class token, if there is one, then the mean, standard deviation and
        maximum of the patches, of unit length: [B, 3 or 4, d] in float16."""
        x = self.top_norm(x).float()
        patches = x[:, self.front :]
        kinds = [patches.mean(1), patches.std(1, correction=0), patches.amax(1)]
        if self.front:
            kinds = [x[:, 0], *kinds]
        return F.normalize(torch.stack(kinds, 1), dim=-1).half()

    @torch.no_grad()
    def untouched(self, states: States) -> Tensor:
        """Return the features [B, e] of states, from the tokens if the states have none."""
        if len(states.features) or states.first is None:
            return states.features
        return self.encode(states.x, states.layout, states.first)

    def frozen(self, images: Tensor, first: int | None = None, *, features: bool = True) -> States:
        """Run the untouched encoder.

        Args:
            images: Images [B, 3, H, W], or images with V further views each, [B, 1 + V, 3, H, W].
            first: Block whose input is wanted, if any; PARTS for the parts of all blocks, or, of
                an encoder without blocks of one width, its features of unit length, [B, 1, e].
            features: Whether features are wanted; without, the blocks above `first` are skipped.
                With parts they are always given.
        """
        if images.ndim == 4:
            return self.frozen_at(images, [first], features=features)[0]
        states = self.frozen_at(images[:, 0], [first], features=features)[0]
        [views] = self.frozen_at(images[:, 1:].flatten(0, 1), [None])
        return replace(states, views=views.features.unflatten(0, (len(images), -1)))

    @torch.no_grad()
    def frozen_at(
        self, images: Tensor, firsts: Sequence[int | None], *, features: bool = True
    ) -> list[States]:
        """Return the states of `frozen` at several blocks from one pass, or several where the
        memory of a GPU ends."""
        parts = in_halves(lambda some: self._frozen_at(some, firsts, features), images)
        return [joined(states) for states in zip(*parts, strict=True)]

    def _frozen_at(
        self, images: Tensor, firsts: Sequence[int | None], features: bool
    ) -> list[States]:
        """Return the states of `frozen_at` from one pass. Hooks on the encoder's forward make this
        work for every stem. The top block runs only for the token that is read, if just one is and
        no parts are wanted."""
        top = self.depth
        seen: dict[int, tuple[Tensor, Tensor]] = {}  # block -> its input and output
        parts: list[Tensor] = []
        extras: dict[int, dict[str, object]] = {}
        layout = Grid(self.read_index, extras=extras)
        reads_some, in_parts = self.reads_some(layout), PARTS in firsts
        lean = reads_some and not in_parts
        wanted = {first for first in firsts if first}
        lowest = 1 if in_parts else min(wanted, default=top + 1)
        last = max(wanted, default=0)

        def watch(i: int) -> Callable[..., None]:
            def hook(
                module: nn.Module, args: tuple[Tensor], kwargs: dict[str, object], output: Tensor
            ) -> None:
                if isinstance(self.views[i - 1], Opaque):
                    extras[i] = kwargs
                if in_parts and output.ndim == 3 and output.shape[-1] == self.width:
                    parts.append(self.parts(output))
                if i in wanted:
                    some = i == top and reads_some
                    seen[i] = (args[0], layout.read(output) if some else output)
                if i == last and not (features or in_parts or self.opaque):
                    raise _StopForward

            return hook

        def run_top(module: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0]
            seen[top] = (x, self.step(top, x, self.norm(top, x), layout, top=True))
            raise _StopForward

        output = EMPTY
        with HOOKS, ExitStack() as stack:
            for i in range(lowest, top + 1):
                handle = self.blocks[i - 1].register_forward_hook(watch(i), with_kwargs=True)
                stack.callback(handle.remove)
            if lean:
                stack.callback(self.blocks[-1].register_forward_pre_hook(run_top).remove)
            with suppress(_StopForward):
                output = self.visual(images)
        if lean and features:
            output = self.head(seen[top][1], layout)
        if in_parts:
            # blocks of several widths, as in a pyramid, have no common kernel
            whole = len(parts) == top > 0
            joint = torch.cat(parts, 1) if whole else F.normalize(output[:, None], dim=-1).half()
            seen[PARTS] = joint, EMPTY
        return [States(i, layout, output, *(() if i is None else seen[i])) for i in firsts]


class ClipImage(ImageEncoder):
    """open_clip's VisionTransformer."""

    visual: VisionTransformer
    front = 1

    def __init__(self, visual: VisionTransformer) -> None:
        stack = visual.transformer
        one = visual.pool_type == "tok" and visual.attn_pool is None
        super().__init__(visual, stack.resblocks, stack.width, 0 if one else None)
        self.pre_norm = visual.ln_pre

    @property
    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        return None if self.visual.proj is None else (self.visual.proj, None)

    @property
    def tail(self) -> list[nn.Parameter]:
        v = self.visual
        return weights_of(v.attn_pool, v.ln_post, v.proj)

    def pooled(self, x: Tensor, layout: Grid) -> Tensor:
        return self.visual._pool(x if x.ndim == 3 else x[:, None])[0]  # pools token 0

    def project(self, pooled: Tensor) -> Tensor:
        projection = self.visual.proj
        return pooled if projection is None else pooled @ self._once("projection", projection)

    def top_norm(self, x: Tensor) -> Tensor:
        if self.visual.attn_pool is not None:  # whose output ln_post is for
            return F.layer_norm(x, x.shape[-1:])
        return self.visual.ln_post(x)


class TimmImage(ImageEncoder):
    """open_clip's TimmModel: a trunk of timm and a projection."""

    visual: TimmModel

    def __init__(self, visual: TimmModel) -> None:
        trunk = visual.trunk
        one = trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None
        super().__init__(visual, trunk.blocks, trunk.embed_dim, 0 if one else None)
        self.trunk, self.front = trunk, getattr(trunk, "num_prefix_tokens", 0)
        self.pre_norm = getattr(trunk, "norm_pre", nn.Identity())

    @property
    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        # An empty head leaves the projection to the trunk, as in EVA-02.
        head = self.visual.head
        last = getattr(head, "proj", None) if len(head) else self.trunk.head
        return (last.weight.T, last.bias) if isinstance(last, nn.Linear) else None

    @property
    def tail(self) -> list[nn.Parameter]:
        t = self.trunk
        pool = getattr(t, "attn_pool", None)
        return weights_of(t.norm, pool, t.fc_norm, t.head, self.visual.head)

    def pooled(self, x: Tensor, layout: Grid) -> Tensor:
        tokens = self.trunk.norm(x if x.ndim == 3 else x[:, None])
        return self.trunk.forward_head(tokens, pre_logits=True)

    def project(self, pooled: Tensor) -> Tensor:
        x = self._run("trunk", self.trunk.head, pooled)
        return self._run("head", self.visual.head, x)

    def top_norm(self, x: Tensor) -> Tensor:
        return self.trunk.fc_norm(self.trunk.norm(x))


class WholeImage(ImageEncoder):
    """An encoder without blocks to reach into, such as a convolutional network.

    Args:
        visual: Module of the encoder.
        kind: Its name.
        encode: Function from images [B, 3, H, W] to features [B, e].
    """

    def __init__(self, visual: nn.Module, kind: str, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(visual, (), 0, None)
        self.kind, self._encode = kind, encode

    def _frozen_at(
        self, images: Tensor, firsts: Sequence[int | None], features: bool
    ) -> list[States]:
        assert not any(firsts), "it has no blocks"
        output, layout = self._encode(images), Grid(None)
        whole = F.normalize(output[:, None], dim=-1).half()
        return [States(i, layout, output, *(() if i is None else (whole,))) for i in firsts]
