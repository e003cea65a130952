"""Which texts help, measured on folds of the shots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import split_digest
from rmadapter.data.read import read_images
from rmadapter.data.texts import read_texts
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine
from rmadapter.task import Task
from rmadapter_research.describe import (
    ALL,
    HELPFUL,
    PROMPTS,
    Texts,
    answer_folds,
    choose_texts,
    describe_measured,
    full_texts,
    losses_without,
    measure_texts,
)
from rmadapter_research.texts import Form, TextFile

GROUPS = ["abc", "de", "f", "ghij"]


def loss_of(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[np.ndarray], form: Form
) -> np.ndarray:
    """The cross-entropy of each image, from the definition."""
    weights = np.stack([texts.mean(0) for texts in groups])
    if form == "sentences":
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    logits: np.ndarray = log_softmax(features @ weights.T, axis=1)
    result: np.ndarray = -logits[np.arange(len(labels)), labels]
    return result


@pytest.mark.parametrize("form", ["sentences", "descriptors"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 2000.0])
def test_losses_without_a_text_are_those_of_the_definition(form: Form, scale: float) -> None:
    rng = np.random.default_rng(0)
    texts, features = rng.normal(size=(10, 6)), rng.normal(size=(20, 6))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    features *= scale / np.linalg.norm(features, axis=1, keepdims=True)
    labels = rng.integers(4, size=20)
    gains = losses_without(features, labels, Texts(form, texts, GROUPS))
    parts = np.split(texts, [3, 5, 6])
    before, column = loss_of(features, labels, parts, form), 0
    for number, part in enumerate(parts):
        for row in range(len(part)):
            others = [np.delete(one, row, 0) if i == number else one for i, one in enumerate(parts)]
            wanted = 0 if len(part) == 1 else loss_of(features, labels, others, form) - before
            np.testing.assert_allclose(gains[:, column], wanted, rtol=1e-5, atol=1e-5 * scale)
            column += 1


def test_a_class_keeps_its_best_text() -> None:
    gains = np.array([0.1, -0.1, 0.0, -2.0, -1.0, 0.0, 1.0, -1.0, 1.0, -3.0])
    kept = choose_texts(gains, Texts("sentences", np.zeros((10, 1)), GROUPS))
    letters = "".join(letter for letter, keep in zip("abcdefghij", kept, strict=True) if keep)
    assert letters == "acefgi"


def lab_of(backbone: Backbone, data: Path) -> Lab:
    lab = Lab(Machine(device="cpu"), progress=False)
    lab.add("colors", read_images(data))
    lab.add_backbone(backbone)
    return lab


def test_texts_are_measured_on_the_shots_alone(tiny_clip: Backbone, colors: Path) -> None:
    lab = lab_of(tiny_clip, colors)
    task = Task("colors", tiny_clip.name, shots=4)
    names = lab.draw(task).train.classes
    texts = {name: [f"a field of {name}", f"{name} all over", "?"] for name in names}
    file = measure_texts(TextFile(texts), "sentences", task, lab, "texts.json")
    found = file.measured
    assert found["split_digest"] == split_digest(lab.draw(task))
    counts = (found["images"], found["folds"], found["texts"])
    assert counts == (4 * len(names), 4, 3 * len(names))
    assert [*found["accuracy"]] == [PROMPTS, ALL, HELPFUL]
    assert found["best"] == max(found["accuracy"], key=lambda name: found["accuracy"][name])
    assert file.all_texts().keys() == texts.keys()
    for name, some in file.all_texts().items():
        assert sorted(some) == sorted(texts[name])
    assert found["left_out"] == sum(map(len, file.left_out.values()))
    assert bool(file.left_out) == (found["best"] == HELPFUL)
    again = measure_texts(file, "sentences", task, lab, "texts.json")
    assert again == file
    assert [*describe_measured(found)]


def test_misleading_texts_are_left_out_of_the_answers() -> None:
    """Images of class c lie along axis c; its second text lies along the next class's axis, and
    its prompt between all."""
    axes, count = np.eye(3), 8
    noise = np.random.default_rng(0).normal(scale=0.05, size=(3 * count, 3))
    labels = np.repeat(np.arange(3), count)
    features = axes[labels] + noise
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    texts = np.stack([axes[0], axes[1], axes[1], axes[2], axes[2], axes[0]])
    own_texts = Texts("sentences", texts, ["ab", "cd", "ef"])
    parts = [[*range(first, 3 * count, 4)] for first in range(4)]
    prompts = np.full((3, 3), 3**-0.5)
    tables, kept = answer_folds(20 * features, labels, own_texts, prompts, parts)
    own = labels[[row for part in parts for row in part]]
    rates = {name: float((table.argmax(1) == own).mean()) for name, table in tables.items()}
    assert kept.tolist() == [True, False] * 3
    assert rates[HELPFUL] == 1 > rates[ALL]
    np.testing.assert_allclose(tables[PROMPTS].std(1), 0, atol=1e-9)
    weights = texts.reshape(3, 2, 3).mean(1) * 2**0.5  # of two axes at right angles
    rows = [row for part in parts for row in part]
    np.testing.assert_allclose(tables[ALL], 20 * features[rows] @ weights.T)
    np.testing.assert_allclose(tables[HELPFUL], 20 * features[rows])


def test_a_text_is_chosen_without_the_fold_that_it_answers() -> None:
    """The only image that the second text helps stands in a fold by itself: this fold is answered
    without the text."""
    texts = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    features = 9 * np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.1, 1.0]])
    labels = np.array([0, 0, 1, 0])
    tables, kept = answer_folds(
        features, labels, Texts("sentences", texts, ["ab", "c"]), texts[:2], [[0, 2], [1], [3]]
    )
    assert kept.tolist() == [True, True, True]
    by_first, by_both = features @ texts[0], features @ (texts[0] + texts[1]) / 2**0.5
    np.testing.assert_allclose(tables[HELPFUL][:3, 0], by_both[[0, 2, 1]])
    np.testing.assert_allclose(tables[HELPFUL][3, 0], by_first[3])


def test_what_cannot_be_measured_is_refused(tiny_clip: Backbone, colors: Path) -> None:
    lab = lab_of(tiny_clip, colors)
    names = read_images(colors)["train"].classes
    with pytest.raises(UserError, match=r"texts\.json: class .* has no texts"):
        measure_texts(TextFile({names[0]: ["x"]}), "sentences", Task("colors"), lab, "texts.json")
    file = TextFile({name: [name] for name in names})
    task = Task("colors", tiny_clip.name, shots=1)
    with pytest.raises(UserError, match="two images per class"):
        measure_texts(file, "sentences", task, lab, "texts.json")


def test_texts_that_fill_the_encoder_are_found(tiny_clip: Backbone) -> None:
    length = tiny_clip.tokenizer(["a"]).shape[1]
    fits, fills, long = ("a " * count for count in (length - 3, length - 2, length + 5))
    texts = {"cat": [fits.strip(), long.strip()], "dog": [fills.strip()]}
    found, tokens = full_texts(tiny_clip, "sentences", texts)
    assert (found, tokens) == ([long.strip(), fills.strip()], length)
    found, _ = full_texts(tiny_clip, "descriptors", texts)
    assert len(found) == 3


def test_the_texts_of_the_repository_are_read() -> None:
    file = Path(__file__).parents[2] / "research/results/texts.json"
    assert len(read_texts(str(file))) == 56
