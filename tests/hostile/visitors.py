"""Label a folder with many visitors of `rmadapter app FOLDER` at once, while its server is killed
and started again.

    python -m tests.hostile.visitors --minutes 10 --visitors 20

Each visitor does what a person does on the page, by the page's requests: labels some images of
those that are theirs alone, skips, undoes, looks at mistakes and other views, and takes the labels
along; one also trains and downloads classifiers. While the server is down, connections are refused
or end; every other failure is a fault. After a restart, the visitor goes on as the page does. Each
time the server is gone, the files must hold every label that it acknowledged. In turns it is killed
and ended by SIGTERM, in the first part of the time; then it runs to the end, and its memory must
not grow. Time without a server does not count. Prints what was measured, and exits with 1 unless
all faults are zero.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import io
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from PIL import Image

from rmadapter_studio.labelling import number_of
from rmadapter_studio.order import ORDERS
from rmadapter_studio.visitors import PREFIX
from tests.hostile.servers import Faults, Server, show

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from clients import threads

FAULTS = (
    "lost labels", "wrong labels", "statuses", "late", "trouble", "failed trainings", "memory",
    "left behind", "orphans", "odd exit", "tracebacks",
)  # fmt: skip
COLOURS = {"red": (210, 60, 50), "green": (60, 190, 70), "blue": (60, 80, 210)}
SIDE = 96  # pixels of an image
SKIPPED = "\0skipped"  # in place of a label
VIEWS = ("suspects", "mistakes", "unfamiliar", "skipped", "labelled", "confused")
FORMATS = ("csv", "csv", "coco", "label-studio", "folders")
TURNS = {"label": 50, "clear": 4, "skip": 4, "undo": 10, "look": 14, "take": 5, "state": 13}
GONE = 410  # status of a visitor whom the server does not know
MOVED = 303  # status of the page that takes the key out of the address
LATE = 120.0  # seconds for an answer
EARLY = 0.6  # share of the time in which the server is restarted
GROWTH = 1.3  # most times the memory of the first third of the time after the last start
FEW = 60  # seconds of that time from which memory is judged
ALIVE = 20.0  # seconds after which the processes of a dead server must have ended
OLD = 120.0  # seconds after which a folder of a dead server must be removed by the next start


class DownError(Exception):
    """The server cannot be reached. sent: whether it may have read the request."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the server is down")
        self.sent = sent


@dataclass
class Outcome(Faults):
    """What the visitors saw. seconds: of each answer. memory: MB of the server, without what it
    trains in, of each second since the last start. checked: labels compared with the files of a
    dead server."""

    seconds: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    refused: int = 0
    visits: int = 0
    checked: int = 0
    trainings: int = 0


