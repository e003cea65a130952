"""Labelling on the page without a browser: proposals that follow the labels, resuming, undo,
mistakes, and the labels that `fit` gets."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")

from starlette.testclient import TestClient

from rmadapter.backbones import Backbone
from rmadapter.data.formats.registry import locate
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter_studio import fitting as module, session as sessions
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.labelling import number_of
from rmadapter_studio.project import ADDED, TABLE, Project
from rmadapter_studio.server import build
from rmadapter_studio.shared import Shared

ADDRESS = "http://127.0.0.1:8080"
LABELS = ("red", "blue", "green")


@pytest.fixture
def photos(colors: Path, tmp_path: Path) -> Path:
    """A heap of images whose names say nothing, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for c, label in enumerate(LABELS):
        for i, image in enumerate(sorted((colors / "train" / label).iterdir())):
            shutil.copyfile(image, folder / f"{(7 * (3 * i + c)) % 18:02}.png")
    (folder / "broken.jpg").write_bytes(b"no")
    return folder


def truth(photos: Path, colors: Path) -> dict[str, str]:
    """Return the label of each image by its bytes."""
    found = {}
    for label in LABELS:
        for image in (colors / "train" / label).iterdir():
            found[image.read_bytes()] = label
    return {path.name: found[path.read_bytes()] for path in photos.glob("*.png")}


@contextmanager
def opened(backbone: Backbone, folder: Path | None) -> Iterator[TestClient]:
    shared = Shared(backbone, Jobs(), project=folder and Project(folder))
    with TestClient(build(shared), ADDRESS) as client:
        client.get("/label")
        yield client


