"""Several labels an image, from a table to a model, its record, its page and its answers; what
refuses them; and tools/several.py, which says what they are worth."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import several as study
import torch
from PIL import Image

from rmadapter import (
    FewShotClassifier,
    explain_images,
    find_suspects,
    load,
    read_images,
    suggest_images,
)
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.metrics import average_precisions
from rmadapter.runs.compare import compare
from rmadapter.runs.fit import evaluate_saved, page_again
from rmadapter.several import intervals, mean_f1, mean_precision
from rmadapter.training.cache import Cache
from tests.helpers.shell import Command, its_backbone, refused, rmadapter
from tests.helpers.shots import COLORS

__all__ = ["rmadapter"]  # a fixture

NAMES = tuple(COLORS)
SETS = (*study.CHOOSE[1:], *study.REPORT[1:])


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 images of four noisy fields, each in one of the one to three colours that are
    its labels."""
    root, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    lines = ["path,labels,split"]
    for number in range(60):
        labels = rng.choice(4, rng.integers(1, 4), replace=False)
        fields = [COLORS[NAMES[labels[i % len(labels)]]] for i in rng.permutation(4)]
        pixels = np.array(fields).reshape(2, 2, 3).repeat(16, 0).repeat(16, 1) + rng.normal(
            0, 20, (32, 32, 3)
        )
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{number}.png")
        written = ";".join(NAMES[i].replace(" ", "_") for i in labels)
        lines.append(f"{number}.png,{written},{'train' if number < 40 else 'test'}")
    (root / "table.csv").write_text("\n".join(lines))
    return root / "table.csv"


