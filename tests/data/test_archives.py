"""A server of this machine that cuts connections, and archives written out by the test."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rmadapter.data.archives import fetch, inner, is_packed, unpack, unpack_once
from rmadapter.data.formats.hf_datasets import store_image
from rmadapter.errors import UserError
from tests.helpers import http_server
from tests.helpers.shots import write_tiny_images
from tests.helpers.small_images import png

CONTENT = bytes(range(256)) * 5000


class Server(http_server.Server):
    """content: what it has at any address. cuts: bytes after which it hangs up, one a request.
    asked: Range headers."""

    content, resumes = CONTENT, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if self.server.resumes else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("resumes", [True, False])
def test_a_lost_connection_is_resumed(tmp_path: Path, server: Server, resumes: bool) -> None:
    server.resumes, server.cuts, seen = resumes, [400_000, 700_000, 10], []
    fetch(server.url, tmp_path / "a" / "x.zip", sha(CONTENT), show=seen.append)
    assert (tmp_path / "a" / "x.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.zip"]
    assert seen[-1] == len(CONTENT)
    if resumes:
        assert server.asked == ["", "bytes=400000-", "bytes=1100000-", "bytes=1100010-"]
    asked = len(server.asked)
    fetch(server.url, tmp_path / "a" / "x.zip", sha(CONTENT))  # is there
    assert len(server.asked) == asked


def test_the_next_call_resumes_a_download(tmp_path: Path, server: Server) -> None:
    server.cuts = [1000] + [0] * 10
    with pytest.raises(UserError, match="run the same command again to resume"):
        fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert not (tmp_path / "x.zip").exists()
    server.cuts, server.asked = [], []
    fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    # killed between the last byte and the new name
    (tmp_path / "x.zip").rename(tmp_path / "x.zip.part")
    fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_a_file_with_a_wrong_digest_is_removed(tmp_path: Path, server: Server) -> None:
    for digest in (sha(b"other"), f"md5:{hashlib.md5(b'other').hexdigest()}"):
        with pytest.raises(UserError, match=r"the (sha256|md5) of the file is not .*was removed"):
            fetch(server.url, tmp_path / "x.zip", digest)
        assert [*tmp_path.iterdir()] == []
    with pytest.raises(UserError, match="1,280,000 bytes, more than this archive can have"):
        fetch(server.url, tmp_path / "x.zip", most=1_000_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000


def test_a_server_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*refused"):
        fetch("http://127.0.0.1:1/x.zip", tmp_path / "x.zip")


# Unpacking


def tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """name, tar's type, content or target of a link."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            info.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            file.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return path


def zipped(path: Path, *members: tuple[str, int, bytes]) -> Path:
    """name, Unix mode, content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, mode, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def below(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_unpacked_files_are_unchanged(tmp_path: Path) -> None:
    members = (
        ("d/a.txt", tarfile.REGTYPE, b"a"),
        ("./d/b", tarfile.REGTYPE, b"b" * 3_000_000),
        ("e/", b"5", b""),
    )
    for name in ("x.tar", "x.tar.gz"):
        unpack(tar(tmp_path / name, *members), tmp_path / "out" / name)
        assert below(tmp_path / "out" / name) == {"d/a.txt": b"a", "d/b": b"b" * 3_000_000}
    inner = tar(tmp_path / "inner.tar.gz", *members).read_bytes()
    unpack(
        zipped(tmp_path / "x.zip", ("z/inner.tar.gz", 0o644, inner), ("z/c", 0, b"c")),
        tmp_path / "zip",
    )
    assert below(tmp_path / "zip") == {"z/c": b"c", "z/d/a.txt": b"a", "z/d/b": b"b" * 3_000_000}
    note = "__MACOSX/z/._inner.tar.gz"  # Finder's, and no archive
    unpack(
        zipped(tmp_path / "mac.zip", ("z/inner.tar.gz", 0o644, inner), (note, 0o644, b"note")),
        tmp_path / "mac",
    )
    assert below(tmp_path / "mac") == {note: b"note", "z/d/a.txt": b"a", "z/d/b": b"b" * 3_000_000}


def test_a_tar_file_of_the_folder_itself(tmp_path: Path) -> None:
    """As `tar -cf x.tar -C photos .` writes it, and Python's make_archive."""
    archive = tar(
        tmp_path / "x.tar",
        (".", tarfile.DIRTYPE, b""),
        ("./d", tarfile.DIRTYPE, b""),
        ("./d/a.txt", tarfile.REGTYPE, b"a"),
    )
    unpack(archive, tmp_path / "out")
    assert below(tmp_path / "out") == {"d/a.txt": b"a"}


