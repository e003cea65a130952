"""The verbs on data in other programs' formats: the same answers as from folders, and notes on what
was left out."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import read_images
from tests.helpers.shell import Command, backbone_option, quick_options, rmadapter
from tests.helpers.small_images import write_json

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))


def test_a_zip_file_gives_the_run_and_the_answers_of_its_folder(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, "colors")
    Path("colors/train/red/notes.txt").write_text("")
    with zipfile.ZipFile("colors.zip", "w") as file:
        for path in sorted(Path("colors").rglob("*")):
            file.write(path)
    for data in ("colors", "colors.zip"):
        code, _, err = rmadapter(
            "fit", data, "--backbone", tiny_clip.name, "--out", f"run of {data}", *QUICK
        )
        assert code == 0, err
        assert "note: 1 file ignored: .txt 1\n" in err
    plain, packed = (
        read_record(Path(f"run of {data}/run.json")) for data in ("colors", "colors.zip")
    )
    assert (packed.split_digest, packed.scores) == (plain.split_digest, plain.scores)
    assert "1 file ignored: .txt 1" in packed.notes
    its = backbone_option(Path("run of colors.zip"))
    scores = [
        rmadapter("eval", "run of colors.zip", data, *its, "--json")
        for data in ("colors", "colors.zip")
    ]
    assert scores[0].out == scores[1].out
    assert "1 file ignored" in scores[1].err
    answers = json.loads(
        rmadapter("predict", "run of colors.zip", "colors.zip", *its, "--json").out
    )
    assert len(answers) == 40
    code, _, err = rmadapter(
        "add", "run of colors.zip", "colors.zip", "--out", "grown", "--shots", 1, *its
    )
    assert code == 0, err
    assert "note: 1 file ignored: .txt 1\n" in err


def test_a_run_on_crops_remembers_that_and_is_asked_and_grown(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, "data/images")
    names = sorted(
        path.relative_to("data/images").as_posix()
        for path in Path("data/images/train").rglob("*.png")
    )
    kinds = {name: i for i, name in enumerate(sorted({name.split("/")[1] for name in names}))}
    images = [
        {"id": i, "file_name": name, "width": 32, "height": 32} for i, name in enumerate(names)
    ]
    marks = [
        {"image_id": i, "category_id": kinds[name.split("/")[1]], "bbox": [box, 0, 16, 32]}
        for i, name in enumerate(names)
        for box in (0, 16)
    ]
    marks.append({"image_id": 0, "category_id": 1, "bbox": [0, 0, 32, 32]})
    coco = {
        "images": images,
        "annotations": marks,
        "categories": [{"id": i, "name": n} for n, i in kinds.items()],
    }
    write_json(Path("data/coco.json"), coco)
    words = ["fit", "data/coco.json", "--backbone", tiny_clip.name, "--out", "run", *QUICK]
    code, _, err = rmadapter(*words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--crops" in err
    code, _, err = rmadapter(*words, "--crops")
    assert code == 0, err
    assert read_record(Path("run/run.json")).crops
    its = backbone_option(Path("run"))
    answers = json.loads(
        rmadapter("predict", "run", "data/coco.json", "--crops", *its, "--json").out
    )
    assert len(answers) == len(marks)
    code, out, err = rmadapter(
        "eval", "run", "data/coco.json", "--crops", "--split", "heldout", *its, "--json"
    )
    assert code == 0, err
    few = few_shot(read_images("data/coco.json", crops=True), 2, 1)
    assert len(few.heldout) == len(marks) - 2 * len(kinds)
    assert json.loads(out)["n_images"] == len(few.unrelated) < len(few.heldout)
    assert f"{len(few.heldout) - len(few.unrelated)} undrawn images that share a group" in err
    code, _, err = rmadapter(
        "add", "run", "data/coco.json", "--crops", "--out", "grown", "--shots", 1, *its
    )
    assert code == 0, err
    assert "trained on the 8 images of run and 4 new ones" in err
