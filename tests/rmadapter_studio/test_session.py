"""What a visitor does with a tiny model, without a browser: train, open, add, ask, download, and
mistakes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter import load
from rmadapter.artifacts.checkpoint import save
from rmadapter.artifacts.predictions import Guess, Predictions
from rmadapter.artifacts.record import Score, read_record
from rmadapter.artifacts.summary import describe_tie
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.metrics import wilson
from rmadapter.predict.stream import Predictor
from rmadapter_studio.jobs import COMMAND_WORDS, Jobs
from rmadapter_studio.scores import MAX_WRONG, read_scores, wrong_images
from rmadapter_studio.session import Session, write_zip
from rmadapter_studio.shared import FairLock, Shared


@pytest.fixture(autouse=True)
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a penalty of the linear probes, which takes half of the time here and is tested in
    test_linear_probe.py."""
    monkeypatch.setattr(LinearProbe, "_best", lambda probe, worth: max((4.0, 0.0), key=worth))


@pytest.fixture
def shared(tiny_clip: Backbone, finished: Path, tmp_path: Path) -> Iterator[Shared]:
    """With one run to open."""
    shutil.copytree(finished, tmp_path / "runs/colours")
    shared = Shared(tiny_clip, Jobs(), tmp_path / "runs")
    yield shared
    shared.jobs.close()


@pytest.fixture
def session(shared: Shared, tmp_path: Path) -> Session:
    return visitor(tmp_path / "me", shared)


def visitor(folder: Path, shared: Shared) -> Session:
    folder.mkdir()
    return Session(folder, shared)


def add_images(session: Session, images: Path, *labels: str) -> None:
    for label in labels:
        for image in sorted((images / label).iterdir()):
            path = session.folder / image.name
            shutil.copyfile(image, path)
            session.images.add(path, label, image.name)


