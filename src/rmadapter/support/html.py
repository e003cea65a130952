"""Parts of the package's pages: templates, and plots as SVG.

A plot takes its colours from the page, so that one file serves light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np

from rmadapter.metrics import equal_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Template
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@cache
def template(
    name: str,
    escape: bool = True,
    package: str = "rmadapter.support",
    **filters: Callable[..., object],
) -> Template:
    """Load a template, once. It escapes values for HTML and raises on missing ones.

    Args:
        name: File of the template.
        escape: Whether values are escaped for HTML.
        package: Package whose `assets` hold the template. It may include those of this room.
        **filters: Added to Jinja2's and to `count`, which marks the thousands of a number.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    packages = dict.fromkeys((package, "rmadapter.support"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each, "assets") for each in packages]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters, count=lambda number: f"{number:,}")
    return environment.get_template(name)


# Plots

# Each colour is drawn in its light value and then replaced by the page's variable of that name.
# Blue and vermilion are those of Okabe and Ito, distinct for any colour vision; vermilion is
# darkened to be readable as text.
COLOURS = {"ink": "#1d2129", "faint": "#c9ced6", "adapted": "#0072b2", "zero-shot": "#b84e00"}
TERMS = {  # titles of recorded terms; any other term keeps its own name
    "loss": "Total loss",
    "ce": "Cross-entropy",
    "ce_representation": "Cross-entropy of the representations",
    "image_rec": "Image reconstruction",
    "text_rec": "Text reconstruction",
    "image_con": "Image consistency",
    "text_con": "Text consistency",
    "image": "Image consistency",
    "text": "Text consistency",
    "logits": "Logit consistency",
    "distance": "Distance from the frozen prompts",
    "lr": "Learning rate",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rmadapter",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "xtick.color": COLOURS["faint"],
    "ytick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["faint"],
    "grid.alpha": 0.5,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def loss_terms(history: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Return (title, SVG) of each recorded term that is not 0 throughout: the total loss first, the
    learning rate last. A loss that is never negative has a log axis, which cannot show 0.

    Args:
        history: One mapping per step with "step". Missing and non-finite values are left out.
    """
    recorded = dict.fromkeys(name for step in history for name in step)
    names = [name for name in recorded if name not in ("step", "epoch")]
    plots = []
    for number, name in enumerate(sorted(names, key=lambda name: (name == "lr", name != "loss"))):
        points = [(step["step"], step.get(name, np.nan)) for step in history]
        steps, values = np.array(points, dtype=np.float64).T
        rate, title = name == "lr", TERMS.get(name, name)
        log = not rate and not (values < 0).any()
        shown = np.isfinite(values) & ((values > 0) | (not log))
        if values[shown].any():
            with canvas(2.9, 1.9, f"loss{number}", title) as (axes, out):
                _curve(axes, steps[shown], values[shown], log=log, smooth=not rate)
            plots.append((title, out[0]))
    return plots


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, log: bool, smooth: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    # At most 300 points, each a mean of neighbours; the bold line is a running mean over a tenth.
    stretches = np.array_split(np.arange(len(steps)), min(300, len(steps)))
    x, y = (np.array([column[s].mean() for s in stretches]) for column in (steps, values))
    smooth = smooth and len(x) >= 20
    thin, faint = (0.8, 0.4) if smooth else (1.6, 1)
    axes.plot(x, y, color=COLOURS["adapted"], linewidth=thin, alpha=faint)
    if smooth:
        width = len(x) // 10
        window = np.ones(width)
        mean = np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")
        axes.plot(x, mean, color=COLOURS["adapted"], linewidth=1.8)
    if log:
        axes.set_yscale("log")
        wide = y.max() > 8 * y.min()
        subs = (1, 2, 5) if y.max() < 300 * y.min() else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs) if wide else MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if values.min() >= 0:
            axes.set_ylim(0, 1.1 * y.max())
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("step")


def reliability_diagram(answers: Mapping[str, tuple[np.ndarray, np.ndarray]], prefix: str) -> str:
    """Plot accuracy against confidence as SVG, with Wilson's 95 % intervals.

    There are at most 10 bins of equally many images, at least 10; the diagonal means perfect
    calibration.

    Args:
        answers: Confidence [N], 0..1, and whether it was right [N], by "zero-shot" and "adapted".
        prefix: Prefix of the SVG's ids, so that plots of a page do not clash.
    """
    with canvas(3.9, 3.3, prefix, "Accuracy against confidence") as (axes, out):
        axes.plot([0, 100], [0, 100], color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (4, 3)))
        for (name, (sure, correct)), marker in zip(answers.items(), "so", strict=False):
            x, y, ends = equal_count(sure, correct, min(10, len(sure) // 10))
            axes.vlines(x, ends[:, 0], ends[:, 1], color=COLOURS[name], linewidth=1, alpha=0.45)
            axes.plot(
                x, y, color=COLOURS[name], marker=marker, markersize=5, linewidth=1.5, label=name
            )
        axes.set(
            xlim=(0, 103), ylim=(0, 103), xlabel="confidence, %", ylabel="answers that are right, %"
        )
        axes.legend(loc="upper left")
    return out[0]


def risk_coverage(answers: Mapping[str, tuple[np.ndarray, np.ndarray]], prefix: str) -> str:
    """Plot the share of wrong answers among the surest ones as SVG, against the share of images
    that these are (the risk-coverage curve of El-Yaniv and Wiener, 2010). Images of equal
    confidence are answered together.

    Args:
        answers: As for `reliability_diagram`.
        prefix: As for `reliability_diagram`.
    """
    with canvas(3.9, 3.3, prefix, "Wrong answers among the surest") as (axes, out):
        for name, (sure, correct) in answers.items():
            order = np.argsort(-sure, kind="stable")
            counts, wrong = np.arange(1, len(order) + 1), np.cumsum(~correct[order])
            ends = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))
            ends = ends[np.linspace(0, len(ends) - 1, min(300, len(ends))).astype(int)]
            x, y = 100 * counts[ends] / len(order), 100 * wrong[ends] / counts[ends]
            axes.plot(x, y, color=COLOURS[name], linewidth=1.5, label=name)
        axes.set(xlim=(0, 103), xlabel="images answered, the surest first, %")
        axes.set(ylabel="of these answers wrong, %")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
    return out[0]


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, with two units."""
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


@contextmanager
def canvas(
    width: float, height: float, prefix: str, label: str
) -> Iterator[tuple[Axes, list[str]]]:
    """Yield axes to draw on, and the list that holds the SVG afterwards; pyplot is not used."""
    import matplotlib.style
    from matplotlib.figure import Figure

    out: list[str] = []
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), out
        out.append(inline_svg(figure, prefix, label))


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return a figure as SVG for a page.

    Args:
        figure: The figure.
        prefix: Prefix of the SVG's ids, so that plots of a page do not clash.
        label: What a screen reader says.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's style element would reach beyond the plot: in a page it applies to everything.
    svg = re.sub(
        r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL
    )
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(label)}', 1)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{prefix}-", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return svg
