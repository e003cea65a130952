"""scikit-learn's conventions, and answers against the backbone's own forward pass with hooks."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from rmadapter import FewShotClassifier, load, save
from rmadapter.answers.held_out import rank
from rmadapter.answers.sets import Calibration
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import ImageSet, image_set, load_image, read_images
from rmadapter.encoders import ImageEncoder
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP
from rmadapter.runs.evaluate import evaluate
from rmadapter.settings import Machine
from rmadapter.task import Question
from rmadapter.training.cache import Cache
from rmadapter.training.contract import NotApplicable
from rmadapter.training.disk_cache import Store
from tests.helpers.slow import slow_except

NAMES = ["blue", "green", "night_sky", "red"]
FIELDS: dict[str, Any] = {
    "first_block": 3, "rank": 4, "alpha": 1.0, "lambda_image_con": 0.0, "lambda_text_con": 0.0,
    "epochs": 20, "batch_size": 8, "learning_rate": 0.02, "device": "cpu",
}  # fmt: skip


def files(colors: Path, split: str) -> tuple[list[str], list[str]]:
    """Return paths and the names of their folders."""
    paths = sorted((colors / split).glob("*/*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(tiny_clip: Backbone, colors: Path) -> FewShotClassifier:
    return FewShotClassifier(tiny_clip.name, method="rmadapter", shots=4, **FIELDS).fit(
        *files(colors, "train")
    )


def test_parameters_follow_scikit_learn() -> None:
    classifier = FewShotClassifier("x", method="mma", shots=3, rank=5, templates=("a {}.",))
    expected = {"backbone": "x", "method": "mma", "shots": 3, "seed": 1, "progress": None}
    expected |= {"class_names": None, "class_weight": None}
    assert classifier.get_params() == {**expected, "rank": 5, "templates": ("a {}.",)}
    twin = clone(classifier)
    assert twin is not classifier
    assert twin.get_params() == classifier.get_params()
    assert twin.set_params(rank=6, shots=2) is twin
    assert (twin.get_params()["rank"], twin.get_params()["shots"]) == (6, 2)
    assert classifier.get_params()["rank"] == 5
    assert "rank=5" in repr(classifier)
    assert is_classifier(classifier)


def test_unknown_parameters_are_refused(colors: Path) -> None:
    with pytest.raises(UserError, match="'rnak'; did you mean 'rank'"):
        FewShotClassifier(method="rmadapter", rnak=3).fit(*files(colors, "train"))
    classifier = FewShotClassifier(method="rmadapter", shots=3)
    with pytest.raises(UserError, match="'rnak'; did you mean 'rank'"):
        classifier.set_params(shots=5, rnak=3)
    assert classifier.get_params()["shots"] == 3  # none of the two was set
    with pytest.raises(UserError, match="unknown setting 'rank'"):
        classifier.set_params(method="linear-probe", rank=3)
    assert classifier.set_params(method="rmadapter", rank=3).get_params()["rank"] == 3
    with pytest.raises(UserError, match="unknown method 'nma'; did you mean 'mma'"):
        FewShotClassifier(method="nma").fit(*files(colors, "train"))


def test_without_fit_it_raises_not_fitted_error(colors: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier()
    paths, labels = files(colors, "test")
    calls: list[Any] = [
        lambda: classifier.predict(paths),
        lambda: classifier.predict_proba(paths[0]),
        lambda: classifier.score(paths, labels),
        lambda: classifier.add_classes(["zebra"]),
        lambda: classifier.set_classes(["zebra"]),
        lambda: classifier.save(tmp_path / "run"),
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()
    assert not (tmp_path / "run").exists()


def test_fit_learns_and_score_is_accuracy(fitted: FewShotClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    answers = fitted.predict(paths)
    assert fitted.classes_.tolist() == NAMES  # as written; the prompts say "night sky"
    assert fitted.class_names_ == ("blue", "green", "night sky", "red")
    assert accuracy_score(labels, answers) > 0.9
    wrong = ["red", *labels[1:-1], "blue"]
    assert fitted.score(paths, wrong) == accuracy_score(wrong, answers) < 1
    weights = np.arange(16)
    expected = accuracy_score(wrong, answers, sample_weight=weights)
    assert fitted.score(paths, wrong, weights) == pytest.approx(expected)
    assert [record["step"] for record in fitted.history_] == list(range(1, 41))


def test_probabilities_equal_the_models(fitted: FewShotClassifier, colors: Path) -> None:
    """By whole sequences and hooks, where the classifier takes the lean pass."""
    import torch

    paths, _ = files(colors, "test")
    found, method = fitted.predict_proba(paths), fitted.fitted_.method
    model: AdaptedCLIP = method.model(fitted.fitted_.backbone)  # type: ignore[attr-defined]
    model.adapters.load_state_dict(dict(fitted.fitted_.tensors))
    tokens = model.backbone.tokenizer([f"a photo of a {name}." for name in fitted.class_names_])
    images = torch.stack([model.backbone.preprocess(load_image(path)) for path in paths])
    with torch.no_grad():
        image, text = (
            torch.nn.functional.normalize(f, dim=-1)
            for f in (model.encode_image(images), model.encode_text(tokens))
        )
        logits = model.backbone.logit_scale * image @ text.T
        expected = (logits / fitted.fitted_.temperature).softmax(-1)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 keeps 1e-6 of logits up to 15
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (fitted.classes_[found.argmax(1)] == fitted.predict(paths)).all()


def test_images_of_all_kinds_give_the_same_answers(fitted: FewShotClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    opened: list[Image.Image] = [load_image(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in opened])
    expected = fitted.predict_proba(paths)
    kinds: list[Any] = [opened, arrays, list(arrays), list(map(Path, paths)), np.array(paths)]
    for many in [*kinds, tuple(paths)]:
        np.testing.assert_allclose(fitted.predict_proba(many), expected, atol=1e-6)
    for one in (paths[5], *(many[5] for many in kinds)):  # each in a batch of its own
        np.testing.assert_allclose(fitted.predict_proba(one), expected[5], atol=1e-4)
        assert fitted.predict(one) == labels[5]
        assert type(fitted.predict(one)) is str
    assert fitted.predict_proba([]).shape == (0, 4)
    assert fitted.predict([]).shape == (0,)


def test_integer_labels_come_back(fitted: FewShotClassifier, colors: Path) -> None:
    paths, labels = files(colors, "train")
    numbers = np.array([NAMES.index(label) for label in labels])
    twin = clone(fitted).fit(paths, numbers, class_names=NAMES)
    assert twin.classes_.tolist() == [0, 1, 2, 3]
    assert twin.class_names_ == fitted.class_names_
    assert type(twin.predict(paths[0])) is int
    # the training is the same
    np.testing.assert_array_equal(twin.predict_proba(paths), fitted.predict_proba(paths))
    test, labels = files(colors, "test")
    assert twin.score(test, [NAMES.index(label) for label in labels]) == fitted.score(test, labels)


def test_text_labels_stay_text_when_class_names_are_given(
    fitted: FewShotClassifier, colors: Path
) -> None:
    paths, labels = files(colors, "train")
    names = ("Red", "Night sky", "Green", "Blue")
    twin = clone(fitted).set_params(epochs=1).fit(paths, labels, class_names=names)
    assert twin.class_names_ == names  # this order and spelling
    assert twin.classes_.tolist() == ["red", "night_sky", "green", "blue"]
    best = twin.predict_proba(paths).argmax(1)
    assert twin.predict(paths).tolist() == twin.classes_[best].tolist()


@pytest.mark.parametrize("numbers", [False, True])
def test_half_of_the_classes(fitted: FewShotClassifier, colors: Path, numbers: bool) -> None:
    paths, labels = files(colors, "train")
    twin = clone(fitted).set_params(classes="novel", epochs=1)
    if numbers:
        twin.fit(paths, [NAMES.index(label) for label in labels], NAMES)
    else:
        twin.fit(paths, labels)
    assert twin.class_names_ == ("night sky", "red")
    assert twin.classes_.tolist() == ([2, 3] if numbers else ["night_sky", "red"])


def test_a_training_that_fails_leaves_no_model(fitted: FewShotClassifier, colors: Path) -> None:
    broken = clone(fitted).set_params(learning_rate=1e12)
    with pytest.raises(UserError, match="lower learning_rate"):
        broken.fit(*files(colors, "train"))
    with pytest.raises(NotFittedError):
        broken.predict(files(colors, "test")[0])


@pytest.mark.parametrize(
    ("images", "labels", "names", "named"),
    [
        (2, ["blue"], None, "2 images and 1 labels"),
        (0, [], None, "0 images and 0 labels"),
        (2, [0, 2], ["a", "b"], "label 2 is not one of the classes"),
        (2, [0, 0], ["a", "b"], "class 'b' has no train"),
        (2, ["a", "A"], None, "'A' and 'a' are both called"),
        (2, [0.5, 1.5], None, "labels must be class names, or whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    fitted: FewShotClassifier, colors: Path, images: int, labels: list[Any], names: Any, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        clone(fitted).fit(files(colors, "train")[0][:images], labels, names)


def test_a_score_needs_one_label_for_each_image(fitted: FewShotClassifier, colors: Path) -> None:
    paths, labels = files(colors, "test")
    for wanted in (labels[:1], labels[:-1], []):  # NumPy would compare 16 answers with one label
        with pytest.raises(UserError, match=f"16 images and {len(wanted)} labels"):
            fitted.score(paths, wanted)


def test_unreadable_images_are_refused(fitted: FewShotClassifier, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for image in (tmp_path / "broken.png", tmp_path / "none.png"):
        with pytest.raises(UserError, match=image.name):
            fitted.predict([image])
    with pytest.raises(UserError, match="not int"):
        fitted.predict([3])


def test_images_that_are_not_drawn_are_not_read(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    (bad := tmp_path / "bad.png").write_bytes(b"no image")
    images, labels = files(colors, "train")
    some = FewShotClassifier(tiny_clip.name, method="zero-shot", shots=1, progress=False)
    failed = []
    for seed in range(1, 6):
        try:
            some.set_params(seed=seed).fit([*images, bad], [*labels, labels[0]])
        except UserError as error:  # it was drawn
            failed.append(str(error))
    assert len(failed) < 5
    assert all("bad.png" in message for message in failed)


def test_new_classes_leave_the_old_answers_in_proportion(
    fitted: FewShotClassifier, colors: Path, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    wider = FewShotClassifier.load(tmp_path, backbone=fitted.backbone)
    paths, _ = files(colors, "test")
    before = fitted.predict_proba(paths)
    assert wider.add_classes(["sea-horse", "斑马"]) is wider
    assert wider.classes_.tolist() == [*NAMES, "sea-horse", "斑马"]
    assert wider.class_names_[4:] == ("sea horse", "斑马")
    after = wider.predict_proba(paths)
    assert after.shape == (16, 6)
    assert (after[:, 4:] > 0).all()
    # one constant per image: the logits are the same, their sum is another
    ratio = np.log(after[:, :4]) - np.log(before)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), atol=1e-3)
    assert wider.set_classes(["zebra"]).predict(paths[0]) == "zebra"
    for labels, names in (
        (["n01", "707-320"], ("crane | tall bird", "Boeing 707-320")),
        ([0, 1], ("cat", "707-320")),
    ):
        wider.classes_, wider.class_names_ = np.array(labels), names
        assert wider.add_classes(["ant"]).class_names_ == (*names, "ant")


@pytest.mark.ci
def test_a_natural_draw_weighs_classes_by_its_own_counts(tiny_clip: Backbone, colors: Path) -> None:
    """The draw is that of the task, and balanced weights make its counts up."""
    paths, labels = files(colors, "train")
    few = few_shot({"train": image_set(paths, labels)}, 2, 1, "natural")
    counts = np.bincount(few.train.labels)
    assert len({*counts}) > 1
    drawn = few.weighed("balanced").train
    expected = FewShotClassifier(tiny_clip.name, method="linear-probe", shots=0, device="cpu")
    expected.fit([*drawn.images], [NAMES[n] for n in drawn.labels], sample_weight=drawn.weights)
    options = {"method": "linear-probe", "shots": 2, "draw": "natural", "device": "cpu"}
    model = FewShotClassifier(tiny_clip.name, class_weight="balanced", **options)
    found = model.fit(paths, labels).predict_proba(paths[:5])
    assert model.get_params()["draw"] == "natural"
    plain = FewShotClassifier(tiny_clip.name, **options).fit(paths, labels)
    np.testing.assert_allclose(found, expected.predict_proba(paths[:5]), rtol=1e-3)
    assert abs(found - plain.predict_proba(paths[:5])).max() > 1e-4


def test_score_uses_test_images(fitted: FewShotClassifier, colors: Path) -> None:
    """Of 16 images there, and 24 to train on."""
    for data in (colors, read_images(colors)):
        assert fitted.score(data, sample_weight=np.ones(16)) == fitted.score(*files(colors, "test"))
    with pytest.raises(UserError, match="no test images: the data has only train"):
        fitted.score({"train": read_images(colors)["train"]})


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ("zebra", "give class names as a list"),
        (["red"], "'red' and 'red' are both called 'red'"),
        (["RED"], "are both called 'RED'"),
        (["night sky"], "'night_sky' and 'night sky' are both called"),
        (["a", "a"], "are both called"),
        (["_"], "has an empty prompt name"),
    ],
)
def test_indistinguishable_class_names_are_refused(
    fitted: FewShotClassifier, names: Any, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        fitted.add_classes(names)
    with pytest.raises(UserError, match="at least one"):
        fitted.set_classes([])
    assert fitted.classes_.tolist() == NAMES


def test_integer_labels_become_names_when_a_name_is_added(
    fitted: FewShotClassifier, colors: Path, tmp_path: Path
) -> None:
    paths, labels = files(colors, "train")
    numbers = [NAMES.index(label) for label in labels]
    clone(fitted).set_params(epochs=1).fit(paths, numbers, NAMES).save(tmp_path)
    loaded = FewShotClassifier.load(tmp_path, backbone=fitted.backbone)
    assert loaded.classes_.tolist() == [0, 1, 2, 3]
    expected = ["blue", "green", "night sky", "red", "zebra"]
    assert loaded.add_classes(["zebra"]).classes_.tolist() == expected


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_and_loaded_classifier_gives_the_same_answers(
    fitted: FewShotClassifier, colors: Path, tmp_path: Path, half: bool
) -> None:
    fitted.save(tmp_path, half=half)
    loaded = FewShotClassifier.load(tmp_path, backbone=fitted.backbone)
    paths, labels = files(colors, "test")
    expected = fitted.predict_proba(paths)
    np.testing.assert_allclose(loaded.predict_proba(paths), expected, atol=0.02 if half else 0)
    assert loaded.classes_.tolist() == NAMES
    assert loaded.score(paths, labels) == fitted.score(paths, labels)
    assert loaded.fitted_.method == fitted.fitted_.method
    assert loaded.get_params()["rank"] == 4


def test_the_classifier_equals_the_command_line(
    fitted: FewShotClassifier, finished: Path, colors: Path
) -> None:
    """The `finished` run has the same settings."""
    loaded = FewShotClassifier.load(finished, backbone=fitted.backbone)
    paths, _ = files(colors, "test")
    assert loaded.classes_.tolist() == NAMES
    np.testing.assert_array_equal(loaded.predict_proba(paths), fitted.predict_proba(paths))


@pytest.mark.ci
@pytest.mark.parametrize(
    "method", slow_except(["zero-shot", "linear-probe", "coop", "mmrl"], "linear-probe")
)
def test_every_kind_of_method_works(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, method: str
) -> None:
    own: dict[str, Any] = {"coop": {"epochs": 2}, "mmrl": {"epochs": 1, "first_block": 3}}
    settings = own.get(method, {})
    classifier = FewShotClassifier(tiny_clip.name, method=method, shots=2, device="cpu", **settings)
    classifier.fit(*files(colors, "train")).save(tmp_path)
    loaded = FewShotClassifier.load(tmp_path, backbone=tiny_clip.name)
    paths, _ = files(colors, "test")
    np.testing.assert_array_equal(loaded.predict_proba(paths), classifier.predict_proba(paths))
    again = FewShotClassifier(**loaded.get_params()).set_params(shots=2, device="cpu")
    again.fit(*files(colors, "train"))
    expected = classifier.predict_proba(paths)
    np.testing.assert_allclose(again.predict_proba(paths), expected, atol=1e-6)
    if method == "linear-probe":
        with pytest.raises(NotApplicable, match="'zebra'"):
            loaded.add_classes(["zebra"])
        assert loaded.classes_.tolist() == NAMES  # nothing has changed
    else:
        assert loaded.add_classes(["zebra"]).predict_proba(paths).shape == (16, 5)


@pytest.mark.ci
def test_a_method_that_remembers_is_scored_in_the_order_of_eval(
    tiny_clip: Backbone, colors: Path
) -> None:
    sets = read_images(colors, progress=False)
    model = FewShotClassifier(tiny_clip.name, method="tda", shots=1, device="cpu", seed=2)
    model.fit(sets["train"])
    question = (Question("all"), sets["test"], "test")
    cache = Cache(tiny_clip, Machine(device="cpu"))
    _, [score] = evaluate(model.fitted_, [question], cache, seed=2)
    assert score.accuracy is not None
    assert model.score(sets["test"]) == pytest.approx(score.accuracy / 100, abs=1e-6)
    weights = np.arange(len(sets["test"])) % 2
    assert 0 <= model.score(sets["test"], sample_weight=weights) <= 1


@pytest.mark.ci
@pytest.mark.parametrize("method", ["tda", "stata"])
def test_a_method_that_remembers_promises_nothing(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, method: str
) -> None:
    sets = read_images(colors, progress=False)
    model = FewShotClassifier(tiny_clip.name, method=method, shots=6, device="cpu")
    model.fit(sets["train"])
    assert model.fitted_.calibration is model.fitted_.familiarity is None
    for ask in (model.predict_set, model.is_familiar, model.calibrate):
        with pytest.raises(UserError, match="learns from the images"):
            ask(sets["test"])
    # a folder of an earlier version, which calibrated it
    calibration = Calibration.of(np.full((40, 4), 0.25), np.zeros(40, int), "folds")
    save(tmp_path, replace(model.fitted_, calibration=calibration), method)
    assert load(tmp_path, tiny_clip).fitted.calibration is None


@pytest.mark.ci
def test_an_error_is_promised_for_the_classes_of_the_fit(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    (train, labels), (test, _) = files(colors, "train"), files(colors, "test")
    model = FewShotClassifier(tiny_clip.name, shots=0).fit(train, labels)
    calibration = model.fitted_.calibration
    assert calibration is not None
    assert (len(calibration.shares), calibration.source) == (len(train), "folds")
    limit = calibration.limits(0.1, 4)[0]
    sets = model.predict_set(test, error=0.1)
    for labels_of, shares in zip(sets, model.predict_proba(test), strict=True):
        order = np.argsort(-shares, kind="stable")
        expected = [NAMES[i] for i in order if shares[i] >= limit]
        assert labels_of == (expected or [NAMES[order[0]]])
    answers = model.predict(test, error=0.1)
    assert answers.tolist() == [one[0] if len(one) == 1 else None for one in sets]
    assert model.predict_set(test[0], error=0.1) == sets[0]
    assert model.predict(test[0], error=0.1) == answers[0]
    model.save(tmp_path)
    loaded = FewShotClassifier.load(tmp_path, backbone=tiny_clip.name)
    assert loaded.predict_set(test, error=0.1) == sets
    assert pickle.loads(pickle.dumps(model)).predict_set(test, error=0.1) == sets
    familiar = model.is_familiar(test, turn_away=0.2)
    assert (familiar.dtype, familiar.shape) == (bool, (len(test),))
    assert loaded.is_familiar(test, turn_away=0.2).tolist() == familiar.tolist()
    assert pickle.loads(pickle.dumps(model)).is_familiar(test[0], turn_away=0.2) == familiar[0]
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    assert familiar.mean() > 0.5
    assert not model.is_familiar(noise, turn_away=0.2)
    with pytest.raises(UserError, match="needs 2,302 images"):
        model.predict(test, error=0.001)
    model.set_classes(["red", "blue"])
    with pytest.raises(UserError, match="fitted to"):
        model.predict_set(test)


@pytest.mark.ci
def test_images_that_were_held_out_calibrate_a_classifier(
    fitted: FewShotClassifier, tiny_clip: Backbone, colors: Path
) -> None:
    (train, _), (test, right) = files(colors, "train"), files(colors, "test")
    model = pickle.loads(pickle.dumps(fitted))
    assert model.calibrate(test, right) is model
    calibration = model.fitted_.calibration
    shares = model.predict_proba(test)[range(len(test)), [NAMES.index(name) for name in right]]
    assert calibration.source == "held out"
    np.testing.assert_allclose(calibration.shares, sorted(shares), atol=1e-6)
    assert calibration.limits(0.3, 4)[0] == calibration.shares[rank(16, 0.3) - 1]
    # the k-th is the limit itself, which is kept with six digits: it may be on either side
    assert 16 - model.is_familiar(test, turn_away=0.3).sum() in (rank(16, 0.3) - 1, rank(16, 0.3))
    together = ImageSet.from_lists(test, right, groups=[f"object {i // 2}" for i in range(16)])
    grouped = pickle.loads(pickle.dumps(fitted)).calibrate(together).fitted_
    assert grouped.calibration.facts == {"images": 8, "source": "held out", "grouped": True}
    assert grouped.familiarity.facts == grouped.calibration.facts
    with pytest.raises(UserError, match="16 images and 1 labels"):
        model.calibrate(test, ["red"])
    with pytest.raises(UserError, match="calibrate first"):
        model.set_classes(["red", "blue"]).calibrate(train[:1], ["red"])
    with pytest.raises(UserError, match="fitted to"):
        model.is_familiar(test, turn_away=0.5)


@pytest.mark.ci
def test_an_image_of_a_class_that_was_added_by_name_is_familiar(
    tiny_clip: Backbone, colors: Path
) -> None:
    """There are no images of such a class to compare with."""
    (train, labels), (test, right) = files(colors, "train"), files(colors, "test")
    model = FewShotClassifier(tiny_clip.name, method="zero-shot").fit(train, labels)
    model.calibrate(test, right)
    unlike = ~model.is_familiar(test, turn_away=0.5)
    model.add_classes(["violet", "ink", "a wall"])
    added = np.isin(model.predict(test), model.classes_[4:])
    assert (unlike & added).any()
    familiar = model.is_familiar(test, turn_away=0.5)
    assert familiar[added].all()
    assert not familiar[~added].all()


def test_a_choice_is_dropped_by_the_next_fit(tiny_clip: Backbone, colors: Path) -> None:
    images = read_images(colors, progress=False)["train"]
    model = FewShotClassifier(tiny_clip.name, method="zero-shot", shots=1, device="cpu")
    model.backbones_ = "of an earlier fit"
    assert not hasattr(model.fit(images), "backbones_")


def test_grey_batches_and_columns_of_labels(fitted: FewShotClassifier) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
    assert fitted.predict(grey).shape == (5,)
    assert fitted.predict_proba(grey[0]).ndim == 1
    labels = fitted.predict(grey)
    assert fitted.score(grey, labels[:, None]) == 1.0


# Features


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Return the numbers of images that the encoder sees together, with an empty cache on disk."""
    seen: list[int] = []
    encode = ImageEncoder.frozen_at

    def counted(self: ImageEncoder, pixels: Any, *args: Any, **given: Any) -> Any:
        seen.append(len(pixels))
        return encode(self, pixels, *args, **given)

    monkeypatch.setattr(ImageEncoder, "frozen_at", counted)
    monkeypatch.setattr(Store, "of_features", lambda: Store(tmp_path / "activations", 1e6))
    return seen


