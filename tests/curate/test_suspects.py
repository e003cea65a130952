"""Suspects of a data set that the test damages are found, explained and ordered; the list and the
page hold whatever images and classes are called."""

from __future__ import annotations

import csv
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.predictions import Neighbour
from rmadapter.backbones import Backbone
from rmadapter.curate.suspects import (
    COLUMNS,
    KINDS,
    MOST,
    Suspect,
    Suspects,
    find_suspects,
    kind,
    write_csv,
    write_page,
)  # fmt: skip
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab
from tests.helpers.decodes import count_decodes
from tests.helpers.html import Page
from tests.helpers.images import write_damaged_colors


def suspects_of(backbone: Backbone, data: Path | ImageSet, **more: Any) -> Suspects:
    lab = Lab(progress=False)
    lab.add_backbone(backbone)
    return find_suspects(
        data, settings={"backbone": backbone.name}, progress=False, lab=lab, **more
    )


def test_damage_is_found(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    data = write_damaged_colors(colors, tmp_path / "data")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    found = suspects_of(tiny_clip, data)
    by_name = {one.image: one for one in found.suspects}
    assert [one.image for one in found.suspects[:1]] == ["train/green/broken.png"]
    assert by_name["train/green/broken.png"].reasons[0].startswith("broken: not a")
    wrong = by_name["train/blue/is red.png"]
    assert (wrong.given, wrong.suggested, wrong.reasons) == ("blue", "red", ("wrong label",))
    assert wrong.confidence is not None
    assert 0.25 < wrong.confidence <= 1
    assert by_name["train/red/copy.png"].reasons == ("same file as train/red/0.png",)
    assert by_name["train/green/two.png"].reasons[0] == (
        "two labels: same file as train/night_sky/1.png, labelled night_sky"
    )
    assert by_name["train/night_sky/1.png"].reasons[0].startswith("two labels")
    order = [KINDS.index(kind(one.reasons[0])) for one in found.suspects]
    assert order == sorted(order)
    assert found.total == 28
    assert len(found.images) == 27
    assert found.counts()["two labels"] == 2
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_damaged_images_are_found(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(colors / "train", tmp_path / "data"))
    damaged = sorted(data.glob("*/*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    counts = count_decodes(monkeypatch)
    found = suspects_of(tiny_clip, data)
    assert {one.image: one.reasons[0].split(":")[0] for one in found.suspects}[
        damaged.relative_to(data).as_posix()
    ] == "broken"
    assert str(damaged) not in map(str, found.images.images)
    assert max(counts.values()) == 2  # its sharpness is measured apart


def test_neighbours_are_nearest_by_untouched_features(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    from rmadapter.training.cache import Cache

    data = write_damaged_colors(colors, tmp_path / "data")
    found = suspects_of(tiny_clip, data)
    features = Cache(tiny_clip, progress=False).features(found.images)[0].numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    [one] = [one for one in found.suspects if one.image == "train/blue/is red.png"]
    assert one.row is not None
    cosines = features @ features[one.row]
    cosines[one.row] = -1
    best = np.argsort(-cosines)[:5]
    assert [other.image for other in one.neighbours] == [found.images.name(int(i)) for i in best]
    assert [other.similarity for other in one.neighbours] == pytest.approx(
        cosines[best].tolist(), abs=1e-5
    )


def test_clean_images_in_memory(tiny_clip: Backbone, colors: Path) -> None:
    images = read_images(colors, progress=False)["train"]
    clean = suspects_of(tiny_clip, images)
    assert (clean.total, clean.judged) == (24, 24)
    assert "broken" not in clean.counts()
    labels = list(images.labels)
    labels[0] = 3
    flipped = suspects_of(
        tiny_clip, ImageSet(images.images, tuple(labels), images.classes, images.root)
    )
    assert [one.suggested for one in flipped.suspects if one.row == 0] == ["blue"]
    assert suspects_of(tiny_clip, images, method="zero-shot").judged == 24


def test_single_images_per_class_are_not_judged(tiny_clip: Backbone) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    found = suspects_of(tiny_clip, ImageSet.from_lists(noise, ["a", "b"]))
    assert (found.judged, found.total) == (0, 2)
    assert "wrong label" not in found.counts()


def test_data_without_training_images_is_refused(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    shutil.copytree(colors / "test", tmp_path / "test")
    with pytest.raises(UserError, match="only test"):
        suspects_of(tiny_clip, tmp_path)


# The list and the page

EVIL = "<script>alert(1)</script>"


def example(folder: Path) -> Suspects:
    paths = []
    for name, color in (("=a", "red"), ("b", "blue"), ("c", "lime")):
        paths.append(folder / f"{name}.png")
        Image.new("RGB", (400, 300), color).save(paths[-1])
    images = ImageSet(tuple(paths), (0, 1, 1), ("cat", EVIL), folder)
    near = (Neighbour("b.png", paths[1], EVIL, 0.876), Neighbour("c.png", paths[2], EVIL, 0.5))
    wrong = Suspect("=a.png", "cat", ("wrong label", "blurred"), EVIL, 0.9444, near, 0)
    broken = Suspect("x.png", "cat", ("broken: empty",))
    return Suspects(
        images, 3, (broken, wrong, Suspect("b.png", EVIL, ("tiny",), None, None, (), 1))
    )


def test_csv_has_a_row_per_suspect_and_no_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "s.csv", example(tmp_path))
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(COLUMNS),
        ["x.png", "cat", "", "", "broken: empty", "", ""],
        [
            "./=a.png", "cat", EVIL, "0.944", "wrong label; blurred",
            f"b.png ({EVIL}, 0.88); c.png ({EVIL}, 0.50)", "",
        ],
        ["b.png", EVIL, "", "", "tiny", "", ""],
    ]  # fmt: skip


def test_page_shows_images_labels_and_neighbours_without_scripts(tmp_path: Path) -> None:
    found = example(tmp_path)
    write_page(tmp_path / "s.html", found, f"photos {EVIL}", "linear-probe", tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "3 of 4 training images deserve a look." in page.text
    single = replace(found, suspects=found.suspects[:1])
    write_page(tmp_path / "one.html", single, "photos", "", tmp_path / "s.csv")
    assert "1 of 4 training images deserves a look." in Page(tmp_path / "one.html").text
    words = ["rmadapter", "suspects", f"photos {EVIL}", "--apply", f"{tmp_path / 's.csv'}"]
    assert shlex.join(words) in page.text
    assert f"labelled cat, looks like {EVIL} (94 %)" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    sources = [value for value in page.values("src") if value]
    # the suspect, its neighbours and the tiny one; the broken one has no picture
    assert len(sources) == 1 + 2 + 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert f"{EVIL}0.88" in page.text.replace(" ", "")
    everything = (tmp_path / "s.html").read_text("utf-8")
    assert "http://" not in everything
    assert "https://" not in everything
    assert "prefers-color-scheme: dark" in everything


def test_page_with_many_suspects_names_the_list(tmp_path: Path) -> None:
    found = example(tmp_path)
    many = Suspects(found.images, 3, (found.suspects[1],) * (MOST + 1))
    write_page(tmp_path / "s.html", many, "photos", "linear-probe", tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert f"Showing the first {MOST} of {MOST + 1}; s.csv lists them all." in page.text
    assert len(page.values("src")) == 3 * MOST
