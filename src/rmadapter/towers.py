"""One encoder seen as stem -> blocks -> head, so that training computes nothing twice and nothing that is never read.

The lean forward pass of `Tower.run` is the function of the backbone's own forward pass with hooks (`model.py`), with
  1. the frozen prefix (tokens that enter the first adapted block, and that block's frozen output) given, not computed;
  2. text cut at the end-of-text token, whose successors causal attention never reads;
  3. the words that all prompts begin with computed once, for every class to attend to;
  4. norms, projections, MLPs and adapters on real text tokens alone, packed without padding;
  5. the top block computed for the one token that is read (class token, end-of-text), where one token is read;
  6. reconstruction computed in training only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.adapter import Adapters
from rmadapter.blocks import Dense, Packed, Whole, block_view, pack
from rmadapter.errors import UserError


@dataclass(frozen=True)
class States:
    """What a tower needs to run its adapted part; none of it changes in training.

    x: tokens that enter the first adapted block, y: what that block, untouched, makes of them (of the one token that is
    read, if it is the top block), features: [B or C, e] of the untouched encoder. Images: x is [B, L, d]; text: [T, d].
    """

    x: Tensor
    y: Tensor
    features: Tensor
    layout: Dense | Packed

    def to(self, device: torch.device) -> States:
        layout = self.layout.to(device) if isinstance(self.layout, Packed) else self.layout
        return States(self.x.to(device), self.y.to(device), self.features.to(device), layout)


class Tower:
    """The adapted part of one encoder. `side` is "image" or "text", `first` the first adapted block, from 1."""

    side: str

    def __init__(self, blocks: list[nn.Module], width: int, first: int = 1) -> None:
        self.modules, self.blocks = blocks, [block_view(block) for block in blocks]
        self.width, self.depth, self.first = width, len(blocks), first

    def head(self, x: Tensor, layout: Any) -> Tensor:
        """Tokens that leave the top block, or just the read ones, -> features [B or C, e]."""
        raise NotImplementedError

    def frozen(self, inputs: Tensor) -> States:
        """Run the untouched encoder on images [B, 3, H, W] or tokens [C, L], without gradients."""
        raise NotImplementedError

    def reads_one(self, layout: Dense | Packed) -> bool:
        """Whether the top block is needed for one token alone."""
        return layout.read_index is not None and not isinstance(self.blocks[-1], Whole)

    def step(self, i: int, x: Tensor, n: Tensor, layout: Any, top: bool) -> Tensor:
        """Block i, untouched, on tokens x whose first norm is n; `top`: for the one token that is read."""
        block = self.blocks[i - 1]
        if isinstance(block, Whole):
            return block.block(x, **block.kwargs)
        if top:
            attended = layout.attend_read(block.query(layout.read(n)), *block.key_value(n), block.heads)
            return block.close(layout.read(x), attended)
        return block.close(x, layout.attend(*block.qkv(n), block.heads))

    def run(self, states: States, adapters: Adapters, reconstruct: bool, norm: str) -> tuple[Tensor, list[Tensor]]:
        """Adapted features [B or C, e] and, if `reconstruct`, every adapter's error per token ([B, L] or [T]).

        norm: "none" or "block", what the adapters read.
        """
        layout, x = states.layout, states.x
        errors: list[Tensor] = []
        for i in range(self.first, self.depth + 1):
            top = i == self.depth and self.reads_one(layout)
            n = self.blocks[i - 1].norm(x) if norm == "block" or i > self.first else x
            y = self.step(i, x, n, layout, top) if i > self.first else states.y
            if adapter := adapters.at(self.side, i):
                source = n if norm == "block" else x
                if reconstruct and adapter.reconstructs:
                    errors.append(adapters.reconstruction_error(self.side, i, source))
                y = y + adapters.delta(self.side, i, layout.read(source) if top else source)
            x = y
        return self.head(x, layout), errors

    def encode(self, x: Tensor, layout: Any, edit: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Features [B or C, e] of tokens that enter block `first`; edit(i, x) changes what enters block i."""
        for i in range(self.first, self.depth + 1):
            x = edit(i, x) if edit else x
            x = self.step(i, x, self.blocks[i - 1].norm(x), layout, i == self.depth and self.reads_one(layout))
        return self.head(x, layout)

    def tricks(self) -> dict[str, bool]:
        """Which parts of the lean forward pass apply to this encoder, by name."""
        raise NotImplementedError


