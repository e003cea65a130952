"""Boxes, archives and files of labels, given to verbs that look at images: the same answers as of
plain files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.backbones import Backbone
from tests.helpers.formats import FORMATS
from tests.helpers.html import Page
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.small_images import write_json

__all__ = ["rmadapter"]  # a fixture

NAMES = ("blue", "green", "night_sky", "red")
QUICK = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rmadapter.curate.suggest.load_backbone", lambda name: tiny_clip)


@pytest.fixture
def boxes(colors: Path, tmp_path: Path) -> Path:
    """COCO as Roboflow exports it: images of two of the coloured squares side by side, and a box
    around each."""
    home = tmp_path / "boxes"
    for split, count in (("train", 6), ("test", 4)):
        (home / split).mkdir(parents=True)
        images, marks = [], []
        for number in range(2 * count):
            image = Image.new("RGB", (64, 32))
            for side in (0, 1):
                label = number % 2 * 2 + side
                with Image.open(colors / split / NAMES[label] / f"{number // 2}.png") as square:
                    image.paste(square, (32 * side, 0))
                marks.append(
                    {"image_id": number, "category_id": label, "bbox": [32 * side, 0, 32, 32]}
                )
            image.save(home / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 32})
        kinds = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
        coco = {"images": images, "annotations": marks, "categories": kinds}
        write_json(home / split / "_annotations.coco.json", coco)
    return home


def test_compare(
    rmadapter: Command, finished: Path, colors: Path, boxes: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    command = ["compare", finished, copy, *backbone_option(finished), "--json", "--data"]
    assert json.loads(rmadapter(*command, boxes, "--crops").out) == json.loads(
        rmadapter(*command, colors).out
    )
    refused(rmadapter(*command, boxes), "--crops")
    refused(rmadapter(*command, colors, "--crops"), "needs boxes")


def test_bench(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, boxes: Path, tmp_path: Path
) -> None:
    common = [
        "--backbone",
        tiny_clip.name,
        "--shots",
        2,
        "--seeds",
        1,
        "--set",
        "device=cpu",
        "--json",
    ]

    def bench(data: Path, *more: object) -> list[dict[str, Any]]:
        words = [
            "--datasets",
            data.name,
            "--root",
            data.parent,
            "--out",
            tmp_path / f"of {data.name}",
        ]
        done = rmadapter(
            "bench",
            "base-to-novel",
            *words,
            *common,
            "--methods",
            "rmadapter,zero-shot",
            *QUICK,
            *more,
        )
        assert done.code == 0, done.err
        return json.loads(done.out)

    cut, plain = bench(boxes, "--crops"), bench(colors)
    scores = [[score for record in some for score in record["scores"]] for some in (cut, plain)]
    assert all(
        score.pop("digest") for some in scores for score in some
    )  # of files, which these are not
    assert scores[0] == scores[1]
    assert [record.get("crops") for record in (*cut, *plain)] == [True, True, None, None]
    words = ["--datasets", "boxes", "--root", tmp_path, "--out", tmp_path / "of boxes", *common]
    refused(
        rmadapter("bench", "base-to-novel", *words, "--methods", "zero-shot"),
        "was run with a different value of --crops",
    )


def test_explain_a_box(rmadapter: Command, finished: Path, colors: Path, boxes: Path) -> None:
    command = ["explain", finished, *backbone_option(finished), "--data", colors, "--json", "-q"]
    cut = json.loads(rmadapter(*command, boxes / "test/_annotations.coco.json", "--crops").out)
    plain = [colors / "test" / name / f"{i}.png" for i in range(4) for name in NAMES]
    wanted = json.loads(rmadapter(*command, *plain).out)
    for key in ("classes", "zero_shot", "neighbours"):
        assert [one[key] for one in cut] == [one[key] for one in wanted]


@pytest.mark.parametrize("kind", ["zip", "tar", "crops"])
def test_pages_of_a_run_find_its_images(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, boxes: Path, tmp_path: Path, kind: str
) -> None:
    """Those of `explain`, and the run's own once it is made again without the earlier one."""
    more = ["--crops"] if kind == "crops" else []
    data = boxes if more else Path(shutil.make_archive(str(tmp_path / "colors"), kind, colors))
    run, its = tmp_path / "run", ["--backbone", tiny_clip.name, "-q"]
    done = rmadapter(
        "fit", data, "--out", run, "--method", "zero-shot", "--shots", 2, *its, *more, "--folds", 0
    )
    assert done.code == 0, done.err
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert rmadapter("report", run).code == 0
    assert (run / "report.html").read_bytes() == before
    assert "no longer readable" not in before.decode()
    assert "not here" not in before.decode()
    done = rmadapter("explain", run, colors / "test/red/0.png", "--out", tmp_path / "why", *its)
    assert done.code == 0, done.err
    page = Page(tmp_path / "why/explain.html")
    assert "not here" not in page.text
    assert len(page.values("src")) == 1 + 5


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_is_explained_and_a_pool(
    rmadapter: Command, finished: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path, its = write(tmp_path / "set"), backbone_option(finished)
    explained = json.loads(rmadapter("explain", finished, path, *its, "--json", "-q").out)
    assert {"cat_1", "dog_1"} <= {Path(one["image"]).stem for one in explained}
    for words in (["suggest", finished, path, *its], ["suggest", "--start", path]):
        found = json.loads(rmadapter(*words, "--n", 1, "--json", "-q").out)
        assert (found["pool"], found["known"]) == (len(explained), 0)
