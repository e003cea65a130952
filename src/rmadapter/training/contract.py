"""The contract of every method: `fit(backbone, shots) -> Fitted`, and `restore` for what was fitted
and saved.

A paper's file imports from here all that it needs of this room.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.answers.decider import Decider
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSource
from rmadapter.encoders import States, in_halves
from rmadapter.errors import UserError
from rmadapter.support.terminal import track
from rmadapter.training.cache import Source, test_batch, test_transform
from rmadapter.training.loop import Batch, Loss, minimise, summed
from rmadapter.training.shots import Known, Shots, Trained
from rmadapter.training.traits import (
    ALL_IMAGES,
    HELD_OUT,
    PUBLISHED,
    About,
    Recipe,
    Traits,
    Uses,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ALL_IMAGES",
    "HELD_OUT",
    "MAX_EXAMPLES",
    "NEIGHBOUR_RANK",
    "PUBLISHED",
    "About",
    "Batch",
    "Fitted",
    "Known",
    "Learner",
    "LeftOut",
    "Loss",
    "Method",
    "ModuleMethod",
    "NotApplicable",
    "Parameters",
    "Recipe",
    "Shots",
    "ToLogits",
    "Trained",
    "Traits",
    "Untrained",
    "Uses",
    "answers",
    "count",
    "minimise",
    "shaped",
    "summed",
]

ToLogits: TypeAlias = Callable[[States], Tensor]  # states of B images -> logits [B, C]
MAX_EXAMPLES = 10_000
NEIGHBOUR_RANK = 1  # chosen in docs/studies/unfamiliar.md
NO_PROMISES = (
    "nothing can be promised with a method that learns from the images that it answers, as an "
    "answer depends on those before it: fit with another method"
)


class NotApplicable(Exception):
    """An answer that a method cannot give, such as on unseen classes; the message says why.

    Example:
        >>> from rmadapter import FewShotClassifier, NotApplicable
        >>> model = FewShotClassifier("tiny", method="linear-probe").fit("colors")
        >>> try:
        ...     model.add_classes(["violet"])
        ... except NotApplicable as error:
        ...     print(error)
        linear probe only knows the classes it was trained on, not 'violet'
    """


class Parameters(NamedTuple):
    """Numbers of parameters of a method.

    Attributes:
        trained: Number of trained parameters.
        training_only: Number of these that only training needs.

    Example:
        >>> from rmadapter import load_backbone, load_method
        >>> probe, backbone = load_method("linear-probe"), load_backbone("tiny")
        >>> probe.parameters(backbone, classes=10)  # features of length 40, and a bias
        Parameters(trained=410, training_only=0)
    """

    trained: int = 0
    training_only: int = 0


class LeftOut(NamedTuple):
    """What a method answers about its N shots, each as if fitted without it and its group.

    Attributes:
        table: Calibrated probabilities [N, C].
        judged: Whether an answer says what one on a new image is worth, [N] bool: not where the
            class has no other group.
        groups: Group numbers [N].
    """

    table: np.ndarray
    judged: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
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
        calibration: What the calibrated probabilities were worth on held-out images, if known.
        familiarity: What it finds on held-out images of its classes, if known.
        means: Unit class means [C, e] of its own features of the training images, if kept.
        examples: Untouched unit features [N, e] of the training images, in float16, if kept.
        remembers: Whether the function of `for_classes` learns from each image, so that answers
            depend on earlier images.
        left_out: Its answers about the shots without them, if the method knows these; not saved.

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
    calibration: Calibration | None = None
    familiarity: RejectionScore | None = None
    means: Tensor | None = None
    examples: Tensor | None = None
    remembers: bool = False
    left_out: LeftOut | None = None

    def __repr__(self) -> str:
        return f"Fitted({self.method.title!r}, {self.backbone!r}, {len(self.classes)} classes)"

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the prompt names of the classes that it was fitted to."""
        return self.known.classes

    @property
    def transform(self) -> Callable[[Image], Tensor]:
        """Return the function from an RGB image to the pixels that `states` reads.

        They are those of the image, and of its views if the method reads some.
        """
        return test_transform(self.backbone, self.method.test_views)

    @property
    def batch(self) -> int:
        """Return the number of images to answer at once."""
        return test_batch(self.method.test_views)

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
        kept = features[:: -(-len(features) // MAX_EXAMPLES)]
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
        nearest = cosines.topk(min(NEIGHBOUR_RANK, cosines.shape[1])).values[:, -1]
        return (1 - nearest).clamp(min=0)  # against rounding

    def score(self, names: Sequence[str] | None = None) -> ToLogits:
        """Return `for_classes(names)`, calibrated and without gradients.

        Args:
            names: Names of C classes; by default those that it was fitted to.
        """
        with torch.no_grad():
            logits = self.for_classes(self.classes if names is None else tuple(names))
        return torch.no_grad()(
            lambda states: (
                torch.cat(in_halves(logits, states, whole=self.remembers)) / self.temperature
            )
        )

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
        stream = decode_batches(images, self.transform, self.batch)
        for _, pixels in track(stream, -(-len(images) // self.batch), "predicting", progress):
            yield self.answers(models, pixels)[self.method.title]

    def decider(
        self,
        names: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        tree: Taxonomy | None = None,
        error: float | None = None,
        reject_rate: float | None = None,
    ) -> Decider:
        """Return what decides about its answers.

        Args:
            names: Names of C classes; by default those that it was fitted to.
            labels: Labels of the same classes in answers; by default the names.
            tree: Taxonomy of the labels, if they have parents.
            error, reject_rate: As for `Decider`.

        Raises:
            UserError: As `Decider`; or a share is to be promised by a method that learns from the
                images that it answers, or for other classes than those that it was fitted to and
                further ones.
        """
        names = self.classes if names is None else tuple(names)
        known = len(self.classes)
        is_own = names[:known] == self.classes
        is_promised = error is not None or reject_rate is not None
        if is_promised and self.remembers:
            raise UserError(NO_PROMISES)
        if is_promised and not is_own:
            raise UserError(
                "shares are promised for the classes that the model was fitted to alone, and for "
                "others after them"
            )
        return Decider(
            names if labels is None else labels,
            known,
            self.calibration if is_own else None,
            self.familiarity if is_own and self.means is not None else None,
            tree,
            error,
            reject_rate,
        )

    def answers(self, models: Mapping[str, ToLogits], pixels: Tensor) -> dict[str, Tensor]:
        """Return the probabilities [B, C] that each model gives for images that are encoded once.

        Args:
            models: This model, as `score` returns it, then others that read features.
            pixels: As `transform` gives them, [B, 3, H, W], or [B, 1 + V, 3, H, W] with V views.
        """
        return next(answers(models, [self.states(pixels, features=len(models) > 1)]))

    def states(self, pixels: Tensor, features: bool = False) -> States:
        """Return the states that `score` reads, of encoded images.

        Args:
            pixels: As for `answers`.
            features: Whether to include untouched features that the model does not read.
        """
        pixels = pixels.to(self.backbone.device)
        wanted = features or self.first is None
        return self.backbone.image.frozen(pixels, self.first, features=wanted)


class Method(ABC):
    """A few-shot method: a frozen dataclass whose fields are its settings, by default as published.

    docs/guide/your_method.md shows one in 30 lines.

    Example:
        >>> from dataclasses import dataclass
        >>> from torch import stack
        >>> from rmadapter import Fitted, Lab, Method, Parameters, Task, run_task
        >>> @dataclass(frozen=True)
        ... class NearestMean(Method):
        ...     title, source = "nearest mean", "an example"
        ...
        ...     def fit(self, backbone, shots):
        ...         x, y = shots.plain_features(), shots.labels
        ...         means = stack([x[y == label].mean(0) for label in y.unique()])
        ...         return self.restore(backbone, shots.known, {"means": means})
        ...
        ...     def restore(self, backbone, known, tensors):
        ...         def for_classes(names):
        ...             means = tensors["means"][[known.classes.index(name) for name in names]]
        ...             return lambda states: -(states.features[:, None] - means).norm(dim=-1)
        ...
        ...         return Fitted(self, backbone, known, tensors, for_classes)
        ...
        ...     def parameters(self, backbone, classes=100, shots=16):
        ...         return Parameters()  # nothing is trained
        >>> task = Task("colors", backbone="tiny", shots=4)
        >>> outcome = run_task(task, NearestMean(), Lab(progress=False))
        >>> outcome.record.score("all").images
        16
    """

    @property
    def traits(self) -> Traits:
        """Return what it says about itself."""
        return Traits()

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

    @property
    def test_views(self) -> int:
        """Return the number of random views that it reads beside each image that it answers."""
        return 0


class Untrained(Method):
    """A method that trains no parameters; by default it learns nothing from the shots."""

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        return self.restore(backbone, shots.known, {}).after(Trained(weighed=True))

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()


@torch.no_grad()
def answers(
    models: Mapping[str, ToLogits], stream: Iterable[States]
) -> Iterator[dict[str, Tensor]]:
    """Yield the probabilities [B, C] of each model on the CPU, batch by batch. Raises UserError if
    they are not finite."""
    for states in stream:
        logits = {name: score(states) for name, score in models.items()}
        yield {name: probabilities(part, name) for name, part in logits.items()}


def probabilities(logits: Tensor, name: str) -> Tensor:
    """Return probabilities [B, C] on the CPU. Raises UserError if they are not finite.

    Args:
        logits: Calibrated logits [B, C].
        name: Name of the model in the message.
    """
    table = logits.float().softmax(-1).cpu()
    if not table.isfinite().all():
        raise UserError(
            f"the answers of {name} contain NaN or infinity: its training diverged, or it has a bug"
        )
    return table


class Learner(nn.Module, ABC):
    """A module on a frozen backbone; its state is everything that a method learns.

    `first` is the image encoder's block whose input it reads, None for features alone; `reaches`
    names the sides, "image" or "text", whose blocks it runs.

    Args:
        backbone: Backbone whose encoders have blocks on these sides.

    Raises:
        UserError: An encoder on these sides has no known blocks.

    Example:
        >>> from torch import nn, ones
        >>> from rmadapter import Learner, load_backbone
        >>> from rmadapter.prompts import cosine_logits, zero_shot_weights
        >>> class Scale(Learner):  # a factor for each number of an image's features
        ...     def __init__(self, backbone):
        ...         super().__init__(backbone)
        ...         self.factors = nn.Parameter(ones(backbone.embedding_size))
        ...
        ...     def for_classes(self, names, known):
        ...         weights = zero_shot_weights(self.backbone, names, known.templates)
        ...         return lambda states: cosine_logits(
        ...             self.backbone, self.factors * states.features, weights
        ...         )
        >>> list(Scale(load_backbone("tiny")).state_dict())
        ['factors']
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


Module = TypeVar("Module", bound=Learner)


class ModuleMethod(Method, Generic[Module]):
    """A method that learns one module by minimising an objective.

    A new module that loads the trained state answers like the trained one.

    Example:
        >>> from rmadapter import ModuleMethod, load_backbone, load_method
        >>> method, backbone = load_method("clip-adapter"), load_backbone("tiny")
        >>> isinstance(method, ModuleMethod)
        True
        >>> sorted(method.module(backbone).state_dict())
        ['down.weight', 'up.weight']
        >>> method.parameters(backbone).trained  # down and up, 40 x 10 each
        800
    """

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """Return how the module is optimised."""

    @abstractmethod
    def module(self, backbone: Backbone, seed: int = 1) -> Module:
        """Return an untrained module.

        Args:
            backbone: Frozen backbone.
            seed: Seed of its initialisation.
        """

    def objective(self, module: Module, shots: Shots) -> Loss:
        """Return the loss that `fit` minimises; a method with another `fit` needs none.

        Args:
            module: Untrained module.
            shots: Images, and whatever else it may use.

        Returns:
            Function from a `Batch` to a scalar, or to terms, as `minimise` takes it.
        """
        raise NotImplementedError(f"{self.title} has neither fit nor objective")

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed)
        return self.train(module, self.objective(module, shots), shots)

    def train(
        self,
        module: Module,
        loss: Loss,
        shots: Shots,
        source: Source | None = None,
        recipe: Recipe | None = None,
        after_epoch: Callable[[int], object] = lambda epoch: None,
        times: Callable[[str], float] = lambda name: 1.0,
    ) -> Fitted:
        """Train a module.

        Args:
            module: Module to train.
            loss: As for `minimise`.
            shots: Images to train on.
            source: Source of the states of a batch; by default those that the module reads.
            recipe: Optimiser and its schedule; by default those of the settings.
            after_epoch: As for `minimise`.
            times: As for `minimise`.

        Returns:
            The fitted method.
        """
        source = shots.source(module.first) if source is None else source
        recipe = recipe or self.recipe
        trained = minimise(module, loss, recipe, shots, source, after_epoch, times)
        return self.restore(module.backbone, shots.known, module.state_dict()).after(trained)

    def blank(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Module:
        """Return a module that can load the state of a trained one.

        Args:
            backbone: Backbone of the fit.
            known: Classes and templates of the fit.
            tensors: State of the trained module.
        """
        return self.module(backbone)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        module = self.blank(backbone, known, tensors).eval()
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


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    """Return one of a saved method's tensors, in float32. shape: its expected sides, -1 for any
    length.

    Raises RuntimeError, as torch does for a module's tensors, if it has another shape or no
    floating-point numbers, and KeyError if it is missing.
    """
    tensor = tensors[name]
    fits = tensor.ndim == len(shape) and all(
        want in (-1, side) for want, side in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not tensor.is_floating_point():
        expected = ", ".join("any" if side < 0 else str(side) for side in shape)
        raise RuntimeError(
            f"{name} is {tensor.dtype} of {[*tensor.shape]}, not numbers of [{expected}]"
        )
    return tensor.float()
