"""FewShotClassifier: few-shot classification by any method, with scikit-learn's conventions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from rmadapter.artifacts import checkpoint
from rmadapter.backbones.load import shared
from rmadapter.backbones.names import joined
from rmadapter.backbones.published import caveat
from rmadapter.data.decode import plain_image
from rmadapter.data.fewshot import half
from rmadapter.data.image_set import plain_labels, single_label, with_weights
from rmadapter.data.names import Label, class_indices, nfc, prompt_names
from rmadapter.data.read import ImageSource, check_exist, image_list, image_set
from rmadapter.errors import UserError
from rmadapter.methods import DEFAULT
from rmadapter.runs.evaluate import shuffled
from rmadapter.runs.features import encode, examine, transformed
from rmadapter.runs.fit import fit_images
from rmadapter.runs.promises import Answered
from rmadapter.runs.request import Request, check_names
from rmadapter.settings import settings_of
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import is_watched, without_notes
from rmadapter.task import qualified_settings
from rmadapter.training.contract import NO_PROMISES
from rmadapter.training.shots import Callback

ARGUMENTS = ("backbone", "method", "shots", "seed", "progress", "class_names", "class_weight")


class FewShotClassifier(TransformerMixin, ClassifierMixin, BaseEstimator):
    """A classifier of a few images per class, which can be asked about any class names.

    It adapts a CLIP-like backbone. Images are paths, PIL images, arrays [H, W, 3] or torch tensors
    [3, H, W], of uint8 or of floats in 0..1; N of them are a list, or an array or tensor with N in
    front. Labels are class names or integers.

    Features of images are kept in the cache on disk, 1 GB at most, so that no image is encoded
    twice; `disk_cache=0` keeps none. `disk_cache=5` (GB) keeps what methods read that train inside
    the image encoder, too.

    After `fit` it has `classes_`, the labels in the order of `predict_proba`'s columns; `fitted_`,
    a `Fitted`; `history_`, the loss terms of each step; `backbones_`, where it chose the backbone.
    `RMAdapterClassifier` is the same class.

    Args:
        backbone: A name that `load_backbone` accepts; or several, of which the one is chosen on
            which a linear probe is most accurate, by cross-validation of the shots: "A,B" or
            ("A", "B"). "auto" stands for those on this disk.
        method: A name that `load_method` accepts.
        shots: Number of images drawn per class, 0 for all.
        seed: Seed of the draw, the initialisation and the order of batches.
        progress: Whether to show bars and notes on stderr; None for where a person sees them, in a
            notebook or a terminal.
        class_names: Names of integer labels 0..C-1 in the prompts, also for the copies that
            scikit-learn's ensembles fit to numbers.
        class_weight: Label -> weight, or "balanced".
        settings: Settings of the method, the task or the machine by name, such as `rank=16,
            device="cpu"`.

    Example:
        >>> from rmadapter import FewShotClassifier
        >>> model = FewShotClassifier("tiny", method="ridge", shots=4).fit("colors")
        >>> model.predict("colors/test/red/0.png")
        'red'
        >>> model.predict_proba(["colors/test/red/0.png", "colors/test/blue/0.png"]).shape
        (2, 4)
        >>> model.set_classes(["red", "violet"]).classes_.tolist()
        ['red', 'violet']
    """

    def __init__(
        self,
        backbone: str | Sequence[str] = "pocket-3",
        *,
        method: str = DEFAULT,
        shots: int = 0,
        seed: int = 1,
        progress: bool | None = None,
        class_names: Sequence[str] | None = None,
        class_weight: Mapping[Label, float] | str | None = None,
        **settings: object,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.shots = shots
        self.seed = seed
        self.progress = progress
        self.class_names = class_names
        self.class_weight = class_weight
        self.settings = settings

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """Return all parameters by name, including further settings.

        Args:
            deep: Without effect; scikit-learn passes it.
        """
        return {**{name: getattr(self, name) for name in ARGUMENTS}, **self.settings}

    def set_params(self, **params: object) -> FewShotClassifier:
        """Set parameters by name.

        Args:
            params: Arguments of the class, and settings.

        Returns:
            The classifier itself.

        Raises:
            UserError: A name is unknown; then none is set.
        """
        arguments = {name: value for name, value in params.items() if name in ARGUMENTS}
        settings = {name: value for name, value in params.items() if name not in ARGUMENTS}
        if settings:
            check_names(settings, str(arguments.get("method", self.method)))
        for name, value in arguments.items():
            setattr(self, name, value)
        self.settings = {**self.settings, **settings}
        return self

    def fit(
        self,
        images: object,
        labels: Sequence[object] | None = None,
        class_names: Sequence[str] | None = None,
        sample_weight: Sequence[float] | None = None,
        *,
        callbacks: Iterable[Callback] = (),
    ) -> FewShotClassifier:
        """Train on N images and N labels, or on images that have labels.

        Args:
            images: A list; or without `labels` an ImageSet, the result of `read_images` (its train
                images), a folder, a table, or a pandas DataFrame with columns such as path and
                label.
            labels: Class name or integer of each image.
            class_names: Class names that replace those of the classifier.
            sample_weight: [N], how much each image counts.
            callbacks: Functions that are called after every step of the training.

        Returns:
            The classifier itself.

        Raises:
            UserError: Unknown setting, lists of different lengths, a missing file or label,
                unreadable image, empty class, or weights with a method that cannot use them.
        """
        names = self.class_names if class_names is None else class_names
        common = {"backbone": joined(self.backbone), "shots": self.shots, "seed": self.seed}
        request = Request.make({**common, **self.settings}, self.method)
        data, shots = image_set(images, labels, names), request.task.shots
        check_exist(data.images)  # also those that are not drawn
        natural = request.task.draw == "natural"  # its counts are known only once it is drawn
        data = with_weights(data, sample_weight, None if natural else self.class_weight, shots)
        weight = self.class_weight if natural else None
        with without_notes(not self._shows):
            learnt = fit_images(request, data, weight, self._shows, tuple(callbacks), self._keeps)
        _warn_once(learnt.fitted.backbone.name)
        self.fitted_, self._name = learnt.fitted, learnt.name
        self.history_, self.class_names_ = learnt.fitted.trained.history, learnt.fitted.classes
        self.classes_ = np.array(half(data, request.task.classes).written)
        self.__dict__.pop("backbones_", None)
        if learnt.backbones:
            self.backbones_ = learnt.backbones
        return self

    def set_classes(self, names: Sequence[str]) -> FewShotClassifier:
        """Let `predict` answer exactly these classes, by name alone; nothing is trained.

        Args:
            names: Class names, at least one; a label that it already answers keeps its prompt name.

        Returns:
            The classifier itself.

        Raises:
            UserError: Names are empty or given twice.
            NotApplicable: The method cannot handle them.
        """
        check_is_fitted(self, "fitted_")
        if isinstance(names, str):
            raise UserError(f"give class names as a list: [{names!r}]")
        if not len(names):
            raise UserError("no class names: give at least one")
        labels = map(nfc, self._labels())
        known = dict(zip(labels, self.class_names_, strict=True))
        prompts = tuple(prompt_names(names, known).values())
        self.fitted_.score(prompts)  # raises now rather than at the first image
        self.class_names_, self.classes_ = prompts, np.array(list(names))
        return self

    def add_classes(self, names: Sequence[str]) -> FewShotClassifier:
        """Let `predict` answer further classes, by name alone.

        Labels that were numbers become names, since new classes have no numbers.

        Args:
            names: Names of the new classes.

        Returns:
            The classifier itself.

        Raises:
            UserError: Names are empty or given twice.
            NotApplicable: The method cannot handle them.
        """
        check_is_fitted(self, "fitted_")
        return self.set_classes(names if isinstance(names, str) else [*self._labels(), *names])

    def _labels(self) -> list[str]:
        """Return the labels; for numbers, their names in the prompts."""
        named = self.classes_.dtype.kind in "US"
        return self.classes_.tolist() if named else list(self.class_names_)

    @property
    def _shows(self) -> bool:
        """Whether bars and notes are shown."""
        return is_watched() if self.progress is None else self.progress

    @property
    def _keeps(self) -> bool:
        """Whether features are kept on disk."""
        return self.settings.get("disk_cache") != 0

    def transform(self, X: object) -> np.ndarray:
        """Return image features, as the fitted method compares them with classes.

        Of a method that leaves the image encoder as it is, these are those of `encode`.

        Args:
            X: N images, or a single one.

        Returns:
            [N, e] of float32, each row of length 1; of a single image [e].

        Raises:
            NotApplicable: The method has no image features.
            UserError: An image is unreadable.

        Example:
            >>> from rmadapter import FewShotClassifier
            >>> model = FewShotClassifier("tiny", method="clip-adapter", shots=4).fit("colors")
            >>> model.transform(["colors/test/red/0.png", "colors/test/blue/0.png"]).shape
            (2, 40)
        """
        check_is_fitted(self, "fitted_")
        single, images = _as_list(X)
        table = transformed(self.fitted_, images, self._shows, self.class_names_, self._keeps)
        return table[0] if single else table

    def encode(self, images: object) -> np.ndarray:
        """Return image features of the untouched backbone; nothing need be fitted.

        Args:
            images: N images, or a single one.

        Returns:
            [N, e] of float32, each row of length 1; of a single image [e].

        Raises:
            UserError: An image is unreadable, or the backbone is to be chosen and nothing is
                fitted.

        Example:
            >>> from rmadapter import FewShotClassifier
            >>> FewShotClassifier("tiny").encode("colors/test/red/0.png").shape
            (40,)
        """
        fitted, single, images = getattr(self, "fitted_", None), *_as_list(images)
        device = find_device(str(self.settings.get("device", "auto")))
        backbone = fitted.backbone if fitted else shared(joined(self.backbone), device)
        table = encode(backbone, images, self._shows, self._keeps)
        return table[0] if single else table

    def predict_proba(self, images: object) -> np.ndarray:
        """Return probabilities in the order of `classes_`.

        Args:
            images: N images, or a single one.

        Returns:
            [N, C]; of a single image [C].

        Raises:
            UserError: An image is unreadable.
        """
        check_is_fitted(self, "fitted_")
        single, listed = _as_list(images)
        table, _ = examine(
            self.fitted_,
            listed,
            self._shows,
            self.class_names_,
            with_distances=False,
            keep=self._keeps,
        )
        return table[0] if single else table

    def predict(self, images: object, *, error: float | None = None) -> Any:  # of the user's type
        """Return the most probable labels.

        Args:
            images: N images, or a single one.
            error: Share of images, above 0 and below 1, that may get a wrong label. The others that
                `predict_set` gives more than one label get None; labels are Python objects then.

        Returns:
            An array of N labels; of a single image its label.

        Raises:
            UserError: An image is unreadable, or as `predict_set`.

        Example:
            >>> from rmadapter import FewShotClassifier
            >>> model = FewShotClassifier("tiny", method="linear-probe", shots=8).fit("colors")
            >>> model.predict("colors/test/red/0.png", error=0.2)
            'red'
        """
        if error is not None:
            single, sets = self._sets(images, error)
            answers = [labels[0] if len(labels) == 1 else None for labels in sets]
            return answers[0] if single else np.array(answers, dtype=object)
        columns = self.predict_proba(images).argmax(-1)  # first, since it checks for a model
        best = self.classes_[columns]
        return best.item() if np.ndim(best) == 0 else best

    def predict_set(self, images: object, *, error: float = 0.05) -> list[Any]:
        """Return the labels that may be right.

        The promise: none of them is right for a share of at most `error` of images like those of
        the calibration. With images that `calibrate` was given, it holds in nine of ten such
        calibrations. `fit` calibrates by shots, answered by models that did not see them and so are
        not the final one: its promise is an estimate (docs/studies/promises.md). A run of
        `rmadapter fit` whose judgement measured that an error was not kept gives a UserWarning that
        says so.

        Args:
            images: N images, or a single one.
            error: Share of images, above 0 and below 1.

        Returns:
            A list of labels for each image, the most probable first; of a single image its list.

        Raises:
            UserError: There are too few images, or none, to promise it by, classes have been set
                since, or an image is unreadable.

        Example:
            >>> from rmadapter import FewShotClassifier
            >>> model = FewShotClassifier("tiny", method="linear-probe", shots=8).fit("colors")
            >>> model.predict_set("colors/test/red/0.png", error=0.2)
            ['red']
        """
        single, sets = self._sets(images, error)
        return sets[0] if single else sets

    def _sets(self, images: object, error: float) -> tuple[bool, list[Any]]:
        """Return whether it is a single image, and the labels of each prediction set."""
        check_is_fitted(self, "fitted_")
        own = dict(zip(map(str, self.classes_), self.classes_.tolist(), strict=True))
        decider = self.fitted_.decider(self.class_names_, [*own], error=error)
        doubt = decider.calibration.doubt(error) if decider.calibration else ""
        if doubt:
            warnings.warn(doubt, stacklevel=3)
        single, listed = _as_list(images)
        answers = decider.answer(self.predict_proba(listed))
        return single, [[own[label] for label in answer.labels] for answer in answers]

    def is_familiar(self, images: object, *, turn_away: float = 0.05) -> Any:  # a bool, or an array
        """Return whether images are of the classes of the fit at all.

        Of images of these classes that are like those of the fit, a share of at most `turn_away` is
        called unfamiliar, in nine of ten draws of such images. How many others are found depends on
        how unlike they are. An image whose most probable class was added by name is familiar.

        Args:
            images: N images, or a single one.
            turn_away: Share of images, above 0 and below 1.

        Returns:
            An array [N] of bool; of a single image a bool.

        Raises:
            UserError: There are too few images, or none, to promise it by, classes have been set
                that are not those of the fit and further ones, or an image is unreadable.

        Example:
            >>> from rmadapter import FewShotClassifier
            >>> model = FewShotClassifier("tiny", method="linear-probe", shots=8).fit("colors")
            >>> model.is_familiar("colors/test/red/0.png", turn_away=0.1)
            True
        """
        check_is_fitted(self, "fitted_")
        decider = self.fitted_.decider(self.class_names_, reject_rate=turn_away)
        single, listed = _as_list(images)
        found = examine(self.fitted_, listed, self._shows, self.class_names_, keep=self._keeps)
        answers = decider.familiar(*found)
        return bool(answers[0]) if single else answers

    def calibrate(
        self, images: object, labels: Sequence[object] | None = None
    ) -> FewShotClassifier:
        """Promise errors, and shares to turn away, by images that `fit` did not see.

        One image of each group counts, where the images have groups.

        Args:
            images: Images, as for `fit`; if they have splits, the test images are used.
            labels: Labels as in `classes_` or as in the prompts; None if the images have labels.

        Returns:
            The classifier itself.

        Raises:
            UserError: As `score`, if classes were set by name, and for a method that learns from
                the images that it answers.
        """
        images, rows, groups = self._labelled(images, labels)
        if self.fitted_.remembers:
            raise UserError(NO_PROMISES)
        if tuple(self.class_names_) != self.fitted_.classes:
            raise UserError("classes were set by name: calibrate first")
        table, far = examine(self.fitted_, images, self._shows, keep=self._keeps)
        answers = Answered(table, rows, groups, distances=far)
        self.fitted_ = answers.calibrate(self.fitted_, "held out", self.seed)
        return self

    def score(
        self,
        images: object,
        labels: Sequence[object] | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy between 0 and 1, as in scikit-learn.

        Args:
            images: Images, as for `fit`; if they have splits, the test images are used.
            labels: Labels as in `classes_` or as in the prompts; None if the images have labels.
            sample_weight: [N], how much each image counts.

        Raises:
            UserError: A label is no class, there are splits without test images, or an image is
                unreadable.
        """
        images, numbers, _ = self._labelled(images, labels)
        rows = np.arange(len(images))
        if self.fitted_.remembers:  # in the order of `eval`, since data sets are sorted by class
            rows = shuffled(len(images), self.seed).numpy()
        right = self.predict_proba([images[row] for row in rows]).argmax(-1) == numbers[rows]
        weights = None if sample_weight is None else np.asarray(sample_weight)[rows]
        return float(np.average(right, weights=weights))

    def _labelled(
        self, images: object, labels: Sequence[object] | None
    ) -> tuple[list[ImageSource], np.ndarray, np.ndarray]:
        """Return N images, the indices of their labels in `classes_`, and the number of each one's
        group."""
        check_is_fitted(self, "fitted_")
        groups = None
        if labels is None:
            images = image_set(images, split="test")
            labels = [images.written[label] for label in images.labels]
            groups = images.group_numbers
        listed = image_list(images)
        true = [single_label(label, row) for row, label in enumerate(plain_labels(labels))]
        if len(true) != len(listed):
            raise UserError(f"{len(listed)} images and {len(true)} labels: give one per image")
        numbers = class_indices(true, self.classes_.tolist(), self.class_names_)
        rows = np.array(numbers).astype(int)  # also of no images
        return listed, rows, np.arange(len(listed)) if groups is None else groups

    def save(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the model, its settings and the classes, but not the backbone.

        Args:
            folder: New folder, or one that `save` wrote.
            half: Whether to store float32 numbers as float16.

        Raises:
            UserError: Nothing can be written there, or the folder holds a run of `fit`.
        """
        check_is_fitted(self, "fitted_")
        labels, names = tuple(self.classes_.tolist()), tuple(self.class_names_)
        checkpoint.save(folder, self.fitted_, self._name, labels, names, half=half)

    @classmethod
    def load(cls, folder: str | Path, *, method: str = "", backbone: str = "") -> FewShotClassifier:
        """Load a classifier from a folder that `save` or `rmadapter fit` wrote.

        Args:
            folder: Folder, as for `rmadapter.load`.
            method: Name of a method from outside, as for `rmadapter.load`.
            backbone: Name of a backbone, instead of the one that the folder names.

        Returns:
            The classifier, as after `fit`.

        Raises:
            UserError: As for `rmadapter.load`.
        """
        saved = checkpoint.load(Path(folder), backbone or None, method=method)
        fitted = saved.fitted
        settings = qualified_settings(saved.name, settings_of(fitted.method))
        self = cls(fitted.backbone.name, method=saved.name, **settings)
        self.fitted_, self.history_, self._name = fitted, fitted.trained.history, saved.name
        self.class_names_, self.classes_ = saved.names, np.array(saved.labels)
        return self

    def __getstate__(self) -> dict[str, object]:
        """Return the model as plain values with the name of its backbone, for joblib's workers."""
        state = {**super().__getstate__()}
        fitted = state.pop("fitted_", None)
        return state if fitted is None else {**state, "model": checkpoint.to_values(fitted)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the model on the copy of its backbone in memory, or load that by its name. Raises
        UserError if its weights are others."""
        super().__setstate__({name: value for name, value in state.items() if name != "model"})
        model = state.get("model")
        if model is not None:
            device = str(self.settings.get("device", "auto"))
            self.fitted_ = checkpoint.from_values(model, self._name, device)

    def __sklearn_tags__(self) -> object:
        """Return tags by which `check_estimator` does not make up images, which are no rows of
        numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


RMAdapterClassifier = FewShotClassifier  # for those who look for RMAdapter by name


@cache
def _warn_once(backbone: str) -> None:
    """Warn that a backbone is a small one, once in a process."""
    text = caveat(backbone)
    if text:
        warnings.warn(text, stacklevel=3)


def _as_list(images: object) -> tuple[bool, list[ImageSource]]:
    """Return whether it is a single image, and the images as a list; arrays [N, H, W, 3] and
    [N, H, W] are N images, and so are tensors [N, 3, H, W]."""
    if isinstance(images, (str, Path, Image.Image)):
        return True, [images]
    if hasattr(images, "detach") and getattr(images, "ndim", 0) == 3:
        return True, [plain_image(images)]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        channels = images.shape[-1] if images.ndim == 3 else 0
        if images.ndim == 2 or channels in (3, 4):
            return True, [images]
    return False, image_list(images)
