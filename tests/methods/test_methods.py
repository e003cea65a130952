"""What all methods have in common: number formats, no trace left, no answer made up, saved, loaded,
taken up again."""

from __future__ import annotations

import hashlib
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.bench.runner import blocks_read
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import EFFORTS, METHODS, entry_points, is_outside, load_method
from rmadapter.settings import settings_of
from rmadapter.task import COMMON_SETTINGS
from rmadapter.training.contract import Fitted, Known, NotApplicable
from tests.helpers.gpu_rules import GpuRules
from tests.helpers.learning import killed_and_resumed
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import logits_of, noisy_colors, shots_of, untrained
from tests.helpers.slow import ONE_OF_EACH, ci_except

UNTRAINED = (
    *("zero-shot", "zero-shot-ensemble", "zero-shot-descriptions", "tda", "stata", "tpt"),
    *("tip-adapter", "gda", "proker", "rehark", "ss-text", "ss-text-plus", "ss-text-u"),
)
CLOSED = (
    *("linear-probe", "linear-probe-zero-shot", "linear-probe-pair"),
    *("clap", "lp-plus-plus", "tip-adapter", "tip-adapter-f", "proker", "rehark"),
)
NOT_STEPWISE = (*UNTRAINED, "linear-probe", "ridge", "block-ridge")
TRAINED = [name for name in METHODS if name not in NOT_STEPWISE]  # step by step
OTHERS = ("house", "tree", "car", "bird")
EXTERNAL = f"{Path(__file__).parents[1] / 'helpers/external_methods.py'}:ExternalMethod"


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return noisy_colors(2)


def weights(backbone: Backbone) -> str:
    flat = hashlib.sha256()
    for tensor in backbone.model.state_dict().values():
        flat.update(tensor.numpy().tobytes())
    return flat.hexdigest()


def same_tensors(one: Fitted, two: Fitted) -> bool:
    assert one.tensors.keys() == two.tensors.keys()
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_every_method_of_the_papers_tables_is_registered() -> None:
    titles = [load_method(name).title for name in METHODS]
    papers = "CoOp CoCoOp KgCoOp MaPLe TCP PromptSRC MMA CoPrompt RMAdapter"
    assert {*papers.split()} <= {*titles}
    assert len(set(titles)) == len(titles)
    assert all(len(load_method(name).source) > 10 for name in METHODS)


@pytest.mark.parametrize("precision", ci_except(["fp32", "bf16"], "fp32"))
@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_a_method_answers_and_leaves_the_backbone_as_it_was(
    name: str, precision: str, tiny_clip: Backbone, images: ImageSet
) -> None:
    before = weights(tiny_clip)
    fitted = quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images, precision=precision))
    table = probabilities(fitted, images)
    assert table.shape == (len(images), len(images.classes))
    torch.testing.assert_close(table.sum(1), torch.ones(len(images)))
    shots = len(images) // len(images.classes)
    assert (
        fitted.parameters == fitted.method.parameters(tiny_clip, len(images.classes), shots).trained
    )
    traits = fitted.method.traits
    assert (fitted.parameters > 0) == (name not in UNTRAINED) == (traits.cost != "nothing")
    assert (fitted.first is None) == (traits.reads not in ("parts", "tokens"))
    assert blocks_read([fitted.method], tiny_clip) == {fitted.first} - {None}
    assert len(fitted.trained.history) == fitted.trained.step
    assert (fitted.trained.step > 0) == (name in TRAINED)
    assert traits.about
    assert traits.about.new_classes == (name not in CLOSED)
    if name in CLOSED:
        # A product's columns may be added in an order that depends on their place; another class is
        # off by all digits.
        other_order = probabilities(fitted, images, images.classes[::-1])
        assert_same_float32(other_order, table.flip(1))
        with pytest.raises(
            NotApplicable, match="only knows the classes it was trained on, not 'house'"
        ):
            fitted.score(OTHERS)
    else:
        assert probabilities(fitted, images, OTHERS).shape == (len(images), 4)
    assert weights(tiny_clip) == before
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_threads_get_the_answers_of_one(name: str, tiny_clip: Backbone, images: ImageSet) -> None:
    """Eight threads that share a model, and so the blocks of its backbone."""
    fitted = quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images))
    expected = probabilities(fitted, images)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            tables = list(pool.map(lambda _: probabilities(fitted, images), range(16)))
    finally:
        sys.setswitchinterval(before)
    for table in tables:
        torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("name", ci_except(TRAINED, "coop", "rmadapter"))
