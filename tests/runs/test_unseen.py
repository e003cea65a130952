"""What a run says of shots that it left out is what fits without them say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import distances_left_out
from rmadapter.runs.fit import fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import learn
from rmadapter.runs.unseen import Unseen, left_out
from rmadapter.task import Task
from rmadapter.training.contract import Fitted
from tests.helpers.labs import prepare
from tests.helpers.shots import grouped_noise

DEFAULT = "block-ridge"


def unseen_of(backbone: Backbone, train: ImageSet) -> tuple[Unseen, Fitted, Lab, Task]:
    request, lab = prepare(backbone, {"all": train}, DEFAULT, shots=0)
    few = lab.draw(request.task)
    fitted = learn(request.method, few.train, request.task, few, lab)
    cache = lab.train_cache(request.task)
    return left_out(fitted, few.train, cache, 1), fitted, lab, request.task


def test_images_are_judged_whose_class_has_others(tiny_clip: Backbone) -> None:
    train = grouped_noise("aaabbbc", [*"pqrstuv"])
    found, fitted, _, _ = unseen_of(tiny_clip, train)
    evaluation = found.evaluate()
    assert evaluation.images.labels == (0, 0, 0, 1, 1, 1)  # c has one image
    assert found.answers is not None
    assert fitted.left_out is not None
    np.testing.assert_array_equal(found.answers.table, fitted.left_out.table[:6])
    np.testing.assert_array_equal(evaluation.probabilities, found.answers.table)
    assert {*found.places.tolist()} == {0, 1}
    assert "6 training images" in found.how


def test_zero_shot_stands_beside_them(tiny_clip: Backbone, colors: Path) -> None:
    train = read_images(colors)["train"]
    found, fitted, lab, task = unseen_of(tiny_clip, train)
    zero_shot, few = prepare(tiny_clip, {"all": train}, "zero-shot", shots=0)[0], lab.draw(task)
    model = learn(zero_shot.method, few.train, task, few, lab).score()
    cache = lab.train_cache(task)
    table = predict_all({"it": model}, fitted, cache, few.train, 1)["it"].numpy()
    evaluation = found.evaluate()
    assert evaluation.zero_shot is not None
    np.testing.assert_allclose(evaluation.zero_shot, table, atol=1e-5)


def test_nothing_is_judged_with_an_image_of_each_class(tiny_clip: Backbone) -> None:
    found, _, _, _ = unseen_of(tiny_clip, grouped_noise("abc", [""] * 3))
    assert not found
    assert found.answers is None


def test_a_distance_that_is_left_out_is_one_from_means_without_the_group() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    labels, groups = [0, 0, 0, 1, 1, 1, 2, 2, 3], np.array([0, 0, 1, 1, 2, 3, 4, 5, 6])
    found = distances_left_out(x, labels, 4, groups)
    unit = F.normalize(x, dim=-1)
    for row in range(9):
        kept = [other for other in range(9) if groups[other] != groups[row]]
        cosines = []
        for number in {labels[other] for other in kept}:
            mean = sum(unit[other] for other in kept if labels[other] == number)
            cosines.append(float(F.normalize(mean, dim=-1) @ unit[row]))  # type: ignore[arg-type]
        if labels[row] == 3:  # whose class is empty without it
            cosines.append(0.0)
        assert found[row] == pytest.approx(1 - max(cosines), abs=1e-6)


def test_a_run_is_judged_and_promises_by_them_and_trains_nothing_else(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[str] = []
    monkeypatch.setattr(
        "rmadapter.runs.folds.learn", lambda method, *rest, **how: fits.append(method.title)
    )
    request, lab = prepare(tiny_clip, {"all": read_images(colors)["train"]}, DEFAULT, shots=0)
    record = fit(request.task, request.method, tmp_path / "run", lab, DEFAULT)
    assert not fits
    assert [(score.split, score.images) for score in record.scores] == [("cross-validated", 24)]
    assert record.judgement is not None
    rows = {row.name for row in record.judgement.rows}
    assert rows == {"zero-shot", request.method.title}
    assert record.held_out is not None
    assert len(record.held_out.right) == 24
    again = load(tmp_path / "run", tiny_clip).fitted
    assert again.calibration is not None
    assert len(again.calibration.shares) == 24
    assert again.familiarity is not None
