"""Paths and their answers, all JSON except the status page, /docs and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from typing import Annotated, NamedTuple, cast

import anyio
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from rmadapter import UserError
from rmadapter.answers import Answer, Decider, parse_share
from rmadapter.artifacts import template
from rmadapter.export import Outputs
from rmadapter.runs import caveat
from rmadapter_serve.model import ModelFacts, ServedModel
from rmadapter_serve.requests import BODY, CLIENT_LEFT, AccessMiddleware, Body, read_body
from rmadapter_serve.service import ServedAnswers, Service
from rmadapter_serve.waiting import too_busy

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-ancestors 'none'"
)
Top = Annotated[int, Query(ge=1, description="Answers per image.")]
SkipBad = Annotated[
    bool, Query(description="Answer the other images; bad ones get an error instead of an answer.")
]
Error = Annotated[
    str,
    Query(
        description="Also list the classes that may be right, and miss the right one on at most "
        "this share of images, such as 0.05 or 5%.",
    ),
]
TurnAway = Annotated[
    str,
    Query(
        description="Call images unlike those of the classes none of these, and at most this share "
        "of images of the classes, such as 0.05 or 5%.",
    ),
]
router = APIRouter()


@router.post("/models/{model}/predict", openapi_extra=BODY)
@router.post("/predict", openapi_extra=BODY)
async def predict(
    request: Request,
    model: str = "",
    top: Top = 5,
    skip_bad: SkipBad = False,
    error: Error = "",
    turn_away: TurnAway = "",
) -> JSONResponse:
    """The most probable classes of images."""
    result = await _answer(request, model, skip_bad, error=error, turn_away=turn_away)
    decider = _decider(result.served, error, turn_away)
    answers: list[dict[str, object]] = []
    for image, row in zip(result.images, result.rows, strict=True):
        if isinstance(row, UserError):
            answers.append({"image": image, "error": str(row)})
        else:
            answer = _decide(request, result.name, decider, row, top)
            answers.append({"image": image, **answer.json()})
    return JSONResponse({"model": result.name, "answers": answers})


@router.post("/models/{model}/embed", openapi_extra=BODY)
@router.post("/embed", openapi_extra=BODY)
async def embed(request: Request, model: str = "", skip_bad: SkipBad = False) -> JSONResponse:
    """Features of unit length, similar for similar images."""
    result = await _answer(request, model, skip_bad, features=True)
    answers: list[dict[str, object]] = []
    for image, row in zip(result.images, result.rows, strict=True):
        if isinstance(row, UserError) or row.features is None:
            answers.append({"image": image, "error": str(row)})
        else:
            features = row.features[0].astype(float).round(7).tolist()
            answers.append({"image": image, "features": features})
    return JSONResponse({"model": result.name, "answers": answers})


@router.get("/health")
async def health() -> dict[str, bool]:
    """The process is alive. Needs no key."""
    return {"alive": True}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """The models are loaded and requests are accepted. Needs no key."""
    is_ready = not _service(request).stopping
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/models")
async def models(request: Request) -> dict[str, object]:
    """Names of the models."""
    return {"models": list(_service(request).models)}


@router.get("/info")
async def info(request: Request) -> dict[str, object]:
    """Method, backbone, classes, engine, versions and, if known, accuracy of each model; the limits
    of requests, and what waits now."""
    service = _service(request)
    return {"models": _facts(request), "limits": service.stated(), "queues": service.queues()}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Requests, images, batches, queue and seconds, for Prometheus."""
    return Response(_service(request).counters.text(), media_type="text/plain; version=0.0.4")


@router.get("/docs", include_in_schema=False)
async def documentation() -> HTMLResponse:
    # a relative address: a proxy may add a prefix
    return get_swagger_ui_html(openapi_url="openapi.json", title="rmadapter")


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def _facts(request: Request) -> dict[str, ModelFacts]:
    return {name: model.facts for name, model in _service(request).models.items()}


def _decider(served: ServedModel, error: str, turn_away: str) -> Decider:
    """Return what decides at shares such as 5%. Raises HTTPException for those that cannot be
    promised."""
    try:
        return served.model.decider.at(
            parse_share(error or "0") or None, parse_share(turn_away or "0") or None
        )
    except UserError as reason:
        raise HTTPException(422, str(reason)) from None


def _decide(request: Request, name: str, decider: Decider, row: Outputs, top: int = 5) -> Answer:
    """Return the answer for one image, and count what a model of this name decides."""
    [answer] = decider.answer(row.probabilities, row.distances, top)
    if decision := answer.decision():
        _service(request).counters.decisions.labels(name, decision).inc()
    return answer


