"""The contract of every method: `fit(backbone, shots) -> Fitted`, and `restore` for what was fitted
and saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support.terminal import track
from rmadapter.task import TEMPLATES
from rmadapter.training.cache import BATCH, Cache, Live, Source
from rmadapter.training.traits import Recipe, Traits

ToLogits: TypeAlias = Callable[[States], Tensor]  # states of B images -> logits [B, C]
MOST_EXAMPLES = 10_000
NEIGHBOUR = 1  # chosen in docs/studies/unfamiliar.md
Figures: TypeAlias = Mapping[str, float]


class NotApplicable(Exception):
    """An answer that a method cannot give, such as on unseen classes; the message says why."""


class Parameters(NamedTuple):
    """Numbers of parameters of a method.

    Attributes:
        trained: Number of trained parameters.
        training_only: Number of these that only training needs.
    """

    trained: int = 0
    training_only: int = 0


class Known(NamedTuple):
    """The classes that a model is fitted to: their names, and templates with one {} each."""

    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


def _nothing(figures: Figures) -> None:
    pass


@dataclass(frozen=True)
class Callback:
    """Functions that follow a training; an exception in either ends it.

    Both take the figures of a training: "step" and "epoch", counted from 1, every term of the loss,
    and "lr".

    Args:
        on_step: Function that is called after each step.
        on_epoch: The same after each epoch, with the mean of each term.

    Example:
        >>> from rmadapter import Callback, FewShotClassifier
        >>> steps = []
        >>> model = FewShotClassifier("tiny", method="clip-adapter", epochs=3, batch_size=32)
        >>> model = model.fit("colors", callbacks=[Callback(on_step=steps.append)])
        >>> [step["step"] for step in steps]  # 24 images in one batch
        [1, 2, 3]
    """

    on_step: Callable[[Figures], object] = _nothing
    on_epoch: Callable[[Figures], object] = _nothing


@dataclass
class Trained:
    """The progress of a training, finished or not: steps, seconds, and the loss terms of each step.

    step_seconds: median of the steps. weighed: whether the shots' weights, if any, were used.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


@dataclass(frozen=True)
class Unfinished:
    """The file that keeps a training while it runs, and the training's key, so that another one is
    refused.

    before: key of a training that precedes this one; its file may stay until this one saves.
    """

    path: Path
    key: str = ""
    before: str = ""