def zip_run(run: Path, archive: Path, **others: str) -> Path:
    """Zip a run as the page would, with other files."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in run.iterdir():
            file.write(path, f"model/{path.name}")
        for name, text in others.items():
            file.writestr(name.replace("_", "."), text)
    return archive


def wait(session: Session) -> str:
    assert session.job is not None
    until = time.monotonic() + 600
    while not session.job.ended and time.monotonic() < until:
        time.sleep(0.05)
    return session.job.state


@pytest.mark.ci
def test_training_and_downloads(
    session: Session, shared: Shared, colors: Path, tmp_path: Path
) -> None:
    add_images(session, colors / "train", "red", "blue", "green")
    session.train("block-ridge")
    for call in (lambda: session.train("rmadapter-plus"), lambda: session.remove("red")):
        with pytest.raises(UserError, match="running"):
            call()
    assert wait(session) == "done", session.job and session.job.message
    state = session.state()
    assert state["model"]["labels"] == ["blue", "green", "red"]
    scores = session.scores()
    assert scores is not None
    assert not COMMAND_WORDS.search(json.dumps([state, scores]))
    first, last = scores["rows"][0], scores["rows"][-1]
    assert first["name"].startswith("before")
    assert last["accuracy"] > 50
    assert last["low"] < last["accuracy"] <= last["high"]
    assert "fitted without" in scores["how"]
    assert all(one["src"].startswith("data:image/jpeg") for one in scores["wrong"])
    assert session.run is not None
    command = read_record(session.run / "run.json").command
    assert command.startswith("rmadapter fit images.csv --method")
    stranger = visitor(tmp_path / "another", shared).state()
    assert (stranger["model"], stranger["runs"]) == (None, ["colours"])
    assert "<html" in session.report().read_text("utf-8")
    answers = session.predict(colors / "test/red/0.png", "photo.png")["classes"]
    assert answers[0]["label"] == "red"
    assert sum(row["probability"] for row in answers) == pytest.approx(1, abs=1e-5)
    assert state["model"]["takes_names"]
    check_download(session, visitor(tmp_path / "other", shared), colors, tmp_path)


def check_download(session: Session, other: Session, colors: Path, tmp_path: Path) -> None:
    """Check downloads, and open them as another visitor."""
    with zipfile.ZipFile(session.zipped("images")) as file:
        names = file.namelist()
        file.extractall(tmp_path / "got")
    assert "images.csv" in names
    assert sum(name.startswith("files/") for name in names) == 18
    assert load(tmp_path / "got/model", session.shared.backbone).labels == ("blue", "green", "red")
    with zipfile.ZipFile(session.zipped("model")) as file:
        assert {name.split("/")[0] for name in file.namelist()} == {"model"}
    shutil.copyfile(session.zipped("images"), other.folder / "x.zip")
    assert other.add_zip(other.folder / "x.zip") == {"opened": "x", "bad": []}
    assert other.scores() == session.scores()
    state = other.state()
    assert (state["classes"][0], state["base"]) == (
        {"label": "red", "images": 6, "shown": other.images.shown("red")}, None,
    )  # fmt: skip
    shutil.copyfile(session.zipped("model"), other.folder / "y.zip")
    assert other.add_zip(other.folder / "y.zip")["opened"] == "y"
    assert (other.state()["classes"], len(other.state()["model"]["labels"])) == ([], 3)
    add_images(other, colors / "train", "red", "blue")
    with pytest.raises(UserError, match="images of this run"):
        other.train("block-ridge")


@pytest.mark.slow
def test_run_of_the_server_learns_another_class(
    session: Session, colors: Path, tmp_path: Path
) -> None:
    record = tmp_path / "runs/colours/run.json"
    record.write_text(record.read_text().replace('"data": "colors"', f'"data": "{colors}"'))
    (record.parent / "SHA256SUMS").unlink()
    session.open("colours")
    assert session.state()["base"] == {"run": "model-1", "grows": True}
    shutil.copytree(colors / "train/red", tmp_path / "more/scarlet")
    shutil.copytree(colors / "train/blue", tmp_path / "more/navy")
    add_images(session, tmp_path / "more", "scarlet", "navy")
    session.train("rmadapter-plus")
    assert wait(session) == "done", session.job and session.job.message
    labels = ["blue", "green", "navy", "night_sky", "red", "scarlet"]
    assert session.state()["model"]["labels"] == labels
    before = session.run
    session.add(["yellow"])
    assert session.state()["model"]["labels"][-1] == "yellow"
    assert session.run != before
    assert session.scores() is None
    with pytest.raises(UserError, match="no report"):
        session.report()


@pytest.mark.slow
def test_an_export(session: Session) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    session.open("colours")
    with pytest.raises(UserError, match="not exported yet"):
        session.zipped("onnx")
    session.export("onnx")
    assert wait(session) == "done", session.job and session.job.message
    assert session.state()["exports"] == ["onnx"]
    with zipfile.ZipFile(session.zipped("onnx")) as file:
        assert {"onnx/model.onnx", "onnx/predict.py", "onnx/SHA256SUMS"} <= {*file.namelist()}


def test_sets_at_each_error_that_can_be_promised(
    session: Session, calibrated: Path, colors: Path, blends: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(calibrated, tmp_path / "runs/calibrated")
    session.open("calibrated")
    model = session.state()["model"]
    assert model["calibration"] == {"images": 48, "source": "held out", "grouped": False}
    assert (model["errors"], model["added"]) == ([0.05, 0.1], 0)
    saved = load(calibrated, session.shared.backbone)
    predictor = Predictor(saved.fitted, saved.names, [*map(str, saved.labels)], error=0.1)
    expected = [answer for batch in predictor.predict(blends) for answer in batch]
    for image, answer in zip(blends, expected, strict=True):
        five, ten = session.predict(image, image.name)["sets"]
        assert five["error"] == 0.05
        decided = {"decision": answer.decision(), "parent": ""}
        assert ten == {"error": 0.1, "set": [*answer.labels], **decided}
        assert len(five["set"]) >= len(ten["set"])
    session.open("colours")
    assert session.state()["model"]["errors"] == []
    assert session.predict(blends[0], "x")["sets"] == []


def test_images_are_rejected_at_each_share(
    session: Session, calibrated: Path, blends: list[Path], noise: Path, tmp_path: Path
) -> None:
    shutil.copytree(calibrated, tmp_path / "runs/calibrated")
    session.open("calibrated")
    model = session.state()["model"]
    assert model["familiarity"] == {"images": 48, "source": "held out", "grouped": False}
    assert model["shares"] == [0.05, 0.1]
    saved, images = load(calibrated, session.shared.backbone), [*blends, noise]
    predictor = Predictor(saved.fitted, saved.names, saved.names, reject_rate=0.1)
    expected = [answer for batch in predictor.predict(images) for answer in batch]
    for image, answer in zip(images, expected, strict=True):
        found = session.predict(image, image.name)
        assert found["familiar"][1] == {"share": 0.1, "familiar": answer.familiar}
        assert found["classes"][0]["probability"] == pytest.approx(answer.best[0][1], abs=1e-5)
    session.add(["yellow"])  # the nearest name to none of the images
    assert session.state()["model"]["shares"] == [0.05, 0.1]
    assert len(session.predict(noise, "x")["familiar"]) == 2
    session.open("colours")
    assert session.state()["model"]["shares"] == []
    assert session.predict(noise, "x")["familiar"] == []


def test_zero_shot_from_names(session: Session, colors: Path) -> None:
    with pytest.raises(UserError, match="no classifier yet"):
        session.predict(colors / "test/red/0.png", "a.png")
    session.images.add_class("red")
    with pytest.raises(UserError, match="at least two classes"):
        session.use_names()
    session.images.add_class("sea_horse")
    session.use_names()
    assert session.state()["model"]["takes_names"]
    session.add(["night-sky"])
    assert session.predict(colors / "test/red/0.png", "a.png")["classes"]
    assert session.state()["model"]["labels"] == ["red", "sea_horse", "night-sky"]
    with pytest.raises(UserError, match="are both called"):
        session.add(["Red"])
    for names, hint in (
        (["\ud800"], "its name"),
        (["x" * 101], "its name"),
        (["a"] * 998, "at most 1,000 classes"),
    ):
        with pytest.raises(UserError, match=hint):
            session.add(names)
    bad = session.folder / "x"
    bad.write_bytes(b"no")
    with pytest.raises(UserError, match=r"^bad\.png: not an image"):
        session.predict(bad, "bad.png")
    with zipfile.ZipFile(session.zipped("model")) as file:
        assert "model/model.json" in file.namelist()


def test_answer_shows_images_that_browsers_cannot_draw(session: Session, tmp_path: Path) -> None:
    for label in ("red", "blue"):
        session.images.add_class(label)
    session.use_names()
    photo = tmp_path / "photo.tif"
    Image.new("RGB", (4000, 1000), "red").save(photo)
    src = session.predict(photo, "photo.tif")["src"]
    kind, _, data = src.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert (kind, small.format, small.size) == ("data:image/jpeg;base64", "JPEG", (320, 80))


def test_unused_models_are_removed(session: Session) -> None:
    for label in ("red", "blue"):
        session.images.add_class(label)
    for _ in range(3):
        session.use_names()
        session.add(["night-sky"])
    left = {*session.folder.glob("model-*")}
    assert session.run in left
    assert len(left) <= 2  # and the one before it, until the next


@pytest.mark.ci
def test_images_to_label_leave_what_a_job_writes(
    session: Session, shared: Shared, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.jobs, "add", lambda job: None)
    archive = shutil.make_archive(str(session.folder / "some"), "zip", colors / "test/red")
    session.images.add_class("red")
    session.images.add_class("blue")
    session.use_names()
    session.export("onnx")
    assert session.job is not None
    session.job.out.mkdir()
    assert session.label_zip(Path(archive)) == []
    assert session.job.out.is_dir()
    session.job.state = "failed"
    session.use_names()
    assert not session.job.out.exists()


def test_a_method_that_learns_from_what_it_answers_is_refused(
    session: Session, shared: Shared, finished: Path
) -> None:
    saved = load(finished, shared.backbone)
    assert shared.runs is not None
    for name in ("tda", "stata"):
        fitted = load_method(name).restore(shared.backbone, saved.fitted.known, {})
        save(shared.runs / name, fitted, name, saved.labels, saved.names)
        before = session.state()
        with pytest.raises(UserError, match=r"this page .* learns from earlier images"):
            session.open(name)
        assert session.state() == before


@pytest.mark.ci
def test_stopping_changes_nothing(session: Session, colors: Path) -> None:
    session.images.add_class("red")
    session.images.add_class("blue")
    session.use_names()
    add_images(session, colors / "train", "red", "blue")
    before = session.state() | {"job": None}
    session.train("rmadapter-plus")
    while session.job and session.job.state == "waiting":
        time.sleep(0.01)
    session.stop()
    assert wait(session) == "stopped"
    assert session.state() | {"job": None} == before
    session.images.remove("blue")
    with pytest.raises(UserError, match="at least two classes"):
        session.train("rmadapter-plus")


@pytest.mark.ci
def test_errors_of_the_command_line_are_shown(
    session: Session, shared: Shared, colors: Path
) -> None:
    add_images(session, colors / "train", "red", "blue")
    (session.folder / session.images.classes["red"][0].file).write_bytes(b"spoilt since")
    session.train("block-ridge")
    assert wait(session) == "failed"
    assert session.job is not None
    assert session.job.message.startswith("files/000001-0.png: not an image")
    assert session.state()["model"] is None


@pytest.mark.ci
@pytest.mark.parametrize("where", ["task", "score"])
def test_uploaded_run_shows_no_other_images(
    session: Session, tmp_path: Path, colors: Path, where: str
) -> None:
    """Whoever sends a run must not see this machine's images; the server's own runs show theirs."""
    run = tmp_path / "runs/colours"
    record = read_record(run / "run.json")
    score = record.scores[0].model_copy(update={"data": str(colors)})
    task = replace(record.task, data=str(colors))
    changes = {"task": {"task": task}, "score": {"scores": (score,)}}
    record.model_copy(update=changes[where]).save(run / "run.json")
    rows = (run / "predictions.csv").read_text().replace(",red,red,", ",red,blue,")
    (run / "predictions.csv").write_text(rows)
    for file in ("SHA256SUMS", "report.html"):
        (run / file).unlink()
    session.open("colours")
    before = session.scores()
    archive = zip_run(run, session.folder / "evil.zip")
    assert session.add_zip(archive) == {"opened": "evil", "bad": []}
    after = session.scores()
    assert before is not None
    assert after is not None
    assert {bool(one["src"]) for one in before["wrong"]} == {True}
    assert {bool(one["src"]) for one in after["wrong"]} == {False}
    assert len(after["wrong"]) == len(before["wrong"]) > 1


def test_invalid_requests(session: Session) -> None:
    for call, hint in [
        (lambda: session.open("../runs"), "unknown run"),
        (lambda: session.train("magic"), "unknown method"),
        (lambda: session.export("exe"), "unknown target"),
        (lambda: session.zipped("model"), "no classifier yet"),
        (lambda: session.zipped("a\\..\\..\\x"), "not one of model, images, onnx, web"),
        (lambda: session.zipped("x\0"), "not one of model"),
        (lambda: session.remove("red"), "no such class"),
    ]:
        with pytest.raises(UserError, match=hint):
            call()


def test_job_finds_a_backbone_with_a_relative_path(
    session: Session, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in the visitor's folder."""
    home = Path(shared.backbone.name)
    monkeypatch.chdir(home.parent)
    monkeypatch.setattr(shared.jobs, "add", lambda job: None)
    for name, expected in ((f"./{home.name}", str(home)), ("pocket", "pocket")):
        shared.backbone = replace(shared.backbone, name=name)
        session.start("fit", ["fit"], session.folder / "run", lambda: None)
        assert session.job is not None
        words = list(session.job.words)
        assert words[words.index("--backbone") + 1] == expected


