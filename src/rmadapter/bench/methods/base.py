"""What a method is: an object with its published settings as fields, and `fit(backbone, train) -> Classifier`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_origin, get_type_hints, runtime_checkable

from rmadapter.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rmadapter.backbone import Backbone
    from rmadapter.bench.activations import Activations
    from rmadapter.data.images import ImageSet
    from rmadapter.features import FrozenImages
    from rmadapter.towers import States


class NotApplicable(Exception):
    """The method has no answer to this question, such as about classes that it never saw; the message says why."""


@dataclass(frozen=True, eq=False)
class Training:
    """All that a method sees: the shots, validation images drawn from the train split, and settings common to all.

    No test image is reachable from here. seed: of everything random. templates: prompt templates, one {} each.
    """

    images: ImageSet
    val: ImageSet | None
    activations: Activations
    seed: int = 1
    progress: bool = True

    @property
    def templates(self) -> tuple[str, ...]:
        return self.activations.settings.templates

    @property
    def device(self) -> torch.device:
        return self.activations.device

    def frozen(self, first: int | None = None, images: ImageSet | None = None) -> FrozenImages:
        """Frozen activations of the shots (or, without augmentation, of `images`, such as `val`).

        first: block whose input x is wanted, counted in the image encoder; None for untouched features alone.
        """
        chosen = self.images if images is None else images
        return self.activations.states(chosen, first, augmented=images is None, progress=self.progress)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted method.

    for_classes(names) -> score, score(States of B images) -> logits [B, C]; raises NotApplicable. The states hold the
    tokens that enter block `first` of the image encoder; with None, only `features` [B, e] of the untouched encoder.
    parameters: number of trained ones. step_seconds: typical time of a training step. history: one record per step.
    """

    for_classes: Callable[[Sequence[str]], Callable[[States], Tensor]]
    first: int | None = None
    parameters: int = 0
    step_seconds: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the hyper-parameters of the method's published configuration."""

    title: ClassVar[str]
    source: ClassVar[str]  # paper and where the values of the fields come from

    def fit(self, backbone: Backbone, train: Training) -> Classifier: ...

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        """Number of trainable parameters; classes and shots matter to few methods."""
        ...


def configured(method: Any, values: dict[str, Any]) -> Any:
    """The method with some fields replaced. Raises UserError that names a field unknown or of another type."""
    from pydantic import TypeAdapter, ValidationError

    known, types, right = [f.name for f in fields(method)], get_type_hints(type(method)), {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{method.title} has no field {name!r}{nearest(name, known)}; it has {', '.join(known)}")
        try:
            one = isinstance(value, str) and get_origin(types[name]) is tuple
            right[name] = TypeAdapter(types[name]).validate_python((value,) if one else value)
        except ValidationError as error:
            raise UserError(f"{method.title}, {name}={value!r}: {error.errors()[0]['msg']}") from None
    return replace(method, **right)
