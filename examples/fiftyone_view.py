"""Write the answers of `rmadapter predict` into a FiftyOne data set, and open it;
docs/guide/label.md.

    pip install fiftyone
    rmadapter predict RUN photos --wrong 10% --out answers.jsonl
    python examples/fiftyone_view.py answers.jsonl --labels photos

Its saved views are the unsure images, those whose label and prediction differ (the surest first),
and those without a label.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter import UserError
from rmadapter.data import locate
from rmadapter.data.names import only_label
from rmadapter.support.files import opened

UNSURE, DIFFERENT, UNLABELLED = "unsure", "label and prediction differ", "unlabelled"


class Predicted(NamedTuple):
    """Hold what is known of one image. label: "" where none is known. best: classes with their
    probabilities, the most probable first. answer: what `predict` says, such as "none of these"."""

    image: Path
    label: str
    best: tuple[tuple[str, float], ...]
    answer: str
    unsure: bool


def read_answers(file: Path, labels: str = "") -> list[Predicted]:
    """Return the answered images, in order. labels: data in a format that `fit` reads, if any.

    Raises UserError for what is no file of answers, and for images that are not there.
    """
    if file.suffix.lower() != ".jsonl":
        raise UserError(f"{file}: give the .jsonl file of `rmadapter predict RUN photos --out`")
    known = read_labels(labels) if labels else {}
    images = []
    with opened(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row.get("error"):  # with --skip-bad
                    continue
                image = Path(os.path.abspath(row["image"]))
                found = Predicted(
                    image, known.get(image.resolve(), ""), _best(row), row["label"], row["unsure"]
                )
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise UserError(f"{file}, line {number}: no answer of `predict`") from None
            if not image.is_file():
                where = "paths are relative to the folder where `predict` ran, so go there"
                raise UserError(f"{row['image']}: no such file; {where}")
            images.append(found)
    return images


def read_labels(data: str) -> dict[Path, str]:
    """Map each image of labelled data to its label. Raises UserError for one with several."""
    labels: dict[Path, str] = {}
    for rows in locate(data, outside=True).read().splits.values():
        for row in rows:
            image = row.image.resolve()
            only_label((labels.setdefault(image, row.label), row.label), str(image))
    return labels


def _best(row: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the classes of a row, as many as `predict --top` asked for."""
    best = [(row["guess"], row["probability"])]
    for place in count(2):
        label = row.get(f"label_{place}")
        if label is None:  # the file, or a run of fewer classes, has no more
            break
        best.append((label, row[f"probability_{place}"]))
    return tuple((str(label), float(share)) for label, share in best)


def write_dataset(images: Sequence[Predicted], name: str, overwrite: bool = False) -> Any:
    """Write a data set of FiftyOne with its views, and return it. Raises UserError for a name that
    is taken, unless `overwrite` is set, and without FiftyOne."""
    try:
        import fiftyone as fo
    except ImportError:
        raise UserError("FiftyOne is missing: pip install fiftyone") from None
    if fo.dataset_exists(name) and not overwrite:
        raise UserError(f"FiftyOne has a data set {name!r}: give --overwrite, or another --name")
    dataset = fo.Dataset()  # which FiftyOne deletes later, unless it gets its name below
    for field in ("label", "prediction"):
        dataset.add_sample_field(field, fo.EmbeddedDocumentField, fo.Classification)
    dataset.add_sample_field("probabilities", fo.EmbeddedDocumentField, fo.Classifications)
    dataset.add_sample_field("answer", fo.StringField)
    dataset.add_sample_field("unsure", fo.BooleanField)
    dataset.add_samples([_sample(one, fo) for one in images], progress=False)
    labelled, label = dataset.exists("label"), fo.ViewField("label.label")
    different = labelled.match(label != fo.ViewField("prediction.label"))
    dataset.save_view(UNSURE, dataset.match(fo.ViewField("unsure")))
    dataset.save_view(DIFFERENT, different.sort_by("prediction.confidence", reverse=True))
    dataset.save_view(UNLABELLED, dataset.exists("label", False))
    if fo.dataset_exists(name):
        fo.delete_dataset(name)
    dataset.name, dataset.persistent = name, True
    return dataset


def _sample(one: Predicted, fo: Any) -> Any:
    classes = [fo.Classification(label=label, confidence=share) for label, share in one.best]
    label, confidence = one.best[0]
    return fo.Sample(
        filepath=str(one.image),
        label=fo.Classification(label=one.label) if one.label else None,
        prediction=fo.Classification(label=label, confidence=confidence),
        probabilities=fo.Classifications(classifications=classes),
        answer=one.answer,
        unsure=one.unsure,
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Open answers of `rmadapter predict` in FiftyOne.")
    parser.add_argument("answers", type=Path, help="the .jsonl file of `predict --out`")
    parser.add_argument("--labels", default="", help="folder or table with the labels, if any")
    parser.add_argument("--name", help="of the data set; by default that of the file")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    parser.add_argument("--no-open", action="store_true", help="only write the data set")
    options = parser.parse_args(words)
    try:
        images = read_answers(options.answers, options.labels)
        name = options.name or options.answers.stem
        dataset = write_dataset(images, name, options.overwrite)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    labelled = sum(bool(one.label) for one in images)
    print(f"{len(images)} images, {labelled} of them labelled: data set {name!r} of FiftyOne")
    if not options.no_open:
        import fiftyone as fo

        fo.launch_app(dataset).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
