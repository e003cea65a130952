"""Parsers, and the bytes that each gets: it returns a value or raises UserError, in bounded time
and memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from rmadapter.artifacts.model_file import Model, read_weights
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones.names import check_name
from rmadapter.backbones.numbers import check_numbers
from rmadapter.backbones.trust import CONFIG, check_config, check_folder
from rmadapter.data.archives import unpack_zip
from rmadapter.data.budget import Budget
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.base import ReadOptions, check_inside, listed_image
from rmadapter.data.formats.columnar import check_arrow
from rmadapter.data.formats.registry import list_images, locate, refuse_address
from rmadapter.data.formats.tables import header, scan_table
from rmadapter.data.label_files import parents_of, read_names, read_parents
from rmadapter.data.names import prompt_names, split_named, typed_name
from rmadapter.errors import UserError, is_text, one_line, quoted
from rmadapter.prompts import filled
from rmadapter.runs.request import Request, read_config
from rmadapter.settings import parse_overrides, settings_of
from rmadapter.support.files import (
    SUMS,
    check_sums,
    csv_text,
    inert,
    inert_path,
    last_part,
    sha256,
    shortened,
    user_path,
)
from rmadapter.support.hub import check_repository
from rmadapter.task import COMMON_SETTINGS, check_templates
from rmadapter_research.texts import Named, read_answers, read_text_file
from rmadapter_studio.hosts import refusal
from rmadapter_studio.images import ImageStore, safe_name
from tests.fuzz import strategies
from tests.fuzz.strategies import Bytes, changed_json, damaged, utf8, words
from tests.helpers.formats import NAMES
from tests.helpers.small_images import write_images
from tests.hostile import harness
from tests.hostile.harness import MEGABYTES, SECONDS, Changed


class Target(NamedTuple):
    """inputs: returns a strategy of bytes. check: called with bytes and an empty folder; passes the
    bytes to the parser. seconds, megabytes: that one input may take. examples: of the short
    pass."""

    inputs: Callable[[], Bytes]
    check: Callable[[bytes, Path], object]
    seconds: float = SECONDS
    megabytes: float = MEGABYTES
    examples: int = 20


def judge(name: str, content: bytes) -> harness.Result:
    """Pass an input to a target, and judge the outcome as `make hostile` does."""
    target = TARGETS[name]
    kind = harness.Kind(
        lambda *_: iter(()),
        lambda _, data, folder: target.check(data, folder),
        target.seconds,
        target.megabytes,
    )
    return harness.judge(name, kind, "", content)


def require(condition: object, what: str) -> None:
    """Raise Changed, a failure, unless a condition holds of what was accepted."""
    if not condition:
        raise Changed(what[:300])


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Keep what is unpacked and cut out in a folder of its own."""
    before = os.environ.get("RMADAPTER_CACHE")
    os.environ["RMADAPTER_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        del os.environ["RMADAPTER_CACHE"]
        if before is not None:
            os.environ["RMADAPTER_CACHE"] = before


# Weights


def check_weights(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_text('{"hidden_size": 3, "num_hidden_layers": 2}')
    file = folder / "model.safetensors"
    file.write_bytes(data)
    check_numbers(folder)
    said = Model.model_construct(sha256=sha256(file))
    return read_weights(RunFolder(folder), said)


def model_configs() -> Bytes:
    from tests.helpers.models import CLIP_TEXT

    vision = {"layers": 2, "width": 8, "patch_size": 8, "image_size": 32, "mlp_ratio": 4.0}
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {**CLIP_TEXT}}
    whole = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "size": 32}}
    return changed_json(whole, {**model, "hidden_size": 8, "layers": [1, 2]})


def check_model_config(data: bytes, folder: Path) -> object:
    (folder / CONFIG).write_bytes(data)
    (folder / "model.safetensors").write_bytes(strategies.safetensors())
    check_folder(folder)
    check_numbers(folder)
    return check_config(folder)


# Data


