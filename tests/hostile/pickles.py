"""Checkpoints with damaged or malicious pickles, as `backbones convert` reads them: nothing in them
runs."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rmadapter.backbones.convert import read_checkpoint
from tests.hostile.harness import Changed
from tests.hostile.mutate import damage, packed

RAN = "ran"  # a file that code would make in the working folder
CALLS = (
    ("os", "mkdir"), ("posix", "mkdir"), ("builtins", "open"), ("builtins", "eval"),
    ("torch", "load"), ("torch.serialization", "load"), ("torch.hub", "load"), ("io", "open"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"), ("copyreg", "_reconstructor"),
    ("torch.storage", "_load_from_bytes"), ("numpy.core.multiarray", "scalar"),
    ("collections", "OrderedDict.fromkeys"), ("torch", "Size.__class__"), ("_codecs", "encode"),
)  # fmt: skip


class Calls:
    """Makes a file or a folder RAN when it is unpickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (RAN, *(["w"] if self.function is open else []))


@cache
def sound(zipped: bool) -> bytes:
    import torch

    file = io.BytesIO()
    content = {"state_dict": {"a": torch.arange(6.0), "b": torch.ones(2, 3).T}, "step": 3}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def with_pickle(data: bytes) -> bytes:
    """Return the sound archive with other instructions."""
    with zipfile.ZipFile(io.BytesIO(sound(True))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (place,) = [name for name in members if name.endswith("data.pkl")]
    return packed({**members, place: data})


def malicious(rng: random.Random) -> bytes:
    """Return instructions that would run something in pickle, in one of its ways to call."""
    module, name = rng.choice(CALLS)
    text = b"X" + len(RAN).to_bytes(4, "little") + RAN.encode()
    named = f"c{module}\n{name}\n".encode()
    stacked = (
        b"".join(b"\x8c" + bytes([len(one)]) + one.encode() for one in (module, name)) + b"\x93"
    )
    return rng.choice((
        pickle.dumps(Calls(rng.choice((os.mkdir, open))), rng.choice((0, 2, 4, 5))),
        b"\x80\x02" + named + text + b"\x85R.", b"\x80\x04" + stacked + text + b"\x85R.",
        b"\x80\x02" + named + text + b"\x85\x81.", b"(" + text + f"i{module}\n{name}\n.".encode(),
        b"(" + named + text + b"o.", b"\x80\x02" + named + b"}" + text + b"Nsb.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + named + text + b"\x85R\x85R.",
        b"\x80\x02}" + text + named + text + b"\x85Rs.", b"\x80\x02" + named + b"\x85Q.",
        b"\x80\x02\x82\x01.", b"\x80\x02" + b"(" * rng.choice((10, 100_000)) + b".",
        b"\x80\x02]" + b"(h\x00" * 50 + b".", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    ))  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(sound(True))) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        instructions = archive.read(place)
    for number in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            yield f"old-{number}", damage(rng, sound(False))[1]
        elif kind == 1:
            yield f"archive-{number}", damage(rng, sound(True))[1]
        elif kind == 2:
            yield f"instructions-{number}", with_pickle(damage(rng, instructions)[1])
        else:
            data = malicious(rng)
            yield f"call-{number}", with_pickle(data) if rng.random() < 0.7 else data


def check(name: str, content: bytes, folder: Path) -> object:
    file = folder / "a.pt"
    file.write_bytes(content)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return read_checkpoint(file)
    finally:
        os.chdir(before)
        if (folder / RAN).exists():
            raise Changed("the pickle ran code")