def test_half_precision_works_by_the_rules_of_a_gpu(
    name: str, tiny_clip: Backbone, images: ImageSet
) -> None:
    with GpuRules():
        fitted = quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images, precision="bf16"))
    assert not {tensor.dtype for tensor in fitted.tensors.values()} & {
        torch.bfloat16,
        torch.float16,
    }


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_a_loaded_model_answers_the_same(
    name: str, tiny_clip: Backbone, images: ImageSet, tmp_path: Path
) -> None:
    """Bit for bit: a fitted model and a loaded one answer by the same `restore`."""
    method = quick_method(name)
    fitted = method.fit(
        tiny_clip, shots_of(tiny_clip, images, templates=("a {}.", "the {}."), seed=3)
    )
    save(tmp_path, fitted, name)
    loaded = load(tmp_path, tiny_clip).fitted
    assert loaded.method == method
    assert loaded.known == Known(images.classes, ("a {}.", "the {}."))
    assert (loaded.first, loaded.parameters) == (fitted.first, fitted.parameters)
    assert same_tensors(fitted, loaded)
    some = images.classes[1:3]
    assert torch.equal(probabilities(loaded, images), probabilities(fitted, images))
    assert torch.equal(probabilities(loaded, images, some), probabilities(fitted, images, some))


@pytest.mark.parametrize("name", ci_except(TRAINED, "coop", "rmadapter", "clip-lora"))
def test_a_killed_training_ends_with_the_same_weights(
    name: str, tiny_clip: Backbone, images: ImageSet, tmp_path: Path
) -> None:
    """Killed at a random step, after which another process would go on: bit for bit, dropout and
    averages included."""
    method = quick_method(name)
    survived = random.Random(f"{name} {sys.version}")
    shots = shots_of(tiny_clip, images, augmentation="standard", views=2)
    whole, resumed = killed_and_resumed(
        lambda shots: method.fit(tiny_clip, shots), shots, tmp_path, survived
    )
    assert same_tensors(whole, resumed)
    assert [step["loss"] for step in resumed.trained.history] == [
        step["loss"] for step in whole.trained.history
    ]


def test_methods_that_read_all_views_at_once_need_their_number(
    tiny_clip: Backbone, images: ImageSet
) -> None:
    """views=0 are new crops in every epoch; methods that read all views at once need a number."""
    for name in ("coop", "mmrl", "rmadapter"):
        fresh = quick_method(name).fit(
            tiny_clip, shots_of(tiny_clip, images, augmentation="standard")
        )
        plain = quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images))
        assert not same_tensors(fresh, plain)
    for name in ("linear-probe", "tip-adapter", "clap", "lp-plus-plus", "prolip"):
        with pytest.raises(UserError, match="set their number, as in --set views=8"):
            quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images, augmentation="standard"))


# Methods that start as zero-shot, backbones, and the classes to ask about: of the shots, or new.
ALL = ("tiny_clip", "tiny_hf", "tiny_siglip", "tiny_eva")
STARTS = [
    ("linear-probe-zero-shot", ALL[:2], None),
    ("clap", ALL[:2], None),
    ("coop", ALL[:2], OTHERS),
    ("kgcoop", ALL[:1], OTHERS),
    ("biclip", ALL, OTHERS),
    ("prolip", ALL[:3], None),
    ("clip-lora", ALL[:2], None),
    ("2sfs", ALL[:2], OTHERS),
    ("skip-tuning", ALL, OTHERS),
    ("full-finetune", ALL, OTHERS),
    ("rmadapter", ALL, OTHERS),
]


@pytest.mark.parametrize(
    ("name", "model", "names"),
    ci_except(
        [(name, one, names) for name, some, names in STARTS for one in some], "coop", "rmadapter"
    ),
)
def test_before_the_first_step_it_answers_as_zero_shot(
    name: str,
    model: str,
    names: tuple[str, ...] | None,
    images: ImageSet,
    request: pytest.FixtureRequest,
) -> None:
    backbone: Backbone = request.getfixturevalue(model)
    shots = shots_of(backbone, images)
    start = untrained(quick_method(name), backbone, shots).fitted
    plain = load_method("zero-shot").fit(backbone, shots)
    assert_same_float32(logits_of(start, shots, names), logits_of(plain, shots, names))


