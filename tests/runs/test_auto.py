"""`--method auto`: which candidate is taken, against differences by hand; what is left out, and
what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter import FewShotClassifier
from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.summary import choice_table, describe_choice
from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import METHODS
from rmadapter.methods.auto import CANDIDATES, FEW, FOR_FEW, Auto, preferred
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.fit import fit
from rmadapter.runs.folds import Folds, OutOfTime, choose, pick
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request, requested
from rmadapter.runs.run import learn
from rmadapter.settings import settings_of
from rmadapter.training.contract import Choices

pytestmark = pytest.mark.real_plots

THREE = ("zero-shot", "linear-probe", "tip-adapter")


@pytest.fixture(autouse=True)
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a penalty of the linear probes, which takes half of the time here and is tested in
    test_linear_probe.py."""
    monkeypatch.setattr(LinearProbe, "_best", lambda probe, worth: max((4.0, 0.0), key=worth))


def asked(values: dict[str, Any], data: str = "") -> Request:
    return Request.make(values, "auto", data=data, choosing=True)


def folds_of(
    backbone: Backbone, colors: Path, shots: int = 0, **settings: Any
) -> tuple[Folds, Choices]:
    wanted = asked(
        {"shots": shots, "device": "cpu", "backbone": backbone.name, **settings}, data="x"
    )
    lab = Lab(wanted.machine, progress=False)
    lab.add_backbone(backbone)
    lab.add("x", {"all": read_images(colors)["train"]})
    folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)
    choices = wanted.method.choices(folds.images.labels)
    assert choices is not None
    return folds, choices


def test_the_first_within_two_standard_errors_of_the_best_is_taken() -> None:
    right = np.ones(100, bool)
    four, five = right.copy(), right.copy()
    four[:4], five[:5] = (
        False,
        False,
    )  # behind by 4 with an error of 1.96, twice which is 3.92; by 5 with one of 2.18
    three = right.copy()
    three[:3] = False  # behind by 3 with an error of 1.71
    assert pick(np.stack([five, four, three, right])) == 2
    assert pick(np.stack([right, three, four])) == 0
    # as many right as the best, on other images: behind by nothing
    assert pick(np.stack([np.roll(four, 50), four])) == 0
    # 9 behind, but on so many images that differ: the error is 4.9
    noisy, best = right.copy(), right.copy()
    noisy[:17], best[17:25] = False, False
    assert pick(np.stack([noisy, best])) == 0
    assert pick(np.stack([~right, ~right])) == 0


def test_candidates_are_methods_and_are_asked_in_order(tiny_clip: Backbone, colors: Path) -> None:
    assert {*CANDIDATES} <= {*METHODS}
    folds, choices = folds_of(tiny_clip, colors, candidates=THREE)
    choice = choose(folds, choices)
    assert [row.name for row in choice.rows] == [*THREE]
    assert (choice.folds, choice.images) == (3, len(folds.rows))
    labels, hits = np.array(folds.judged.labels), []
    for row in choice.rows:
        hits.append(folds.answers(choices.methods[row.name], row.name).table.argmax(1) == labels)
        assert row.accuracy == pytest.approx(100 * hits[-1].mean())
        assert row.reason == ""
    assert choice.chosen == THREE[pick(np.stack(hits))]
    best = max(row.accuracy or 0 for row in choice.rows)
    for row in choice.rows:
        assert row.behind == pytest.approx(best - (row.accuracy or 0))
    header, rows = choice_table(choice)
    assert header[0] == "method"
    assert [row[0].removesuffix(" (chosen)") for row in rows] == [*THREE]
    assert (
        f"auto: {choice.chosen}, the first within two standard errors of the best, by 3-fold"
        in describe_choice(choice)
    )


