"""Paths and their answers, all JSON except the status page, /docs and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from rmadapter.deploy.serve.middleware import GONE, Door
from rmadapter.deploy.serve.request_body import BODY, images_of
from rmadapter.deploy.serve.service import LATER, Answered, Service
from rmadapter.deploy.serve.status import status_page
from rmadapter.errors import UserError

Top = Annotated[int, Query(ge=1, description="Answers per image.")]
SkipBad = Annotated[
    bool, Query(description="Answer the other images; bad ones get an error instead of an answer.")
]
router = APIRouter()


@router.post("/models/{model}/predict", openapi_extra=BODY)
@router.post("/predict", openapi_extra=BODY)
async def predict(
    request: Request, model: str = "", top: Top = 5, skip_bad: SkipBad = False
) -> JSONResponse:
    """The most probable classes of images."""
    name, names, found = await _answered(request, model, skip_bad=skip_bad)
    answers = [
        {"image": image, "error": str(row)}
        if isinstance(row, UserError)
        else {"image": image, "classes": _shares(found.served.best(row.probabilities, top))}
        for image, row in zip(names, found.rows, strict=True)
    ]
    return JSONResponse({"model": name, "answers": answers})


@router.post("/models/{model}/embed", openapi_extra=BODY)
@router.post("/embed", openapi_extra=BODY)
async def embed(request: Request, model: str = "", skip_bad: SkipBad = False) -> JSONResponse:
    """Features of unit length, similar for similar images."""
    name, names, found = await _answered(request, model, skip_bad=skip_bad, features=True)
    answers: list[dict[str, Any]] = []
    for image, row in zip(names, found.rows, strict=True):
        if isinstance(row, UserError) or row.features is None:
            answers.append({"image": image, "error": str(row)})
        else:
            answers.append(
                {"image": image, "features": row.features.astype(float).round(7).tolist()}
            )
    return JSONResponse({"model": name, "answers": answers})


@router.get("/health")
async def health() -> dict[str, bool]:
    """The process is alive. Needs no key."""
    return {"alive": True}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """The models are loaded and requests are accepted. Needs no key."""
    going = not _service(request).stopping
    return JSONResponse({"ready": going}, 200 if going else 503)


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """Names of the models."""
    return {"models": list(_service(request).models)}


@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """Method, backbone, classes, engine, versions and, if known, accuracy of each model."""
    return {"models": {name: served.facts for name, served in _service(request).models.items()}}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Requests, images, batches, queue and seconds, for Prometheus."""
    return Response(_service(request).counters.text(), media_type="text/plain; version=0.0.4")


@router.get("/docs", include_in_schema=False)
async def documentation() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="openapi.json", title="rmadapter"
    )  # relative: a proxy may add a prefix


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    return status_page(_service(request))


@router.post("/", include_in_schema=False)
async def page_with_answers(request: Request, model: str = "") -> HTMLResponse:
    try:
        name, names, found = await _answered(request, model, skip_bad=True)
    except HTTPException as error:
        return status_page(_service(request), fault=str(error.detail), status=error.status_code)
    answers = [
        (image, str(row), [])
        if isinstance(row, UserError)
        else (image, "", found.served.best(row.probabilities, 5))
        for image, row in zip(names, found.rows, strict=True)
    ]
    return status_page(_service(request), asked=name, answers=answers)


async def _answered(
    request: Request, model: str, *, skip_bad: bool, features: bool = False
) -> tuple[str, list[str], Answered]:
    """Name of the model, names of the images, and the answers. Raises HTTPException."""
    service = _service(request)
    name, seconds = model or service.only(), service.limits.seconds
    try:
        with anyio.fail_after(seconds):
            given = await images_of(request, service.limits)
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {seconds:g} s", {"Connection": "close"}
        ) from None
    try:
        with anyio.fail_after(seconds):
            found = await service.answer(name, given, features, skip_bad)
    except TimeoutError:
        raise HTTPException(503, f"no answer within {seconds:g} s: try again", LATER) from None
    return name, [one.name for one in given], found


def _shares(best: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": label, "probability": share} for label, share in best]


def _service(request: Request) -> Service:
    return request.app.state.service


# ---- the application ----


def create_app(
    service: Service,
    key: str = "",
    cors: Sequence[str] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """key: that requests must have. cors: origins of web pages that may ask. lifespan: what runs
    beside the app."""
    about = "Image classifiers that rmadapter fitted."
    version, here = metadata.version("rmadapter"), [{"url": "./"}]
    app = FastAPI(
        title="rmadapter", description=about, version=version, servers=here, docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(Door, limits=service.limits, counters=service.counters, key=key)
    if cors:  # outside the door: a browser first asks without the key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "Authorization", "Content-Type"],
        )  # fmt: skip
    return app


async def _refused(_: Request, error: Any) -> JSONResponse:
    content = error.detail if isinstance(error.detail, dict) else {"error": error.detail}
    return JSONResponse(content, error.status_code, error.headers)


async def _left(_: Request, error: Any) -> Response:
    """The client left in the middle of the body: nobody reads this."""
    return Response(status_code=GONE)


async def _invalid(_: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)
