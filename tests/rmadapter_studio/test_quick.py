"""The model that is fitted anew at each label, and the order of the images to label next: against
the method that it is, refits without the judged images, and closed cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rmadapter.answers.rejection import Familiarity
from rmadapter.backbones import Backbone
from rmadapter.encoders import Grid, States
from rmadapter.errors import UserError
from rmadapter.methods.ridge import HEAD, Ridge, ridge
from rmadapter.methods.zero_shot import SEVEN
from rmadapter.metrics import wilson
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.runs.features import class_means, distances
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Known
from rmadapter_studio import quick as module
from rmadapter_studio.quick import (
    ORDERS,
    SURE,
    Encoded,
    Quick,
    choose,
    fit,
    held_out,
    neighbours,
    strangest,
)

CLASSES = ("cat", "dog", "owl")


def draw(backbone: Backbone, count: int, together: Sequence[int] = (), seed: int = 0) -> Encoded:
    """Draw unit features of images in three clusters, in turn."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((backbone.embedding_size, 3)))[0].T
    points = centres[np.arange(count) % 3] + 0.1 * rng.standard_normal((count, centres.shape[1]))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    names = tuple(f"{row}.png" for row in range(count))
    return Encoded(names, unit, np.array(together or range(count)))


def truth(encoded: Encoded, rows: Sequence[int]) -> dict[str, str]:
    return {encoded.names[row]: CLASSES[row % 3] for row in rows}


def states(unit: np.ndarray) -> States:
    empty = torch.empty(0)
    return States(None, Grid(None), torch.from_numpy(unit).float(), empty, empty)


def same_order(table: np.ndarray, logits: torch.Tensor) -> None:
    """Check that probabilities are those of logits divided by one temperature."""
    logs = np.log(table)
    logs -= logs[:, :1]
    wide = (logits - logits[:, :1]).double().numpy()
    heat = (wide[:, 1:] / logs[:, 1:]).mean()
    np.testing.assert_allclose(logs * heat, wide, rtol=1e-3, atol=1e-3)


def test_without_labels_it_is_zero_shot(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 6)
    quick = fit(encoded, tiny_clip, CLASSES, {})
    weights = zero_shot_weights(tiny_clip, CLASSES, (*TEMPLATES, *SEVEN))
    logits = cosine_logits(tiny_clip, torch.from_numpy(encoded.unit).float(), weights)
    expected = logits.detach().softmax(-1).numpy()
    np.testing.assert_allclose(quick.table, expected, rtol=1e-4, atol=1e-6)
    assert not quick.judged.any()
    assert quick.accuracy() is None
    assert quick.suspects() == []


def test_it_is_the_method_ridge(tiny_clip: Backbone) -> None:
    """On images without labels, also where a class is known by name alone."""
    encoded = draw(tiny_clip, 12)
    for rows, known in (([0, 1, 2, 3, 4, 5], CLASSES), ([0, 1, 3, 4, 6], CLASSES[:2])):
        labels = truth(encoded, rows)
        quick = fit(encoded, tiny_clip, CLASSES, labels)
        targets = torch.tensor([row % 3 for row in rows])
        shots = torch.from_numpy(encoded.unit[rows]).float()
        head = ridge(shots, targets, len(known), Ridge().penalty)
        fitted = Ridge().restore(tiny_clip, Known(known), {HEAD: head})
        rest = [row for row in range(12) if row not in rows]
        logits = fitted.score(CLASSES)(states(encoded.unit[rest]))
        same_order(quick.table[rest], logits)


def test_held_out_answers_are_those_of_refits() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((14, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    targets = np.arange(14) % 3
    together = np.array([0, 1, 2, 3, 4, 5, 0, 1, 8, 9, 10, 0, 12, 13])
    found = held_out(x, targets, 3, together, penalty=0.3)
    for row in range(14):
        kept = together != together[row]
        wide = torch.from_numpy(x[kept])
        head = ridge(wide, torch.from_numpy(targets[kept]), 3, 0.3).numpy()
        np.testing.assert_allclose(found[row], head @ x[row], rtol=1e-9, atol=1e-12)


def test_copies_do_not_judge_each_other(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 7, together=[0, 1, 2, 0, 4, 5, 0])
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, range(7)))
    # all images of the first class are near-duplicates
    assert quick.judged.tolist() == [False, True, True, False, True, True, False]
    assert quick.of_class() == {"cat": (0, 0), "dog": (2, 2), "owl": (2, 2)}
    assert quick.accuracy() == (4, 4, *wilson(4, 4))


def test_a_wrong_label_is_suspected(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 30)
    labels = truth(encoded, range(27)) | {"4.png": "owl"}
    quick = fit(encoded, tiny_clip, CLASSES, labels)
    [(row, better, probability)] = quick.suspects()
    assert (encoded.names[row], better) == ("4.png", "dog")
    assert 0.5 < probability <= 1
    judged = quick.accuracy()
    assert judged is not None
    assert (judged.images, judged.right) == (27, 26)