# Name, backbone, settings, and what the message must name.
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("clip-adapter", "tiny_clip", {"reduction": 41}, "reduction=41: give a number from 1 to 40"),
    ("coprompt", "tiny_clip", {"reduction": 4000}, "reduction=4000: give a number from 1 to 40"),
    ("clip-lora", "tiny_eva", {}, r"the blocks \(EvaBlock\) of backbone .+ cannot be taken apart"),
    ("clip-lora", "tiny_clip", {"dropout": 1.0}, "dropout=1"),
    ("lweib", "tiny_eva", {}, "LwEIB changes attention and MLP of each block"),
    ("heba", "tiny_eva", {}, "HeBA changes attention and MLP of each block"),
    ("mail", "tiny_eva", {}, "MAIL changes the norms, attention and MLPs of each block"),
    ("maple", "tiny_eva", {}, "MaPLe adds tokens"),
    ("prompt-kd", "tiny_eva", {}, "PromptKD adds tokens"),
    ("tcp", "tiny_clip", {"layer": 13}, r"tcp\.layer=13: .* has no such block; give at most 12"),
    ("text-refiner", "tiny_siglip", {}, "has no such token, block or projection"),
    ("text-refiner", "tiny_eva", {}, "has no such token, block or projection"),
    ("skip-tuning", "tiny_clip", {"skipped": 1.0}, "skipped=1 leaves no block to train"),
    ("hicropl", "tiny_clip", {"depth": 6}, r"hicropl\.turn=6: give a number below depth=6"),
    ("mmrl", "tiny_clip", {}, "first_block=6"),
    ("mmrl", "tiny_clip", {"rank": 5000}, "rank="),
    ("mmrl", "tiny_clip", {"projection_rank": 5000}, "projection_rank="),
    ("promptsrc", "tiny_clip", {"templates": ["a photo"]}, r"exactly one \{\}"),
    ("rmadapter-plus", "tiny_clip", {"general": ["no place"]}, "template"),
    ("rmadapter", "tiny_clip", {}, "first_block=5, last_block=None: .* have 4 and 4 blocks"),
    ("rmadapter", "tiny_clip", {"forward": "slow"}, "rmadapter: forward='slow'"),
]


@pytest.mark.parametrize(("name", "model", "settings", "words"), REFUSED)
def test_settings_that_do_not_fit_the_backbone_are_refused(
    name: str, model: str, settings: dict[str, Any], words: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(UserError, match=words):
        load_method(name, settings).parameters(request.getfixturevalue(model))


# ---- names ----


def test_unknown_methods_and_fields_are_named() -> None:
    with pytest.raises(UserError, match="unknown method 'coopp'; did you mean 'coop'"):
        load_method("coopp")
    with pytest.raises(UserError, match="mma: unknown field 'rnak'; did you mean 'rank'"):
        load_method("mma", {"rnak": 8})
    for name in METHODS:
        with pytest.raises(UserError, match=f"{name}: unknown field 'colour'"):
            load_method(name, {"colour": "red"})
    for field in ("data", "tests", *COMMON_SETTINGS):  # settings of no method
        with pytest.raises(UserError, match=f"rmadapter: unknown field '{field}'"):
            load_method("rmadapter", {field: 1})


def test_an_effort_scales_what_counts_steps() -> None:
    assert load_method("coop", effort="normal") == load_method("coop")
    for name, effort, setting, value in (
        ("coop", "fast", "epochs", 60),  # of 200
        ("clip-lora", "thorough", "iterations", 1500),  # of 500
    ):
        assert settings_of(load_method(name, effort=effort))[setting] == value
    assert load_method("tip-adapter", effort="fast") == load_method("tip-adapter")
    assert list(EFFORTS) == ["fast", "normal", "thorough"]


# ---- from outside ----


def test_a_method_in_a_file(tiny_clip: Backbone, images: ImageSet, tmp_path: Path) -> None:
    method: Any = load_method(EXTERNAL, {"kind": "closed"})
    assert (method.title, method.kind) == ("external", "closed")
    fitted = method.fit(tiny_clip, shots_of(tiny_clip, images))
    save(tmp_path, fitted, EXTERNAL)
    with pytest.raises(UserError, match=f"--code {EXTERNAL}"):
        load(tmp_path, tiny_clip)
    loaded = load(tmp_path, tiny_clip, method=EXTERNAL).fitted
    assert not loaded.known.saved  # nothing is kept for code that may change
    assert torch.equal(probabilities(loaded, images), probabilities(fitted, images))


def test_a_method_in_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers"))
    assert load_method("external_methods:ExternalMethod").title == "external"


def test_a_method_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point, as an installed distribution declares it; it cannot take a name of ours."""
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    lines = [
        "[rmadapter.methods]",
        "theirs = external_methods:ExternalMethod",
        "coop = external_methods:ExternalMethod",
    ]
    (package / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers"))
    assert list(entry_points()) == ["theirs"]
    assert load_method("theirs").title == "external"
    assert load_method("coop").title == "CoOp"
    assert not is_outside("theirs")
    assert is_outside(EXTERNAL)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.py:ExternalMethod", r"cannot be loaded \(ImportError: .*gone.py: no such file"),
        (EXTERNAL.replace("ExternalMethod", "Missing"), r"cannot be loaded \(AttributeError"),
        ("no_such_package:ExternalMethod", r"cannot be loaded \(ModuleNotFoundError"),
        (EXTERNAL.replace("ExternalMethod", "Unfinished"), "Unfinished.*fit, .*source"),
        (EXTERNAL.replace("ExternalMethod", "Undeclared"), "Undeclared.*dataclass"),
    ],
)
def test_invalid_methods_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_method(name)
