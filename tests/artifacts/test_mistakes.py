"""The training images most like others, by features computed anew; and the file with those of a
run's mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.predictions import (
    SHOWN,
    WRONG,
    Evaluation,
    Mistake,
    Neighbour,
    Predictions,
    find_mistakes,
    images_of_examples,
    nearest,
    read_mistakes,
    write_mistakes,
)
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.training.cache import Cache
from tests.helpers.run_pages import evaluation, score
from tests.helpers.shots import pixels_of


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

    monkeypatch.setattr("rmadapter.artifacts.predictions.CHUNK", 7)
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
        monkeypatch.setattr(f"rmadapter.{module}.MOST_EXAMPLES", 4)
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
    its = mistakes_of(
        fitted,
        train,
        answered(test, {row: 0.9 - 0.05 * i for i, row in enumerate(rows)}),
        tiny_clip,
    )
    assert [one.image for one in its] == [test.name(row) for row in rows[:WRONG]]
    unit = normalize(
        tiny_clip.image.frozen(pixels_of(tiny_clip, train, range(len(train)))).features, dim=-1
    )
    own = normalize(
        tiny_clip.image.frozen(pixels_of(tiny_clip, test, rows[:WRONG])).features, dim=-1
    )
    for one, cosines in zip(its, own @ unit.T, strict=True):
        assert [near.similarity for near in one.neighbours] == pytest.approx(
            cosines.sort(descending=True).values[:SHOWN].tolist(), abs=1e-3
        )
        for near in one.neighbours:
            assert near.source == colors / near.image
            assert near.label == Path(near.image).parent.name
    assert mistakes_of(fitted, train, answered(test, {}), tiny_clip) == []
    assert find_mistakes(fitted, train, [], [], Cache(tiny_clip)) == []


def test_a_training_image_is_not_its_own_neighbour(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    train = few_shot(read_images(colors), 4, 1).train
    [one] = mistakes_of(
        load(finished, tiny_clip).fitted, train, answered(train, {5: 0.7}), tiny_clip
    )
    assert one.image == train.name(5)
    assert len(one.neighbours) == SHOWN
    assert one.image not in [near.image for near in one.neighbours]


def example(folder: Path) -> tuple[list[Mistake], Predictions]:
    e = evaluation("test, all classes", 4, ("cat", "dog"), 0)
    paths = tuple(folder / f"{i}.png" for i in range(4))
    its = Evaluation(
        e.title, ImageSet(paths, e.images.labels, e.classes, folder), e.probabilities, e.zero_shot
    )
    near = (
        Neighbour("a/x.png", folder / "a/x.png", "cat", 0.8765),
        Neighbour("b.png", folder / "b.png", "dog", 0.5),
    )
    return [Mistake("2.png", near), Mistake("0.png", ())], Predictions.of(score(its, "all"), its)


def test_round_trip(tmp_path: Path) -> None:
    wrong, its = example(tmp_path)
    write_mistakes(tmp_path / "why.json", wrong)
    assert read_mistakes(tmp_path / "why.json", its, tmp_path) == wrong
    assert read_mistakes(tmp_path / "none.json", its, tmp_path) == []


@pytest.mark.parametrize("path", ["/etc/secret.png", "../secret.png"])
def test_a_path_out_of_the_data_has_no_source(tmp_path: Path, path: str) -> None:
    _, its = example(tmp_path)
    write_mistakes(tmp_path / "why.json", [Mistake("2.png", (Neighbour(path, None, "cat", 1.0),))])
    [one] = read_mistakes(tmp_path / "why.json", its, tmp_path)
    assert one.neighbours[0].source is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not readable JSON"),
        ({"image": "2.png"}, "not the mistakes of a run"),
        (
            [{"image": "2.png", "neighbours": [{"image": "a", "label": "cat"}]}],
            r"not the mistakes of a run \(0\.neigh",
        ),
        ([{"image": "9.png", "neighbours": []}], r"names an image that predictions\.csv does not"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    _, its = example(tmp_path)
    (tmp_path / "why.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_mistakes(tmp_path / "why.json", its, tmp_path)
