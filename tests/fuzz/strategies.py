"""Strategies of Hypothesis for the bytes of files and requests, sound or not."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from rmadapter.support.files import csv_text
from tests.helpers import formats
from tests.helpers.small_images import png
from tests.hostile import mutate
from tests.hostile.mutate import NUMBERS, TEXTS

Bytes = SearchStrategy[bytes]

randoms = st.integers(0, 2**32).map(Random)
words = st.one_of(
    st.sampled_from(("cat", "dog", "cat_1.png", "dog_1.png", "train", "test", "1", "")),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def damaged(*corpus: bytes) -> Bytes:
    """Return strategy: one of the sound contents, damaged up to three times."""

    def build(data: bytes, rng: Random, times: int) -> bytes:
        for _ in range(times):
            data = mutate.damage(rng, data)[1]
        return data

    return st.builds(build, st.sampled_from(corpus), randoms, st.integers(0, 3))


def changed_json(*corpus: Any) -> Bytes:
    """Return strategy: one of the sound values as JSON, changed in up to five places, or damaged as
    a text."""

    def build(value: Any, rng: Random, times: int) -> bytes:
        for _ in range(times):
            value = mutate.alter(rng, value)[1]
        return mutate.damage_json(rng, value)[1] if rng.random() < 0.3 else mutate.to_json(value)

    return st.builds(build, st.sampled_from(corpus), randoms, st.integers(0, 5))


@cache
def written(writer: Callable[[Path], Path], file: str = "") -> bytes:
    """Return what one of the tests' writers of a format writes. file: in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = writer(Path(folder, "home"))
        return (path / file if file else path).read_bytes()


# Weights


@cache
def safetensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a": torch.ones(2, 3), "b": torch.arange(4)}, {"format": "pt"})


def headers() -> Bytes:
    """Return strategy: safetensors files whose header is changed as JSON, or damaged."""
    size = int.from_bytes(safetensors()[:8], "little")
    header, rest = json.loads(safetensors()[8 : 8 + size]), safetensors()[8 + size :]

    def packed(header: bytes, off: int) -> bytes:
        return max(len(header) + off, 0).to_bytes(8, "little") + header + rest

    offsets = st.sampled_from((0, 0, 0, 0, 1, -1, 10**6, 10**12))
    return st.one_of(st.builds(packed, changed_json(header), offsets), damaged(safetensors()))


# Data


def csv_files() -> Bytes:
    """Return strategy: tables of any cells, delimiters and line ends, or damaged ones."""
    kinds = ("split", "group", "labels", "Image", "", "x", "Path")
    extra = st.lists(st.sampled_from(kinds), max_size=3, unique=True)
    header = extra.flatmap(lambda extra: st.permutations(["path", "label", *extra]))

    def build(
        header: list[str], rows: list[list[str]], mark: str, end: str, start: str, rng: Random
    ) -> bytes:
        rows = [row[: len(header)] for row in rows]
        text = start + csv_text(header, rows, end).replace(",", mark)
        return mutate.damage(rng, utf8(text))[1] if rng.random() < 0.3 else utf8(text)

    row = st.one_of(
        st.sampled_from((["cat_1.png", "cat", "train", "a", "b"], ["a/b.png", "x", "y", "z", "1"])),
        st.lists(words, min_size=5, max_size=5),
        st.lists(words, max_size=5),
    )
    return st.builds(
        build,
        header,
        st.lists(row, max_size=6),
        st.sampled_from(",,,;\t|"),
        st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n")),
        st.sampled_from(("", "", "", "\ufeff", "\n", " ")),
        randoms,
    )


def json_lines() -> Bytes:
    rows = st.dictionaries(
        st.sampled_from(("path", "label", "split", "group", "labels", "", "x")),
        st.one_of(words, st.sampled_from(NUMBERS), st.none(), st.lists(words, max_size=3)),
        max_size=4,
    )
    lines = st.lists(rows, max_size=5).map(lambda all: b"\n".join(map(mutate.to_json, all)))
    return st.one_of(lines, damaged(written(formats.json_lines)))


@cache
def tables() -> tuple[bytes, ...]:
    """Return parquet files of texts, of dictionaries and of lists."""
    import pyarrow as pa
    from pyarrow import parquet

    contents = []
    paths, labels = ["cat_1.png", "dog_1.png"] * 9, ["cat", "dog"] * 9
    for column in (labels, pa.array(labels).dictionary_encode(), [[one] for one in labels]):
        for codec in ("none", "snappy", "zstd"):
            file = io.BytesIO()
            parquet.write_table(pa.table({"path": paths, "label": column}), file, compression=codec)
            contents.append(file.getvalue())
    return tuple(contents)


