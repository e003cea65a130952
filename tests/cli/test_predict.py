"""The verbs predict and explain."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.classifier import FewShotClassifier
from rmadapter.cli.predict import SortOptions, _classes, _show_counts, answers_key
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.base import Inputs
from rmadapter.errors import UserError
from rmadapter.predict import stream
from rmadapter.predict.stream import Predictor
from rmadapter.predict.write import Counts, Sorter
from rmadapter.runs.features import examine
from rmadapter.support.locks import exclusive
from tests.helpers.shell import (
    Answer,
    Command,
    backbone_option,
    fit_command,
    refused,
    rmadapter,
)

__all__ = ["rmadapter"]  # a fixture

LABELS = {"blue", "green", "night_sky", "red"}


@pytest.fixture
def photos(colors: Path, tmp_path: Path) -> Path:
    """16 images that are called after their class, and what is none."""
    for image in sorted(colors.glob("test/*/*.png")):
        target = tmp_path / "my photos" / image.stem / f"{image.parent.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (tmp_path / "my photos/notes.txt").write_text("x")
    return tmp_path / "my photos"


@pytest.fixture
def command(finished: Path, photos: Path) -> list[object]:
    return ["predict", finished, photos, *backbone_option(finished)]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names_of(images: list[Path]) -> list[str]:
    return [str(image) for image in images]


# On the screen


def test_answers_are_the_best_classes_with_probabilities(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    images = [colors / "test" / name / "0.png" for name in ("red", "night_sky")]
    command = ["predict", finished, *backbone_option(finished)]
    answers = rmadapter.json(*command, *images, "--top", 2)
    assert [answer["image"] for answer in answers] == names_of(images)
    assert [answer["classes"][0]["class"] for answer in answers] == ["red", "night_sky"]
    for answer in answers:
        first, second = (guess["probability"] for guess in answer["classes"])
        assert 1 >= first > second >= 0
    [answer] = rmadapter.json(*command, images[0], "--names", "zebra, 斑马,red ")
    assert {guess["class"] for guess in answer["classes"]} == {"zebra", "斑马", "red"}
    assert sum(guess["probability"] for guess in answer["classes"]) == pytest.approx(1, abs=1e-5)
    table = rmadapter(*command, images[0], "--names", "[/red],[bold]x,:cat:").out
    for name in ("[/red]", "[bold]x", ":cat:", str(images[0])):
        assert name in table
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))  # a name that is not UTF-8
    with open(strange, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    assert rmadapter(*command, strange).code == 0
    assert rmadapter.json(*command, strange)[0]["image"] == str(strange)


def test_a_table_shows_the_first_of_many_images(
    rmadapter: Command, finished: Path, colors: Path
) -> None:
    command = ["predict", finished, f"{colors}/*/*/?.png", *backbone_option(finished), "--top", 1]
    done = rmadapter(*command)
    assert done.out.endswith("the first 20 of 40 images; --out answers.csv answers all of them\n")
    assert done.out.count(".png") == 20
    assert len(rmadapter.json(*command)) == 40


def test_paths_are_read_from_stdin(
    rmadapter: Command, finished: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = io.TextIOWrapper(
        io.BytesIO(f"{photos / '1/red.png'}\n{photos / '0'}\n".encode()), encoding="utf-8"
    )
    monkeypatch.setattr(sys, "stdin", listed)
    assert len(rmadapter.json("predict", finished, "-", *backbone_option(finished))) == 5


@pytest.mark.ci
def test_predict_imports_nothing_that_only_others_need(finished: Path, colors: Path) -> None:
    code = """
