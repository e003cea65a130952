"""Templates of pages, and plots whose SVG is read back with an XML parser."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.resources import files

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.axes import Axes

from rmadapter.support import html
from rmadapter.support.html import template

pytestmark = pytest.mark.real_plots


def test_a_template_escapes_values_and_refuses_missing_ones() -> None:
    page = template("suspects.html.j2", percent=str)
    with pytest.raises(UndefinedError):
        page.render()
    assert template("report.css").render().startswith(":root")
    environment = template("serve.html.j2", package="rmadapter_serve").environment
    assert environment.from_string("{{ text }}").render(text="<b>&") == "&lt;b&gt;&amp;"


def test_a_template_of_markdown_does_not_escape() -> None:
    """The model card's escapes by itself."""
    given = {"title": "<b>"}
    environment = template("modelcard.md.j2", escape=False, cell=str, percent=str).environment
    assert environment.from_string("{{ title }}").render(given) == "<b>"
    escaping = template("modelcard.md.j2", cell=str, percent=str).environment
    assert escaping.from_string("{{ title }}").render(given) == "&lt;b&gt;"


def test_no_page_loads_images_lazily() -> None:
    """They would be missing in print."""
    packages = ("rmadapter.support", "rmadapter_studio", "rmadapter_serve", "rmadapter_research")
    assets = [file for package in packages for file in (files(package) / "assets").iterdir()]
    pages = [file for file in assets if file.name.endswith(".j2")]
    assert len(pages) > 9
    for page in pages:
        assert 'loading="lazy"' not in page.read_text("utf-8")


# Plots


def test_loss_terms_are_those_that_were_recorded() -> None:
    history: list[dict[str, float]] = []
    for i in range(1, 10):
        step = {"step": i, "epoch": 1, "lr": 0.1 if i < 9 else 0.0, "ce": 1.0, "loss": 2 / i}
        history.append({**step, "image_con": 0, "text_con": np.nan, "my <own> term": i - 5})
    drawn = html.loss_terms([*history, {"step": 10, "loss": float("inf")}])
    titles = ["Total loss", "Cross-entropy", "my <own> term", "Learning rate"]
    assert [title for title, _ in drawn] == titles
    assert html.loss_terms([]) == []
    for title, svg in drawn:
        assert ET.fromstring(svg).get("aria-label") == title
    ids = [e.get("id") for _, svg in drawn for e in ET.fromstring(svg).iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_only_a_term_that_is_never_negative_has_a_log_axis() -> None:
    def labels(values: list[float]) -> set[str]:
        history = [{"step": i, "loss": value} for i, value in enumerate(values, 1)]
        ((_, svg),) = html.loss_terms(history)
        return {e.text or "" for e in ET.fromstring(svg).iter() if e.tag.endswith("}text")}

    assert {"1", "100"} <= labels([1.0, 0.0, 100.0])  # which cannot show 0
    assert "−50" in labels([1.0, -50.0, 100.0])


def test_a_long_history_stays_small() -> None:
    history = [{"step": i, "loss": 1 + np.sin(i) ** 2} for i in range(50_000)]
    ((_, svg),) = html.loss_terms(history)
    assert len(svg) < 40_000


def test_svg_is_valid_themed_and_safe_to_inline_twice() -> None:
    rng = np.random.default_rng(0)
    answers = {name: (rng.random(60), rng.random(60) < 0.5) for name in ("zero-shot", "adapted")}
    one, two = (html.reliability_diagram(answers, p) for p in ("one", "two"))
    ids = [{e.get("id") for e in ET.fromstring(svg).iter() if e.get("id")} for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    references = {
        e.get("{http://www.w3.org/1999/xlink}href", "#")[1:] for e in ET.fromstring(one).iter()
    } - {""}
    assert references
    assert references <= ids[0]
    assert "var(--adapted" in one
    assert "<style" not in one
    assert one == html.reliability_diagram(answers, "one")


def test_the_bins_of_the_reliability_diagram_hold_ten_images_or_more() -> None:
    rng = np.random.default_rng(1)

    def points(n: int) -> int:
        svg = html.reliability_diagram({"adapted": (rng.random(n), rng.random(n) < 0.5)}, "p")
        return svg.count("<use") - ticks

    sure = np.array([0.5])
    empty = html.reliability_diagram({"adapted": (sure, np.array([True]))}, "p")
    ticks = empty.count("<use") - 1
    assert [points(n) for n in (1, 19, 20, 55, 100, 5000)] == [1, 1, 2, 5, 10, 10]


def test_the_errors_that_remain_among_the_surest_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of equal confidence, of which one is wrong, are answered together."""
    drawn: list[tuple[list[float], list[float]]] = []

    def plot(axes: Axes, x: np.ndarray, y: np.ndarray, **how: object) -> None:
        drawn.append((x.tolist(), y.tolist()))

    monkeypatch.setattr(Axes, "plot", plot)
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    sure, right = np.array([0.5, 0.9, 0.5, 0.3]), np.array([True, True, False, False])
    html.risk_coverage({"adapted": (sure, right)}, "c")
    assert drawn == [([25, 75, 100], [0, pytest.approx(100 / 3), 50])]


@pytest.mark.ci
def test_drawing_leaves_matplotlib_as_it_was() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from rmadapter.support import html\n"
        "html.loss_terms([{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 0.5}])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or before != matplotlib.rcParams.copy())"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