@cache
def arrow_streams() -> tuple[bytes, ...]:
    import pyarrow as pa

    contents = []
    for column in (
        ["cat", "dog", None],
        pa.array(["a", "b", "a"]).dictionary_encode(),
        [[1], [], []],
    ):
        table = pa.table({"label": column, "number": [1.0, 2.0, 3.0]})
        file = io.BytesIO()
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        contents.append(file.getvalue())
    return tuple(contents)


def annotations() -> Bytes:
    """Return strategy: JSON of COCO, Label Studio and FiftyOne."""
    files = (
        written(formats.coco_file),
        written(formats.label_studio),
        written(formats.fiftyone, "labels.json"),
        written(formats.fiftyone_samples, "samples.json"),
    )
    values = [json.loads(data) for data in files]
    region = {"type": "rectanglelabels", "original_width": 8, "original_height": 8,
              "value": {"rectanglelabels": ["cat"], "x": 1.0, "y": 1, "width": 50, "height": 50,
                        "rotation": 30}}  # fmt: skip
    turned = [{"id": 1, "data": {"image": "cat_1.png"}, "annotations": [{"result": [region]}]}]
    short = [{"image": "/data/upload/1/cat_1.png", "choice": "cat", "label": [region["value"]]}]
    return changed_json(*values, turned, short)


def yolo() -> Bytes:
    """Return strategy: a data.yaml, a NUL, and the text of boxes of one image."""
    numbers = st.one_of(
        st.sampled_from(("0", "1", "0.5", "-1", "1e400", "nan", "inf", "x", "٣", "9" * 5000)),
        st.floats().map(str),
    )
    lines = st.lists(st.lists(numbers, max_size=9).map(" ".join), max_size=4).map("\n".join)
    values = {"train": "images/train", "names": ["cat", "dog"], "path": ".", "kpt_shape": [1, 2]}
    yaml = changed_json(values, {**values, "names": {"0": "cat", "1": "dog"}})
    return st.one_of(
        st.builds(lambda yaml, lines: yaml + b"\0" + lines.encode(), yaml, lines),
        damaged(b"train: images/train\nnames: [cat, dog]\n\0001 0.5 0.5 0.5 0.25\n"),
    )


# Archives


names = st.one_of(
    st.sampled_from((
        "cat/1.png", "dog/1.png", "1.png", "1.cls", "1.json", "1.seg.png", "classnames.txt", "a/",
        "metadata.csv", "train/cat/1.png", "../x.png", "/x.png", "C:\\x.png", "a\\b.png", "in.zip",
        "in.tar", "images.csv", "model/model.json", "__MACOSX/._1.png", ".hidden", ".", "..", "",
        "_annotations.coco.json", "data.yaml", "labels.json", "a" * 300 + ".png",
    )),
    words,
)  # fmt: skip
contents = st.one_of(
    st.just(png("cat")),
    st.sampled_from((b"", b"cat", b"0", b'{"label": "cat"}', b"path,label\ncat/1.png,cat\n")),
    words.map(utf8),
    changed_json({"label": "cat", "class": 1}),
)


def tar_of(members: Sequence[tuple[str, bytes]], mode: Any = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name.encode("utf-8", "replace").decode().replace("\0", "?"))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zip_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    named = {name.encode("utf-8", "replace").decode()[:60_000]: data for name, data in members}
    return mutate.packed({name: data for name, data in named.items() if name.strip("\0")})


def with_large_end(archive: bytes, rng: Random) -> bytes:
    """Return a zip with the further end that zips of over 4 GB have, with odd numbers."""
    place = archive.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<II", archive, place + 12)
    numbers = [44, 45, 45, 0, 0, 1, 1, size, start]
    if rng.random() < 0.5:
        numbers[rng.randrange(9)] = rng.choice((0, 1, 2**16 - 1))
    if rng.random() < 0.5:
        numbers[rng.choice((0, 5, 6, 7, 8))] = rng.choice((2**31, 2**63, 2**64 - 1))
    large = b"PK\6\6" + struct.pack("<QHHIIQQQQ", *numbers)
    where = rng.choice((place, place, 0, 2**31, 2**63 - 1, 2**63, 2**64 - 1))
    locator = b"PK\6\7" + struct.pack("<IQI", 0, where, 1)
    end = bytearray(archive[place:])
    end[12:20] = rng.choice((bytes(end[12:20]), b"\xff" * 8))
    return archive[:place] + large + locator + bytes(end)


