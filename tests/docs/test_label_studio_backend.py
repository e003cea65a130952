"""examples/label_studio_backend.py by the requests that Label Studio makes: health, setup, predict,
webhook."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'rmadapter[serve]'")

import label_studio_backend as backend
from fastapi.testclient import TestClient

from rmadapter import load
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from tests.helpers.http_server import Server

CONFIG = """<View><Image name="photo" value="$image"/><Choices name="kind" toName="photo">
<Choice value="blue"/><Choice value="green"/><Choice value="night_sky"/>
<Choice value="red"/></Choices></View>"""
PROJECT = {"id": 7, "label_config": CONFIG}
SEEN: list[tuple[str, str]] = []


class Uploads(SimpleHTTPRequestHandler):
    """Label Studio's own files: /moved.png leads elsewhere."""

    def do_GET(self) -> None:
        SEEN.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header(
                "Location", f"http://localhost:{self.server.server_address[1]}/test/red/0.png"
            )
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def studio(colors: Path) -> Iterator[backend.Studio]:
    SEEN.clear()
    server = Server(("127.0.0.1", 0), partial(Uploads, directory=str(colors)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield backend.Studio(f"http://127.0.0.1:{server.server_port}", "secret", str(colors))
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(
    finished: Path,
    tiny_clip: Backbone,
    studio: backend.Studio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TestClient:
    """Of a backend whose RUN is a finished one; its backbone is a folder, which is the test's to
    name."""
    monkeypatch.setattr(backend, "load", lambda folder: load(folder, tiny_clip))
    monkeypatch.setattr(backend, "load_backbone", lambda name: tiny_clip)
    monkeypatch.setattr(
        backend, "FewShotClassifier", partial(backend.FewShotClassifier, device="cpu")
    )
    return TestClient(backend.make_app(tmp_path, studio, str(finished), "zero-shot"))


def task(number: int, image: str) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": [], "predictions": []}


def asked(*images: str, project: str = "7.1694809921") -> dict[str, Any]:
    tasks = [task(number, image) for number, image in enumerate(images)]
    params = {"login": None, "password": None, "context": None}
    return {
        "tasks": tasks,
        "project": project,
        "label_config": CONFIG,
        "model_version": "x",
        "params": params,
    }


def event(
    action: str, number: int = 1, image: str = "/test/red/0.png", label: str = "red"
) -> dict[str, Any]:
    value = {
        "from_name": "kind",
        "to_name": "photo",
        "type": "choices",
        "value": {"choices": [label]},
    }
    annotation = {"id": number, "result": [value], "was_cancelled": False}
    return {
        "action": action,
        "project": PROJECT,
        "task": task(number, image),
        "annotation": annotation,
    }


def test_health_and_setup(client: TestClient, finished: Path) -> None:
    for path in ("/", "/health"):
        assert client.get(path).json()["status"] == "UP"
    wanted = {
        "project": "7.1694809921",
        "schema": CONFIG,
        "hostname": "",
        "access_token": "",
        "extra_params": None,
    }
    assert client.post("/setup", json=wanted).json() == {"model_version": finished.name}


def test_predictions_have_label_studios_shape(client: TestClient, finished: Path) -> None:
    found = client.post(
        "/predict", json=asked("/test/red/0.png", "/data/local-files/?d=test/blue/1.png")
    )
    assert found.status_code == 200
    red, blue = found.json()["results"]
    value = {"from_name": "kind", "to_name": "photo", "type": "choices"}
    assert red["result"] == [{**value, "value": {"choices": ["red"]}}]
    assert blue["result"][0]["value"]["choices"] == ["blue"]
    assert red["model_version"] == finished.name
    assert 0.25 < red["score"] <= 1
    assert SEEN == [("/test/red/0.png", "Token secret")]
    client.post("/predict", json=asked("/test/red/0.png"))
    assert len(SEEN) == 1  # kept


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("http://localhost:1/secret.png", "lies neither on LABEL_STUDIO_URL nor"),
        ("file:///etc/passwd", "lies neither on LABEL_STUDIO_URL nor"),
        ("/data/local-files/?d=../../etc/passwd", "cannot be read"),
        ("/gone.png", "cannot be read (HTTPError)"),
        ("/moved.png", "cannot be read (HTTPError)"),
    ],
)
def test_an_image_from_elsewhere_is_no_answer_and_no_harm(
    client: TestClient, image: str, reason: str
) -> None:
    bad, good = client.post("/predict", json=asked(image, "/test/red/0.png")).json()["results"]
    assert (bad["result"], bad["score"]) == ([], 0.0)
    assert reason in bad["error"]
    assert good["result"]


def test_without_a_run_the_untouched_backbone_answers(
    studio: backend.Studio, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "load_backbone", lambda name: tiny_clip)
    client = TestClient(backend.make_app(tmp_path, studio))
    [found] = client.post("/predict", json=asked("/test/red/0.png")).json()["results"]
    assert found["model_version"] == "zero-shot"
    assert found["result"][0]["value"]["choices"][0] in ("blue", "green", "night_sky", "red")


def test_annotations_come_change_and_go(client: TestClient, tmp_path: Path) -> None:
    for sent, count in (
        (event("ANNOTATION_CREATED", 1), 1),
        (event("ANNOTATION_CREATED", 2, "/test/blue/0.png", "green"), 2),
        (event("ANNOTATION_UPDATED", 2, "/test/blue/0.png", "blue"), 2),
        ({**event("ANNOTATIONS_DELETED"), "annotations": [{"id": 1}]}, 1),
    ):
        found = client.post("/webhook", json=sent)
        assert (found.status_code, found.json()) == (
            201,
            {"status": "ok", "result": f"{count} annotations"},
        )
    assert backend.read_json(tmp_path / "7/labels.json") == {"2": ["/test/blue/0.png", "blue", "2"]}
    assert client.post("/webhook", json={"action": "PROJECT_UPDATED"}).json() == {
        "status": "Unknown event"
    }


def test_annotations_beside_other_controls_several_at_once_and_tasks_that_go(
    client: TestClient, tmp_path: Path
) -> None:
    text, relation = (
        {"type": "textarea", "value": {"text": ["a note"]}},
        {"type": "relation", "from_id": "a"},
    )
    first, second = (
        event("ANNOTATION_CREATED", 1),
        event("ANNOTATION_CREATED", 2, "/test/blue/0.png", "blue"),
    )
    first["annotation"]["result"][:0] = [text, relation]
    both = {
        **first,
        "action": "ANNOTATIONS_CREATED",
        **{k: [first[k], second[k]] for k in ("annotation", "task")},
    }
    gone = {"action": "TASKS_DELETED", "project": PROJECT, "tasks": [{"id": 1}]}
    for sent, count in ((first, 1), (both, 2), (gone, 1)):
        assert client.post("/webhook", json=sent).json()["result"] == f"{count} annotations"
    assert backend.read_json(tmp_path / "7/labels.json") == {"2": ["/test/blue/0.png", "blue", "2"]}


def test_a_training_makes_a_new_version_that_answers_and_lasts(
    client: TestClient, studio: backend.Studio, tmp_path: Path, finished: Path
) -> None:
    for number, label in enumerate(("blue", "green", "red")):
        client.post(
            "/webhook", json=event("ANNOTATION_CREATED", number, f"/train/{label}/0.png", label)
        )
    found = client.post("/webhook", json={"action": "START_TRAINING", "project": PROJECT})
    assert found.json() == {"status": "ok", "result": "training"}
    [worker] = [thread for thread in threading.enumerate() if thread.name == "training 7"] or [None]
    if worker:
        worker.join(120)
    [answer] = client.post("/predict", json=asked("/test/red/0.png")).json()["results"]
    assert answer["model_version"] == "run-1"
    assert {*load_labels(tmp_path / "7/run-1")} == {"blue", "green", "red"}
    again = backend.Project(tmp_path / "7", studio, str(finished), "zero-shot")
    assert again.version == "run-1"


def load_labels(folder: Path) -> tuple[str | int, ...]:
    from rmadapter.artifacts.record import read_model

    return read_model(folder / "model.json").labels


@pytest.mark.parametrize("project", ["", "../7", "seven", None])
def test_a_project_without_a_number_is_refused(client: TestClient, project: str | None) -> None:
    found = client.post("/predict", json={**asked("/test/red/0.png"), "project": project})
    assert found.status_code == 400
    assert "its number is missing" in found.json()["error"]


@pytest.mark.parametrize("config", ["", "<View/>", "<View><Choices/></View>", "<View>"])
def test_a_configuration_without_an_image_and_choices_is_refused(
    client: TestClient, config: str
) -> None:
    assert client.post("/setup", json={"project": "7.1", "schema": config}).status_code == 400
    with pytest.raises(UserError):
        backend.Config.of(config)


def test_a_login(studio: backend.Studio, tmp_path: Path) -> None:
    client = TestClient(backend.make_app(tmp_path, studio, login=("anna", "word")))
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={}).status_code == 401
    assert client.post("/setup", json={}, auth=("anna", "wrong")).status_code == 401
    assert (
        client.post(
            "/setup", json={"project": "7", "schema": CONFIG}, auth=("anna", "word")
        ).status_code
        == 200
    )
