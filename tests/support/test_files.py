"""Nothing half written: whatever goes wrong, the old file is what it was and no other file is
left."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
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
    parts,
    path_from,
    read_json,
    read_text,
    reserve,
    sha256,
    sign,
    user_path,
    write_json,
    write_sums,
    write_tensors,
    write_text,
)
from tests.helpers.shell import limited_file_size


def only(folder: Path, name: str, content: str) -> None:
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text("utf-8") == content


def test_home_after_an_equals_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("--out=~/runs") == f"--out={tmp_path / 'runs'}"
    for word in ("--set", "a=~b", "~/runs", "--names=a~b"):
        assert at_home(word) == word


def test_no_home_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RMADAPTER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # which pathlib takes for an unknown home
    with pytest.raises(UserError, match="there is no home folder: set RMADAPTER_CACHE"):
        cache_folder()


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "old")
    with atomic(path) as temporary:
        assert temporary.parent == path.parent  # os.replace is atomic within one file system alone
        temporary.write_text("new")
        assert path.read_text() == "old"
    only(path.parent, "a.txt", "new")


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 255, "\N{CJK UNIFIED IDEOGRAPH-732B}" * 85):
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
    only(tmp_path, "a.txt", "old")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with (
        limited_file_size(),
        pytest.raises(UserError, match=r"a\.txt: cannot be written"),
    ):
        write_text(tmp_path / "a.txt", "x" * 100_000)
    only(tmp_path, "a.txt", "old")


def test_a_full_disk_under_safetensors_is_told_the_same_way(tmp_path: Path) -> None:
    write_text(tmp_path / "a.safetensors", "old")
    with limited_file_size(), pytest.raises(UserError, match="cannot be written"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(10_000)})
    only(tmp_path, "a.safetensors", "old")


def test_tensors_are_written_without_files_that_a_kill_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors' own writer makes a file `.tmpXXXXXX` beside, which nobody could tell from the
    user's."""
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda *given, **named: pytest.fail("leaves .tmpXXXXXX")
    )
    tensors = {"x": torch.arange(6.0).view(2, 3).T, "y": torch.ones(2, dtype=torch.half)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"what": "it"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"what": "it"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_a_killed_writer_left_is_told_from_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / ".folder.abcdefgh.part").mkdir()  # somebody else's, who removes it
    for name in (".config.settings", ".bashrc.part", "a.txt.abcdefgh.part", ".x.ABCDEFGH.part"):
        (tmp_path / name).write_text("mine")
    with atomic(tmp_path / "a.txt") as one, atomic(tmp_path / "runs" / ".b") as other:
        assert parts(tmp_path) == [one]
        assert set(parts(tmp_path, tmp_path / "runs", tmp_path / "none")) == {one, other}
    assert parts(tmp_path, tmp_path / "runs") == []


@pytest.mark.parametrize("system", ["with posix_fallocate", "without"])
def test_room_is_reserved_or_refused(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "without":
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr("rmadapter.support.files.CHUNK", 3000)
    (tmp_path / "a").write_bytes(b"")
    reserve(tmp_path / "a", 10_000)
    assert (tmp_path / "a").stat().st_size == 10_000
    assert (tmp_path / "a").stat().st_blocks * 512 >= 10_000  # no hole that has to be filled later
    with (
        limited_file_size(),
        pytest.raises(UserError, match=r"b: cannot be written \(.+\)"),
        atomic(tmp_path / "b") as part,
    ):
        reserve(part, 10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run\.json: cannot be written"):
        write_json(tmp_path / "run" / "run.json", {})
    only(tmp_path, "run", "a file")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(mask) == mask  # and the umask stays as it was
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes == [0o666 & ~mask] * 2


def test_threads_do_not_read_the_masks_of_each_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: files._umask(), range(20_000)))
        assert found == {0o027}
    finally:
        assert os.umask(before) == 0o027


def test_json_round_trip(tmp_path: Path) -> None:
    value = {
        "größe": [1, 2.5, None, True],
        "斑马": {"x": -math.pi},
        "lone": os.fsdecode(b"caf\xe9.png"),
    }
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value

    text = (
        (tmp_path / "a.json").read_bytes().decode("utf-8")
    )  # valid UTF-8 in spite of the file name that is not
    assert "größe" in text
    assert json.loads(text) == value


def test_json_without_keys_that_nobody_needs(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [{"mask": [1], "b": {"mask": 2, "c": 3}}], "mask": 4})
    assert read_json(tmp_path / "a.json", without=("mask",)) == {"a": [{"b": {"c": 3}}]}


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_damaged_json_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not readable JSON"):
        read_json(tmp_path / "a.json")


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
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
    assert read_text(tmp_path / "a.txt", most=10) == "x" * 10
    with pytest.raises(UserError, match=r"more than 9 bytes"):
        read_text(tmp_path / "a.txt", most=9)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 2**40)  # takes no room on the disk
    with pytest.raises(UserError, match="more than"):
        read_json(tmp_path / "hole")
    with pytest.raises(UserError, match="more than 5 bytes"):
        read_text(Path("/proc/self/status"), most=5)  # says that it has none