def test_too_many_empty_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in an archive inside, whose members nobody counts."""
    inner = zipped(tmp_path / "y.zip", *((str(number), 0o644, b"") for number in range(9)))
    archive = zipped(tmp_path / "x.zip", ("Y.ZIP", 0o644, inner.read_bytes()))
    unpack(archive, tmp_path / "out", 5000)
    assert len(below(tmp_path / "out")) == 9
    monkeypatch.setattr("rmadapter.data.archives.FEW", 8)
    with pytest.raises(UserError, match=r"far too many files"):
        unpack(archive, tmp_path / "in", 5000)


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no colon in a name")
def test_names_may_hold_a_colon(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "x.zip", ("cats/2024-05-01 10:30.jpg", 0o644, b"a")), tmp_path / "out")
    assert below(tmp_path / "out") == {"cats/2024-05-01 10:30.jpg": b"a"}


@pytest.mark.parametrize(
    ("written", "flag", "name"),
    [
        ("Löwe/a.png".encode(), 0, "Löwe/a.png"),  # the Finder's and Info-ZIP's
        ("Löwe/a.png".encode(), 0x800, "Löwe/a.png"),
        ("Löwe/a.png".encode("cp437"), 0, "Löwe/a.png"),
        (b"photos\\cat\\0.png", 0, "photos/cat/0.png"),  # PowerShell's
    ],
)
def test_names_in_foreign_zip_files(written: bytes, flag: int, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("x" * len(written), b"1")
    data = (tmp_path / "x.zip").read_bytes().replace(b"x" * len(written), written)
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.index(mark) + place
        data = data[:at] + flag.to_bytes(2, "little") + data[at + 2 :]
    (tmp_path / "x.zip").write_bytes(data)
    unpack(tmp_path / "x.zip", tmp_path / "out", 100)
    assert (tmp_path / "out" / name).read_bytes() == b"1"


CLIMBING = ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil", "..\\evil"]


@pytest.mark.parametrize("name", CLIMBING)
def test_members_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    for archive in (
        tar(tmp_path / "x.tar.gz", (name, tarfile.REGTYPE, b"evil")),
        tar(tmp_path / "y.tar", (name, tarfile.DIRTYPE, b"")),
        zipped(tmp_path / "x.zip", (name, 0o644, b"evil")),
    ):
        with pytest.raises(UserError, match=rf"{archive.name}: holds .*leads out of its folder"):
            unpack(archive, tmp_path / "in" / "out")
    assert below(tmp_path / "in") == {}
    assert not Path("/tmp/evil").exists()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    for number, kind in enumerate(kinds):
        archive = tar(
            tmp_path / f"{number}.tar", ("a", kind, b"/etc"), ("a/passwd", tarfile.REGTYPE, b"evil")
        )
        with pytest.raises(UserError, match="'a', which is a link or a device"):
            unpack(archive, tmp_path / "out")
    with pytest.raises(UserError, match="'a', which is a link or a device"):
        unpack(zipped(tmp_path / "x.zip", ("a", 0o120777, b"/etc/passwd")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def pax_bomb(path: Path) -> Path:
    """A header that says it is 1 GB long."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 25))
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tar(folder / "x.tar.gz", ("a", tarfile.REGTYPE, bytes(6_000_000))),
        lambda folder: zipped(
            folder / "x.zip", ("a", 0, bytes(3_000_000)), ("b", 0, bytes(3_000_000))
        ),
        lambda folder: zipped(
            folder / "x.zip",
            ("a.zip", 0, zipped(folder / "y.zip", ("b", 0, bytes(6_000_000))).read_bytes()),
        ),
    ],
)
def test_unpacked_size_is_limited(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match=r"unpacks to more than [45],\d{3},\d{3} bytes"):
        unpack(make(tmp_path), tmp_path / "out", 5_000_000)
    assert sum(map(len, below(tmp_path / "out").values())) <= 5_000_000


