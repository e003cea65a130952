"""The page is read back with an HTML parser; its figures are counted again by hand or with scikit-learn."""

from __future__ import annotations

import base64
import io
import re
import shlex
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score

from rmadapter.config import Config, parse_overrides
from rmadapter.data.images import ImageSet
from rmadapter.evaluation import Evaluation
from rmadapter.report import write_report

NASTY = ('<b>bold</b> & "quotes"', "größe 斑马 $x_1$", "it's {{ 7 * 7 }}")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Text, attributes and ids of a page; fails on a tag that is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def evaluation(title: str, n: int, classes: tuple[str, ...], seed: int) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    before, after = (rng.dirichlet(np.ones(len(classes)), n).astype(np.float32) for _ in range(2))
    after[np.arange(n), labels] += 0.3
    after /= after.sum(1, keepdims=True)
    return Evaluation(title, classes, labels, after, before, rng.uniform(0, 100, n).astype(np.float32))


def pictures(e: Evaluation) -> ImageSet:
    rng = np.random.default_rng(0)
    arrays = tuple(rng.integers(0, 256, (200, 240, 3), dtype=np.uint8) for _ in e.labels)
    return ImageSet(arrays, tuple(e.labels.tolist()), e.classes)


@pytest.fixture(scope="module")
def base() -> Evaluation:
    return evaluation("test, base classes", 60, NASTY, 0)


@pytest.fixture(scope="module")
def novel() -> Evaluation:
    return evaluation("test, novel classes", 40, ("x", "y"), 1)


RUN = {
    "data": "<i>data</i>",
    "config": Config.make({"backbone": "pocket", "classes": "base"}).model_dump(mode="json"),
    "backbone": {"name": "pocket", "digest": "ab" * 32},
    "seed": 1,
    "parameters": {"trainable": 1_020_928, "inference": 666_112, "reconstruction": 354_816},
    "seconds": {"training": 151.2},
    "history": [{"step": i, "loss": 3.0 / i, "lr": 0.1} for i in range(1, 30)],
    "versions": {"torch": "2.6.0"},
    "notes": ["<script>alert(1)</script> was skipped"],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, base: Evaluation, novel: Evaluation) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, RUN, [base, novel], [pictures(base), None])
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path)


def test_nothing_is_fetched_and_nothing_runs(page: Page) -> None:
    addresses = [v for a in ("src", "href", "xlink:href") for v in page.values(a)]
    assert len(addresses) > 20
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)


def test_names_are_text_and_never_markup(page: Page) -> None:
    for text in (*NASTY, "<i>data</i>", "<script>alert(1)</script> was skipped"):
        assert text in page.text
    assert set(NASTY) <= set(page.values("alt"))


def test_headline_and_table_carry_the_numbers(page: Page, base: Evaluation, novel: Evaluation) -> None:
    before = [100 * accuracy_score(e.labels, e.zero_shot.argmax(1)) for e in (base, novel)]
    after = [100 * accuracy_score(e.labels, e.probabilities.argmax(1)) for e in (base, novel)]
    headline = page.text[: page.text.index("Before and after")]
    for figure in (before[0], after[0], before[1], after[1], 100 / 3):
        assert f"{figure:.1f}" in headline
    means = [statistics.harmonic_mean(pair) for pair in (before, after)]
    assert f"harmonic mean of base and novel {means[0]:.1f} → {means[1]:.1f}" in headline
    assert "16 images per class of the base classes" in headline
    assert "1,020,928" in page.text


def test_outcomes_are_counted_and_shown_in_a_mix(page: Page, base: Evaluation) -> None:
    right = [p.argmax(1) == base.labels for p in (base.zero_shot, base.probabilities)]
    counts = Counter((bool(before), bool(after)) for before, after in zip(*right, strict=True))
    names = {(False, True): "Gained", (True, False): "Lost", (False, False): "Both wrong", (True, True): "Both right"}
    for key, name in names.items():
        assert f"{name} {counts[key]} (" in page.text
    shown = sum(min(6, n) for n in counts.values())
    thumbnails = [a for a in page.values("src") if a.startswith("data:image/jpeg;base64,")]
    assert len(thumbnails) == shown + 12  # six at each end of the novelty score
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnails[0].split(",")[1])))
    assert (picture.format, picture.size) == ("JPEG", (160, 133))