def check_table(suffix: str) -> Callable[[bytes, Path], object]:
    def check(data: bytes, folder: Path) -> object:
        """The rows that were read are read again from a CSV of ours."""
        file = folder / f"t{suffix}"
        file.write_bytes(data)
        options = ReadOptions()
        names, splits = header(file), scan_table(file)
        inputs = list_images(file, options)
        count = sum(map(len, splits.values()))
        require(inputs and len(inputs.files) == count, "another number of images than of rows")
        rows = [row for split in splits.values() for row in split]
        cells = [[str(row.image.relative_to(folder)), row.label, row.group] for row in rows]
        again = folder / "again.csv"
        # of a path, Path drops what means nothing; a path need not be text
        if all(cell[0].strip() == cell[0] not in ("", ".") and is_text(cell[0]) for cell in cells):
            text = csv_text(("path", "label", "group"), cells)
            again.write_text(text, encoding="utf-8", newline="")
            require(scan_table(again) == {"all": rows}, "other rows when they are read again")
        return names

    return check


def check_columns(data: bytes, folder: Path) -> object:
    file = folder / "data.arrow"
    file.write_bytes(data)
    budget = Budget()
    budget.allow_file(len(data))
    try:
        check_arrow(file, budget)
        import pyarrow as pa

        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            return stream.read_all().to_pylist()
    except UserError:
        raise
    except Exception as error:  # as in `hf_datasets`, where pyarrow raises nearly anything
        raise UserError(type(error).__name__) from error


def check_data(file: Path, crops: bool = False) -> object:
    """Read data as `fit` does, but no pixels except of boxes."""
    with own_cache(file.parent):
        found = list_images(file, ReadOptions())
        listing = locate(file).read()
        return found, listing, locate(file, crops=True).read() if crops else None


def check_annotations(data: bytes, folder: Path) -> object:
    write_images(folder, *NAMES, *(f"data/{name}" for name in NAMES))
    (folder / "a.json").write_bytes(data)
    return check_data(folder / "a.json", crops=True)


def check_yolo(data: bytes, folder: Path) -> object:
    yaml, _, boxes = data.partition(b"\0")
    write_images(folder, *(f"images/train/{name}" for name in NAMES))
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/cat_1.txt").write_bytes(boxes)
    (folder / "data.yaml").write_bytes(yaml)
    return check_data(folder / "data.yaml", crops=True)


def archive_in(data: bytes, folder: Path) -> Path:
    """Write an archive under a name that fits its beginning or end."""
    kind = ".tgz" if data[:2] == b"\x1f\x8b" else ".zip" if b"PK\5\6" in data[-100:] else ".tar"
    file = folder / f"in/data{kind}"
    file.parent.mkdir()
    file.write_bytes(data)
    return file


def check_archive(data: bytes, folder: Path) -> object:
    file = archive_in(data, folder)
    try:
        return check_data(file)
    finally:
        outside = [path.name for path in folder.iterdir() if path.name not in ("in", "cache")]
        require(not outside, f"wrote {outside}")


def check_shards(data: bytes, folder: Path) -> object:
    file = archive_in(data, folder)
    return check_data(file.parent)


def check_upload(data: bytes, folder: Path) -> object:
    """A zip that a visitor of the app sends."""
    (folder / "visitor").mkdir()
    store = ImageStore(folder / "visitor")
    archive = folder / "a.zip"
    archive.write_bytes(data)
    try:
        bad = store.add_folder(unpack_zip(archive, folder / "unpacked", 2 * 10**9, 40_000))
    finally:
        outside = {path.name for path in folder.iterdir()} - {"visitor", "unpacked", "a.zip"}
        require(not outside, f"wrote {outside}")
    require(all(len(line) < harness.LINE for line in bad), "a long line")
    return json.dumps([bad, [*store.classes]])


def check_matlab(data: bytes, folder: Path) -> object:
    from tests.hostile import matlab

    return matlab.check(f"{matlab.FLOWERS}/", data, folder)


def matlab_files() -> Bytes:
    from tests.hostile import matlab

    files = [data for name, data in matlab.cases(1, 60) if name.startswith(matlab.FLOWERS)]
    return damaged(*filter(None, files))


def _read_answers(file: Path) -> object:
    return read_answers(file, [Named("cat", "cat"), Named("dog_1", "dog")])


def _read_parents(file: Path) -> object:
    return parents_of(read_parents(file), ["cat", "dog"], file)


