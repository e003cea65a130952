"""What `parity.py` and `benchmarks/public.py` must know of somebody's public code to run it beside
ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor


class Sizes(NamedTuple):
    """depth: blocks of each encoder. first: the lowest one with adapters or representation tokens.
    prompted: number of blocks with prompts."""

    depth: int
    first: int
    prompted: int

    @property
    def blocks(self) -> range:
        return range(self.first, self.depth + 1)


@dataclass(frozen=True)
class Peer:
    """Where the authors' code is, its configuration, and our settings that mean the same.

    code: module and trainer, or function. section: of Dassl's configuration; "" for code that is
    not built on Dassl. names: our tensors -> theirs, with or without ".weight" and ".bias".
    settings: ours; may read the authors' module. taken: gets the logits from their model's answer.
    inner: the part of our module with the tensors, if it is not the whole. answering: the part of
    `inner` whose state answers. more: other sections, and more of the trainer's. clip: the package
    of their CLIP. folder: of the code within the repository. engine: file and name of a training
    function in the authors' own Dassl. loss: from what their step returns. labels: of the images.
    prepare: called with the authors' module before anything is built. whole: the trainer's
    attribute with all that is trained. ask: (trainer, images) -> the answer for `taken`. kept: our
    buffers, which are not trained -> how to get theirs from a trainer. idle: tensors of theirs that
    nothing can move, and that ours lacks. still: our tensors whose gradient is only rounding.
    later: our tensors that only a later stage trains -> their values in front of it, from our
    module and the shots. marks: for code not built on Dassl, its function that chooses what is
    trained. depth: blocks of the small CLIP's encoders, if their code needs another number than the
    usual one.
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
    later: Mapping[str, Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    marks: str = ""
    depth: int = 0

    def called(self, name: str) -> str:
        """The name of one of our tensors in their code."""
        head, _, leaf = name.rpartition(".")
        return self.names[name] if name in self.names else f"{self.names[head]}.{leaf}"
