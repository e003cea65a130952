"""The page of a run, read back with an HTML parser; its figures are counted again by hand or with
scikit-learn."""

from __future__ import annotations

import base64
import io
import itertools
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import escape, unescape
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from rmadapter.artifacts.page import (
    MAX_MATRIX_CLASSES,
    TRAINING_SET,
    describe_shots,
    panel,
    thumbnails_of,
    write_run_page,
)
from rmadapter.artifacts.predictions import Evaluation, Mistake, Neighbour, Predictions
from rmadapter.artifacts.record import HeldOut, Judgement, Rates, Record, Score
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.methods import load_method
from rmadapter.settings import documentation, settings_of
from rmadapter.task import Task
from tests.helpers.html import Page
from tests.helpers.run_pages import HISTORY, correct, evaluation, record, score, write

pytestmark = pytest.mark.real_plots

NASTY = ('<b>bold</b> & "quotes"', "größe 斑马 $x_1$", "it's {{ 7 * 7 }}")


@pytest.fixture(scope="module")
def base() -> Evaluation:
    return evaluation("test, base classes", 60, NASTY, 0)


@pytest.fixture(scope="module")
def novel() -> Evaluation:
    return evaluation("test, novel classes", 40, ("x", "y"), 1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, base: Evaluation, novel: Evaluation) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, record(score(base, "base"), score(novel, "novel")), [base, novel], HISTORY)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path)


def with_sources(e: Evaluation, source: ImageSource, root: Path | None = None) -> Evaluation:
    """Return an evaluation whose images are all the same one."""
    return replace(e, images=ImageSet((source,) * len(e.labels), e.images.labels, e.classes, root))


def written(folder: Path, its: Record, evaluations: Sequence[Evaluation] = ()) -> Page:
    write(folder / "r.html", its, [*evaluations], [])
    return Page(folder / "r.html")


@pytest.mark.ci
def test_the_page_loads_and_runs_nothing(page: Page) -> None:
    addresses = [v for a in ("src", "href", "xlink:href") for v in page.values(a)]
    assert len(addresses) > 20
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)


def test_names_are_escaped(page: Page) -> None:
    for text in (*NASTY, "<i>data</i>", "<script>alert(1)</script> was skipped"):
        assert text in page.text
    assert set(NASTY) <= set(page.values("alt"))


def test_a_judged_run_begins_with_plain_sentences(tmp_path: Path, base: Evaluation) -> None:
    before, after = correct(base)
    figures = {"low": 0.0, "high": 100.0, "macro_f1": 0.0, "calibration_error": 0.0}
    rates = [("zero-shot", before, 0.01), ("linear-probe", 99.0, 0.2), ("RMAdapter", after, None)]
    rows = [
        Rates(name=name, accuracy=accuracy, p=p, recalls=[None] * 3, **figures)
        for name, accuracy, p in rates
    ]
    its = record(
        score(base, "all"), task=Task(data="x"), seconds={"linear-probe": 4.0},
        judgement=Judgement(how="", images=60, classes=NASTY, majority=50.0, rows=tuple(rows)),
    )  # fmt: skip
    page = written(tmp_path, its, [base])
    top = page.text[: page.text.index("Before and after")]
    assert f"{after:.0f} of 100 of your images will be sorted right" in top
    assert "zero-shot" in top
    judged = page.text[page.text.index("Is it good?") :]
    assert "trains in 4.0 s" in judged


@pytest.mark.parametrize(
    ("right", "option"), [("1" * 60, "--wrong 10%"), ("1" * 10, "--wrong 21%"), ("0" * 10, "")]
)
def test_the_next_command_asks_for_what_can_be_promised(
    right: str, option: str, base: Evaluation, tmp_path: Path
) -> None:
    held_out = HeldOut(probabilities=(0.9,) * len(right), right=right)
    page = written(tmp_path, record(score(base, "all"), held_out=held_out), [base])
    command, _, rest = page.text.partition("--sort-into sorted")[2].partition("RUN is the folder")
    assert command.strip() == option
    assert ("unsure" in rest.partition("Before and after")[0]) == bool(option)


def test_a_judged_run_has_one_set_of_figures(
    tmp_path: Path, base: Evaluation, novel: Evaluation
) -> None:
    figures = {"low": 0.0, "high": 100.0, "macro_f1": 0.0, "calibration_error": 0.0}
    row = Rates(name="RMAdapter", accuracy=50.0, recalls=[None] * 3, **figures)
    judged = Judgement(how="", images=60, classes=NASTY, majority=50.0, rows=(row,))
    scores = score(base, "all"), score(novel, "all").model_copy(update={"split": "held out"})
    page = written(tmp_path, record(*scores, task=Task(data="x"), judgement=judged), [base, novel])
    shown = {attributes.get("data-set") for _, attributes in page.tags} - {None}
    assert shown == {"0"}
    assert scores[1].title in page.text[page.text.index("All figures") :]