def test_no_image_is_encoded_twice(tiny_clip: Backbone, colors: Path, encoded: list[int]) -> None:
    images, labels = map(np.array, files(colors, "train"))
    probe = FewShotClassifier(tiny_clip.name, method="linear-probe", search_steps=0, device="cpu")
    first = clone(probe).fit(images, labels)
    assert sum(encoded) == 24
    table = first.predict_proba(images)
    again = clone(probe).fit(images, labels)
    np.testing.assert_allclose(again.predict_proba(images), table, atol=1e-5)
    cross_val_score(probe, images, labels, cv=3)
    GridSearchCV(probe, {"C": [0.1, 10.0]}, cv=3).fit(images, labels)
    first.transform(images)
    first.encode(images)
    assert sum(encoded) == 24
    tests, _ = files(colors, "test")
    first.predict(tests)
    first.is_familiar(tests, turn_away=0.4)
    assert sum(encoded) == 24 + 16
    clone(probe).set_params(disk_cache=0).fit(images, labels)
    assert sum(encoded) > 24 + 16


def test_cached_answers_are_those_of_a_new_encoding(
    tiny_clip: Backbone, colors: Path, encoded: list[int]
) -> None:
    probe = FewShotClassifier(tiny_clip.name, method="linear-probe", search_steps=0, device="cpu")
    images, labels = files(colors, "train")
    new = clone(probe).set_params(disk_cache=0).fit(images, labels).predict_proba(images)
    for _ in range(2):
        found = clone(probe).fit(images, labels).predict_proba(images)
        np.testing.assert_allclose(found, new, atol=1e-4)


