"""Explain a run's answers, image by image: the best classes and the nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmadapter.answers.answer import Answer, Levels
from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.page import neighbour_cards, thumbnail, write_html
from rmadapter.artifacts.predictions import (
    Neighbour,
    image_source,
    images_of_examples,
    nearest_examples,
)
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder, find_run
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.registry import images_root
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.errors import UserError
from rmadapter.predict.stream import untouched_scores
from rmadapter.runs.features import outputs_of
from rmadapter.support.files import user_path
from rmadapter.support.terminal import note, track

Classes = tuple[tuple[str, float], ...]  # labels with probabilities, the most probable first


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image gets its answer.

    Attributes:
        image: Path of the image.
        best: The two most probable classes by the run.
        zero_shot: The same by the untouched backbone; none without a text encoder.
        neighbours: The nearest training images.
        labels, familiar, levels: As in `Answer`.
    """

    image: Path
    best: Classes
    zero_shot: Classes
    neighbours: tuple[Neighbour, ...]
    labels: tuple[str, ...] = ()
    familiar: bool | None = None
    levels: Levels | None = None

    @property
    def answer(self) -> Answer:
        """What `predict` answers with the two best classes."""
        return Answer(self.best, self.labels, self.familiar, self.levels, self.image)

    @property
    def decision(self) -> str:
        """What `predict` decides, "" if nothing is to be decided."""
        return self.answer.decision()

    def json(self) -> dict[str, object]:
        return {
            "image": str(self.image),
            **self.answer.json(),
            "zero_shot": [{"class": label, "probability": p} for label, p in self.zero_shot],
            "neighbours": [near.json() for near in self.neighbours],
        }


def explain_images(  # noqa: PLR0913  # one for each option of the verb
    run: str | Path,
    images: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    backbone: Backbone | str | None = None,
    method: str = "",
    skip_bad: bool = False,
    progress: bool = True,
    device: str = "auto",
    error: float = 0.0,
    turn_away: float = 0.0,
) -> list[Explanation]:
    """Explain each image by its best classes and the nearest training images.

    Args:
        run: The folder of a run.
        images: Paths of N images.
        data: Where the run's training images are now, if they moved.
        backbone: Backbone or name, instead of the one that the run names.
        method: Name of a method from outside, which the user must repeat, since its code is run.
        skip_bad: Whether to leave out unreadable images.
        progress: Whether to show a bar on stderr.
        device: "auto", "cpu", "cuda" or "cuda:N".
        error: Share of images whose prediction sets may miss the right class; 0 for no sets.
        turn_away: Share of images of the classes that may be called none of these; 0 to call none
            so.

    Returns:
        An explanation of each image. `best` are the two most probable labels with their
        probabilities, `zero_shot` those of the untouched backbone, if it has a text encoder,
        `neighbours` the nearest training images, if the run records them. With an error, `labels`
        are those of the prediction set; with a share to turn away, `familiar` says whether the
        image is of the run's classes at all. With either, `decision` is that of `predict`:
        "answer", "unsure" or "none of these".

    Raises:
        UserError: As for `load`; `data` does not exist; an image is unreadable; there are too few
            images, or none, to promise the error or the share by.

    Example:
        >>> from rmadapter import explain_images
        >>> images = ["colors/test/red/0.png"]
        >>> [one] = explain_images("run", images, data="colors", backbone="tiny")
        >>> one.best[0][0], one.neighbours[0].label
        ('red', 'red')
    """
    if data and not user_path(data).exists():
        raise UserError(
            f"{data}: does not exist; give the folder of the run's training images with --run-data"
        )
    folder = find_run(run)
    saved = load(folder, backbone, method=method, device=device)
    fitted = saved.fitted
    decider = saved.decider(error or None, turn_away or None)
    for text in decider.promises():
        note(f"promise: {text}")
    training = _training_images(folder, saved, data)
    outputs = outputs_of(fitted, saved.names, bool(turn_away))
    untouched = untouched_scores(fitted, saved.names)
    files = [Path(image) for image in images]
    bad: list[tuple[Path, str]] | None = [] if skip_bad else None
    stream = with_hint(decode_batches(files, fitted.transform, fitted.batch, bad))
    explanations = []
    for batch, pixels in track(stream, -(-len(files) // fitted.batch), "explaining", progress):
        states = fitted.states(pixels, features=True)
        found = decider.answer(*outputs(states), top=2)
        others: list[Classes] = [()] * len(batch)
        if untouched:
            others = [other.best for other in decider.at().answer(untouched(states), top=2)]
        near = nearest_examples(fitted, states.features)
        for i, (image, answer, other) in enumerate(zip(batch, found, others, strict=True)):
            neighbours = tuple(
                training[row]._replace(similarity=round(cosine, 4))
                for row, cosine in zip(near.rows[i], near.cosines[i].tolist(), strict=True)
                if training
            )
            explanations.append(
                Explanation(
                    image,
                    answer.best,
                    other,
                    neighbours,
                    answer.labels,
                    answer.familiar,
                    answer.levels,
                )
            )
    for _, text in bad or []:
        note(f"left out: {text}")
    return explanations


def _training_images(folder: Path, saved: Saved, data: str | Path | None) -> list[Neighbour]:
    """List the images behind `Fitted.examples`, in their order; none if the run does not record
    them."""
    run = RunFolder(folder)
    examples, split = saved.fitted.examples, run.split
    if examples is None or not split.is_file() or not run.record.is_file():
        note(f"{folder}: does not record its training images; no neighbours are shown")
        return []
    record, drawn = read_record(run.record), read_split(split)
    classes = drawn.labels_of(record.task.classes)
    rows = images_of_examples([(name, label) for name, label, _ in drawn.train if label in classes])
    if len(rows) != len(examples):
        raise UserError(
            f"{split}: does not list the images the model was fitted to; the folder is damaged or "
            "mixed"
        )
    root = images_root(data or record.task.data, record.crops)
    return [
        Neighbour(name, image_source(root, name), str(drawn.written[label]), 0.0)
        for name, label in rows
    ]


def write_page(path: Path, explanations: Sequence[Explanation], run: str) -> None:
    """Write the page atomically; it needs no network and no script.

    Args:
        path: The page.
        explanations: Explanations to show.
        run: The run's name on the page.
    """
    cards = []
    for one in explanations:
        neighbours = neighbour_cards(one.neighbours)
        decided = {"decision": one.decision, "parent": one.answer.parent}
        groups = one.levels.best if one.levels else ()
        more = {**decided, "neighbours": neighbours, "groups": groups, "src": thumbnail(one.image)}
        cards.append({**vars(one), **more})
    write_html(path, "explain.html.j2", cards=cards, run=run)
