"""The status page: what is served, and a form to try it. It needs no script and nothing from
elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from fastapi.responses import HTMLResponse

from rmadapter.deploy.serve.service import Service
from rmadapter.support.html import template

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"


def status_page(
    service: Service,
    *,
    asked: str = "",
    answers: Sequence[tuple[str, str, Sequence[tuple[str, float]]]] = (),
    fault: str = "",
    status: int = 200,
) -> HTMLResponse:
    """asked: the model that answered. answers: each image's name, what is wrong with it, and its
    best classes. fault: why there are no answers."""
    counters = service.counters
    html = template("serve.html.j2").render(
        models={name: served.facts for name, served in service.models.items()},
        requests=counters.total("rmadapter_requests"),
        images=counters.total("rmadapter_images", outcome="answered"),
        asked=asked,
        answers=answers,
        fault=fault,
        version=metadata.version("rmadapter"),
    )
    return HTMLResponse(
        html, status, {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    )
