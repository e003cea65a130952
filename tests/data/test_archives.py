"""Archives from a server that cuts connections are resumed and checked; those that the tests write
are unpacked once, below their folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rmadapter.data import archives as module
from rmadapter.data.archives import (
    fetch,
    inner,
    is_packed,
    listing_size,
    unpack,
    unpack_once,
    unpack_zip,
)
from rmadapter.data.budget import Budget
from rmadapter.errors import UserError
from tests.helpers import http_server

CONTENT = bytes(range(256)) * 5000


class Server(http_server.Server):
    """content: what it has at any address. cuts: bytes after which it hangs up, one a request.
    ranges: Range headers of requests."""

    content, resumes = CONTENT, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.ranges.append(wanted)
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
    path = tmp_path / "a" / "x.zip"
    fetch(server.url, path, sha(CONTENT), show=seen.append)
    assert below(tmp_path / "a") == {"x.zip": CONTENT}
    assert seen[-1] == len(CONTENT)
    if resumes:
        assert server.ranges == ["", "bytes=400000-", "bytes=1100000-", "bytes=1100010-"]
    count = len(server.ranges)
    fetch(server.url, path, sha(CONTENT))  # is there
    assert len(server.ranges) == count


def test_the_next_call_resumes_a_download(tmp_path: Path, server: Server) -> None:
    server.cuts = [1000] + [0] * 10
    with pytest.raises(UserError, match="run the same command again to resume"):
        fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert not (tmp_path / "x.zip").exists()
    server.cuts, server.ranges = [], []
    fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert server.ranges == ["bytes=1000-"]
    assert below(tmp_path) == {"x.zip": CONTENT}
    # killed between the last byte and the new name
    (tmp_path / "x.zip").rename(tmp_path / "x.zip.part")
    fetch(server.url, tmp_path / "x.zip", sha(CONTENT))
    assert below(tmp_path) == {"x.zip": CONTENT}


def test_a_file_with_a_wrong_digest_or_size_is_refused(tmp_path: Path, server: Server) -> None:
    for digest in (sha(b"other"), f"md5:{hashlib.md5(b'other').hexdigest()}"):
        with pytest.raises(UserError, match=r"the (sha256|md5) of the file is not .*was removed"):
            fetch(server.url, tmp_path / "x.zip", digest)
        assert below(tmp_path) == {}
    with pytest.raises(UserError, match="1,280,000 bytes, more than this archive can have"):
        fetch(server.url, tmp_path / "x.zip", most=1_000_000)
    assert sum(map(len, below(tmp_path).values())) <= 1_000_000


def test_a_server_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*refused"):
        fetch("http://127.0.0.1:1/x.zip", tmp_path / "x.zip")


# Unpacking


def tar(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """members: name, and content or target of a link. A name that ends in / is a folder's."""
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else kind
            if info.isreg():
                info.size = len(content)
            else:
                info.linkname = content.decode()
            file.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def zipped(path: Path, *members: tuple[str, bytes], mode: int = 0o644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def below(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(archive: Path, words: str, most: int = 1 << 40) -> None:
    """The archive is refused by name, and nothing is unpacked outside its folder."""
    folder = archive.parent / "in"
    with pytest.raises(UserError, match=rf"{archive.name}: .*{words}") as caught:
        unpack(archive, folder / "out", Budget.of_disk(most))
    assert "\n" not in str(caught.value)
    assert sum(map(len, below(folder).values())) <= most
    assert {name.partition("/")[0] for name in below(folder)} <= {"out"}


LARGE = b"b" * 3_000_000
MEMBERS = (("d/a.txt", b"a"), ("./d/b", LARGE), ("e/", b""))


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_unpacked_files_are_unchanged(tmp_path: Path, name: str) -> None:
    inside = tar(tmp_path / name, *MEMBERS)
    unpack(inside, tmp_path / "out", Budget())
    assert below(tmp_path / "out") == {"d/a.txt": b"a", "d/b": LARGE}
    packed, note = (f"z/{name}", inside.read_bytes()), f"__MACOSX/z/._{name}"
    unpack(
        zipped(tmp_path / "x.zip", packed, ("z/c", b"c"), (note, b"n")), tmp_path / "zip", Budget()
    )
    # an archive inside is unpacked, too, but not Finder's note
    assert below(tmp_path / "zip") == {"z/c": b"c", note: b"n", "z/d/a.txt": b"a", "z/d/b": LARGE}


def test_a_tar_file_of_the_folder_itself(tmp_path: Path) -> None:
    """As `tar -cf x.tar -C photos .` writes it, and Python's make_archive."""
    archive = tar(tmp_path / "x.tar", ("./", b""), ("./d/", b""), ("./d/a.txt", b"a"))
    unpack(archive, tmp_path / "out", Budget())
    assert below(tmp_path / "out") == {"d/a.txt": b"a"}


def test_too_many_empty_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an archive inside, whose members nobody counts."""
    inside = zipped(tmp_path / "y.zip", *((str(number), b"") for number in range(9)))
    archive = zipped(tmp_path / "x.zip", ("Y.ZIP", inside.read_bytes()))
    unpack(archive, tmp_path / "out", Budget.of_disk(5000))
    assert len(below(tmp_path / "out")) == 9
    monkeypatch.setattr("rmadapter.data.budget.FREE_FILES", 57)  # 60 are counted, 58 allowed
    with pytest.raises(UserError, match=" files, the limit"):
        unpack(archive, tmp_path / "in", Budget.of_disk(5000))


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no colon in a name")
def test_names_may_hold_a_colon(tmp_path: Path) -> None:
    unpack(
        zipped(tmp_path / "x.zip", ("cats/2024-05-01 10:30.jpg", b"a")), tmp_path / "out", Budget()
    )
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
    file = zipped(tmp_path / "x.zip", ("x" * len(written), b"1"))
    data = file.read_bytes().replace(b"x" * len(written), written)
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.index(mark) + place
        data = data[:at] + flag.to_bytes(2, "little") + data[at + 2 :]
    file.write_bytes(data)
    unpack(file, tmp_path / "out", Budget.of_disk(100))
    assert (tmp_path / "out" / name).read_bytes() == b"1"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_members_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    for archive in (
        tar(tmp_path / "x.tar.gz", (name, b"evil")),
        tar(tmp_path / "y.tar", (f"{name}/", b"")),
        zipped(tmp_path / "x.zip", (name, b"evil")),
    ):
        refused(archive, "leads out of its folder")
    assert below(tmp_path / "in") == {}
    assert not Path("/tmp/evil").exists()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        link = tar(tmp_path / "x.tar", ("a", b"/etc"), ("a/passwd", b"evil"), kind=kind)
        refused(link, "'a', which is a link or a device")
    link = zipped(tmp_path / "x.zip", ("a", b"/etc/passwd"), mode=0o120777)
    refused(link, "'a', which is a link or a device")
    assert not (tmp_path / "in/out").exists()


def test_unpacked_size_is_limited(tmp_path: Path) -> None:
    half, whole = bytes(3_000_000), bytes(6_000_000)
    nested = zipped(tmp_path / "y.zip", ("b", whole)).read_bytes()
    for archive in (
        tar(tmp_path / "x.tar.gz", ("a", whole)),
        zipped(tmp_path / "two.zip", ("a", half), ("b", half)),
        zipped(tmp_path / "nested.zip", ("a.zip", nested)),
    ):
        with pytest.raises(UserError, match=r"more than [45],\d{3},\d{3} bytes"):
            unpack(archive, tmp_path / archive.stem, Budget.of_disk(5_000_000))
        assert sum(map(len, below(tmp_path / archive.stem).values())) <= 5_000_000


def test_nested_archives_share_one_limit(tmp_path: Path) -> None:
    nested = zipped(tmp_path / "a.zip", ("data", bytes(900))).read_bytes()
    outer = zipped(tmp_path / "outer.zip", *((f"x{i}/a.zip", nested) for i in range(5)))
    size = 5 * len(nested)
    budget = Budget.of_disk(size + 4500)
    unpack(outer, tmp_path / "room", budget)
    assert budget.left("disk") == 0
    with pytest.raises(UserError, match=r"more than [0-9,]+ bytes"):
        unpack(outer, tmp_path / "none", Budget.of_disk(size + 4499))


def test_a_tar_header_of_absurd_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 25))
    refused(tmp_path / "x.tar.gz", "a header of absurd size")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_damaged_archives_give_a_one_line_error(tmp_path: Path, name: str) -> None:
    write = zipped if name == "x.zip" else tar
    content = write(tmp_path / name, ("a", bytes(range(250)) * 99)).read_bytes()
    broken = content[:50] + b"\xff" * 20 + content[70:]
    for damaged in (b"", b"x" * 100, b"PK no zip", content[:-200], broken):
        (tmp_path / name).write_bytes(damaged)
        refused(tmp_path / name, r"cannot be unpacked \(")


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
    file = tar(tmp_path / "x.tar", *((name, b"x" * 300) for name in "abc"))
    unpack(file, tmp_path / "whole", Budget())
    assert len(below(tmp_path / "whole")) == 3
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"x\.tar: cannot be unpacked"):
        unpack(file, tmp_path / "out", Budget())


# Unpacked once, into the cache


@pytest.mark.parametrize("suffix", [".zip", ".ZIP", ".tar", ".tar.gz", ".tgz"])
def test_an_archive_is_unpacked_once_unless_it_changes(tmp_path: Path, suffix: str) -> None:
    write = zipped if suffix.lower() == ".zip" else tar
    archive = write(tmp_path / f"{'漢' * 80}{suffix}", ("cat/a", b"a"), ("dog/b", b"b"))
    assert is_packed(archive)
    folder = unpack_once(archive, Budget())
    assert below(folder) == {"cat/a": b"a", "dog/b": b"b"}
    (folder / "cat/a").write_bytes(b"mine")
    assert unpack_once(archive, Budget()) == folder
    assert (folder / "cat/a").read_bytes() == b"mine"
    os.utime(archive, (1, 1))
    assert unpack_once(archive, Budget()) != folder


def test_another_archive_of_the_same_size_and_time(tmp_path: Path) -> None:
    """As `cp -p` and `rsync -t` leave it."""
    archive = zipped(tmp_path / "x.zip", ("cat/a", b"a"))
    other = zipped(tmp_path / "y.zip", ("dog/a", b"a"))
    for file in (archive, other):
        os.utime(file, (1, 1))
    assert archive.stat().st_size == other.stat().st_size
    assert below(unpack_once(archive, Budget())) == {"cat/a": b"a"}
    other.replace(archive)
    assert below(unpack_once(archive, Budget())) == {"dog/a": b"a"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../../a.png", b"x", "leads out of its folder"),
        ("bomb.png", bytes(150_000_000), "more than 10[0-9],[0-9]{3},[0-9]{3} bytes"),
    ],
)
def test_hostile_archives_leave_nothing_in_the_cache(
    tmp_path: Path, cache: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        unpack_once(zipped(tmp_path / "x.zip", (name, content)), Budget())
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert not list((cache / "unpacked").glob("x-*"))


def test_an_archive_is_unpacked_again_if_files_are_missing_or_left_over(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", ("a/1", b"1"), ("a/2", b"2"))
    folder = unpack_once(archive, Budget())
    (folder / "a/1").unlink()  # as by a program that deletes old files from a cache
    assert below(unpack_once(archive, Budget())) == {"a/1": b"1", "a/2": b"2"}
    left = folder.rename(folder.with_name(f".{folder.name}.part"))  # as by a killed process
    (left / "old").write_bytes(b"half")
    assert below(unpack_once(archive, Budget())) == {"a/1": b"1", "a/2": b"2"}


def test_nested_archives_with_equal_names_are_refused(tmp_path: Path, cache: Path) -> None:
    parts = [zipped(tmp_path / name, ("cat/1", name.encode())) for name in ("a.zip", "b.zip")]
    one, other = (part.read_bytes() for part in parts)
    with pytest.raises(UserError, match=r"holds '?cat/1'? twice, or an archive in it does"):
        unpack_once(zipped(tmp_path / "both.zip", ("a.zip", one), ("b.zip", other)), Budget())
    assert not [*(cache / "unpacked").glob("both*")]
    apart = unpack_once(
        zipped(tmp_path / "apart.zip", ("x/a.zip", one), ("y/b.zip", other)), Budget()
    )
    assert below(apart) == {"x/cat/1": b"a.zip", "y/cat/1": b"b.zip"}


def test_the_inner_folder_is_below_folders_and_texts_about_the_data(tmp_path: Path) -> None:
    def touch(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    touch("top/set/cat/a.png", "top/set/dog/b.png", "__MACOSX/x", ".DS_Store")
    assert inner(tmp_path) == tmp_path / "top/set"
    touch("LICENSE", "readme.txt", "notes.md")
    assert inner(tmp_path) == tmp_path / "top/set"
    touch("labels.txt")
    assert inner(tmp_path) == tmp_path
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    touch("one/Test/cat/a.png")  # images to test on are not to be trained on
    for name in ("loop", "one"):
        assert inner(tmp_path / name) == tmp_path / name


# Zips of unknown origin


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../x.png": b""}, "leads out of its folder"),
        ({"a/b.png": b"\0" * 3000}, "bytes on disk, the limit"),
        ({str(i): b"" for i in range(5)}, "holds 5 files, and at most 4 are allowed"),
        (None, "not a readable zip file"),
        ({"newer": b""}, "not a readable zip file .zip file version 9.9"),
    ],
)
def test_harmful_zips_are_refused(
    tmp_path: Path, members: dict[str, bytes] | None, message: str
) -> None:
    path = tmp_path / "x.zip"
    zipped(path, *members.items()) if members is not None else path.write_bytes(b"no")
    if members == {"newer": b""}:  # its directory names the version of zip that it needs
        data = path.read_bytes()
        directory = data.index(b"PK\1\2")
        path.write_bytes(data[: directory + 6] + b"\x63\0" + data[directory + 8 :])
    with pytest.raises(UserError, match=message):
        unpack_zip(path, tmp_path / "out", 2000, 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("large", [False, True])
def test_list_of_a_zip_is_measured_before_it_is_read(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: in the format for more than 65,535 files."""
    if large:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = zipped(tmp_path / "x.zip", *((f"a/{i}.png", b"") for i in range(9)))
    with zipfile.ZipFile(path) as opened:
        bytes_listed = path.stat().st_size - opened.start_dir - (98 if large else 22)
    assert listing_size(path) == bytes_listed
    monkeypatch.setattr(module, "MAX_LISTING", bytes_listed - 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UserError, match=r"x\.zip"):
        unpack_zip(path, tmp_path / "out", 2000, 4)


@pytest.mark.parametrize("place", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_list_of_a_zip_is_measured_wherever_it_is_said_to_end(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may look at another place."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = zipped(tmp_path / "x.zip", *((f"a/{i}.png", b"") for i in range(9)))
    bytes_listed, data = listing_size(path), bytearray(path.read_bytes())
    locator = data.rindex(b"PK\6\7")
    data[locator + 8 : locator + 16] = place.to_bytes(8, "little")
    path.write_bytes(data)
    assert listing_size(path) == bytes_listed
    monkeypatch.setattr(module, "MAX_LISTING", bytes_listed - 1)
    with pytest.raises(UserError, match=r"x\.zip"):
        unpack_zip(path, tmp_path / "out", 2000, 4)
