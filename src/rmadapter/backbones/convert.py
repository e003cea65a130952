"""Convert a pickled checkpoint to a model folder of safetensors. Only here a pickle is opened, by
unpickle.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rmadapter.backbones import unpickle
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
from rmadapter.backbones.trust import CONFIG, PICKLES
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

SECONDS, BYTES_A_SECOND = 60, 20e6  # limit on reading: a minute, and more for large files


def convert(file: Path, architecture: str, out: Path, digest: str = "") -> JsonObject:
    """Write a pickled checkpoint of an open_clip architecture as a folder that `load_backbone`
    opens.

    digest: the SHA-256 in hex that the file must have. Return what to report: the folder, digests
    and what was left out. Raises UserError, and leaves nothing behind, for a file that is no
    checkpoint, asks for anything but tensors, or does not fit the architecture.
    """
    file_digest = _check(file, out, digest)
    config, tags = architecture_config(architecture, architecture)
    with staged_folder(out) as folder:
        apart = folder / "apart"  # where the process that reads the pickle works
        apart.mkdir()
        flat = apart / "tensors.safetensors"
        facts = _read(file, flat)
        quick_gelu = bool(config.get("quick_gelu"))
        if facts["quick_gelu"] is not None and facts["quick_gelu"] != quick_gelu:
            plain = architecture.removesuffix("-quickgelu")
            other = f"{plain}-quickgelu" if facts["quick_gelu"] else plain
            raise UserError(f"{file}: its activation is not that of {architecture}; use {other!r}")
        transform = transform_of(architecture, tags)
        model = build_model(architecture, architecture, draw=False, transform=transform)
        load_weights(architecture, model, flat, shown=file, exact=True)
        shutil.rmtree(apart)
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
        "backbone": str(out), "digest": backbone.digest, "sha256": file_digest,
        "scripted": facts["scripted"], "left_out": facts["left_out"],
    }  # fmt: skip


def _check(file: Path, out: Path, digest: str) -> str:
    """Check the arguments and return the SHA-256 of the file in hex."""
    if file.suffix.lower() == ".safetensors":
        raise UserError(
            f"{file}: needs no conversion; use it as it is: --backbone ARCHITECTURE/{file}"
        )
    with opened(file, "a checkpoint"):
        pass
    if file.suffix.lower() not in PICKLES:
        raise UserError(
            f"{file}: not named like a pickled checkpoint; known suffixes are {', '.join(PICKLES)}"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: already exists and is not an empty folder; give a new --out")
    actual = sha256(file)
    if digest and actual != digest.lower():
        raise UserError(f"{file}: has SHA-256 {actual}, not {digest[:80]}; it was not opened")
    return actual


def _read(file: Path, flat: Path) -> JsonObject:
    """Let another process write the tensors of a checkpoint, and return facts about it."""
    seconds = int(SECONDS + file.stat().st_size / BYTES_A_SECOND)
    paths = [os.path.abspath(file), os.path.abspath(flat)]
    command = [sys.executable, unpickle.__file__, *paths, str(seconds)]
    # coverage.py would write a file, for which that process is stopped
    env = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
    try:
        done = subprocess.run(
            command, cwd=flat.parent, stdin=subprocess.DEVNULL, capture_output=True, env=env,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{file}: was not read within {seconds} seconds, and no checkpoint takes that long"
        ) from None
    if done.returncode == 3:
        raise UserError(f"{file}: tried to do more than be read and was stopped; delete it")
    try:
        facts: JsonObject = json.loads(done.stdout)
    except ValueError:
        raise UserError(
            f"{file}: ended the process that read it, as damaged or hostile files do"
        ) from None
    error = facts.get("error")
    if error:
        raise UserError(f"{file}: cannot be converted: {error}")
    return facts