@dataclass(frozen=True, eq=False)
class Shots:
    """Everything that a method may see; no test image can be reached from it.

    Args:
        images: The shots.
        cache: Frozen activations of images, computed once.
        templates: Prompt templates, one {} each.
        seed: Seed of everything random.
        val: Images drawn from the val split.
        unfinished: File that keeps the training while it runs.
        progress: Whether to show bars on stderr.
        callbacks: Functions that are called after every step.
        unlabelled: Train images of all classes, including novel ones, for methods whose traits ask
            for them; their labels mean nothing.
    """

    images: ImageSet
    cache: Cache
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 1
    val: ImageSet | None = None
    unfinished: Unfinished | None = None
    progress: bool = True
    callbacks: Sequence[Callback] = ()
    unlabelled: ImageSet | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the prompt names of the classes."""
        return self.images.classes

    @property
    def known(self) -> Known:
        """Return the classes with the templates."""
        return Known(self.classes, self.templates)

    @property
    def labels(self) -> Tensor:
        """Return [N] indices into `classes`."""
        return torch.tensor(self.images.labels, device=self.device)

    @property
    def weights(self) -> Tensor | None:
        """Return the weights [N] of the shots, float64, CPU, 1 on average; None if alike."""
        weights = torch.tensor(self.images.weights, dtype=torch.float64)
        return weights / weights.mean() if len(weights) and weights.any() else None

    @property
    def device(self) -> torch.device:
        """Return the device to train on."""
        return self.cache.device

    @property
    def machine(self) -> Machine:
        """Return the settings of the machine."""
        return self.cache.machine

    def source(self, first: int | None = None) -> Source:
        """Return frozen activations of the shots in all views, in the number format of training.

        Args:
            first: Block whose input is wanted, None for features alone.
        """
        return self.cache.source(
            self.images, first, augmented=True, precision=self.machine.precision
        )

    def features(self) -> Tensor:
        """Return untouched features [V, N, e] of V views of the shots, not normalised."""
        return self.cache.features(self.images, augmented=True)

    def plain_features(self, images: ImageSet | None = None) -> Tensor:
        """Return untouched features [N, e] without augmentation, not normalised.

        Args:
            images: N images; by default the shots.
        """
        return self.cache.features(self.images if images is None else images)[0]

    def pixels(self, rows: Tensor, epoch: int, first: int | None) -> Tensor:
        """Return the pixels [B, 3, H, W] behind the states that `source(first)` gives.

        Args:
            rows: Indices of the shots, [B].
            epoch: Number of the epoch, from 0.
            first: Block of the image encoder, as for `source`.
        """
        augmented, views = self.cache.augmentation == "standard", self.source(first).views
        live = Live(self.cache, self.images, first, augmented, views)
        return next(live.pixels(epoch, [rows]))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted method: `tensors`, the method's fields and the backbone determine every answer.

    Attributes:
        method: The method with its settings.
        backbone: Backbone that it was fitted on.
        known: The classes and templates that it was fitted to.
        tensors: What was learned, by name.
        for_classes: Function from C names to one from the states of B images to logits [B, C];
            raises NotApplicable for names that the method cannot handle.
        first: The image encoder's block whose input the states hold; None for features alone.
        parameters: Number of trained parameters.
        trained: The record of the training.
        temperature: Divisor of the logits in `score`; calibrates probabilities, changes no answer.
        examples: Untouched unit features [N, e] of the training images, in float16, if kept.
        remembers: Whether the function of `for_classes` learns from each image, so that answers
            depend on earlier images.

    Example:
        >>> from rmadapter import load
        >>> fitted = load("run", "tiny").fitted
        >>> fitted.classes
        ('blue', 'green', 'night sky', 'red')
        >>> [red] = fitted.probabilities(["colors/test/red/0.png"], ["red", "violet"])
        >>> red.shape
        torch.Size([1, 2])
    """

    method: Method
    backbone: Backbone
    known: Known
    tensors: Mapping[str, Tensor]
    for_classes: Callable[[Sequence[str]], ToLogits]
    first: int | None = None
    parameters: int = 0
    trained: Trained = field(default_factory=Trained)
    temperature: float = 1.0
    examples: Tensor | None = None
    remembers: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the prompt names of the classes that it was fitted to."""
        return self.known.classes

    def after(self, trained: Trained) -> Fitted:
        """Return a copy with the record of its training.

        Args:
            trained: Record that `minimise` returned.
        """
        return replace(self, trained=trained)

    def fitted_to(self, features: Tensor) -> Fitted:
        """Return a copy that keeps features of its training images, every k-th if there are many.

        Args:
            features: Untouched features [N, e]; at most 10,000 rows are kept.
        """
        kept = features[:: -(-len(features) // MOST_EXAMPLES)]
        return replace(self, examples=F.normalize(kept.float(), dim=-1).half())

    def unfamiliar(self, features: Tensor) -> Tensor:
        """Return [B], from 0 up: 1 - cosine to the nearest training image.

        docs/studies/unfamiliar.md says how far to trust it.

        Args:
            features: Untouched features of B images, [B, e].

        Raises:
            UserError: The features of the training images were not kept.
        """
        if self.examples is None:
            raise UserError("this model holds no features of its training images")
        cosines = F.normalize(features.float(), dim=-1) @ self.examples.float().T
        nearest = cosines.topk(min(NEIGHBOUR, cosines.shape[1])).values[:, -1]
        return (1 - nearest).clamp(min=0)  # against rounding

    def score(self, names: Sequence[str] | None = None) -> ToLogits:
        """Return `for_classes(names)`, calibrated and without gradients.

        Args:
            names: Names of C classes; by default those that it was fitted to.
        """
        with torch.no_grad():
            logits = self.for_classes(self.classes if names is None else tuple(names))
        return torch.no_grad()(lambda states: logits(states) / self.temperature)

    def probabilities(
        self,
        images: Sequence[ImageSource],
        names: Sequence[str] | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """Yield probabilities [B, C] of each batch; every image is decoded and encoded once.

        Args:
            images: Paths, PIL images or arrays, as in `ImageSet`.
            names: Names of C classes; by default those that it was fitted to.
            progress: Whether to show a bar on stderr.

        Raises:
            NotApplicable: The method cannot handle the names.
            UserError: An image is unreadable.
        """
        from rmadapter.data.transforms import decode_batches

        models = {self.method.title: self.score(names)}
        stream = decode_batches(images, self.backbone.preprocess, BATCH)
        for _, pixels in track(stream, -(-len(images) // BATCH), "predicting", progress):
            yield self.answers(models, pixels)[self.method.title]

    def answers(self, models: Mapping[str, ToLogits], pixels: Tensor) -> dict[str, Tensor]:
        """Return the probabilities [B, C] that each model gives for images that are encoded once.

        Args:
            models: This model, as `score` returns it, then others that read features.
            pixels: Pixels, [B, 3, H, W].
        """
        return next(answers(models, [self.states(pixels, features=len(models) > 1)]))

    def states(self, pixels: Tensor, features: bool = False) -> States:
        """Return the states that `score` reads, of encoded images.

        Args:
            pixels: Pixels, [B, 3, H, W].
            features: Whether to include untouched features that the model does not read.
        """
        pixels = pixels.to(self.backbone.device)
        wanted = features or self.first is None
        return self.backbone.image.frozen(pixels, self.first, features=wanted)


class Choices(NamedTuple):
    """Methods to choose from by name, the preferred first, and the minutes for judging them."""

    methods: Mapping[str, Method]
    minutes: float


class Method(ABC):
    """A few-shot method: a frozen dataclass whose fields are its settings, by default as published.

    docs/guide/your_method.md shows one in 30 lines.
    """

    traits: ClassVar[Traits] = Traits()

    @property
    @abstractmethod
    def title(self) -> str:
        """Return the name for tables."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Return the paper, and where the values of the fields are from."""

    @property
    def recipe(self) -> Recipe | None:
        """Return the recipe of a method that trains step by step, else None."""
        return None

    @abstractmethod
    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        """Train on the shots.

        Args:
            backbone: Backbone on the device of the shots.
            shots: Images, and whatever else it may use.

        Returns:
            The fitted method.

        Raises:
            UserError: Settings and shots do not fit together.
        """

    @abstractmethod
    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        """Return what `fit` returned, from its tensors; `fit` itself ends with this call.

        Args:
            backbone: Backbone of the fit.
            known: Classes and templates of the fit.
            tensors: Tensors of `Fitted`.
        """

    @abstractmethod
    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        """Count parameters.

        Args:
            backbone: Backbone to fit on.
            classes, shots: Numbers of classes, and of shots of each; few methods depend on them.
        """

    def starts_at(self, backbone: Backbone) -> int | None:
        """Return the image encoder's block whose input the model reads; None for features alone.

        Args:
            backbone: Backbone to fit on.
        """
        return None

    def choices(self, labels: Sequence[int] = ()) -> Choices | None:
        """Return the methods of which the best on folds is fitted; None to fit this one.

        Args:
            labels: Labels of the shots.
        """
        return None


