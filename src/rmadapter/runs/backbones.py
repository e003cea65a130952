"""Choose a backbone for the user's images: each encodes the shots, and the linear probe is judged
on folds of their features."""

from __future__ import annotations

import time
from dataclasses import replace

from rmadapter import metrics
from rmadapter.artifacts.value import BackboneChoice, BackboneRow
from rmadapter.backbones import Backbone
from rmadapter.backbones.load import shared
from rmadapter.backbones.names import AUTO, is_choice, names_in
from rmadapter.backbones.published import licence_of, on_disk
from rmadapter.backbones.speed import megabytes_of, speed_of
from rmadapter.data.fewshot import half
from rmadapter.errors import UserError
from rmadapter.methods import check_text
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.folds import FOLDS, Folds, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.support.distributed import launched
from rmadapter.support.hub import Unreachable
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import note

PROBE, PROBE_NAME = LinearProbe(), "linear-probe"
MINUTES = 10.0  # to choose in


def prepare_backbone(request: Request, lab: Lab) -> tuple[Request, Lab, BackboneChoice | None]:
    """Load the backbone that a request names, or choose one of several.

    Args:
        request: What to do.
        lab: Lab with the images.

    Returns:
        The request with the name of the backbone, a lab that has it, and the choice, if there was
        one.

    Raises:
        UserError: As for `load_backbone` and `choose_backbone`; the method needs a text encoder,
            which the backbone lacks.
    """
    choice = None
    if is_choice(request.task.backbone):
        if launched():
            raise UserError("--backbone: name one where several processes train one model")
        lab, choice = choose_backbone(request, lab)
        request = replace(request, task=replace(request.task, backbone=choice.chosen))
    else:
        device = find_device(lab.machine.device)
        lab.add_backbone(shared(request.task.backbone, device))
    check_text(request.method, lab.backbone(request.task.backbone))
    return request, lab, choice


def choose_backbone(request: Request, lab: Lab) -> tuple[Lab, BackboneChoice]:
    """Choose the backbone on whose features the linear probe is most accurate over folds of the
    shots; of equals, the fastest.

    Args:
        request: What to do. Its task names the backbones, separated by commas; `auto` stands for
            those that need no download. A backbone that its method cannot use is left out, and so
            is one that would not finish in ten minutes.
        lab: Lab with the images.

    Returns:
        A lab that has the backbone, and its features, and the choice.

    Raises:
        UserError: None can be used, or a name is wrong.
    """
    task, few, deadline = request.task, lab.draw(request.task), time.monotonic() + 60 * MINUTES
    images = half(few.train, task.classes)
    parts = split(images, FOLDS, task.seed, lab.progress)
    names = _expanded(task.backbone)
    rows: list[BackboneRow] = []
    best: tuple[tuple[float, float], Lab, str] | None = None
    for place, name in enumerate(names, 1):
        note(f"backbone: {name} ({place} of {len(names)})")
        try:
            backbone = _usable(name, request, lab)
        except Unreachable as error:
            note(f"{error}; left out")
            rows.append(BackboneRow(name=name, reason=str(error)))
            continue
        own = lab.beside(backbone)
        chosen = replace(task, backbone=name)
        row = _judged(Folds(chosen, few, own, images, parts), backbone, deadline)
        rows.append(row)
        rank = (-1.0 if row.accuracy is None else row.accuracy, row.images_per_second or 0.0)
        # without accuracies, as without folds, the first named one is taken
        if best is None or (rank > best[0] and row.accuracy is not None):
            best = rank, own, name
    if best is None:
        raise UserError(f"backbone {task.backbone!r}: none can be used: {rows[0].reason}")
    found = BackboneChoice(
        chosen=best[2],
        folds=len(parts),
        images=sum(map(len, parts)),
        minutes=MINUTES,
        rows=tuple(rows),
    )
    return best[1], found


def _expanded(names: str) -> list[str]:
    """Return the named backbones, each once; those on this disk in the place of `auto`."""
    expanded: list[str] = []
    for name in names_in(names):
        expanded += on_disk() if name == AUTO else [name]
    return list(dict.fromkeys(expanded))


def _usable(name: str, request: Request, lab: Lab) -> Backbone:
    """Load a backbone. Raises Unreachable for one that cannot be used here, and UserError for a
    wrong name."""
    backbone = shared(name, find_device(lab.machine.device))
    try:
        check_text(request.method, backbone)
    except UserError as error:
        raise Unreachable(str(error)) from None
    return backbone


def _judged(folds: Folds, backbone: Backbone, deadline: float) -> BackboneRow:
    """Judge a backbone by the probe on folds of the shots."""
    started = time.monotonic()
    speed = speed_of(backbone, folds.lab.backbone(backbone.name).device)
    accuracy, reason = None, ""
    if not folds:
        reason = "too few images per class to judge by"
    elif started + len(folds.images) / speed > deadline:
        reason = "would not finish in time"
    else:
        table = folds.answers(PROBE, PROBE_NAME).table
        accuracy = round(metrics.accuracy(table, folds.judged.labels), 4)
    return BackboneRow(
        name=backbone.name,
        accuracy=accuracy,
        images_per_second=round(speed, 1),
        megabytes=megabytes_of(backbone),
        licence=licence_of(backbone.name),
        seconds=round(time.monotonic() - started, 1),
        reason=reason,
    )
