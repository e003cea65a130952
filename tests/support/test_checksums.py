"""SHA256SUMS: as coreutils writes it, one changed bit is seen, and what a hostile file of sums may
not do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.support.checksums import check_sums, sha256, sign, write_sums

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
