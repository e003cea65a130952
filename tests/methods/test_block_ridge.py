"""The regression on every block against scikit-learn's, its answers about the shots against refits
without them, and its choice against a search written out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Ridge

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.duplicates import halves
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import block_ridge
from rmadapter.methods.block_ridge import (
    MIN_SHARE,
    BlockRidge,
    Choice,
    Rows,
    Shown,
    Table,
    choose,
    mixes_of,
)
from rmadapter.training.contract import NotApplicable, Shots
from tests.helpers.models import write_timm
from tests.helpers.shots import logits_of, noise_images, noisy_colors, own_features, shots_of
from tests.helpers.slow import ci_except

NUMBERS = {"penalty": 0.2, "heat": 6.0, "share": 0.4, "centring": 0.6}
CLOSE = {"rtol": 1e-3, "atol": 2e-3}  # parts are in float16
# Weights of the parts of four blocks: class token, mean, deviation and maximum of each.
WRITTEN = {
    "last": np.eye(16)[12],
    "late": np.array([0] * 12 + [0.5, 0.5, 0, 0]),
    "all": np.full(16, 1 / 16),
}
WRITTEN["mixed"] = sum(WRITTEN.values()) / 3


def stacked(shots: Shots, mix: np.ndarray) -> np.ndarray:
    """Return features [N, P * d] whose inner products are the kernel."""
    parts = shots.parts().double().numpy()
    return (np.sqrt(mix)[:, None] * parts).reshape(len(parts), -1)


def regression(
    x: np.ndarray, y: np.ndarray, asked: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return outputs [M, C] for `asked` by scikit-learn, fitted to one-hot labels y [N, C]."""
    found: np.ndarray = Ridge(alpha=NUMBERS["penalty"]).fit(x, y, weights).predict(asked)
    return found


