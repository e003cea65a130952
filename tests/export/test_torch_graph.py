"""What `checked` lets torch read of a graph, and that torch never sees the rest."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rmadapter.errors import UserError
from rmadapter.export import torch_graph
from rmadapter.export.engines import open_torch
from rmadapter.export.torch_graph import checked
from tests.hostile import graphs

SYMBOL = graphs.SYMBOL


def graph(folder: Path, **changed: bytes | None) -> Path:
    """Write the sound graph. changed: other members by name, None for one that is left out."""
    contents = {**graphs.members(), **changed}
    file = folder / "model.pt2"
    file.write_bytes(graphs.packed({k: v for k, v in contents.items() if v is not None}))
    return file


def with_program(folder: Path, old: str, new: str) -> Path:
    text = graphs.members()[graphs.PROGRAM].decode()
    assert old in text
    return graph(folder, **{graphs.PROGRAM: text.replace(old, new, 1).encode()})


@pytest.mark.parametrize(
    "text",
    [
        "Integer(-16)",
        SYMBOL,
        f"Mul(Integer(48), {SYMBOL})",
        f"Min(Integer(16), Mul(Integer(16), {SYMBOL}))",
        f"Add(FloorDiv({SYMBOL}, Integer(2)), Mul(Integer(2), {SYMBOL}), Integer(1))",
    ],
)
def test_sizes_as_export_writes_them(text: str) -> None:
    torch_graph._check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s77",
        "Integer(1) + Integer(2)",
        "Integer(1)Integer(2)",
        "Integer(1), Integer(2)",
        "Mul(Integer(1)",
        "Mul(Integer(1), )",
        "Mul()",
        "Integer(1))",
        "Pow(Integer(9), Integer(9))",
        "Symbol(x)",
        "Symbol('s77', positive=open('ran', 'w'))",
        "Mul(Integer(2), open('ran', 'w'))",
        f"({SYMBOL}, open('ran', 'w'))[0]",
        f"{SYMBOL}.__class__",
        f"{SYMBOL}\n",
        "Integer(99999999999999999999)",
        "Mul(" * 300 + "Integer(1)" + ")" * 300,
    ],
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(torch_graph._Foreign):
        torch_graph._check_expression(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"expr_str": "Symbol(', "\"expr_str\": \"open('ran', 'w'), Symbol("),
        ("torch.ops.aten.linear.default", "torch.os.mkdir"),
        ("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"),
        ('"name": "pixels"', "\"name\": \"pixels=open('ran', 'w')\""),
        ('"as_bool": false', '"as_operator": "torch.os.mkdir"'),
        ("builtins.tuple", "collections.defaultdict"),
    ],
)
def test_code_in_a_graph_never_reaches_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    file = with_program(tmp_path, old, new)
    monkeypatch.setattr(torch.export, "load", lambda _: pytest.fail("read by torch"))
    with pytest.raises(UserError, match=r"model\.pt2"):
        open_torch(file, 0)


@pytest.mark.parametrize(
    "member",
    [
        "data/weights/model.pt", "data/constants/model.pt", "data/aotinductor/model/x.so",
        "extra/x", "../x",
    ],
)  # fmt: skip
def test_other_members_are_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(UserError, match=r"model\.pt2"):
        checked(graph(tmp_path, **{f"model/{member}": b"x"}))


@pytest.mark.parametrize("member", [graphs.PROGRAM, graphs.WEIGHTS, "model/byteorder"])
def test_a_damaged_file_is_refused(tmp_path: Path, member: str) -> None:
    for content in (None, b"", b"{", b"[]"):
        if content is None and member == "model/byteorder":
            continue  # torch tells that itself
        with pytest.raises(UserError, match=r"model\.pt2"):
            checked(graph(tmp_path, **{member: content}))
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"model\.pt2"):
        checked(tmp_path / "model.pt2")


def test_a_packed_member_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in graphs.members().items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=r"model\.pt2"):
        checked(file)


def test_a_clock_before_1980_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = graph(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with zipfile.ZipFile(checked(file)) as copy:
        assert {*copy.namelist()} == {*graphs.members()}


def test_torch_reads_a_copy_without_guards_and_metadata(tmp_path: Path) -> None:
    program = json.loads(graphs.members()[graphs.PROGRAM])
    program["guards_code"] = ["open('ran', 'w')"]
    copy = checked(graph(tmp_path, **{graphs.PROGRAM: json.dumps(program).encode()}))
    with zipfile.ZipFile(copy) as archive:
        kept = json.loads(archive.read(graphs.PROGRAM))
        assert {*archive.namelist()} == {*graphs.members()}
    assert kept["guards_code"] == []
    assert {str(one["metadata"]) for one in graphs.objects(kept) if "metadata" in one} == {"{}"}


def test_the_copy_answers_as_the_file_does(tmp_path: Path) -> None:
    file = graph(tmp_path)
    pixels = np.random.default_rng(0).random((3, 3, 4, 4), np.float32)
    run, size = open_torch(file, 0)
    with torch.no_grad():
        expected = torch.export.load(str(file)).module()(torch.from_numpy(pixels))
    assert size == 0
    assert np.array_equal(run(pixels)[0], expected.numpy())
