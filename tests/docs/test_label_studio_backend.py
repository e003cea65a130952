"""examples/label_studio_backend.py by the requests that Label Studio makes: health, setup, predict,
webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="pip install 'rmadapter[serve]'")

import label_studio_backend as backend
from fastapi.testclient import TestClient

from rmadapter import load
from rmadapter.artifacts.model_file import read_model
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from tests.helpers.http_server import Server

CONFIG = """<View><Image name="photo" value="$image"/><Choices name="kind" toName="photo">
<Choice value="blue"/><Choice value="green"/><Choice value="night_sky"/>
<Choice value="red"/></Choices></View>"""
PROJECT = {"id": 7, "label_config": CONFIG}
RED, BLUE = "/test/red/0.png", "/test/blue/0.png"
PERSONAL = "header.claims.signature"  # the form of a personal access token
SEEN: list[tuple[str, str]] = []


class Uploads(SimpleHTTPRequestHandler):
    """Serve Label Studio's own files; /moved.png is redirected."""

    def do_GET(self) -> None:
        SEEN.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}{RED}")
            self.end_headers()
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Exchange the personal access token as Label Studio 1.23.2 does."""
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_right = (self.path, sent) == ("/api/token/refresh/", {"refresh": PERSONAL})
        self.send_response(200 if is_right else 401)
        self.end_headers()
        self.wfile.write(b'{"access": "short-lived"}' if is_right else b'{"code": "invalid"}')

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


@pytest.fixture(autouse=True)
def own_backbone(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the folder of the tiny backbone, as its user would."""
    monkeypatch.setattr(backend, "load", lambda folder: load(folder, tiny_clip))
    monkeypatch.setattr(backend, "load_backbone", lambda name: tiny_clip)
    classifier = partial(backend.FewShotClassifier, device="cpu")
    monkeypatch.setattr(backend, "FewShotClassifier", classifier)


@pytest.fixture
def client(finished: Path, studio: backend.Studio, tmp_path: Path) -> TestClient:
    """Return a client of a backend whose RUN is a finished one."""
    return TestClient(backend.make_app(tmp_path, studio, str(finished), "zero-shot"))


def task(number: int, image: str) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": [], "predictions": []}


def request(*images: str, project: str | None = "7.1694809921") -> dict[str, Any]:
    tasks = [task(number, image) for number, image in enumerate(images)]
    params = {"login": None, "password": None, "context": None}
    request = {"tasks": tasks, "project": project, "label_config": CONFIG}
    return {**request, "model_version": "x", "params": params}


def event(action: str, number: int = 1, image: str = RED, label: str = "red") -> dict[str, Any]:
    choice = {"type": "choices", "value": {"choices": [label]}}
    result = [{"from_name": "kind", "to_name": "photo", **choice}]
    return {
        "action": action,
        "project": PROJECT,
        "task": task(number, image),
        "annotation": {"id": number, "result": result, "was_cancelled": False},
    }


def test_health_and_setup_name_the_run(client: TestClient, finished: Path) -> None:
    for path in ("/", "/health"):
        assert client.get(path).json()["status"] == "UP"
    setup = {"project": "7.1694809921", "schema": CONFIG, "hostname": "", "access_token": ""}
    answer = client.post("/setup", json={**setup, "extra_params": None})
    assert answer.json() == {"model_version": finished.name}


def test_predictions_have_label_studios_shape(client: TestClient, finished: Path) -> None:
    answer = client.post("/predict", json=request(RED, "/data/local-files/?d=test/blue/1.png"))
    assert answer.status_code == 200
    red, blue = answer.json()["results"]
    value = {"from_name": "kind", "to_name": "photo", "type": "choices"}
    [choice] = red["result"]
    assert choice == {**value, "value": {"choices": ["red"]}, "score": choice["score"]}
    assert 0.25 < choice["score"] <= 1
    assert 0 <= red["score"] <= choice["score"]
    assert blue["result"][0]["value"]["choices"] == ["blue"]
    assert red["model_version"] == finished.name
    assert SEEN == [(RED, "Token secret")]
    client.post("/predict", json=request(RED))
    assert len(SEEN) == 1  # the backend keeps the image


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_personal_access_token_is_exchanged(
    studio: backend.Studio, colors: Path, slash: str
) -> None:
    own = studio._replace(url=studio.url + slash, key=PERSONAL)
    assert own.read(RED) == (colors / RED[1:]).read_bytes()
    assert SEEN == [(RED, "Bearer short-lived")]