def test_a_tar_header_of_absurd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a header of absurd size"):
        unpack(pax_bomb(tmp_path / "x.tar.gz"), tmp_path / "out")


def test_damaged_archives_give_a_one_line_error(tmp_path: Path) -> None:
    good = {
        "x.tar.gz": tar(
            tmp_path / "a.tar.gz", ("a", tarfile.REGTYPE, bytes(range(250)) * 99)
        ).read_bytes(),
        "x.zip": zipped(tmp_path / "a.zip", ("a", 0, bytes(range(250)) * 99)).read_bytes(),
    }
    for name, content in good.items():
        for damaged in (
            b"",
            b"x" * 100,
            content[:-200],
            content[:50] + b"\xff" * 20 + content[70:],
        ):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=rf"{name}: cannot be unpacked \(") as caught:
                unpack(tmp_path / name, tmp_path / "out")
            assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".ZIP"])
def test_a_zip_file_is_unpacked_once(tmp_path: Path, suffix: str) -> None:
    archive = zip_of(tmp_path / f"pets{suffix}", pets__cat__a=png("cat"), pets__dog__b=png("dog"))
    folder = unpack_once(archive)
    assert (folder / "pets/cat/a").read_bytes() == png("cat")
    (folder / "pets/cat/a").write_bytes(b"mine")
    assert unpack_once(archive) == folder
    assert (folder / "pets/cat/a").read_bytes() == b"mine"  # not unpacked again
    os.utime(archive, (1, 1))
    assert unpack_once(archive) != folder


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_files(tmp_path: Path, suffix: str, mode: str) -> None:
    archive = tmp_path / f"pets{suffix}"
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
        member = tarfile.TarInfo("cat/a.png")
        member.size = len(png("cat"))
        file.addfile(member, io.BytesIO(png("cat")))
    assert is_packed(archive)
    assert (unpack_once(archive) / "cat/a.png").read_bytes() == png("cat")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"..__..__a.png": b"x"}, "leads out of its folder"),
        ({"__etc__a.png": b"x"}, "leads out of its folder"),
        ({"bomb.png": bytes(150_000_000)}, "more than 10[0-9],[0-9]{3},[0-9]{3} bytes"),
    ],
)
def test_hostile_archives_are_refused_and_leave_nothing(
    tmp_path: Path, cache: Path, members: dict[str, bytes], words: str
) -> None:
    archive = zip_of(tmp_path / "x.zip", **members)
    with pytest.raises(UserError, match=words):
        unpack_once(archive)
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert not list((cache / "unpacked").glob("x-*"))


def test_a_folder_that_lost_files_is_made_again(tmp_path: Path) -> None:
    """As by a program that deletes old files from a cache."""
    write_tiny_images(tmp_path / "set", "a/1.png", "a/2.png")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set"))
    folder = unpack_once(archive)
    (folder / "a/1.png").unlink()
    expected = ["1.png", "2.png"]
    assert sorted(path.name for path in (unpack_once(archive) / "a").iterdir()) == expected


