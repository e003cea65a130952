"""The contract: shots, fitted methods and their answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rmadapter.answers import Calibration, RejectionScore
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import read_images
from rmadapter.encoders import Grid, States
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.parts.features import columns
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache
from rmadapter.training.contract import NotApplicable, Shots, answers, count, shaped
from rmadapter.training.shots import Known
from tests.helpers.external_methods import ExternalMethod
from tests.helpers.shots import noisy_colors, shots_of


def test_shots_give_augmented_views_and_plain_features(tiny_clip: Backbone, colors: Path) -> None:
    splits = read_images(colors)
    few = few_shot({**splits, "val": splits["test"]}, 2, 1)
    cache = Cache(
        tiny_clip, Machine(device="cpu"), augmentation="standard", views=2, progress=False
    )
    shots = Shots(few.train, cache, ("a {}.", "the {}."), val=few.val, progress=False)
    assert shots.device == torch.device("cpu")
    assert shots.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shots.features().shape == (2, 8, 40)
    assert shots.plain_features().shape == shots.plain_features(shots.val).shape == (8, 40)
    source = shots.source(3)
    assert (len(source), source.views) == (8, 2)
    batch = source.batch(torch.tensor([1, 5]), epoch=1)
    torch.testing.assert_close(batch.features, shots.features()[1, [1, 5]])
    pixels = shots.pixels(torch.tensor([1, 5]), 1, 3)
    torch.testing.assert_close(tiny_clip.image.frozen(pixels, 3).x, batch.x)


def test_near_duplicates_and_named_groups_of_the_shots_share_a_number(tiny_clip: Backbone) -> None:
    images = noisy_colors(2)  # 8 images
    pixels: Any = images.images[2]
    copied = replace(
        images,
        images=(*images.images[:5], pixels[:, ::-1], *images.images[6:]),
        groups=("", "a", "", "", "b", "", "", "a"),
    )
    numbers = shots_of(tiny_clip, copied).groups
    same = {(i, j) for i in range(8) for j in range(i) if numbers[i] == numbers[j]}
    assert same == {(5, 2), (7, 1)}  # the mirror image, and those of a


def test_images_are_decoded_and_encoded_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By methods on features and on tokens; those on tokens run their own blocks, and not the
    frozen ones besides."""
    images, calls = noisy_colors(1), {"decode": 0, "low": 0, "high": 0}
    fitted: Any = [
        load_method("zero-shot").fit(tiny_clip, shots_of(tiny_clip, images)),
        load_method("mmrl", {"first_block": 3, "epochs": 1}).fit(
            tiny_clip, shots_of(tiny_clip, images)
        ),
    ]
    from rmadapter.data import transforms

    real = transforms.load_image

    def load(source: Any) -> Any:
        calls["decode"] += 1
        return real(source)

    monkeypatch.setattr(transforms, "load_image", load)
    for block, name in ((0, "low"), (3, "high")):
        mlp = tiny_clip.image.blocks[block].mlp  # which the lean pass runs, too
        mlp.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    try:
        for one in fitted:
            calls.update(decode=0, low=0, high=0)
            assert torch.cat(list(one.probabilities(images.images))).shape == (4, 4)
            assert calls == {"decode": 4, "low": 1, "high": 1}
    finally:
        for block in (0, 3):
            tiny_clip.image.blocks[block].mlp._forward_hooks.clear()


def test_answers_are_probabilities_without_gradient(tiny_clip: Backbone) -> None:
    fitted = load_method("rmadapter", {"first_block": 3, "epochs": 1}).fit(
        tiny_clip, shots_of(tiny_clip)
    )
    score = fitted.score()
    states = fitted.backbone.image.frozen(torch.zeros(2, 3, 32, 32), fitted.first)
    assert not score(states).requires_grad
    [found] = answers({"it": score}, [states])
    torch.testing.assert_close(found["it"].sum(1), torch.ones(2))
    assert list(fitted.probabilities([])) == []