@pytest.mark.parametrize(
    ("shots", "counts", "said"),
    [(16, (16, 16), "16 images"), (16, (14, 6, 14), "6 to 14 images"), (16, (), "16 images"),
     (1, (1, 1), "1 image per"), (0, (9, 7), "7 to 9 images"), (0, (), "all training images")],
)  # fmt: skip
def test_images_per_class_are_those_that_there_were(
    shots: int, counts: tuple[int, ...], said: str
) -> None:
    assert said in describe_shots(shots, counts)


def test_the_message_comes_first_with_its_numbers_and_intervals(
    page: Page, base: Evaluation, novel: Evaluation
) -> None:
    before, after = zip(correct(base), correct(novel), strict=True)
    assert f"RMAdapter: {after[0]:.1f} % of 60 images right, {before[0]:.1f} % before" in page.text
    message = page.text[: page.text.index("Gained and lost")]
    for figure in (*before, *after, 100 / 3):
        assert f"{figure:.1f}" in message
    for rate in (before[0], after[0]):
        ends = binomtest(round(rate * 0.6), 60).proportion_ci(method="wilson")
        assert f"95 % interval {100 * ends.low:.1f} to {100 * ends.high:.1f}" in message
    means = [statistics.harmonic_mean(pair) for pair in (before, after)]
    assert re.search(rf"harmonic mean of base and novel ?{means[0]:.1f} ?{means[1]:.1f}", message)
    for b, a in zip(before, after, strict=True):
        assert re.search(rf"{b:.1f} ?{a:.1f} ?\{a - b:+.1f} \(", message)
    assert "464,640 parameters" in page.text
    assert "Time: training 2 min 31 s, in all 2 min 32 s." in page.text


def test_outcomes_are_counted_and_shown(page: Page, base: Evaluation, novel: Evaluation) -> None:
    names = {(False, True): "Gained", (True, False): "Lost"}
    names |= {(False, False): "Both wrong", (True, True): "Both right"}
    shown = 0
    for e in (base, novel):
        right = [p.argmax(1) == e.labels for p in (e.zero_shot, e.probabilities)]
        counts = Counter((bool(before), bool(after)) for before, after in zip(*right, strict=True))
        for key, name in names.items():
            assert f"{name} {counts[key]} (" in page.text
        shown += sum(min(6, n) for n in counts.values())
    thumbnails = [a for a in page.values("src") if a.startswith("data:image/jpeg;base64,")]
    assert len(thumbnails) == shown
    image = Image.open(io.BytesIO(base64.b64decode(thumbnails[0].split(",")[1])))
    assert (image.format, image.size) == ("JPEG", (160, 133))