@torch.no_grad()
def answers(
    models: Mapping[str, ToLogits], stream: Iterable[States]
) -> Iterator[dict[str, Tensor]]:
    """Yield the probabilities [B, C] of each model on the CPU, batch by batch. Raises UserError if
    they are not finite."""
    for states in stream:
        logits = {name: score(states).float() for name, score in models.items()}
        tables = {name: x.softmax(-1).cpu() for name, x in logits.items()}
        for name, table in tables.items():
            if not table.isfinite().all():
                raise UserError(
                    f"the answers of {name} contain NaN or infinity: its training diverged, or it "
                    "has a bug"
                )
        yield tables


class Learner(nn.Module, ABC):
    """A module on a frozen backbone; its state is everything that a method learns.

    `first` is the image encoder's block whose input it reads, None for features alone; `reaches`
    names the sides, "image" or "text", whose blocks it runs.

    Args:
        backbone: Backbone whose encoders have blocks on these sides.

    Raises:
        UserError: An encoder on these sides has no known blocks.
    """

    first: int | None = None
    reaches: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.with_blocks(*self.reaches)

    @abstractmethod
    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        """Return the scorer of `Fitted.for_classes`.

        Args:
            names: Names of C classes.
            known: Classes and templates of the fit.
        """


class ModuleMethod(Method):
    """A method that learns one module.

    A new module that loads the trained state answers like the trained one.
    """

    @abstractmethod
    def module(self, backbone: Backbone, seed: int = 1) -> Learner:
        """Return an untrained module.

        Args:
            backbone: Frozen backbone.
            seed: Seed of its initialisation.
        """

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        module = self.module(backbone).eval()
        module.load_state_dict(dict(tensors))
        for_classes = partial(module.for_classes, known=known)
        return Fitted(self, backbone, known, tensors, for_classes, module.first, count(module))

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(count(self.module(backbone)))

    def starts_at(self, backbone: Backbone) -> int | None:
        return self.module(backbone).first


def count(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