async def _answer(
    request: Request,
    model: str,
    skip_bad: bool,
    *,
    features: bool = False,
    error: str = "",
    turn_away: str = "",
    body: Body | None = None,
) -> ServedAnswers:
    """Answer the images of a request. Raises HTTPException, also for an error or a share to turn
    away that cannot be promised, before anything is read, unless the body was."""
    service = _service(request)
    name = model or service.only()
    distance = False
    if name in service.models:
        distance = _decider(service.models[name], error, turn_away).reject_rate is not None
    body = body or await _body(request)
    seconds = service.limits.seconds
    try:
        with anyio.fail_after(seconds):
            return await service.answer(name, body.uploads, features, skip_bad, distance)
    except TimeoutError:
        queue = service.queues()[name]
        raise too_busy(f"no answer within {seconds:g} s", queue, service.seconds()) from None


async def _body(request: Request) -> Body:
    """Read the body of a request. Raises HTTPException, also for one that takes too long."""
    limits = _service(request).limits
    try:
        with anyio.fail_after(limits.seconds):
            return await read_body(request, limits)
    except TimeoutError:
        reason = f"the body did not arrive within {limits.seconds:g} s"
        raise HTTPException(408, reason, {"Connection": "close"}) from None


# The status page, which needs no script and nothing from elsewhere


class _Card(NamedTuple):
    """An image on the page: its name, and what is wrong with it or the answer."""

    image: str
    error: str
    answer: Answer | None = None


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    return _page(request)


@router.post("/", include_in_schema=False)
async def page_with_answers(request: Request, model: str = "") -> HTMLResponse:
    try:
        body = await _body(request)
        error, turn_away = (body.fields.get(name, "") for name in ("error", "turn_away"))
        result = await _answer(
            request, model, skip_bad=True, error=error, turn_away=turn_away, body=body
        )
        decider = _decider(result.served, error, turn_away)
    except HTTPException as reason:
        return _page(request, error=str(_content(reason)["error"]), status=reason.status_code)
    cards = []
    for image, row in zip(result.images, result.rows, strict=True):
        if isinstance(row, UserError):
            cards.append(_Card(image, str(row)))
        else:
            cards.append(_Card(image, "", _decide(request, result.name, decider, row)))
    return _page(request, result.name, cards, {"error": error, "turn_away": turn_away})


def _page(
    request: Request,
    model: str = "",
    answers: Sequence[_Card] = (),
    chosen: Mapping[str, str] | None = None,
    error: str = "",
    status: int = 200,
) -> HTMLResponse:
    """Make the page.

    Args:
        request: The request.
        model: Name of the model that answered, if one did.
        answers: Its answers.
        chosen: The shares that it was asked for, by name.
        error: Why there are no answers.
        status: Status of the response.
    """
    service = _service(request)
    counters = service.counters
    html = template("serve.html.j2", package="rmadapter_serve").render(
        models=_facts(request),
        possible={name: served.model.decider.possible() for name, served in service.models.items()},
        requests=counters.total("rmadapter_requests"),
        images=counters.total("rmadapter_images", outcome="answered"),
        model=model,
        answers=answers,
        chosen=chosen or {},
        error=error,
        caveat=caveat,
        version=metadata.version("rmadapter"),
    )
    headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(html, status, headers)


# The application


def create_app(
    service: Service,
    key: str = "",
    cors: Sequence[str] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        service: Service that answers.
        key: Key that requests must have, "" for none.
        cors: Origins of web pages that may send requests.
        lifespan: What runs beside the application.
        hosts: As for `AccessMiddleware`.
    """
    app = FastAPI(
        title="rmadapter",
        description="Image classifiers that rmadapter fitted.",
        version=metadata.version("rmadapter"),
        servers=[{"url": "./"}],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(HTTPException, _error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_middleware(AccessMiddleware, service=service, key=key, hosts=hosts)
    if cors:  # outermost: a browser first asks without the key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors),
            allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "Authorization", "Content-Type"],
        )
    return app


async def _error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(_content(error), error.status_code, error.headers)


def _content(error: HTTPException) -> dict[str, object]:
    return error.detail if isinstance(error.detail, dict) else {"error": error.detail}


async def _client_left(_: Request, error: Exception) -> Response:
    """The client left in the middle of the body: nobody reads this."""
    return Response(status_code=CLIENT_LEFT)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)