# files of a run or of the user: their reader, and a sound value
LISTS: dict[str, tuple[Callable[[Path], object], Any]] = {
    "split.json": (
        read_split,
        {"digest": "0", "classes": ["cat", "dog"], "labels": [0, 1], "val": None,
         "sha256": ["00", "01"],
         "train": [["cat_1.png", 0, "0"], ["dog_1.png", 1, "0"]]},
    ),
    "texts.json": (
        read_text_file,
        {"texts": {"cat": ["a cat"], "sea_horse": ["b", "c"]}, "sources": [{"who": "me"}],
         "left_out": {"cat": ["d"]}},
    ),
    "plain.json": (read_text_file, {"cat": ["a cat"], "sea_horse": ["b", "c"]}),
    "answers.jsonl": (_read_answers, [{"class": "cat", "texts": ["a"]}, {"dog": "b"}]),
    "answers.txt": (_read_answers, "## Cat\n- a cat\n2. a pet\ndog: it barks\n"),
    "parents.json": (_read_parents, {"cat": ["mammal", "animal"], "dog": "mammal"}),
    "parents.csv": (_read_parents, "label,parent\ncat,mammal\ndog,mammal\nmammal,animal\n"),
    "names.csv": (read_names, "label,name\ncat,tabby\n"),
    SUMS: (lambda file: check_sums(file.parent, ["x"]), f"{'0' * 64}  SHA256SUMS\n"),
}  # fmt: skip


def lists() -> Bytes:
    """Return strategy: the name of a list, a line end, and its content."""

    def of(name: str) -> Bytes:
        sound = LISTS[name][1]
        inner = damaged(sound.encode()) if isinstance(sound, str) else changed_json(sound)
        return st.one_of(inner, words.map(utf8)).map(lambda data: name.encode() + b"\n" + data)

    return st.one_of(*map(of, LISTS))


def check_list(data: bytes, folder: Path) -> object:
    name, _, content = data.partition(b"\n")
    file = folder / name.decode()
    file.write_bytes(content)
    return LISTS[file.name][0](file)


# Settings and words


def settings() -> Bytes:
    """Return strategy: a method, a line end, and what --set gets, a NUL between."""
    from rmadapter.methods import METHODS
    from tests.hostile.sets import SHAPES, VALUES

    pairs = [(method, name) for method in METHODS for name in names_of(method)]
    plain = st.one_of(words, st.sampled_from(VALUES), st.integers().map(str), st.floats().map(str))
    shaped = st.builds(
        lambda shape, text: shape.replace("{}", text), st.sampled_from(SHAPES), plain
    )

    def build(pair: tuple[str, str], values: list[str]) -> bytes:
        method, name = pair
        return utf8(f"{method}\n" + "\0".join(f"{name}={value}" for value in values))

    values = st.lists(st.one_of(plain, shaped), min_size=1, max_size=2)
    return st.builds(build, st.sampled_from(pairs), values)


def names_of(method: str) -> Sequence[str]:
    return [*settings_of(Request.make({}, method).method), *COMMON_SETTINGS]


def check_settings(data: bytes, folder: Path) -> object:
    method, _, text = data.partition(b"\n")
    return Request.make(parse_overrides(map(os.fsdecode, text.split(b"\0"))), method.decode())


def configs() -> Bytes:
    from tests.hostile import configs as hostile

    return damaged(*(data for _, data in hostile.cases(1, 100)))


def check_config_file(data: bytes, folder: Path) -> object:
    (folder / "c.yaml").write_bytes(data)
    method, values = read_config(folder / "c.yaml")
    return Request.make(values, method or "rmadapter")


def templates() -> Bytes:
    from tests.hostile.templates import PARTS

    parts = st.one_of(st.sampled_from(PARTS), words)
    return st.lists(parts, max_size=5).map(lambda some: utf8("".join(some)))


def check_template(data: bytes, folder: Path) -> object:
    template = data.decode("utf-8", "surrogatepass")
    (kept,) = check_templates([template])
    before, _, after = template.partition("{}")
    name = "a {x} {} {0} cat"
    require(filled(kept, name) == before + name + after, "filled in another way")
    return kept


def text_words() -> Bytes:
    return st.lists(words, min_size=1, max_size=3).map(lambda some: utf8("".join(some)))