def test_zip_with_a_broken_list_changes_nothing(
    session: Session, shared: Shared, colors: Path
) -> None:
    session.open("colours")
    add_images(session, colors / "train", "red", "blue")
    before = session.state()
    assert shared.runs is not None
    listed = "path,label\nfiles/1.png,\n"
    archive = zip_run(shared.runs / "colours", session.folder / "a.zip", images_csv=listed)
    with pytest.raises(UserError, match="label"):
        session.add_zip(archive)
    assert session.state() == before


def test_errors_name_no_path_of_this_machine(session: Session, finished: Path) -> None:
    model = json.loads((finished / "model.json").read_text())
    model["backbone"] = {"name": "other", "digest": "0" * 64}
    archive = session.folder / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(finished / "model.safetensors", "model.safetensors")
        file.writestr("model.json", json.dumps(model))
    with pytest.raises(UserError, match=r"^the run was trained on other ") as caught:
        session.add_zip(archive)
    assert "/" not in str(caught.value)


def test_errors_name_the_zip(session: Session) -> None:
    archive = session.folder / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat/1.png", b"some bytes")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"some bytes", b"other byte"))
    with pytest.raises(UserError, match=r"^a.zip: cannot be unpacked \(.?Bad CRC-32") as caught:
        session.add_zip(archive)
    assert str(session.folder) not in str(caught.value)