def test_late_and_failing_candidates_are_listed_with_reasons(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds, choices = folds_of(tiny_clip, colors, candidates=THREE)
    real = folds.answers

    def some(method: Any, name: str, **how: Any) -> Any:
        if name == "tip-adapter":
            raise OutOfTime
        if name == "linear-probe":
            raise UserError("it has a reason")
        return real(method, name, **how)

    monkeypatch.setattr(folds, "answers", some)
    choice = choose(folds, choices)
    assert choice.chosen == "zero-shot"
    assert [row.reason for row in choice.rows] == [
        "",
        "it has a reason",
        "would not finish in time",
    ]
    assert choice_table(choice)[1][1] == ["linear-probe", "-", "it has a reason", ""]
    with pytest.raises(
        UserError, match="no candidate could be judged; the first, linear-probe: it has a reason"
    ):
        choose(folds, Auto(candidates=("linear-probe",)).choices())


def test_one_image_a_class_is_too_few_to_choose_by(tiny_clip: Backbone, colors: Path) -> None:
    choice = choose(*folds_of(tiny_clip, colors, shots=1))
    assert (choice.chosen, choice.rows) == (FOR_FEW, ())
    assert "too few images per class to choose by" in describe_choice(choice)


def test_both_probes_are_preferred_for_few_images_alone(tiny_clip: Backbone, colors: Path) -> None:
    assert preferred(CANDIDATES, 16) == preferred(CANDIDATES, FEW) == [*CANDIDATES]
    first, *others = preferred(CANDIDATES, FEW - 1)
    assert first == FOR_FEW
    assert others == [name for name in CANDIDATES if name != FOR_FEW]
    assert preferred(("zero-shot", "linear-probe"), 2) == ["zero-shot", "linear-probe"]
    folds, choices = folds_of(tiny_clip, colors, candidates=("zero-shot", FOR_FEW))
    assert np.median(np.bincount(folds.images.labels)) < FEW
    assert [row.name for row in choose(folds, choices).rows] == [FOR_FEW, "zero-shot"]


def test_settings_of_a_method_and_unknown_candidates_are_refused() -> None:
    assert asked({"minutes": 2, "shots": 4}).method == Auto(minutes=2)
    with pytest.raises(UserError, match="rank"):
        asked({"rank": 4})
    with pytest.raises(UserError, match="unknown method 'tip-adaptor'; did you mean"):
        asked({"candidates": ["tip-adaptor"]})
    with pytest.raises(UserError, match="minutes"):
        asked({"minutes": 0})


def test_a_stopped_run_keeps_what_was_chosen(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    wanted = asked({"device": "cpu", "backbone": tiny_clip.name, "candidates": THREE[:2]}, data="x")
    lab = Lab(wanted.machine, progress=False)
    lab.add_backbone(tiny_clip)
    lab.add("x", {"all": read_images(colors)["train"]})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmadapter.runs.fit.run_task", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(wanted.task, wanted.method, tmp_path, lab, wanted.name)
    [path] = tmp_path.rglob("choice-*.json")
    kept = json.loads(path.read_text())
    other = next(name for name in THREE[:2] if name != kept["chosen"])
    path.write_text(json.dumps(kept | {"chosen": other}))
    record = fit(wanted.task, wanted.method, tmp_path, lab, wanted.name)
    assert record.choice
    assert (record.choice.chosen, record.method.name) == (other, other)
    assert not [*tmp_path.rglob("choice-*.json")]


def test_auto_chooses_a_method_and_says_how(tiny_clip: Backbone, colors: Path) -> None:
    paths = sorted((colors / "train").glob("*/*.png"))
    names = [path.parent.name for path in paths]
    few = FewShotClassifier(
        tiny_clip.name, method="auto", candidates=("zero-shot", "linear-probe"), device="cpu"
    )
    few.fit(paths, names)
    assert few.choice_.chosen == "linear-probe"
    assert few.fitted_.method.title == "linear probe"
    assert few.fitted_.temperature != 1
    plain = FewShotClassifier(tiny_clip.name, method="linear-probe", device="cpu").fit(paths, names)
    images = sorted((colors / "test").glob("*/*.png"))
    assert (few.predict(images) == plain.predict(images)).all()  # a temperature changes no answer
    assert abs(few.predict_proba(images) - plain.predict_proba(images)).max() > 0.01


def test_a_method_is_chosen_and_its_probabilities_are_calibrated(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "shots": 4,
        "device": "cpu",
        "backbone": tiny_clip.name,
        "candidates": ["zero-shot", "linear-probe"],
    }
    wanted, splits = asked(settings, data="x"), {"all": read_images(colors)["train"]}

    def run(out: Path) -> Record:
        lab = Lab(wanted.machine, progress=False)
        lab.add("x", splits)
        return fit(wanted.task, wanted.method, out, lab, wanted.name, folds=3)

    first = run(tmp_path / "one")
    assert first.choice is not None
    assert first.judgement is not None
    assert first.choice.chosen == first.method.name == "linear-probe"
    assert first.judgement.rows[-1].accuracy == pytest.approx(first.choice.rows[1].accuracy)
    assert first.judgement.doubts[-1].startswith("linear probe was also chosen on these images")
    saved = load(tmp_path / "one", tiny_clip)
    assert saved.fitted.temperature == first.temperature != 1
    assert "Which method?" in (tmp_path / "one" / "report.html").read_text("utf-8")
    assert run(tmp_path / "one") == first  # finished

    real = Folds.answers  # killed after the first candidate, it goes on with the second

    def dies(self: Any, method: Any, name: str, **how: Any) -> Any:
        if name == "linear-probe":
            raise KeyboardInterrupt
        return real(self, method, name, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Folds, "answers", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "two")
    fitted: list[str] = []
    monkeypatch.setattr(
        "rmadapter.runs.folds.learn",
        lambda method, *rest: fitted.append(method.title) or learn(method, *rest),
    )
    second = run(tmp_path / "two")
    assert fitted == ["linear probe"] * 3
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (second.key, second.temperature) == (first.key, first.temperature)
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert left[0] == left[1]


def test_flags_come_before_the_file_and_set_before_both(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: mma\nshots: 3\nseed: 4\nrank: 5\n")
    flags = {"shots": 7, "seed": None}
    found = requested("", tmp_path / "c.yaml", flags, ["rank=9"], data="x")
    assert (found.name, found.task.shots, found.task.seed, found.task.data) == ("mma", 7, 4, "x")
    assert settings_of(found.method)["rank"] == 9
    assert requested("", None, {}, None).name == "rmadapter"
    assert requested("auto", None, {"minutes": 2}, None, choosing=True).method == Auto(minutes=2)
    with pytest.raises(UserError, match="`fit`"):
        requested("auto", None, {}, None)