def test_an_image_is_not_asked_for_with_a_token_that_is_refused(studio: backend.Studio) -> None:
    with pytest.raises(UserError, match="HTTPError"):
        studio._replace(key="header.claims.other").read(RED)
    assert SEEN == []


@pytest.mark.ci
@pytest.mark.parametrize("order", backend.ORDERS)
def test_the_lowest_scores_are_those_of_the_least_sure_answers(
    studio: backend.Studio, finished: Path, tmp_path: Path, tiny_clip: Backbone, order: str
) -> None:
    """On images between red and blue."""
    pool = tmp_path / "pool"
    pool.mkdir()
    rng = np.random.default_rng(1)
    for number in range(9):  # noise, so that they are no near-duplicates
        pixels = rng.uniform(0, 60, (32, 32, 3)) + np.array([190 - 20 * number, 0, 20 * number])
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pool / f"{number}.png")
    files = studio._replace(files=str(pool))
    app = backend.make_app(tmp_path, files, str(finished), "zero-shot", order=order)
    places = [f"/data/local-files/?d={number}.png" for number in range(9)]
    results = TestClient(app).post("/predict", json=request(*places)).json()["results"]
    scores = [one["score"] for one in results]
    assert len({*scores}) == 9
    assert all(0 <= score <= 1 for score in scores)
    saved = load(finished, tiny_clip)
    tables = [*saved.fitted.probabilities([pool / f"{number}.png" for number in range(9)])]
    table = torch.cat(tables).numpy().astype(float)
    unsure = scipy.stats.entropy(table, axis=1) if order == "entropy" else -np.ptp(table, axis=1)
    assert np.argsort(scores).tolist() == np.argsort(-unsure).tolist()
    best = [(str(saved.labels[row.argmax()]), row.max()) for row in table]
    choices = [one["result"][0] for one in results]
    assert [one["value"]["choices"] for one in choices] == [[label] for label, _ in best]
    np.testing.assert_allclose([one["score"] for one in choices], [p for _, p in best], atol=1e-4)


def test_scores_of_known_tables() -> None:
    table = np.array([[0.5, 0.25, 0.25, 0.0]])
    assert backend.sureness(table, "margin") == pytest.approx(0.25)
    assert backend.sureness(table, "entropy") == pytest.approx(1 - 1.5 * np.log(2) / np.log(4))
    for order in backend.ORDERS:
        assert backend.sureness(np.full((1, 4), 0.25), order) == pytest.approx(0)
        assert backend.sureness(np.eye(4)[:1], order) == pytest.approx(backend.LAST)
        assert backend.sureness(np.ones((1, 1)), order) == backend.LAST


def test_an_unknown_order_is_refused(studio: backend.Studio, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ORDER 'typicality'"):
        backend.make_app(tmp_path, studio, order="typicality")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("http://localhost:1/secret.png", "LABEL_STUDIO_URL"),
        ("file:///etc/passwd", "LABEL_STUDIO_URL"),
        ("/data/local-files/?d=../../etc/passwd", "HTTPError"),
        ("/gone.png", "HTTPError"),
        ("/moved.png", "HTTPError"),
    ],
)
def test_an_image_from_elsewhere_has_no_prediction_and_hinders_no_other(
    client: TestClient, image: str, reason: str
) -> None:
    bad, good = client.post("/predict", json=request(image, RED)).json()["results"]
    assert (bad["result"], bad["score"]) == ([], backend.LAST)
    assert reason in bad["error"]
    assert good["result"]


@pytest.mark.ci
def test_without_a_run_the_untouched_backbone_predicts(
    studio: backend.Studio, tmp_path: Path
) -> None:
    client = TestClient(backend.make_app(tmp_path, studio))
    [answer] = client.post("/predict", json=request(RED)).json()["results"]
    assert answer["model_version"] == "zero-shot"
    assert answer["result"][0]["value"]["choices"][0] in ("blue", "green", "night_sky", "red")


