"""Explanations hold the run's answers and nearest training images, in Python and on a page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.predictions import SHOWN, Neighbour
from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.predict.explain import Explanation, explain_images, write_page
from rmadapter.support.files import read_json, write_json
from tests.helpers.html import Page
from tests.helpers.shots import pixels_of


def test_nearest_training_images(finished: Path, tiny_clip: Backbone, colors: Path) -> None:
    """By features computed anew from the files that split.json names; a training image is nearest
    to itself."""
    drawn = [row[0] for row in read_json(finished / "split.json")["train"]]
    [one] = explain_images(
        finished, [colors / drawn[5]], data=colors, backbone=tiny_clip, progress=False
    )
    images = read_images(colors)["train"]
    rows = [i for name in drawn for i in range(len(images)) if images.name(i) == name]
    unit = normalize(tiny_clip.image.frozen(pixels_of(tiny_clip, images, rows)).features, dim=-1)
    cosines = unit @ unit[5]
    assert len(one.neighbours) == SHOWN
    assert one.neighbours[0].image == drawn[5]
    assert one.neighbours[0].source == colors / drawn[5]
    assert one.neighbours[0].similarity == pytest.approx(1, abs=1e-3)
    found = [n.similarity for n in one.neighbours]
    assert found == pytest.approx(cosines.sort(descending=True).values[:SHOWN].tolist(), abs=1e-3)
    assert all(n.label == Path(n.image).parent.name for n in one.neighbours)


def test_answers(finished: Path, tiny_clip: Backbone, colors: Path) -> None:
    saved, files = load(finished, tiny_clip), sorted(colors.glob("test/*/0.png"))
    found = explain_images(finished, files, data=colors, backbone=tiny_clip, progress=False)
    [table] = saved.fitted.probabilities(files)
    for one, row in zip(found, table, strict=True):
        assert [share for _, share in one.best] == pytest.approx(
            row.sort(descending=True).values[:2].tolist(), abs=1e-5
        )
        assert one.best[0][0] == saved.labels[int(row.argmax())]
    assert any(one.best[0][0] != one.zero_shot[0][0] for one in found)


def test_run_without_a_record_of_its_images(
    finished: Path,
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for name in ("SHA256SUMS", "split.json"):
        (copy / name).unlink()
    [one] = explain_images(copy, [colors / "test/red/0.png"], backbone=tiny_clip, progress=False)
    assert one.neighbours == ()
    assert "no neighbours are shown" in capsys.readouterr().err
    split = read_json(finished / "split.json")
    write_json(copy / "split.json", {**split, "train": split["train"][1:]})
    with pytest.raises(UserError, match=r"split\.json"):
        explain_images(copy, [colors / "test/red/0.png"], backbone=tiny_clip, progress=False)
    with pytest.raises(UserError, match="gone"):
        explain_images(finished, ["gone.png"], backbone=tiny_clip, progress=False)
    assert torch.is_grad_enabled()


def test_missing_data_and_labels_of_other_images_are_refused(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    image, copy = colors / "test/red/0.png", Path(shutil.copytree(finished, tmp_path / "copy"))
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match=r"nowhere: .*--data"):
        explain_images(finished, [image], data=nowhere, backbone=tiny_clip, progress=False)
    (copy / "SHA256SUMS").unlink()
    split = read_json(finished / "split.json")
    first, *others = split["train"]
    write_json(copy / "split.json", {**split, "train": [[first[0], 99, "x"], *others]})
    with pytest.raises(UserError, match=r"split\.json"):
        explain_images(copy, [image], backbone=tiny_clip, progress=False)


def test_foreign_run_shows_no_image_outside_its_data(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / "SHA256SUMS").unlink()
    split = read_json(finished / "split.json")
    [name, *more], *others = split["train"]
    write_json(copy / "split.json", {**split, "train": [[f"../colors/{name}", *more], *others]})
    [one] = explain_images(copy, [colors / name], backbone=tiny_clip, progress=False)
    sources = {near.image: near.source for near in one.neighbours}
    assert sources.pop(f"../colors/{name}") is None
    assert all(source is not None for source in sources.values())


EVIL = "<script>alert(1)</script>"


def example(folder: Path) -> Explanation:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    near = (
        Neighbour("a.png", folder / "a.png", EVIL, 0.876),
        Neighbour("gone.png", folder / "gone.png", "cat", 0.5),
    )
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
