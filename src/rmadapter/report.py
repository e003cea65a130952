"""One self-contained HTML page that says what a run did: open it anywhere, no network, no JavaScript."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmadapter import metrics, plots
from rmadapter.config import Config, parse_overrides
from rmadapter.errors import UserError
from rmadapter.files import atomic

if TYPE_CHECKING:
    from rmadapter.data.images import ImageSet
    from rmadapter.evaluation import Evaluation

MATRIX_LIMIT = 100  # classes beyond which a confusion matrix is unreadable and only its largest entries are listed
PAIRS = 15  # rows of that list
PER_OUTCOME = 6  # test images shown for each outcome, and for each end of the novelty score
THUMBNAIL = 160  # pixels of the longer side
OUTCOMES = (  # name, what it means, (zero-shot is right, adapted is right)
    ("Gained", "only the adapted model is right", (False, True)),
    ("Lost", "only the untouched model is right", (True, False)),
    ("Both wrong", "", (False, False)),
    ("Both right", "", (True, True)),
)


def write_report(
    path: Path, run: Mapping[str, Any], evaluations: Sequence[Evaluation], images: Sequence[ImageSet | None]
) -> None:
    """Write the page atomically; the same input gives the same bytes.

    run: the content of run.json, where every key may be missing: "data", "command" (text or list of words), "config",
        "versions", "backbone" {"name", "digest"}, "seed", "split_digest", "parameters" {"trainable", "inference",
        "reconstruction"}, "seconds" {what: seconds}, "history" [{"step", "loss", ...}], "metrics" {title:
        {"chance"}}, "notes" [sentence, ...]
    evaluations: what both models answered; one without images is left out
    images: the ImageSet behind each evaluation, in its order, for the thumbnails; None shows none
    Raises ValueError when evaluations and images do not belong together.
    """
    shown = [(e, i) for e, i in zip(evaluations, images, strict=True) if len(e.labels)]
    for evaluation, behind in shown:
        if behind is not None and len(behind) != len(evaluation.labels):
            raise ValueError(f"{evaluation.title}: {len(evaluation.labels)} answers for {len(behind)} images")
    rows = _rows(run, [evaluation for evaluation, _ in shown])
    html = _template().render(
        run=run,
        rows=rows,
        mean=_harmonic_mean(run, rows),
        losses=plots.loss_terms(run.get("history") or []),
        sections=[_section(number, e, i) for number, (e, i) in enumerate(shown, 1)],
        config=_config(run.get("config") or {}),
        command=_command(run),
    )
    with atomic(path) as partial:
        # A file name that is not UTF-8 reaches us with lone surrogates, which no encoding accepts.
        partial.write_bytes(html.encode("utf-8", "replace"))


def _rows(run: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Before and after, one row per evaluation; figures that only run.json has come last."""
    recorded = {k: v for k, v in (run.get("metrics") or {}).items() if k != "harmonic_mean" and isinstance(v, Mapping)}
    rows = []
    for e in evaluations:
        before, after = (p.argmax(1) == e.labels for p in (e.zero_shot, e.probabilities))
        change = 100 * (after.astype(float) - before)
        rows.append(
            {
                "title": e.title,
                "n_images": len(e.labels),
                "n_classes": len(e.classes),
                "chance": recorded.pop(e.title, {}).get("chance", 100 / len(e.classes)),
                "zero_shot": 100 * before.mean(),
                "adapted": 100 * after.mean(),
                "change": change.mean(),
                "interval": metrics.confidence_interval(change),
                "ece_zero_shot": metrics.expected_calibration_error(e.zero_shot, e.labels),
                "ece": metrics.expected_calibration_error(e.probabilities, e.labels),
                "novelty": float(np.median(e.novelty)) if len(e.novelty) else math.nan,
            }
        )
    for title, row in recorded.items():
        if "zero_shot" in row and "adapted" in row:
            rows.append({**row, "title": title, "change": row["adapted"] - row["zero_shot"]})
    return rows


