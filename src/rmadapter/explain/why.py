"""Why a run answers what it answers, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.cache import BATCH
from rmadapter.checkpoint import RECORD, Saved, load
from rmadapter.console import note, track
from rmadapter.data.fewshot import read_split
from rmadapter.data.sources import images_root
from rmadapter.data.transforms import decoded
from rmadapter.errors import UserError
from rmadapter.explain.maps import CANDIDATES, trace
from rmadapter.files import user_path
from rmadapter.method import NotApplicable, answers
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.neighbours import Neighbour, kept, nearest
from rmadapter.predictions import source_of
from rmadapter.record import read_record
from rmadapter.remote import run_folder

MAP: str | None = None  # one of CANDIDATES; None, as none has shown its worth (docs/explain.md)
Shares = tuple[tuple[str, float], ...]  # labels with probabilities, the most probable first


@dataclass(frozen=True, eq=False)
class Explanation:
    """best, zero_shot: the two most probable classes by the run and by the untouched backbone. pixels: [3, H, W] in
    0..1, what the model saw. heat: [S, S] in 0..1, how much each patch counted for the first class; None if no map
    was drawn."""

    image: Path
    best: Shares
    zero_shot: Shares
    neighbours: tuple[Neighbour, ...]
    pixels: Tensor
    heat: Tensor | None

    def json(self) -> dict[str, Any]:
        def listed(shares: Shares) -> list[dict[str, Any]]:
            return [{"class": label, "probability": share} for label, share in shares]

        near = [{"image": n.image, "label": n.label, "similarity": n.similarity} for n in self.neighbours]
        return {
            "image": str(self.image), "classes": listed(self.best), "zero_shot": listed(self.zero_shot),
            "neighbours": near,
        }  # fmt: skip


def explain_images(
    run: str | Path, images: Sequence[str | Path], *, data: str | Path | None = None,
    backbone: Backbone | str | None = None, method: str = "", heat: bool = True, progress: bool = True,
) -> list[Explanation]:  # fmt: skip
    """For each image: the two best classes, those of the untouched backbone, and the nearest training images.

    data: where the run's training images are now, if they moved. heat: whether to draw a map, if one is worth it (MAP,
    docs/explain.md). Raises UserError as `load` does, and for an unreadable image.
    """
    if data and not user_path(data).exists():
        raise UserError(f"{data}: does not exist; give the location of the run's training images with --data")
    folder = run_folder(run)
    saved = load(folder, backbone, method=method)
    fitted, found = saved.fitted, list[Explanation]()
    known = _training(folder, saved, data)
    asked = fitted.known._replace(classes=saved.names)
    untouched = ZeroShot().restore(fitted.backbone, asked, {})
    models = {"own": fitted.score(saved.names), "untouched": untouched.score()}
    files = [Path(image) for image in images]
    stream = decoded(files, fitted.backbone.preprocess, BATCH)
    for some, pixels in track(stream, -(-len(files) // BATCH), "explaining", progress):
        states = fitted.states(pixels, features=True)
        tables = next(answers(models, [states], asked.several))
        maps = _maps(saved, MAP, pixels, tables["own"].argmax(1)) if heat and MAP else None
        near = nearest(fitted.examples, states.features)
        for i, image in enumerate(some):
            neighbours = tuple(known[row]._replace(similarity=round(cos, 4)) for row, cos in near[i] if known)
            best, zero_shot = (_best(saved, tables[name][i]) for name in ("own", "untouched"))
            drawn = None if maps is None else maps[i]
            shown = _shown(fitted.backbone, pixels[i])
            found.append(Explanation(image, best, zero_shot, neighbours, shown, drawn))
    return found


def _best(saved: Saved, row: Tensor) -> Shares:
    values, places = row.sort(descending=True, stable=True)
    pairs = zip(places[:2].tolist(), values[:2].tolist(), strict=True)
    return tuple((str(saved.labels[place]), round(value, 6)) for place, value in pairs)


def _training(folder: Path, saved: Saved, data: str | Path | None) -> list[Neighbour]:
    """The images behind `Fitted.examples`, in their order; none if the run does not record them."""
    examples, split = saved.fitted.examples, folder / "split.json"
    if examples is None or not split.is_file() or not (folder / RECORD).is_file():
        note(f"{folder}: does not record its training images; no neighbours are shown")
        return []
    record, drawn = read_record(folder / RECORD), read_split(split)
    middle = (len(drawn.classes) + 1) // 2
    wanted = {"all": range(len(drawn.classes)), "base": range(middle), "novel": range(middle, len(drawn.classes))}
    labels = drawn.several or [(label,) for _, label, _ in drawn.train]
    listed = zip(drawn.train, labels, strict=True)
    rows = kept([(name, own) for (name, label, _), own in listed if label in wanted[record.task.classes]])
    if len(rows) != len(examples):
        raise UserError(f"{split}: does not list the images the model was fitted to; the folder is damaged or mixed")
    root = images_root(data or record.task.data, record.crops)
    shown = ((name, "; ".join(str(drawn.written[i]) for i in own)) for name, own in rows)
    return [Neighbour(name, source_of(root, name), label, 0.0) for name, label in shown]


def _maps(saved: Saved, name: str, pixels: Tensor, targets: Tensor) -> Tensor | None:
    """Maps [B, S, S] in 0..1; None, with a note, if there are none for this method or backbone."""
    try:
        found = trace(saved.fitted, pixels, saved.names)
    except NotApplicable as error:
        note(f"no heat maps: {error}")
        return None
    drawn = CANDIDATES[name](found, targets.to(pixels.device)).flatten(1)
    low, high = drawn.min(1, keepdim=True).values, drawn.max(1, keepdim=True).values
    return ((drawn - low) / (high - low).clamp(min=1e-12)).unflatten(1, (found.side, found.side)).cpu()


def _shown(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Pixels [3, H, W] as the model reads them -> in 0..1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    return (pixels.cpu() * std + mean).clamp(0, 1)
