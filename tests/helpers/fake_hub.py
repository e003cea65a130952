"""Serve the few routes of the Hugging Face hub that pushing and loading a run use, from memory.

The responses follow the hub's documented API as huggingface_hub calls it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

from tests.helpers.http_server import Server

TOKENS = {"hf_anna": "anna", "hf_bert": "bert"}


class Repository:
    def __init__(self, private: bool = False, **files: bytes) -> None:
        self.private, self.log = private, list[tuple[str, dict[str, bytes], str]]()
        self.commit({".gitattributes": b"", **files}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.log)}{message}{sorted(files)}".encode()).hexdigest()
        self.log.append((sha, files, message))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.log[-1][:2]
        return next((entry[:2] for entry in self.log if entry[0] == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.log[-1][1]


class Hub:
    """repositories: by OWNER/NAME. storage: address of large files, on another host than the hub.
    asked: every request, as "POST /api/repos/create"."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = self.storage = ""

    def answer(self, request: str, user: str, body: bytes) -> Answer:
        self.asked.append(request)
        for pattern, route in ROUTES.items():
            if match := re.fullmatch(pattern, request):
                return route(self, user, body, *map(unquote, match.groups()))
        return 404, {"error": "no such route"}, {}

    def seen(self, name: str, user: str) -> Repository | None:
        found = self.repositories.get(name)
        return found if found and (not found.private or name.startswith(f"{user}/")) else None


Answer = tuple[int, Any, dict[str, str]]
NO_REPOSITORY: Answer = (401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
NO_REVISION: Answer = (404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})


def create(hub: Hub, user: str, body: bytes) -> Answer:
    asked = json.loads(body)
    name = f"{asked.get('organization') or user}/{asked['name']}"
    if not user:
        return 401, {"error": "Invalid credentials"}, {}
    if not name.startswith(f"{user}/"):
        return 403, {"error": "You don't have the rights to create a model here"}, {}
    if name in hub.repositories:
        facts = {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
        return 409, facts, {}
    private = asked.get("private", False) or asked.get("visibility") == "private"
    hub.repositories[name] = Repository(private)
    return 200, {"url": f"{hub.url}/{name}", "name": name, "id": "1"}, {}


def info(hub: Hub, user: str, body: bytes, name: str, revision: str | None = None) -> Answer:
    repository = hub.seen(name, user)
    if repository is None:
        return NO_REPOSITORY
    found = repository.at(revision or "main")
    if found is None:
        return NO_REVISION
    card = found[1].get("README.md", b"").decode().split("---")
    data = yaml.safe_load(card[1]) if len(card) > 2 else {}
    facts = {"id": name, "modelId": name, "sha": found[0], "private": repository.private}
    facts |= {"tags": [], "siblings": [{"rfilename": file} for file in found[1]]}
    return 200, {**facts, "library_name": data.get("library_name")}, {}


def validate(hub: Hub, user: str, body: bytes) -> Answer:
    known = "license: nonsense" not in json.loads(body)["content"]
    errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
    return 200 if known else 400, {"errors": errors, "warnings": []}, {}


def preupload(hub: Hub, user: str, body: bytes, name: str, revision: str) -> Answer:
    paths = [file["path"] for file in json.loads(body)["files"]]
    modes = [{"path": p, "uploadMode": _mode(p), "shouldIgnore": False} for p in paths]
    return 200, {"files": modes}, {}


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def batch(hub: Hub, user: str, body: bytes, name: str) -> Answer:
    objects = json.loads(body)["objects"]
    for each in objects:
        each["actions"] = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
    return 200, {"transfer": "basic", "objects": objects}, {}


def store(hub: Hub, user: str, body: bytes, oid: str) -> Answer:
    assert hashlib.sha256(body).hexdigest() == oid
    hub.blobs[oid] = body
    return 200, b"", {}


def commit(hub: Hub, user: str, body: bytes, name: str, revision: str) -> Answer:
    if not name.startswith(f"{user}/"):
        return 403, {"error": "Forbidden"}, {}
    repository, message = hub.repositories[name], ""
    files = dict(repository.files)
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
            if value.get("parentCommit") not in (None, repository.log[-1][0]):
                return 412, {"error": "A commit has happened since"}, {}
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
        else:
            assert line["key"] == "deletedFile"
            del files[value["path"]]
    sha = repository.commit(files, message)
    return 200, {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha}, {}


def tree(hub: Hub, user: str, body: bytes, name: str, revision: str) -> Answer:
    repository = hub.seen(name, user)
    found = repository.at(revision) if repository else None
    if found is None:
        return NO_REVISION
    rows = [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in found[1].items()
    ]
    return 200, rows, {}


def resolve(hub: Hub, user: str, body: bytes, name: str, revision: str, path: str) -> Answer:
    repository = hub.seen(name, user)
    found = repository.at(revision) if repository else None
    if found is None or path not in found[1]:
        return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
    data = found[1][path]
    headers = {"X-Repo-Commit": found[0], "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
    if _mode(path) == "regular":
        return 200, data, headers
    oid = hashlib.sha256(data).hexdigest()
    hub.blobs[oid] = data
    headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
    return 302, b"", {**headers, "Location": f"{hub.storage}/lfs/{oid}"}


def blob(hub: Hub, user: str, body: bytes, oid: str) -> Answer:
    return 200, hub.blobs[oid], {"ETag": f'"{oid}"'}


REPOSITORY = r"([\w.-]+/[\w.-]+)"
ROUTES: dict[str, Callable[..., Answer]] = {
    r"POST /api/repos/create": create,
    r"POST /api/validate-yaml": validate,
    rf"GET /api/models/{REPOSITORY}": info,
    rf"GET /api/models/{REPOSITORY}/revision/([^/]+)": info,
    rf"GET /api/models/{REPOSITORY}/tree/([^/]+)": tree,
    rf"POST /api/models/{REPOSITORY}/preupload/([^/]+)": preupload,
    rf"POST /api/models/{REPOSITORY}/commit/([^/]+)": commit,
    rf"POST /{REPOSITORY}\.git/info/lfs/objects/batch": batch,
    r"PUT /lfs/(\w+)": store,
    r"(?:HEAD|GET) /lfs/(\w+)": blob,
    rf"(?:HEAD|GET) /{REPOSITORY}/resolve/([^/]+)/(.+)": resolve,
}


@contextmanager
def serving(hub: Hub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            user = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "), "")
            request = f"{self.command} {urlsplit(self.path).path}"
            code, found, headers = hub.answer(request, user, self._body())
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = handle_one

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def point_to(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str = "hf_anna"
) -> None:
    """Use a hub as HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_DISABLE_XET and HF_TOKEN would, which are read
    when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "none"))
    monkeypatch.setenv("HF_TOKEN", token)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, where anna is logged in, and an empty cache."""
    empty = Hub()
    with serving(empty):
        point_to(empty.url, tmp_path_factory.mktemp("cache"), monkeypatch)
        yield empty
