"""One run: draw the shots, fit the method, and only then look at test images."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.machine import machine, peak, reset_peak
from rmadapter.bench.methods import load_method
from rmadapter.bench.methods.base import Classifier, NotApplicable, Training
from rmadapter.bench.protocols import Run
from rmadapter.bench.settings import COMPARED, settings_of
from rmadapter.checkpoint import versions
from rmadapter.config import Config
from rmadapter.data.catalog import find, load_dataset
from rmadapter.data.fewshot import FewShot, few_shot, half, split_digest
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError
from rmadapter.metrics import accuracy, harmonic_mean

FORMAT = 1  # of the record


@dataclass(eq=False)
class Lab:
    """What the runs of one process share: the backbone, data that was read, and frozen activations.

    root: where datasets lie. settings: common to all methods. values: {method: {field: value}} of --set.
    own_templates: whether each dataset brings its prompt templates. folder: for activations that memory cannot hold.
    """

    root: Path
    settings: Config
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_templates: bool = False
    folder: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._splits: dict[str, dict[str, ImageSet]] = {}
        self._few: tuple[Any, FewShot] | None = None
        self._tests: dict[Any, ImageSet] = {}
        self._train: Activations | None = None
        self._test: Activations | None = None

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load_backbone(self.settings.backbone)
        return self._backbone

    def splits(self, dataset: str) -> dict[str, ImageSet]:
        if dataset not in self._splits:
            self._splits[dataset] = load_dataset(dataset, self.root)
        return self._splits[dataset]

    def draw(self, run: Run) -> FewShot:
        """The shots of a run; drawn again for the same images they are the same object, digest and all."""
        key = (run.dataset, run.shots, run.seed)
        if self._few is None or self._few[0] != key:
            self._few = key, few_shot(self.splits(run.dataset), run.shots, run.seed)
        return self._few[1]

    def shared(self, run: Run) -> Config:
        """The settings that all methods of this run's comparison have in common."""
        known = find(PurePath(run.dataset).name) if self.own_templates else None
        return self.settings.replace(seed=run.seed, **({"templates": known.templates} if known else {}))

    def train_activations(self, settings: Config) -> Activations:
        """Kept from run to run while the settings stay, so that methods share the activations of their shots."""
        if self._train is None or self._train.settings != settings:
            folder = self.folder and self.folder / "train"
            self._train = Activations(self.backbone, settings, folder)
        return self._train

    def test_activations(self) -> Activations:
        """Of test images, which the frozen backbone sees alike whatever was trained: no method ever holds this."""
        if self._test is None:
            folder = self.folder and self.folder / "test"
            plain = self.settings.replace(augmentation="none", views=0)
            self._test = Activations(self.backbone, plain, folder)
        return self._test

    def tests(self, run: Run) -> dict[str, ImageSet]:
        """Sets to ask about, by name; of each the same object for all runs, so that its digest is computed once."""
        own = self.splits(run.dataset).get("test")
        test = own or self.draw(run).heldout
        of = run.dataset if own else (run.dataset, run.shots, run.seed)
        if not len(test):
            raise UserError(f"{run.dataset}: there is no test split, and no train image is left over: draw fewer shots")
        if run.asked == "halves":
            wanted = {(of, which): half(test, which) for which in ("base", "novel")}
        else:
            wanted = {(of, "source" if run.asked == "targets" else "accuracy"): test}
            wanted |= {(name, name): _whole(self.splits(name), name) for name in run.targets}
        return {name: self._tests.setdefault((of, name), images) for (of, name), images in wanted.items()}


def _whole(splits: Mapping[str, ImageSet], name: str) -> ImageSet:
    """The images of a set that nothing is trained on."""
    found = splits.get("test") or splits.get("all")
    if not found:
        raise UserError(f"{name}: has no test split to be a target")
    return found


def configuration(run: Run, lab: Lab) -> dict[str, Any]:
    """All that was set, as JSON has it. Raises UserError for fields that the method lacks."""
    shared = lab.shared(run)
    config = {
        **{name: getattr(run, name) for name in ("dataset", "asked", "targets", "seed", "shots")},
        "shared": {name: getattr(shared, name) for name in COMPARED},
        "method": {"name": run.method, **settings_of(method_of(run, lab))},
    }
    return json.loads(json.dumps(config))


def method_of(run: Run, lab: Lab) -> Any:
    """The method with the values of --set, and over them those of the protocol."""
    return load_method(run.method, {**lab.values.get(run.method, {}), **dict(run.overrides)})