@pytest.fixture
def client(tiny_clip: Backbone, photos: Path, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    with opened(tiny_clip, photos) as client:
        yield client


def ask(client: TestClient, name: str, **body: object) -> Any:
    done = client.post(f"/api/label/{name}", json=body)
    assert done.status_code == 200, done.text
    return done.json()


def refused(client: TestClient, name: str, **body: object) -> str:
    done = client.post(f"/api/label/{name}", json=body)
    assert done.status_code == 400
    return str(done.json()["error"])


def settled(client: TestClient) -> Any:
    """Return the state once all that follows from the labels is computed."""
    until = time.monotonic() + 120
    while (state := ask(client, "state"))["fitting"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert state["trouble"] == ""
    return state


def ids(*names: str) -> list[str]:
    return [number_of(name) for name in names]


def open_cards(client: TestClient, order: str = "typicality") -> Any:
    return ask(client, "cards", view="open", order=order, n=100)


def test_from_a_heap_to_labels_that_fit_reads(
    client: TestClient, photos: Path, colors: Path
) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    state = settled(client)
    assert (state["folder"], state["images"], state["encoded"]) == ("photos", 19, 19)
    assert [text.partition(":")[0] for text in state["bad"]] == ["broken.jpg"]
    assert state["classes"] == []
    assert "sure" not in state["orders"]
    assert {card["name"] for card in open_cards(client)} == {f"{i:02}.png" for i in range(18)}
    ask(client, "classes", names=list(LABELS))
    state = settled(client)
    assert "sure" in state["orders"]
    proposals = {card["name"]: card["answers"] for card in open_cards(client, "sure")}
    assert all(len(answers) == 3 for answers in proposals.values())
    right = truth(photos, colors)
    for label in LABELS:
        names = sorted(name for name, own in right.items() if own == label)[:3]
        ask(client, "set", ids=ids(*names), label=label)
    state = settled(client)
    assert state["labelled"] == 9
    assert state["accuracy"]["images"] == 9
    assert state["accuracy"]["right"] >= 7
    assert [point["labelled"] for point in state["curve"]][-1] == 9
    cards = open_cards(client, "sure")
    assert len(cards) == 9
    hits = [card["answers"][0]["label"] == right[card["name"]] for card in cards]
    assert sum(hits) >= 7
    later = ask(client, "answers", ids=[card["id"] for card in cards])
    assert later == {card["id"]: card["answers"] for card in cards}
    [images] = read_images(photos, progress=False, skip_bad=True).values()
    read = {images.name(row): images.written[label] for row, label in enumerate(images.labels)}
    assert read == {name: right[name] for name in read}
    assert len(read) == 9
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.ci
def test_fit_gives_the_same_model_as_class_folders(
    client: TestClient, photos: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """The page trains on the labels, and so does `fit`. The next server has the model, too."""
    right = truth(photos, colors)
    for label in LABELS:
        names = [name for name, own in right.items() if own == label]
        ask(client, "set", ids=ids(*names), label=label)
    (photos / "broken.jpg").unlink()
    assert client.post("/api/train", json={"method": "block-ridge"}).status_code == 200
    until = time.monotonic() + 300
    while (job := client.get("/api/state").json()["job"])["state"] in ("waiting", "running"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert job["state"] == "done", job
    with zipfile.ZipFile(io.BytesIO(client.get("/download/model").content)) as file:
        model = json.loads(file.read("model/model.json"))
        split = json.loads(file.read("model/split.json"))
    assert model["classes"] == sorted(LABELS)
    folders = tmp_path / "folders"
    for name, label in right.items():
        (folders / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos / name, folders / label / name)
    [own] = read_images(photos, progress=False).values()
    [other] = read_images(folders, progress=False).values()
    assert own.written == other.written
    assert sorted(zip(own.labels, own.contents, strict=True)) == sorted(
        zip(other.labels, other.contents, strict=True)
    )
    assert len(split["train"]) == len(right)
    kept = "block-ridge-1"
    assert client.get("/api/state").json()["runs"] == [kept]
    with opened(tiny_clip, photos) as again:
        state = again.get("/api/state").json()
        assert (state["runs"], state["model"]) == ([kept], None)
        assert again.post("/api/open", json={"run": kept}).status_code == 200
        state = again.get("/api/state").json()
        assert (state["model"]["labels"], state["base"]) == (sorted(LABELS), None)
        assert again.get("/api/judged").json()["images"] == len(right)
        assert again.get("/picture/" + number_of("00.png")).status_code == 200
        asked = again.put("/api/ask", content=(photos / "00.png").read_bytes())
        assert asked.json()["classes"][0]["label"] == right["00.png"]
    assert read_images(photos, progress=False).keys() == {"all"}


@pytest.mark.ci
def test_resume_after_a_kill(
    photos: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the server, by SIGKILL right after an answer."""
    import http.cookiejar
    import urllib.error
    import urllib.request

    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    words = ["app", str(photos), "--port", "0", "--backbone", tiny_clip.name, "--json"]
    command = [sys.executable, "-m", "rmadapter", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        address, key = address.split("?")
        assert address.endswith("/label")
        with pytest.raises(urllib.error.HTTPError, match="403"):  # no other program of the machine
            urllib.request.urlopen(address)
        with pytest.raises(UserError, match="another process"), Project(photos).alone():
            pass
        jar = http.cookiejar.CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        with browser.open(f"{address}?{key}") as page:
            assert page.url == address  # the key does not stay in the address
        for name, body in (
            ("set", {"ids": ids("00.png", "01.png"), "label": "red"}),
            ("skip", {"ids": ids("02.png")}),
        ):
            data = json.dumps(body).encode()
            request = urllib.request.Request(address.replace("/label", f"/api/label/{name}"), data)
            browser.open(request).close()
        process.send_signal(signal.SIGKILL)
    with opened(tiny_clip, photos) as client:
        state = settled(client)
        assert (state["labelled"], state["skipped"]) == (2, 1)
        assert state["classes"][0]["label"] == "red"
        shown = {card["name"] for card in open_cards(client)}
        assert shown.isdisjoint({"00.png", "01.png", "02.png"})
        assert len(shown) == 15
    left = {path.name for path in photos.iterdir()} - {f"{i:02}.png" for i in range(18)}
    assert left - {".lock"} == {"broken.jpg", TABLE, "project.json"}


@pytest.mark.ci
def test_an_order_that_needs_proposals_begins_without(
    client: TestClient, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart, when the page asks for the order that it showed before."""
    settled(client)
    refuse = {"view": "open", "order": "sure"}
    assert "two classes" in refused(client, "cards", **refuse)
    monkeypatch.setattr(module.Fitting, "_fit", lambda _: time.sleep(0.01))
    ask(client, "classes", names=["red", "blue"])
    cards = ask(client, "cards", view="open", order="sure", n=3)
    assert [(card["name"], card["score"], card["answers"]) for card in cards] == [
        (name, None, []) for name in ("00.png", "01.png", "02.png")
    ]
    monkeypatch.undo()
    settled(client)
    assert None not in {
        card["score"] for card in ask(client, "cards", view="open", order="sure", n=3)
    }


def test_visitors_undo_their_own_steps_and_outlive_the_servers_memory(
    client: TestClient, photos: Path
) -> None:
    """A visitor whom the server no longer knows is told so by a status of its own, and goes on as a
    new one where the labels are in a folder."""
    other = TestClient(client.app, ADDRESS)
    other.get("/label")
    ask(client, "set", ids=[number_of("00.png")], label="red")
    ask(other, "set", ids=[number_of("01.png")], label="blue")
    assert [card["name"] for card in ask(client, "undo")] == ["00.png"]
    assert "nothing to undo" in refused(client, "undo")
    assert Project(photos).labels == {"01.png": "blue"}
    visitors = client.app.state.visitors  # type: ignore[attr-defined]
    visitors.remove(other.cookies["rmadapter-app-8080"])
    expired = other.post("/api/label/set", json={"ids": [number_of("02.png")], "label": "red"})
    assert (expired.status_code, "reload it" in expired.json()["error"]) == (410, True)
    other.get("/label")
    ask(other, "set", ids=[number_of("02.png")], label="red")
    assert Project(photos).labels == {"01.png": "blue", "02.png": "red"}


def test_a_page_with_a_secret_is_for_who_was_told_it(photos: Path, tiny_clip: Backbone) -> None:
    """It goes from the address into a cookie, with which a browser stays known."""
    project = Project(photos)
    with project.alone():
        site = build(Shared(tiny_clip, Jobs(), None, project, "a secret"))
        with TestClient(site, ADDRESS) as client:
            for path in ("/label", "/", "/label?key=wrong", "/label?key=ä", "/label?key="):
                denied = client.get(path)
                assert (denied.status_code, "ends in a key" in denied.text) == (403, True)
            assert not client.cookies
            assert client.post("/api/label/state", json={}).status_code == 410
            opened = client.get("/label", params={"key": "a secret"})
            assert (opened.status_code, str(opened.url)) == (200, f"{ADDRESS}/label")
            assert client.post("/api/label/state", json={}).status_code == 200
            del client.cookies["rmadapter-app-8080"]  # as a visitor who was idle for too long
            assert client.get("/label").status_code == 200
            assert client.post("/api/label/state", json={}).status_code == 200


def test_what_other_sites_embed_is_no_visitor(client: TestClient) -> None:
    """Else an image of any site would use up the visitors of this address."""
    other = TestClient(client.app, ADDRESS)
    for site, kind, counts in (
        ("cross-site", "image", False), ("cross-site", "iframe", False),
        ("same-site", "empty", False), ("cross-site", "document", True),
        ("same-origin", "empty", True), ("none", "document", True),
    ):  # fmt: skip
        other.cookies.clear()
        other.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": kind})
        assert bool(other.cookies) == counts, (site, kind)


def test_undo_skip_and_none_of_these(client: TestClient, photos: Path) -> None:
    settled(client)
    assert "nothing to undo" in refused(client, "undo")
    ask(client, "set", ids=ids("00.png", "01.png"), label="red")
    ask(client, "set", ids=ids("01.png"), label=ask(client, "state")["none"])
    ask(client, "skip", ids=ids("00.png"))
    state = settled(client)
    assert {one["label"]: one["images"] for one in state["classes"]} == {"red": 0, "none": 1}
    assert [c["name"] for c in ask(client, "cards", view="skipped")] == ["00.png"]
    undone = ask(client, "undo")
    assert [(card["name"], card["label"], card["skipped"]) for card in undone] == [
        ("00.png", "red", False)
    ]
    ask(client, "undo")
    labelled = ask(client, "cards", view="labelled", label="red")
    assert {card["name"] for card in labelled} == {"00.png", "01.png"}
    ask(client, "undo")
    assert not (photos / TABLE).exists()
    assert settled(client)["undoable"] is False


@pytest.mark.ci
def test_wrong_labels_are_shown_to_be_mended(
    client: TestClient, photos: Path, colors: Path
) -> None:
    right = truth(photos, colors)
    for label in LABELS:
        names = [name for name, own in right.items() if own == label]
        ask(client, "set", ids=ids(*names), label=label)
    [wrong, *_] = [name for name, own in right.items() if own == "red"]
    ask(client, "set", ids=ids(wrong), label="green")
    assert settled(client)["suspects"] >= 1
    suspects = {card["name"]: card for card in ask(client, "cards", view="suspects")}
    assert suspects[wrong]["suggested"] == "red"
    assert suspects[wrong]["label"] == "green"
    first = ask(client, "cards", view="labelled", label="green")[0]
    assert first["name"] == wrong  # it fits its label least
    ask(client, "set", ids=ids(wrong), label="red")
    names = [card["name"] for card in ask(client, "cards", view="suspects")]
    assert wrong not in names


@pytest.mark.ci
def test_mistakes_confusions_and_neighbours(client: TestClient, photos: Path, colors: Path) -> None:
    right = truth(photos, colors)
    assert settled(client)["confusions"] == []
    assert ask(client, "cards", view="mistakes") == []
    assert ask(client, "near", id=number_of("00.png")) == []
    for label in LABELS:
        names = sorted(name for name, own in right.items() if own == label)
        ask(client, "set", ids=ids(*names), label=label)
    [wrong, *_] = [name for name, own in right.items() if own == "red"]
    ask(client, "set", ids=ids(wrong), label="green")
    state = settled(client)
    [pair] = [
        one for one in state["confusions"] if (one["label"], one["answer"]) == ("green", "red")
    ]
    assert pair["shown"] == [number_of(wrong)]
    assert sum(one["images"] for one in state["confusions"]) == state["mistakes"]
    judged = state["accuracy"]
    assert state["mistakes"] == judged["images"] - judged["right"]
    cards = ask(client, "cards", view="mistakes")
    shares = [card["answers"][0]["probability"] for card in cards]
    assert (len(cards), shares) == (state["mistakes"], sorted(shares, reverse=True))
    assert all(card["suggested"] == card["answers"][0]["label"] for card in cards)
    [card] = ask(client, "cards", view="confused", label="green", answer="red")
    assert (card["name"], card["label"], card["suggested"]) == (wrong, "green", "red")
    assert ask(client, "cards", view="confused", label="red", answer="red") == []
    [green] = [one for one in state["classes"] if one["label"] == "green"]
    assert 0 < green["low"] < 100 * green["right"] / green["judged"] < green["high"] <= 100
    near = ask(client, "near", id=card["id"])
    assert card["id"] not in {one["id"] for one in near}
    assert near[0]["label"] == "red"
    cosines = [one["similarity"] for one in near]
    assert cosines == sorted(cosines, reverse=True)
    ask(client, "set", ids=[card["id"]], label="red")  # before the next fit
    assert ask(client, "cards", view="confused", label="green", answer="red") == []
    assert "no longer" in refused(client, "near", id="00.png")


@pytest.mark.ci
def test_unfamiliar_images_come_by_their_score(
    client: TestClient, photos: Path, colors: Path
) -> None:
    right = truth(photos, colors)
    assert ask(client, "cards", view="unfamiliar") == []
    for label in ("red", "blue"):
        names = sorted(name for name, own in right.items() if own == label)[:4]
        ask(client, "set", ids=ids(*names), label=label)
    settled(client)
    cards = ask(client, "cards", view="unfamiliar")
    scores = [card["score"] for card in cards]
    assert (len(cards), scores) == (10, sorted(scores, reverse=True))
    assert [right[card["name"]] for card in cards[:6]] == ["green"] * 6
    ask(client, "skip", ids=[cards[0]["id"]])
    assert len(ask(client, "cards", view="unfamiliar")) == 9
    more = ask(client, "cards", view="unfamiliar", start=2, n=3)
    assert [card["id"] for card in more] == [card["id"] for card in cards[3:6]]


def test_copies_are_labelled_together(client: TestClient, photos: Path) -> None:
    settled(client)
    with Image.open(photos / "00.png") as image:
        image.resize((64, 64)).save(photos / "zz.png")
    ask(client, "scan")
    settled(client)
    groups = [{card["id"], *card["copies"]} for card in open_cards(client)]
    [both] = [group for group in groups if number_of("zz.png") in group]
    assert number_of("00.png") in both
    ask(client, "set", ids=sorted(both), label="red")
    assert settled(client)["labelled"] == len(both)
    assert not any(both & {card["id"], *card["copies"]} for card in open_cards(client))


def test_pictures_are_small_jpegs(client: TestClient) -> None:
    [number] = ids("00.png")
    for size in ("", "?size=large"):
        answer = client.get(f"/picture/{number}{size}")
        assert (answer.headers["content-type"], answer.content[:2]) == ("image/jpeg", b"\xff\xd8")
        assert answer.headers["cache-control"].startswith("private")
    for wrong in ("..%2f..%2fetc%2fpasswd", "00.png", "0" * 16, "x" * 5000, f"{number}?size=huge"):
        assert client.get(f"/picture/{wrong}").status_code in (400, 404)
    broken = client.get(f"/picture/{number_of('broken.jpg')}")
    assert broken.status_code == 400
    assert broken.json()["error"].startswith("broken.jpg: ")


def test_refused_requests_change_nothing(client: TestClient, photos: Path) -> None:
    for body in (
        {}, {"ids": []}, {"ids": "00.png"}, {"ids": [1]}, {"ids": ["../00.png"], "label": "a"},
        {"ids": ids("00.png")}, {"ids": ids("00.png"), "label": "x" * 101},
        {"ids": [*ids("00.png"), "gone"], "label": "a"},
    ):  # fmt: skip
        refused(client, "set", **body)
    for body in (
        {}, {"view": "all"}, {"view": "open", "order": "best"}, {"view": "open", "order": "sure"},
        {"view": "open", "order": "random", "n": 0}, {"view": "skipped", "n": 10**9},
        {"view": "skipped", "start": -1}, {"view": "skipped", "n": True},
    ):  # fmt: skip
        refused(client, "cards", **body)
    assert "no such class" in refused(client, "remove", label="cat")
    assert "empty" in refused(client, "classes", names=["  "])
    assert client.get("/api/label/state").status_code == 405
    stranger = TestClient(client.app, ADDRESS)
    assert stranger.post("/api/label/state", json={}).status_code == 410
    assert sorted(path.name for path in photos.glob("*.[cj]s*")) == []


def test_added_images_are_kept_in_the_folder(client: TestClient, photos: Path) -> None:
    data = (photos / "00.png").read_bytes()
    for name in ("../../évil.png", "évil.png"):
        done = client.put("/api/label/image", content=data, params={"name": name})
        assert done.status_code == 200, done.text
    bad = client.put("/api/label/image", content=b"no", params={"name": "bad.png"})
    assert bad.json()["error"].startswith("bad.png: not an image")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("deep/er/x.png", data)
        file.writestr("deep/er/y.png", b"no")
        file.writestr("notes.txt", b"no image")
    done = client.put("/api/label/zip", content=archive.getvalue(), params={"name": "a.zip"})
    assert [text.partition(":")[0] for text in done.json()] == ["deep/er/y.png"]
    assert sorted(path.name for path in (photos / ADDED).iterdir()) == [
        "vil-2.png", "vil.png", "x.png",
    ]  # fmt: skip
    state = settled(client)
    assert state["images"] == 22
    for name in ("image", "a.py", "metadata.csv", "b.JPG"):
        assert client.put("/api/label/image", content=data, params={"name": name}).is_success
    assert {path.name for path in (photos / ADDED).iterdir()} >= {
        "image.png", "a.py.png", "metadata.csv.png", "b.JPG.png",
    }  # fmt: skip
    assert len(Project(photos).images) == settled(client)["images"] == 26
    zips = client.put("/api/label/zip", content=b"no", params={"name": "b.zip"})
    assert zips.json()["error"].startswith("b.zip: not a readable zip")


@pytest.mark.ci
def test_visitors_without_a_folder_have_their_own(
    tiny_clip: Backbone, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tiny_clip, None) as client:
        other = TestClient(client.app, ADDRESS)
        other.get("/label")
        assert ask(client, "state") is None
        assert "add some first" in refused(client, "set", ids=["a"], label="b")
        data = (photos / "00.png").read_bytes()
        client.put("/api/label/image", content=data, params={"name": "00.png"})
        [card] = open_cards(client)
        ask(client, "set", ids=[card["id"]], label="red")
        assert settled(client)["labelled"] == 1
        assert client.get("/api/state").json()["project"]["labelled"] == 1
        assert ask(other, "state") is None
        assert other.get(f"/picture/{card['id']}").status_code == 400
        monkeypatch.setattr(sessions, "MAX_BYTES", len(data) + 1)
        full = client.put("/api/label/image", content=data, params={"name": "b.png"})
        assert "b.png: this page takes at most" in full.json()["error"]
        root = client.app.state.visitors.root  # type: ignore[attr-defined]
        assert [*root.glob("*/project/metadata.csv")]
    assert not root.exists()


@pytest.mark.ci
def test_features_are_kept_for_the_next_start(
    client: TestClient, photos: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(client)

    kind, sizes = type(tiny_clip.image), []
    frozen_at = kind.frozen_at

    def count(self: Any, pixels: Any, blocks: Any) -> Any:
        sizes.append(len(pixels))
        return frozen_at(self, pixels, blocks)

    monkeypatch.setattr(kind, "frozen_at", count)
    again = Shared(tiny_clip, Jobs()).label(Project(photos), keep=True)
    again.fitting.start()
    until = time.monotonic() + 60
    while again.state()["fitting"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    state = again.state()
    again.fitting.close()
    assert (state["encoded"], state["trouble"]) == (19, "")
    assert sizes == []


@pytest.mark.parametrize("to", ["csv", "coco", "label-studio", "folders"])
def test_labels_are_taken_along(client: TestClient, photos: Path, tmp_path: Path, to: str) -> None:
    assert "no image has a label" in client.get(f"/labels/{to}").json()["error"]
    ask(client, "set", ids=ids("00.png", "01.png"), label="big/red")
    ask(client, "set", ids=ids("02.png"), label="blue")
    got = client.get(f"/labels/{to}")
    name = got.headers["content-disposition"].partition('filename="')[2].rstrip('"')
    labels = {"00.png": "big/red", "01.png": "big/red", "02.png": "blue"}
    if to == "folders":
        (tmp_path / name).write_bytes(got.content)
        [images] = read_images(tmp_path / name, progress=False).values()
        assert images.classes == ("big/red", "blue")
        assert len(images) == 3
    else:
        (photos / name).write_bytes(got.content)
        [rows] = locate(photos / name).read().splits.values()
        assert {row.image.name: row.label for row in rows} == labels
    assert client.get("/labels/yolo").status_code == 400


def test_trouble_is_shown(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(client)

    def fail(*_: object) -> None:
        raise UserError("too many prompts")

    monkeypatch.setattr(module, "fit", fail)
    ask(client, "set", ids=ids("00.png"), label="red")
    until = time.monotonic() + 60
    # its end is read before its trouble
    while (state := ask(client, "state"))["fitting"] or state["trouble"] != "too many prompts":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert state["labelled"] == 1
    assert os.path.isfile(client.app.state.visitors.shared.project.folder / TABLE)  # type: ignore[attr-defined]


def test_page_words_are_in_one_file(client: TestClient) -> None:
    page = client.get("/label")
    assert "<title>Label images</title>" in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    for name in ("label.mjs", "label.css"):
        assert client.get(f"/{name}").status_code == 200
    for name in ("label.html.j2", "words.en.json"):
        assert client.get(f"/{name}").status_code == 404