class ImageTower(Tower):
    """open_clip's own vision transformer, or a timm trunk with a projection."""

    side = "image"

    def __init__(self, visual: Any, first: int = 1) -> None:
        self.visual, self.timm = visual, hasattr(visual, "trunk")
        trunk = visual.trunk if self.timm else visual.transformer
        super().__init__(list(trunk.blocks if self.timm else trunk.resblocks), _width(visual, self.timm), first)
        if self.timm:
            one = trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None
        else:
            one = visual.pool_type == "tok" and visual.attn_pool is None
        self.layout = Dense(0 if one else None)

    def tricks(self) -> dict[str, bool]:
        return {"frozen prefix": True, "class token alone in the top block": self.reads_one(self.layout)}

    def head(self, x: Tensor, layout: Any) -> Tensor:
        if x.ndim == 2:
            x = x[:, None]  # the pooling below takes token 0 of one
        v = self.visual
        if self.timm:
            return v.head(v.trunk.forward_head(v.trunk.norm(x)))
        pooled = v._pool(x)[0]
        return pooled if v.proj is None else pooled @ v.proj

    @torch.no_grad()
    def frozen(self, inputs: Tensor) -> States:
        """The encoder's own forward, watched from outside: this works for every stem."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def watch(i: int) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
                view = self.blocks[i - 1]
                if isinstance(view, Whole):
                    view.kwargs = kwargs
                if i == self.first:
                    seen[i] = (args[0], output)

            return hook

        with ExitStack() as stack:
            for i in range(self.first, self.depth + 1):
                handle = self.modules[i - 1].register_forward_hook(watch(i), with_kwargs=True)
                stack.callback(handle.remove)
            features = self.visual(inputs)
        x, y = seen[self.first]
        if self.first == self.depth and self.reads_one(self.layout):
            y = self.layout.read(y)
        return States(x, y, features, self.layout)


def _width(visual: Any, timm: bool) -> int:
    return visual.trunk.embed_dim if timm else visual.transformer.width


class TextTower(Tower):
    """Text encoders whose prompts are packed: stem(ids, positions) -> [T, d] and a layout found from the tokens."""

    side = "text"
    causal = False

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """How many tokens of each prompt count [C], and the position of the one that is read [C], if it is one."""
        raise NotImplementedError

    def layout(self, tokens: Tensor, share: bool = True) -> Packed:
        """share=False keeps the words that all prompts begin with apart, for whoever changes them class by class."""
        return pack(tokens, *self.real_tokens(tokens), causal=self.causal, share=share)

    def words(self, layout: Packed) -> Tensor:
        """Embeddings of the tokens alone, [T, d]."""
        raise NotImplementedError

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        """What enters block 1, [T, d]; words: other embeddings than the tokens' own."""
        raise NotImplementedError

    def tricks(self) -> dict[str, bool]:
        two = torch.zeros(2, 5, dtype=torch.long)  # any two prompts tell
        two[:, 0], two[:, 1:3] = 1, torch.tensor([[2, 5], [3, 5]])
        layout = self.layout(two)
        return {
            "frozen prefix": True,
            "no padding computed": len(layout.ids) < 2 * 5,
            "shared prompt prefix": layout.prefix > 0,
            "read token alone in the top block": self.reads_one(layout),
        }

    @torch.no_grad()
    def frozen(self, inputs: Tensor) -> States:
        layout = self.layout(inputs)
        x = self.stem(layout)
        kept: tuple[Tensor, Tensor] | None = None
        for i in range(1, self.depth + 1):
            top = i == self.depth and self.reads_one(layout)
            y = self.step(i, x, self.blocks[i - 1].norm(x), layout, top)
            if i == self.first:
                kept = (x, y)
            x = y
        assert kept is not None
        return States(*kept, self.head(x, layout), layout)


class ClipText(TextTower):
    """open_clip's text transformer, inside the model (CLIP) or apart from it (custom text)."""

    def __init__(self, text: Any, first: int = 1) -> None:
        self.text = text
        self.pool = text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type
        self.causal = text.attn_mask is not None
        super().__init__(list(text.transformer.resblocks), text.transformer.width, first)

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        full = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        if self.pool == "argmax":
            read = tokens.argmax(-1)
        elif self.pool == "eos":
            eos: Any = getattr(self.text, "text_eos_id", None) or getattr(self.text, "eos_id", None)
            read = tokens.eq(eos).int().argmax(-1)
        else:
            read = full - 1 if self.pool == "last" else full * 0
        return (read + 1 if self.causal else full), read

    def words(self, layout: Packed) -> Tensor:
        return self.text.token_embedding(layout.ids)

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        return (self.words(layout) if words is None else words) + self.text.positional_embedding[layout.positions]

    def head(self, x: Tensor, layout: Any) -> Tensor:
        rows = x if self.reads_one(layout) else layout.read(x)
        rows, projection = self.text.ln_final(rows), self.text.text_projection
        if projection is None:
            return rows
        return projection(rows) if isinstance(projection, nn.Linear) else rows @ projection


class HuggingFaceText(TextTower):
    """A Hugging Face encoder of the BERT family inside open_clip's HFTextEncoder."""

    def __init__(self, text: Any, first: int = 1) -> None:
        self.text = text
        super().__init__(list(text.transformer.encoder.layer), text.config.hidden_size, first)

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return (tokens != self.text.config.pad_token_id).sum(-1), None

    def words(self, layout: Packed) -> Tensor:
        return self.text.transformer.embeddings.word_embeddings(layout.ids)

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        grid = torch.full(layout.grid, self.text.config.pad_token_id, device=layout.ids.device)
        ids = grid.flatten().index_copy(0, layout.slots, layout.ids).unflatten(0, layout.grid)
        given = {"input_ids": ids} if words is None else {"inputs_embeds": layout.pad(words)}
        return self.text.transformer.embeddings(**given).flatten(0, 1)[layout.slots]

    def head(self, x: Tensor, layout: Any) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        hidden = layout.pad(x)
        mask = layout.pad(torch.ones_like(x[:, :1]))[..., 0].long()
        return self.text.proj(self.text.pooler(BaseModelOutput(last_hidden_state=hidden), mask))


def towers(model: Any) -> tuple[ImageTower, TextTower]:
    """The two encoders of an open_clip model. Raises UserError for a text encoder of an unknown make."""
    image = ImageTower(model.visual)
    text = getattr(model, "text", model)
    if hasattr(getattr(text, "transformer", None), "resblocks"):
        tower: TextTower = ClipText(text)
    elif hasattr(getattr(getattr(text, "transformer", None), "encoder", None), "layer"):
        tower = HuggingFaceText(text)
    else:
        raise UserError(f"text encoder {type(text).__name__} is neither open_clip's transformer nor of the BERT family")
    if any(isinstance(block, Whole) for block in tower.blocks):
        raise UserError("the blocks of this text encoder are of a kind that rmadapter does not know yet")
    return image, tower
