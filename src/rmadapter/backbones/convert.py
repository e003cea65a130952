"""Convert a checkpoint of `torch.save` to a model folder with safetensors weights.

Only this file reads pickles, and only by `torch.load(weights_only=True)`, which makes tensors and
plain values and calls no function but those that tensors need.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from rmadapter.backbones.build import (
    as_backbone,
    build_model,
    files_of,
    load_tokenizer,
    load_weights,
)
from rmadapter.backbones.load import (
    OPEN_CLIP_WEIGHTS,
    architecture_config,
    tokenizer_folder,
    transform_of,
)
from rmadapter.backbones.trust import CONFIG, PICKLE_SUFFIXES
from rmadapter.errors import UserError
from rmadapter.support.files import (
    JsonObject,
    opened,
    sha256,
    write_json,
    write_sums,
    write_tensors,
)
from rmadapter.support.locks import staged_folder
from rmadapter.support.terminal import silenced

# Names under which training programs store a model's weights, and prefixes that they give to them.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "teacher", "ema", "model_ema", "params",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "state_dict.", "model.", "teacher.")
MAX_EXPANSION = 4  # times the size of the file that its contents may take
SMALL_BYTES = 2**20  # of contents that may take any number of times as much
HOW_TO_SAVE = (
    "it is a TorchScript archive, which is a program: OpenAI's weights come as safetensors by "
    "`--backbone ViT-B-16/openai` and the like; save the weights of another on a machine that may "
    "run it, with torch.save(torch.jit.load(FILE).state_dict(), NEW)"
)


def convert(file: Path, architecture: str, out: Path, digest: str = "") -> JsonObject:
    """Write a checkpoint as a folder that `load_backbone` opens.

    Args:
        file: Weights of an open_clip model, as `torch.save` writes them.
        architecture: open_clip's name of the model's architecture.
        out: New folder.
        digest: SHA-256 in hex that the file must have; anything if empty.

    Returns:
        What to report: the folder, digests, and the names of what was left out.

    Raises:
        UserError: The file is no checkpoint, holds or asks for something other than tensors and
            plain values, or does not fit the architecture. Nothing is left behind.
    """
    file_digest = _check(file, out, digest)
    config, tags = architecture_config(architecture, architecture)
    tensors, left_out = read_checkpoint(file)
    with staged_folder(out) as folder:
        flat = folder / "tensors.safetensors"
        write_tensors(flat, tensors)
        transform = transform_of(architecture, tags)
        model = build_model(architecture, architecture, draw=False, transform=transform)
        load_weights(architecture, model, flat, shown=file, exact=True)
        flat.unlink()
        named = config["text_cfg"].get("hf_tokenizer_name")
        tokenizer = tokenizer_folder(named) if named else None
        for part in files_of(tokenizer) if tokenizer else ():
            shutil.copy(part, folder)
        split = load_tokenizer(architecture, config["text_cfg"], tokenizer)
        backbone = as_backbone(architecture, model, split)
        write_tensors(folder / OPEN_CLIP_WEIGHTS[0], backbone.model.state_dict())
        preprocess = model.visual.preprocess_cfg  # type: ignore[union-attr]
        write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
        write_sums(folder, [part.name for part in folder.iterdir()])
        if out.exists():
            out.rmdir()  # it is empty
    return {
        "backbone": str(out),
        "digest": backbone.digest,
        "sha256": file_digest,
        "left_out": left_out,
    }


def _check(file: Path, out: Path, digest: str) -> str:
    """Check the arguments and return the SHA-256 of the file in hex."""
    if file.suffix.lower() == ".safetensors":
        raise UserError(
            f"{file}: needs no conversion; use it as it is: --backbone ARCHITECTURE/{file}"
        )
    with opened(file, "a checkpoint"):
        pass
    if file.suffix.lower() not in PICKLE_SUFFIXES:
        known = ", ".join(PICKLE_SUFFIXES)
        raise UserError(f"{file}: not named like a pickled checkpoint; known suffixes are {known}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: already exists and is not an empty folder; give a new --out")
    actual = sha256(file)
    if digest and actual != digest.lower():
        raise UserError(f"{file}: has SHA-256 {actual}, not {digest[:80]}; it was not opened")
    return actual


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights in a file of `torch.save`, running no code of it.

    Args:
        file: State of a model, or a table that holds one under a name of `WRAPPERS`.

    Returns:
        The tensors by name without `PREFIXES`, and the names of what is no tensor.

    Raises:
        UserError: The file is damaged, a TorchScript archive, asks for anything but tensors and
            plain values, expands to far more than its size, or holds no state of a model.
    """
    most = MAX_EXPANSION * file.stat().st_size + SMALL_BYTES
    try:
        _check_archive(file, most)
        with silenced(output=True):
            content = torch.load(file, map_location="cpu", weights_only=True)
        table = _table_of_tensors(content)
        tensors = _without_prefixes(
            {name: value for name, value in table.items() if isinstance(value, Tensor)}
        )
        _check_tensors(tensors, most)
    except _Refused as error:
        raise UserError(f"{file}: cannot be converted: {error}") from None
    except Exception as error:  # damaged files make torch raise many kinds
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it is damaged or not a checkpoint of torch.save ({type(error).__name__})"
        if asked:
            reason = f"it asks for {asked[1][:100]}, but only tensors are accepted"
        raise UserError(f"{file}: cannot be converted: {reason}") from None
    return tensors, [str(key)[:100] for key in table if not isinstance(table[key], Tensor)]


class _Refused(Exception):
    """A file that can be read, but not converted; its message says why."""


def _check_archive(file: Path, most: int) -> None:
    """Refuse an archive that is a program, or that unpacks to more than `most` bytes."""
    if not zipfile.is_zipfile(file):  # as torch.save wrote before version 1.6
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _Refused(HOW_TO_SAVE)
    if sum(entry.file_size for entry in entries) > most:
        raise _Refused("its archive unpacks to far more than its size")


def _table_of_tensors(content: object) -> dict[object, object]:
    """Return the table that holds tensors, from under the names where training code nests it."""
    for _ in range(4):
        if not isinstance(content, dict):
            break
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        tables = [content[name] for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not tables:
            names = ", ".join(str(name)[:40] for name in list(content)[:5])
            raise _Refused(
                f"it holds no table of weights under {', '.join(WRAPPERS[:4])} or the like, but "
                f"{names}"
            )
        content = tables[0]
    raise _Refused(f"it holds no table of weights, but a {type(content).__name__}")


def _without_prefixes(tensors: dict[object, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that all names have; keep the teacher rather than a student."""
    named = {name: tensor for name, tensor in tensors.items() if isinstance(name, str)}
    if len(named) < len(tensors):
        raise _Refused("its weights have names that are not text")
    if any(name.startswith("student.") for name in named):
        named = {name: one for name, one in named.items() if name.startswith("teacher.")}
    while named:
        shared = [p for p in PREFIXES if all(name.startswith(p) for name in named)]
        if not shared:
            break
        named = {name.removeprefix(shared[0]): one for name, one in named.items()}
    return named


def _check_tensors(tensors: dict[str, Tensor], most: int) -> None:
    """Refuse tensors that are not plain, or that take more than `most` bytes together."""
    if not tensors:
        raise _Refused("it holds no weights")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise _Refused(f"{name[:100]!r} is not a plain tensor")
    # a tensor may show the same numbers many times
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > most:
        raise _Refused("its tensors claim to be far larger than the file")
