"""A run's answers and mistakes come back from their files, which are refused if they are damaged or
of another run; the nearest training images are those by features computed anew."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.page import write_run_page
from rmadapter.artifacts.predictions import (
    COLUMNS,
    MAX_MISTAKES,
    MAX_NEIGHBOURS,
    Evaluation,
    Mistake,
    Neighbour,
    Predictions,
    find_mistakes,
    images_of_examples,
    nearest,
    predictions_of,
    read_mistakes,
    read_predictions,
    write_mistakes,
    write_predictions,
)
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import FewShot, few_shot, save_split
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.task import Question, Task
from rmadapter.training.cache import Cache
from tests.helpers.html import Page
from tests.helpers.run_pages import evaluation, record, score
from tests.helpers.shots import pixels_of

LABELS = ("=sum(A1)", "sea_horse", 'a "b", c')
NAMES = ("formula", "sea horse | a fish", "letters")
OUTSIDE = ["/etc/secret.png", "../secret.png", "a/../../secret.png", r"..\..\secret.png"]


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(RunFolder(folder).predictions, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluated(folder: Path, **changes: Any) -> tuple[Record, list[Evaluation]]:
    """A run of all classes whose images were cross-validated, and its draw."""
    e = evaluation("cross-validated, all classes", 50, NAMES, 3)
    paths = tuple(folder / f"data/{i}.png" for i in range(50))
    images = ImageSet(paths, e.images.labels, NAMES, folder / "data", written=LABELS)
    its = replace(e, images=images)
    train = replace(e.images.subset([0]), written=LABELS)
    save_split(FewShot(train, None, train, 1, 1, ()), folder / "split.json")
    task = Task(data=str(folder / "data"))
    return record(score(its, "all", split="cross-validated"), task=task, **changes), [its]


def written(folder: Path) -> tuple[Record, list[Predictions]]:
    its, evaluations = evaluated(folder)
    found = predictions_of(its, evaluations)
    write_predictions(RunFolder(folder).predictions, found)
    return its, found


def test_every_image_is_a_row_with_its_answers(tmp_path: Path) -> None:
    its, [e] = evaluated(tmp_path)
    write_predictions(RunFolder(tmp_path).predictions, predictions_of(its, [e]))
    rows = read_rows(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert {(row["set"], row["split"]) for row in rows} == {("all", "cross-validated")}
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(50)]
    safe = ("'=sum(A1)", *LABELS[1:])  # no formula to a spreadsheet
    assert [row["true"] for row in rows] == [safe[label] for label in e.labels]
    for row, own, untouched in zip(rows, e.probabilities, e.zero_shot, strict=True):
        second, best = np.argsort(own)[1:]
        assert (row["answer"], row["second"]) == (safe[best], safe[second])
        assert float(row["probability"]) == pytest.approx(own.max(), abs=1e-6)
        assert float(row["second_probability"]) == pytest.approx(own[second], abs=1e-6)
        assert row["zero_shot"] == safe[untouched.argmax()]
        assert float(row["zero_shot_probability"]) == pytest.approx(untouched.max(), abs=1e-6)


def test_round_trip(tmp_path: Path) -> None:
    its, [wanted] = written(tmp_path)
    [found] = read_predictions(tmp_path, its)
    assert found.classes == ("formula", "sea horse", "letters")
    assert found.labels == LABELS
    assert found.sources == tuple(tmp_path / f"data/{i}.png" for i in range(50))
    assert found.images == wanted.images
    for name in ("true", "answer", "second", "zero_shot"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_the_figures_of_the_page_are_those_of_the_file(tmp_path: Path) -> None:
    its, _ = written(tmp_path)
    write_run_page(tmp_path / "r.html", its, read_predictions(tmp_path, its), [])
    text, rows = Page(tmp_path / "r.html").text, read_rows(tmp_path)
    after, before = ([row["true"] == row[name] for row in rows] for name in ("answer", "zero_shot"))
    assert f"{2 * sum(after):.1f} % of 50 images right, {2 * sum(before):.1f} % before" in text
    assert "Each image was classified by a model that had not seen it." in text
    names = ("formula", "sea horse", "letters")
    for name, label in zip(names, ("'=sum(A1)", *LABELS[1:]), strict=True):
        own = [row for row in rows if row["true"] == label]
        right = 100 * sum(row["answer"] == label for row in own) / len(own)
        assert re.search(rf"{name} \({len(own)}\) ?\d+ → {right:.0f} %", text)


def test_a_single_class_has_no_second_choice(tmp_path: Path) -> None:
    e = evaluation("test, novel classes", 3, ("only",), 0)
    [row, *_] = Predictions.of(score(e, "novel"), e).rows()
    assert row[5:8] == ("1.000000", "", "")


def test_a_test_set_may_have_other_classes_than_the_run(tmp_path: Path) -> None:
    """The names of what occurs follow from the labels."""
    its, [own] = evaluated(tmp_path)
    e = evaluation("far", 30, ("x y", "z"), 1)
    far = replace(e, images=replace(e.images, written=("x_y", "z")))
    task = replace(its.task, tests=(Question("all"), Question("far", "elsewhere")))
    scores = (*its.scores, score(far, "far", data="elsewhere"))
    both = its.model_copy(update={"task": task, "scores": scores})
    write_predictions(RunFolder(tmp_path).predictions, predictions_of(both, [own, far]))
    first, second = read_predictions(tmp_path, both)
    assert (first.labels, second.labels, second.classes) == (LABELS, ("x_y", "z"), ("x y", "z"))


def change(folder: Path, old: str, new: str) -> None:
    file = RunFolder(folder).predictions
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


@pytest.mark.parametrize("path", [*OUTSIDE, "C:/Users/anna/secret.png", r"\\host\share\x.png"])
def test_a_path_out_of_the_data_has_no_source(tmp_path: Path, path: str) -> None:
    its, _ = written(tmp_path)
    change(tmp_path, ",7.png,", f",{path},")
    [found] = read_predictions(tmp_path, its)
    assert found.sources[7] is None
    assert found.sources[8] == tmp_path / "data/8.png"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("zero_shot_probability", "x", "does not match run.json"),
        ("all,cross-validated,3.png", "base,test,3.png", "does not match run.json"),
        (",3.png,", ",", "does not match run.json"),
        (",0.", ",-0.", "a probability outside 0 to 1"),
        (",0.", ",nan", "not a number"),
        ("set,", '"', "not readable CSV|does not match run.json"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    its, _ = written(tmp_path)
    change(tmp_path, old, new)
    with pytest.raises(UserError, match=rf"predictions\.csv: .*({reason})"):
        read_predictions(tmp_path, its)


def test_an_unknown_label_is_of_another_set_of_classes(tmp_path: Path) -> None:
    its, _ = written(tmp_path)
    change(tmp_path, "sea_horse", "zebra")
    assert "zebra" in read_predictions(tmp_path, its)[0].labels


def test_a_missing_row_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    its, _ = written(tmp_path)
    file = RunFolder(tmp_path).predictions
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(UserError, match=r"49 images of .*, but run\.json has 50"):
        read_predictions(tmp_path, its)
    file.unlink()
    with pytest.raises(UserError, match=r"predictions\.csv: missing"):
        read_predictions(tmp_path, its)


def test_without_evaluations_no_file_is_written(tmp_path: Path) -> None:
    write_predictions(RunFolder(tmp_path).predictions, [])
    assert not list(tmp_path.iterdir())
    assert read_predictions(tmp_path, record()) == []


def test_classes_and_labels_are_those_of_the_images() -> None:
    images = ImageSet((np.zeros((2, 2), np.uint8),) * 3, (0, 1, 1), ("crane | bird", "b"))
    evaluation = Evaluation("test", images, np.eye(2)[[0, 1, 0]], np.eye(2)[[0, 0, 0]])
    assert evaluation.classes == ("crane", "b")  # the first description of a class is its name
    assert evaluation.labels.tolist() == [0, 1, 1]


# Nearest training images and mistakes


def test_nearest_by_hand() -> None:
    examples = np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    near = nearest(np.array([[5.0, 0], [0, -2]]), examples, 2)
    assert near.rows[0].tolist() == [0, 2]
    assert near.cosines[0] == pytest.approx([1, 0.6])
    assert near.rows[1, 0] == 0
    assert nearest(np.ones((1, 2)), examples).rows.shape == (1, 3)  # there are no more
    assert nearest(np.empty((0, 2)), examples).rows.shape == (0, 3)


def test_nearest_agrees_with_scikit_learn_and_skips_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr("rmadapter.artifacts.predictions.IMAGES_AT_ONCE", 7)
    features = np.random.default_rng(0).normal(size=(30, 5))
    alone = np.arange(30)
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features)
    distances, rows = oracle.kneighbors(features)
    near = nearest(features, count=4, groups=alone)
    assert (near.rows == rows[:, 1:]).all()
    assert near.cosines == pytest.approx(1 - distances[:, 1:])
    copies = alone.copy()
    copies[rows[0, 1]] = 0  # a copy of the first
    assert nearest(features, count=4, groups=copies).rows[0, 0] == rows[0, 2]
    assert np.isinf(nearest(features, count=4, groups=np.zeros(30)).cosines).all()


def test_examples_of_many_images_are_a_regular_subset(
    monkeypatch: pytest.MonkeyPatch, finished: Path, tiny_clip: Backbone
) -> None:
    for module in ("training.contract", "artifacts.predictions"):
        monkeypatch.setattr(f"rmadapter.{module}.MAX_EXAMPLES", 4)
    features = torch.eye(11)
    examples = load(finished, tiny_clip).fitted.fitted_to(features).examples
    assert examples is not None
    assert examples.argmax(1).tolist() == [*images_of_examples(range(11))] == [0, 3, 6, 9]
    assert [*images_of_examples(range(4))] == [0, 1, 2, 3]
    assert [*images_of_examples(())] == []


def answered(images: ImageSet, wrong: dict[int, float]) -> Evaluation:
    """Every image is named, but for some. wrong: rows, with the probability of the class that is
    answered instead."""
    labels = np.array(images.labels)
    table = np.eye(len(images.classes))[labels] * 0.96 + 0.01
    for row, share in wrong.items():
        table[row] = (1 - share) / 3
        table[row, labels[row] - 1] = share
    return Evaluation("test, all classes", images, table, table)


def mistakes_of(fitted: Any, train: ImageSet, e: Evaluation, tiny_clip: Backbone) -> list[Mistake]:
    cache = Cache(tiny_clip, hold=False, progress=False)
    return find_mistakes(fitted, train, [e], [Predictions.of(score(e, "all"), e)], cache)


def test_mistakes_with_their_nearest_training_images(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    """The surest come first, and the neighbours are those of features computed anew."""
    splits, fitted = read_images(colors), load(finished, tiny_clip).fitted
    train, test = few_shot(splits, 4, 1).train, splits["test"]
    rows = [3, 7, 1, 0, 12, 15, 8]
    wrong = {row: 0.9 - 0.05 * i for i, row in enumerate(rows)}
    its = mistakes_of(fitted, train, answered(test, wrong), tiny_clip)
    assert [one.image for one in its] == [test.name(row) for row in rows[:MAX_MISTAKES]]
    own, unit = (
        normalize(tiny_clip.image.frozen(pixels_of(tiny_clip, images, some)).features, dim=-1)
        for images, some in ((test, rows[:MAX_MISTAKES]), (train, None))
    )
    for one, cosines in zip(its, own @ unit.T, strict=True):
        best = cosines.sort(descending=True).values[:MAX_NEIGHBOURS].tolist()
        assert [near.similarity for near in one.neighbours] == pytest.approx(best, abs=1e-3)
        for near in one.neighbours:
            assert near.source == colors / near.image
            assert near.label == Path(near.image).parent.name
    assert mistakes_of(fitted, train, answered(test, {}), tiny_clip) == []
    assert find_mistakes(fitted, train, [], [], Cache(tiny_clip)) == []


def test_a_training_image_is_not_its_own_neighbour(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    train, fitted = few_shot(read_images(colors), 4, 1).train, load(finished, tiny_clip).fitted
    [one] = mistakes_of(fitted, train, answered(train, {5: 0.7}), tiny_clip)
    assert one.image == train.name(5)
    assert len(one.neighbours) == MAX_NEIGHBOURS
    assert one.image not in [near.image for near in one.neighbours]


def example(folder: Path) -> tuple[list[Mistake], Predictions]:
    e = evaluation("test, all classes", 4, ("cat", "dog"), 0)
    paths = tuple(folder / f"{i}.png" for i in range(4))
    its = replace(e, images=ImageSet(paths, e.images.labels, e.classes, folder))
    near = (
        Neighbour("a/x.png", folder / "a/x.png", "cat", 0.8765),
        Neighbour("b.png", folder / "b.png", "dog", 0.5),
    )
    return [Mistake("2.png", near), Mistake("0.png", ())], Predictions.of(score(its, "all"), its)


def test_mistakes_come_back(tmp_path: Path) -> None:
    wrong, its = example(tmp_path)
    write_mistakes(tmp_path / "why.json", wrong)
    assert read_mistakes(tmp_path / "why.json", its, tmp_path) == wrong
    assert read_mistakes(tmp_path / "none.json", its, tmp_path) == []


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_neighbour_out_of_the_data_has_no_source(tmp_path: Path, path: str) -> None:
    _, its = example(tmp_path)
    write_mistakes(tmp_path / "why.json", [Mistake("2.png", (Neighbour(path, None, "cat", 1.0),))])
    [one] = read_mistakes(tmp_path / "why.json", its, tmp_path)
    assert one.neighbours[0].source is None


NO_SIMILARITY = [{"image": "2.png", "neighbours": [{"image": "a", "label": "cat"}]}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not readable JSON"),
        ({"image": "2.png"}, "not the mistakes of a run"),
        (NO_SIMILARITY, r"not the mistakes of a run \(0\.neigh"),
        ([{"image": "9.png", "neighbours": []}], r"names an image that predictions\.csv does not"),
    ],
)
def test_damaged_mistakes_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    _, its = example(tmp_path)
    (tmp_path / "why.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_mistakes(tmp_path / "why.json", its, tmp_path)
