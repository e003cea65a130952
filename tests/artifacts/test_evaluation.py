"""Answers on images, by what the images say of themselves."""

from __future__ import annotations

import numpy as np

from rmadapter.artifacts.predictions import Evaluation
from rmadapter.data.read import ImageSet


def test_classes_and_labels_are_those_of_the_images() -> None:
    images = ImageSet((np.zeros((2, 2), np.uint8),) * 3, (0, 1, 1), ("a", "b"))
    found = Evaluation("test", images, np.eye(2)[[0, 1, 0]], np.eye(2)[[0, 0, 0]])
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 1]
