"""Answers to a stream of images: those of both models, and bad images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.predict.stream import Predictor
from rmadapter.training.cache import BATCH_SIZE
from rmadapter.training.contract import Known, NotApplicable

LABELS = ["blue", "green", "night_sky", "red"]


@pytest.fixture(scope="module")
def many(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More images than a batch holds."""
    folder = tmp_path_factory.mktemp("many")
    tests = sorted(colors.glob("test/*/*.png"))
    return [
        Path(shutil.copy(tests[i % 16], folder / f"{i:03}.png")) for i in range(BATCH_SIZE + 10)
    ]


def test_answers_equal_those_of_both_models(
    finished: Path, tiny_clip: Backbone, many: list[Path]
) -> None:
    fitted = load(finished, tiny_clip).fitted
    batches = list(Predictor(fitted, fitted.classes, LABELS, top=3).predict(many, zero_shot=True))
    assert [len(batch) for batch in batches] == [BATCH_SIZE, 10]
    found = [answer for batch in batches for answer in batch]
    assert [answer.image for answer in found] == many
    table = torch.cat(list(fitted.probabilities(many)))
    untouched = torch.cat(list(ZeroShot().restore(tiny_clip, fitted.known, {}).probabilities(many)))
    for answer, row, other in zip(found, table, untouched, strict=True):
        shares, places = row.sort(descending=True)
        assert [label for label, _ in answer.best] == [LABELS[i] for i in places[:3]]
        assert [share for _, share in answer.best] == pytest.approx(shares[:3].tolist(), abs=1e-5)
        assert answer.zero_shot == LABELS[other.argmax()]
    assert {answer.zero_shot for answer in found} != {answer.best[0][0] for answer in found}


def test_bad_images_are_skipped_or_stop_the_stream(
    finished: Path, tiny_clip: Backbone, many: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor(load(finished, tiny_clip).fitted, LABELS, LABELS)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    images = [*many[:70], tmp_path / "bad.png", *many[70:]]
    bad: list[tuple[Path, str]] = []
    found = [answer.image for batch in predictor.predict(images, bad=bad) for answer in batch]
    assert found == many
    assert [image for image, _ in bad] == [tmp_path / "bad.png"]
    before: list[Path] = []
    with pytest.raises(UserError, match=r"bad\.png: .*--skip-bad"):
        before += (answer.image for batch in predictor.predict(images) for answer in batch)
    assert before == many[:70]


def test_a_class_that_the_method_does_not_know_is_refused(tiny_clip: Backbone) -> None:
    weights = {"weight": torch.zeros(1, 40), "bias": torch.zeros(1)}
    probe = LinearProbe().restore(tiny_clip, Known(("red",)), weights)
    with pytest.raises(NotApplicable, match="zebra"):
        Predictor(probe, ["zebra"], ["zebra"])