def test_zip_holds_plain_files(tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    for name in ("a.txt", ".hidden"):
        (tmp_path / "folder" / name).write_text(name)
    others = {"files/b": tmp_path / "folder/a.txt"}
    write_zip(tmp_path / "x.zip", tmp_path / "folder", "model", others)
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        contents = {name: file.read(name) for name in file.namelist()}
    assert contents == {"model/a.txt": b"a.txt", "files/b": b"a.txt"}


# How good a run is


def test_scores_of_a_judged_run(finished: Path, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "colors").symlink_to(colors)
    scores = read_scores(finished, tmp_path)
    assert scores is not None
    record = read_record(finished / "run.json")
    assert record.judgement is not None
    assert [row["name"] for row in scores["rows"]] == [
        "before: by the class names alone", "linear probe", f"after: {record.method.title}",
    ]  # fmt: skip
    own, score = scores["rows"][-1], record.scores[0]
    assert (own["accuracy"], scores["images"]) == (record.judgement.rows[-1].accuracy, 16)
    assert own["right"] == round(own["accuracy"] * 0.16)
    assert (own["low"], own["high"]) == wilson(round(own["accuracy"] * 0.16), 16)
    assert scores["mistakes"] == round(16 * (1 - (score.accuracy or 0) / 100))
    assert len(scores["wrong"]) == scores["mistakes"]
    assert (scores["how"], scores["report"]) == ("on the test split", True)


def test_scores_say_that_a_probe_may_be_as_good(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    record = read_record(copy / "run.json")
    judged = record.judgement
    assert judged is not None
    rows = tuple(row if row.p is None else row.model_copy(update={"p": 0.5}) for row in judged.rows)
    tied = judged.model_copy(update={"rows": rows})
    seconds = {**record.seconds, "linear-probe": 4.0}
    record = record.model_copy(update={"judgement": tied, "seconds": seconds})
    notes = (*record.notes, describe_tie(record))
    record.model_copy(update={"notes": notes}).save(copy / "run.json")
    (copy / "SHA256SUMS").unlink()
    scores = read_scores(copy, tmp_path)
    assert scores is not None
    assert "linear probe" in scores["tie"]
    assert "--" not in scores["tie"]
    assert not any(scores["tie"] in note for note in scores["notes"])


def test_scores_of_incomplete_runs(finished: Path, tmp_path: Path) -> None:
    """A run of a repository has no answers to single images; a saved model has no record."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / "predictions.csv").unlink()
    scores, whole = read_scores(copy, tmp_path), read_scores(finished, tmp_path)
    assert scores is not None
    assert whole is not None
    assert (scores["rows"], scores["wrong"]) == (whole["rows"], [])
    (copy / "run.json").unlink()
    assert read_scores(copy, tmp_path) is None


def test_most_confident_mistakes_come_first(colors: Path) -> None:
    count = MAX_WRONG + 5
    images = tuple(f"test/red/{i % 4}.png" for i in range(count))
    sure = np.linspace(0.5, 0.9, count)
    answer = Guess(np.ones(count, int), sure)
    answer.which[0] = 0  # which is right
    predictions = Predictions(
        score=Score(name="all", images=count, classes=2),
        classes=("red", "blue"),
        labels=("red", "blue"),
        images=images,
        sources=(None, *(colors / image for image in images[1:])),
        true=np.zeros(count, int),
        answer=answer,
        second=answer,
        zero_shot=answer,
    )
    rows, total = wrong_images(predictions, {})
    assert (total, len(rows)) == (count - 1, MAX_WRONG)
    assert [one["probability"] for one in rows] == sorted(sure[1:], reverse=True)[:MAX_WRONG]
    assert {(one["true"], one["answer"]) for one in rows} == {("red", "blue")}
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in rows)
    without = Predictions(**{**vars(predictions), "sources": (None,) * count})
    rows, _ = wrong_images(without, {(0, images[-1]): "data:x"})
    assert all((row["src"] == "data:x") == (row["name"] == images[-1]) for row in rows)


def test_a_strangers_run_has_bounds_of_its_own(
    session: Session, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = len(load(finished, session.shared.backbone).labels)
    monkeypatch.setattr("rmadapter_studio.session.MAX_PROMPTS_OF_STRANGERS", classes - 1)
    with pytest.raises(UserError, match="prompts"):
        session.add_zip(zip_run(finished, session.folder / "x.zip"))
    session.open("colours")  # the server's own
    session.add(["kiwi"])
    monkeypatch.setattr("rmadapter_studio.session.MAX_PROMPTS_OF_STRANGERS", classes)
    session.add_zip(zip_run(finished, session.folder / "x.zip"))
    with pytest.raises(UserError, match="prompts"):
        session.add(["kiwi"])


def test_texts_give_way_to_other_visitors(session: Session, finished: Path) -> None:
    """Before each block of the text encoder, while the backbone is held."""

    class Counting(FairLock):
        count = 0

        def give_way(self) -> None:
            self.count += 1
            super().give_way()

    lock = session.shared.lock = Counting()
    session.add_zip(zip_run(finished, session.folder / "x.zip"))
    opening = lock.count
    assert opening >= session.shared.backbone.text.depth
    session.add(["kiwi"])
    assert lock.count > opening


def test_texts_end_with_their_time_and_with_the_visitor(
    session: Session, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = session.shared.lock
    session.add_zip(zip_run(finished, session.folder / "x.zip"))
    before = session.state()["model"]
    monkeypatch.setattr("rmadapter_studio.session.MAX_SECONDS_OF_STRANGERS", 0)
    with pytest.raises(UserError, match="too long"):
        session.add(["kiwi"])
    assert session.state()["model"] == before
    monkeypatch.undo()
    session.add(["kiwi"])
    session.close()
    with pytest.raises(UserError, match="too long"):
        session.add(["lime"])
    with lock:  # nobody holds it
        pass


def test_a_lock_that_gives_way_lets_a_waiting_thread_go_first() -> None:
    lock, done = FairLock(), threading.Event()

    def wait() -> None:
        with lock:
            done.set()

    with lock:
        other = threading.Thread(target=wait)
        other.start()
        while not done.is_set():  # once it waits, the next turn is its own
            lock.give_way()
    other.join()
    with lock:  # nobody holds it
        lock.give_way()


def test_files_of_a_clock_before_1980_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    os.utime(folder / "a.txt", (0, 0))
    write_zip(tmp_path / "run.zip", folder, "run", {})
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        assert archive.read("run/a.txt") == b"a"