def test_mistakes_and_confusions_are_of_judged_images() -> None:
    table = np.array(
        [
            [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1],
            [0.0, 0.9, 0.1], [0.5, 0.3, 0.2],
        ]
    )  # fmt: skip
    labels = np.array([0, 0, 0, 1, 2, 2, -1])
    judged = np.array([True, True, True, True, True, False, False])
    quick = Quick(CLASSES, table, labels, judged)
    assert quick.wrong() == [
        (2, "cat", "dog", 0.9),
        (4, "owl", "dog", 0.8),
        (3, "dog", "owl", 0.7),
        (1, "cat", "dog", 0.6),
    ]
    assert quick.confusions() == [("cat", "dog", 2), ("dog", "owl", 1), ("owl", "dog", 1)]
    none = Quick(CLASSES, table, labels, np.zeros(7, bool))
    assert (none.wrong(), none.confusions()) == ([], [])


def test_neighbours_are_labelled_images_by_cosine(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 12, together=[*range(11), 0])
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, range(8)))
    for row in (3, 10, 11):
        cosines = encoded.unit[:8] @ encoded.unit[row]
        expected = [i for i in np.argsort(-cosines) if i != row][:4]
        found = neighbours(encoded, quick, row, 4)
        assert [i for i, _ in found] == expected
        np.testing.assert_allclose([c for _, c in found], cosines[expected], rtol=1e-6)
    assert len(neighbours(encoded, quick, 0, 100)) == 7
    assert neighbours(encoded, fit(encoded, tiny_clip, CLASSES, {}), 0) == []


def test_strangeness_is_relative_to_images_seen_by_the_others(tiny_clip: Backbone) -> None:
    """As of folds that leave out one group each."""
    together = [0, 1, 2, 0, 4, 5, 6, 7, 8, *range(9, 14)]
    encoded = draw(tiny_clip, 14, together)
    far = np.linalg.qr(encoded.unit[:3].T, mode="complete")[0][:, -1]
    encoded.unit[12] = far  # unlike all others
    known = np.arange(9)
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, known))
    assert quick.judged.sum() == 9
    wide = torch.from_numpy(encoded.unit)
    own = []
    for row in known:
        others = known[encoded.together[known] != together[row]]
        means = class_means(wide[others], (others % 3).tolist(), 3)
        own.append(float(distances(wide[[row]], means)))
    familiarity = Familiarity.of(quick.table[known], np.array(own), "folds")
    rows = np.arange(9, 14)
    away = distances(wide[rows], class_means(wide[known], (known % 3).tolist(), 3)).numpy()
    expected = familiarity.strangeness(quick.table[rows], away)
    found = strangest(encoded, quick, rows.tolist())
    assert [row for row, _ in found] == rows[np.argsort(-expected)].tolist()
    np.testing.assert_allclose([x for _, x in found], -np.sort(-expected), rtol=1e-3, atol=1e-4)
    assert found[0][0] == 12
    assert strangest(encoded, quick, []) == []
    assert strangest(encoded, fit(encoded, tiny_clip, CLASSES, {}), range(9)) == []


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
    assert quick.table.shape == (4, 0)
    assert quick.accuracy() is None
    assert len(choose(encoded, quick, range(1, 4), "typicality", 2)) == 2
    with pytest.raises(UserError, match="two classes first"):
        choose(encoded, quick, range(1, 4), "margin", 2)


def rows_of(quick: Quick, encoded: Encoded, order: str, n: int, left: Sequence[int]) -> list[int]:
    return [one.row for one in choose(encoded, quick, left, order, n)]


def test_orders_leave_out_copies_and_what_is_done(tiny_clip: Backbone) -> None:
    together = [*range(24), *range(24)]
    encoded = draw(tiny_clip, 48, together=together)
    quick = fit(encoded, tiny_clip, CLASSES, truth(encoded, range(6)))
    left = [row for row in range(8, 48) if row != 30]
    for order in ORDERS:
        chosen = choose(encoded, quick, left, order, 100)
        assert sorted(together[one.row] for one in chosen) == sorted({together[r] for r in left})
        for one in chosen:
            assert {one.row, *one.copies} == {r for r in left if together[r] == together[one.row]}
        assert len(choose(encoded, quick, left, order, 5)) == 5
        assert choose(encoded, quick, [], order, 5) == []
    with pytest.raises(UserError, match="unknown order"):
        choose(encoded, quick, left, "typical", 5)


def test_the_surest_come_by_class_and_the_least_sure_by_margin(tiny_clip: Backbone) -> None:
    encoded = draw(tiny_clip, 5)
    table = np.array([[0.6, 0.4], [0.1, 0.9], [0.95, 0.05], [0.51, 0.49], [0.3, 0.7]])
    quick = Quick(("a", "b"), table, np.full(5, -1), np.zeros(5, bool))
    assert rows_of(quick, encoded, SURE, 3, range(5)) == [2, 1, 4]
    assert rows_of(quick, encoded, "margin", 2, range(5)) == [3, 0]
    chosen = choose(encoded, quick, range(5), SURE, 1)
    assert [(one.row, one.score) for one in chosen] == [(2, 0.95)]
    assert {one.score for one in choose(encoded, quick, range(5), "random", 5)} == {None}


def test_large_pools_are_drawn_from(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_POOL", 4)
    encoded = draw(tiny_clip, 9)
    quick = fit(encoded, tiny_clip, CLASSES, {})
    assert len(rows_of(quick, encoded, "coverage", 9, range(9))) == 4
    assert len(rows_of(quick, encoded, SURE, 9, range(9))) == 9