@pytest.fixture(scope="session")
def run(mixed: Path, tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rmadapter.runs.fit import fit
    from rmadapter.runs.request import Request
    from rmadapter.runs.run import Lab

    settings = {"shots": 8, "device": "cpu", "backbone": tiny_clip.name, "search_steps": 1}
    wanted = Request.make(settings, "linear-probe", data=str(mixed))
    lab = Lab(wanted.machine, progress=False)
    lab.add(str(mixed), read_images(mixed))
    out = tmp_path_factory.mktemp("several") / "run"
    fit(wanted.task, wanted.method, out, lab, wanted.name)
    return out


def test_a_run_says_what_it_is_worth(run: Path, mixed: Path, tiny_clip: Backbone) -> None:
    record = read_record(run / "run.json")
    [score] = record.scores
    assert score.several
    assert (score.accuracy, score.images, record.judgement, record.temperature) == (
        None,
        20,
        None,
        None,
    )
    assert score.several.classes == NAMES
    before, after = score.several.means[1], score.several.means[0]
    assert after > max(
        80, before
    )  # colours are easy, and a random backbone does not know their names
    test = read_images(mixed)["test"]
    saved = load(run, tiny_clip)
    assert saved.fitted.known.several
    assert saved.fitted.threshold == score.several.threshold
    table = torch.cat(list(saved.fitted.probabilities(test.images))).numpy()
    assert list(score.several.precisions) == pytest.approx(
        average_precisions(table, test.targets()), abs=1e-3
    )
    assert not np.allclose(table.sum(1), 1)  # each label by itself
    _, [again] = evaluate_saved(
        run, saved.fitted, read_images(mixed), "test", "all", Cache(tiny_clip, hold=False)
    )
    assert again.several == score.several
    _, [held] = evaluate_saved(
        run, saved.fitted, read_images(mixed), "heldout", "all", Cache(tiny_clip, hold=False)
    )
    assert 0 < held.images < 40


@pytest.mark.parametrize("digits", [1, 12])  # to one digit many images have one score
def test_weighted_means_are_those_of_scikit_learn(digits: int) -> None:
    from sklearn.metrics import average_precision_score, f1_score

    rng = np.random.default_rng(0)
    scores, targets = rng.random((30, 4)).round(digits), rng.random((30, 4)) < [0.3, 0.5, 0.1, 0]
    weights = rng.integers(0, 3, (5, 30)).astype(np.float32)
    targets[:, 2] &= (
        weights[0] == 0
    )  # so that a class has no image in the first draw, and another in none
    precisions, f1s = (
        mean_precision(weights, scores, targets),
        mean_f1(weights, scores >= 0.4, targets),
    )
    for draw, own in enumerate(weights):
        there = [c for c in range(4) if (own * targets[:, c]).any()]
        assert (2 in there) == (draw > 0)
        pairs = [(targets[:, c], scores[:, c], scores[:, c] >= 0.4) for c in there]
        expected = [100 * average_precision_score(y, x, sample_weight=own) for y, x, _ in pairs]
        assert precisions[draw] == pytest.approx(np.mean(expected))
        assert f1s[draw] == pytest.approx(
            np.mean([100 * f1_score(y, z, sample_weight=own) for y, _, z in pairs])
        )


def test_intervals_are_as_wide_as_figures_of_other_images_scatter() -> None:
    rng, found, figures = np.random.default_rng(0), [], []
    every = np.ones((1, 60), np.float32)
    for _ in range(80):
        targets = rng.random((60, 5)) < 0.3
        noise = rng.normal(size=(60, 5))  # which two models of the same images have in common
        good, bad = (targets * share + noise + rng.normal(size=(60, 5)) / 2 for share in (2, 1))
        found.append(intervals(good, bad, targets, 1.0, draws=100))
        first, second = (mean_precision(every, table, targets).item() for table in (good, bad))
        figures.append([first, second, mean_f1(every, good >= 1, targets).item(), first - second])
    ends, scatter = np.array(found), np.std(figures, axis=0)
    assert ends.mean(2) == pytest.approx(np.array(figures), abs=1e-3)
    assert np.diff(ends).mean(0)[:, 0] / (2 * 1.96) == pytest.approx(scatter, rel=0.25)
    assert scatter[3] < 0.9 * np.hypot(
        scatter[0], scatter[1]
    )  # so that a difference of their own would be too wide


def test_predictions_have_every_probability(run: Path, mixed: Path, tiny_clip: Backbone) -> None:
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    test, saved = read_images(mixed)["test"], load(run, tiny_clip)
    table = np.concatenate(list(saved.fitted.probabilities(test.images)))
    assert len(rows) == len(test) == 20
    for row, shares, labels, image in zip(rows, table, test.all_labels, test.images, strict=True):
        assert (row["set"], row["split"], row["image"]) == ("all", "test", Path(str(image)).name)
        assert row["true"].split(";") == [str(test.written[i]) for i in labels]
        assert [float(row[f"probability of {x}"]) for x in test.written] == pytest.approx(
            shares.tolist(), abs=1e-4
        )
        over = [
            str(test.written[i]) for i in np.argsort(-shares) if shares[i] >= saved.fitted.threshold
        ]
        assert row["answer"].split(";") == (over or [str(test.written[shares.argmax()])])


def test_its_page_has_each_label(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    assert "finds labels with a mean average precision of" in page
    assert "Each label by itself: test, all classes" in page
    assert all(f"<td>{name}</td>" in page for name in NAMES)
    assert "nothing to evaluate" not in page
    assert re.search(
        r"On as many other images of this kind, a mean average precision of [\d.]+ to [\d.]+ % is plausible",
        page,
    )
    assert page_again(run).read_text("utf-8") == page


def test_answers_are_the_labels_from_the_threshold_on(
    run: Path, mixed: Path, tiny_clip: Backbone, rmadapter: Command, tmp_path: Path
) -> None:
    saved = load(run, tiny_clip)
    words = ["predict", run, mixed, *its_backbone(run)]
    assert rmadapter(*words, "--out", tmp_path / "a.csv").code == 0
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = torch.cat(list(saved.fitted.probabilities([Path(row["image"]) for row in rows])))
    for row, shares in zip(rows, table, strict=True):
        above = {saved.labels[i] for i in range(4) if shares[i] >= saved.fitted.threshold}
        assert {*row["label"].split(";")} == (above or {row["guess"]})
        assert float(row["probability"]) == pytest.approx(float(shares.max()), abs=1e-5)
    assert {row["label"].count(";") for row in rows} >= {0, 1}
    image = mixed.parent / "0.png"
    [found] = json.loads(rmadapter(*words[:2], image, *words[3:], "--json").out)
    assert ";".join(found["labels"]) == rows[0]["label"]
    shown = rmadapter(*words[:2], image, *words[3:]).out
    assert [name for name in map(str, saved.labels) if name in shown] == sorted(found["labels"])
    refused(
        rmadapter(*words, "--sort-into", tmp_path / "sorted"),
        "--sort-into: needs one label per image",
    )


def test_explained_each_label_has_its_own_probability(
    run: Path, mixed: Path, tiny_clip: Backbone
) -> None:
    image = mixed.parent / "0.png"
    [found] = explain_images(run, [image], backbone=tiny_clip, progress=False)
    table = next(load(run, tiny_clip).fitted.probabilities([image]))[0]
    assert [share for _, share in found.best] == pytest.approx(
        table.sort(descending=True).values[:2].tolist(), abs=1e-5
    )
    lines = mixed.read_text().splitlines()[1:]
    written = {
        name: {*labels.split(";")} for name, labels, _ in (line.split(",") for line in lines)
    }
    assert found.neighbours
    assert all({*near.label.split("; ")} == written[near.image] for near in found.neighbours)


def test_zero_shot_answers_any_names(
    rmadapter: Command, mixed: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    text = mixed.read_text().replace(";", " + ").replace("labels", "label")
    (mixed.parent / "plus.csv").write_text(text)
    words = ["--backbone", tiny_clip.name, "--method", "zero-shot", "--set", "device=cpu"]
    table = [
        "fit",
        mixed.parent / "plus.csv",
        "--label-separator",
        " + ",
        *words,
        "--out",
        tmp_path / "run",
    ]
    assert "average precision" in rmadapter(*table).out
    record = read_record(tmp_path / "run/run.json")
    [score] = record.scores
    assert score.several
    assert score.several.precisions == pytest.approx(
        score.several.zero_shot
    )  # the line keeps their order
    assert record.columns == {"separator": " + "}
    image = mixed.parent / "0.png"
    asked = ["predict", tmp_path / "run", image, *words[:2], "--names", "cat,dog,car", "--json"]
    [found] = json.loads(rmadapter(*asked).out)
    assert {each["class"] for each in found["classes"]} == {"cat", "dog", "car"}
    evaluated = [
        "eval",
        tmp_path / "run",
        mixed.parent / "plus.csv",
        *words[:2],
        "--label-separator",
        " + ",
        "--json",
    ]
    assert json.loads(rmadapter(*evaluated).out)["several"]["precisions"] == list(
        score.several.precisions
    )


def test_who_takes_one_label_per_image_says_so(
    run: Path, finished: Path, mixed: Path, tiny_clip: Backbone, rmadapter: Command, tmp_path: Path
) -> None:
    words = ["fit", mixed, "--backbone", tiny_clip.name, "--out", tmp_path / "run"]
    for method in ([], ["--method", "auto"], ["--method", "tip-adapter"]):
        refused(rmadapter(*words, *method), "learns one label per image", "--method linear-probe")
    assert not [*(tmp_path / "run").iterdir()]
    refused(rmadapter("eval", finished, mixed, *its_backbone(finished)), "label")
    refused(
        rmadapter(*words, "--method", "zero-shot", "--classes", "base"),
        "classes='base': needs one label",
    )
    refused(
        rmadapter("add", run, mixed, "--out", tmp_path / "grown", *its_backbone(run)),
        "add with images: needs one",
    )
    refused(
        rmadapter("export", run, "--out", tmp_path / "export", *its_backbone(run)),
        "needs one label per image",
    )
    images, saved = read_images(mixed)["test"], load(run, tiny_clip)
    for call in (
        lambda: find_suspects(mixed),
        lambda: suggest_images(saved, [mixed.parent / "0.png"]),
        lambda: compare([(run, saved)] * 2, images),
        lambda: FewShotClassifier().fit(images),
        lambda: FewShotClassifier.load(run, backbone=tiny_clip.name),
    ):
        with pytest.raises(
            UserError, match="needs one label per image, but images here have several"
        ):
            call()


def test_a_mosaic_has_its_labels_and_no_others() -> None:
    colors = [Image.new("RGB", (40, 30), COLORS[name]) for name in NAMES]
    made = study.mosaics(ImageSet.from_lists(colors, NAMES), 30, seed=1)
    for picture, labels in zip(made.images, made.several, strict=True):
        assert isinstance(picture, Image.Image)
        found = {color for _, color in picture.getcolors()}
        assert found == {COLORS[NAMES[label]] for label in labels}
    assert {len(labels) for labels in made.several} == {1, 2, 3}


def test_the_study_of_labels_and_of_other(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "TESTED", 20)
    monkeypatch.setattr(study, "MOST", 20)
    monkeypatch.setattr(study, "WORDS", ("other", study.ELSE))
    found = study.lines_of(colors.parent, colors.name, 1, tiny_clip, "cpu")
    labels, other = (
        [line for line in found if line["study"] == kind] for kind in ("labels", "other")
    )
    assert [line["method"] for line in labels] == ["zero-shot", "linear-probe"]
    assert (
        labels[0]["map"]
        == pytest.approx(labels[0]["zero_shot"])
        == pytest.approx(labels[1]["zero_shot"])
    )
    assert labels[1]["map"] > labels[0]["map"]
    assert len(other) == 5
    (probe,) = (line for line in other if line["method"] == "linear-probe")
    assert min(probe["named"], probe["other"]) > 50
    lines = [
        {**line, "data": data} for line in found for data in (study.CHOOSE[0], study.REPORT[0])
    ]
    rows = study.tables(lines).splitlines()
    assert (
        rows[2]
        == "| "
        + " | ".join(
            [
                study.REPORT[0],
                *(f"{line[figure]:.1f}" for figure in ("map", "f1") for line in labels),
            ]
        )
        + " |"
    )
    both = (probe["named"] + probe["other"]) / 2
    assert (
        f"| linear-probe, {study.ELSE} | {both:.1f} | {probe['named']:.1f} | {probe['other']:.1f} |"
        in rows
    )


def test_the_tables_of_the_page_are_what_the_lines_say() -> None:
    root = Path(__file__).parents[1]
    lines = [
        json.loads(line)
        for line in (root / "docs/results/several.jsonl").read_text("utf-8").splitlines()
    ]
    page = (root / "docs/data.md").read_text("utf-8")
    assert all(row in page for row in study.tables(lines).splitlines())
    assert {(line["data"], line["seed"]) for line in lines} == {("caltech101", 1)} | {
        (d, s) for d in SETS for s in (1, 2)
    }
