"""The status page: what is served, what was answered, and nothing that a name could break."""

from __future__ import annotations

import re

from rmadapter.deploy.serve.routes import create_app
from tests.helpers.answering import TestClient, Toy, coloured, serviced


def test_models_and_a_form_that_answers() -> None:
    with serviced(Toy()) as service:
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
            files=[("files", ("<b>.png", coloured(255, 0, 0))), ("files", ("x", b"x"))],
        ).text
        assert "&lt;b&gt;.png" in page
        assert "100.0&nbsp;%" in page
        assert "x: not an image in a supported format" in page
        assert "<b>1</b> image classified" in page


def test_a_fault_is_told_with_its_status() -> None:
    with serviced(Toy()) as service:
        client = TestClient(create_app(service))
        answer = client.post("/?model=other", files=[("files", ("a.png", b""))])
        assert answer.status_code == 404
        assert "unknown model &#39;other&#39;" in answer.text


def test_no_script_nothing_from_elsewhere_and_a_policy_that_says_so() -> None:
    with serviced(Toy(labels=("<script>", "b", "c"))) as service:
        service.models["toy"].facts["classes"] = ["<script>alert(1)</script>"]
        answer = TestClient(create_app(service)).get("/")
        assert "<script" not in answer.text
        assert not re.search(r"(src|href)=.(https?:)?//", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_model_of_which_little_is_known() -> None:
    with serviced(Toy()) as service:
        service.models["toy"].facts.update(
            method=None, backbone=None, accuracy=None, features=False
        )
        page = TestClient(create_app(service)).get("/").text
        assert "Its accuracy is not recorded." in page
        assert "without features" in page
