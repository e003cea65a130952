"""Serve an ML backend for Label Studio, which predicts before there are labels and learns from
them; docs/reference/container.md.

    pip install '.[serve]'
    export LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=...
    python examples/label_studio_backend.py

For projects with one <Image> and one <Choices>. Until a project has a run of its own, RUN predicts,
or without it the untouched backbone with the project's choices. "Start training" fits a new run to
all annotations so far. The scores put those tasks first of which the model is least sure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.error import URLError
from urllib.parse import parse_qs, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from xml.etree import ElementTree

import numpy as np
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from rmadapter import FewShotClassifier, UserError, load, load_backbone
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.data.names import prompt_names
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import atomic, read_json, write_json
from rmadapter.training.contract import Known

LARGEST = 100_000_000  # bytes of an image
ORDERS = ("margin", "entropy")  # ways to say how sure a model is of one image
LAST = 1.0  # the score of a task that comes after all others: Label Studio begins with the lowest
KEEP = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
DROP = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED", "TASKS_DELETED")


class NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirection, which could send the key to another host."""


class Studio(NamedTuple):
    """Read images of tasks. url, key: of Label Studio. files: folder of its /data/local-files/."""

    url: str = ""
    key: str = ""
    files: str = ""

    def read(self, place: str) -> bytes:
        """Return the bytes of a task's image. Raises UserError for one that lies elsewhere or
        cannot be read."""
        try:
            if urlsplit(place).path == "/data/local-files/" and self.files:
                root = Path(self.files).resolve()
                path = (root / parse_qs(urlsplit(place).query)["d"][0]).resolve()
                if path.is_relative_to(root):
                    return path.read_bytes()
            url = urljoin(f"{self.url}/", place)
            if self.url and urlsplit(url)[:2] == urlsplit(self.url)[:2]:
                return self._sent(Request(url, headers={"Authorization": self._authorization()}))
        except (OSError, URLError, KeyError, ValueError) as error:
            raise UserError(f"{place[:200]}: cannot be read ({type(error).__name__})") from error
        raise UserError(f"{place[:200]}: lies neither on LABEL_STUDIO_URL nor below LOCAL_FILES")

    def _authorization(self) -> str:
        """Return the header that shows the key. A personal access token, which is a JSON web token,
        is exchanged for one that is valid for minutes; a legacy token is sent itself."""
        if self.key.count(".") != 2:
            return f"Token {self.key}"
        url, body = f"{self.url.rstrip('/')}/api/token/refresh/", json.dumps({"refresh": self.key})
        answer = self._sent(Request(url, body.encode(), {"Content-Type": "application/json"}))
        return f"Bearer {json.loads(answer)['access']}"

    def _sent(self, request: Request) -> bytes:
        with build_opener(NoRedirects).open(request, timeout=20) as response:
            return bytes(response.read(LARGEST))


class Config(NamedTuple):
    """Hold a project's labelling configuration: names of its two tags, the key of a task's image,
    and the choices."""

    choices: str
    image: str
    key: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Config:
        """Parse the configuration. Raises UserError unless it has exactly one image and one set of
        choices."""
        try:
            root = ElementTree.fromstring(text[:1_000_000])
        except ElementTree.ParseError as error:
            raise UserError(f"the labelling configuration is no XML ({error})") from None
        images, choices = root.findall(".//Image"), root.findall(".//Choices")
        if len(images) != 1 or len(choices) != 1:
            raise UserError("the labelling configuration needs one <Image> and one <Choices>")
        labels = tuple(
            value for choice in choices[0].iter("Choice") if (value := choice.get("value"))
        )
        key = images[0].get("value", "").removeprefix("$")
        return cls(choices[0].get("name", ""), images[0].get("name", ""), key, labels)


