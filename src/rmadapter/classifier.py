"""RMAdapterClassifier: few-shot image classification with scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rmadapter.config import Config
from rmadapter.data.images import ImageSet, ImageSource, prompt_name
from rmadapter.errors import UserError


class RMAdapterClassifier(ClassifierMixin, BaseEstimator):
    """Adapt a CLIP-like backbone to a few images per class; classify any image among any class names.

    backbone: a name that `load_backbone` understands. preset: "rmadapter" or "mma". shots: images drawn per class,
    0 for all. seed: of the draw, the initialisation and the order of batches. progress: bars on stderr. Every other
    field of `Config` can be given by name: `RMAdapterClassifier(rank=16, epochs=10)`.

    Images are paths, PIL images or arrays [H, W, 3]; labels are class names, or integers with `class_names`.
    After fit: `classes_` (labels in the order of `predict_proba`'s columns), `model_` (AdaptedCLIP), `history_`.
    """

    def __init__(
        self,
        backbone: str = "pocket",
        *,
        preset: str = "rmadapter",
        shots: int = 16,
        seed: int = 1,
        progress: bool = False,
        **fields: Any,
    ) -> None:
        self.backbone, self.preset, self.shots, self.seed, self.progress = backbone, preset, shots, seed, progress
        self.fields = fields

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name, further fields of `Config` among them."""
        names = ("backbone", "preset", "shots", "seed", "progress")
        return {**{name: getattr(self, name) for name in names}, **self.fields}

    def set_params(self, **params: Any) -> RMAdapterClassifier:
        """Set parameters by name; unknown ones are refused by `fit`."""
        for name, value in params.items():
            if name in ("backbone", "preset", "shots", "seed", "progress"):
                setattr(self, name, value)
            else:
                self.fields[name] = value
        return self

    def _config(self) -> Config:
        values = {"backbone": self.backbone, "shots": self.shots, "seed": self.seed, **self.fields}
        return Config.make(values, self.preset)

    def fit(
        self, images: Sequence[ImageSource], labels: Sequence[Any], class_names: Sequence[str] | None = None
    ) -> RMAdapterClassifier:
        """Train on N images and N labels. class_names: what integer labels 0..C-1 are called in the prompts.

        Raises UserError for an unknown field, lists of different lengths, an unreadable image or an empty class.
        """
        from rmadapter.backbone import load_backbone
        from rmadapter.data.fewshot import few_shot, half, split_digest
        from rmadapter.evaluation import novelty_quantiles
        from rmadapter.features import freeze_images
        from rmadapter.model import AdaptedCLIP
        from rmadapter.train import find_device, train

        config = self._config()
        labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
        few = few_shot({"all": ImageSet.from_lists(images, labels, class_names)}, config.shots, config.seed)
        model = AdaptedCLIP(load_backbone(config.backbone), config).to(find_device(config.device))
        shots = half(few.train, config.classes)
        frozen = freeze_images(model, shots, progress=self.progress) if config.augmentation == "none" else None
        done = train(model, shots, frozen=frozen, progress=self.progress)
        self.history_, self.seconds_ = done.history, done.seconds
        self.quantiles_ = novelty_quantiles(model, shots, frozen, self.progress)
        self.model_, self.split_digest_ = model, split_digest(few)
        self.class_names_ = shots.classes
        # `predict` answers with labels as the caller writes them: "sea_horse", although the prompt says "sea horse".
        written = {prompt_name(label).casefold(): label for label in labels if isinstance(label, str)}
        numbers = [few.train.classes.index(name) for name in shots.classes]
        self.classes_ = np.array([written[name.casefold()] for name in shots.classes] if written else numbers)
        return self

    def set_classes(self, names: Sequence[str]) -> RMAdapterClassifier:
        """Let `predict` answer these classes and no others, by name alone; nothing is trained."""
        check_is_fitted(self, "model_")
        if isinstance(names, str):
            raise UserError(f"class names come as a list: [{names!r}]")
        prompts = tuple(prompt_name(name) for name in names)
        if not prompts or not all(prompts) or len({name.casefold() for name in prompts}) < len(prompts):
            raise UserError(f"class names {list(names)}: give at least one, none empty and none twice")
        self.class_names_, self.classes_ = prompts, np.array(list(names))
        return self

    def add_classes(self, names: Sequence[str]) -> RMAdapterClassifier:
        """Let `predict` answer further classes, by name alone. Raises UserError for one that is there already."""
        check_is_fitted(self, "model_")
        before = self.classes_.tolist() if self.classes_.dtype.kind in "US" else list(self.class_names_)
        return self.set_classes(names if isinstance(names, str) else [*before, *names])

    def predict_proba(self, images: Any) -> np.ndarray:
        """Probabilities [N, C] of N images, or [C] of a single one, in the order of `classes_`."""
        import torch

        from rmadapter.data.transforms import batches

        check_is_fitted(self, "model_")
        single, images = _as_list(images)
        everything = ImageSet(tuple(images), (0,) * len(images), self.class_names_)
        weights = self.model_.class_weights(self.class_names_)
        rows = []
        with torch.inference_mode():
            for pictures in batches(everything, self.model_.backbone.preprocess, 64):
                features = self.model_.encode_image(pictures.to(self.model_.device))
                rows.append(self.model_.logits(features, weights).softmax(-1).cpu().numpy())
        probabilities = np.concatenate(rows) if rows else np.empty((0, len(self.class_names_)), np.float32)
        return probabilities[0] if single else probabilities

    def predict(self, images: Any) -> Any:
        """The label of a single image, or an array of N labels."""
        columns = self.predict_proba(images).argmax(-1)  # first, for it tells whether there is a model
        best = self.classes_[columns]
        return best.item() if np.ndim(best) == 0 else best

    def score(self, images: Sequence[ImageSource], labels: Sequence[Any], sample_weight: Any = None) -> float:
        """Accuracy between 0 and 1, as in scikit-learn."""
        wanted, answers = np.asarray(labels), self.predict(list(images))
        if wanted.shape != answers.shape:
            raise UserError(f"{len(answers)} images and {wanted.size} labels: give one label for each image")
        return float(np.average(answers == wanted, weights=sample_weight))

    def novelty(self, images: Any) -> Any:
        """How unlike the training images each image is: percentile (0..100) of its reconstruction error among them."""
        import torch

        from rmadapter.data.transforms import batches
        from rmadapter.metrics import percentile_of

        check_is_fitted(self, "model_")
        if not self.quantiles_:
            raise UserError("this model has no image reconstruction branch: fit it with lambda_image_rec above 0")
        single, images = _as_list(images)
        pictures = batches(ImageSet(tuple(images), (0,) * len(images), ("",)), self.model_.backbone.preprocess, 64)
        errors = torch.cat([self.model_.novelty(batch.to(self.model_.device)).cpu() for batch in pictures])
        scores = percentile_of(errors.numpy(), np.asarray(self.quantiles_))
        return float(scores[0]) if single else scores

    def save(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the adapters (half: as float16), the configuration and the classes; the backbone stays outside."""
        from rmadapter.checkpoint import save_adapter, versions

        check_is_fitted(self, "model_")
        run = {
            "versions": versions(),
            "config": self.model_.config.model_dump(mode="json"),
            "backbone": {"name": self.model_.backbone.name, "digest": self.model_.backbone.digest},
            "seed": self.model_.config.seed,
            "split_digest": self.split_digest_,
            "parameters": self.model_.adapters.parameter_counts(),
            "seconds": {"train": self.seconds_},
            "history": self.history_,
            "novelty_quantiles": self.quantiles_,
            "labels": self.classes_.tolist(),
        }
        save_adapter(Path(folder), self.model_, self.class_names_, run, half=half)

    @classmethod
    def load(cls, folder: str | Path) -> RMAdapterClassifier:
        """A classifier from a folder that `save` or `rmadapter fit` wrote. Raises UserError as `load_adapter` does."""
        from rmadapter.checkpoint import load_adapter

        model, names, run = load_adapter(Path(folder))
        config = model.config.model_dump()
        known = {name: config.pop(name) for name in ("backbone", "shots", "seed")}
        self = cls(**known, **config)
        self.model_, self.class_names_ = model, names
        self.classes_ = np.array(run.get("labels", names))
        self.history_, self.quantiles_ = run.get("history", []), run.get("novelty_quantiles", [])
        self.split_digest_, self.seconds_ = run.get("split_digest", ""), run.get("seconds", {}).get("train", 0.0)
        return self


def _as_list(images: Any) -> tuple[bool, list[ImageSource]]:
    """Whether it was one image, and the images as a list; an array [N, H, W, 3] is N images."""
    from PIL import Image

    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        return True, [images]
    return False, list(images)
