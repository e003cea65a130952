"""What two models, untouched and adapted, answer on a set of labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmadapter.errors import UserError

if TYPE_CHECKING:
    from rmadapter.data.images import ImageSet
    from rmadapter.features import FrozenImages
    from rmadapter.model import AdaptedCLIP


@dataclass(frozen=True)
class Evaluation:
    """Answers on N images over C classes.

    title: what was evaluated, e.g. "test, base classes"
    classes: C class names
    labels: [N] int, index into `classes`
    probabilities: [N, C] float32, the adapted model
    zero_shot: [N, C] float32, the untouched backbone with the same prompts
    novelty: [N] float32, reconstruction error as a percentile (0..100) of the training images'; empty without it
    """

    title: str
    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    zero_shot: np.ndarray
    novelty: np.ndarray

    def summary(self) -> dict[str, float]:
        """Accuracies in percent, chance level and counts."""
        from rmadapter.metrics import accuracy

        return {
            "accuracy": accuracy(self.probabilities, self.labels),
            "zero_shot_accuracy": accuracy(self.zero_shot, self.labels),
            "chance": 100 / len(self.classes),
            "n_images": len(self.labels),
            "n_classes": len(self.classes),
        }


def evaluate(
    model: AdaptedCLIP,
    images: ImageSet,
    title: str = "test",
    *,
    quantiles: Sequence[float] = (),
    frozen: FrozenImages | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Evaluation:
    """Ask both models about every image; the frozen part of the image encoder runs once for the two.

    quantiles: of the training images' reconstruction errors, as `novelty_quantiles` gives them. frozen: the images'
    frozen activations, which any number of models on one backbone can share. Raises UserError for an empty set.
    """
    import torch

    from rmadapter.features import image_states
    from rmadapter.metrics import percentile_of
    from rmadapter.model import image_error

    if not len(images):
        raise UserError(f"{title}: there are no images to evaluate")
    with model.dial(0):
        untouched = model.class_weights(images.classes)
    weights = model.class_weights(images.classes)
    adapted, zero_shot, errors = [], [], []
    with torch.inference_mode():
        for states in image_states(model, images, frozen, f"evaluating {title}", batch_size, progress):
            features, error = model.features("image", states, reconstruct=bool(quantiles))
            features = states.features if model.alpha == 0 else features
            adapted.append(model.logits(features, weights).softmax(-1).cpu())
            zero_shot.append(model.logits(states.features, untouched).softmax(-1).cpu())
            errors.append(image_error(error, len(features)).cpu())
    novelty = percentile_of(torch.cat(errors).numpy(), np.asarray(quantiles)) if quantiles else np.empty(0)
    return Evaluation(
        title,
        images.classes,
        np.asarray(images.labels),
        torch.cat(adapted).numpy(),
        torch.cat(zero_shot).numpy(),
        novelty.astype(np.float32),
    )


def novelty_quantiles(
    model: AdaptedCLIP, images: ImageSet, frozen: FrozenImages | None = None, progress: bool = True
) -> list[float]:
    """Percentiles 0..100 of the images' reconstruction errors; empty without a reconstruction branch."""
    import torch

    from rmadapter.features import image_states
    from rmadapter.model import image_error

    if not any(adapter.reconstructs for adapter in model.adapters.image.values()):
        return []
    with torch.inference_mode():
        errors = [
            image_error(model.features("image", states, reconstruct=True)[1], len(states.features)).cpu()
            for states in image_states(model, images, frozen, "novelty scale", progress=progress)
        ]
    return [float(q) for q in np.percentile(torch.cat(errors).numpy(), range(101))]