def check_words(data: bytes, folder: Path) -> object:
    """All functions of ours that get one word of a user, a file or a request."""
    word = data.decode("utf-8", "surrogatepass")
    refused: list[UserError] = []
    functions: tuple[Callable[[str], object], ...] = (
        check_name, check_repository, typed_name, lambda text: prompt_names([text, "zebra"]),
        split_named, refuse_address, user_path, lambda text: check_inside(text, "x"),
        lambda text: refusal("POST", text, f"http://{text}", ["host"]),
    )  # fmt: skip
    for function in functions:
        try:
            function(word)
        except UserError as error:
            refused.append(error)
    try:
        image = listed_image(folder, "x", word)
        require(Path(os.path.normpath(image)).is_relative_to(folder), f"{word!r} is outside")
    except UserError as error:
        refused.append(error)
    require(re.fullmatch(r"[A-Za-z0-9.-][A-Za-z0-9._-]*", safe_name(word)), safe_name(word))
    require(len(quoted(word)) <= 80, "a long quotation")
    require(len(one_line(word)) <= 1000 and "\n" not in one_line(word), "several lines")
    require(len(shortened(word).encode()) <= 120, "a long name")
    for cell in (inert(word), inert_path(word)):
        require(not cell.strip().startswith(("=", "+", "-", "@", "＝")), "a formula")
    return refused, last_part(word)


# Requests


@cache
def site() -> tuple[Any, Any]:
    """Return the application that `serve` runs, with a key, and its service."""
    from rmadapter_serve.limits import Limits
    from rmadapter_serve.routes import create_app
    from rmadapter_serve.service import Service
    from tests.helpers.serving import Toy

    service = Service({"toy": Toy().served}, Limits(body=0.05, seconds=4, max_images=8))
    return create_app(service), service


def check_request(data: bytes, folder: Path) -> object:
    """The server answers, and not with an error of its own."""
    from starlette.responses import JSONResponse

    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    pairs = [line.partition(b": ") for line in lines]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": method.decode("latin-1"), "path": path.decode("latin-1"), "raw_path": path,
        "query_string": query, "root_path": "", "client": ("127.0.0.1", 1), "server": ("x", 80),
        "headers": [(name.lower(), value) for name, _, value in pairs],
    }  # fmt: skip
    parts = [body[i : i + 4096] for i in range(0, len(body), 4096)] or [b""]
    coming = iter([(part, True) for part in parts] + [(b"", False)])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        body, more = next(coming, (None, False))
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(site()[0](scope, receive, send))
    status = sent[0]["status"]
    require(status < 500, f"status {status}")
    content = b"".join(message.get("body", b"") for message in sent[1:])
    if dict(sent[0]["headers"]).get(b"content-type") == JSONResponse.media_type.encode():
        json.loads(content)
    return status


def records() -> Bytes:
    from tests.hostile import records as hostile

    return changed_json(*(json.loads(record.line()) for record in hostile.VALID))


def check_record(data: bytes, folder: Path) -> object:
    from tests.hostile import records as hostile

    return hostile.check("", data, folder)


TARGETS: dict[str, Target] = {
    "headers": Target(strategies.headers, check_weights),
    "model_configs": Target(model_configs, check_model_config),
    "csv": Target(strategies.csv_files, check_table(".csv")),
    "jsonl": Target(strategies.json_lines, check_table(".jsonl")),
    "parquet": Target(lambda: damaged(*strategies.tables()), check_table(".parquet")),
    "arrow": Target(lambda: damaged(*strategies.arrow_streams()), check_columns),
    "annotations": Target(strategies.annotations, check_annotations),
    "yolo": Target(strategies.yolo, check_yolo),
    "archives": Target(strategies.archives, check_archive),
    "shards": Target(strategies.archives, check_shards),
    "uploads": Target(strategies.archives, check_upload),
    "matlab": Target(matlab_files, check_matlab, examples=1),
    "lists": Target(lists, check_list),
    "records": Target(records, check_record),
    "settings": Target(settings, check_settings),
    "configs": Target(configs, check_config_file),
    "templates": Target(templates, check_template),
    "words": Target(text_words, check_words),
    "requests": Target(strategies.requests, check_request),
}
