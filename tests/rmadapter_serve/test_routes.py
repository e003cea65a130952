"""Answers of the server, path by path."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest

from tests.helpers.serving import FACTS, TestClient, Toy, colour_image, running_service, wait_for

from rmadapter.answers.sets import Calibration  # isort: skip
from rmadapter_serve.routes import create_app  # isort: skip
from rmadapter.answers.rejection import RejectionScore  # isort: skip

RED = ("red.png", colour_image(250, 50, 0))
GREEN = ("green.jpg", colour_image(0, 250, 0, (30, 8), "JPEG"))
BAD = ("x.png", b"x")


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def client(toy: Toy) -> Iterator[TestClient]:
    with running_service(toy, max_images=3) as service:
        yield TestClient(create_app(service))


def answers(client: TestClient, path: str, *files: tuple[str, bytes]) -> list[Any]:
    answer = client.post(path, files=form(*files))
    assert answer.status_code == 200
    return answer.json()["answers"]


def test_predict(client: TestClient) -> None:
    answer = client.post("/predict?top=2", files=form(RED, GREEN))
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["model"] == "toy"
    red, green = answer.json()["answers"]
    assert (red["image"], green["image"]) == ("red.png", "green.jpg")
    best = [{"class": "red", "probability": 0.833333}, {"class": "green", "probability": 0.166667}]
    assert red["classes"] == best
    assert green["classes"][0]["class"] == "green"
    (row,) = answers(client, "/models/toy/predict?top=9", RED)
    assert row["classes"][:2] == best
    images = {"images": [base64.b64encode(RED[1]).decode()]}
    (row,) = client.post("/predict?model=toy", json=images).json()["answers"]
    assert (row["image"], row["classes"][:2]) == ("images[0]", best)


def test_embed(client: TestClient) -> None:
    (row,) = answers(client, "/embed", RED)
    assert np.linalg.norm(row["features"]) == pytest.approx(1, abs=1e-6)
    assert row["features"] == pytest.approx([250 / 254.95, 50 / 254.95, 0], abs=1e-4)
    assert answers(client, "/models/toy/embed", RED) == [row]
    bad, good = answers(client, "/embed?skip_bad=true", BAD, RED)
    assert bad["error"].startswith("x.png: ")
    assert good == row


def test_bad_images_are_named_or_skipped(client: TestClient) -> None:
    answer = client.post("/predict", files=form(RED, BAD))
    assert answer.status_code == 422
    assert [one["image"] for one in answer.json()["images"]] == ["x.png"]
    good, bad = answers(client, "/predict?skip_bad=true", RED, BAD)
    assert good["classes"][0]["class"] == "red"
    assert bad["error"].startswith("x.png: ")


@pytest.mark.parametrize(
    ("path", "status", "start"),
    [
        ("/predict?top=0", 422, "query.top: "),
        ("/predict?skip_bad=perhaps", 422, "query.skip_bad: "),
        ("/models/tox/predict", 404, "unknown model 'tox'; served are toy"),
        ("/nowhere", 404, "Not Found"),
        ("/health", 405, "Method Not Allowed"),
    ],
)
def test_errors_are_one_line(client: TestClient, path: str, status: int, start: str) -> None:
    answer = client.post(path, files=form(RED))
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.json()["error"].startswith(start)


def test_refused_bodies_answer_400(client: TestClient) -> None:
    assert client.post("/predict", files=form(*[RED] * 4)).status_code == 400
    kind = {"Content-Type": "application/json"}
    assert client.post("/predict", content=b"x", headers=kind).status_code == 400


def test_slow_model_answers_503(toy: Toy) -> None:
    with running_service(toy, seconds=0.5) as service:
        client = TestClient(create_app(service))
        toy.gate.clear()
        answer = client.post("/predict", files=form(RED))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        value_of = service.counters.registry.get_sample_value
        assert value_of("rmadapter_queue_images", {"model": "toy"}) == 0
        toy.gate.set()
        wait_for(
            lambda: client.post("/predict", files=form(RED)).status_code == 200,
            "it does not answer any more",
        )


def test_health_and_facts(client: TestClient) -> None:
    for path, content in (
        ("/health", {"alive": True}),
        ("/ready", {"ready": True}),
        ("/models", {"models": ["toy"]}),
    ):
        assert client.get(path).json() == content
    told = client.get("/info").json()
    assert told["models"] == {"toy": FACTS}
    limits = told["limits"]
    assert limits["workers"] == 1
    assert 0 < limits["queue_seconds"] < limits["answer_seconds"]
    assert limits["request_images"] <= limits["queue_images"]
    queue = told["queues"]["toy"]
    assert (queue["images"], queue["most_images"]) == (0, limits["queue_images"])
    client.post("/predict", files=form(RED, GREEN))
    text = client.get("/metrics").text
    assert 'rmadapter_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'rmadapter_images_total{model="toy",outcome="answered"} 2.0' in text
    assert 'rmadapter_queue_images{model="toy"} 0.0' in text
    client.app.state.service.stopping = True  # type: ignore[attr-defined]
    assert client.get("/ready").status_code == 503


def test_openapi_says_how_to_send_images(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/embed", "/models/{model}/predict", "/info", "/metrics"} <= set(paths)
    post = paths["/predict"]["post"]
    assert set(post["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {one["name"] for one in post["parameters"]} == {
        "model", "top", "skip_bad", "error", "turn_away"
    }  # fmt: skip


def test_documentation_works_behind_a_proxy(client: TestClient) -> None:
    page = client.get("/docs").text
    (place,) = re.findall(r"url: ['\"](.*?)['\"]", page)
    assert urljoin("https://x.org/birds/docs", place) == "https://x.org/birds/openapi.json"
    (server,) = client.get("/openapi.json").json()["servers"]
    assert urljoin("https://x.org/birds/openapi.json", server["url"]) == "https://x.org/birds/"


@pytest.mark.parametrize(
    ("cors", "allowed"),
    [((), None), (("https://a.example",), "https://a.example"), (("https://b.example",), None)],
)
def test_only_listed_origins_are_allowed(
    toy: Toy, cors: tuple[str, ...], allowed: str | None
) -> None:
    origin = {"Origin": "https://a.example"}
    with running_service(toy) as service:
        client = TestClient(create_app(service, "key", cors))
        question = {**origin, "Access-Control-Request-Method": "POST"}
        preflight = client.options("/predict", headers=question)
        assert preflight.headers.get("access-control-allow-origin") == allowed
        answer = client.post("/predict", files=form(RED), headers={**origin, "X-API-Key": "key"})
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert client.post("/predict", files=form(RED)).status_code == 401


# A promised error

SHARES = (0.2, 0.4, *np.linspace(0.5, 0.99, 46).round(6).tolist())
CALIBRATION = Calibration((*SHARES,), (0, 1, 2, 0) * 12, 3, "folds")  # limit at 10 %: 0.4
MIXED = ("mixed.png", colour_image(200, 160, 0))


@pytest.fixture
def promising() -> Iterator[TestClient]:
    with running_service(Toy(calibration=CALIBRATION)) as service:
        yield TestClient(create_app(service))


def test_sets_and_decisions(promising: TestClient) -> None:
    for error in ("0.1", "10%25", "10%", " 0.1"):
        red, mixed, bad = answers(
            promising, f"/predict?top=1&skip_bad=true&error={error}", RED, MIXED, BAD
        )
        assert (red["set"], red["decision"]) == (["red"], "answer")
        assert (mixed["set"], mixed["decision"]) == (["red", "green"], "unsure")
        assert len(mixed["classes"]) == 1
        assert "set" not in bad
    (row,) = answers(promising, "/models/toy/predict?error=0.5", MIXED)
    assert (row["set"], row["decision"]) == (["red"], "answer")
    for without in ("", "?error=", "?error=0"):
        (row,) = answers(promising, f"/predict{without}", RED)
        assert [*row] == ["image", "classes"]
    text = promising.get("/metrics").text
    assert 'rmadapter_decisions_total{decision="answer",model="toy"} 5.0' in text
    assert 'rmadapter_decisions_total{decision="unsure",model="toy"} 4.0' in text
    facts = promising.get("/info").json()["models"]["toy"]
    assert facts["calibration"] == {"images": 48, "source": "folds", "grouped": False}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("0.01", "an error of 1 % needs 230 images"),
        ("x", "'x' is no share such as 5%"),
        ("-1", "'-1' is no share"),
        ("nan", "'nan' is no share"),
        ("1_0%", "'1_0%' is no share"),
        ("٥%", "is no share"),
        ("1e-300", "needs"),
        ("5e-324", "needs"),
        ("9" * 5000, "no share"),
    ],
)
def test_impossible_errors_are_refused(promising: TestClient, error: str, message: str) -> None:
    answer = promising.post(f"/predict?error={error}", files=form(RED))
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000
    assert promising.app.state.service.counters.total("rmadapter_images") == 0  # type: ignore[attr-defined]


def test_no_error_without_a_calibration(client: TestClient) -> None:
    answer = client.post("/predict?error=0.1", files=form(RED))
    assert answer.status_code == 422
    assert "--folds 4" in answer.json()["error"]
    assert client.get("/info").json()["models"]["toy"]["calibration"] is None
    assert '<select name="error">' not in client.get("/").text


def test_page_offers_possible_errors(promising: TestClient) -> None:
    page = promising.get("/").text
    for error, offered in ((0.01, False), (0.05, True), (0.1, True)):
        assert (f'<option value="{error}"' in page) == offered
    asked = {"error": "0.1"}
    page = promising.post("/?model=toy", files=form(MIXED, RED), data=asked).text
    assert '<option value="0.1" selected>' in page
    assert "<strong>unsure</strong>: it may be red, green</p>" in page
    assert "<strong>answer</strong></p>" in page
    answer = promising.post("/?model=toy", files=form(RED), data={"error": "0.01"})
    assert answer.status_code == 422
    assert "needs 230 images" in answer.text


# None of these

OWN = RejectionScore((*np.linspace(0.5, 0.99, 48),), (*np.linspace(0, 0.3, 48),), "held out")
BLUE = ("blue.png", colour_image(0, 50, 250))


@pytest.fixture
def knowing() -> Iterator[TestClient]:
    toy = Toy(calibration=CALIBRATION, rejection=OWN)
    with running_service(toy) as service:
        yield TestClient(create_app(service))


def test_strange_images(knowing: TestClient) -> None:
    for share in ("0.1", "10%25", " 0.1"):
        path = f"/predict?top=1&skip_bad=true&turn_away={share}"
        red, blue, bad = answers(knowing, path, RED, BLUE, BAD)
        assert [*red] == ["image", "classes", "familiar", "decision"]
        assert (red["familiar"], red["decision"]) == (True, "answer")
        assert (blue["familiar"], blue["decision"]) == (False, "none of these")
        assert blue["classes"][0]["class"] == "blue"
        assert [*bad] == ["image", "error"]
    path = "/models/toy/predict?error=0.1&turn_away=0.1"
    red, mixed, blue = answers(knowing, path, RED, MIXED, BLUE)
    assert [*blue] == ["image", "classes", "set", "familiar", "decision"]
    assert [one["decision"] for one in (red, mixed, blue)] == ["answer", "unsure", "none of these"]
    assert blue["set"] == ["blue"]
    (row,) = answers(knowing, "/predict?turn_away=0", BLUE)
    assert [*row] == ["image", "classes"]
    text = knowing.get("/metrics").text
    assert 'rmadapter_decisions_total{decision="none of these",model="toy"} 4.0' in text
    assert 'rmadapter_decisions_total{decision="answer",model="toy"} 4.0' in text
    facts = knowing.get("/info").json()["models"]["toy"]
    assert facts["familiarity"] == {"images": 48, "source": "held out", "grouped": False}


def test_an_image_of_an_added_class_is_not_strange() -> None:
    with running_service(Toy(rejection=OWN, known=2)) as service:  # blue was added
        (row,) = answers(TestClient(create_app(service)), "/predict?turn_away=0.1", BLUE)
    assert row["familiar"] is True


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0.01", "to turn away 1 % needs 230 images"),
        ("x", "'x' is no share such as 5%"),
        ("100%", "'100%' is no share"),
        ("5e-324", "needs"),
        ("9" * 5000, "no share"),
    ],
)
def test_impossible_shares_are_refused(knowing: TestClient, share: str, message: str) -> None:
    answer = knowing.post(f"/predict?turn_away={share}", files=form(RED))
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000
    assert knowing.app.state.service.counters.total("rmadapter_images") == 0  # type: ignore[attr-defined]


def test_no_strange_images_without_a_familiarity(client: TestClient) -> None:
    answer = client.post("/predict?turn_away=0.1", files=form(RED))
    assert answer.status_code == 422
    assert "--folds 4" in answer.json()["error"]
    assert client.get("/info").json()["models"]["toy"]["familiarity"] is None
    assert '<select name="turn_away">' not in client.get("/").text


def test_page_offers_possible_shares(knowing: TestClient) -> None:
    page = knowing.get("/").text
    for share, offered in ((0.01, False), (0.05, True), (0.1, True)):
        assert (f'<option value="{share}"' in page) == offered
    asked = {"turn_away": "0.1"}
    page = knowing.post("/?model=toy", files=form(BLUE, RED), data=asked).text
    assert "<strong>none of these</strong></p>" in page
    assert "<strong>answer</strong></p>" in page
    answer = knowing.post("/?model=toy", files=form(RED), data={"turn_away": "0.01"})
    assert answer.status_code == 422


# The status page


def test_page_shows_models_and_answers(client: TestClient) -> None:
    page = client.get("/").text
    for part in ("Toy on none", "90.0", "(80 to 95)", "3 classes", "red, green, blue"):
        assert part in page
    assert 'action="?model=toy"' in page
    files = form(("<b>.png", colour_image(255, 0, 0)), ("x", b"x"))
    page = client.post("/?model=toy", files=files).text
    assert "&lt;b&gt;.png" in page
    assert "100.0&nbsp;%" in page
    assert "x: not an image" in page
    assert "<b>1</b> image classified" in page


def test_page_shows_errors(client: TestClient) -> None:
    answer = client.post("/?model=other", files=form(("a.png", b"")))
    assert answer.status_code == 404
    assert "unknown model &#39;other&#39;" in answer.text


def test_page_has_no_script_and_a_strict_policy() -> None:
    with running_service(Toy(labels=("<script>", "b", "c"))) as service:
        service.models["toy"].facts["classes"] = ["<script>alert(1)</script>"]
        answer = TestClient(create_app(service)).get("/")
        assert "<script" not in answer.text
        assert not re.search(r"(src|href)=.(https?:)?//", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_page_of_a_model_with_few_facts(toy: Toy, client: TestClient) -> None:
    toy.served.facts.update(method=None, backbone=None, accuracy=None, features=False)
    assert "without features" in client.get("/").text
