"""Files are replaced whole or not at all, and files of others are read within bounds and compared
with their checksums."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open

from rmadapter.errors import UserError
from rmadapter.support import files
from rmadapter.support.files import (
    at_home,
    atomic,
    cache_folder,
    check_new,
    check_sums,
    csv_text,
    inert,
    inert_path,
    own_name,
    parts,
    path_from,
    read_json,
    read_text,
    reserve,
    sha256,
    shortened,
    user_path,
    write_json,
    write_sums,
    write_tensors,
    write_text,
)
from tests.helpers.shell import limited_file_size


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Writing


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "old")
    with atomic(path) as temporary:
        assert temporary.parent == path.parent  # os.replace is atomic within one file system alone
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("name", ["a" * 255, "\N{CJK UNIFIED IDEOGRAPH-732B}" * 85])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert read_text(tmp_path / name) == "x"
    assert not parts(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failing_body_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 100_000),
        lambda path: write_tensors(path, {"x": torch.zeros(10_000)}),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write_text(tmp_path / "a", "old")
    with limited_file_size(), pytest.raises(UserError, match="a: cannot be written"):
        write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run\.json: cannot be written"):
        write_json(tmp_path / "run" / "run.json", {})
    assert (tmp_path / "run").read_text() == "a file"


def test_tensors_are_written_without_files_that_a_kill_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors' own writer makes a file `.tmpXXXXXX` beside, which could be the user's."""
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: pytest.fail(".tmpXXXXXX"))
    tensors = {"x": torch.arange(6.0).view(2, 3).T, "y": torch.ones(2, dtype=torch.half)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"what": "it"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"what": "it"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    assert names(tmp_path) == ["a.safetensors"]


def test_temporary_files_are_distinguished_from_those_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / ".folder.abcdefgh.part").mkdir()  # somebody else's, who removes it
    for name in (".config.settings", ".bashrc.part", "a.txt.abcdefgh.part", ".x.ABCDEFGH.part"):
        (tmp_path / name).write_text("mine")
    with atomic(tmp_path / "a.txt") as one, atomic(tmp_path / "runs" / ".b") as other:
        assert parts(tmp_path) == [one]
        assert set(parts(tmp_path, tmp_path / "runs", tmp_path / "none")) == {one, other}
    assert parts(tmp_path, tmp_path / "runs") == []


@pytest.mark.parametrize("system", ["with posix_fallocate", "without"])
def test_space_on_disk_is_reserved_or_refused(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "without":
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr("rmadapter.support.files.CHUNK_BYTES", 3000)
    (tmp_path / "a").write_bytes(b"")
    reserve(tmp_path / "a", 10_000)
    facts = (tmp_path / "a").stat()
    assert facts.st_size == 10_000
    assert facts.st_blocks * 512 >= 10_000  # no hole that has to be filled later
    refused = pytest.raises(UserError, match=r"b: cannot be written \(.+\)")
    with limited_file_size(), refused, atomic(tmp_path / "b") as part:
        reserve(part, 10_000)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before, interval = os.umask(mask), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:  # which must not read the masks of each other
            assert set(pool.map(lambda _: files._umask(), range(20_000))) == {mask}
        write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
    finally:
        sys.setswitchinterval(interval)
        assert os.umask(before) == mask
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes == [0o666 & ~mask] * 2


def test_json_is_utf_8_in_spite_of_file_names_that_are_not(tmp_path: Path) -> None:
    value = {
        "größe": [1, 2.5, None, True],
        "斑马": {"x": -math.pi},
        "lone": os.fsdecode(b"\xe9.png"),
    }
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "größe" in text
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "start",
    [
        "=",
        "+",
        "-",
        "@",
        "＝",
        "＋",
        "－",
        "＠",
        "\u200b=",
        "\t=",
        " +",
        "\ufeff@",
        "\u202e\u200b-",
    ],
)
def test_formulas_of_spreadsheets_are_neutralised(start: str, tmp_path: Path) -> None:
    evil = f"{start}A1+1.png"
    (tmp_path / evil).touch()
    assert inert(evil) == "'" + evil.replace("\t", " ")
    assert (tmp_path / inert_path(evil)).is_file()
    assert inert_path(evil).startswith("./")
    assert (inert("cat"), inert_path("a/=b.png")) == ("cat", "a/=b.png")


NASTY = st.text(alphabet=st.sampled_from("a;,\t\r\n\"'=é "), max_size=6)


@given(st.lists(st.lists(NASTY, min_size=2, max_size=2), max_size=4))
def test_csv_comes_back_and_no_cell_is_split_at_a_semicolon_or_return(
    rows: list[list[str]],
) -> None:
    text = csv_text(("a", "b"), rows)
    assert [*csv.reader(io.StringIO(text, newline=""))] == [["a", "b"], *rows]
    outside = re.sub(r'"(?:[^"]|"")*"', "", text)
    assert not {";", "\t", "\r"} & {*outside}


def test_plain_cells_are_written_as_the_library_csv_does() -> None:
    rows = [["a", 0.5, None, True, 'x "y"'], ["", 1e-9, 3, False, "b, c"]]
    plain = io.StringIO()
    csv.writer(plain, lineterminator="\n").writerows([["a"], *rows, [""]])
    assert csv_text(["a"], [*rows, [""]]) == plain.getvalue()


# Reading


def test_keys_of_json_may_be_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [{"mask": [1], "b": {"mask": 2, "c": 3}}], "mask": 4})
    assert read_json(tmp_path / "a.json", without=("mask",)) == {"a": [{"b": {"c": 3}}]}


