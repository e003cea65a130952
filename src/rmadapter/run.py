"""One run from data to report: what `rmadapter fit` and the demo do."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rmadapter.checkpoint import load_adapter, save_adapter, versions
from rmadapter.config import Config
from rmadapter.data.fewshot import FewShot, few_shot, half, save_split, split_digest
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError
from rmadapter.evaluation import Evaluation, evaluate, novelty_quantiles
from rmadapter.features import freeze_images
from rmadapter.files import read_json
from rmadapter.metrics import harmonic_mean
from rmadapter.model import AdaptedCLIP
from rmadapter.report import write_report
from rmadapter.train import find_device, train

STATE = "training.safetensors"
Classes = Literal["all", "base", "novel"]


def fit(
    splits: Mapping[str, ImageSet],
    config: Config,
    out: Path,
    *,
    extra: Mapping[str, ImageSet] | None = None,
    notes: tuple[str, ...] = (),
    data: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Draw the shots, train, save, then evaluate once on what was never trained on, and write the report.

    splits: as `read_images` gives them; without a test split, the train images that were not drawn are evaluated.
    extra: further sets to evaluate by title. data: what the images are called in the report.
    A killed run goes on when called again; a finished one is returned.
    Returns the record in run.json. Raises UserError when `out` holds another run or cannot be written to.
    """
    from rmadapter.backbone import load_backbone

    few = few_shot(splits, config.shots, config.seed)
    shots = half(few.train, config.classes)
    _check_folder(out)
    backbone = load_backbone(config.backbone)
    key = run_key(config, backbone.digest, few)
    if (finished := _finished(out, key)) is not None:
        return finished
    save_split(few, out / "split.json")
    model = AdaptedCLIP(backbone, config).to(find_device(config.device))
    started = time.monotonic()
    frozen = freeze_images(model, shots, folder=out, progress=progress) if config.augmentation == "none" else None
    freezing = time.monotonic() - started
    done = train(model, shots, frozen=frozen, state=out / STATE, key=key, progress=progress)
    run: dict[str, Any] = {
        "key": key,
        "data": data,
        "versions": versions(),
        "config": config.model_dump(mode="json"),
        "backbone": {"name": backbone.name, "digest": backbone.digest},
        "seed": config.seed,
        "split_digest": split_digest(few),
        "parameters": model.adapters.parameter_counts(),
        "lean": {side: tower.tricks() for side, tower in model.towers.items()} if config.forward == "lean" else {},
        "seconds": {"frozen activations": round(freezing, 3), "train": round(done.seconds, 3)},
        "history": done.history,
        "novelty_quantiles": novelty_quantiles(model, shots, frozen, progress),
        "notes": [*few.short, *(note for images in splits.values() for note in images.skipped), *notes],
    }
    started = time.monotonic()
    sets = {**held_out(splits, few, config.classes), **(extra or {})}
    if not sets:
        run["notes"].append("no image was left to evaluate: add a test split, or draw fewer shots")
    evaluations = [
        evaluate(model, images, title, quantiles=run["novelty_quantiles"], progress=progress)
        for title, images in sets.items()
    ]
    run["seconds"]["evaluate"] = round(time.monotonic() - started, 3)
    run["metrics"] = metrics(evaluations)
    write_report(out / "report.html", run, evaluations, list(sets.values()))
    save_adapter(out, model, shots.classes, run)
    for leftover in (out / STATE, *out.glob("frozen-*.bin")):
        leftover.unlink(missing_ok=True)
    return run


def _check_folder(out: Path) -> None:
    """Raises UserError unless files can be written to the folder; better now than after the training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(
            f"{out}: no folder to write a run to ({error.strerror or error}): choose another --out"
        ) from None


def run_key(config: Config, backbone_digest: str, few: FewShot) -> str:
    """Identifies a run: everything that its adapter depends on."""
    config = config.replace(cache_memory=0, workers=0)  # where activations lie, and who computes them, changes nothing
    parts = [config.model_dump(mode="json"), backbone_digest, split_digest(few)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The record of a finished run of the same key. Raises UserError when `out` holds another run."""
    if not (out / "run.json").exists() or not (out / "adapter.safetensors").exists():
        return None
    run = read_json(out / "run.json")
    if not isinstance(run, dict) or run.get("key") != key:
        raise UserError(f"{out} holds another run: choose another --out or delete that folder")
    return run


def held_out(splits: Mapping[str, ImageSet], few: FewShot, classes: Classes) -> dict[str, ImageSet]:
    """What can be evaluated, by title: test images, else train images that were not drawn; both halves for "base"."""
    images, name = (splits["test"], "test") if splits.get("test") else (few.heldout, "held out")
    if not len(images):
        return {}
    halves: tuple[Classes, ...] = ("base", "novel") if classes == "base" else (classes,)
    sets = {f"{name}, {which} classes": half(images, which) for which in halves}
    return {title: part for title, part in sets.items() if len(part)}


def metrics(evaluations: list[Evaluation]) -> dict[str, dict[str, float]]:
    """Summary by title, and the harmonic mean of base and novel accuracy where both are there."""
    table = {e.title: e.summary() for e in evaluations}
    base, novel = (next((t for t in table if f"{w} classes" in t), None) for w in ("base", "novel"))
    if base and novel:
        table["harmonic_mean"] = {
            name: harmonic_mean(table[base][name], table[novel][name]) for name in ("accuracy", "zero_shot_accuracy")
        }
    return table


def evaluate_run(
    folder: Path,
    splits: Mapping[str, ImageSet],
    split: str,
    classes: Classes,
    alpha: float | None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a saved run on one split of a data set; the class names are the data set's own.

    split: as in the data, or "heldout": the train images that the run did not see. Raises UserError for a split that
    is not there.
    """
    if split != "heldout" and split not in splits:
        there = ", ".join([*splits, "heldout"])
        raise UserError(f"there is no {split} split in the data: give --split one of {there}")
    model, _, run = load_adapter(folder)
    if alpha is not None:
        model.alpha = alpha
    if split == "heldout":
        few = few_shot(splits, model.config.shots, model.config.seed)
        if split_digest(few) != run.get("split_digest"):
            raise UserError(f"{folder} was trained on other images: --split heldout needs the data it was fitted to")
        images = few.heldout
    else:
        images = splits[split]
    return evaluate(
        model,
        half(images, classes),
        split,
        quantiles=run.get("novelty_quantiles", ()),
        progress=progress,
    )
