"""What files from elsewhere may take is counted before it is made, in each format."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.data import budget as limits
from rmadapter.data.budget import BLOCK_BYTES, FREE_BYTES, FREE_FILES, GROWTH, Budget, Kind
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.support.files import json_memory, read_json, walk
from tests.helpers import formats
from tests.helpers.small_images import write_images


def limit(monkeypatch: pytest.MonkeyPatch, kind: Kind, most: float) -> None:
    """Make a limit small, also for files that have many bytes."""
    monkeypatch.setitem(limits.LIMITS, kind, most)
    monkeypatch.setattr(limits, "GROWTH", 0)


def test_files_and_photos_add_to_a_budget_and_readers_take_from_it() -> None:
    budget = Budget()
    budget.allow_file(1_000_000)
    budget.allow_photo(1000, 0)
    assert budget.left("disk") == FREE_BYTES + GROWTH * 1_000_000
    assert (
        budget.left("files")
        == FREE_FILES + FREE_BYTES // BLOCK_BYTES + GROWTH * 1_000_000 // BLOCK_BYTES
    )
    assert budget.left("pixels") == FREE_BYTES + GROWTH * 1000
    budget.take("disk", budget.left("disk"), "x")
    with pytest.raises(UserError, match=r"x: .* 120,000,000 bytes on disk"):
        budget.take("disk", 1, "x")
    Budget.unlimited().take("rows", 10**12, "x")


def test_processor_time_is_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit(monkeypatch, "seconds", 0)
    with pytest.raises(UserError, match=r"list\.csv: .*seconds"):
        read_images(formats.csv_file(tmp_path), progress=False)


FORMATS: list[tuple[Any, Kind]] = [
    (formats.csv_file, "rows"), (formats.csv_file, "memory"),
    (formats.json_lines, "rows"), (formats.json_lines, "memory"),
    (formats.imagefolder, "rows"), (formats.coco_file, "memory"),
    (formats.label_studio, "memory"), (formats.fiftyone, "memory"),
    (formats.fiftyone_files, "memory"), (formats.yolo, "rows"), (formats.yolo, "memory"),
    (formats.zip_file, "files"), (formats.zip_of_coco, "memory"), (formats.tar_file, "files"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "kind"), FORMATS)
def test_each_format_takes_from_the_budget(
    write: Any, kind: Kind, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data")
    limit(monkeypatch, kind, 1)
    with pytest.raises(UserError, match=f" {limits.UNITS[kind][0]}, the limit"):
        read_images(path, progress=False)


# Parquet and Arrow


def test_a_label_that_many_rows_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_images(tmp_path, "cat_1.jpg")
    file = tmp_path / "t.parquet"
    content = {"path": ["cat_1.jpg"] * 2000, "label": ["x" * 900] * 2000}
    parquet.write_table(pa.table(content), file, compression="zstd")
    assert file.stat().st_size < 10_000
    limit(monkeypatch, "memory", 1_000_000)
    with pytest.raises(UserError, match=r"t\.parquet: .* 1,000,000 bytes of memory"):
        read_images(file, progress=False)
    categories = pa.table(content).set_column(
        1, "label", pa.array(content["label"]).dictionary_encode()
    )
    parquet.write_table(categories, file)
    with pytest.raises(UserError, match="bytes of memory"):
        read_images(file, progress=False)


def test_a_very_long_label_is_refused_at_its_first_row(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.jpg")
    (tmp_path / "a.csv").write_text(f"path,label\ncat_1.jpg,{'x' * 100_000}\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2"):
        read_images(tmp_path / "a.csv", progress=False)


def test_categories_are_read_as_text(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_images(tmp_path, "cat_1.jpg", "dog_2.jpg")
    label = pa.array(["cat", "dog"]).dictionary_encode()
    table = pa.table(
        {"path": ["cat_1.jpg", "dog_2.jpg"], "label": label, "review": [{"view": 1}] * 2}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_images(tmp_path / "t.parquet", progress=False)["all"].classes == ("cat", "dog")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue() + bytes(50_000)


def test_an_image_that_many_rows_share(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    images = [{"bytes": png(), "path": f"{number}.png"} for number in range(200)]
    table = pa.table({"image": images, "label": [0] * 200})
    features = {"image": {"_type": "Image"}, "label": {"names": ["a"], "_type": "ClassLabel"}}
    facts = {"huggingface": json.dumps({"info": {"features": features}})}
    file = tmp_path / "t.parquet"
    parquet.write_table(table.replace_schema_metadata(facts), file, compression="zstd")
    limit(monkeypatch, "disk", 1_000_000)
    with pytest.raises(UserError, match=r"t\.parquet: .* bytes on disk"):
        read_images(file, progress=False)
    assert not list(cache.rglob("*.png"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    rows = {"image": [{"bytes": png(), "path": None}] * 2, "label": ["a", "b"]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "a"))
    return tmp_path / "a"


@pytest.mark.parametrize(
    "names", [["../a/{}"], ["/etc/{}"], ["{}", "{}"], ["..\\a\\{}"], ["."], [7], [["{}"]], []]
)
def test_a_saved_folder_names_each_file_of_its_own_once(saved: Path, names: list[Any]) -> None:
    state = json.loads((saved / "state.json").read_text())
    (file,) = state["_data_files"]
    files = [{"filename": name.format(file["filename"])} if isinstance(name, str) else
             {"filename": name} for name in names]  # fmt: skip
    (saved / "state.json").write_text(json.dumps({**state, "_data_files": files}))
    with pytest.raises(UserError, match="a"):
        read_images(saved, progress=False)


def test_the_splits_of_a_saved_folder_are_inside(saved: Path) -> None:
    (saved.parent / "b").mkdir()
    for name in ("../a", ".", "../b"):
        (saved.parent / "b/dataset_dict.json").write_text(json.dumps({"splits": [name]}))
        with pytest.raises(UserError, match=r"dataset_dict\.json: names "):
            read_images(saved.parent / "b", progress=False)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_files_are_refused(saved: Path, codec: str) -> None:
    from pyarrow import ipc

    (file,) = saved.glob("*.arrow")
    table = ipc.open_stream(file.read_bytes()).read_all()
    assert read_images(saved, progress=False)
    options = ipc.IpcWriteOptions(compression=codec)
    with ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"\.arrow: is compressed"):
        read_images(saved, progress=False)


# Boxes


def test_the_pixels_of_boxes_are_limited_by_those_of_the_photos(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = formats.coco_file(tmp_path)
    content = json.loads(file.read_text())
    box = {**content["annotations"][0], "bbox": [0, 0, 8, 8]}
    content["annotations"] += [
        {**box, "id": 10 + i, "bbox": [0, 0, 8 - i / 100, 8]} for i in range(40)
    ]
    file.write_text(json.dumps(content))
    assert read_images(file, progress=False, crops=True)
    for kind, most in (("pixels", 0), ("disk", 0)):
        with monkeypatch.context() as patch:
            patch.setitem(limits.LIMITS, kind, most)
            patch.setattr(limits, "GROWTH", 20 if kind == "pixels" else 0)
            for _ in range(2):  # also when the first are in the cache
                with pytest.raises(UserError, match=rf"cat_1\.png: .* {limits.UNITS[kind][0]}"):  # type: ignore[index]
                    read_images(file, progress=False, crops=True)


# Archives, JSON and folders


def test_the_files_of_a_zip_are_counted_before_the_first_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for number in range(30):
            file.writestr(f"{number}.txt", b"")
    written: list[object] = []
    monkeypatch.setattr("shutil.copyfileobj", lambda *words: written.append(words))
    limit(monkeypatch, "files", 29)
    with pytest.raises(UserError, match=r"a\.zip: .* files, the limit"):
        read_images(tmp_path / "a.zip", progress=False)
    assert written == []


def test_an_archive_in_an_archive_costs_many_files(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = io.BytesIO()
    zipfile.ZipFile(inner, "w").close()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for number in range(10):
            file.writestr(f"{number}/x.zip", inner.getvalue())
    limit(monkeypatch, "files", 100)
    with pytest.raises(UserError, match=" files, the limit"):
        read_images(tmp_path / "a.zip", progress=False)


@pytest.mark.parametrize("part", ['{"a":1}', "[]", "1.5", '"ab"', "[[],[],[]]", '{"bc":"de"}'])
def test_the_memory_of_json_is_not_underestimated(part: str) -> None:
    import tracemalloc

    text = f"[{','.join([part] * 20_000)}]"
    tracemalloc.start()
    value = json.loads(text)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < json_memory(text) < 8 * size
    assert len(value) == 20_000


def test_json_is_counted_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("[" + "{}," * 1000 + "0]")
    monkeypatch.setattr("rmadapter.support.files.MAX_JSON_MEMORY", 100_000)
    with pytest.raises(UserError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")
    taken: list[int] = []
    assert len(read_json(tmp_path / "a.json", take=taken.append)) == 1001
    assert taken[0] > 100_000


def test_numbers_of_dropped_keys_cost_nothing(tmp_path: Path) -> None:
    rows = [{"mask": [[1.5, -2e3], [3]], "id": 1}, {"mask": {"size": [1]}, "text": '"mask": [1]'}]
    (tmp_path / "a.json").write_text(json.dumps(rows * 100))
    taken: list[int] = []
    kept = [{"id": 1}, {"text": '"mask": [1]'}] * 100
    assert read_json(tmp_path / "a.json", without=("mask",), take=taken.append) == kept
    read_json(tmp_path / "a.json", take=taken.append)
    assert taken[0] < taken[1]


@pytest.mark.ci
def test_folders_may_be_of_any_depth(tmp_path: Path) -> None:
    place = tmp_path / "data/cat"
    place.mkdir(parents=True)
    for _ in range(1500):
        place = place / "d"
        place.mkdir()
    write_images(place, "cat_1.png")
    write_images(tmp_path / "data/dog", "dog_1.png")
    try:
        assert len(read_images(tmp_path / "data", progress=False)["all"]) == 2
        assert sum(len(files) for _, _, files in walk(tmp_path)) == 2
    finally:  # pytest removes folders by functions that call themselves
        for part in [place, *place.parents][:1500]:
            for file in part.iterdir():
                file.unlink()
            part.rmdir()