def test_answers_that_are_not_finite_are_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="the answers of external contain NaN or infinity"):
        list(
            ExternalMethod("nan")
            .fit(tiny_clip, shots_of(tiny_clip))
            .probabilities(noisy_colors(1).images)
        )
    bad = States(None, Grid(None), torch.zeros(1, 2))
    with pytest.raises(UserError, match="the answers of mine"):
        list(answers({"mine": lambda states: states.features / 0}, [bad]))


def test_columns_are_indices_of_trained_classes() -> None:
    assert columns("probe", ("cat", "dog", "car"), ["car", "cat"]) == [2, 0]
    with pytest.raises(
        NotApplicable, match="probe only knows the classes it was trained on, not 'tree'"
    ):
        columns("probe", ("cat", "dog"), ["cat", "tree"])


def test_count_counts_parameters() -> None:
    assert count(nn.Linear(3, 2)) == 8


def test_unfamiliar_is_far_from_the_nearest_training_image(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = load_method("zero-shot").fit(tiny_clip, shots_of(tiny_clip))
    with pytest.raises(UserError, match="holds no features of its training images"):
        fitted.unfamiliar(torch.ones(1, 2))
    shown = fitted.fitted_to(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    asked = torch.tensor([[5.0, 0.0], [0.8, 0.6], [0.0, -1.0]])
    torch.testing.assert_close(
        shown.unfamiliar(asked), torch.tensor([0.0, 0.2, 1.0]), atol=1e-6, rtol=0
    )
    monkeypatch.setattr("rmadapter.training.contract.MAX_EXAMPLES", 2)
    assert shown.fitted_to(torch.eye(5)).examples.tolist() == torch.eye(5)[[0, 3]].tolist()  # type: ignore[union-attr]


def test_promises_are_for_the_classes_of_the_fit_and_further_ones(tiny_clip: Backbone) -> None:
    known = Known(("cat", "dog"), ("a {}.",))
    calibration = Calibration((0.5,) * 48, (0, 1) * 24, 2, "held out")
    rejection = RejectionScore((0.9,) * 48, (*np.linspace(0, 0.3, 48).tolist(),), "held out")
    fitted = replace(
        load_method("zero-shot").restore(tiny_clip, known, {}),
        calibration=calibration, familiarity=rejection, means=torch.eye(2, 40),
    )  # fmt: skip
    limits = fitted.decider(("cat", "dog", "owl"), error=0.1).limits
    assert limits is not None
    assert limits.tolist() == [0.5] * 3
    labels = fitted.decider(labels=["Cat", "Dog"], reject_rate=0.1).labels
    assert labels == ("Cat", "Dog")
    assert fitted.decider().labels == ("cat", "dog")
    for others in (("cat",), ("dog", "cat"), ("owl", "cat", "dog")):
        none = fitted.decider(others)
        assert none.calibration is none.rejection is None
        for shares in ({"error": 0.1}, {"reject_rate": 0.1}):
            with pytest.raises(UserError, match="fitted to alone"):
                fitted.decider(others, **shares)
    for shares in ({"error": 0.1}, {"reject_rate": 0.1}):
        with pytest.raises(UserError, match="learns from the images"):
            replace(fitted, remembers=True).decider(**shares)
    with pytest.raises(UserError, match="--folds 4"):
        replace(fitted, means=None).decider(reject_rate=0.1)


def test_a_saved_tensor_of_the_expected_shape_is_returned_in_float32() -> None:
    given = torch.rand(2, 3, dtype=torch.float64)
    for shape in ((2, 3), (-1, 3), (-1, -1)):
        found = shaped({"weight": given}, "weight", *shape)
        assert found.dtype == torch.float32
        assert torch.equal(found, given.float())
    assert shaped({"alpha": torch.tensor(2.0)}, "alpha").item() == 2


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3, 1), ()])
def test_a_saved_tensor_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        RuntimeError, match=r"weight is torch.float32 of \[2, 3\], not numbers of \["
    ):
        shaped({"weight": torch.rand(2, 3)}, "weight", *shape)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_a_saved_tensor_without_real_numbers_is_refused(kind: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=r"weight is torch.\w+ of \[2\], not numbers of \[any\]"):
        shaped({"weight": torch.ones(2, dtype=kind)}, "weight", -1)
    with pytest.raises(KeyError):
        shaped({}, "weight", -1)
