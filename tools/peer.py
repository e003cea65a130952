"""What `parity.py` and `benchmarks/public.py` must know of somebody's public code to run it beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor


class Sizes(NamedTuple):
    """depth: blocks on either side. first: the lowest one with adapters or representation tokens. prompted: how many
    have prompts."""

    depth: int
    first: int
    prompted: int

    @property
    def blocks(self) -> range:
        return range(self.first, self.depth + 1)


@dataclass(frozen=True)
class Peer:
    """Where the authors' code stands, its configuration, and our settings that are the same.

    code: module and trainer, or function. section: of Dassl's configuration; "" for code that is not built on Dassl.
    names: of our tensors in theirs, with or without ".weight" and ".bias". settings: may read the authors' module.
    taken: the logits in what their model answers. inner: the part of what we train that has the tensors, where it is
    not the whole. answering: the part of that whose state answers. more: other sections, and more of the trainer's.
    clip: the package of their CLIP. folder: of the code within the repository. engine: file and name of a function of
    the authors' own Dassl, which trains. loss: of what their step tells. labels: of the images. prepare: is called with
    the authors' module before anything is built. whole: the trainer's attribute with all that is trained. ask: a
    trainer, and images, for what `taken` takes the logits from. kept: our buffers, which are not trained, and what they
    are in a trainer. idle: tensors of theirs that nothing can move, which ours does not have. still: tensors of ours
    whose gradient is nothing but rounding.
    """

    repository: str
    code: str
    section: str
    config: Mapping[str, Any]
    names: Mapping[str, str]
    settings: Callable[[ModuleType], Mapping[str, Any]] = lambda module: {}
    taken: Callable[[Any], Tensor] = lambda answer: answer
    inner: str = ""
    answering: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    clip: str = "clip"
    folder: str = ""
    engine: str = ""
    loss: Callable[[Mapping[str, float]], float] = itemgetter("loss")
    labels: tuple[int, ...] = (0, 1, 2, 3, 0, 1)
    prepare: Callable[[ModuleType], object] = lambda module: None
    whole: str = "model"
    ask: Callable[[Any, Tensor], Any] = lambda trainer, pixels: trainer.model(pixels)
    kept: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    still: tuple[str, ...] = ()

    def called(self, name: str) -> str:
        """One of our tensors in their code."""
        head, _, leaf = name.rpartition(".")
        return self.names[name] if name in self.names else f"{self.names[head]}.{leaf}"