def _harmonic_mean(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Of the first row with "base" and the first with "novel" in its title; else what run.json has."""

    def row_of(half: str) -> Mapping[str, Any] | None:
        return next((row for row in rows if re.search(rf"\b{half}\b", row["title"], re.IGNORECASE)), None)

    base, novel = row_of("base"), row_of("novel")
    if base and novel:
        return {key: metrics.harmonic_mean(base[key], novel[key]) for key in ("zero_shot", "adapted")}
    recorded = (run.get("metrics") or {}).get("harmonic_mean")
    return recorded if recorded and {"zero_shot", "adapted"} <= recorded.keys() else None


def _section(number: int, e: Evaluation, images: ImageSet | None) -> dict[str, Any]:
    """Everything the page says about one evaluation."""
    before, after = e.zero_shot.argmax(1) == e.labels, e.probabilities.argmax(1) == e.labels
    card = _cards(e, images)
    readable = len(e.classes) <= MATRIX_LIMIT
    outcomes = []
    for name, meaning, (zero_shot, adapted) in OUTCOMES:
        members = np.flatnonzero((before == zero_shot) & (after == adapted))
        picked = members[_spread(len(members), PER_OUTCOME)]
        share = 100 * len(members) / len(e.labels)
        outcomes.append({"name": name, "meaning": meaning, "n": len(members), "share": share, "cards": card(picked)})
    return {
        "title": e.title,
        "n": len(e.labels),
        "outcomes": outcomes,
        "has_images": images is not None,
        "per_class": _per_class(e),
        "matrix": plots.confusion_layout(e.labels, e.probabilities.argmax(1), e.classes) if readable else None,
        "pairs": _pairs(e),
        "reliability": plots.reliability_diagram(e.probabilities, e.zero_shot, e.labels, f"reliability{number}"),
        "novelty": _novelty(number, e, card),
    }


def _spread(n: int, wanted: int) -> np.ndarray:
    """At most `wanted` of 0..n-1, evenly spread: nobody picked them by hand."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(int))


def _per_class(e: Evaluation) -> list[dict[str, Any]]:
    """Accuracy of each class that has images, the largest gain first."""
    n = len(e.classes)
    count = np.bincount(e.labels, minlength=n)
    before, after = (metrics.per_class_accuracy(e.labels, p.argmax(1), n) for p in (e.zero_shot, e.probabilities))
    columns = zip(e.classes, count, before, after, after - before, strict=True)
    keys = ("name", "n", "zero_shot", "adapted", "change")
    rows = [dict(zip(keys, row, strict=True)) for row in columns if row[1]]
    return sorted(rows, key=lambda row: (-row["change"], -row["adapted"], row["name"]))


def _pairs(e: Evaluation) -> list[dict[str, Any]]:
    """The commonest mistakes of the adapted model, and how often the untouched model made the same."""
    n = len(e.classes)
    after, before = (metrics.confusion(e.labels, p.argmax(1), n) for p in (e.probabilities, e.zero_shot))
    total = after.sum(axis=1)
    wrong = after - np.diag(after.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    found = [divmod(int(index), n) for index in largest]
    return [
        {"true": e.classes[t], "said": e.classes[s], "n": wrong[t, s], "before": before[t, s], "total": total[t]}
        for t, s in found
        if wrong[t, s]
    ]


def _novelty(number: int, e: Evaluation, card: Callable[[np.ndarray], list[dict[str, Any]]]) -> dict[str, Any] | None:
    known = np.flatnonzero(np.isfinite(e.novelty))
    if not len(known):
        return None
    # Many images can share the 100th percentile: among equals a fixed shuffle chooses, not the order of the classes.
    known = np.random.default_rng(0).permutation(known)
    ordered = known[np.argsort(-e.novelty[known], kind="stable")]
    return {
        "plot": plots.novelty_histogram(e.novelty, f"novelty{number}"),
        "median": float(np.median(e.novelty[known])),
        "above": 100 * float((e.novelty[known] > 95).mean()),
        "most": card(ordered[:PER_OUTCOME]),
        "least": card(ordered[::-1][:PER_OUTCOME]),
    }


def _cards(e: Evaluation, images: ImageSet | None) -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """A function from indices to what the page shows of these images; without an ImageSet it shows nothing."""

    def card(i: int) -> dict[str, Any]:
        assert images is not None
        answers = []
        for name, row in (("zero-shot", e.zero_shot[i]), ("adapted", e.probabilities[i])):
            best = int(row.argmax())
            answers.append((name, e.classes[best], best == e.labels[i], 100 * float(row[best])))
        return {
            "file": images.name(i),
            "src": _thumbnail(images, i),
            "true": e.classes[int(e.labels[i])],
            "answers": answers,
            "novelty": float(e.novelty[i]) if len(e.novelty) else math.nan,
        }

    return lambda indices: [card(int(i)) for i in indices] if images is not None else []


def _thumbnail(images: ImageSet, index: int) -> str:
    """The image as a data: address, or nothing when the file has gone since it was evaluated."""
    from rmadapter.data.images import load_image

    try:
        image = load_image(images.images[index])
    except UserError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _config(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each field with its meaning; `changed` when it is not the default."""
    rows = []
    for name, value in config.items():
        field = Config.model_fields.get(name)
        changed = field is not None and _json(value) != _json(field.default)
        shown = value if isinstance(value, str) else _json(value)
        rows.append({"name": name, "value": shown, "changed": changed, "text": field.description if field else ""})
    return rows


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _command(run: Mapping[str, Any]) -> str:
    """The command as it was given; without it, one that sets every field that is not a default."""
    given = run.get("command")
    if given:
        return given if isinstance(given, str) else shlex.join(given)
    words = ["rmadapter", "fit", str(run.get("data") or "DATA")]
    config = run.get("config") or {}
    for name in (row["name"] for row in _config(config) if row["changed"]):
        plain = f"{name}={config[name]}"
        # JSON is what --set reads in any case; plain text is nicer where it reads back as the same value.
        same = isinstance(config[name], str) and parse_overrides([plain]) == {name: config[name]}
        words += ["--set", plain if same else f"{name}={_json(config[name])}"]
    return shlex.join([*words, "--out", "RUN"])


def page(name: str, **filters: Any) -> Any:
    """A template of the package, which escapes what it is given and refuses what it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmadapter", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def _template() -> Any:
    return page("report.html.j2", percent=_percent, count=lambda n: f"{n:,}", duration=_duration)


def _percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes < 60 else f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"