@pytest.mark.parametrize("method", ["linear-probe", "rmadapter", "clip-adapter"])
def test_features_are_those_that_are_scored(tiny_clip: Backbone, colors: Path, method: str) -> None:
    import torch

    settings = FIELDS if method == "rmadapter" else {"device": "cpu"}
    model = FewShotClassifier(tiny_clip.name, method=method, shots=4, **settings)
    images, labels = files(colors, "train")
    untouched = model.encode(images)
    pixels = torch.stack([tiny_clip.preprocess(load_image(path)) for path in images])
    with torch.no_grad():
        plain = torch.nn.functional.normalize(tiny_clip.model.encode_image(pixels), dim=-1)  # type: ignore[operator]
    np.testing.assert_allclose(untouched, plain, atol=1e-5)
    table = model.fit(images, labels).transform(images)
    assert (table.shape, table.dtype) == ((24, tiny_clip.embedding_size), np.float32)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-5)
    assert np.allclose(table, untouched, atol=1e-5) == (method == "linear-probe")
    np.testing.assert_allclose(model.transform(images[3]), table[3], atol=1e-5)
    np.testing.assert_allclose(model.encode(images[3]), untouched[3], atol=1e-5)
    assert model.transform([]).shape == model.encode([]).shape == (0, tiny_clip.embedding_size)
    assert (
        make_pipeline(clone(model), LogisticRegression()).fit(images, labels).score(images, labels)
        > 0.9
    )


