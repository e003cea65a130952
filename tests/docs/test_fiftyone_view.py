"""examples/fiftyone_view.py by files of answers, and with FiftyOne itself where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fiftyone_view as view
import pytest

from rmadapter.errors import UserError
from tests.helpers.shell import Command, backbone_option, rmadapter

__all__ = ["rmadapter"]  # a fixture

ROW = {"label": "unsure", "probability": 0.5, "guess": "red", "unsure": True}
# Writes the data set three times, and prints the exit codes and all that it holds.
INSIDE = """
import json, sys
import fiftyone as fo
try:
    fo.list_datasets()
except Exception as error:
    sys.exit(f"no database: {error}")
import fiftyone_view
words = [*sys.argv[1:], "--no-open", "--name", "colours"]
codes = [fiftyone_view.main([*words, *more]) for more in ([], [], ["--overwrite"])]
dataset = fo.load_dataset("colours")
views = {name: dataset.load_saved_view(name).values("filepath")
         for name in dataset.list_saved_views()}
print("\\n" + json.dumps({
    "codes": codes, "names": fo.list_datasets(), "kept": dataset.persistent, "views": views,
    "samples": [one.to_dict() for one in dataset]}, default=str))
"""


@pytest.fixture
def answers(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """Return answers on the test images, of which those below 0.9 are unsure."""
    monkeypatch.chdir(colors)
    out = tmp_path / "answers.jsonl"
    words = ["--wrong", "10%", "--top", 2, *backbone_option(finished)]
    rmadapter.done("predict", finished, "test", *words, "--out", out)
    return out


@pytest.fixture
def labels(colors: Path, tmp_path: Path) -> Path:
    """Return a table with the labels of all test images but two, where the first is wrong."""
    images = sorted(colors.glob("test/*/*.png"))[:-2]
    file = tmp_path / "labels.csv"
    with open(file, "w", newline="", encoding="utf-8") as text:
        given = ["red", *(image.parent.name for image in images[1:])]
        csv.writer(text).writerows([("path", "label"), *zip(images, given, strict=True)])
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_answers_and_labels_meet_at_the_image(answers: Path, labels: Path, colors: Path) -> None:
    images = view.read_answers(answers, str(labels))
    assert [one.image for one in images] == sorted(colors.glob("test/*/*.png"))
    folders = [one.image.parent.name for one in images]
    assert [one.label for one in images] == ["red", *folders[1:-2], "", ""]
    for one, row in zip(images, rows(answers), strict=True):
        assert (one.answer, one.unsure) == (row["label"], row["unsure"])
        pairs = [("guess", "probability"), ("label_2", "probability_2")]
        assert one.best == tuple((row[label], row[share]) for label, share in pairs)
    assert {one.label for one in view.read_answers(answers)} == {""}


def test_a_folder_of_class_folders_gives_labels_too(answers: Path, colors: Path) -> None:
    images = view.read_answers(answers, str(colors))
    assert [one.label for one in images] == [one.image.parent.name for one in images]


def test_images_that_predict_skipped_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    good, bad = ({**ROW, "image": str(tmp_path / name)} for name in ("a.png", "b.png"))
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{json.dumps(good)}\n{json.dumps({**bad, 'error': 'b.png: no image'})}\n")
    [one] = view.read_answers(file)
    assert one == (tmp_path / "a.png", "", (("red", 0.5),), "unsure", True)


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("a.csv", "image,label\n", "a.csv"),
        ("a.jsonl", "[]\n", "line 1"),
        ("a.jsonl", '{"image": "a.png"}\n', "line 1"),
        ("a.jsonl", json.dumps({**ROW, "image": "gone.png"}), "gone.png"),
    ],
)
def test_other_files_are_refused_in_one_line(
    name: str, text: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert view.main([str(tmp_path / name), "--no-open"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert hint in error


def test_an_image_with_two_labels_is_refused(tmp_path: Path, colors: Path) -> None:
    image = next(colors.glob("test/red/*.png"))
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label\n{image},red\n{image},blue\n")
    with pytest.raises(UserError, match="one label"):
        view.read_labels(str(table))


def test_without_fiftyone_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match="pip install fiftyone"):
        view.write_dataset([], "colours")


@pytest.mark.ci
def test_fiftyone_holds_the_fields_and_the_views(
    answers: Path, labels: Path, tmp_path: Path
) -> None:
    """With a database of its own."""
    if importlib.util.find_spec("fiftyone") is None:
        pytest.skip("pip install fiftyone")
    own = {"FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_DO_NOT_TRACK": "true"}
    path = os.pathsep.join([str(Path(view.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, str(answers), "--labels", str(labels)],
        capture_output=True, text=True, env={**os.environ, **own, "PYTHONPATH": path},
    )  # fmt: skip
    if "no database:" in done.stderr:
        pytest.skip("FiftyOne finds no database: install MongoDB, or set FIFTYONE_DATABASE_URI")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    images = view.read_answers(answers, str(labels))
    assert (found["codes"], found["names"], found["kept"]) == ([0, 2, 0], ["colours"], True)
    assert "--overwrite" in done.stderr
    for sample, one in zip(found["samples"], images, strict=True):
        assert Path(sample["filepath"]) == one.image
        assert (sample["label"] or {"label": ""})["label"] == one.label
        best = sample["probabilities"]["classifications"]
        assert [(each["label"], each["confidence"]) for each in best] == [*one.best]
        first = sample["prediction"]
        assert (first["label"], first["confidence"]) == one.best[0]
        assert (sample["answer"], sample["unsure"]) == (one.answer, one.unsure)
    differ = [one for one in images if one.label not in ("", one.best[0][0])]
    assert differ
    surest = sorted(differ, key=lambda one: -one.best[0][1])
    expected = {
        view.UNSURE: [one for one in images if one.unsure],
        view.DIFFERENT: surest,
        view.UNLABELLED: [one for one in images if not one.label],
    }
    views = {name: [*map(Path, files)] for name, files in found["views"].items()}
    assert views == {name: [one.image for one in some] for name, some in expected.items()}
