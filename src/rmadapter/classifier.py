"""FewShotClassifier: few-shot image classification with scikit-learn's conventions, by any method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rmadapter.data.fewshot import half
from rmadapter.data.images import ImageSet, ImageSource
from rmadapter.data.names import places, prompt_names
from rmadapter.errors import UserError

OWN = ("backbone", "method", "shots", "seed", "progress")


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Adapt a CLIP-like backbone to a few images per class; classify any image among any class names.

    backbone: a name that `load_backbone` understands. method: a name that `load_method` understands, or "auto", which
    chooses one by cross-validation of the shots and says in `choice_` how. shots: images drawn per class, 0 for all.
    seed: of the draw, the initialisation and the order of batches. progress: bars on stderr. Every setting of the
    method, the task or the machine can be given by name: `FewShotClassifier(rank=16, epochs=10, device="cpu")`.

    Images are paths, PIL images or arrays [H, W, 3]; labels are class names, or integers with `class_names`.
    After fit: `classes_` (labels in the order of `predict_proba`'s columns), `fitted_` (Fitted), `history_`.
    """

    def __init__(
        self,
        backbone: str = "pocket",
        *,
        method: str = "rmadapter",
        shots: int = 16,
        seed: int = 1,
        progress: bool = False,
        **settings: Any,
    ) -> None:
        self.backbone, self.method, self.shots, self.seed, self.progress = backbone, method, shots, seed, progress
        self.settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name, further settings among them."""
        return {**{name: getattr(self, name) for name in OWN}, **self.settings}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Set parameters by name; unknown ones are refused by `fit`."""
        for name, value in params.items():
            if name in OWN:
                setattr(self, name, value)
            else:
                self.settings[name] = value
        return self

    def fit(
        self, images: Sequence[ImageSource], labels: Sequence[Any], class_names: Sequence[str] | None = None
    ) -> FewShotClassifier:
        """Train on N images and N labels. class_names: what integer labels 0..C-1 are called in the prompts.

        Raises UserError for an unknown setting, lists of different lengths, an unreadable image or an empty class.
        """
        from rmadapter.choose import Auto, asked, choose
        from rmadapter.folds import FOLDS, Folds
        from rmadapter.methods import AUTO
        from rmadapter.request import Request
        from rmadapter.run import Lab, run_task

        given = {"backbone": self.backbone, "shots": self.shots, "seed": self.seed, **self.settings}
        wanted = asked(given) if self.method == AUTO else Request.make(given, self.method)
        labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
        found = ImageSet.from_lists(images, labels, class_names)
        lab = Lab(wanted.machine, progress=self.progress)
        lab.add("", {"train": found, "test": found.subset([])})
        method, name, temperature = wanted.method, wanted.name, None
        if isinstance(method, Auto):
            folds = Folds.make(wanted.task, lab, FOLDS)
            self.choice_ = choose(folds, method)
            method, name = method.method(self.choice_.chosen), self.choice_.chosen
            temperature = folds.temperature(method, name)
        fitted = run_task(wanted.task, method, lab, name, temperature=temperature).fitted
        self.fitted_, self.history_ = fitted, fitted.trained.history
        self.class_names_, self._name = fitted.classes, name
        self.classes_ = np.array(half(found, wanted.task.classes).written)
        return self

    def set_classes(self, names: Sequence[str]) -> FewShotClassifier:
        """Let `predict` answer these classes and no others, by name alone; nothing is trained.

        Raises UserError for names that are empty or given twice, and NotApplicable where the method cannot know them.
        """
        check_is_fitted(self, "fitted_")
        if isinstance(names, str):
            raise UserError(f"class names come as a list: [{names!r}]")
        if not len(names):
            raise UserError("class names []: give at least one")
        prompts = tuple(prompt_names(names).values())
        self.fitted_.score(prompts)  # complains now rather than at the first image
        self.class_names_, self.classes_ = prompts, np.array(list(names))
        return self

    def add_classes(self, names: Sequence[str]) -> FewShotClassifier:
        """Let `predict` answer further classes, by name alone. Raises as `set_classes`."""
        check_is_fitted(self, "fitted_")
        before = self.classes_.tolist() if self.classes_.dtype.kind in "US" else list(self.class_names_)
        return self.set_classes(names if isinstance(names, str) else [*before, *names])

    def predict_proba(self, images: Any) -> np.ndarray:
        """Probabilities [N, C] of N images, or [C] of a single one, in the order of `classes_`."""
        check_is_fitted(self, "fitted_")
        single, images = _as_list(images)
        found = self.fitted_.probabilities(images, self.class_names_, progress=self.progress)
        rows = [part.numpy() for part in found]
        table = np.concatenate(rows) if rows else np.empty((0, len(self.class_names_)), np.float32)
        return table[0] if single else table

    def predict(self, images: Any) -> Any:
        """The label of a single image, or an array of N labels."""
        columns = self.predict_proba(images).argmax(-1)  # first, for it tells whether there is a model
        best = self.classes_[columns]
        return best.item() if np.ndim(best) == 0 else best

    def score(self, images: Sequence[ImageSource], labels: Sequence[Any], sample_weight: Any = None) -> float:
        """Accuracy between 0 and 1, as in scikit-learn; labels as in `classes_`, or as the prompts have them.

        Raises UserError for a label that is no class.
        """
        check_is_fitted(self, "fitted_")
        images, wanted = list(images), np.asarray(labels)
        if wanted.shape != (len(images),):
            raise UserError(f"{len(images)} images and {wanted.size} labels: give one label for each image")
        numbers = places(wanted.tolist(), self.classes_.tolist(), self.class_names_)
        return float(np.average(self.predict_proba(images).argmax(-1) == numbers, weights=sample_weight))

    def save(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the model (half: as float16), its settings and the classes; the backbone stays outside."""
        from rmadapter.checkpoint import save

        check_is_fitted(self, "fitted_")
        save(folder, self.fitted_, self._name, tuple(self.classes_.tolist()), tuple(self.class_names_), half=half)

    @classmethod
    def load(cls, folder: str | Path, *, method: str = "", backbone: str = "") -> FewShotClassifier:
        """A classifier from a folder that `save` or `rmadapter fit` wrote; the rest is as in `checkpoint.load`."""
        from rmadapter.checkpoint import load
        from rmadapter.settings import settings_of

        saved = load(Path(folder), backbone or None, method=method)
        fitted = saved.fitted
        self = cls(fitted.backbone.name, method=saved.name, **settings_of(fitted.method))
        self.fitted_, self.history_, self._name = fitted, fitted.trained.history, saved.name
        self.class_names_, self.classes_ = saved.names, np.array(saved.labels)
        return self


RMAdapterClassifier = FewShotClassifier  # its name in version 0.1, when it knew one method


def _as_list(images: Any) -> tuple[bool, list[ImageSource]]:
    """Whether it was one image, and the images as a list; an array [N, H, W, 3] is N images."""
    from PIL import Image

    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        return True, [images]
    return False, list(images)