def test_the_lock_holds_across_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache may be in a home folder that several machines share."""
    asked: list[Path] = []
    monkeypatch.setattr("rmadapter.support.locks.soft", lambda path: bool(asked.append(path)))
    made = unpack_once(zip_of(tmp_path / "pets.zip", a=b"x"))
    assert set(asked) == {made.with_name(f".{made.name}.part.lock")}


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"x\.zip: cannot be unpacked"):
        unpack_once(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:2100] + bytes([whole[2100] ^ 1]) + whole[2101:],  # in the header of c
        lambda whole: whole[:2048],  # behind b
        lambda whole: whole[:2300],  # within the header of c
        lambda whole: whole[: 6 * 512],  # behind c, without an end
    ],
)
def test_a_truncated_tar_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Python's tarfile takes a damaged header for the end."""
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name in "abc":
            (tmp_path / name).write_bytes(b"x" * 300)
            file.add(tmp_path / name, name)
    whole = (tmp_path / "x.tar").read_bytes()
    assert len([*unpack_once(tmp_path / "x.tar").iterdir()]) == 3
    (tmp_path / "y.tar").write_bytes(damage(whole))
    with pytest.raises(UserError, match=r"y\.tar: cannot be unpacked"):
        unpack_once(tmp_path / "y.tar")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", a=b"new")
    folder = unpack_once(archive)
    left = folder.rename(folder.with_name(f".{folder.name}.part"))
    (left / "old").write_bytes(b"half")
    assert [path.name for path in unpack_once(archive).iterdir()] == ["a"]


def test_inner_folder_of_an_archive(tmp_path: Path) -> None:
    for name in ("top/set/cat/a.png", "top/set/dog/b.png", "__MACOSX/x", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert inner(tmp_path) == tmp_path / "top/set"
    for name in ("LICENSE", "readme.txt", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert inner(tmp_path) == tmp_path / "top/set"
    (tmp_path / "labels.txt").write_bytes(b"")
    assert inner(tmp_path) == tmp_path
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    assert inner(tmp_path / "loop") == tmp_path / "loop"
    (tmp_path / "one/Test/cat").mkdir(parents=True)
    assert inner(tmp_path / "one") == tmp_path / "one"  # images to test on are not to be trained on


@pytest.mark.parametrize(
    ("name", "ends"),
    [("a b.png", "-a_b.png"), ("../../x.jpg", "-x.jpg"), (".png", "-png"), ("", "-image")],
)
def test_stored_images_are_named_by_content(cache: Path, name: str, ends: str) -> None:
    path = store_image(b"pixels", name)
    assert path.read_bytes() == b"pixels"
    assert path.parent.parent == cache / "images"
    assert path.name.endswith(ends)
    assert store_image(b"pixels", name) == path
    assert store_image(b"others", name) != path


def test_nested_archives_with_equal_names_are_refused(tmp_path: Path) -> None:
    one, other = (
        zip_of(tmp_path / name, cat__1=name.encode()).read_bytes() for name in ("a.zip", "b.zip")
    )
    with pytest.raises(UserError, match=r"holds '?cat/1'? twice, or an archive in it does"):
        unpack_once(zip_of(tmp_path / "both.zip", **{"a.zip": one, "b.zip": other}))
    apart = unpack_once(zip_of(tmp_path / "apart.zip", **{"x__a.zip": one, "y__b.zip": other}))
    assert {(apart / name).read_text() for name in ("x/cat/1", "y/cat/1")} == {"a.zip", "b.zip"}
    assert not [*(tmp_path / "cache/unpacked").glob("both*")]


def test_nested_archives_share_one_limit(tmp_path: Path) -> None:
    inner_ones = {
        f"x{i}__a.zip": zip_of(tmp_path / f"{i}.zip", data=bytes(900)).read_bytes()
        for i in range(5)
    }
    outer = zip_of(tmp_path / "outer.zip", **inner_ones)
    size = sum(map(len, inner_ones.values()))
    assert unpack(outer, tmp_path / "room", size + 4500) == 0
    with pytest.raises(UserError, match=r"more than [0-9,]+ bytes"):
        unpack(outer, tmp_path / "none", size + 4499)


def test_long_names_in_any_script(tmp_path: Path) -> None:
    assert store_image(png("cat"), f"{'漢' * 80}.png").name.endswith("漢.png")
    assert unpack_once(zip_of(tmp_path / f"{'漢' * 80}.zip", cat__1=b"x")).is_dir()