BROKEN = [None, b"", b"{", b"\xff", b"[" * 5_000, b'{"a":' * 100_000, b"1" * 5_000]


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: str(content)[:9])
def test_json_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not readable JSON"):
        read_json(tmp_path / "a.json")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("pipe", "a pipe or device"),
        ("zero", "a pipe or device"),
        (".", "directory"),
        ("loop", "link"),
    ):
        with pytest.raises(UserError, match=f"not readable JSON .*{reason}"):
            read_json(tmp_path / name)


def test_a_text_has_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 10)
    assert read_text(tmp_path / "a.txt", max_bytes=10) == "x" * 10
    with pytest.raises(UserError, match=r"more than 9 bytes"):
        read_text(tmp_path / "a.txt", max_bytes=9)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 2**40)  # takes no room on the disk
    with pytest.raises(UserError, match="more than"):
        read_json(tmp_path / "hole")
    with pytest.raises(UserError, match="more than 5 bytes"):
        read_text(Path("/proc/self/status"), max_bytes=5)  # says that it has none


# Paths


def test_home_after_an_equals_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("--out=~/runs") == f"--out={tmp_path / 'runs'}"
    for word in ("--set", "a=~b", "~/runs", "--names=a~b"):
        assert at_home(word) == word


def test_a_missing_home_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RMADAPTER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def expanduser(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(UserError, match="there is no home folder: set RMADAPTER_CACHE"):
        cache_folder()


def test_paths_as_users_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/new/x") == tmp_path / "new/x"
    assert user_path("ViT-B-16/openai") == Path("ViT-B-16/openai")
    (tmp_path / "loop").symlink_to("loop")
    long = ["x" * 256, "é" * 128, "a/" * 3_000]
    for path in ("~nosuchuser/x", *long, "a\0b", tmp_path / "loop", "\ud800"):
        with pytest.raises(UserError, match="not a usable path") as caught:
            user_path(path)
        assert len(str(caught.value)) < 300


def test_a_link_to_nothing_exists(tmp_path: Path) -> None:
    check_new(tmp_path / "free", tmp_path / "free.html")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match="link: already exists; choose another --out"):
        check_new(tmp_path / "free", tmp_path / "link")


def test_relative_paths_lead_through_links(tmp_path: Path) -> None:
    (tmp_path / "large/deep/runs").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "large/deep/runs")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "data/a.png").write_text("a")
    (tmp_path / "data/b.png").symlink_to(tmp_path / "data/a.png")
    assert path_from(tmp_path / "large", tmp_path / "data/a.png") == "../data/a.png"
    for folder in (tmp_path / "runs", tmp_path / "runs/new", tmp_path / "data"):
        folder.mkdir(exist_ok=True)
        for image in ("data/a.png", "linked/a.png", "data/b.png"):
            path = path_from(folder, tmp_path / image)
            assert (folder / path).read_text() == "a"
            # a link to a file keeps its name, and with it its label
            assert Path(path).name == Path(image).name


def test_a_folder_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pets")
    for path in ("pets", "../pets/", ".", "train/..", str(tmp_path / "pets")):
        assert own_name(path) == "pets"
    assert own_name("") == ""


# Checksums

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.json").write_bytes(b"abc")
    (tmp_path / "a.yaml").write_bytes(b"")
    write_sums(tmp_path, ["b.json", "a.yaml", "never written"])
    return tmp_path


def test_sums_are_those_of_sha256sum(folder: Path) -> None:
    assert (folder / "SHA256SUMS").read_text().splitlines()[1] == f"{ABC}  b.json"
    check_sums(folder, ["a.yaml"])
    if program := shutil.which("sha256sum"):
        command = [program, "--check", "--strict", "SHA256SUMS"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_changed_and_unlisted_files_are_named(folder: Path) -> None:
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: not listed in SHA256SUMS"):
        check_sums(folder, ["run.json"])
    (folder / "b.json").write_bytes(b"abb")
    with pytest.raises(UserError, match=r"b\.json: does not match SHA256SUMS"):
        check_sums(folder)


def test_missing_files_and_folders_without_sums_pass(folder: Path) -> None:
    (folder / "a.yaml").unlink()
    check_sums(folder)
    (folder / "SHA256SUMS").unlink()
    (folder / "b.json").write_bytes(b"abb")
    check_sums(folder, ["b.json"])


OTHER_LINES = ["abc  b.json", f"{ABC}  ../b.json", f"{ABC}  /etc/passwd", ABC, f"{ABC}  "]


@pytest.mark.parametrize(
    "write",
    [
        *(lambda file, line=line: file.write_text(line + "\n") for line in OTHER_LINES),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.mkdir(),
        lambda file: os.mkfifo(file),
        lambda file: (file.touch(), os.truncate(file, 2**33)),  # must not be read into memory
    ],
)
def test_a_damaged_list_of_sums_is_refused(folder: Path, write: Callable[[Path], None]) -> None:
    (folder / "SHA256SUMS").unlink()
    write(folder / "SHA256SUMS")
    with pytest.raises(UserError, match="SHA256SUMS: not "):
        check_sums(folder)


def test_only_files_have_a_sum(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=str(path)):
            sha256(path)


@pytest.mark.parametrize("name", ["é" * 100, "a" * 119 + "é", "\ud800" * 50, "caf\udce9.png"])
def test_a_shortened_name_has_at_most_120_bytes_of_text(name: str) -> None:
    for end in (False, True):
        short = shortened(name, end)
        assert len(short.encode()) <= 120
        assert short in name.encode(errors="replace").decode().replace("?", "")