def archives() -> Bytes:
    """Return strategy: zip and tar files of odd names and contents, nested and damaged ones."""
    members = st.lists(st.tuples(names, contents), max_size=5)
    flat = st.one_of(
        members.map(zip_of), members.map(tar_of), members.map(lambda some: tar_of(some, "w:gz"))
    )
    nested = st.builds(lambda name, data: zip_of([(name, data), ("cat/1.png", png("cat"))]),
                       st.sampled_from(("in.zip", "a/in.tar", "in.tgz")), flat)  # fmt: skip
    large = st.builds(with_large_end, members.map(zip_of), randoms)
    sound = [written(one) for one in (formats.zip_file, formats.tar_file, formats.shard)]
    whole = st.one_of(flat, nested, large)
    rough = st.builds(lambda data, rng: mutate.damage(rng, data)[1], whole, randoms)
    return st.one_of(whole, rough, damaged(*sound))


# Requests


def requests() -> Bytes:
    """Return strategy: requests in HTTP, forms and JSON, with odd headers and cut bodies."""
    image = png("cat")
    paths = st.sampled_from((
        "/predict", "/embed", "/", "/models/toy/predict", "/models/x/embed", "/predict?top=0",
        "/predict?top=9999999999999999999999&skip_bad=maybe", "/metrics", "/info", "/%00", "//",
        "/models/%ff/predict", "/ready", "/docs", "/?x", "/predict?top=3&skip_bad=1",
    ))  # fmt: skip
    kinds = st.sampled_from((
        "multipart/form-data; boundary=edge", "application/json", "multipart/form-data", "",
        "multipart/form-data; boundary*0=ed; boundary*1=ge", "application/json; charset=utf-7",
        "multipart/form-data; boundary*=utf-8''edge", "multipart/form-data; boundary*=x'y'edge",
        "multipart/form-data; boundary=edge; charset=utf-16", "text/plain", "multipart/mixed",
        'multipart/form-data; boundary="e\\"dge"', "multipart/form-data; boundary=" + "x" * 5000,
    ))  # fmt: skip
    fields = st.sampled_from((
        "X-API-Key", "Authorization", "Content-Length", "Host", "Accept", "X", "", "Content-Type",
        "Origin", "Expect", "Transfer-Encoding", "Range",
    ))  # fmt: skip
    values = st.one_of(words, st.sampled_from(("Basic !!", "Bearer x", "-1", "9" * 30, "a" * 9000)))
    more = st.lists(st.tuples(fields, values), max_size=3)
    disposition = st.sampled_from((
        'form-data; name="files"; filename="a.png"', 'form-data; name="files"', "form-data", "",
        "form-data; name=files; filename*=utf-8''%ff%00.png",
        'form-data; name="files"; filename=""',
        'form-data; name="top"', 'attachment; name="files"; filename="../../a"', "\xff",
    ))  # fmt: skip
    data = st.one_of(st.just(image), contents, damaged(image))
    parts = st.lists(st.tuples(disposition, data), max_size=4)

    def form(parts: list[tuple[str, bytes]], end: bytes) -> bytes:
        body = b""
        for where, content in parts:
            head = f"--edge\r\nContent-Disposition: {where}\r\n\r\n".encode("latin-1")
            body += head + content + b"\r\n"
        return body + end

    forms = st.builds(form, parts, st.sampled_from((b"--edge--\r\n", b"--edge--\r\n", b"")))
    bodies = st.one_of(forms, changed_json({"images": ["iVBORw0KGgo=", "data:,x"]}), contents)

    def build(path: str, kind: str, more: list[tuple[str, str]], body: bytes, rng: Random) -> bytes:
        lines = [f"POST {path}", f"content-type: {kind}", *(f"{n}: {v}" for n, v in more)]
        head = "\r\n".join(" ".join(line.splitlines()) for line in lines)
        data = body if rng.random() < 0.7 else mutate.damage(rng, body)[1]
        return utf8(head) + b"\r\n\r\n" + data

    return st.builds(build, paths, kinds, more, bodies, randoms)