class Visitor:
    """A browser at the page. marks: what the files may say of each of its images, which is one
    thing unless a request was not answered: a label, SKIPPED or "" for neither. steps: what it may
    undo, as marks before them."""

    def __init__(self, number: int, names: Sequence[str], load: Load) -> None:
        self.load, self.names = load, {number_of(name): name for name in names}
        self.rng = random.Random(load.options.seed + number)
        self.marks: dict[str, set[str]] = {name: {""} for name in names}
        self.steps: list[dict[str, set[str]]] = []
        self.cookie = ""
        self.lock = threading.Lock()  # held during a step
        self._connection = http.client.HTTPConnection(load.host, timeout=LATE)

    # Requests

    def request(self, method: str, path: str, body: bytes = b"", again: bool = True) -> bytes:
        """Return the body of an answer. Raises DownError; other failures are faults, and then b""
        is returned."""
        outcome, started = self.load.outcome, time.monotonic()
        status, _, data = self._send(method, path, body)
        with self.load.lock:
            outcome.seconds.append(time.monotonic() - started)
        if status == GONE and again:
            self.visit()
            return self.request(method, path, body, again=False)
        if status != 200:
            self.load.fault("statuses", (method, path, body[:200], status, data[:200]))
            return b""
        return data

    def _send(
        self, method: str, path: str, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection, sent = self._connection, False
        try:
            if connection.sock is None:
                connection.connect()
            sent = True
            connection.request(method, path, body, {"Cookie": self.cookie})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except TimeoutError:
            connection.close()
            if not self.load.down.is_set():  # a server that is starting already accepts connections
                self.load.fault("late", (method, path))
            raise DownError(sent) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self.load.lock:
                self.load.outcome.refused += 1
            if not self.load.down.is_set():  # the server may be dying right now
                time.sleep(1)
                if not self.load.down.is_set():
                    self.load.fault("statuses", (method, path, repr(error)))
            raise DownError(sent) from None

    def close(self) -> None:
        self._connection.close()

    def visit(self) -> None:
        """Begin as a new visitor, with the key that the server printed."""
        self.cookie = ""
        self.steps.clear()
        with self.load.lock:
            self.load.outcome.visits += 1
        path = self.load.path
        status, headers, data = self._send("GET", path, b"")
        self.cookie = "; ".join(
            value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie"
        )
        if path != self.load.path or self.load.down.is_set():
            raise DownError(True)  # the key was that of the server before
        if status != MOVED:
            self.load.fault("statuses", ("GET", path, b"", status, data[:200]))

    def ask(self, name: str, **body: object) -> Any:
        found = self.request("POST", f"/api/{name}", json.dumps(body).encode())
        return json.loads(found) if found else None

    # Steps

    def step(self, after: Mapping[str, str], action: str, **body: object) -> None:
        """Change marks. after: what the images are marked with then."""
        with self.lock:
            before = {name: self.marks[name] for name in after}
            with self._maybe({name: {mark} for name, mark in after.items()}):
                self.ask(f"label/{action}", **body)
            self.steps.append(before)

    def _undo(self) -> None:
        with self.lock:
            state = self.ask("label/state")
            if not (state and state["undoable"] and self.steps):
                return
            with self._maybe(self.steps[-1]):
                self.ask("label/undo")
            self.steps.pop()

    @contextmanager
    def _maybe(self, after: Mapping[str, set[str]]) -> Iterator[None]:
        """Take over marks after a request; while it is not answered, both may be true."""
        before = {name: self.marks[name] for name in after}
        try:
            yield
        except DownError as error:
            if error.sent:
                self.marks |= {name: before[name] | marks for name, marks in after.items()}
            raise
        self.marks |= after

    def compare(self, found: Mapping[str, str], fault: str) -> None:
        """Compare marks with those that the server or its files have. found: by name; only of
        images that have one."""
        for name, marks in self.marks.items():
            if found.get(name, "") not in marks:
                self.load.fault(fault, (name, sorted(marks), found.get(name, "")))

    # Turns

    def turn(self) -> None:
        [kind] = self.rng.choices([*TURNS], [*TURNS.values()])
        getattr(self, f"_{kind}")()
        with self.load.lock:
            self.load.outcome.done[kind] += 1

    def _some(self, mark: str | None = None) -> list[str]:
        """Return the numbers of a few of its images. mark: that they have, "" for none; any if
        None."""
        names = [
            number for number, name in self.names.items()
            if mark is None or self.marks[name] == {mark}
        ]  # fmt: skip
        return self.rng.sample(names, min(len(names), self.rng.randint(1, 3)))

    def _label(self) -> None:
        label = self.rng.choice([*COLOURS])
        self._cards("open", order=self.rng.choice(ORDERS))
        some = self._some("" if self.rng.random() < 0.7 else None) or self._some()
        changes = {self.names[number]: label for number in some}
        # after a kill, a mark may be one of two: what changes nothing is no step to undo
        if any(label not in self.marks[name] for name in changes):
            self.step(changes, "set", ids=some, label=label)
        self.ask("label/answers", ids=some)

    def _clear(self) -> None:
        some = self._some(self.rng.choice([*COLOURS]))
        if some:
            self.step({self.names[number]: "" for number in some}, "set", ids=some, label="")

    def _skip(self) -> None:
        some = self._some("")
        if some:
            self.step({self.names[number]: SKIPPED for number in some}, "skip", ids=some)

    def _look(self) -> None:
        view, two = self.rng.choice(VIEWS), self.rng.sample([*COLOURS], 2)
        cards = self._cards(view, label=two[0], answer=two[1])
        for card in cards[:3]:
            self.request("GET", f"/picture/{card['id']}?size={self.rng.choice(('small', 'large'))}")
        if cards:
            self.ask("label/near", id=cards[0]["id"])

    def _cards(self, view: str, **more: str) -> list[dict[str, Any]]:
        """Return cards, after a comparison of what they say of its own images."""
        cards = self.ask("label/cards", view=view, n=48, **more) or []
        for card in cards:
            name = self.names.get(card["id"])
            mark = SKIPPED if card["skipped"] else card["label"]
            if name and mark not in self.marks[name]:
                self.load.fault("wrong labels", (view, name, sorted(self.marks[name]), mark))
        return cards

    def _take(self) -> None:
        to = self.rng.choice(FORMATS)
        if not any(marks & COLOURS.keys() for marks in self.marks.values()):
            return  # without any label, there is nothing to take
        data = self.request("GET", f"/labels/{to}")
        if to == "csv" and data:
            rows = csv.DictReader(io.StringIO(data.decode()))
            found = {row["path"]: row["label"] for row in rows}
            skipped = {name: SKIPPED for name, marks in self.marks.items() if SKIPPED in marks}
            self.compare(skipped | found, "wrong labels")

    def _state(self) -> None:
        state = self.ask("label/state")
        if state and state["trouble"]:
            self.load.fault("trouble", state["trouble"])

    def train(self) -> None:
        """Train on the labels of all, and take the classifier along."""
        self.ask("train", method="linear-probe-pair")
        job = {"state": "waiting", "message": ""}
        while job and job["state"] in ("waiting", "running"):
            time.sleep(0.5)
            state = json.loads(self.request("GET", "/api/state") or b"null")
            job = state and state["job"]  # None if a new server does not know of it
        if job and job["state"] != "done":
            self.load.fault("failed trainings", job["message"])
        elif job:
            self.request("GET", "/download/model")
            with self.load.lock:
                self.load.outcome.trainings += 1


class Load:
    """The visitors of a server that is restarted."""

    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options, self.outcome, self.lock = options, Outcome(), threading.Lock()
        self.photos, self.temporary = home / "photos", home / "temporary"
        self.temporary.mkdir()
        names = draw(self.photos, options.images, options.seed)
        self.down = threading.Event()
        self.until = float("inf")
        self.server = self._start()
        self.host = self.server.address.removeprefix("http://")
        parts = [names[number :: options.visitors] for number in range(options.visitors)]
        self.visitors = [Visitor(number, part, self) for number, part in enumerate(parts)]

    @property
    def path(self) -> str:
        """Return the path of the page for labelling, with its key."""
        return re.findall(r"/label\?key=\S+", " ".join(self.server.said))[0]

    def fault(self, name: str, example: object) -> None:
        with self.lock:
            self.outcome.fault(name, example)

    def _start(self, port: int = 0) -> Server:
        words = ["app", self.photos, "--backbone", self.options.backbone]
        server = Server(words, port, {"TMPDIR": str(self.temporary)})
        with closing(http.client.HTTPConnection(server.address[7:], timeout=LATE)) as connection:
            connection.request("GET", "/style.css")  # it listens before it answers
            connection.getresponse().read()
        return server

    def run_all(self) -> None:
        """Run all visitors for the time of the options."""
        started = time.monotonic()
        self.until = started + 60 * self.options.minutes

        def work(number: int) -> None:
            if number == 0:
                self.watch()
            elif number == 1:
                self.restart_often(started)
            else:
                self.be(self.visitors[number - 2])

        threads(2 + self.options.visitors, work)
        self.stop(killed=False)

    @property
    def running(self) -> bool:
        return self.down.is_set() or time.monotonic() < self.until

    def be(self, visitor: Visitor) -> None:
        """Do one thing after another, with pauses, and look again when the server is down."""
        train = time.monotonic() + self.options.train
        begun = False
        while self.running:
            try:
                if not begun:
                    visitor.visit()
                    visitor.ask("label/classes", names=[*COLOURS])
                    visitor.steps.append({})
                    begun = True
                if self.options.train and visitor is self.visitors[0] and time.monotonic() > train:
                    train = time.monotonic() + self.options.train
                    visitor.train()
                visitor.turn()
            except DownError:
                time.sleep(0.5)
            time.sleep(visitor.rng.uniform(0.5, 1.5) * self.options.pause)
        visitor.close()

    def watch(self) -> None:
        while self.running:
            if not self.down.is_set():
                self.outcome.memory.append(self.server.memory(children=False))
            time.sleep(1)

    def restart_often(self, started: float) -> None:
        share = EARLY * 60 * self.options.minutes / max(self.options.restarts, 1)
        for number in range(self.options.restarts):
            time.sleep(max(started + share * (number + 1) - time.monotonic(), 0))
            stopped = time.monotonic()
            self.stop(killed=number % 2 == 0)
            self.server = self._start(int(self.host.rpartition(":")[2]))
            self.outcome.memory.clear()
            started += time.monotonic() - stopped  # the time of the options is that of a server
            self.until += time.monotonic() - stopped
            self.down.clear()
            self.check_folders()

    def stop(self, killed: bool) -> None:
        """End the server, and compare its files with what it acknowledged."""
        self.down.set()
        others = self.server.process.children(recursive=True)
        if killed:
            self.server.kill()
        elif code := self.server.end():
            self.fault("odd exit", code)
        if any("Traceback" in line for line in self.server.said):
            self.fault("tracebacks", "\n".join(self.server.said)[-1000:])
        found = marks_of(self.photos)
        for visitor in self.visitors:
            with visitor.lock:
                visitor.compare(found, "lost labels")
                self.outcome.checked += len(visitor.marks)
        _, alive = psutil.wait_procs(others, ALIVE)
        for process in alive:
            self.fault("orphans", process)
            process.kill()

    def check_folders(self) -> None:
        """Compare the folders of dead servers with what a new one must have removed."""
        for folder in self.temporary.glob(f"{PREFIX}*"):
            if time.time() - folder.stat().st_mtime > OLD:
                self.fault("left behind", folder.name)


def draw(folder: Path, count: int, seed: int) -> list[str]:
    """Write small images of three colours, and return their names."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = [f"photo-{number:04}.png" for number in range(count)]
    for name in names:
        colour = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
        pixels = rng.normal(colour, 50, (SIDE // 8, SIDE // 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / name)
    return names


def marks_of(photos: Path) -> dict[str, str]:
    """Return what the files of a project say of its images."""
    found: dict[str, str] = {}
    if (photos / "project.json").exists():
        skipped = json.loads((photos / "project.json").read_text("utf-8"))["skipped"]
        found = dict.fromkeys(skipped, SKIPPED)
    if (photos / "metadata.csv").exists():
        with open(photos / "metadata.csv", encoding="utf-8", newline="") as file:
            found |= {row["file_name"]: row["label"] for row in csv.DictReader(file)}
    return found


def grown(memory: Sequence[float]) -> bool:
    """Return whether memory, in MB of each second after the last start, grows without bound."""
    third = len(memory) // 3
    return third >= FEW / 3 and median(memory[-third:]) > GROWTH * median(memory[:third])


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Load a server, and return what was measured and the number of each fault."""
    with tempfile.TemporaryDirectory(prefix="visitors-") as folder:
        load = Load(options, Path(folder))
        try:
            load.run_all()
        finally:
            if load.server.process.is_running():
                load.server.process.kill()
    outcome = load.outcome
    if grown(outcome.memory):
        outcome.fault("memory", [round(one) for one in outcome.memory[:: len(outcome.memory) // 9]])
    for example in outcome.examples:
        print(example, file=sys.stderr)
    return summary(load)


def summary(load: Load) -> dict[str, object]:
    outcome, options = load.outcome, load.options
    p50, p99 = np.percentile(outcome.seconds or [float("nan")], [50, 99])
    third = max(len(outcome.memory) // 3, 1)
    return {
        "minutes": options.minutes,
        "visitors": options.visitors,
        "images": options.images,
        "restarts": options.restarts,
        "answers": len(outcome.seconds),
        "turns": ", ".join(f"{kind}: {count}" for kind, count in sorted(outcome.done.items())),
        "visits": outcome.visits,
        "trainings": outcome.trainings,
        "connections refused or ended": outcome.refused,
        "marks compared with files": outcome.checked,
        "p50 s": round(float(p50), 2),
        "p99 s": round(float(p99), 2),
        "most s": round(max(outcome.seconds, default=float("nan")), 1),
        "MB, first third after the last start": round(median(outcome.memory[:third] or [0])),
        "MB, last third": round(median(outcome.memory[-third:] or [0])),
        **{name: outcome.faults[name] for name in FAULTS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.7, help="mean seconds between two turns")
    parser.add_argument(
        "--train", type=float, default=90, help="seconds between trainings; 0: none"
    )
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sys.exit(show(measure(options), FAULTS, options.json))


if __name__ == "__main__":
    main()
