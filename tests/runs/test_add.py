from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import Record, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.registry import locate
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.add import NewImages, add_images, add_names, can_add_names
from rmadapter.runs.evaluate import trained_on
from rmadapter.support.files import check_sums
from rmadapter.training.contract import Known
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
)

__all__ = ["rmadapter"]  # a fixture

YELLOW, DARK = (220, 210, 40), (30, 30, 60)
PROBE = ["--method", "linear-probe", "--set", "device=cpu", "--set", "search_steps=0"]


def write(root: Path, **counts: tuple[tuple[int, int, int], int]) -> Path:
    rng = np.random.default_rng(1)
    for name, (color, count) in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(color, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def run(rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone) -> Path:
    """Of a copy of the colours, where "red" has another name in the prompt."""
    shutil.copytree(colors, tmp_path / "data")
    (tmp_path / "names.csv").write_text("label,name\nred,scarlet\n")
    names = ["--names-from", tmp_path / "names.csv"]
    options = [*quick_options(2), *names]
    rmadapter.done(*fit_command(tmp_path / "data", tiny_clip, tmp_path / "run", *options))
    return tmp_path / "run"


def grown(run: Path, backbone: Backbone, data: Path, out: Path, **more: Any) -> Record:
    old = more.pop("old", None)
    reading = {name: more.pop(name) for name in ("columns", "crops", "outside") if name in more}
    images = NewImages(locate(data, **reading), **more)
    return add_images(run, load(run, backbone), images, out, old)


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_classes_by_name_alone(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, colors: Path
) -> None:
    before, saved = everything(finished), load(finished, tiny_clip)
    new = ("sea_horse", "Zebra")
    labels = ("blue", "green", "night_sky", "red", *new)
    assert can_add_names(saved)
    assert add_names(saved, new, tmp_path / "new") == labels
    wider = load(tmp_path / "new", tiny_clip)
    assert wider.labels == labels
    assert wider.names[-2:] == ("sea horse", "Zebra")
    assert wider.fitted.classes == saved.fitted.classes  # those that it was fitted to
    images = [colors / "test/red/0.png"]
    old, probabilities = (
        next(one.fitted.probabilities(images, one.names)) for one in (saved, wider)
    )
    change = (probabilities[0, :4] / old[0]).log()  # the same for all old classes
    assert change == pytest.approx(change[0].item(), abs=1e-4)
    again = add_names(wider, ["ant"], tmp_path / "third")
    assert again[-3:] == ("sea_horse", "Zebra", "ant")
    assert everything(finished) == before
    with pytest.raises(UserError, match="'red' and 'RED' are both called"):
        add_names(saved, ["RED"], tmp_path / "fourth")
    with pytest.raises(UserError, match="already holds a model"):
        add_names(saved, ["cat"], tmp_path / "new")


def test_a_method_that_cannot_know_a_name_says_what_to_do(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    tensors = {"weight": torch.zeros(2, 40), "bias": torch.zeros(2)}
    probe = load_method("linear-probe").restore(tiny_clip, Known(("a", "b")), tensors)
    saved = Saved(probe, ("a", "b"), "linear-probe", ("a", "b"))
    assert not can_add_names(saved)
    with pytest.raises(UserError, match="'c'; `rmadapter add RUN FOLDER` trains it again"):
        add_names(saved, ["c"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_of_a_parent_is_refused(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    saved = load(finished, tiny_clip)._replace(parents={"blue": "cool", "green": "cool"})
    with pytest.raises(UserError, match="taxonomy: 'cool'"):
        add_names(saved, ["cool"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    add_names(saved, ["warm"], tmp_path / "new")


@pytest.mark.slow
def test_images_of_old_and_new_classes(run: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    before = everything(run)
    new = write(tmp_path / "photos", yellow=(YELLOW, 5), **{"Night sky": (DARK, 3)})
    of_test = sorted((tmp_path / "data/test/green").iterdir())[0]
    shutil.copy(of_test, new / "yellow/of the old test.png")
    record = grown(run, tiny_clip, new, tmp_path / "new")
    assert everything(run) == before
    found = read_images(tmp_path / "new/images.csv", outside=True)
    assert found["train"].written == ("blue", "green", "night_sky", "red", "yellow")
    assert found["train"].classes == ("blue", "green", "night sky", "scarlet", "yellow")
    counts = np.bincount(found["train"].labels).tolist()
    assert counts == [2, 2, 4, 2, 2]
    old, split = read_split(run / "split.json"), read_split(tmp_path / "new/split.json")
    shots = {(tmp_path / "data" / name).resolve() for name, _, _ in old.train}
    assert shots < {(tmp_path / "new" / name).resolve() for name, _, _ in split.train}
    trained = {Path(str(path)).read_bytes() for path in found["train"].images}
    assert not trained & {Path(str(path)).read_bytes() for path in found["test"].images}
    [score] = record.scores
    assert score.classes == 5
    assert score.images == len(found["test"])
    assert record.notes[-1] == "trained on the 8 images of run and 4 new ones"
    saved = load(tmp_path / "new", tiny_clip)
    assert saved.labels == found["train"].written
    assert saved.custom_names == {"red": "scarlet"}
    assert trained_on(tmp_path / "new", read_images(tmp_path / "data")["train"]) == 8
    assert trained_on(tmp_path / "new", read_images(new)["all"]) == 4
    assert "images.csv" in (tmp_path / "new/SHA256SUMS").read_text()
    check_sums(tmp_path / "new")
    assert grown(run, tiny_clip, new, tmp_path / "new") == record  # the same command again
    # the image of the old test is trained on now
    most = grown(run, tiny_clip, new, tmp_path / "most", shots=0)
    assert [score.images for score in most.scores] == [17, 15]  # no yellow one is left to test
    assert most.notes[-1] == "trained on the 8 images of run and 9 new ones"
    more = write(tmp_path / "more", teal=((0, 128, 128), 2))
    third = grown(tmp_path / "new", tiny_clip, more, tmp_path / "third", outside=True)
    assert third.scores[0].classes == 6


@pytest.mark.ci
def test_without_a_test_split_all_classes_are_judged_by_folds(
    rmadapter: Command, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Not by the new class alone, of which more images are left than were drawn."""
    old = write(tmp_path / "old", red=((200, 40, 40), 4), blue=((40, 40, 200), 4))
    new = write(tmp_path / "new", yellow=(YELLOW, 20))
    more = write(tmp_path / "more/test", yellow=((200, 190, 30), 3))
    write(tmp_path / "more/train", yellow=((200, 190, 40), 1))
    probe = [*PROBE, "--shots", 4]
    rmadapter.done(*fit_command(old, tiny_clip, tmp_path / "run", *probe))
    for place, (before, data) in enumerate([("run", new), ("0", more), ("0", new)]):
        out = tmp_path / str(place)
        record = grown(tmp_path / before, tiny_clip, data, out, outside=True, shots=4)
        assert record.judgement is not None
        assert "training images, held out" in record.judgement.how
        assert all(recall is not None for recall in record.judgement.fitted.recalls)
        assert [score.split for score in record.scores] == ["cross-validated", "held out"]


@pytest.mark.ci
def test_undrawn_images_of_all_classes_judge_a_run_without_a_test_split(
    rmadapter: Command, tiny_clip: Backbone, tmp_path: Path
) -> None:
    old = write(tmp_path / "old", red=((200, 40, 40), 6), blue=((40, 40, 200), 6))
    new = write(tmp_path / "new", yellow=(YELLOW, 6))
    probe = [*PROBE, "--shots", 2]
    rmadapter.done(*fit_command(old, tiny_clip, tmp_path / "run", *probe))
    record = grown(tmp_path / "run", tiny_clip, new, tmp_path / "grown")
    assert [score.title for score in record.scores] == ["held out, all classes"]
    assert record.judgement is not None
    assert record.judgement.how.startswith("on images that were not drawn")


@pytest.mark.ci
def test_an_image_that_settings_are_chosen_on_is_not_tested_on(
    run: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """A collection that was split anew: its validation images were test images before."""
    write(tmp_path / "photos/train", yellow=(YELLOW, 5))
    shutil.copytree(tmp_path / "data/test/green", tmp_path / "photos/val/green")
    grown(run, tiny_clip, tmp_path / "photos", tmp_path / "new")
    found = read_images(tmp_path / "new/images.csv", outside=True)
    held = {Path(str(path)).read_bytes() for path in found["val"].images}
    assert held
    assert not held & {Path(str(path)).read_bytes() for path in found["test"].images}


def test_runs_and_data_that_cannot_be_extended_are_refused(
    run: Path, tiny_clip: Backbone, tmp_path: Path, finished: Path
) -> None:
    new = write(tmp_path / "photos", yellow=(YELLOW, 3))
    with pytest.raises(UserError, match="holds another run"):
        grown(run, tiny_clip, new, shutil.copytree(finished, tmp_path / "taken"))
    add_names(load(run, tiny_clip), ["cat"], tmp_path / "by name")
    with pytest.raises(UserError, match="does not record its training images"):
        grown(tmp_path / "by name", tiny_clip, new, tmp_path / "new")
    name = read_split(run / "split.json").train[0][0]
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data.* is missing; .*--run-data"):
        grown(run, tiny_clip, new, tmp_path / "new")
    record = grown(run, tiny_clip, new, tmp_path / "new", old=tmp_path / "moved")
    assert record.scores[0].classes == 5
    image = tmp_path / "moved" / name
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(UserError, match="are no longer those the model was trained on"):
        grown(run, tiny_clip, new, tmp_path / "other", old=tmp_path / "moved")
    image.write_bytes(image.read_bytes()[:-1])  # as it was
    write(tmp_path / "split" / "test", purple=(YELLOW, 2))
    write(tmp_path / "split" / "train", yellow=(YELLOW, 2))
    with pytest.raises(UserError, match="class 'purple' has test images but none to train on"):
        grown(run, tiny_clip, tmp_path / "split", tmp_path / "other", old=tmp_path / "moved")
    image.unlink()
    with pytest.raises(UserError, match="the model was trained on can no longer be read"):
        grown(run, tiny_clip, new, tmp_path / "other", old=tmp_path / "moved")
    assert not (tmp_path / "other").exists()


@pytest.mark.ci
def test_a_saved_run_may_not_name_its_teacher(
    run: Path, tiny_clip: Backbone, tiny_hf: Backbone, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its config.yaml may come from anyone."""
    (run / "config.yaml").write_text(f"method: prompt-kd\nteacher: {tiny_hf.name}\nshots: 2\n")
    (run / "SHA256SUMS").unlink()
    monkeypatch.setattr("rmadapter.backbones.load.TRUSTED", set())
    new = write(tmp_path / "photos", yellow=(YELLOW, 3))
    with pytest.raises(UserError, match="name it yourself"):
        grown(run, tiny_clip, new, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_verb_add(rmadapter: Command, run: Path, tmp_path: Path) -> None:
    its, data = backbone_option(run), write(tmp_path / "photos", yellow=(YELLOW, 5))
    added = rmadapter.json("add", run, "cat", "dog", "--out", tmp_path / "named", *its)
    labels = ["blue", "green", "night_sky", "red", "cat", "dog"]
    assert added == {"run": str(tmp_path / "named"), "labels": labels}
    for lost in (["./mor/"], [data, "cat"], ["cat", "new.csv"]):
        refused(
            rmadapter("add", run, *lost, "--out", tmp_path / "x", *its),
            "give one folder or table that exists, or",
        )
    table = rmadapter.done("add", run, data, "--out", tmp_path / "new", *its, "--quiet")
    assert table.err == ""
    assert "judged on the test split" in table.out
    assert read_record(tmp_path / "new/run.json").command.startswith("rmadapter add ")


def test_the_verb_add_takes_images_of_one_class(
    rmadapter: Command, run: Path, tmp_path: Path
) -> None:
    """The class has the folder's name; a run made of this folder alone has none."""
    folder = write(tmp_path / "photos", yellow=(YELLOW, 5)) / "yellow"
    out = tmp_path / "new"
    rmadapter.done("add", run, folder, "--out", out, *backbone_option(run))
    assert read_split(out / "split.json").counts("all") == (2, 2, 2, 2, 2)  # shots of each
    assert read_model(out / "model.json").labels[-1] == "yellow"
    refused(rmadapter("fit", folder, "--out", tmp_path / "run"), "no class folders")
    again = ["add", run, folder, "--out", tmp_path / "x", *backbone_option(run)]
    refused(rmadapter(*again, "--crops"), "needs boxes")
    rows = [f"{number}.png,{'yellow' if number % 2 else 'ochre'}" for number in range(5)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    rmadapter.done(*again)  # whose labels a table has
    assert {"yellow", "ochre"} <= {*read_model(tmp_path / "x/model.json").labels}


def test_the_verb_compare(
    rmadapter: Command, run: Path, tmp_path: Path, colors: Path, finished: Path
) -> None:
    its, named = backbone_option(run), tmp_path / "named"
    rmadapter.done("add", run, "cat", "--out", named, *its)
    command = ["compare", run, finished, named, "--data", colors, *its]
    facts = rmadapter.json(*command)
    assert (facts["images"], facts["classes"]) == (16, 4)
    assert [line["run"] for line in facts["runs"]] == [str(path) for path in command[1:4]]
    assert facts["runs"][2]["difference"] == 0  # the same model, and the same classes
    shown = rmadapter.done(*command)
    assert "16 images of 4 classes; p by McNemar's exact test" in shown.out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmadapter.support.progress_lines.LINE_SECONDS", 0)  # every line of progress
        train = rmadapter(*command, "--split", "train").err
    assert "evaluating train, all classes" in train
    assert "evaluating test" not in train
    assert f"note: {finished}: 16 of these 24 images were trained on" in train
    refused(rmadapter(*command[:2], *command[4:]), "give at least two")
    refused(rmadapter(*command, "--split", "val"), "no val split")


@pytest.mark.ci
def test_a_refused_list_leaves_nothing_that_the_next_command_reads(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Neither prompt names nor images; a finished run keeps its list."""
    rmadapter.done(*fit_command(colors, tiny_clip, tmp_path / "run", *quick_options(2)))
    new, out = write(tmp_path / "photos", n02391049=(YELLOW, 3)), tmp_path / "new"
    photo = new / "n02391049/1.png"
    whole = photo.read_bytes()
    for name, content, words in (
        ("red", whole, "'red'"),
        ("zebra", b"broken", "skip-bad"),
        ("zebra", whole[: len(whole) // 2], "skip-bad"),
    ):
        (new / "classnames.json").write_text(f'{{"n02391049": "{name}"}}')
        photo.write_bytes(content)
        with pytest.raises(UserError, match=words):
            grown(tmp_path / "run", tiny_clip, new, out, shots=0)
        assert not out.exists()
    photo.unlink()
    out.mkdir()
    (out / "classnames.json").write_text('{"n02391049": "left by a killed command"}')
    (new / "classnames.json").unlink()
    grown(tmp_path / "run", tiny_clip, new, out, shots=0)
    assert "n02391049" in load(out, tiny_clip).names
    listed = (out / "images.csv").read_bytes()
    (new / "n02391049/2.png").write_bytes(b"broken since")
    with pytest.raises(UserError, match="skip-bad"):
        grown(tmp_path / "run", tiny_clip, new, out, shots=0)
    assert (out / "images.csv").read_bytes() == listed


def test_a_list_that_another_process_wrote_stays(
    run: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """It may be about to read it, and would train on other images than it says."""
    new, out = write(tmp_path / "photos", yellow=(YELLOW, 3)), tmp_path / "new"
    out.mkdir()
    theirs = out / "images.csv"
    theirs.write_text("path,label,split\n")
    with pytest.raises(UserError, match="another run"):
        grown(run, tiny_clip, new, out)
    assert theirs.read_text() == "path,label,split\n"


@pytest.mark.ci
def test_prompt_names_that_new_data_brings_and_files_that_are_gone(
    run: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """For new classes; the others are called as the run has them. A bad file is no shot."""
    new = write(tmp_path / "photos", n02391049=(YELLOW, 3), red=((200, 0, 0), 2))
    (new / "classnames.json").write_text('{"n02391049": "zebra", "red": "cherry"}')
    (new / "n02391049/1.png").write_bytes(b"broken")
    (sorted((tmp_path / "data/test/green").iterdir())[0]).unlink()
    with pytest.raises(UserError, match="skip-bad"):
        grown(run, tiny_clip, new, tmp_path / "all")
    record = grown(run, tiny_clip, new, tmp_path / "new", skip_bad=True)
    saved = load(tmp_path / "new", tiny_clip)
    assert saved.names == ("blue", "green", "zebra", "night sky", "scarlet")
    assert saved.custom_names == {"red": "scarlet", "n02391049": "zebra"}
    assert record.notes[-1] == "trained on the 8 images of run and 4 new ones"