def prior(backbone: Backbone, g: np.ndarray, means: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return logits [M, C] of unit features g [M, e], by a mean of the shots' for all or each."""
    moved = g - NUMBERS["centring"] * means
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    found: np.ndarray = float(backbone.logit_scale) * moved @ texts.T
    return found


# Answers


@pytest.mark.parametrize("blocks", WRITTEN)
@pytest.mark.parametrize("count", [1, 2])
def test_logits_are_the_regression_and_the_prior(
    tiny_clip: Backbone, blocks: str, count: int
) -> None:
    """By the given numbers, since so few images of each class cannot choose."""
    shots, asked = (shots_of(tiny_clip, noisy_colors(n, seed=n)) for n in (count, 3))
    fitted = BlockRidge(blocks=blocks, **NUMBERS).fit(tiny_clip, shots)
    assert {tensor.dtype for tensor in fitted.tensors.values()} == {torch.float32}
    y = np.eye(4)[shots.labels]
    outputs = regression(*(stacked(shots, WRITTEN[blocks]), y, stacked(asked, WRITTEN[blocks])))
    g, texts = own_features(tiny_clip, shots.images, shots.classes)
    new, _ = own_features(tiny_clip, asked.images, shots.classes)
    zero_shot = prior(tiny_clip, new, g.mean(0), texts)
    expected = NUMBERS["heat"] * outputs + NUMBERS["share"] * zero_shot
    found = logits_of(fitted, asked, shots.classes).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_mixed_blocks_are_taken_where_none_can_be_chosen(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(2))
    one, other = (
        logits_of(BlockRidge(blocks=blocks).fit(tiny_clip, shots), shots)
        for blocks in ("choose", "mixed")
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("count", [2, 4])
def test_saved_tensors_answer_the_same(tiny_clip: Backbone, count: int) -> None:
    shots = shots_of(tiny_clip, noisy_colors(count))
    fitted = BlockRidge().fit(tiny_clip, shots)
    restored = BlockRidge().restore(tiny_clip, shots.known, fitted.tensors)
    for names in (None, ("red", "house"), ("house", "tree")):
        found, expected = (logits_of(one, shots, names) for one in (restored, fitted))
        assert torch.equal(found, expected)
    assert fitted.left_out is not None
    assert restored.left_out is None


def test_classes_by_name_alone_have_the_centred_prior(tiny_clip: Backbone) -> None:
    """Beside classes of the shots in the share of the prior there."""
    shots, names = shots_of(tiny_clip, noisy_colors(2)), ("house", "tree")
    fitted = BlockRidge(**NUMBERS).fit(tiny_clip, shots)
    g, texts = own_features(tiny_clip, shots.images, names)
    expected = prior(tiny_clip, g, g.mean(0), texts)
    np.testing.assert_allclose(logits_of(fitted, shots, names), expected, **CLOSE)
    beside = logits_of(fitted, shots, ("house", "red", "tree")).numpy()
    np.testing.assert_allclose(beside[:, [0, 2]], NUMBERS["share"] * expected, **CLOSE)
    red = logits_of(fitted, shots)[:, shots.classes.index("red")]
    np.testing.assert_allclose(beside[:, 1], red, rtol=1e-5, atol=1e-5)


def test_without_text_the_regression_answers_alone(tiny_timm: Backbone) -> None:
    shots = shots_of(tiny_timm, noisy_colors(2))
    fitted = BlockRidge(blocks="all", **NUMBERS).fit(tiny_timm, shots)
    x = stacked(shots, np.full(8, 1 / 8))  # two blocks
    outputs = NUMBERS["heat"] * regression(x, np.eye(4)[shots.labels], x)
    np.testing.assert_allclose(logits_of(fitted, shots), outputs, **CLOSE)
    some = logits_of(fitted, shots, ("red", "blue")).numpy()
    np.testing.assert_allclose(some, outputs[:, [3, 0]], **CLOSE)
    with pytest.raises(NotApplicable, match="violet"):
        fitted.score(("red", "violet"))


@pytest.mark.parametrize("blocks", ["choose", "last"])
def test_an_encoder_without_blocks_gives_its_features(tmp_path: Path, blocks: str) -> None:
    backbone = load_backbone(f"timm:{write_timm(tmp_path / 'model', 'test_resnet')}")
    shots = shots_of(backbone, noisy_colors(2))
    fitted = BlockRidge(blocks=blocks, **NUMBERS).fit(backbone, shots)
    g = torch.nn.functional.normalize(shots.plain_features(), dim=-1).numpy()
    outputs = NUMBERS["heat"] * regression(g, np.eye(4)[shots.labels], g)
    np.testing.assert_allclose(logits_of(fitted, shots), outputs, **CLOSE)


def test_weights_of_the_shots_are_those_of_the_regression(tiny_timm: Backbone) -> None:
    weights = np.array([1.0, 3, 2, 0.5, 1, 1, 4, 2])
    images = replace(noisy_colors(2), weights=tuple(weights.tolist()))
    shots = shots_of(tiny_timm, images)
    fitted = BlockRidge(blocks="last", **NUMBERS).fit(tiny_timm, shots)
    assert fitted.trained.weighed
    x = stacked(shots, np.eye(8)[4])
    outputs = regression(x, np.eye(4)[shots.labels], x, weights / weights.mean())
    np.testing.assert_allclose(logits_of(fitted, shots), NUMBERS["heat"] * outputs, **CLOSE)


@pytest.mark.parametrize("part", ["ln_post.bias", "proj"])
def test_features_that_are_not_finite_are_refused(tiny_clip: Backbone, part: str) -> None:
    model = copy.deepcopy(tiny_clip.model)
    model.visual.get_parameter(part).data.fill_(float("nan"))
    broken = replace(tiny_clip, model=model)
    with pytest.raises(UserError, match="NaN"):
        BlockRidge().fit(broken, shots_of(broken, noisy_colors(3)))


# What is left out


def test_what_is_left_out_equals_refits(tiny_clip: Backbone) -> None:
    """Two images of each class are of one group, and leave one other: too few to choose by."""
    images = noisy_colors(3)
    images = replace(images, groups=tuple(f"{i // 3}" if i % 3 else "" for i in range(12)))
    shots = shots_of(tiny_clip, images)
    fitted = BlockRidge(**NUMBERS).fit(tiny_clip, shots)
    x, y = stacked(shots, WRITTEN["mixed"]), np.eye(4)[shots.labels]
    g, texts = own_features(tiny_clip, images, shots.classes)
    expected = []
    for i in range(12):
        own = [3 * (i // 3) + 1, 3 * (i // 3) + 2] if i % 3 else [i]
        rest = np.setdiff1d(np.arange(12), own)
        outputs = regression(x[rest], y[rest], x[[i]])
        zero_shot = prior(tiny_clip, g[[i]], g[rest].mean(0), texts)
        expected.append(softmax(NUMBERS["heat"] * outputs + NUMBERS["share"] * zero_shot, axis=1))
    assert fitted.left_out is not None
    table, judged, groups = fitted.left_out
    np.testing.assert_allclose(table, np.concatenate(expected), atol=1e-3)
    np.testing.assert_allclose(table.sum(1), 1)
    assert judged.all()
    np.testing.assert_array_equal(groups, shots.groups)


@pytest.mark.parametrize("count", [4, 60])
def test_one_image_of_each_class_says_nothing_of_new_ones(tiny_clip: Backbone, count: int) -> None:
    """The answers left out are the prior alone, and the numbers are those given."""
    names = tuple(f"class {i}" for i in range(count))
    shots = shots_of(tiny_clip, noise_images(count, names))
    fitted = BlockRidge(**NUMBERS).fit(tiny_clip, shots)
    assert fitted.left_out is not None
    assert not fitted.left_out.judged.any()
    g, texts = own_features(tiny_clip, shots.images, names)
    rest = (g.sum(0) - g) / (count - 1)
    expected = softmax(prior(tiny_clip, g, rest, texts), axis=1)
    np.testing.assert_allclose(fitted.left_out.table, expected, atol=1e-3)
    assert fitted.tensors["share"] == pytest.approx(NUMBERS["share"])
    assert logits_of(fitted, shots).isfinite().all()


def test_classes_with_one_image_are_not_judged_beside_others(tiny_clip: Backbone) -> None:
    images = noisy_colors(5).subset([0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14])
    fitted = BlockRidge().fit(tiny_clip, shots_of(tiny_clip, images))
    assert fitted.left_out is not None
    assert fitted.left_out.judged.tolist() == [i != 5 for i in range(11)]
    np.testing.assert_allclose(fitted.left_out.table.sum(1), 1)


# The choice


def drawn(signal: float = 1.2, *, weights: bool = True) -> tuple[Rows, Shown]:
    """Draw 28 images of three classes, of which two parts tell something, and a third nothing."""
    draw = np.random.default_rng(4)
    labels = np.arange(28) % 3
    parts = draw.normal(size=(28, 3, 6))
    parts[:, 0] += signal * np.eye(6)[labels]
    parts[:, 1] += signal * np.eye(6)[labels + 3]
    parts /= np.linalg.norm(parts, axis=-1, keepdims=True)
    mixes = {"both": [0.5, 0.5, 0], "first": [1, 0, 0], "third": [0, 0, 1]}
    rows = Rows(
        torch.from_numpy(parts).half(),
        {name: torch.tensor(mix, dtype=torch.double) for name, mix in mixes.items()},
    )
    numbers = np.arange(28)
    numbers[[3, 6, 7]] = 0  # three of one class, and one of another
    each = torch.from_numpy(draw.uniform(0.2, 3, 28)) if weights else None
    return rows, Shown(
        torch.from_numpy(np.eye(3)[labels]),
        torch.from_numpy(numbers),
        draw.normal(size=(28, 3)) + 0.8 * np.eye(3)[labels],
        each,
    )


def refitted(rows: Rows, shown: Shown, mix: str, penalty: float) -> np.ndarray:
    """Return outputs [N, C] of the regression without the group of each row, by scikit-learn."""
    parts = rows.parts.double().numpy() * rows.mixes[mix].sqrt().numpy()[:, None]
    x, y, groups = parts.reshape(len(parts), -1), shown.classes.numpy(), shown.groups.numpy()
    weights = np.ones(len(x)) if shown.weights is None else shown.weights.numpy()
    weights = weights / weights.mean()
    outputs = np.zeros_like(y)
    for group in np.unique(groups):
        rest, own = groups != group, groups == group
        oracle = Ridge(alpha=penalty).fit(x[rest], y[rest], weights[rest])
        outputs[own] = oracle.predict(x[own])
    return outputs


def loss_of(table: Table, heat: float, share: float) -> float:
    """Return the log loss with smoothed targets, written out."""
    count, classes = table.scores.shape
    targets = (count * np.eye(classes)[table.labels] + 1 / classes) / (count + 1)
    each = -(targets * log_softmax(heat * table.scores + share * table.prior, axis=1)).sum(1)
    return float(np.average(each, weights=table.weights))


def best_factors(table: Table) -> tuple[float, float, float]:
    """Return heat and share with the least loss, by a search without derivatives."""
    found = minimize(
        lambda pair: loss_of(table, *pair),
        np.array([3.0, 1.0]),
        method="Nelder-Mead",
        bounds=[(0, None), (MIN_SHARE, None)],
        options={"xatol": 1e-6, "fatol": 1e-12, "maxfev": 2000},
    )
    return float(found.x[0]), float(found.x[1]), float(found.fun)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_half_is_answered_by_what_the_other_chose(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halves differ in the part that tells something, and so in what they choose."""
    monkeypatch.setattr(block_ridge, "PENALTIES", (1e-3, 0.1, 3.0))
    rows, shown = drawn(signal=3.0)
    half = halves(shown.groups.numpy(), seed)
    rows.parts[half == 1] = rows.parts[half == 1][:, [2, 1, 0]]
    rows = Rows(rows.parts, {name: rows.mixes[name] for name in ("first", "third")})
    outputs = {
        (mix, penalty): refitted(rows, shown, mix, penalty)
        for mix, penalty in product(rows.mixes, block_ridge.PENALTIES)
    }
    assert shown.weights is not None
    labels, weights = shown.labels.numpy(), shown.weights.numpy()

    def best(chosen: Sequence[int] | np.ndarray) -> tuple[Choice, np.ndarray]:
        found = []
        for (mix, penalty), scores in outputs.items():
            parts = (scores, shown.prior, labels, weights)
            heat, share, loss = best_factors(Table(*(part[chosen] for part in parts)))
            found.append((loss, Choice(mix, penalty, heat, share)))
        choice = min(found)[1]
        scores = outputs[choice.mix, choice.penalty]
        return choice, softmax(choice.heat * scores + choice.share * shown.prior, axis=1)

    given = Choice("third", 1.0, 1.0, 1.0)
    choice, left_out = choose(rows, shown, given, seed)
    expected, _ = best(np.arange(28))
    assert choice[:2] == expected[:2]
    assert choice[2:] == pytest.approx(expected[2:], rel=1e-2)
    chosen = [best(np.flatnonzero(half == side)) for side in (0, 1)]
    assert chosen[0][0].mix != chosen[1][0].mix
    table = np.where(half[:, None] == 0, chosen[1][1], chosen[0][1])
    np.testing.assert_allclose(left_out.table, table, atol=5e-3)
    assert left_out.judged.all()


def test_of_many_images_some_choose_the_blocks_and_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, shown = drawn(signal=3.0)
    sizes, search = [], block_ridge.search

    def watched(candidates: object, part: Shown, sides: Sequence[np.ndarray]) -> object:
        sizes.append((len(part.classes), *map(len, sides)))
        return search(candidates, part, sides)  # type: ignore[arg-type]

    monkeypatch.setattr(block_ridge, "search", watched)
    monkeypatch.setattr(block_ridge, "MAX_CHOOSING", 20)
    monkeypatch.setattr(block_ridge, "MAX_JUDGING", 24)
    choice, left_out = choose(rows, shown, Choice("third", 1.0, 1.0, 1.0), seed=1)
    blocks, (count, both, *sides) = sizes
    assert blocks == (20, 20)
    assert (count, both, sum(sides)) == (28, 24, 24)
    assert choice.mix != "third"
    assert left_out.judged.all()
    assert (left_out.table.argmax(1) == shown.labels.numpy()).mean() > 0.6


@pytest.mark.parametrize("weights", [True, False])
def test_heat_and_share_have_the_least_log_loss(weights: bool) -> None:
    rows, shown = drawn(weights=weights)
    each = np.ones(28) if shown.weights is None else shown.weights.numpy()
    scores = refitted(rows, shown, "both", 0.1)
    table = Table(scores, shown.prior, shown.labels.numpy(), each)
    found = table.factors((8.0, 0.3))
    assert found == pytest.approx(best_factors(table), rel=1e-2)
    assert found[2] == pytest.approx(loss_of(table, *found[:2]), rel=1e-9)
    assert found[2] == pytest.approx(best_factors(table)[2], rel=1e-6)


def test_a_prior_that_misleads_keeps_a_small_share() -> None:
    """So that classes by name alone are still ranked by it; one of zeros has no share at all."""
    rows, shown = drawn()
    scores, labels = refitted(rows, shown, "both", 0.1), shown.labels.numpy()
    wrong = Table(scores, -5 * np.eye(3)[labels], labels, np.ones(28))
    assert wrong.factors((8.0, 0.3))[1] == MIN_SHARE
    heat, share, loss = wrong._replace(prior=np.zeros((28, 3))).factors((8.0, 0.3))
    assert share == 0
    assert loss == pytest.approx(loss_of(wrong, heat, 0.0), rel=1e-6)


# Kernels


def test_mixtures_of_six_blocks_written_out() -> None:
    found = {name: mix.tolist() for name, mix in mixes_of(4, 24).items()}
    last, late = [0.0] * 24, [0.0] * 24
    last[20] = 1.0
    for part in (16, 17, 20, 21):  # class token and mean patch of the upper two
        late[part] = 0.25
    every = [1 / 24] * 24
    assert (found["last"], found["late"], found["all"]) == (last, late, pytest.approx(every))
    for one, other in (("last", "late"), ("last", "all"), ("late", "all")):
        both = np.mean([found[one], found[other]], axis=0)
        assert found[f"{one}, {other}"] == pytest.approx(both)
    assert found["mixed"] == pytest.approx(np.mean([last, late, every], axis=0))
    assert len(found) == 7


def test_mixtures_without_a_class_token_and_of_one_block() -> None:
    without = mixes_of(3, 9)
    assert without["last"].nonzero().tolist() == without["late"].nonzero().tolist() == [[6]]
    assert {name: mix.tolist() for name, mix in mixes_of(4, 4).items()} == {"all": [0.25] * 4}


@pytest.mark.parametrize(("kinds", "count"), [(4, 48), (3, 36), (4, 8), (3, 3), (1, 1)])
def test_parts_of_a_kernel_sum_to_one(kinds: int, count: int) -> None:
    for mix in mixes_of(kinds, count).values():
        assert mix.shape == (count,)
        assert float(mix.sum()) == pytest.approx(1)
        assert mix.min() >= 0


def test_a_weight_of_two_is_an_image_given_twice() -> None:
    """The penalty counts beside the number of images, which grows."""
    rows, shown = drawn(weights=False)
    twice = torch.tensor([*range(28), 5])
    doubled = torch.ones(28, dtype=torch.double).index_fill(0, torch.tensor([5]), 2.0)
    one = rows.solve(Choice("both", 0.5, 1.0, 1.0), replace(shown, weights=doubled / (29 / 28)))
    more = Rows(rows.parts[twice], rows.mixes)
    other = more.solve(Choice("both", 0.5 * 29 / 28, 1.0, 1.0), shown.subset(twice))
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    plain = rows.solve(Choice("both", 0.5, 1.0, 1.0), shown)
    assert (plain[0] - one[0]).abs().max() > 1e-3


# Many images


@pytest.mark.parametrize("count", [2, 4])
def test_a_projection_to_all_numbers_changes_no_answer(
    tiny_clip: Backbone, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots, asked = (shots_of(tiny_clip, noisy_colors(n, seed=n)) for n in (count, 3))
    exact = BlockRidge(blocks="all").fit(tiny_clip, shots)
    monkeypatch.setattr(block_ridge, "MAX_EXACT", 3)
    monkeypatch.setattr(block_ridge, "PROJECTED", 10**6)
    rows = Rows.of(tiny_clip, shots, "all")
    assert rows.projections is not None
    assert rows.projections.shape == (16, 64, 64)
    found = BlockRidge(blocks="all").fit(tiny_clip, shots)
    # heat and share are as exact as the search for them
    torch.testing.assert_close(
        logits_of(found, asked), logits_of(exact, asked), rtol=1e-2, atol=2e-2
    )
    assert exact.left_out is not None
    assert found.left_out is not None
    np.testing.assert_allclose(found.left_out.table, exact.left_out.table, atol=5e-3)


def test_a_narrow_projection_keeps_inner_products_on_average(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all blocks together; of many images nothing else is chosen."""
    shots = shots_of(tiny_clip, noise_images(12))
    exact = Rows.of(tiny_clip, shots, "all").parts.float().flatten(1)
    monkeypatch.setattr(block_ridge, "MAX_EXACT", 3)
    monkeypatch.setattr(block_ridge, "PROJECTED", 16 * 32)
    rows = Rows.of(tiny_clip, shots, "choose")
    assert rows.parts.shape == (12, 16, 32)
    assert list(rows.mixes) == ["all"]
    found = rows.parts.float().flatten(1)
    torch.testing.assert_close(found @ found.T / 16, exact @ exact.T / 16, rtol=0, atol=0.1)


def test_projected_weights_read_the_parts_themselves(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are those of the regression on the projection of each image."""
    monkeypatch.setattr(block_ridge, "MAX_EXACT", 3)
    monkeypatch.setattr(block_ridge, "PROJECTED", 16 * 8)
    shots, asked = (shots_of(tiny_clip, noisy_colors(n, seed=n)) for n in (2, 3))
    fitted = BlockRidge(**NUMBERS).fit(tiny_clip, shots)
    rows = Rows.of(tiny_clip, shots, "all")
    new = Rows.of(tiny_clip, asked, "all")
    x, z = (part.parts.double().flatten(1).numpy() / 4 for part in (rows, new))
    outputs = regression(x, np.eye(4)[shots.labels], z)
    g, texts = own_features(tiny_clip, shots.images, shots.classes)
    own, _ = own_features(tiny_clip, asked.images, shots.classes)
    zero_shot = prior(tiny_clip, own, g.mean(0), texts)
    expected = NUMBERS["heat"] * outputs + NUMBERS["share"] * zero_shot
    np.testing.assert_allclose(logits_of(fitted, asked, shots.classes), expected, **CLOSE)


@pytest.mark.parametrize("name", ci_except(["tiny_siglip", "tiny_eva", "tiny_hf"], "tiny_siglip"))
def test_every_make_of_encoder_tells_the_colours_apart(
    name: str, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    images: ImageSet = noisy_colors(4)
    fitted = BlockRidge().fit(backbone, shots_of(backbone, images))
    table = logits_of(fitted, shots_of(backbone, noisy_colors(4, seed=7)), images.classes)
    assert table.argmax(1).tolist() == [i for i in range(4) for _ in range(4)]
    assert fitted.left_out is not None
    assert (fitted.left_out.table.argmax(1) == images.labels).all()
