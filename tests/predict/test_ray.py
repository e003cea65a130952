"""Answers from a Ray cluster: those of the local engine, a row for each bad image, and resumed."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.answers.answer import Answer, Levels
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.cli.main import main
from rmadapter.errors import UserError
from rmadapter.predict.parquet import find_rows, is_row, rows_of, unpacked_rows
from rmadapter.predict.ray import PredictWorker, cluster, digest
from rmadapter.predict.stream import Predictor
from tests.helpers.ray_cluster import ray_session

__all__ = ["ray_session"]
pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def predictor_of(finished: Path, backbone: Backbone) -> Predictor:
    saved = load(finished, backbone)
    return Predictor(saved.fitted, saved.names, [str(label) for label in saved.labels], 3)


def predict(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["rmadapter", "predict", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def images(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen good images and two bad ones, in `images` of the working folder."""
    folder = Path(shutil.copytree(colors / "test", tmp_path / "images"))
    (folder / "red/1a.png").write_bytes(b"no image")
    (folder / "green/9.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_answers_equal_those_of_the_local_engine(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rmadapter.predict.ray.IMAGES_PER_TASK", 8)  # three blocks
    run = [finished, "images", "--backbone", tiny_clip.name, "--unfamiliar", "--quiet"]
    assert predict(monkeypatch, *run, "--out", "local.csv", "--skip-bad") == 0
    assert predict(monkeypatch, *run, "--out", "ray.csv", "--ray", "--jobs", 2) == 0
    here, there = rows(Path("local.csv")), rows(Path("ray.csv"))
    good = [row for row in there if not row["error"]]
    for mine, other in zip(here, good, strict=True):  # batches of 8 instead of 16 round otherwise
        for name, value in mine.items():
            number = name.startswith("probability") or name == "unfamiliar"
            assert other[name] == value or (
                number and float(other[name]) == pytest.approx(float(value), abs=2e-6)
            )
    bad = {row["image"]: row for row in there if row["error"]}
    assert {*bad} == {"images/red/1a.png", "images/green/9.png"}
    assert bad["images/red/1a.png"]["label"] == bad["images/red/1a.png"]["probability"] == ""
    assert "not an image" in bad["images/red/1a.png"]["error"]
    assert len(there) == 16 + 2


def test_levels_of_a_taxonomy_come_from_the_cluster_too(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path, monkeypatch: Any
) -> None:
    Path("parents.csv").write_text(
        "label,parent\nred,warm\nblue,cool\ngreen,cool\nnight_sky,cool\ncool,colour\nwarm,colour\n",
        encoding="utf-8",
    )
    run: list[Any] = [finished, "images", "--taxonomy", "parents.csv", "--backbone", tiny_clip.name]
    run += ["--quiet", "--wrong", "10%"]
    assert predict(monkeypatch, *run, "--out", "local.csv", "--skip-bad") == 0
    assert predict(monkeypatch, *run, "--out", "ray.csv", "--ray", "--jobs", 2) == 0
    here, there = (rows(Path(name)) for name in ("local.csv", "ray.csv"))
    good = [row for row in there if not row["error"]]
    assert len(here) == len(good) == 16
    for mine, other in zip(here, good, strict=True):
        for name in ("label", "level", "parent", "grandparent"):
            assert other[name] == mine[name]
        for name in ("probability_parent", "probability_grandparent"):
            assert float(other[name]) == pytest.approx(float(mine[name]), abs=2e-6)
    assert {row["parent"] for row in good} <= {"warm", "cool"}
    assert {row["grandparent"] for row in good} == {"colour"}


