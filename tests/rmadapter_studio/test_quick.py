"""The model that is fitted anew at each label: what it says of judged images, and images beside
others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rmadapter.answers import RejectionScore
from rmadapter.backbones import Backbone
from rmadapter.metrics import wilson
from rmadapter.runs import Proposals
from rmadapter.runs.features import class_means, distances
from rmadapter_studio.quick import Encoded, Quick, fit, neighbours, out_of_distribution

CLASSES = ("cat", "dog", "owl")


def draw(backbone: Backbone, count: int, together: Sequence[int] = (), seed: int = 0) -> Encoded:
    """Draw unit features of images in three clusters, in turn."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((backbone.embedding_size, 3)))[0].T
    points = centres[np.arange(count) % 3] + 0.1 * rng.standard_normal((count, centres.shape[1]))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    names = tuple(f"{row}.png" for row in range(count))
    return Encoded(names, unit, np.array(together or range(count)))


def quick_of(
    classes: tuple[str, ...], table: np.ndarray, labels: np.ndarray, judged: np.ndarray
) -> Quick:
    names = tuple(map(str, range(len(table))))
    encoded = Encoded(names, np.zeros((len(table), 2)), np.arange(len(table)))
    return Quick(encoded, classes, labels, Proposals(table, judged))


def truth(encoded: Encoded, rows: Sequence[int]) -> dict[str, str]:
    return {encoded.names[row]: CLASSES[row % 3] for row in rows}


def test_copies_do_not_judge_each_other(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 7, together=[0, 1, 2, 0, 4, 5, 0])
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, range(7)))
    # all images of the first class are near-duplicates
    assert quick.judged.tolist() == [1, 2, 4, 5]
    assert [quick.accuracy(label)[:2] for label in CLASSES] == [(0, 0), (2, 2), (2, 2)]
    assert quick.accuracy() == (4, 4, *wilson(4, 4))


def test_a_wrong_label_is_suspected(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 30)
    labels = truth(encoded, range(27)) | {"4.png": "owl"}
    quick = fit(encoded, tiny_clip, CLASSES, labels)
    assert quick.suspects() == {4: "dog"}
    assert 0.5 < quick.table[4, 1] <= 1
    assert quick.accuracy()[:2] == (27, 26)


def test_mistakes_and_confusions_are_of_judged_images() -> None:
    table = np.array(
        [
            [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1],
            [0.0, 0.9, 0.1], [0.5, 0.3, 0.2],
        ]
    )  # fmt: skip
    labels = np.array([0, 0, 0, 1, 2, 2, -1])
    judged = np.array([True, True, True, True, True, False, False])
    quick = quick_of(CLASSES, table, labels, judged)
    assert quick.wrong() == [
        (2, "cat", "dog", 0.9),
        (4, "owl", "dog", 0.8),
        (3, "dog", "owl", 0.7),
        (1, "cat", "dog", 0.6),
    ]
    assert quick.confusions() == [("cat", "dog", [2, 1]), ("dog", "owl", [3]), ("owl", "dog", [4])]
    none = quick_of(CLASSES, table, labels, np.zeros(7, bool))
    assert (none.wrong(), none.confusions()) == ([], [])


def test_neighbours_are_labelled_images_by_cosine(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 12, together=[*range(11), 0])
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, range(8)))
    for row in (3, 10, 11):
        cosines = encoded.features[:8] @ encoded.features[row]
        expected = [i for i in np.argsort(-cosines) if i != row][:4]
        found = neighbours(quick, row, 4)
        assert [i for i, _ in found] == expected
        np.testing.assert_allclose([c for _, c in found], cosines[expected], rtol=1e-6)
    assert len(neighbours(quick, 0, 100)) == 7
    assert neighbours(fit(encoded, tiny_clip, CLASSES, {}), 0) == []


def test_the_rejection_score_is_relative_to_images_seen_by_the_others(tiny_clip: Backbone) -> None:
    """As of folds that leave out one group each."""
    together = [0, 1, 2, 0, 4, 5, 6, 7, 8, *range(9, 14)]
    encoded = draw(tiny_clip, 14, together)
    far = np.linalg.qr(encoded.features[:3].T, mode="complete")[0][:, -1]
    encoded.features[12] = far  # unlike all others
    known = np.arange(9)
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, known))
    assert len(quick.judged) == 9
    wide = torch.from_numpy(encoded.features)
    own = []
    for row in known:
        others = known[encoded.groups[known] != together[row]]
        means = class_means(wide[others], (others % 3).tolist(), 3)
        own.append(float(distances(wide[[row]], means)))
    rejection = RejectionScore.of(quick.table[known], np.array(own), "folds")
    rows = np.arange(9, 14)
    away = distances(wide[rows], class_means(wide[known], (known % 3).tolist(), 3)).numpy()
    expected = rejection.scores(quick.table[rows], away)
    found = out_of_distribution(quick, rows.tolist())
    assert [row for row, _ in found] == rows[np.argsort(-expected)].tolist()
    np.testing.assert_allclose([x for _, x in found], -np.sort(-expected), rtol=1e-3, atol=1e-4)
    assert found[0][0] == 12
    assert out_of_distribution(quick, []) == []
    assert out_of_distribution(fit(encoded, tiny_clip, CLASSES, {}), range(9)) == []


def test_a_catch_all_class_waits_for_its_first_image(tiny_clip: Backbone) -> None:
    encoded, classes = draw(tiny_clip, 6), ("cat", "dog", "none")
    assert fit(encoded, tiny_clip, classes, {}).classes == ("cat", "dog")
    quick = fit(encoded, tiny_clip, classes, {"2.png": "none"})
    assert quick.classes == classes
    np.testing.assert_allclose(quick.table.sum(1), 1)


@pytest.mark.parametrize("classes", [(), ("cat",), ("cat", "none")])
def test_fewer_than_two_classes_have_no_proposals(
    tiny_clip: Backbone, classes: tuple[str, ...]
) -> None:
    encoded = draw(tiny_clip, 4)
    quick = fit(encoded, tiny_clip, classes, {"0.png": "cat"} if classes else {})
    assert (quick.proposes, quick.table.shape) == (False, (4, 0))
    assert quick.accuracy().images == 0
    assert (quick.wrong(), quick.suspects(), quick.share("0.png", "cat")) == ([], {}, 1.0)


def test_new_images_come_without_answers(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 8)
    some = Encoded(encoded.names[:6], encoded.features[:6], encoded.groups[:6])
    quick = fit(some, tiny_clip, CLASSES, truth(encoded, range(6)))
    more = quick.beside(encoded)
    np.testing.assert_array_equal(more.table[:6], quick.table)
    np.testing.assert_allclose(more.table[6:], 1 / 3)
    assert more.labels.tolist() == [*quick.labels, -1, -1]
    assert more.judged.tolist() == quick.judged.tolist()