@pytest.mark.parametrize(
    "text", ["[" * 5_000, '{"a":' * 100_000, "1" * 5_000], ids=["lists", "objects", "digits"]
)
def test_json_that_python_cannot_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not readable JSON"):
        read_json(tmp_path / "a.json")


def test_paths_as_users_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/new/x") == tmp_path / "new/x"
    assert user_path("ViT-B-16/openai") == Path("ViT-B-16/openai")
    (tmp_path / "loop").symlink_to("loop")
    for path in (
        "~nosuchuser/x",
        "x" * 256,
        "é" * 128,
        "a/" * 3_000,
        "a\0b",
        tmp_path / "loop",
        "\ud800",
    ):
        with pytest.raises(UserError, match="not a usable path") as caught:
            user_path(path)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_what_a_spreadsheet_would_run(start: str, tmp_path: Path) -> None:
    evil = f"{start}A1+1.png"
    (tmp_path / evil).touch()
    assert inert(evil) == f"'{evil}"
    assert (tmp_path / inert_path(evil)).is_file()
    assert not inert_path(evil).startswith(start)
    assert (inert("cat"), inert_path("a/=b.png")) == ("cat", "a/=b.png")


def test_a_link_to_nothing_is_something(tmp_path: Path) -> None:
    check_new(tmp_path / "free", tmp_path / "free.html")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match="link: already exists; choose another --to, or delete it"):
        check_new(tmp_path / "free", tmp_path / "link", option="--to")


def test_lines_of_csv_are_read_back() -> None:
    rows = [["a", "b"], ["1,2", 'say "x"'], ["", "é"]]
    text = csv_text(rows[0], rows[1:])
    assert list(csv.reader(io.StringIO(text))) == rows
    assert text.count("\r") == 0


def test_a_way_that_the_system_finds_through_links(tmp_path: Path) -> None:
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
            way = path_from(folder, tmp_path / image)
            assert (folder / way).read_text() == "a"
            assert (
                Path(way).name == Path(image).name
            )  # a link to a file keeps its name, and with it its label


def test_a_folders_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pets")
    assert {
        *map(files.own_name, ("pets", "../pets/", ".", "train/..", str(tmp_path / "pets")))
    } == {"pets"}
    assert files.own_name("") == ""


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.json").write_bytes(b"abc")
    (tmp_path / "a.yaml").write_bytes(b"")
    write_sums(tmp_path, ["b.json", "a.yaml", "never written"])
    return tmp_path


def test_lines_are_those_of_sha256sum(folder: Path) -> None:
    assert (folder / "SHA256SUMS").read_text().splitlines()[1] == f"{ABC}  b.json"
    check_sums(folder, ["a.yaml"])
    if program := shutil.which("sha256sum"):
        subprocess.run(
            [program, "--check", "--strict", "SHA256SUMS"],
            cwd=folder,
            check=True,
            capture_output=True,
        )


def test_what_has_changed_or_belongs_to_another_run_is_named(folder: Path) -> None:
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: not listed in SHA256SUMS"):
        check_sums(folder, ["run.json"])
    (folder / "b.json").write_bytes(b"abb")
    with pytest.raises(UserError, match=r"b\.json: does not match SHA256SUMS"):
        check_sums(folder)


def test_files_that_are_gone_and_folders_of_earlier_versions_pass(folder: Path) -> None:
    (folder / "a.yaml").unlink()
    check_sums(folder)
    (folder / "SHA256SUMS").unlink()
    (folder / "b.json").write_bytes(b"abb")
    check_sums(folder, ["b.json"])


@pytest.mark.parametrize(
    "line", ["abc  b.json", f"{ABC}  ../b.json", f"{ABC}  /etc/passwd", ABC, f"{ABC}  "]
)
def test_other_lines_are_refused(folder: Path, line: str) -> None:
    (folder / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(UserError, match="SHA256SUMS: not lines"):
        check_sums(folder)


@pytest.mark.parametrize("kind", ["binary", "folder", "pipe"])
def test_no_file_of_lines_is_refused(folder: Path, kind: str) -> None:
    file = folder / "SHA256SUMS"
    file.unlink()
    {
        "binary": lambda: file.write_bytes(b"\xff\xfe"),
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
    }[kind]()
    with pytest.raises(UserError, match="SHA256SUMS: not "):
        check_sums(folder)


def test_a_file_of_any_size_takes_no_memory(folder: Path) -> None:
    with open(folder / "SHA256SUMS", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(
        UserError, match=r"SHA256SUMS: not a readable text file .more than 1,048,576 bytes"
    ):
        check_sums(folder)


def test_no_file_has_no_sum(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="not readable"):
            sha256(place)


def test_a_sign_is_another_one_when_a_folder_was_saved_again(tmp_path: Path) -> None:
    assert sign(tmp_path) is None
    (tmp_path / "a").write_text("1")
    write_sums(tmp_path, ["a"])
    before = sign(tmp_path)
    assert None is not before == sign(tmp_path)
    write_sums(tmp_path, ["a"])
    assert None is not before != sign(tmp_path)
