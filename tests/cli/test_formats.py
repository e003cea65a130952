"""The verbs on data in other programs' formats: the same answers as from folders, and notes on what
was left out."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import read_images
from tests.helpers.formats import FORMATS
from tests.helpers.html import Page
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
)
from tests.helpers.small_images import write_json

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(2)
NAMES = ("blue", "green", "night_sky", "red")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))


@pytest.mark.ci
def test_a_zip_file_gives_the_run_and_the_answers_of_its_folder(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, "colors")
    Path("colors/train/red/notes.txt").write_text("", encoding="utf-8")
    with zipfile.ZipFile("colors.zip", "w") as file:
        for path in sorted(Path("colors").rglob("*")):
            file.write(path)
    for data in ("colors", "colors.zip"):
        command = fit_command(Path(data), tiny_clip, Path(f"run of {data}"), *QUICK)
        assert "note: 1 file ignored: .txt 1\n" in rmadapter.done(*command).err
    plain = read_record(Path("run of colors/run.json"))
    packed = read_record(Path("run of colors.zip/run.json"))
    assert (packed.split_digest, packed.scores) == (plain.split_digest, plain.scores)
    assert "1 file ignored: .txt 1" in packed.notes
    run, its = "run of colors.zip", ["--backbone", tiny_clip.name]
    scores = [rmadapter.done("eval", run, data, *its) for data in ("colors", "colors.zip")]
    assert scores[0].out == scores[1].out
    assert "1 file ignored" in scores[1].err
    assert len(rmadapter.json("predict", run, "colors.zip", *its)) == 40
    grown = rmadapter.done("add", run, "colors.zip", "--out", "grown", "--shots", 1, *its)
    assert "note: 1 file ignored: .txt 1\n" in grown.err


@pytest.mark.ci
def test_a_run_on_crops_is_evaluated_and_extended_on_crops(
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
    size = {"width": 32, "height": 32}
    images = [{"id": i, "file_name": name, **size} for i, name in enumerate(names)]
    marks = [
        {"image_id": i, "category_id": kinds[name.split("/")[1]], "bbox": [box, 0, 16, 32]}
        for i, name in enumerate(names)
        for box in (0, 16)
    ]
    marks.append({"image_id": 0, "category_id": 1, "bbox": [0, 0, 32, 32]})
    categories = [{"id": i, "name": name} for name, i in kinds.items()]
    data = Path("data/coco.json")
    write_json(data, {"images": images, "annotations": marks, "categories": categories})
    command = fit_command(data, tiny_clip, Path("run"), *QUICK)
    refused(rmadapter(*command), "--crops")
    rmadapter.done(*command, "--crops")
    assert read_record(Path("run/run.json")).crops
    its = ["run", data, "--crops", "--backbone", tiny_clip.name]
    assert len(rmadapter.json("predict", *its)) == len(marks)
    judged = rmadapter.done("eval", *its, "--split", "heldout", "--json")
    few = few_shot(read_images(data, crops=True), 2, 1)
    assert len(few.heldout) == len(marks) - 2 * len(kinds)
    assert json.loads(judged.out)["n_images"] == len(few.unrelated) < len(few.heldout)
    shared = len(few.heldout) - len(few.unrelated)
    assert f"{shared} undrawn images that share a group" in judged.err
    grown = rmadapter.done("add", *its, "--out", "grown", "--shots", 1)
    assert "trained on the 8 images of run and 4 new ones" in grown.err


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


def test_crops_are_compared_like_their_images(
    rmadapter: Command, finished: Path, colors: Path, boxes: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    command = ["compare", finished, copy, *backbone_option(finished), "--data"]
    cut, plain = rmadapter.json(*command, boxes, "--crops"), rmadapter.json(*command, colors)
    ends = [facts["runs"][1].pop("high") for facts in (cut, plain)]
    lows = [facts["runs"][1].pop("low") for facts in (cut, plain)]
    assert cut == plain
    # crops of one image say less than as many images
    assert ends[0] - lows[0] > ends[1] - lows[1]
    refused(rmadapter(*command, boxes), "--crops")
    refused(rmadapter(*command, colors, "--crops"), "needs boxes")


@pytest.mark.ci
def test_a_bench_on_crops_scores_like_one_on_their_images(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, boxes: Path, tmp_path: Path
) -> None:
    options = ["--backbone", tiny_clip.name, "--shots", 2, "--seeds", 1, "--set", "device=cpu"]
    small = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]

    def words(data: Path, methods: str) -> list[object]:
        place = ["--root", data.parent, "--out", tmp_path / f"of {data.name}"]
        names = ["--datasets", data.name, "--methods", methods]
        return ["bench", "base-to-novel", *names, *place, *options]

    both = "rmadapter,zero-shot"
    cut: list[dict[str, Any]] = rmadapter.json(*words(boxes, both), *small, "--crops")
    plain: list[dict[str, Any]] = rmadapter.json(*words(colors, both), *small)
    scores = [[score for record in some for score in record["scores"]] for some in (cut, plain)]
    # digests are of files, which crops are not
    assert all(score.pop("digest") for some in scores for score in some)
    assert scores[0] == scores[1]
    assert [record.get("crops") for record in (*cut, *plain)] == [True, True, None, None]
    again = rmadapter(*words(boxes, "zero-shot"))
    refused(again, "was run with a different value of --crops")


def test_crops_are_explained_like_their_images(
    rmadapter: Command, finished: Path, colors: Path, boxes: Path
) -> None:
    command = ["explain", finished, *backbone_option(finished), "--run-data", colors, "-q"]
    cut = rmadapter.json(*command, boxes / "test/_annotations.coco.json", "--crops")
    plain = [colors / "test" / name / f"{i}.png" for i in range(4) for name in NAMES]
    wanted = rmadapter.json(*command, *plain)
    for key in ("classes", "zero_shot", "neighbours"):
        assert [one[key] for one in cut] == [one[key] for one in wanted]


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["zip", "tar", "crops"])
def test_pages_of_a_run_find_its_images(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, boxes: Path, tmp_path: Path, kind: str
) -> None:
    """Those of `explain`, and the run's own once it is made again without the earlier one."""
    more = ["--crops"] if kind == "crops" else []
    data = boxes if more else Path(shutil.make_archive(str(tmp_path / "colors"), kind, colors))
    run, its = tmp_path / "run", ["--backbone", tiny_clip.name, "-q"]
    options = ["--method", "zero-shot", "--shots", 2, "--folds", 0, "-q"]
    rmadapter.done(*fit_command(data, tiny_clip, run, *options, *more))
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    rmadapter.done("report", run)
    assert (run / "report.html").read_bytes() == before
    assert "no longer readable" not in before.decode()
    assert "not here" not in before.decode()
    rmadapter.done("explain", run, colors / "test/red/0.png", "--out", tmp_path / "why", *its)
    page = Page(tmp_path / "why/explain.html")
    assert "not here" not in page.text
    assert len(page.values("src")) == 1 + 5


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS)
def test_images_of_every_format_are_explained(
    rmadapter: Command,
    finished: Path,
    tmp_path: Path,
    write: Callable[[Path], Path],
) -> None:
    path, its = write(tmp_path / "set"), backbone_option(finished)
    explained = rmadapter.json("explain", finished, path, *its, "-q")
    assert {"cat_1", "dog_1"} <= {Path(one["image"]).stem for one in explained}
