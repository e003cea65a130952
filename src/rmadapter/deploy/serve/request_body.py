"""Read the images of a request: files of a form, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import json
from email.message import Message

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rmadapter.deploy.serve.options import Limits
from rmadapter.deploy.serve.service import Upload

FIELD = "files"
NAME = 200  # characters kept of a file's name
HOW = (
    f'send files as multipart/form-data under "{FIELD}", or {{"images": ["base64", ...]}} as '
    "application/json"
)


def _array(name: str, text_format: str) -> dict[str, object]:
    items = {"type": "string", "format": text_format}
    properties = {name: {"type": "array", "items": items}}
    return {"schema": {"type": "object", "required": [name], "properties": properties}}


# the body as OpenAPI describes it
BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _array(FIELD, "binary"),
            "application/json": _array("images", "byte"),
        },
    }
}


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the images of a request.

    Raises HTTPException: 415 for another kind of body, 400 for a damaged or empty one, or for too
    many images.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = await _from_form(request, limits.images)
    elif kind == "application/json":
        uploads = _from_json(await request.body())
    else:
        raise HTTPException(415, HOW)
    if not uploads:
        raise HTTPException(400, f"no images received; {HOW}")
    if len(uploads) > limits.images:
        raise HTTPException(
            400, f"{len(uploads)} images, but a request may have only {limits.images}: send several"
        )
    return uploads


async def _from_form(request: Request, most: int) -> list[Upload]:
    header = Message()
    header["content-type"] = request.headers["content-type"]
    try:
        end = f"--{header.get_boundary('')}--".encode("latin-1", "replace")
    except (ValueError, TypeError, LookupError):  # a parameter in parts, or in no character set
        raise HTTPException(400, f"not a form (its boundary); {HOW}") from None
    if end not in await request.body():  # Starlette drops an incomplete part without a word
        raise HTTPException(400, f"not a whole form; {HOW}")
    try:
        async with request.form(max_files=most + 1, max_fields=most + 1) as form:
            files = [one for one in form.getlist(FIELD) if isinstance(one, UploadFile)]
            uploads = []
            for place, file in enumerate(files):
                # if no file was chosen, a browser sends an empty one without a name
                if file.filename or file.size:
                    name = _utf8(file.filename) or f"{FIELD}[{place}]"
                    uploads.append(Upload(name, await file.read()))
            return uploads
    except ValueError as error:  # raised by Starlette 0.49 for a damaged form
        raise HTTPException(400, f"not a form ({str(error)[:100]}); {HOW}") from None


def _utf8(name: str | None) -> str:
    """Return a name that UTF-8 can hold: a request chooses its own charset, which may yield lone
    surrogates."""
    return (name or "")[:NAME].encode("utf-8", "replace").decode()


def _from_json(body: bytes) -> list[Upload]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON ({type(error).__name__}); {HOW}") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise HTTPException(400, HOW)
    return [Upload(f"images[{i}]", _decoded(image, i)) for i, image in enumerate(images)]


def _decoded(text: str, place: int) -> bytes:
    """Decode base64, also in a data: URL, as web pages have it."""
    if text.startswith("data:"):
        text = text.rpartition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"images[{place}]: not base64") from None
