"""Hostile and damaged pickles: nothing in them runs, and they leave nothing behind."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbones import convert as converting
from rmadapter.backbones import unpickle
from rmadapter.backbones.convert import convert
from rmadapter.errors import UserError
from tests.helpers.slow import slow_except

NAME = "ViT-S-32-alt"


class Runs:
    """Asks for a function to be called."""

    def __init__(self, what: Any, *words: Any) -> None:
        self.what, self.words = what, words

    def __reduce__(self) -> Any:
        return self.what, self.words


def archive(data: bytes, *, compressed: bool = False, **records: bytes) -> bytes:
    """Return an archive like those of torch.save, of a pickle and storages."""
    file = io.BytesIO()
    files = {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **records}
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as zipped:
        for name, content in files.items():
            zipped.writestr(f"a/{name}", content)
    return file.getvalue()


def saved(content: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def claims(shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A tensor that shows one number many times."""
    return saved({"a": torch.zeros(1).as_strided(shape, stride)})


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def doubled(levels: int) -> bytes:
    """Pickle a list that holds a list twice, and so on: small, but 2^levels parts to visit."""
    lines = [b"\x80\x02]q\x00"]
    for i in range(levels):
        lines.append(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]))
    return b"".join(lines) + b"."


def command(marker: Path) -> str:
    return f"touch {marker}"


WHOLE = saved({"a": torch.arange(1000.0)})
CANNOT = "cannot be converted"
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda m: saved({"a": Runs(os.system, command(m))}), r"asks for \w+.system"),
    "the old format": (
        lambda m: saved({"a": Runs(os.system, command(m))}, _use_new_zipfile_serialization=False),
        "it asks for"),
    "no torch at all": (lambda m: pickle.dumps(Runs(os.system, command(m)), 2), CANNOT),
    "eval": (lambda m: saved(Runs(eval, f"open({str(m)!r}, 'w')")), "it asks for .*eval"),
    "a subprocess": (lambda m: saved(Runs(subprocess.call, ["touch", str(m)])), "it asks for"),
    "in a script": (
        lambda m: archive(
            pickle.dumps(Runs(os.system, command(m)), 2),
            **{"constants.pkl": b"", "code/a.py": b""}),
        "it asks for"),
    "cut in half": (lambda m: WHOLE[: len(WHOLE) // 2], "damaged or not a torch checkpoint"),
    "a name is changed": (
        lambda m: WHOLE.replace(b"rebuild_tensor_v2", b"rebuild_tensor_v9"), CANNOT),
    "empty": (lambda m: b"", CANNOT),
    "text": (lambda m: b"hello" * 100, CANNOT),
    "a zip of nothing": (lambda m: archive(b""), CANNOT),
    "a tensor of a terabyte": (lambda m: claims((1 << 38,), (0,)), "far larger than the file"),
    "a storage that is not there": (
        lambda m: claims((5,), (0,)).replace(b"K\x05", b"K\xff"), CANNOT),
    "a zip that unpacks to a gigabyte": (
        lambda m: archive(b"\x80\x02}.", compressed=True, **{"data/0": bytes(1 << 27)}),
        "unpacks to far more"),
    "very deep": (lambda m: archive(nested(100_000)), "no table of weights, but a list"),
    "exponentially many": (lambda m: archive(doubled(200)), "no table of weights, but a list"),
    "a long text": (
        lambda m: archive(b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"."), CANNOT),
    "names that are not text": (lambda m: saved({1: torch.zeros(1)}), "names that are not text"),
    "no tensors": (lambda m: saved({"state_dict": {}}), "no table of weights"),
    "another table": (
        lambda m: saved({"optimizer": 1, "epoch": 2}), "state_dict, .* but optimizer, epoch"),
    "sparse": (lambda m: saved({"a": torch.eye(3).to_sparse()}), "'a' is not a plain tensor"),
    "no model": (lambda m: saved([torch.zeros(1)]), "no table of weights, but a list"),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", slow_except(HOSTILE, "os.system", "the old format", "eval", "very deep")
)
def test_nothing_runs_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "weights.pt"
    make, named = HOSTILE[kind]
    file.write_bytes(make(marker))
    with pytest.raises(UserError, match=named) as caught:
        convert(file, NAME, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    """The test above can fail: opened by pickle, the payload runs."""
    pickle.loads(pickle.dumps(Runs(os.system, command(tmp_path / "ran")), 2))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import time; time.sleep(1000)", "was not read within 1 seconds"),
        ("import os; os.abort()", "ended the process that read it"),
        ("import os; os._exit(3)", "tried to do more than be read and was stopped; delete it"),
    ],
)
def test_a_reader_that_never_ends_or_is_stopped_names_the_file(
    code: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tmp_path / "reader.py"
    reader.write_text(code)
    (tmp_path / "weights.pt").write_bytes(WHOLE)
    monkeypatch.setattr(unpickle, "__file__", str(reader))
    monkeypatch.setattr(converting, "SECONDS", 1)
    with pytest.raises(UserError, match=rf"weights\.pt: {named}"):
        convert(tmp_path / "weights.pt", NAME, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pt", "reader.py"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="a pipe or device"):
        convert(tmp_path / "weights.pt", NAME, tmp_path / "out")


def confined(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code under the limits of the reader."""
    start = "from rmadapter.backbones import unpickle\nimport os, pickle, socket, subprocess, sys\n"
    script = f"{start}unpickle.limit(1000, 5)\nunpickle.watch()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "os.system('true')",
        "subprocess.run(['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.getaddrinfo('localhost', 9)",
        "open('made', 'w')",
        "os.open('made', os.O_CREAT)",
        "os.remove('there')",
        "pickle.loads(pickle.dumps(os.system, 2))",
    ],
)
def test_code_that_does_more_than_read_ends_the_process(code: str, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    done = confined(f"{code}\nprint('went on')", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"),
    reason="the bound on memory needs to know what is in use",
)
def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    assert "MemoryError" in confined("bytes(3 << 30)", tmp_path).stderr
    assert confined("print(len(bytes(1 << 29)))", tmp_path).stdout == f"{1 << 29}\n"
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])"
    assert confined(code, tmp_path).stdout == "5\n"
