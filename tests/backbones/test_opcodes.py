"""Checkpoints read by their instructions, against torch's own reader; hostile ones are in
test_unpickle.py."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rmadapter.backbones import unpickle
from rmadapter.backbones.opcodes import Machine, Refused
from tests.hostile import pickles

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def table() -> dict[str, Tensor]:
    numbers = torch.arange(24.0).reshape(4, 6)
    tensors = {str(kind): (numbers % 2).to(kind) for kind in DTYPES}
    views = {"part": numbers[1:3, ::2], "turned": numbers.T, "one": numbers[2, 3]}
    others = {"empty": torch.zeros(0, 3), "parameter": nn.Parameter(torch.ones(2))}
    return {**tensors, **views, **others, "wide": torch.ones(1).expand(4)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", [dict, OrderedDict, "module"])
def test_reads_what_torch_reads(
    tmp_path: Path, zipped: bool, protocol: int, kind: type | str
) -> None:
    file = tmp_path / "a.pt"
    state = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    content = state if isinstance(kind, str) else kind(table())
    beside = {"epoch": 3, "names": ["a", ("b", 2.5, None)], "device": torch.device("cpu")}
    saved = {"state_dict": content, **beside}
    torch.save(saved, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    expected = torch.load(file, weights_only=False)["state_dict"]  # our own
    tensors, facts = unpickle.read(str(file))
    assert facts == {"scripted": False, "quick_gelu": None, "left_out": []}
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_what_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "step": 1}, tmp_path / "a.pt")
    tensors, facts = unpickle.read(str(tmp_path / "a.pt"))
    assert ([*tensors], facts["left_out"]) == (["a"], ["step"])


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_wrapper_subclass"]
)
def test_only_known_names_are_accepted(name: str) -> None:
    module, _, function = name.rpartition(".")
    data = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X\x01\x00\x00\x00a\x85R."
    with pytest.raises(Refused, match=function):
        Machine().run(io.BytesIO(data))


def test_instructions_of_other_kinds_are_refused() -> None:
    for data in (b"\x80\x02\x82\x01.", b"(I1\nios\nsystem\n.", b"P1\n.", b"}0}."):
        list(pickletools.genops(data))
        with pytest.raises(Refused):
            Machine().run(io.BytesIO(data))


def test_values_are_those_of_pickle() -> None:
    numbers = [1, -5, 2**40, 2**70, 1.5, None, True]
    value = [*numbers, "é", (), (1,), (1, 2, 3, 4), {"a": {1: []}}]
    for protocol in (2, 3, 4, 5):
        assert Machine().run(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)[2:]}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["a/data/0"] = members["a/data/0"][:12]
    (tmp_path / "a.pt").write_bytes(pickles.packed(members))
    with pytest.raises(ValueError, match="cut"):
        unpickle.read(str(tmp_path / "a.pt"))