import sys
from rmadapter.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
others = ["sklearn", "matplotlib", "pandas"]
others += ["rmadapter.artifacts.page", "rmadapter.support.html", "rmadapter.classifier"]
print([name for name in others if name in sys.modules], file=sys.stderr)
"""
    image = colors / "test/red/0.png"
    words = ["predict", finished, image, *backbone_option(finished), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)[0]["classes"][0]["class"] == "red"


# In a file


def test_a_folder_becomes_a_table_in_a_file(
    rmadapter: Command, command: list[object], finished: Path, photos: Path, tmp_path: Path
) -> None:
    done = rmadapter(*command, "--top", 2, "--out", tmp_path / "a.csv")
    assert (done.code, done.err) == (0, "note: 1 file ignored: .txt 1\n")
    assert done.out.endswith(f"answers: {tmp_path / 'a.csv'}, 16 images\n")
    found = rows(tmp_path / "a.csv")
    assert list(found[0]) == [
        "image", "label", "probability", "guess", "label_2", "probability_2", "unsure",
        "zero_shot_label",
    ]  # fmt: skip
    assert [row["image"] for row in found] == names_of(sorted(photos.glob("*/*.png")))
    assert sum(row["label"] == Path(row["image"]).stem for row in found) >= 15
    assert {row["label"] for row in found} == LABELS
    facts = rmadapter.json(*command, "--top", 2, "--out", tmp_path / "a.jsonl")
    labels = Counter(row["label"] for row in found)
    assert facts == {"answers": str(tmp_path / "a.jsonl"), "images": 16, "unsure": 0, "skipped": [],
                     "labels": labels, "ignored": {".txt": 1}}  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    plain = [{n: str(v).replace("False", "false") for n, v in line.items()} for line in lines]
    assert plain == found
    image = photos / "0/red.png"
    again = rmadapter("predict", finished, image, *command[3:], "--out", tmp_path / "a.csv")
    refused(again, "already exists")


def test_images_are_counted_by_label_and_the_rarest_labels_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.cli.predict.TABLE_ROWS", 2)
    labels = {"dog": 7, "unsure": 5, "cat": 2, "horse": 1}
    counts: Counts = {"images": 15, "unsure": 5, "labels": labels, "skipped": []}
    _show_counts(counts, Path("a.csv"), Inputs(), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    for row in (["dog", "7"], ["unsure", "5"], ["2 more labels", "3"]):
        assert row in cells


def test_unsure_answers_keep_their_guess(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "run.json").write_text(  # without answers on held-out images
        json.dumps({**json.loads((run / "run.json").read_text()), "held_out": None})
    )
    (run / "SHA256SUMS").unlink()
    command = ["predict", run, photos, *backbone_option(finished)]
    everything = rmadapter.json(*command, "--top", 5)
    middle = sorted(answer["classes"][0]["probability"] for answer in everything)[8]
    done = rmadapter(*command, "--wrong", 1 - middle, "--out", tmp_path / "a.csv")
    assert done.out.endswith("16 images, 8 of them unsure\n")
    for row in rows(tmp_path / "a.csv"):
        doubt = float(row["probability"]) < middle
        label = "unsure" if doubt else row["guess"]
        assert (row["label"], row["unsure"]) == (label, str(doubt).lower())
        assert row["decision"] == ("unsure" if doubt else "answer")
    assert "unsure: " in rmadapter(*command, "--wrong", 1 - middle).out
    answers = rmadapter.json(*command, "--wrong", 1 - middle)
    assert sum(answer["unsure"] for answer in answers) == 8
    assert [answer["decision"] == "unsure" for answer in answers] == [
        answer["unsure"] for answer in answers
    ]
    assert "no answers on held-out images" in done.err


def test_unsure_takes_a_wanted_share_of_right_answers(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, photos: Path, tmp_path: Path
) -> None:
    """By the run's answers on held-out training images."""
    run = tmp_path / "run"
    probe = ["--method", "ridge", "--set", "device=cpu", "--folds", "4"]
    rmadapter.done(*fit_command(colors, tiny_clip, run, *probe))
    held_out = read_record(run / "run.json").held_out
    assert held_out
    assert len(held_out.right) == 24
    backbone = ["--backbone", tiny_clip.name]
    for wrong in (0.5, 0.3):
        threshold = held_out.sure_from(wrong)
        done = rmadapter("predict", run, photos, *backbone, "--wrong", wrong, "--json")
        answers = json.loads(done.out)
        for answer in answers:
            assert answer["unsure"] == (answer["classes"][0]["probability"] < threshold)
        reached, right = held_out.reached(threshold)
        for part in (f"{threshold:.2f}", "estimated on", "24 training images", "nine of ten"):
            assert part in done.err
        assert f": {reached} reach it, and {right} of these" in done.err
    # it has no answers about other classes
    done = rmadapter("predict", run, photos, *backbone, "--names", "red,blue", "--wrong", "10%")
    assert "no answers on held-out images" in done.err


