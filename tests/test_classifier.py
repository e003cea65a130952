"""scikit-learn's conventions, and answers against AdaptedCLIP's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score

from rmadapter import RMAdapterClassifier
from rmadapter.backbone import Backbone
from rmadapter.checkpoint import load_adapter
from rmadapter.data.images import load_image
from rmadapter.errors import UserError
from rmadapter.evaluation import evaluate
from rmadapter.run import evaluate_run

NAMES = ["blue", "green", "night_sky", "red"]
FIELDS: dict[str, Any] = {
    "first_block": 3,
    "rank": 4,
    "alpha": 1.0,
    "lambda_image_con": 0.0,
    "lambda_text_con": 0.0,
    "epochs": 20,
    "batch_size": 8,
    "learning_rate": 0.02,
    "device": "cpu",
}


def files(colors: Path, split: str) -> tuple[list[str], list[str]]:
    """Paths and the names of their folders."""
    paths = sorted((colors / split).glob("*/*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(tiny_clip: Backbone, colors: Path) -> RMAdapterClassifier:
    return RMAdapterClassifier(tiny_clip.name, shots=4, **FIELDS).fit(*files(colors, "train"))


def test_parameters_follow_scikit_learn() -> None:
    classifier = RMAdapterClassifier("x", shots=3, rank=5, templates=("a {}.",))
    expected = {"backbone": "x", "preset": "rmadapter", "shots": 3, "seed": 1, "progress": False}
    assert classifier.get_params() == {**expected, "rank": 5, "templates": ("a {}.",)}
    twin = clone(classifier)
    assert twin is not classifier
    assert twin.get_params() == classifier.get_params()
    assert twin.set_params(rank=6, shots=2) is twin
    assert (twin.get_params()["rank"], twin.get_params()["shots"]) == (6, 2)
    assert classifier.get_params()["rank"] == 5
    assert "rank=5" in repr(classifier)
    assert is_classifier(classifier)


def test_unknown_parameters_are_refused_by_fit(colors: Path) -> None:
    for classifier in (RMAdapterClassifier(rnak=3), RMAdapterClassifier().set_params(rnak=3)):
        with pytest.raises(UserError, match="unknown field 'rnak'; did you mean 'rank'"):
            classifier.fit(*files(colors, "train"))
    with pytest.raises(UserError, match="unknown preset 'nma'; did you mean 'mma'"):
        RMAdapterClassifier(preset="nma").fit(*files(colors, "train"))


def test_without_fit_it_says_so(colors: Path, tmp_path: Path) -> None:
    classifier = RMAdapterClassifier()
    paths, labels = files(colors, "test")
    calls: list[Any] = [
        lambda: classifier.predict(paths),
        lambda: classifier.predict_proba(paths[0]),
        lambda: classifier.score(paths, labels),
        lambda: classifier.novelty(paths),
        lambda: classifier.add_classes(["zebra"]),
        lambda: classifier.set_classes(["zebra"]),
        lambda: classifier.save(tmp_path / "run"),
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()
    assert not (tmp_path / "run").exists()


def test_it_learns_and_score_is_accuracy(fitted: RMAdapterClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    answers = fitted.predict(paths)
    assert fitted.classes_.tolist() == NAMES  # as written in the labels; the prompts say "night sky"
    assert fitted.class_names_ == ("blue", "green", "night sky", "red")
    assert accuracy_score(labels, answers) > 0.9
    wrong = ["red", *labels[1:-1], "blue"]
    assert fitted.score(paths, wrong) == accuracy_score(wrong, answers) < 1
    weights = np.arange(16)
    assert fitted.score(paths, wrong, weights) == pytest.approx(accuracy_score(wrong, answers, sample_weight=weights))
    assert [record["step"] for record in fitted.history_] == list(range(1, 41))


def test_probabilities_are_the_models(fitted: RMAdapterClassifier, colors: Path) -> None:
    from rmadapter.data.images import read_images

    paths, _ = files(colors, "test")
    found = fitted.predict_proba(paths)
    expected = evaluate(fitted.model_, read_images(colors)["test"], progress=False).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (fitted.classes_[found.argmax(1)] == fitted.predict(paths)).all()


def test_one_image_or_many_of_any_kind(fitted: RMAdapterClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    pictures: list[Image.Image] = [load_image(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    expected = fitted.predict_proba(paths)
    for many in (pictures, arrays, list(arrays), [Path(path) for path in paths], np.array(paths), tuple(paths)):
        np.testing.assert_allclose(fitted.predict_proba(many), expected, atol=1e-6)
    for one in (paths[5], Path(paths[5]), pictures[5], arrays[5], np.array(paths)[5]):
        np.testing.assert_allclose(fitted.predict_proba(one), expected[5], atol=1e-5)
        assert fitted.predict(one) == labels[5]
        assert type(fitted.predict(one)) is str
        assert isinstance(fitted.novelty(one), float)
    assert fitted.predict_proba([]).shape == (0, 4)
    assert fitted.predict([]).shape == (0,)
    np.testing.assert_allclose(fitted.novelty(paths)[5], fitted.novelty(paths[5]))


def test_integer_labels_come_back(fitted: RMAdapterClassifier, colors: Path) -> None:
    paths, labels = files(colors, "train")
    numbers = np.array([NAMES.index(label) for label in labels])
    twin = clone(fitted).fit(paths, numbers, class_names=NAMES)
    assert twin.classes_.tolist() == [0, 1, 2, 3]
    assert twin.class_names_ == fitted.class_names_
    assert type(twin.predict(paths[0])) is int
    np.testing.assert_array_equal(twin.predict_proba(paths), fitted.predict_proba(paths))  # the same training
    test, labels = files(colors, "test")
    assert twin.score(test, [NAMES.index(label) for label in labels]) == fitted.score(test, labels)


def test_text_labels_stay_text_when_class_names_are_given(fitted: RMAdapterClassifier, colors: Path) -> None:
    paths, labels = files(colors, "train")
    twin = clone(fitted).set_params(epochs=1).fit(paths, labels, class_names=["Red", "Night sky", "Green", "Blue"])
    assert twin.class_names_ == ("Red", "Night sky", "Green", "Blue")  # our order and spelling in the prompts
    assert twin.classes_.tolist() == ["red", "night_sky", "green", "blue"]
    assert twin.predict(paths).tolist() == twin.classes_[twin.predict_proba(paths).argmax(1)].tolist()


@pytest.mark.parametrize("numbers", [False, True])
def test_half_of_the_classes(fitted: RMAdapterClassifier, colors: Path, numbers: bool) -> None:
    paths, labels = files(colors, "train")
    given: list[Any] = [NAMES.index(label) for label in labels] if numbers else labels
    twin = clone(fitted).set_params(classes="novel", epochs=1).fit(paths, given, NAMES if numbers else None)
    assert twin.class_names_ == ("night sky", "red")
    assert twin.classes_.tolist() == ([2, 3] if numbers else ["night_sky", "red"])


def test_a_training_that_fails_leaves_no_model(fitted: RMAdapterClassifier, colors: Path) -> None:
    broken = clone(fitted).set_params(learning_rate=1e30)
    with pytest.raises(UserError, match="lower learning_rate or alpha"):
        broken.fit(*files(colors, "train"))
    with pytest.raises(NotFittedError):
        broken.predict(files(colors, "test")[0])


@pytest.mark.parametrize(
    ("images", "labels", "names", "words"),
    [
        (2, ["blue"], None, "2 images and 1 labels"),
        (0, [], None, "0 images and 0 labels"),
        (2, [0, 1], None, "whole numbers together with"),
        (2, [0, 2], ["a", "b"], "label 2 is not one of the classes"),
        (2, [0, 0], ["a", "b"], "class 'b' has no train picture"),
        (2, ["a", "A"], None, "'A' and 'a' are both called"),
        (2, [0.5, 1.5], None, "labels are class names, or whole numbers"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    fitted: RMAdapterClassifier, colors: Path, images: int, labels: list[Any], names: list[str] | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        clone(fitted).fit(files(colors, "train")[0][:images], labels, names)


def test_a_score_needs_one_label_for_each_image(fitted: RMAdapterClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    for wanted in (labels[:1], labels[:-1], []):  # NumPy would compare 16 answers with one label
        with pytest.raises(UserError, match=f"16 images and {len(wanted)} labels"):
            fitted.score(paths, wanted)


def test_unreadable_images_are_refused(fitted: RMAdapterClassifier, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for image in (tmp_path / "broken.png", tmp_path / "none.png"):
        with pytest.raises(UserError, match=image.name):
            fitted.predict([image])
    with pytest.raises(UserError, match="an image is a path, a PIL image or a NumPy array, not int"):
        fitted.predict([3])


def test_new_classes_leave_the_old_answers_in_proportion(
    fitted: RMAdapterClassifier, colors: Path, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    wider = RMAdapterClassifier.load(tmp_path)
    paths, _ = files(colors, "test")
    before = fitted.predict_proba(paths)
    assert wider.add_classes(["sea-horse", "斑马"]) is wider
    assert wider.classes_.tolist() == [*NAMES, "sea-horse", "斑马"]
    assert wider.class_names_[4:] == ("sea horse", "斑马")
    after = wider.predict_proba(paths)
    assert after.shape == (16, 6)
    assert (after[:, 4:] > 0).all()
    ratio = np.log(after[:, :4]) - np.log(before)  # one constant per image: the same logits, another sum
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), atol=1e-3)
    assert wider.set_classes(["zebra"]).predict(paths[0]) == "zebra"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("zebra", "class names come as a list"),
        (["red"], "none twice"),
        (["RED"], "none twice"),
        (["night sky"], "none twice"),
        (["a", "a"], "none twice"),
        (["_"], "none empty"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(fitted: RMAdapterClassifier, names: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fitted.add_classes(names)
    with pytest.raises(UserError, match="at least one"):
        fitted.set_classes([])
    assert fitted.classes_.tolist() == NAMES


def test_integer_labels_become_names_when_a_name_is_added(
    fitted: RMAdapterClassifier, colors: Path, tmp_path: Path
) -> None:
    paths, labels = files(colors, "train")
    numbers = [NAMES.index(label) for label in labels]
    clone(fitted).set_params(epochs=1).fit(paths, numbers, NAMES).save(tmp_path)
    loaded = RMAdapterClassifier.load(tmp_path)
    assert loaded.classes_.tolist() == [0, 1, 2, 3]
    assert loaded.add_classes(["zebra"]).classes_.tolist() == ["blue", "green", "night sky", "red", "zebra"]


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_it_answers_the_same(
    fitted: RMAdapterClassifier, colors: Path, tmp_path: Path, half: bool
) -> None:
    fitted.save(tmp_path, half=half)
    loaded = RMAdapterClassifier.load(tmp_path)
    paths, labels = files(colors, "test")
    tolerance = 0.02 if half else 0
    np.testing.assert_allclose(loaded.predict_proba(paths), fitted.predict_proba(paths), atol=tolerance)
    np.testing.assert_allclose(loaded.novelty(paths), fitted.novelty(paths), atol=5 if half else 0)
    assert loaded.classes_.tolist() == NAMES
    assert loaded.score(paths, labels) == fitted.score(paths, labels)
    assert {**loaded.get_params(), **fitted.get_params()} == loaded.get_params()
    assert (loaded.history_, loaded.split_digest_) == (fitted.history_, fitted.split_digest_)


def test_runs_of_the_command_line_and_of_the_classifier_are_alike(
    fitted: RMAdapterClassifier, finished: Path, colors: Path, tmp_path: Path
) -> None:
    """The `finished` run has the same settings; both folders load either way."""
    from rmadapter.data.images import read_images

    loaded = RMAdapterClassifier.load(finished)
    paths, _ = files(colors, "test")
    assert loaded.classes_.tolist() == ["blue", "green", "night sky", "red"]
    np.testing.assert_array_equal(loaded.predict_proba(paths), fitted.predict_proba(paths))
    fitted.save(tmp_path)
    splits = read_images(colors)
    for split in ("test", "heldout"):
        ours, theirs = (evaluate_run(run, splits, split, "all", None, progress=False) for run in (tmp_path, finished))
        assert ours.summary() == theirs.summary()
    assert load_adapter(tmp_path)[2]["versions"] == load_adapter(finished)[2]["versions"]


def test_cross_validation(fitted: RMAdapterClassifier, colors: Path) -> None:
    scores = cross_val_score(clone(fitted), *files(colors, "train"), cv=2)
    assert scores.shape == (2,)
    assert scores.mean() > 0.75


def test_no_reconstruction_no_novelty(fitted: RMAdapterClassifier, colors: Path) -> None:
    plain = clone(fitted).set_params(lambda_image_rec=0, epochs=1).fit(*files(colors, "train"))
    with pytest.raises(UserError, match="no image reconstruction branch"):
        plain.novelty(files(colors, "test")[0])
