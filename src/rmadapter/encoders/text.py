"""Text encoders on packed prompts: open_clip's text transformer, Hugging Face's BERT family, any
other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rmadapter.encoders.blocks import Opaque, Projections
from rmadapter.encoders.encoder import EMPTY, Encoder, States, weights_of
from rmadapter.encoders.layouts import Packed, pack

if TYPE_CHECKING:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer


_pause: ContextVar[Callable[[], object]] = ContextVar("pause", default=lambda: None)


@contextmanager
def pausing(pause: Callable[[], object]) -> Iterator[None]:
    """Call a function before each block of a text encoder that runs in this thread, as where
    threads take turns with one backbone: the texts of a thousand classes take long."""
    token = _pause.set(pause)
    try:
        yield
    finally:
        _pause.reset(token)


class TextEncoder(Encoder[Packed]):
    """A text encoder as stem, blocks and head.

    Attributes:
        causal: Whether a token attends only to itself and those before it.
    """

    side = "text"
    causal = False

    @abstractmethod
    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return how many tokens of each prompt count, [C], and the position of the one that is
        read, [C], if just one is."""

    def words(self, layout: Packed) -> Tensor:
        """Return the embeddings of the tokens, [T, d], without positions."""
        raise NotImplementedError

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        """Return what enters block 1, [T, d].

        Args:
            layout: Layout of the tokens.
            words: Embeddings to use instead of the tokens'.
        """
        raise NotImplementedError

    def layout(self, tokens: Tensor, share: bool = True) -> Packed:
        """Lay out tokens.

        Args:
            tokens: Tokens [C, L].
            share: Whether to keep a common beginning once; False keeps it for each prompt, so that
                it can be changed class by class.
        """
        return pack(tokens, *self.real_tokens(tokens), causal=self.causal, share=share)

    def step(
        self,
        block: int,
        x: Tensor,
        n: Tensor,
        layout: Packed,
        top: bool = False,
        views: Sequence[Projections | Opaque] = (),
    ) -> Tensor:
        if not torch.compiler.is_compiling():
            _pause.get()()
        return super().step(block, x, n, layout, top, views)

    @torch.no_grad()
    def frozen(self, tokens: Tensor, first: int | None = None) -> States:
        """Run the untouched encoder.

        Args:
            tokens: Tokens [C, L].
            first: Block whose input is wanted, if any.
        """
        layout = self.layout(tokens)
        x = self.stem(layout)
        kept = (EMPTY, EMPTY)
        for i in range(1, self.depth + 1):
            y = self.step(i, x, self.norm(i, x), layout, self._is_top(i, layout))
            if i == first:
                kept = (x, y)
            x = y
        return States(first, layout, self.head(x, layout), *kept)


class ClipText(TextEncoder):
    """open_clip's text transformer, inside the model (CLIP) or apart from it (custom text)."""

    def __init__(self, text: TextTransformer, *, inside: bool) -> None:
        super().__init__(text.transformer.resblocks, text.transformer.width)
        self.text, self.causal = text, text.attn_mask is not None
        self.pool = text.text_pool_type if inside else text.pool_type
        self.eos = text.text_eos_id if inside else text.eos_id

    @property
    def tail(self) -> list[nn.Parameter]:
        return weights_of(self.text.ln_final, self.text.text_projection)

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        full = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        if self.pool == "argmax":
            read = tokens.argmax(-1)
        elif self.pool == "eos":
            read = tokens.eq(self.eos).int().argmax(-1)
        else:
            read = full - 1 if self.pool == "last" else full * 0
        return (read + 1 if self.causal else full), read

    def words(self, layout: Packed) -> Tensor:
        return self.text.token_embedding(layout.ids)

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        words = self.words(layout) if words is None else words
        return words + self.text.positional_embedding[layout.positions]

    @property
    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            return projection.weight.T, projection.bias
        return None if projection is None else (projection, None)

    def pooled(self, x: Tensor, layout: Packed) -> Tensor:
        return self.text.ln_final(x if self.reads_some(layout) else layout.read(x))

    def project(self, pooled: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Linear):
            return self._run("projection", projection, pooled)
        return pooled @ self._once("projection", projection)


class BertText(TextEncoder):
    """A Hugging Face encoder of the BERT family inside open_clip's HFTextEncoder."""

    def __init__(self, text: HFTextEncoder) -> None:
        super().__init__(text.transformer.encoder.layer, text.config.hidden_size)
        self.text = text
        # It exists if open_clip's pooler reads its output.
        self.top = getattr(text.transformer, "pooler", None)

    @property
    def tail(self) -> list[nn.Parameter]:
        return weights_of(self.top, self.text.pooler, self.text.proj)

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, None]:
        return (tokens != self.text.config.pad_token_id).sum(-1), None

    def words(self, layout: Packed) -> Tensor:
        return self.text.transformer.embeddings.word_embeddings(layout.ids)

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        grid = torch.full(layout.grid, self.text.config.pad_token_id, device=layout.ids.device)
        flat = grid.flatten().index_copy(0, layout.slots, layout.ids)
        ids = torch.unflatten(flat, 0, layout.grid)
        inputs = {"input_ids": ids} if words is None else {"inputs_embeds": layout.pad(words)}
        return self.text.transformer.embeddings(**inputs).flatten(0, 1)[layout.slots]

    @property
    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        last = self.text.proj
        return (last.weight.T, last.bias) if isinstance(last, nn.Linear) else None

    def pooled(self, x: Tensor, layout: Packed) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        hidden = layout.pad(x)
        mask = layout.pad((layout.weight[:, None] > 0).to(x.dtype))[..., 0].long()
        read = None if self.top is None else self.top(hidden)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=read)
        return self.text.pooler(output, mask)

    def project(self, pooled: Tensor) -> Tensor:
        return self._run("projection", self.text.proj, pooled)


class WholeText(TextEncoder):
    """An encoder without blocks to reach into, such as T5.

    Args:
        kind: Its name.
        encode: Function from tokens [C, L] to features [C, e].
    """

    def __init__(self, kind: str, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__((), 0)
        self.kind, self._encode = kind, encode

    @torch.no_grad()
    def frozen(self, tokens: Tensor, first: int | None = None) -> States:
        assert first is None, "it has no blocks"
        return States(None, self.layout(tokens), self._encode(tokens))

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, None]:
        return torch.full((len(tokens),), tokens.shape[1], device=tokens.device), None