def measure(run: Run, lab: Lab) -> dict[str, Any]:
    """Do a run; returns what it found out. Raises UserError, and NotApplicable when nothing could be asked."""
    few, which = lab.draw(run), "base" if run.asked == "halves" else "all"
    method, activations = method_of(run, lab), lab.train_activations(lab.shared(run))
    sets = lab.tests(run)  # listed now, so that what is missing is missed before the training, and opened after it
    train = Training(
        _for_method(half(few.train, which)),  # type: ignore[arg-type]
        None if few.val is None else _for_method(half(few.val, which)),  # type: ignore[arg-type]
        activations,
        run.seed,
        lab.progress,
    )
    _seed(run.seed)
    reset_peak(activations.device)
    frozen_before, started = activations.seconds, time.perf_counter()
    classifier = method.fit(lab.backbone, train)
    fitted = time.perf_counter() - started
    frozen = activations.seconds - frozen_before
    started = time.perf_counter()
    found = evaluate(
        classifier, sets, lab.test_activations(), lab.progress, required=1 if which == "base" else len(sets)
    )
    asked = time.perf_counter() - started
    seconds = {"frozen": frozen, "train": fitted - frozen, "evaluate": asked, "total": fitted + asked}
    return {
        **summary(run, found, sets),
        "parameters": classifier.parameters,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "step_seconds": classifier.step_seconds,
        **peak(activations.device),
        "split_digest": split_digest(few),
        "machine": machine(activations.device),
        "history": per_epoch(classifier.history),
    }


def per_epoch(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Means over the steps of each epoch, where the method counts epochs: thousands of steps would fill the disk."""
    if not all("epoch" in step for step in history):
        return [dict(step) for step in history]
    epochs = sorted({step["epoch"] for step in history})
    found = []
    for epoch in epochs:
        steps = [step for step in history if step["epoch"] == epoch]
        means = {
            name: float(np.mean([step[name] for step in steps])) for name in steps[0] if name not in ("step", "epoch")
        }
        found.append({"epoch": epoch, "steps": len(steps), **{name: float(f"{v:.6g}") for name, v in means.items()}})
    return found


def _for_method(images: ImageSet) -> ImageSet:
    """Without the folder that it came from, and of which the test images are a part."""
    return replace(images, root=None, skipped=())


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@torch.no_grad()
def evaluate(
    classifier: Classifier, sets: Mapping[str, ImageSet], activations: Activations, progress: bool, required: int
) -> dict[str, float | str]:
    """Accuracy in percent by set, or why the method has no answer; raises NotApplicable for the first `required`."""
    found: dict[str, float | str] = {}
    for name, images in sets.items():
        try:
            score = classifier.for_classes(images.classes)
            answers = [
                score(states).argmax(-1).cpu()
                for states in activations.stream(images, classifier.first, progress=progress)
            ]
        except NotApplicable as error:
            if len(found) < required:
                raise
            found[name] = str(error)
        else:
            found[name] = accuracy(torch.cat(answers).numpy(), images.labels)
    return found


def summary(run: Run, found: Mapping[str, float | str], sets: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Metrics, counts and chance in the layout of the record."""
    numbers = {name: round(value, 4) for name, value in found.items() if not isinstance(value, str)}
    reason = next((value for value in found.values() if isinstance(value, str)), "")
    counts = {name: len(images) for name, images in sets.items()}
    chance = {name: round(images.chance, 4) for name, images in sets.items()}
    if run.asked == "halves":
        novel = numbers.get("novel")
        hm = None if novel is None else round(harmonic_mean(float(found["base"]), float(found["novel"])), 4)
        tested = counts if novel is not None else {"base": counts["base"]}
        metrics: dict[str, Any] = {"base": numbers["base"], "novel": novel, "hm": hm}
        return {"reason": reason, "metrics": metrics, "counts": tested, "chance": chance}
    if run.asked == "accuracy":
        return {"metrics": numbers, "counts": counts, "chance": chance}

    def nested(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"source": values["source"], "targets": {name: values[name] for name in run.targets}}

    average = round(float(np.mean([numbers[name] for name in run.targets])), 4)
    return {"metrics": {**nested(numbers), "average": average}, "counts": nested(counts), "chance": nested(chance)}


def record(run: Run, lab: Lab, config: Mapping[str, Any], found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The whole record of a run, in the order in which it is written."""
    return {
        "format": FORMAT,
        "protocol": run.protocol,
        "dataset": run.dataset,
        "method": run.method,
        "title": method_of(run, lab).title,
        "variant": run.variant,
        "axis": run.axis,
        "value": run.value,
        "backbone": {"name": lab.backbone.name, "digest": lab.backbone.digest},
        "seed": run.seed,
        "shots": run.shots,
        "status": "finished",
        "reason": "",
        "versions": versions(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **found,
        "config": dict(config),
        "key": key,
    }


def run_key(config: Mapping[str, Any], backbone_digest: str, split_digest: str) -> str:
    """Tells all that a run's figures depend on: the configuration, the backbone's weights, the images of the draw."""
    parts = [config, backbone_digest, split_digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