@pytest.mark.ci
def test_every_answer_is_unsure_where_held_out_ones_were_wrong(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, photos: Path, tmp_path: Path
) -> None:
    run, backbone = tmp_path / "run", ["--backbone", tiny_clip.name]
    probe = ["--method", "ridge", "--set", "device=cpu", "--folds", "4"]
    rmadapter.done(*fit_command(colors, tiny_clip, run, *probe))
    facts = json.loads((run / "run.json").read_text())
    (run / "SHA256SUMS").unlink()
    facts["held_out"] = {"probabilities": [0.97] * 100, "right": "1" * 60 + "0" * 40}
    (run / "run.json").write_text(json.dumps(facts))
    answered = tmp_path / "a.csv"
    done = rmadapter("predict", run, photos, *backbone, "--wrong", "10%", "--out", answered)
    assert "unsure: every answer" in done.err
    assert "100 training images" in done.err
    assert "allow 47 % or more" in done.err  # 46 % allows 39 wrong ones of 100
    assert {row["label"] for row in rows(answered)} == {"unsure"}
    answers = rmadapter.json("predict", run, photos, *backbone, "--wrong", "10%")
    assert all(answer["unsure"] for answer in answers)
    facts["held_out"] = {"probabilities": [0.97], "right": "0"}
    (run / "run.json").write_text(json.dumps(facts))
    done = rmadapter("predict", run, photos, *backbone, "--wrong", "99%", "--json")
    assert "nor any other share" in done.err