class Project:
    """Keep a project in a folder: images, labels.json, and run-1, run-2, ... of which the last
    predicts."""

    def __init__(
        self, folder: Path, studio: Studio, run: str, method: str, order: str = ORDERS[0]
    ) -> None:
        self.folder, self.studio, self.method, self.order = folder, studio, method, order
        self.writing, self.training = threading.Lock(), threading.Lock()
        self.version, self.saved = "zero-shot", None
        runs = sorted(folder.glob("run-*/model.json"), key=lambda file: int(file.parent.name[4:]))
        latest = str(runs[-1].parent) if runs else run
        if latest:
            self.version, self.saved = Path(latest).name, load(latest)

    def image(self, place: str) -> Path:
        """Return the file of an image, which is fetched once."""
        suffix = Path(urlsplit(place).path).suffix.lower()[:8]
        path = self.folder / "images" / (hashlib.sha256(place.encode()).hexdigest() + suffix)
        if not path.is_file():
            data = self.studio.read(place)
            with atomic(path) as temporary:
                temporary.write_bytes(data)
        return path

    def model(self, config: Config) -> Saved:
        if self.saved:
            return self.saved
        names = tuple(prompt_names(config.labels).values())
        fitted = ZeroShot().restore(load_backbone("pocket"), Known(names), {})
        return Saved(fitted, config.labels, "zero-shot", names)

    def predict(self, tasks: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
        """Return the most probable choice of each task, with its probability, and a score that is
        the lower the more the task is worth a label; no choice where the image cannot be read."""
        version, saved = self.version, self.model(config)
        return [
            {"model_version": version, **self._predicted(task, config, saved)} for task in tasks
        ]

    def _predicted(self, task: dict[str, Any], config: Config, saved: Saved) -> dict[str, Any]:
        try:
            path = self.image(str(task["data"].get(config.key, "")))
            [row] = saved.fitted.probabilities([path], saved.names)
        except UserError as error:
            return {"score": LAST, "result": [], "error": str(error)}
        share, best = row[0].max(-1)
        label = str(saved.labels[int(best)])
        value = {"from_name": config.choices, "to_name": config.image, "type": "choices"}
        choice = {**value, "value": {"choices": [label]}, "score": float(share)}
        return {"score": sureness(row.numpy(), self.order), "result": [choice]}

    @property
    def labels(self) -> dict[str, list[str]]:
        """Map the number of an annotation to its image, its label and the number of its task."""
        file = self.folder / "labels.json"
        return read_json(file) if file.is_file() else {}

    def learn(self, event: str, data: Mapping[str, Any], config: Config) -> str:
        """Keep, change or drop an annotation, or start a training; return the outcome."""
        if event == "START_TRAINING":
            threading.Thread(
                target=self.train, name=f"training {self.folder.name}", daemon=True
            ).start()
            return "training"
        with self.writing:
            gone = {str(task["id"]) for task in data.get("tasks") or ()}
            labels = {
                number: kept
                for number, kept in self.labels.items()
                if not gone.intersection(kept[2:])
            }
            some, tasks = (_listed(data.get(name)) for name in ("annotation", "task"))
            for annotation in [*some, *(data.get("annotations") or ())]:
                labels.pop(str(annotation["id"]), None)
            for annotation, task in zip(some, tasks, strict=False) if event in KEEP else ():
                values = [one.get("value", {}) for one in annotation.get("result") or ()]
                chosen = [value["choices"] for value in values if "choices" in value]
                if not annotation.get("was_cancelled") and chosen and len(chosen[0]) == 1:
                    place = str(task["data"][config.key])
                    labels[str(annotation["id"])] = [place, chosen[0][0], str(task["id"])]
            write_json(self.folder / "labels.json", labels)
        return f"{len(labels)} annotations"

    def train(self) -> None:
        """Fit a new run, which predicts from then on, unless another training is running. Print why
        a run cannot be fitted."""
        if not self.training.acquire(blocking=False):
            return
        try:
            kept, saved = self.labels.values(), self.saved
            own = {"backbone": saved.fitted.backbone.name} if saved else {}
            model = FewShotClassifier(method=self.method, **own)
            model.fit([self.image(place) for place, *_ in kept], [label for _, label, *_ in kept])
            number = 1 + max((int(run.name[4:]) for run in self.folder.glob("run-*")), default=0)
            model.save(self.folder / f"run-{number}")
            self.saved, self.version = load(self.folder / f"run-{number}"), f"run-{number}"
        except UserError as error:
            print("not trained:", error)
        finally:
            self.training.release()


def sureness(table: np.ndarray, order: str) -> float:
    """Return how sure the model is of one image, 0 to 1: the lower, the more it is worth a label.

    It is the margin of the best class over the second (Scheffer et al., IDA 2001), or 1 minus the
    entropy as a share of the highest possible. table: probabilities [1, C]. order: one of ORDERS.
    """
    classes = table.shape[1]
    if classes < 2:
        return LAST
    if order == "entropy":
        entropy = -(table * np.log(np.maximum(table, 1e-12))).sum()
        sure = 1 - entropy / np.log(classes)
    else:
        second, best = np.sort(table[0])[-2:]
        sure = best - second
    return float(np.clip(sure, 0, LAST))


def _listed(value: Any) -> list[Any]:
    """Return the items of an event about one or about several."""
    if isinstance(value, list):
        return value
    return [value] if value else []


class Projects:
    """Open each project once. settings: run, method and order, as of `Project`."""

    def __init__(self, folder: Path, studio: Studio, *settings: str) -> None:
        self.folder, self.studio, self.settings = folder, studio, settings
        self.opening = threading.Lock()
        self.opened: dict[str, Project] = {}

    def open(self, number: object) -> Project:
        """Return the project "7", also by "7.1694809921" with the time of its creation."""
        match = re.fullmatch(r"(\d{1,18})(\.\d+)?", str(number))
        if match is None:
            raise UserError(f"project {str(number)[:50]!r}: its number is missing")
        with self.opening:
            if match[1] not in self.opened:
                project = Project(self.folder / match[1], self.studio, *self.settings)
                self.opened[match[1]] = project
            return self.opened[match[1]]


def make_app(
    folder: Path, studio: Studio, run: str = "", method: str = "linear-probe-pair",
    login: tuple[str, str] | None = None, order: str = ORDERS[0],
) -> FastAPI:  # fmt: skip
    """Return the routes that Label Studio calls. folder: of all projects. login: the name and
    password that it must send, if any. order: one of ORDERS. Raises UserError for another one."""
    if order not in ORDERS:
        raise UserError(f"ORDER {order[:50]!r}: one of {', '.join(ORDERS)}")
    app = FastAPI(title="rmadapter for Label Studio")
    projects = Projects(folder, studio, run, method, order)

    def check(
        sent: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))],
    ) -> None:
        words = (sent.username, sent.password) if sent else ("", "")
        if login and not all(
            secrets.compare_digest(a.encode(), b.encode())
            for a, b in zip(words, login, strict=True)
        ):
            raise HTTPException(401, "name and password, please", {"WWW-Authenticate": "Basic"})

    @app.exception_handler(UserError)
    def refused(_: Any, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/")
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "rmadapter"}

    @app.post("/setup", dependencies=[Depends(check)])
    def setup(data: dict[str, Any]) -> dict[str, str]:
        Config.of(str(data.get("schema") or ""))
        return {"model_version": projects.open(data.get("project")).version}

    @app.post("/predict", dependencies=[Depends(check)])
    def predict(data: dict[str, Any]) -> dict[str, Any]:
        config = Config.of(str(data.get("label_config") or ""))
        project = projects.open(data.get("project"))
        return {"results": project.predict(data.get("tasks") or [], config)}

    @app.post("/webhook", dependencies=[Depends(check)])
    def webhook(data: dict[str, Any]) -> JSONResponse:
        event = str(data.get("action"))
        if event not in (*KEEP, *DROP, "START_TRAINING"):
            return JSONResponse({"status": "Unknown event"})
        project = data.get("project") or {}
        config = Config.of(str(project.get("label_config") or ""))
        result = projects.open(project.get("id")).learn(event, data, config)
        return JSONResponse({"status": "ok", "result": result}, 201)

    return app


if __name__ == "__main__":
    import uvicorn

    env = os.environ.get
    name = env("BASIC_AUTH_USER")
    uvicorn.run(
        make_app(
            Path(env("PROJECTS", "label-studio")),
            Studio(
                env("LABEL_STUDIO_URL", ""), env("LABEL_STUDIO_API_KEY", ""), env("LOCAL_FILES", "")
            ),
            env("RUN", ""),
            env("METHOD", "linear-probe-pair"),
            (name, env("BASIC_AUTH_PASS", "")) if name else None,
            env("ORDER", ORDERS[0]),
        ),
        host=env("HOST", "127.0.0.1"),
        port=int(env("PORT", "9090")),
    )
