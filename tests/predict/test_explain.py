"""Explanations hold the run's answers and nearest training images, in Python and on a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.predictions import MAX_NEIGHBOURS, Neighbour
from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.predict.explain import Explanation, explain_images, write_page
from rmadapter.support.files import read_json, write_json
from tests.helpers.html import Page
from tests.helpers.shots import pixels_of


def changed_split(finished: Path, copy: Path, train: Callable[[list[Any]], list[Any]]) -> Path:
    """Copy a run and change the training images that it records."""
    shutil.copytree(finished, copy)
    (copy / "SHA256SUMS").unlink()
    split = read_json(copy / "split.json")
    write_json(copy / "split.json", {**split, "train": train(split["train"])})
    return copy


def test_nearest_training_images_are_those_by_features(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    """Features are computed from the files that split.json names; a training image is nearest to
    itself."""
    drawn = [row[0] for row in read_json(finished / "split.json")["train"]]
    options: dict[str, Any] = {"data": colors, "backbone": tiny_clip, "progress": False}
    [one] = explain_images(finished, [colors / drawn[5]], **options)
    images = read_images(colors)["train"]
    rows = [i for name in drawn for i in range(len(images)) if images.name(i) == name]
    unit = normalize(tiny_clip.image.frozen(pixels_of(tiny_clip, images, rows)).features, dim=-1)
    cosines = unit @ unit[5]
    assert len(one.neighbours) == MAX_NEIGHBOURS
    assert one.neighbours[0].image == drawn[5]
    assert one.neighbours[0].source == colors / drawn[5]
    assert one.neighbours[0].similarity == pytest.approx(1, abs=1e-3)
    found = [n.similarity for n in one.neighbours]
    assert found == pytest.approx(
        cosines.sort(descending=True).values[:MAX_NEIGHBOURS].tolist(), abs=1e-3
    )
    assert all(n.label == Path(n.image).parent.name for n in one.neighbours)


def test_answers_are_those_of_the_run(finished: Path, tiny_clip: Backbone, colors: Path) -> None:
    saved, files = load(finished, tiny_clip), sorted(colors.glob("test/*/0.png"))
    found = explain_images(finished, files, data=colors, backbone=tiny_clip, progress=False)
    [table] = saved.fitted.probabilities(files)
    for one, row in zip(found, table, strict=True):
        shares = row.sort(descending=True).values[:2].tolist()
        assert [share for _, share in one.best] == pytest.approx(shares, abs=1e-5)
        assert one.best[0][0] == saved.labels[int(row.argmax())]
    assert any(one.best[0][0] != one.zero_shot[0][0] for one in found)


def test_a_run_without_a_record_of_its_images_shows_no_neighbours(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path, capsys: Any
) -> None:
    copy = changed_split(finished, tmp_path / "copy", list)
    (copy / "split.json").unlink()
    [one] = explain_images(copy, [colors / "test/red/0.png"], backbone=tiny_clip, progress=False)
    assert one.neighbours == ()
    assert "no neighbours are shown" in capsys.readouterr().err
    assert torch.is_grad_enabled()


def test_missing_files_and_damaged_splits_are_refused(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    image = colors / "test/red/0.png"
    fewer = changed_split(finished, tmp_path / "fewer", lambda train: train[1:])
    other = changed_split(
        finished, tmp_path / "other", lambda train: [[train[0][0], 99, "x"], *train[1:]]
    )
    for named, run, file, data in (
        (r"split\.json", fewer, image, None),
        (r"split\.json", other, image, None),
        (r"gone\.png", finished, "gone.png", None),
        (r"nowhere: .*--run-data", finished, image, tmp_path / "nowhere"),
    ):
        with pytest.raises(UserError, match=named):
            explain_images(run, [file], data=data, backbone=tiny_clip, progress=False)


def test_a_foreign_run_shows_no_image_outside_its_data(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    [name, *more] = read_json(finished / "split.json")["train"][0]
    first = [f"../colors/{name}", *more]
    copy = changed_split(finished, tmp_path / "copy", lambda train: [first, *train[1:]])
    [one] = explain_images(copy, [colors / name], backbone=tiny_clip, progress=False)
    sources = {near.image: near.source for near in one.neighbours}
    assert sources.pop(f"../colors/{name}") is None
    assert all(source is not None for source in sources.values())


EVIL = "<script>alert(1)</script>"


def example(folder: Path) -> Explanation:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    here = Neighbour("a.png", folder / "a.png", EVIL, 0.876)
    near = (here, Neighbour("gone.png", folder / "gone.png", "cat", 0.5))
    best = (("cat", 0.944), (EVIL, 0.05))
    return Explanation(folder / "a.png", best, best[::-1], near)


def test_page_shows_answers_and_neighbours_without_scripts(tmp_path: Path) -> None:
    write_page(tmp_path / "e.html", [example(tmp_path)] * 2, EVIL)
    page = Page(tmp_path / "e.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"adapted: cat 94 %, {EVIL} 5 %" in text
    assert f"{EVIL}0.88" in text.replace(" ", "")
    sources = page.values("src")
    assert len(sources) == 2 * 2  # image and neighbour of both
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert text.count("not here") == 2
    assert "://" not in (tmp_path / "e.html").read_text("utf-8")