# What may be given


def test_tensors_are_images_and_labels(fitted: FewShotClassifier, colors: Path) -> None:
    import torch

    paths, labels = files(colors, "train")
    arrays = np.stack([np.asarray(load_image(path)) for path in paths])
    whole = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    expected = fitted.predict_proba(arrays)
    for tensor in (whole, whole / 255, list(whole)):
        np.testing.assert_allclose(fitted.predict_proba(tensor), expected, atol=1e-5)
    assert fitted.predict(whole[3]) == fitted.predict(paths[3])
    numbers = torch.tensor([NAMES.index(label) for label in labels])
    own = FewShotClassifier(fitted.backbone, method="ridge", class_names=NAMES, device="cpu").fit(
        whole, numbers
    )
    assert own.score(whole, numbers) == own.score(paths, numbers.tolist()) > 0.9
    with pytest.raises(UserError, match="float image array"):
        fitted.predict(whole.float())


@pytest.mark.parametrize("bad", [None, float("nan"), "", "  ", 2.5, b"red", {}])
def test_a_bad_label_names_its_row(fitted: FewShotClassifier, colors: Path, bad: Any) -> None:
    paths, labels = files(colors, "test")
    mixed: list[Any] = [*labels]
    mixed[5] = bad
    for call in (clone(fitted).fit, fitted.score):
        with pytest.raises(UserError, match="label 5 "):
            call(paths, mixed)


