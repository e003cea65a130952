"""The verbs predict and explain."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.cli.main import main
from rmadapter.cli.predict import _classes, answers_key
from rmadapter.predict import stream
from rmadapter.predict.stream import Predictor
from rmadapter.support.locks import exclusive
from tests.helpers.shell import Answer, Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.fixture
def photos(colors: Path, tmp_path: Path) -> Path:
    """16 images that are called after their class, and what is none."""
    for image in sorted(colors.glob("test/*/*.png")):
        target = tmp_path / "my photos" / image.stem / f"{image.parent.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (tmp_path / "my photos/notes.txt").write_text("x")
    return tmp_path / "my photos"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table_in_a_file(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["predict", finished, photos, *backbone_option(finished), "--top", 2]
    done = rmadapter(*command, "--out", tmp_path / "a.csv")
    assert done.code == 0
    assert done.err == "note: 1 file ignored: .txt 1\n"
    assert done.out == f"answers: {tmp_path / 'a.csv'}, 16 images\n"
    found = rows(tmp_path / "a.csv")
    assert list(found[0]) == [
        "image", "label", "probability", "guess", "label_2", "probability_2", "unsure",
        "zero_shot_label",
    ]  # fmt: skip
    assert [row["image"] for row in found] == [str(path) for path in sorted(photos.glob("*/*.png"))]
    assert sum(row["label"] == Path(row["image"]).stem for row in found) >= 15
    assert {row["label"] for row in found} == {"blue", "green", "night_sky", "red"}
    facts = json.loads(rmadapter(*command, "--out", tmp_path / "a.jsonl", "--json").out)
    assert facts == {"answers": str(tmp_path / "a.jsonl"), "images": 16, "unsure": 0, "skipped": [],
                     "ignored": {".txt": 1}}  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [
        {name: str(value).replace("False", "false") for name, value in line.items()}
        for line in lines
    ] == found
    refused(
        rmadapter(*command[:1], finished, photos / "0", *command[3:], "--out", tmp_path / "a.csv"),
        "already exists",
    )


def test_many_images_in_a_table_of_the_first(
    rmadapter: Command, finished: Path, colors: Path
) -> None:
    command = ["predict", finished, f"{colors}/*/*/?.png", *backbone_option(finished), "--top", 1]
    done = rmadapter(*command)
    assert done.out.endswith("the first 20 of 40 images; --out answers.csv answers all of them\n")
    assert done.out.count(".png") == 20
    assert len(json.loads(rmadapter(*command, "--json").out)) == 40


def test_unsure_answers_keep_their_guess(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["predict", finished, photos, *backbone_option(finished), "--unsure"]
    everything = json.loads(rmadapter(*command, 0, "--json").out)
    middle = sorted(answer["classes"][0]["probability"] for answer in everything)[8]
    done = rmadapter(*command, middle, "--out", tmp_path / "a.csv")
    assert done.out.endswith("16 images, 8 of them unsure\n")
    for row in rows(tmp_path / "a.csv"):
        doubt = float(row["probability"]) < middle
        assert (row["label"], row["unsure"]) == (
            "unsure" if doubt else row["guess"],
            str(doubt).lower(),
        )
    assert "unsure: " in rmadapter(*command, middle).out
    answers = json.loads(rmadapter(*command, middle, "--json").out)
    assert sum(answer["unsure"] for answer in answers) == 8
    refused(
        rmadapter(*command, 0.5, "--names", "unsure,cat"), "a class is already labelled 'unsure'"
    )


@pytest.mark.parametrize("how", [[], ["--move"], ["--link"]])
def test_sorting(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path, how: list[str]
) -> None:
    out, before = tmp_path / "sorted", {path.read_bytes() for path in photos.glob("*/*.png")}
    command = ["predict", finished, photos, *backbone_option(finished), "--sort-into"]
    assert rmadapter(*command, out, *how).code == 0
    found = rows(out / "answers.csv")
    assert len(found) == len(list(out.glob("*/*.png"))) == 16
    assert {Path(row["sorted_to"]).parent.name for row in found} == {
        "blue",
        "green",
        "night_sky",
        "red",
    }
    assert all(Path(row["sorted_to"]).parent.name == row["label"] for row in found)
    assert {Path(row["sorted_to"]).read_bytes() for row in found} == before
    assert len(list(photos.glob("*/*.png"))) == (0 if how == ["--move"] else 16)


def test_two_commands_never_sort_into_one_folder_at_once(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    """Whatever file their answers go to: each might take a name that the other has chosen."""
    (photos / "notes.txt").unlink()
    command = [
        "predict",
        finished,
        photos,
        *backbone_option(finished),
        "--sort-into",
        tmp_path / "s",
    ]
    with exclusive(tmp_path / "s"):
        refused(
            rmadapter(*command, "--out", tmp_path / "a.csv"),
            "another process is at work in this folder",
        )
    assert not list((tmp_path / "s").glob("*/*.png"))
    assert rmadapter(*command, "--out", tmp_path / "a.csv").code == 0
    assert len(list((tmp_path / "s").glob("*/*.png"))) == 16


def test_without_the_untouched_backbone(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["predict", finished, photos, *backbone_option(finished), "--top", 1, "--out"]
    assert (
        rmadapter(*command, tmp_path / "a.csv").code
        == rmadapter(*command, tmp_path / "b.csv", "--no-zero-shot").code
        == 0
    )
    both, own = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert list(own[0]) == ["image", "label", "probability", "guess", "unsure"]
    assert [row["label"] for row in both] == [row["label"] for row in own]
    assert {row["zero_shot_label"] for row in both} != {row["label"] for row in both}


def test_unfamiliar_images_are_far_from_those_of_training(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    from rmadapter.artifacts.checkpoint import load, save
    from rmadapter.data.fewshot import read_split

    trained = set(map(str, read_split(finished / "split.json").images(colors).train.images))
    images = [f"{colors}/train/*/*.png", *backbone_option(finished), "--unfamiliar"]
    out = tmp_path / "a.csv"
    assert (
        rmadapter("predict", finished, *images, "--top", 1, "--no-zero-shot", "--out", out).code
        == 0
    )
    found = rows(out)
    assert list(found[0]) == ["image", "label", "probability", "guess", "unsure", "unfamiliar"]
    assert {
        row["image"]
        for row in sorted(found, key=lambda row: float(row["unfamiliar"]))[: len(trained)]
    } == trained
    answers = json.loads(rmadapter("predict", finished, *images, "--json").out)
    assert [round(answer["unfamiliar"], 4) for answer in answers] == [
        round(float(row["unfamiliar"]), 4) for row in found
    ]
    assert "unfamiliar" in rmadapter("predict", finished, *images).out
    kept = load(finished, backbone_option(finished)[1]).fitted
    save(tmp_path / "earlier", replace(kept, examples=None), "rmadapter")
    refused(
        rmadapter("predict", tmp_path / "earlier", *images),
        "--unfamiliar needs features of the training images, which",
    )


def test_unsure_images_have_a_folder(
    rmadapter: Command, finished: Path, photos: Path, tmp_path: Path
) -> None:
    command = [
        "predict",
        finished,
        photos,
        *backbone_option(finished),
        "--sort-into",
        tmp_path / "s",
        "--unsure",
        1,
    ]
    assert rmadapter(*command, "--out", tmp_path / "a.jsonl").code == 0
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["unsure"]


def test_the_first_bad_file_stops_it_and_the_same_command_goes_on(
    rmadapter: Command,
    finished: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = photos / "2/a bad one.png"
    bad.write_bytes(b"\x89PNG")
    command = ["predict", finished, photos, *backbone_option(finished), "--out", tmp_path / "a.csv"]
    refused_with_notes(
        rmadapter(*command), "a bad one.png: not", "--skip-bad (skip_bad=True) leaves out"
    )
    assert not (tmp_path / "a.csv").exists()
    seen: list[Path] = []
    decode_batches = stream.decode_batches
    monkeypatch.setattr(
        stream,
        "decode_batches",
        lambda images, *more: seen.extend(images) or decode_batches(images, *more),
    )
    refused_with_notes(rmadapter(*command, "--top", 3), "a.csv.partial")
    others = [
        "predict",
        finished,
        photos / "1",
        *backbone_option(finished),
        "--out",
        tmp_path / "a.csv",
    ]
    refused_with_notes(rmadapter(*others), "a.csv.partial")
    seen.clear()
    done = rmadapter(*command, "--skip-bad", "--json")
    assert seen == [path for path in sorted(photos.glob("*/*.png")) if path.parent.name > "1"]
    assert json.loads(done.out)["skipped"] == [f"{bad}: not an image in a supported format"]
    assert "note: 1 unreadable file left out\n" in done.err
    assert [row["image"] for row in rows(tmp_path / "a.csv")] == [
        str(path) for path in sorted(photos.glob("*/*.png")) if path != bad
    ]
    shown = rmadapter(
        "predict",
        finished,
        bad,
        photos / "0/red.png",
        *backbone_option(finished),
        "--skip-bad",
        "--json",
    )
    assert [answer["image"] for answer in json.loads(shown.out)] == [str(photos / "0/red.png")]


def refused_with_notes(answer: Answer, *hints: str) -> None:
    lines = [line for line in answer.err.splitlines(keepends=True) if not line.startswith("note: ")]
    refused(answer._replace(err="".join(lines)), *hints)


def test_a_killed_move_goes_on(
    rmadapter: Command,
    finished: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rmadapter.predict.write import Sorter

    command = [
        "predict",
        finished,
        photos,
        *backbone_option(finished),
        "--sort-into",
        tmp_path / "s",
        "--move",
    ]
    put, left = Sorter.put, [9]

    def dying(self: Sorter, *places: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyError("killed")
        put(self, *places)

    with monkeypatch.context() as patch:
        patch.setattr(Sorter, "put", dying)
        patch.setattr(sys, "argv", list(map(str, ["rmadapter", *command])))
        with pytest.raises(KeyError):
            main()
    assert len(list(photos.glob("*/*.png"))) == 8
    assert rmadapter(*command).code == 0
    found = rows(tmp_path / "s/answers.csv")
    assert len(found) == len(list((tmp_path / "s").glob("*/*.png"))) == 16
    assert all(Path(row["sorted_to"]).exists() for row in found)
    assert not list(photos.glob("*/*.png"))


def test_what_is_refused(rmadapter: Command, finished: Path, photos: Path, tmp_path: Path) -> None:
    image, its = photos / "0/red.png", backbone_option(finished)
    for words, hint in (
        (["https://x.org/a.jpg"], "a web address"),
        ([image, "--move"], "--move and --link need --sort-into DIR"),
        ([image, "--sort-into", tmp_path / "s", "--move", "--link"], "give only one of them"),
        ([image, image, "--sort-into", tmp_path / "s", "--move"], "is given twice"),
        ([photos / "0", "--sort-into", photos / "0/s"], "choose another folder to sort into"),
        ([image, "--out", tmp_path / "a.txt"], "give a name that ends in .csv"),
    ):
        refused(rmadapter("predict", finished, *words, *its), hint)
    assert not (tmp_path / "s").exists()


def test_paths_on_stdin(
    rmadapter: Command, finished: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = io.TextIOWrapper(io.BytesIO(f"{photos / '1/red.png'}\n{photos / '0'}\n".encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    done = rmadapter("predict", finished, "-", *backbone_option(finished), "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)) == 5


def test_names_of_the_run_keep_what_its_prompts_call_them(
    finished: Path, tiny_clip: Backbone
) -> None:
    saved = load(finished, tiny_clip)._replace(names=("blue", "green", "the dark", "red"))
    asked = _classes(saved, "night_sky, red, old_house")
    assert asked == (("the dark", "red", "old house"), ["night_sky", "red", "old_house"])


def test_answers_of_another_calibration_are_not_gone_on_with(
    finished: Path, tiny_clip: Backbone
) -> None:
    """The weights are the same with and without folds."""
    saved = load(finished, tiny_clip)
    keys = []
    for heat in (1.0, 1.0, 3.0):
        predictor = Predictor(
            replace(saved.fitted, temperature=heat), saved.names, [*map(str, saved.labels)], 1
        )
        keys.append(answers_key(finished, predictor, []))
    assert keys[0] == keys[1] != keys[2]


def test_explain_prints_a_table_json_and_a_page(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    images = [colors / "test/red/0.png", colors / "test/blue/1.png"]
    command = ["explain", finished, *images, "--data", colors, *backbone_option(finished), "-q"]
    done = rmadapter(*command)
    assert (done.code, done.err) == (0, "")
    assert "nearest training images" in done.out
    found = json.loads(rmadapter(*command, "--json").out)
    assert [set(one) for one in found] == [{"image", "classes", "zero_shot", "neighbours"}] * 2
    assert len(found[0]["classes"]) == len(found[0]["zero_shot"]) == 2
    assert len(found[0]["neighbours"]) == 5
    facts = json.loads(rmadapter(*command, "--out", tmp_path / "why", "--json").out)
    assert facts == {"page": str(tmp_path / "why/explain.html"), "images": found}
    assert (tmp_path / "why/explain.html").is_file()
    refused(rmadapter(*command, "--out", tmp_path / "why"), "already exists")


def test_what_explain_refuses(rmadapter: Command, finished: Path, colors: Path) -> None:
    refused(rmadapter("explain", colors, colors), "not a run")
    file = finished / "run.json"
    refused(
        rmadapter("explain", finished, colors, "--out", file),
        "run.json: is a file; choose another --out",
    )
    command = [
        "explain",
        finished,
        "nowhere.png",
        colors / "test/red/0.png",
        *backbone_option(finished),
        "-q",
    ]
    refused(rmadapter(*command), "nowhere.png", "--skip-bad (skip_bad=True) leaves out such files")
    assert len(json.loads(rmadapter(*command, "--skip-bad", "--json").out)) == 1