@pytest.fixture
def promising(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> list[object]:
    """`predict` with a run that was calibrated by 24 images."""
    probe = ["--method", "ridge", "--set", "device=cpu", "--folds", "4"]
    rmadapter.done(*fit_command(colors, tiny_clip, tmp_path / "run", *probe))
    return ["predict", tmp_path / "run", "--backbone", tiny_clip.name]


def test_an_error_is_promised_by_sets_of_classes(
    rmadapter: Command, promising: list[object], photos: Path, tmp_path: Path
) -> None:
    run = promising[1]
    assert isinstance(run, Path)
    fitted = load(run, str(promising[3])).fitted
    assert fitted.calibration
    limits = fitted.calibration.limits(0.1, 4)
    every = [*promising, photos, "--top", 4]
    done = rmadapter(*every, "--error", "10%", "--json")
    assert "24 training images, each answered by a model that had not seen it" in done.err
    assert "estimated on the training images" in done.err
    answers, sizes = json.loads(done.out), set()
    for answer in answers:
        inside = [one["class"] for one in answer["classes"] if one["probability"] >= limits[0]]
        assert answer["set"] == (inside or [answer["classes"][0]["class"]])
        assert answer["decision"] == ("answer" if len(answer["set"]) == 1 else "unsure")
        sizes.add(len(answer["set"]))
    written = ["--error", 0.1, "--out", tmp_path / "a.csv", "--sort-into", tmp_path / "sorted"]
    rmadapter.done(*every, *written)
    for row, answer in zip(rows(tmp_path / "a.csv"), answers, strict=True):
        assert json.loads(row["set"]) == answer["set"]
        assert row["decision"] == answer["decision"]
        unsure = answer["decision"] == "unsure"
        assert row["label"] == ("unsure" if unsure else row["guess"])
        assert Path(row["sorted_to"]).parent.name == row["label"]
    assert "in the set" in rmadapter(*every, "--error", "10%").out


def test_a_promise_that_was_measured_not_to_be_kept_says_so(
    rmadapter: Command, promising: list[object], photos: Path, tmp_path: Path
) -> None:
    saved = load(Path(str(promising[1])), str(promising[3]))
    assert saved.fitted.calibration
    measured = replace(saved.fitted.calibration, broken=(0.1,), missed=(0.3,))
    run = tmp_path / "judged"
    save(run, replace(saved.fitted, calibration=measured), saved.name)
    for verb in ("predict", "explain"):
        done = rmadapter(verb, run, *promising[2:], photos, "--error", "10%")
        assert done.code == 0
        assert "30.0 % were missed" in done.err
    image = next(photos.rglob("*.png"))
    model = FewShotClassifier.load(run, backbone=str(promising[3]))
    with pytest.warns(UserWarning, match=r"30\.0 % were missed"):
        model.predict_set(image, error=0.1)


@pytest.mark.parametrize("options", [{"wrong": 0.5}, {"error": 0.1}, {"turn_away": 0.1}])
def test_no_class_may_have_the_label_of_a_decision(options: dict[str, float]) -> None:
    label = "none of these" if "turn_away" in options else "unsure"
    assert SortOptions(**options).sorter(["cat"]) is None
    with pytest.raises(UserError, match=f"already labelled '{label}'"):
        SortOptions(**options).sorter(["cat", label])


def test_rejected_images_are_none_of_the_classes(
    rmadapter: Command, promising: list[object], photos: Path, tmp_path: Path
) -> None:
    """The run's score of an image is that of `RejectionScore`, from the image's features."""
    run = promising[1]
    assert isinstance(run, Path)
    noise = photos / "noise.png"
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(noise)
    fitted = load(run, str(promising[3])).fitted
    assert fitted.familiarity
    files = sorted(photos.rglob("*.png"))
    table, far = examine(fitted, files, False)
    rejected = ~fitted.familiarity.accepts(table, far, 0.1)
    assert 0 < rejected.sum() < len(files)
    options = ["--turn-away", "10%", "--error", "10%"]
    done = rmadapter(*promising, *files, *options, "--json")
    assert "24 training images, each answered by a model that had not seen it, are called none" in (
        done.err.replace("it are", "it, are")
    )
    answers = json.loads(done.out)
    assert [answer["familiar"] for answer in answers] == (~rejected).tolist()
    for answer in answers:
        if not answer["familiar"]:
            assert answer["decision"] == "none of these"
    sorting = ["--sort-into", tmp_path / "s", "--out", tmp_path / "a.csv"]
    rmadapter.done(*promising, *files, *options, *sorting)
    for row, answer in zip(rows(tmp_path / "a.csv"), answers, strict=True):
        assert (row["decision"], row["familiar"]) == (
            answer["decision"], str(answer["familiar"]).lower(),
        )  # fmt: skip
        folder = row["guess"] if row["decision"] == "answer" else row["decision"]
        assert Path(row["sorted_to"]).parent.name == row["label"] == folder
    alone = json.loads(rmadapter(*promising, *files, "--turn-away", "10%", "--json").out)
    expected = ["none of these" if one else "answer" for one in rejected]
    assert [answer["decision"] for answer in alone] == expected
    assert not any(answer["unsure"] for answer in alone)


@pytest.mark.ci
def test_rejected_images_are_not_also_unsure(
    rmadapter: Command, promising: list[object], photos: Path, tmp_path: Path
) -> None:
    """With a probability that no image reaches, in JSON as in a file."""
    options = ["--turn-away", "50%", "--wrong", "0.01%"]
    answers = rmadapter.json(*promising, photos, *options)
    out = tmp_path / "a.csv"
    rmadapter.done(*promising, photos, *options, "--out", out)
    assert {answer["decision"] for answer in answers} == {"unsure", "none of these"}
    for row, answer in zip(rows(out), answers, strict=True):
        assert answer["unsure"] == (answer["decision"] == "unsure")
        assert (row["decision"], row["label"]) == (answer["decision"], answer["decision"])
        assert row["unsure"] == str(answer["unsure"]).lower()


def test_a_promise_that_cannot_be_kept_is_refused(
    rmadapter: Command, promising: list[object], finished: Path, photos: Path
) -> None:
    image = photos / "0/red.png"
    promised = [*promising, image, "--error"]
    refused(rmadapter(*promised, "1%"), "needs 230 images", "9.2 % or more")
    refused(rmadapter(*promised, "10%", "--names", "red,blue"), "fitted to")
    refused(rmadapter(*promised, "10%", "--wrong", "10%"), "only one of them")
    for word in ("5", "x", "-1%", "100%", "nan"):
        refused(rmadapter(*promised, word), "share such as 5%")
    without_folds = ["predict", finished, image, *backbone_option(finished)]
    refused(rmadapter(*without_folds, "--error", "10%"), "--folds 4")  # 6 images are too few
    refused(rmadapter(*without_folds, "--turn-away", "5%"), "--folds 4")
    refused(rmadapter(*promising, image, "--turn-away", "1%"), "needs 230 images")
    refused(rmadapter(*promising, image, "--turn-away", "10%", "--names", "red,blue"), "fitted to")


def test_the_untouched_backbone_can_be_left_out(
    rmadapter: Command, command: list[object], tmp_path: Path
) -> None:
    rmadapter.done(*command, "--top", 1, "--out", tmp_path / "a.csv")
    rmadapter.done(*command, "--top", 1, "--out", tmp_path / "b.csv", "--no-zero-shot")
    both, own = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert list(own[0]) == ["image", "label", "probability", "guess", "unsure"]
    assert [row["label"] for row in both] == [row["label"] for row in own]
    assert {row["zero_shot_label"] for row in both} != {row["label"] for row in both}


def test_unfamiliar_images_are_far_from_those_of_training(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    trained = set(map(str, read_split(finished / "split.json").images(colors).train.images))
    images = [f"{colors}/train/*/*.png", *backbone_option(finished), "--unfamiliar"]
    out = tmp_path / "a.csv"
    rmadapter.done("predict", finished, *images, "--top", 1, "--no-zero-shot", "--out", out)
    found = rows(out)
    assert list(found[0]) == ["image", "label", "probability", "guess", "unsure", "unfamiliar"]
    nearest = sorted(found, key=lambda row: float(row["unfamiliar"]))[: len(trained)]
    assert {row["image"] for row in nearest} == trained
    shown = [one["unfamiliar"] for one in rmadapter.json("predict", finished, *images)]
    assert shown == pytest.approx([float(row["unfamiliar"]) for row in found], abs=1e-4)
    assert "unfamiliar" in rmadapter("predict", finished, *images).out
    kept = load(finished, backbone_option(finished)[1]).fitted
    save(tmp_path / "earlier", replace(kept, examples=None), "rmadapter")
    refused(
        rmadapter("predict", tmp_path / "earlier", *images),
        "--unfamiliar needs features of the training images, which",
    )


def refused_with_notes(answer: Answer, *hints: str) -> None:
    lines = [line for line in answer.err.splitlines(keepends=True) if not line.startswith("note: ")]
    refused(answer._replace(err="".join(lines)), *hints)


def test_a_bad_file_stops_it_and_with_skip_bad_the_same_command_resumes(
    rmadapter: Command,
    command: list[object],
    finished: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, out = photos / "2/a bad one.png", ["--out", tmp_path / "a.csv"]
    bad.write_bytes(b"\x89PNG")
    refused_with_notes(rmadapter(*command, *out), "a bad one.png: not", "--skip-bad")
    assert not (tmp_path / "a.csv").exists()
    seen: list[Path] = []
    decode_batches = stream.decode_batches
    monkeypatch.setattr(
        stream,
        "decode_batches",
        lambda images, *more: seen.extend(images) or decode_batches(images, *more),
    )
    refused_with_notes(rmadapter(*command, *out, "--top", 3), "a.csv.partial")
    others = rmadapter("predict", finished, photos / "1", *command[3:], *out)
    refused_with_notes(others, "a.csv.partial")
    seen.clear()
    done = rmadapter.done(*command, *out, "--skip-bad", "--json")
    images = sorted(photos.glob("*/*.png"))
    assert seen == [path for path in images if path.parent.name > "1"]
    assert json.loads(done.out)["skipped"] == [f"{bad}: not an image in a supported format"]
    assert "note: 1 unreadable file left out\n" in done.err
    images.remove(bad)
    assert [row["image"] for row in rows(tmp_path / "a.csv")] == names_of(images)
    good = photos / "0/red.png"
    shown = rmadapter.json("predict", finished, bad, good, *command[3:], "--skip-bad")
    assert [answer["image"] for answer in shown] == [str(good)]


def test_answers_of_another_calibration_are_not_resumed(
    finished: Path, tiny_clip: Backbone
) -> None:
    """The weights are the same with and without folds."""
    saved = load(finished, tiny_clip)
    labels, keys = [*map(str, saved.labels)], []
    for heat in (1.0, 1.0, 3.0):
        fitted = replace(saved.fitted, temperature=heat)
        keys.append(answers_key(finished, Predictor(fitted, saved.names, labels, 1), []))
    assert keys[0] == keys[1] != keys[2]


# Sorting


@pytest.mark.parametrize("how", [[], ["--move"], ["--link"]])
def test_images_are_sorted_into_folders(
    rmadapter: Command, command: list[object], photos: Path, tmp_path: Path, how: list[str]
) -> None:
    out, before = tmp_path / "sorted", {path.read_bytes() for path in photos.glob("*/*.png")}
    rmadapter.done(*command, "--sort-into", out, *how)
    found = rows(out / "answers.csv")
    places = [Path(row["sorted_to"]) for row in found]
    assert len(found) == len(list(out.glob("*/*.png"))) == 16
    assert [path.parent.name for path in places] == [row["label"] for row in found]
    assert {path.parent.name for path in places} == LABELS
    assert {path.read_bytes() for path in places} == before
    assert len(list(photos.glob("*/*.png"))) == (0 if how == ["--move"] else 16)


def test_unsure_images_have_a_folder(
    rmadapter: Command, command: list[object], tmp_path: Path
) -> None:
    rmadapter.done(
        *command, "--sort-into", tmp_path / "s", "--wrong", "0.01%", "--out", tmp_path / "a.jsonl"
    )
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["unsure"]


def test_two_commands_never_sort_into_one_folder_at_once(
    rmadapter: Command, command: list[object], photos: Path, tmp_path: Path
) -> None:
    """Whatever file their answers go to: each might take a name that the other has chosen."""
    (photos / "notes.txt").unlink()
    command = [*command, "--sort-into", tmp_path / "s", "--out", tmp_path / "a.csv"]
    with exclusive(tmp_path / "s"):
        refused(rmadapter(*command), "another process is at work in this folder")
    assert not list((tmp_path / "s").glob("*/*.png"))
    rmadapter.done(*command)
    assert len(list((tmp_path / "s").glob("*/*.png"))) == 16


def test_a_killed_move_is_resumed(
    rmadapter: Command,
    command: list[object],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*command, "--sort-into", tmp_path / "s", "--move"]
    put, left = Sorter.put, [9]

    def dying(self: Sorter, *places: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyError("killed")
        put(self, *places)

    with monkeypatch.context() as patch:
        patch.setattr(Sorter, "put", dying)
        with pytest.raises(KeyError):
            rmadapter(*command)
    assert len(list(photos.glob("*/*.png"))) == 8
    rmadapter.done(*command)
    found = rows(tmp_path / "s/answers.csv")
    assert len(found) == len(list((tmp_path / "s").glob("*/*.png"))) == 16
    assert all(Path(row["sorted_to"]).exists() for row in found)
    assert not list(photos.glob("*/*.png"))


# Mistakes and names


def test_mistakes_in_predict_are_named(
    rmadapter: Command, finished: Path, photos: Path, colors: Path, tmp_path: Path
) -> None:
    image, bad, sorted_to = photos / "0/red.png", tmp_path / "bad.png", tmp_path / "s"
    bad.write_bytes(b"\x89PNG")
    refused(rmadapter("predict", finished, image), "name it yourself: --backbone '")
    refused(rmadapter("predict", colors, image), "not a run")
    for words, *hints in (
        ([bad], "bad.png: not"),
        ([image, tmp_path / "gone.png"], "gone.png: no such file"),
        ([finished], f"{finished}: no images in a supported format ("),
        ([image, "--names", ""], "--names", "at least one"),
        ([image, "--names", " , "], "--names", "at least one"),
        ([image, "--names", "cat,cat"], "--names", "both"),
        ([image, "--names", "Cat,cat"], "--names", "both called"),
        ([image, "--names", "unsure,cat", "--wrong", "50%"], "is already labelled 'unsure'"),
        (["https://x.org/a.jpg"], "a web address"),
        ([image, "--move"], "--move and --link need --sort-into DIR"),
        ([image, "--sort-into", sorted_to, "--move", "--link"], "give only one of them"),
        ([image, image, "--sort-into", sorted_to, "--move"], "is given twice"),
        ([photos / "0", "--sort-into", photos / "0/s"], "choose another folder to sort into"),
        ([image, "--out", tmp_path / "a.txt"], "give a name that ends in .csv"),
    ):
        refused(rmadapter("predict", finished, *words, *backbone_option(finished)), *hints)
    assert not sorted_to.exists()


def test_a_class_that_the_method_cannot_know_is_named(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    probe = tmp_path / "probe"
    options = ["--method", "linear-probe", "--set", "device=cpu", "--set", "search_steps=0"]
    rmadapter.done(*fit_command(colors, tiny_clip, probe, *options))
    command = ["predict", probe, colors / "test/red/0.png", *backbone_option(probe)]
    refused(rmadapter(*command, "--names", "red,zebra"), "--names: linear probe only", "'zebra'")


def test_names_of_the_run_keep_what_its_prompts_call_them(
    finished: Path, tiny_clip: Backbone
) -> None:
    saved = load(finished, tiny_clip)._replace(names=("blue", "green", "the dark", "red"))
    prompts, labels = _classes(saved, "night_sky, red, old_house")
    assert prompts == ("the dark", "red", "old house")
    assert labels == ["night_sky", "red", "old_house"]


# Explain


def test_explain_prints_a_table_json_and_a_page(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    images = [colors / "test/red/0.png", colors / "test/blue/1.png"]
    command = ["explain", finished, *images, "--run-data", colors, *backbone_option(finished), "-q"]
    done = rmadapter(*command)
    assert (done.code, done.err) == (0, "")
    assert "nearest training images" in done.out
    found = rmadapter.json(*command)
    assert [set(one) for one in found] == [{"image", "classes", "zero_shot", "neighbours"}] * 2
    assert len(found[0]["classes"]) == len(found[0]["zero_shot"]) == 2
    assert len(found[0]["neighbours"]) == 5
    facts = rmadapter.json(*command, "--out", tmp_path / "why")
    assert facts == {"page": str(tmp_path / "why/explain.html"), "images": found}
    assert (tmp_path / "why/explain.html").is_file()
    refused(rmadapter(*command, "--out", tmp_path / "why"), "already exists")


@pytest.mark.ci
@pytest.mark.parametrize("words", ["--error 10%", "--turn-away 10%", "--error 10% --turn-away 10%"])
def test_explanations_decide_as_predictions(
    words: str, rmadapter: Command, promising: list[object], photos: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "noise.png")
    options = [*promising[1:], photos, *words.split()]
    predicted, promised = rmadapter("predict", *options, "--json"), rmadapter("explain", *options)
    lines, others = (
        [line for line in done.err.splitlines() if "promise:" in line]
        for done in (promised, predicted)
    )
    assert lines == others
    assert len(lines) >= words.count("--")
    answers = json.loads(predicted.out)
    decided = ["image", "set", "familiar", "decision"]
    for one, other in zip(rmadapter.json("explain", *options), answers, strict=True):
        assert [one.get(key) for key in decided] == [other.get(key) for key in decided]
    shown = rmadapter.done("explain", *options, "--out", tmp_path / "why").out
    page = (tmp_path / "why/explain.html").read_text(encoding="utf-8")
    decisions = {one["decision"] for one in answers}
    assert ("none of these" in decisions) == ("turn-away" in words)
    for decision in decisions:
        assert decision in shown
        assert f"<strong>{decision}</strong>" in page
    for option in words.split()[::2]:
        impossible = [*promising[1:], photos / "0/red.png", option, "1%"]
        refused(rmadapter("explain", *impossible), "needs 230 images")


def test_mistakes_in_explain_are_named(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    refused(rmadapter("explain", colors, colors), "not a run")
    out = rmadapter("explain", finished, colors, "--out", finished / "run.json")
    refused(out, "run.json: is a file; choose another --out")
    bad = tmp_path / "bad.png"
    bad.touch()
    command = ["explain", finished, bad, colors / "test/red/0.png"]
    command += [*backbone_option(finished), "-q"]
    refused(rmadapter(*command), "bad.png", "--skip-bad")
    assert len(rmadapter.json(*command, "--skip-bad")) == 1
    bad.unlink()
    refused(rmadapter(*command, "--skip-bad"), "bad.png: no such file")