def test_a_missing_file_is_refused_though_it_is_not_drawn(
    fitted: FewShotClassifier, colors: Path
) -> None:
    paths, labels = files(colors, "train")
    for place in range(0, 24, 6):
        some = [*paths]
        some[place] = f"{place}.png"
        with pytest.raises(UserError, match=f"image {place}: {place}.png"):
            clone(fitted).set_params(shots=1).fit(some, labels)


@pytest.mark.ci
def test_progress_shows_notes_and_bars_or_nothing(
    fitted: FewShotClassifier,
    colors: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rmadapter.support.progress_lines.LINE_SECONDS", 0.0)
    for progress, shown in ((False, False), (None, False), (True, True)):
        probe = clone(fitted).set_params(progress=progress).fit(*files(colors, "train"))
        assert isinstance(probe.predict(files(colors, "test")[0]), np.ndarray)
        printed = capfd.readouterr()
        assert (printed.out, bool(printed.err)) == ("", shown)


def test_what_a_cell_shows_is_short(fitted: FewShotClassifier, colors: Path) -> None:
    names = [f"class {number}" for number in range(500)]
    model = FewShotClassifier(class_names=names, class_weight=dict.fromkeys(names, 1.0))
    assert len(repr(model)) < 2_000
    assert repr(FewShotClassifier(shots=4)) == "FewShotClassifier(shots=4)"
    assert len(repr(read_images(colors))) < 200
    assert len(repr(fitted.fitted_)) < 200
