"""What a client gets, path by path."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import numpy as np
import pytest

from rmadapter.deploy.serve.routes import create_app
from tests.helpers.serving import FACTS, TestClient, Toy, colour_image, running_service, wait_for

RED, GREEN = (
    ("red.png", colour_image(250, 50, 0)),
    ("green.jpg", colour_image(0, 250, 0, (30, 8), "JPEG")),
)


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def client(toy: Toy) -> Iterator[TestClient]:
    with running_service(toy, images=3) as service:
        yield TestClient(create_app(service))


def test_predict(client: TestClient) -> None:
    answer = client.post("/predict?top=2", files=form(RED, GREEN))
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    found = answer.json()
    assert found["model"] == "toy"
    assert [row["image"] for row in found["answers"]] == ["red.png", "green.jpg"]
    best = [{"class": "red", "probability": 0.833333}, {"class": "green", "probability": 0.166667}]
    assert found["answers"][0]["classes"] == best
    assert found["answers"][1]["classes"][0]["class"] == "green"
    assert (
        client.post("/models/toy/predict?top=9", files=form(RED)).json()["answers"][0]["classes"][
            :2
        ]
        == best
    )
    as_json = client.post(
        "/predict?model=toy", json={"images": [base64.b64encode(RED[1]).decode()]}
    ).json()
    assert as_json["answers"][0]["image"] == "images[0]"
    assert as_json["answers"][0]["classes"][:2] == best


def test_embed(client: TestClient) -> None:
    (row,) = client.post("/embed", files=form(RED)).json()["answers"]
    assert np.linalg.norm(row["features"]) == pytest.approx(1, abs=1e-6)
    assert row["features"] == pytest.approx([250 / 254.95, 50 / 254.95, 0], abs=1e-4)
    assert client.post("/models/toy/embed", files=form(RED)).json()["answers"] == [row]
    bad = client.post("/embed?skip_bad=true", files=form(("x.png", b"x"), RED)).json()["answers"]
    assert bad[0]["error"].startswith("x.png: ")
    assert bad[1] == row


def test_bad_images_are_named_or_skipped(client: TestClient) -> None:
    answer = client.post("/predict", files=form(RED, ("x.png", b"x")))
    assert answer.status_code == 422
    assert [one["image"] for one in answer.json()["images"]] == ["x.png"]
    found = client.post("/predict?skip_bad=true", files=form(RED, ("x.png", b"x"))).json()[
        "answers"
    ]
    assert found[0]["classes"][0]["class"] == "red"
    assert found[1]["error"].startswith("x.png: ")


def test_errors_are_one_line(client: TestClient) -> None:
    for path, status, told in (
        ("/predict?top=0", 422, "query.top: "),
        ("/predict?skip_bad=perhaps", 422, "query.skip_bad: "),
        ("/models/tox/predict", 404, "unknown model 'tox'; did you mean 'toy'?"),
        ("/nowhere", 404, "Not Found"),
        ("/health", 405, "Method Not Allowed"),
    ):
        answer = client.post(path, files=form(RED))
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert answer.json()["error"].startswith(told)
    assert client.post("/predict", files=form(*[RED] * 4)).status_code == 400
    assert (
        client.post(
            "/predict", content=b"x", headers={"Content-Type": "application/json"}
        ).status_code
        == 400
    )


def test_slow_model_answers_503(toy: Toy) -> None:
    with running_service(toy, seconds=0.5) as service:
        client = TestClient(create_app(service))
        toy.gate.clear()
        answer = client.post("/predict", files=form(RED))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (
            service.counters.registry.get_sample_value("rmadapter_queue_images", {"model": "toy"})
            == 0
        )
        toy.gate.set()
        wait_for(
            lambda: client.post("/predict", files=form(RED)).status_code == 200,
            "it does not answer any more",
        )


def test_health_and_facts(client: TestClient) -> None:
    assert client.get("/health").json() == {"alive": True}
    assert client.get("/ready").json() == {"ready": True}
    assert client.get("/models").json() == {"models": ["toy"]}
    assert client.get("/info").json() == {"models": {"toy": FACTS}}
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
    body = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert {one["name"] for one in paths["/predict"]["post"]["parameters"]} == {
        "model",
        "top",
        "skip_bad",
    }


def test_documentation_works_behind_a_proxy(client: TestClient) -> None:
    page = client.get("/docs").text
    (place,) = re.findall(r"url: ['\"](.*?)['\"]", page)
    assert urljoin("https://x.org/birds/docs", place) == "https://x.org/birds/openapi.json"
    (server,) = client.get("/openapi.json").json()["servers"]
    assert urljoin("https://x.org/birds/openapi.json", server["url"]) == "https://x.org/birds/"


def test_only_listed_origins_are_allowed(toy: Toy) -> None:
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with running_service(toy) as service:
        for cors, allowed in (
            ((), None),
            (("https://a.example",), "https://a.example"),
            (("https://b.example",), None),
        ):
            client = TestClient(create_app(service, "key", cors))
            assert (
                client.options("/predict", headers=asks).headers.get("access-control-allow-origin")
                == allowed
            )
            answer = client.post(
                "/predict", files=form(RED), headers={"Origin": asks["Origin"], "X-API-Key": "key"}
            )
            assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (
                200,
                allowed,
            )
            assert client.post("/predict", files=form(RED)).status_code == 401


# The status page


def test_page_shows_models_and_answers() -> None:
    with running_service(Toy()) as service:
        client = TestClient(create_app(service))
        page = client.get("/").text
        for part in (
            "Toy on none",
            "90.0",
            "(80 to 95)",
            "3 classes",
            "red, green, blue",
            'action="?model=toy"',
        ):
            assert part in page
        page = client.post(
            "/?model=toy",
            files=[("files", ("<b>.png", colour_image(255, 0, 0))), ("files", ("x", b"x"))],
        ).text
        assert "&lt;b&gt;.png" in page
        assert "100.0&nbsp;%" in page
        assert "x: not an image" in page
        assert "<b>1</b> image classified" in page


def test_page_shows_errors() -> None:
    with running_service(Toy()) as service:
        client = TestClient(create_app(service))
        answer = client.post("/?model=other", files=[("files", ("a.png", b""))])
        assert answer.status_code == 404
        assert "unknown model &#39;other&#39;" in answer.text


def test_page_has_no_script_and_a_strict_policy() -> None:
    with running_service(Toy(labels=("<script>", "b", "c"))) as service:
        service.models["toy"].facts["classes"] = ["<script>alert(1)</script>"]
        answer = TestClient(create_app(service)).get("/")
        assert "<script" not in answer.text
        assert not re.search(r"(src|href)=.(https?:)?//", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_page_of_a_model_with_few_facts() -> None:
    with running_service(Toy()) as service:
        service.models["toy"].facts.update(
            method=None, backbone=None, accuracy=None, features=False
        )
        page = TestClient(create_app(service)).get("/").text
        assert "without features" in page
