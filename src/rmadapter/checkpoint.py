"""A trained adapter on disk: a folder of adapter.safetensors, config.yaml, classes.json and run.json.

The backbone is named, not stored; its digest keeps the adapter from being put on another one.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.files import atomic, read_json, write_json
from rmadapter.model import AdaptedCLIP

FORMAT = "rmadapter-1"
LIBRARIES = ("rmadapter", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Of Python, the platform and every library that a number can depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{n: metadata.version(n) for n in LIBRARIES},
    }


def save_adapter(
    folder: Path, model: AdaptedCLIP, classes: tuple[str, ...], run: dict[str, Any], *, half: bool = False
) -> None:
    """Write the adapters alone (half: as float16), the configuration, the classes and the record of the run.

    run.json comes last: a folder that has it is complete.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous().to(torch.float16 if half else torch.float32)
        for name, tensor in model.adapters.state_dict().items()
    }
    label = json.dumps({"backbone": model.backbone.name, "digest": model.backbone.digest})
    with atomic(folder / "adapter.safetensors") as temporary:
        save_file(tensors, temporary, {FORMAT: label})  # one key: safetensors writes several in random order
    with atomic(folder / "config.yaml") as temporary:
        model.config.save(temporary)
    write_json(folder / "classes.json", {"classes": classes, "templates": model.config.templates})
    write_json(folder / "run.json", run)


def load_adapter(folder: Path, backbone: Any = None) -> tuple[AdaptedCLIP, tuple[str, ...], dict[str, Any]]:
    """The adapted model, its class names and the record of its run. backbone: a loaded one instead of the named one.

    The model is on the GPU if there is one, wherever it was trained, unless it was told device=cpu.
    Raises UserError for a folder that is no finished run, a damaged or foreign file, and another backbone than the
    adapter was trained on.
    """
    from safetensors import SafetensorError, safe_open

    from rmadapter.backbone import load_backbone
    from rmadapter.train import find_device

    file = folder / "adapter.safetensors"
    if not file.is_file() or not (folder / "run.json").is_file():
        raise UserError(f"{folder}: not a finished run; `rmadapter fit DATA --out {folder}` makes one")
    config = Config.load(folder / "config.yaml")
    try:
        with safe_open(file, "pt") as stored:
            label = json.loads((stored.metadata() or {}).get(FORMAT, "{}"))
            tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: damaged or no safetensors file ({error})") from None
    if label.keys() != {"backbone", "digest"}:
        raise UserError(f"{file}: these are not rmadapter's adapters, or another version's")
    backbone = backbone or load_backbone(config.backbone)
    if backbone.digest != label["digest"]:
        raise UserError(
            f"{folder} was trained on {label['backbone']} ({label['digest'][:12]}), and {backbone.name} "
            f"({backbone.digest[:12]}) has other weights: load it with the backbone that it was trained on"
        )
    model = AdaptedCLIP(backbone, config)
    wanted = {name: tensor.shape for name, tensor in model.adapters.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UserError(f"{file}: the adapters in it do not have the shapes that {folder / 'config.yaml'} describes")
    model.adapters.load_state_dict(tensors)
    classes = read_json(folder / "classes.json")
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.get("classes", [0])):
        raise UserError(f"{folder / 'classes.json'}: holds no class names")
    run = read_json(folder / "run.json")
    if not isinstance(run, dict):
        raise UserError(f"{folder / 'run.json'}: holds no record of a run")
    model.to(find_device("cpu" if config.device == "cpu" else "auto"))
    return model, tuple(classes["classes"]), run
