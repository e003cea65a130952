"""Why a run answers what it answers, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmadapter.artifacts.checkpoint import RECORD, Saved, load
from rmadapter.artifacts.mistakes import Neighbour, kept, nearest
from rmadapter.artifacts.predictions import SPLIT, source_of
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.sources import images_root
from rmadapter.data.transforms import decoded, hinted
from rmadapter.errors import UserError
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import user_path
from rmadapter.support.hub import run_folder
from rmadapter.support.terminal import note, track
from rmadapter.training.cache import BATCH
from rmadapter.training.contract import answers

Shares = tuple[tuple[str, float], ...]  # labels with probabilities, the most probable first


@dataclass(frozen=True, eq=False)
class Explanation:
    """best, zero_shot: the two most probable classes by the run and by the untouched backbone."""

    image: Path
    best: Shares
    zero_shot: Shares
    neighbours: tuple[Neighbour, ...]

    def json(self) -> dict[str, Any]:
        def listed(shares: Shares) -> list[dict[str, Any]]:
            return [{"class": label, "probability": share} for label, share in shares]

        near = [
            {"image": n.image, "label": n.label, "similarity": n.similarity}
            for n in self.neighbours
        ]
        return {
            "image": str(self.image), "classes": listed(self.best), "zero_shot": listed(self.zero_shot),
            "neighbours": near,
        }  # fmt: skip


def explain_images(
    run: str | Path, images: Sequence[str | Path], *, data: str | Path | None = None,
    backbone: Backbone | str | None = None, method: str = "", skip_bad: bool = False, progress: bool = True,
) -> list[Explanation]:  # fmt: skip
    """For each image: the two best classes, those of the untouched backbone, and the nearest
    training images.

    data: where the run's training images are now, if they moved. Raises UserError as `load` does,
    and for an unreadable image, unless it is to be left out (skip_bad).
    """
    if data and not user_path(data).exists():
        raise UserError(
            f"{data}: does not exist; give the location of the run's training images with --data"
        )
    folder = run_folder(run)
    saved = load(folder, backbone, method=method)
    fitted, found = saved.fitted, list[Explanation]()
    known = _training(folder, saved, data)
    asked = fitted.known._replace(classes=saved.names)
    untouched = ZeroShot().restore(fitted.backbone, asked, {})
    models = {"own": fitted.score(saved.names), "untouched": untouched.score()}
    files = [Path(image) for image in images]
    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    stream = hinted(decoded(files, fitted.backbone.preprocess, BATCH, bad))
    for some, pixels in track(stream, -(-len(files) // BATCH), "explaining", progress):
        states = fitted.states(pixels, features=True)
        tables = next(answers(models, [states], asked.several))
        near = nearest(fitted.examples, states.features)
        for i, image in enumerate(some):
            neighbours = tuple(
                known[row]._replace(similarity=round(cos, 4)) for row, cos in near[i] if known
            )
            best, zero_shot = (_best(saved, tables[name][i]) for name in ("own", "untouched"))
            found.append(Explanation(image, best, zero_shot, neighbours))
    for _, text in bad or []:
        note(f"left out: {text}")
    return found


def _best(saved: Saved, row: Tensor) -> Shares:
    values, places = row.sort(descending=True, stable=True)
    pairs = zip(places[:2].tolist(), values[:2].tolist(), strict=True)
    return tuple((str(saved.labels[place]), round(value, 6)) for place, value in pairs)


def _training(folder: Path, saved: Saved, data: str | Path | None) -> list[Neighbour]:
    """The images behind `Fitted.examples`, in their order; none if the run does not record them."""
    examples, split = saved.fitted.examples, folder / SPLIT
    if examples is None or not split.is_file() or not (folder / RECORD).is_file():
        note(f"{folder}: does not record its training images; no neighbours are shown")
        return []
    record, drawn = read_record(folder / RECORD), read_split(split)
    middle = (len(drawn.classes) + 1) // 2
    wanted = {
        "all": range(len(drawn.classes)),
        "base": range(middle),
        "novel": range(middle, len(drawn.classes)),
    }
    labels = drawn.several or [(label,) for _, label, _ in drawn.train]
    listed = zip(drawn.train, labels, strict=True)
    rows = kept(
        [(name, own) for (name, label, _), own in listed if label in wanted[record.task.classes]]
    )
    if len(rows) != len(examples):
        raise UserError(
            f"{split}: does not list the images the model was fitted to; the folder is damaged or mixed"
        )
    root = images_root(data or record.task.data, record.crops)
    shown = ((name, "; ".join(str(drawn.written[i]) for i in own)) for name, own in rows)
    return [Neighbour(name, source_of(root, name), label, 0.0) for name, label in shown]
