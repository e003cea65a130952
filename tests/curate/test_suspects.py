"""Suspects of a data set that the test damages, the list and the page, and the rules by hand."""

from __future__ import annotations

import csv
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from rmadapter.artifacts.predictions import Neighbour
from rmadapter.backbones import Backbone
from rmadapter.curate import suspects
from rmadapter.curate.suspects import (
    COLUMNS,
    KINDS,
    MAX_CARDS,
    Suspect,
    Suspects,
    copy_reasons,
    find_suspects,
    kind,
    measure,
    modified_z,
    odd_reasons,
    outliers,
    write_csv,
    write_page,
)  # fmt: skip
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab
from rmadapter.runs.labels import Doubt
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
    kinds = {one.image: kind(one.reasons[0]) for one in found.suspects}
    assert kinds[damaged.relative_to(data).as_posix()] == "broken"
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


def test_images_in_memory_are_judged(tiny_clip: Backbone, colors: Path) -> None:
    images = read_images(colors, progress=False)["train"]
    clean = suspects_of(tiny_clip, images)
    assert (clean.total, clean.judged) == (24, 24)
    assert "broken" not in clean.counts()
    labels = list(images.labels)
    labels[0] = 3
    flipped = suspects_of(tiny_clip, replace(images, labels=tuple(labels)))
    assert [one.suggested for one in flipped.suspects if one.row == 0] == ["blue"]
    assert suspects_of(tiny_clip, images, method="zero-shot").judged == 24


def test_a_label_is_called_wrong_if_another_class_is_clearly_ahead(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 1.5, as docs/studies/suspects.md chose; the clearest case comes first."""
    images = read_images(colors, progress=False)["train"]

    def wrong(*margins: float) -> list[int | None]:
        doubts = [Doubt(row, 1, 0.9, margin) for row, margin in enumerate(margins)]
        monkeypatch.setattr(suspects, "doubted_labels", lambda table, labels: doubts)
        found = suspects_of(tiny_clip, images).suspects
        return [one.row for one in found if "wrong label" in one.reasons]

    first, second = wrong(1.49, 4.0, 1.5)
    assert first != second
    assert wrong(1.49, 1.5, 4.0) == [second, first]


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
    assert "3 of 4 training images" in page.text
    words = ["rmadapter", "suspects", f"photos {EVIL}", "--apply", f"{tmp_path / 's.csv'}"]
    assert shlex.join(words) in page.text
    assert f"labelled cat, looks like {EVIL} (94 %)" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    sources = [value for value in page.values("src") if value]
    # the suspect, its neighbours and the tiny one; the broken one has no picture
    assert len(sources) == 1 + 2 + 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert f"{EVIL}0.88" in page.text.replace(" ", "")
    # of the suspect both neighbours have the suggested label
    assert [value for value in page.values("class") if value == "adapted"] == ["adapted"] * 3
    content = (tmp_path / "s.html").read_text("utf-8")
    assert "://" not in content
    assert "prefers-color-scheme: dark" in content


def test_json_has_what_the_list_has(tmp_path: Path) -> None:
    [_, wrong, _] = (one.json() for one in example(tmp_path).suspects)
    expected = ["image", "given", "reasons", "suggested", "confidence", "neighbours"]
    assert list(wrong) == expected


def test_page_with_many_suspects_names_the_list(tmp_path: Path) -> None:
    found = example(tmp_path)
    many = Suspects(found.images, 3, (found.suspects[1],) * (MAX_CARDS + 1))
    write_page(tmp_path / "s.html", many, "photos", "linear-probe", tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert f"Showing the first {MAX_CARDS} of {MAX_CARDS + 1}; s.csv lists them all." in page.text
    assert len(page.values("src")) == 3 * MAX_CARDS


def scene(seed: int, side: int = 96) -> Image.Image:
    """Blobs with fine grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    blobs = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(blobs + rng.normal(0, 20, blobs.shape), 0, 255).astype(np.uint8))


def test_measures_agree_with_other_libraries() -> None:
    image = scene(0)
    [[shorter, sharpness, spread]] = measure([image])
    grey = np.asarray(image.convert("L"), float)
    assert shorter == 96
    assert sharpness == pytest.approx(ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)
    assert spread == pytest.approx(
        max(np.asarray(image, float)[..., i].std() for i in range(3)), rel=1e-5
    )
    large = scene(0, 1000)  # is reduced first
    small = large.resize((256, 256), Image.Resampling.BICUBIC)
    assert measure([large])[0, 1] == pytest.approx(measure([small])[0, 1], rel=0.01)
    assert measure([Image.new("RGB", (2, 2), "red")]).tolist() == [[2, 0, 0]]


# Rules for images


def test_odd_images_are_found() -> None:
    images = [scene(seed) for seed in range(30)]
    images[3] = images[3].filter(ImageFilter.GaussianBlur(4))
    images[5] = images[5].resize((24, 24), Image.Resampling.NEAREST)
    images[7] = Image.new("RGB", (96, 96), (200, 30, 30))
    found = {i: reasons for i, reasons in enumerate(odd_reasons(measure(images))) if reasons}
    assert found == {3: ["blurred"], 5: ["tiny"], 7: ["one colour"]}
    alike = [scene(seed, 24) for seed in range(30)]  # small where all are
    assert not any(odd_reasons(measure(alike)))


def test_modified_z_score_by_hand() -> None:
    assert modified_z(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(
        0.6745 * np.array([-2, -1, 0, 1, 97])
    )  # median 3, median distance from it 1
    assert modified_z(np.ones(4)).tolist() == [0] * 4
    assert len(modified_z(np.array([]))) == 0


def test_outliers_are_the_farthest_percent() -> None:
    cosines = np.sort(np.random.default_rng(0).uniform(0.5, 0.8, (250, 6)))[:, ::-1].copy()
    cosines[7] = [0.9, 0.9, 0.9, 0.9, 0.1, 0.0]  # few like it, by the 5th
    cosines[9] = [0.2, 0.2, 0.2, 0.2, 0.2, -np.inf]
    cosines[11] = -np.inf
    assert np.flatnonzero(outliers(cosines)).tolist() == [7, 9]
    assert not outliers(cosines[:20]).any()  # a fifth of an image
    assert not outliers(np.full((250, 1), -np.inf)).any()


def test_copies_name_all_but_the_first_unless_labels_differ(tmp_path: Path) -> None:
    for name, image in (("a", scene(0)), ("b", scene(1)), ("c", scene(2))):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "b2.png").write_bytes((tmp_path / "b.png").read_bytes())
    ImageOps.mirror(scene(2)).save(tmp_path / "c2.png")
    names = ["a", "b", "b2", "c", "c2"]
    paths, labels = tuple(tmp_path / f"{name}.png" for name in names), (0, 0, 0, 0, 1)
    images = ImageSet(paths, labels, ("cat", "dog"), tmp_path)
    assert copy_reasons(images, images.looks()) == [
        [],
        [],
        ["same file as b.png"],
        ["two labels: nearly the same as c2.png, labelled dog"],
        ["two labels: nearly the same as c.png, labelled cat"],
    ]