def test_same_input_same_bytes_and_the_callers_picture_is_left_alone(tmp_path: Path, novel: Evaluation) -> None:
    picture = Image.new("RGB", (300, 200), "red")
    images = ImageSet((picture,) * len(novel.labels), tuple(novel.labels.tolist()), novel.classes)
    for name in "ab":
        write_report(tmp_path / name, RUN, [novel], [images])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert picture.size == (300, 200)


@pytest.mark.parametrize("run", [{}, {"config": None, "history": [{}], "metrics": {"harmonic_mean": {}}}])
def test_missing_keys_are_tolerated(tmp_path: Path, run: dict, novel: Evaluation) -> None:
    write_report(tmp_path / "none.html", run, [], [])
    assert "No evaluation was recorded" in Page(tmp_path / "none.html").text
    bare = Evaluation(
        "photos", novel.classes, novel.labels, novel.probabilities, novel.zero_shot, np.empty(0, np.float32)
    )
    write_report(tmp_path / "bare.html", run, [bare], [None])
    text = Page(tmp_path / "bare.html").text
    assert "photos" in text
    assert "Most novel" not in text


def test_figures_of_run_json_serve_without_answers(tmp_path: Path) -> None:
    metrics = {"base": {"zero_shot": 29.3, "adapted": 73.4}, "novel": {"zero_shot": 34.2, "adapted": 32.1}}
    write_report(tmp_path / "r.html", {"metrics": metrics}, [], [])
    assert "base 29.3 → 73.4 %" in Page(tmp_path / "r.html").text
    assert f"{statistics.harmonic_mean([73.4, 32.1]):.1f}" in Page(tmp_path / "r.html").text


def test_answers_that_are_not_numbers_and_files_that_are_gone(tmp_path: Path, novel: Evaluation) -> None:
    nothing = np.full_like(novel.probabilities, np.nan)
    broken = Evaluation("test", novel.classes, novel.labels, nothing, novel.zero_shot, nothing[:, 0])
    name = b"gone \xff.jpg".decode("utf-8", "surrogateescape")  # as Linux gives a name that is not UTF-8
    images = ImageSet((tmp_path / name,) * len(novel.labels), tuple(novel.labels.tolist()), novel.classes, tmp_path)
    write_report(tmp_path / "r.html", {}, [broken], [images])
    assert "not readable any more" in Page(tmp_path / "r.html").text


def test_many_classes_get_a_list_instead_of_a_matrix(tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(101))
    e = evaluation("many", 500, classes, 2)
    e.labels[:30], e.probabilities[:30], e.zero_shot[:30] = 7, np.eye(101)[8], np.eye(101)[9]
    write_report(tmp_path / "r.html", {}, [e], [None])
    page = Page(tmp_path / "r.html")
    assert "confusion matrix" not in page.values("aria-label")
    assert re.search(r"class 7 ?class 8 ?3\d", page.text)


def test_a_hundred_classes_stay_under_three_megabytes(tmp_path: Path) -> None:
    e = evaluation("all", 2500, tuple(f"a class with name {i}" for i in range(100)), 3)
    write_report(tmp_path / "r.html", RUN, [e], [pictures(e)])
    assert "confusion matrix" in Page(tmp_path / "r.html").values("aria-label")
    assert (tmp_path / "r.html").stat().st_size < 3e6


def test_the_command_repeats_the_configuration(tmp_path: Path) -> None:
    config = Config.make(
        {
            "learning_rate": 1e-5,
            "templates": ['a "{}"', "{}: [x]"],
            "norm": "block",
            "last_block": 9,
            "backbone": "a: b",
        }
    )
    write_report(tmp_path / "r.html", {"config": config.model_dump(mode="json"), "data": "my data"}, [], [])
    command = re.search(r"rmadapter fit .*? --out RUN", Page(tmp_path / "r.html").text)
    assert command
    words = shlex.split(command[0])
    assert words[:3] == ["rmadapter", "fit", "my data"]
    assert Config.make(parse_overrides(words[4:-2:2])) == config


def test_images_of_another_evaluation_are_refused(tmp_path: Path, base: Evaluation, novel: Evaluation) -> None:
    with pytest.raises(ValueError, match="60 answers for 40 images"):
        write_report(tmp_path / "r.html", {}, [base], [pictures(novel)])
    assert not list(tmp_path.iterdir())