def several() -> list[tuple[dict[str, Any], int]]:
    """Return events about other controls, two annotations at once and a deleted task."""
    first = event("ANNOTATION_CREATED", 1)
    second = event("ANNOTATION_CREATED", 2, BLUE, "blue")
    text = {"type": "textarea", "value": {"text": ["a note"]}}
    first["annotation"]["result"][:0] = [text, {"type": "relation", "from_id": "a"}]
    pairs = {name: [first[name], second[name]] for name in ("annotation", "task")}
    both = {**first, "action": "ANNOTATIONS_CREATED", **pairs}
    deleted = {"action": "TASKS_DELETED", "project": PROJECT, "tasks": [{"id": 1}]}
    return [(first, 1), (both, 2), (deleted, 1)]


def changed() -> list[tuple[dict[str, Any], int]]:
    return [
        (event("ANNOTATION_CREATED", 1), 1),
        (event("ANNOTATION_CREATED", 2, BLUE, "green"), 2),
        (event("ANNOTATION_UPDATED", 2, BLUE, "blue"), 2),
        ({**event("ANNOTATIONS_DELETED"), "annotations": [{"id": 1}]}, 1),
    ]


@pytest.mark.parametrize("events", [changed, several])
def test_annotations_are_kept_changed_and_dropped(
    events: Any, client: TestClient, tmp_path: Path
) -> None:
    for sent, count in events():
        answer = client.post("/webhook", json=sent)
        expected = {"status": "ok", "result": f"{count} annotations"}
        assert (answer.status_code, answer.json()) == (201, expected)
    assert backend.read_json(tmp_path / "7/labels.json") == {"2": [BLUE, "blue", "2"]}
    unknown = client.post("/webhook", json={"action": "PROJECT_UPDATED"})
    assert unknown.json() == {"status": "Unknown event"}


@pytest.mark.ci
def test_training_makes_a_new_version_that_predicts_also_after_a_restart(
    client: TestClient, studio: backend.Studio, tmp_path: Path, finished: Path
) -> None:
    for number, label in enumerate(("blue", "green", "red")):
        sent = event("ANNOTATION_CREATED", number, f"/train/{label}/0.png", label)
        client.post("/webhook", json=sent)
    answer = client.post("/webhook", json={"action": "START_TRAINING", "project": PROJECT})
    assert answer.json() == {"status": "ok", "result": "training"}
    for thread in threading.enumerate():
        if thread.name == "training 7":
            thread.join(120)
    [prediction] = client.post("/predict", json=request(RED)).json()["results"]
    assert prediction["model_version"] == "run-1"
    assert {*read_model(tmp_path / "7/run-1/model.json").labels} == {"blue", "green", "red"}
    restarted = backend.Project(tmp_path / "7", studio, str(finished), "zero-shot")
    assert restarted.version == "run-1"


@pytest.mark.parametrize("project", ["", "../7", "seven", None])
def test_a_project_without_a_number_is_refused(client: TestClient, project: str | None) -> None:
    answer = client.post("/predict", json=request(RED, project=project))
    assert answer.status_code == 400
    assert "number" in answer.json()["error"]


@pytest.mark.parametrize("config", ["", "<View/>", "<View><Choices/></View>", "<View>"])
def test_a_configuration_without_an_image_and_choices_is_refused(
    client: TestClient, config: str
) -> None:
    assert client.post("/setup", json={"project": "7.1", "schema": config}).status_code == 400
    with pytest.raises(UserError):
        backend.Config.of(config)


def test_all_but_health_needs_the_login(studio: backend.Studio, tmp_path: Path) -> None:
    client = TestClient(backend.make_app(tmp_path, studio, login=("anna", "word")))
    assert client.get("/health").status_code == 200
    setup = {"project": "7", "schema": CONFIG}
    assert client.post("/setup", json=setup).status_code == 401
    assert client.post("/setup", json=setup, auth=("anna", "wrong")).status_code == 401
    assert client.post("/setup", json=setup, auth=("anna", "word")).status_code == 200