def test_the_order_of_the_page(page: Page) -> None:
    sections = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert sections == ["mistakes", "next", "before-after", "changed", "confusion", "details"]
    folded = [attributes.get("id") for tag, attributes in page.tags if tag == "details"]
    assert [name for name in folded if name] == ["confidence", "evaluation1", "training"]
    assert folded[-1] == "training"
    assert {"Total loss", "Learning rate"} <= set(page.values("aria-label"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_nothing_is_wider_than_a_narrow_screen(page: Page) -> None:
    """No width in pixels, no table that a narrow screen would have to scroll, and images with a
    text instead."""
    styles = " ".join(page.values("style"))
    assert set(re.findall(r"(?:width|left):[\d.]+(\S)", styles)) <= {"%"}
    sized = [attributes for tag, attributes in page.tags if tag in ("table", "img")]
    assert not {"width", "height"} & {name for attributes in sized for name in attributes}
    tables = [attributes.get("class") or "" for tag, attributes in page.tags if tag == "table"]
    assert tables
    assert all(re.match("scores|text|matrix", name) for name in tables)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    css = files("rmadapter.support").joinpath("assets/report.css").read_text("utf-8")
    assert re.search(r"prefers-color-scheme: dark\) \{\s*:root \{[^}]*--paper: #1", css)
    assert "@media print" in css
    assert not re.search(r"[^-]width: \d{3,}px", css)


def test_same_input_same_bytes_and_the_callers_image_is_left_alone(
    tmp_path: Path, novel: Evaluation
) -> None:
    image = Image.new("RGB", (300, 200), "red")
    e = with_sources(novel, image)
    for name in "ab":
        write(tmp_path / name, record(score(e, "novel")), [e], HISTORY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert image.size == (300, 200)


def test_a_method_without_steps_that_cannot_know_novel_classes(
    tmp_path: Path, base: Evaluation
) -> None:
    nothing = Score(name="novel", images=40, classes=2, reason="it knows <its> classes alone")
    its = record(score(base, "base"), nothing, method="linear-probe")
    page = written(tmp_path, its, [base])
    assert re.search(r"test, novel classes ?it knows <its> classes alone ?–", page.text)
    assert "linear probe on pocket" in page.text
    assert "harmonic mean" not in page.text
    assert "Total loss" not in page.values("aria-label")
    assert "evaluation1" not in page.values("id")


def test_a_set_of_one_class_and_of_one_image(tmp_path: Path) -> None:
    e = evaluation("test, novel classes", 1, ("only",), 0)
    page = written(tmp_path, record(score(e, "novel")), [e])
    assert re.search(r"\+0.0 points on 1 image .* −\d", page.text)


def test_nothing_to_evaluate_and_no_command(tmp_path: Path) -> None:
    page = written(tmp_path, record(command="", notes=()))
    assert "There was nothing to evaluate" in page.text
    assert "Repeat it" not in page.text
    assert "Before and after" not in page.text


def test_missing_files_are_named_as_unreadable(tmp_path: Path, novel: Evaluation) -> None:
    # as Linux gives a name that is not UTF-8
    name = b"gone \xff.jpg".decode("utf-8", "surrogateescape")
    e = with_sources(novel, tmp_path / name, tmp_path)
    assert "no longer readable" in written(tmp_path, record(score(e, "novel")), [e]).text


@pytest.mark.ci
def test_a_hundred_classes_stay_under_three_megabytes(tmp_path: Path) -> None:
    names = tuple(f"a class with name {i}" for i in range(100))
    e = evaluation("test, all classes", 2500, names, 3)
    write(tmp_path / "r.html", record(score(e, "all")), [e], HISTORY)
    assert (tmp_path / "r.html").stat().st_size < 3e6


def settings_table(path: Path) -> dict[str, tuple[str, bool, str]]:
    """name -> value, whether it is bold, meaning."""
    rows = re.findall(
        r"<tr><td><code>(.*?)</code></td><td>(<b>)?(.*?)(?:</b>)?</td>"
        r"<td class=\"soft\">(.*?)</td></tr>",
        path.read_text(encoding="utf-8"),
    )
    return {name: (unescape(value), bool(bold), unescape(text)) for name, bold, value, text in rows}


def test_every_setting_has_its_meaning_and_is_bold_where_it_is_not_the_default(
    tmp_path: Path,
) -> None:
    changed = {"rank": 8, "betas": [0.9, 0.9]}
    settings = settings_of(load_method("mma")) | changed
    task = Task(data="x", shots=4, templates=("<{}>",))
    page = written(tmp_path, record(method="mma", settings=settings, task=task, precision="bf16"))
    found = settings_table(tmp_path / "r.html")
    assert found.keys() >= {"method", "precision", "shots", "seed", *settings}
    bold = {name for name, (_, is_bold, _) in found.items() if is_bold}
    assert bold == {*changed, "shots", "templates", "precision"}
    assert found["rank"] == ("8", True, documentation(load_method("mma"))["rank"])
    assert found["seed"] == ("1", False, documentation(Task())["seed"])
    assert found["templates"][0] == '["<{}>"]'
    assert found["last_block"][0] == "null"
    assert "Bold: not the default" in page.text


def test_a_setting_named_like_a_common_one_has_the_prefix_of_its_method(tmp_path: Path) -> None:
    settings = {"templates": ["a {}"]}
    written(tmp_path, record(method="zero-shot", settings=settings))
    found = settings_table(tmp_path / "r.html")
    assert found["zero-shot.templates"][:2] == ('["a {}"]', True)
    assert not found["templates"][1]


def test_a_missing_method_from_outside_has_no_known_defaults(tmp_path: Path) -> None:
    gone = record(method=f"{tmp_path}/gone.py:Mine", settings={"width": 3}, task=Task(shots=4))
    page = written(tmp_path, gone)
    found = settings_table(tmp_path / "r.html")
    assert found["width"] == ("3", False, "")
    assert found["shots"] == ("4", False, documentation(Task())["shots"])
    assert "Bold: not the default" not in page.text


def test_a_method_that_only_the_record_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    written(tmp_path, record(method=f"{tmp_path}/evil.py:Evil", settings={"width": 3}))
    assert settings_table(tmp_path / "r.html")["width"] == ("3", False, "")


def test_scores_and_evaluations_that_do_not_match_are_refused(
    tmp_path: Path, base: Evaluation, novel: Evaluation
) -> None:
    with pytest.raises(ValueError, match="zip"):
        write(tmp_path / "r.html", record(score(base, "base")), [base, novel], [])
    mixed = replace(base, images=novel.images)
    with pytest.raises(ValueError, match=r"60 answers on 40 images"):
        write(tmp_path / "r.html", record(score(base, "base")), [mixed], [])
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_importing_the_page_imports_no_plotting_library() -> None:
    code = (
        "import sys, rmadapter.artifacts.page\n"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'jinja2', 'open_clip'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def found(n: int = 200, classes: int = 4, seed: int = 0) -> Predictions:
    e = evaluation("test, all classes", n, tuple(f"class {i}" for i in range(classes)), seed)
    return Predictions.of(score(e, "all"), e)


def test_the_matrix_counts_like_scikit_learn() -> None:
    its = found()
    rows = panel(0, its.score, its, {})["matrix"]["rows"]
    wanted = confusion_matrix(its.true, its.answer.which, labels=range(4))
    np.testing.assert_array_equal([[n for n, _ in cells] for _, _, cells in rows], wanted)
    shares = np.array([[share for _, share in cells] for _, _, cells in rows])
    np.testing.assert_allclose(shares, wanted / wanted.sum(1)[:, None])
    assert [name for name, _, _ in rows] == [f"class {i}" for i in range(4)]


@pytest.mark.parametrize(
    ("classes", "there"), [(MAX_MATRIX_CLASSES, True), (MAX_MATRIX_CLASSES + 1, False)]
)
def test_more_than_25_classes_have_no_matrix(classes: int, there: bool) -> None:
    its = found(classes=classes)
    part = panel(0, its.score, its, {})
    assert (part["matrix"] is not None) == there


def test_many_classes_get_a_list_instead_of_a_matrix(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 500, tuple(f"class {i}" for i in range(101)), 2)
    labels = (*[7] * 30, *e.images.labels[30:])
    e = replace(e, images=replace(e.images, labels=labels))
    e.probabilities[:30], e.zero_shot[:30] = np.eye(101)[8], np.eye(101)[9]
    page = written(tmp_path, record(score(e, "all")), [e])
    assert "confusion matrix" not in page.values("aria-label")
    assert "A matrix of 101 classes" in page.text
    assert re.search(r"class 7 taken for class 8, 3\d of 3\d times \(before: \d\)", page.text)
    assert re.search(r"class 7 ?class 8 ?3\d", page.text)


def test_the_largest_confusions_are_named_in_order() -> None:
    its = found()
    counts = confusion_matrix(its.true, its.answer.which, labels=range(4))
    before = confusion_matrix(its.true, its.zero_shot.which, labels=range(4))
    np.fill_diagonal(counts, 0)
    part = panel(0, its.score, its, {})
    assert [pair.n for pair in part["pairs"]] == sorted(counts[counts > 0], reverse=True)
    largest = part["in_words"][0]
    true, said = (int(name.split()[1]) for name in (largest.true, largest.said))
    assert (largest.n, largest.before) == (counts.max(), before[true, said])
    assert len(part["in_words"]) == 3


def test_a_class_without_an_image_comes_last() -> None:
    e = evaluation("test, all classes", 60, ("ant", "bee", "cat"), 0)
    rows = [i for i, label in enumerate(e.images.labels) if label != 1]
    part = Evaluation(e.title, e.images.subset(rows), e.probabilities[rows], e.zero_shot[rows])
    its = Predictions.of(score(part, "all"), part)
    per_class = panel(0, its.score, its, {})["per_class"]
    assert [(row["name"], row["n"]) for row in per_class][-1] == ("bee", 0)
    assert per_class[0]["change"] >= per_class[1]["change"]


@pytest.mark.parametrize(("gained", "lost", "shown"), [(30, 5, 1), (5, 30, -1), (10, 9, 0)])
def test_a_change_is_shown_by_its_interval(gained: int, lost: int, shown: int) -> None:
    e = evaluation("test, all classes", 100, ("a", "b"), 0)
    labels = np.array(e.images.labels)
    right = np.eye(2, dtype=np.float32)[labels] * 0.8 + 0.1
    before, after = right.copy(), right.copy()
    before[:gained] = 1 - right[:gained]
    after[gained : gained + lost] = 1 - right[gained : gained + lost]
    its = replace(e, probabilities=after, zero_shot=before)
    part = panel(0, score(its, "all"), Predictions.of(score(its, "all"), its), {})
    change = part["change"]
    assert change["points"] == pytest.approx(gained - lost)
    assert (change["low"] > 0) - (change["high"] < 0) == shown
    for rate, (low, high) in zip(correct(its), (change["before"], part["after"]), strict=True):
        assert low < rate < high
    assert part["ece"] == pytest.approx(abs(90 - correct(its)[1]), abs=0.01)


def test_changed_settings_of_a_method_from_a_file_are_marked(
    tmp_path: Path, base: Evaluation
) -> None:
    """The record says what they were; the file may be gone."""
    its = record(score(base, "all"), task=Task(data="x"))
    facts = {"name": "gone/mine.py:Mine", "settings": {"size": 9, "rate": 1.0}}
    method = its.method.model_copy(update={**facts, "published": {"size": 3, "rate": 1.0}})
    written(tmp_path, its.model_copy(update={"method": method}), [base])
    html = next(tmp_path.glob("*.html")).read_text("utf-8")
    assert "<b>9</b>" in html
    assert "<b>1.0</b>" not in html


def test_missing_images_come_from_the_earlier_page(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 40, ("x", "y"), 1)
    write(tmp_path / "r.html", record(score(e, "all")), [e])
    kept = thumbnails_of(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert kept
    for (number, file), src in kept.items():
        assert number == 0
        assert f'title="{escape(file)}"' in text
        assert src in text
    its = Predictions.of(score(e, "all"), e)
    gone = replace(its, sources=(None,) * 40)
    for number, shown in ((0, {*kept.values()}), (1, {""})):
        outcomes = panel(number, its.score, gone, kept)["outcomes"]
        assert {card["src"] for outcome in outcomes for card in outcome["cards"]} == shown
    assert thumbnails_of(tmp_path / "none.html") == {}


def test_mistakes_are_shown_with_the_nearest_training_images(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 40, ("sea horse", "y"), 1)
    e = replace(e, images=replace(e.images, written=("sea_horse", "y")))
    its = Predictions.of(score(e, "all"), e)
    row = int(np.flatnonzero(its.answer.which != its.true)[0])
    Image.new("RGB", (300, 200), "red").save(tmp_path / "near.png")
    near = (
        Neighbour("near.png", tmp_path / "near.png", "sea_horse", 0.876),
        Neighbour("<gone>.png", None, "<b>", 0.5),
    )
    wrong = [Mistake(its.images[row], near)]
    write_run_page(tmp_path / "r.html", record(score(e, "all")), [its], [], wrong=wrong)
    page = Page(tmp_path / "r.html")
    text = page.text
    assert "why" in page.values("id")
    answer, true = (its.classes[which[row]] for which in (its.answer.which, its.true))
    guesses = (its.answer, its.second, its.zero_shot)
    shares = [f"{100 * guess.probability[row]:.0f}" for guess in guesses]
    assert f"true class: {true}adapted: {answer} {shares[0]} %, {true} {shares[1]} %" in text
    assert f"zero-shot: {its.classes[its.zero_shot.which[row]]} {shares[2]} %" in text
    assert re.search(r"sea horse ?0\.88", text)
    assert re.search(r"<b> ?0\.50", text)
    kept = thumbnails_of(tmp_path / "r.html")
    assert kept[TRAINING_SET, "near.png"]
    gone = replace(its, sources=(None,) * 40)
    wrong = [Mistake(its.images[row], tuple(one._replace(source=None) for one in near))]
    write_run_page(tmp_path / "again.html", record(score(e, "all")), [gone], [], kept, wrong)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "r.html").read_bytes()
    write_run_page(tmp_path / "none.html", record(score(e, "all")), [its], [])
    assert "why" not in Page(tmp_path / "none.html").values("id")


def test_thumbnails_hold_no_metadata_of_their_files(tmp_path: Path, novel: Evaluation) -> None:
    """Comment, EXIF, ICC profile, and what follows the end of the image."""
    secret = b"SECRET, and <script>alert(1)</script>"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    path = tmp_path / "x.jpg"
    Image.new("RGB", (40, 30), "red").save(path, comment=secret, exif=exif, icc_profile=secret)
    path.write_bytes(path.read_bytes() + secret)
    e = with_sources(novel, path, tmp_path)
    sources = written(tmp_path, record(score(e, "novel")), [e]).values("src")
    found = [source.split(",")[1] for source in sources if source.startswith("data:image")]
    assert found
    plain = {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    for data in map(base64.b64decode, found):
        assert b"SECRET" not in data
        assert set(Image.open(io.BytesIO(data)).info) <= plain