def test_bytes_in_parquet_are_decoded_like_files(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path, monkeypatch: Any
) -> None:
    """A turned photo, 16 bits, transparency."""

    turned = Image.open(images / "red/0.png").convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("turned.jpg", exif=exif)
    Image.fromarray((np.arange(32 * 32).reshape(32, 32) * 60).astype(np.uint16)).save("deep.png")
    Image.new("RGBA", (32, 32), (200, 30, 30, 90)).save("clear.png")
    files = ["turned.jpg", "deep.png", "clear.png", "images/red/1a.png"]
    written(Path("packed.parquet"), {"image": [Path(file).read_bytes() for file in files]})
    ray = ["--ray", "--backbone", tiny_clip.name, "--quiet"]
    assert predict(monkeypatch, finished, *files, "--out", "files.jsonl", *ray) == 0
    assert predict(monkeypatch, finished, "packed.parquet", "--out", "packed.jsonl", *ray) == 0
    plain, packed = ([json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
                     for name in ("files.jsonl", "packed.jsonl"))  # fmt: skip
    assert [row.pop("image") for row in packed] == [f"packed.parquet#{i}" for i in range(4)]
    assert [row.pop("image") for row in plain] == files
    assert plain[3]["error"].replace(files[3], "packed.parquet#3") == packed[3]["error"]
    assert packed[:3] == plain[:3]


def test_restart_answers_only_what_is_left(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path, monkeypatch: Any
) -> None:
    """As if the first command had been killed after ten rows, which stay as they are."""
    words: list[Any] = [finished, "images", "--backbone", tiny_clip.name, "--ray"]
    words += ["--quiet", "--out"]
    kept: list[str] = []

    def stopped(self: Any) -> None:
        kept.extend(self.partial.read_text().splitlines())
        raise UserError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("rmadapter.predict.write.AnswerFile.finish", stopped)
        assert predict(patched, *words, "a.csv") == 2
    ten = [kept[0], *(line.replace('"guess": "', '"guess": "kept ') for line in kept[1:11])]
    Path("a.csv.partial").write_text("\n".join(ten) + "\n", encoding="utf-8")
    assert predict(monkeypatch, *words, "a.csv") == 0
    found = rows(Path("a.csv"))
    assert len(found) == 18
    unchanged = [row for row in found if row["guess"].startswith("kept ")]
    assert len(unchanged) == sum('"guess"' in line for line in ten)


def test_a_node_without_the_run_or_with_another_one_is_named(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path, tmp_path: Path
) -> None:
    predictor = predictor_of(finished, tiny_clip)
    other = cluster(predictor, tmp_path / "nowhere", tiny_clip.name, "", 1, "")
    with pytest.raises(UserError, match=r"^node [0-9.]+: .*nowhere: no such folder"):
        list(other.predict([images / "red/0.png"]))
    model = replace(cluster(predictor, finished, tiny_clip.name, "", 1, "").model, digest="0" * 64)
    with pytest.raises(UserError, match=re.escape(str(finished))):
        PredictWorker(model, {})


def test_bad_image_is_refused_without_skip_bad(
    ray_session: None, finished: Path, tiny_clip: Backbone, images: Path
) -> None:
    predictor = cluster(predictor_of(finished, tiny_clip), finished, tiny_clip.name, "", 1, "")
    assert list(predictor.predict([])) == []
    with pytest.raises(UserError, match=r"1a\.png: .*--skip-bad"):
        list(predictor.predict([images / "red/1a.png"]))


def test_answers_survive_the_way_from_a_worker() -> None:
    tree = Taxonomy.of({"cat": "pet", "dog": "pet", "pet": "animal"}, ["cat", "dog", "tree"])
    table = np.array([[0.4, 0.35, 0.25], [0.3, 0.1, 0.6]])
    both, alone = Levels.of(tree, table, [[0, 1], []])
    best = (("cat", 0.4), ("dog", 0.35))
    answers = [
        Answer(best, ("cat", "dog"), True, both, Path("a.png"), "dog", 0.1),
        Answer(best, levels=alone, image=Path("b.png")),
        Answer(best, image=Path("c.png")),
    ]
    assert pickle.loads(pickle.dumps(answers)) == answers
    assert answers[0].parent == "pet"


def test_digest_depends_on_weights_and_temperature(finished: Path, tiny_clip: Backbone) -> None:
    predictor = predictor_of(finished, tiny_clip)
    before = digest(predictor)
    assert digest(predictor_of(finished, tiny_clip)) == before
    tensors = {name: tensor + 1 for name, tensor in predictor.fitted.tensors.items()}
    predictor.fitted = replace(predictor.fitted, tensors=tensors)
    assert digest(predictor) != before
    warmer = predictor_of(finished, tiny_clip)
    warmer.fitted = replace(warmer.fitted, temperature=2.0)
    assert digest(warmer) != before


def test_options_of_the_local_engine_are_refused(
    finished: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--out", tmp_path / "a.csv", "--sort-into", tmp_path / "sorted"]):
        assert predict(monkeypatch, finished, "x", "--ray", *more) == 2
        assert "--sort-into" in capsys.readouterr().err


# Images as bytes in a parquet file


def written(path: Path, columns: dict[str, list[object]], group: int = 2) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


CONTENTS: list[object] = [b"zero", b"one", b"two", None, b"four"]


@pytest.mark.parametrize(
    ("kind", "name"), [("bytes", "a.parquet"), ("struct", "a.parquet"), ("bytes", "B.PARQUET")]
)
def test_rows_become_files_in_order(tmp_path: Path, kind: str, name: str) -> None:
    cells = CONTENTS if kind == "bytes" else [{"bytes": cell, "path": "x.png"} for cell in CONTENTS]
    path = written(tmp_path / name, {"label": [0, 1, 2, 3, 4], "image": cells})
    rows = rows_of(str(path))
    assert [row.name for row in rows] == [f"{name}#{number}" for number in range(5)]
    bad: list[tuple[Path, str]] = []
    plain = tmp_path / "plain.png"
    (folder := tmp_path / "folder").mkdir()
    found = unpacked_rows([rows[4], plain, rows[0], rows[3], rows[4]], folder, bad)
    assert [name for _, name in found] == [rows[4], plain, rows[0], rows[4]]
    contents = [file.read_bytes() for file, name in found if is_row(name)]
    assert contents == [b"four", b"zero", b"four"]
    assert found[1] == (plain, plain)
    assert bad == [(rows[3], f"{rows[3]}: holds no bytes")]


def test_other_tables_and_images_are_found_as_usual(colors: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"picture": [b"x", b"y"], "image_bytes": [b"1", b"2"]})
    table = written(tmp_path / "b.parquet", {"path": [str(colors / "train/red/0.png")]})
    for other in (table, colors, tmp_path / "missing.parquet"):
        assert rows_of(str(other)) == []
    found = find_rows([str(table), str(path), str(colors / "test/red")], outside=True)
    assert [file.name for file in found.files[:3]] == ["a.parquet#0", "a.parquet#1", "0.png"]
    assert len(found.files) == 2 + 1 + 4
    file = unpacked_rows(rows_of(str(path))[:1], tmp_path, [])[0][0]
    assert file.read_bytes() == b"1"  # of two columns, that of a usual name


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet"):
        rows_of(str(tmp_path / "a.parquet"))
