"""Images of a request: files of a form, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import json
from email.message import Message
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rmadapter.deploy.serve.limits import Limits
from rmadapter.deploy.serve.service import Given

FIELD = "files"
NAME = 200  # characters kept of a file's name
HOW = f'send files as multipart/form-data under "{FIELD}", or {{"images": ["base64", ...]}} as application/json'
# As OpenAPI describes it
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "byte"}}
                    },
                }
            },
        },
    }
}


async def images_of(request: Request, limits: Limits) -> list[Given]:
    """Raises HTTPException: 415 for another kind of body, 400 for a damaged or empty one, or for
    too many images."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = await _files(request, limits.images)
    elif kind == "application/json":
        found = _base64(await request.body())
    else:
        raise HTTPException(415, HOW)
    if not found:
        raise HTTPException(400, f"no images received; {HOW}")
    if len(found) > limits.images:
        raise HTTPException(
            400, f"{len(found)} images, but a request may have only {limits.images}: send several"
        )
    return found


async def _files(request: Request, most: int) -> list[Given]:
    told = Message()
    told["content-type"] = request.headers["content-type"]
    try:
        end = f"--{told.get_boundary('')}--".encode("latin-1", "replace")
    except (
        ValueError,
        TypeError,
        LookupError,
    ):  # of a parameter in several parts, or in no character set
        raise HTTPException(400, f"not a form (its boundary); {HOW}") from None
    if end not in await request.body():  # Starlette drops an incomplete part without a word
        raise HTTPException(400, f"not a whole form; {HOW}")
    try:
        async with request.form(max_files=most + 1, max_fields=most + 1) as form:
            files = [one for one in form.getlist(FIELD) if isinstance(one, UploadFile)]
            # if no file was chosen, a browser sends an empty one without a name
            named = [(place, one) for place, one in enumerate(files) if one.filename or one.size]
            return [
                Given(_plain(one.filename) or f"{FIELD}[{place}]", await one.read())
                for place, one in named
            ]
    except ValueError as error:  # raised by Starlette 0.49 for a damaged form
        raise HTTPException(400, f"not a form ({str(error)[:100]}); {HOW}") from None


def _plain(name: str | None) -> str:
    """A name that UTF-8 can hold: a request chooses its own charset, which may yield lone
    surrogates."""
    return (name or "")[:NAME].encode("utf-8", "replace").decode()


def _base64(body: bytes) -> list[Given]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON ({type(error).__name__}); {HOW}") from None
    images = found.get("images") if isinstance(found, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise HTTPException(400, HOW)
    return [Given(f"images[{place}]", _decoded(image, place)) for place, image in enumerate(images)]


def _decoded(text: str, place: int) -> bytes:
    """Decode base64, also in a data: URL, as web pages have it."""
    try:
        return base64.b64decode(
            text.rpartition(",")[2] if text.startswith("data:") else text, validate=True
        )
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"images[{place}]: not base64") from None
