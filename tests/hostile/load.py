"""Load `rmadapter serve` with clients of which a fifth is hostile, while its run changes.

    python -m tests.hostile.load --minutes 10 --clients 50

The server is the command itself, in a process of its own. Each polite client sends photos, some of
12 megapixels or four at once, and the next request as soon as it has its answer; after a 503 it
waits as `Retry-After` says. The hostile ones are those of `benchmarks/clients.py`. The run is
replaced by another and back, and every second time SIGHUP is sent. Each answer must be that of the
same server before the load, of the run that was served then. Prints what was measured, and exits
with 1 unless all faults are zero.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.hostile.servers import MB, Faults, Server, show

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from clients import GONE, Client, form, hostile, png, threads
from serve import exported, fitted

FAULTS = (
    "wrong answers", "other statuses", "late", "503 below the queue", "503 without a time",
    "reloads refused", "memory", "left open", "odd exit", "tracebacks",
)  # fmt: skip
QUEUE = ("images", "seconds", "bytes")
NEAR = 1e-4  # difference of a probability: a batch changes rounding
MARGIN = 5.0  # seconds that an answer may take beyond its limit, on a busy machine
GROWTH = 2.0  # most times the memory of the start
DRAINED = 7.0  # seconds until idle connections are closed
SLACK = 4  # file descriptors and threads that may come and go
CALM = 30.0  # seconds after the load until connections must be closed
LABELS = 5  # labels of an answer that are compared


class Photo(NamedTuple):
    """A request of one or more images. expected: label -> probability of each image, by run."""

    body: tuple[bytes, str]
    images: int
    expected: dict[str, list[dict[str, float]]]


@dataclass
class Outcome(Faults):
    """What the clients saw. seconds: of each answer. refused: of each 503, its images and body."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    hostile: dict[str, Counter[int]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    back_in_time: int = 0
    reloads: int = 0


# Requests and their answers


def photos(seed: int) -> list[tuple[bytes, ...]]:
    """Make the images of 24 requests: a few blobs of colour as JPEG, as large as photos are."""
    rng = np.random.default_rng(seed)

    def photo(width: int, height: int) -> bytes:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()

    small = [(photo(500, 375),) for _ in range(18)]
    several = [tuple(photo(640, 480) for _ in range(4)) for _ in range(4)]
    return [*small, *several, (photo(4000, 3000),), (photo(3000, 4000),)]


def classes(answer: object) -> list[dict[str, float]]:
    """Return label -> probability of each image of an answer."""
    assert isinstance(answer, dict)
    return [
        {one["class"]: one["probability"] for one in image["classes"]}
        for image in answer["answers"]
    ]


def same(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> bool:
    return len(found) == len(expected) and all(
        label in best and abs(best[label] - share) < NEAR
        for ours, best in zip(found, expected, strict=True)
        for label, share in ours.items()
    )


def put(run: Path, source: Path) -> None:
    """Replace the files of a run as saving does: its digests go first and come last."""
    sums = "SHA256SUMS"
    (run / sums).unlink(missing_ok=True)
    for file in source.iterdir():
        if file.name != sums:
            shutil.copy(file, run / f".{file.name}.new")
            os.replace(run / f".{file.name}.new", run / file.name)
    shutil.copy(source / sums, run / ".sums")
    os.replace(run / ".sums", run / sums)


class Load:
    """The clients of a server, and what changes its run. sources: of the two runs by name."""

    def __init__(
        self, server: Server, options: argparse.Namespace, run: Path, sources: dict[str, Path]
    ) -> None:
        self.server, self.options, self.run, self.sources = server, options, run, sources
        self.outcome = Outcome()
        self.allowed = {next(iter(sources))}  # runs that may answer now
        self.flying = 0  # images sent and not yet answered
        self.lock = threading.Lock()
        self.memory: list[float] = []
        self.until = float("inf")
        self.photos = [Photo(form(*files), len(files), {}) for files in photos(options.seed)]

    def learn(self) -> None:
        """Ask the idle server, for each run, what it answers to each request."""
        client = Client(self.server.address)
        for name in [*list(self.sources)[::-1], next(iter(self.sources))]:
            self.replace(name)
            for photo in self.photos:
                status, answer = client.post(*photo.body, path="/predict?top=1000")
                assert status == 200, (status, answer)
                photo.expected[name] = classes(answer)
            client.connection.close()

    def replace(self, name: str, hang_up: bool = True) -> None:
        """Serve another run; wait until it is loaded and, with workers, until connections to those
        with the old one are closed."""
        before = self.server.reloads()
        self.allowed = self.allowed | {name}
        put(self.run, self.sources[name])
        if hang_up:
            self.server.process.send_signal(1)
        until = time.monotonic() + 120
        while self.server.reloads() == before:
            if time.monotonic() > until:
                self.outcome.fault("reloads refused", self.server.said[-1])
                return
            time.sleep(0.05)
        time.sleep(DRAINED if self.options.workers > 1 else 0.5)
        self.allowed = {name}

    def change(self) -> None:
        """Replace the run by the other one, again and again."""
        names, place = list(self.sources), 0
        while time.monotonic() + self.options.every < self.until:
            time.sleep(self.options.every)
            place += 1
            self.replace(names[place % 2], hang_up=place % 2 == 0)
            self.outcome.reloads += 1

    def watch(self) -> None:
        while time.monotonic() < self.until:
            self.memory.append(self.server.memory())
            time.sleep(1)

    def polite(self, number: int) -> None:
        """Send one request after another, each as soon as the last one is answered."""
        rng = random.Random(self.options.seed + number)
        client = Client(self.server.address)
        waited = False
        while time.monotonic() < self.until:
            photo = rng.choice(self.photos)
            waited = self.send(client, photo, waited)
        client.connection.close()

    def send(self, client: Client, photo: Photo, waited: bool) -> bool:
        """Send a request and judge its answer; return whether it was refused, after waiting as
        long as the server says. waited: whether the last one was."""
        allowed = set(self.allowed)
        with self.lock:
            self.flying += photo.images
            flying = self.flying
        started = time.monotonic()
        headers = http.client.HTTPMessage()
        try:
            client.connection.request(
                "POST", "/predict", photo.body[0], {"Content-Type": photo.body[1]}
            )
            response = client.connection.getresponse()
            status, headers, text = response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException) as error:
            client.connection.close()
            status, text = GONE, repr(error).encode()
        seconds = time.monotonic() - started
        with self.lock:
            self.flying -= photo.images
            self.outcome.statuses[status] += 1
            allowed |= self.allowed
            self.judge(photo, status, text, allowed, seconds, flying)
            self.outcome.back_in_time += waited and status == 200
        if status != 503:
            return False
        client.connection.close()  # the server would, while this client waits
        time.sleep(min(float(headers.get("Retry-After", "1")), 60))
        if "Retry-After" not in headers:
            self.outcome.fault("503 without a time", text)
        return True

    def judge(
        self, photo: Photo, status: int, text: bytes, allowed: set[str], seconds: float, flying: int
    ) -> None:
        """flying: images that the polite clients had sent when this request was."""
        if seconds > 2 * self.options.seconds + MARGIN:  # for the body, and for the answer
            self.outcome.fault("late", seconds)
        if status == 200:
            self.outcome.seconds.append(seconds)
            found = classes(json.loads(text))
            if not any(same(found, photo.expected[name]) for name in allowed):
                self.outcome.fault("wrong answers", text)
        elif status == 503:
            self.judge_refusal(text, flying)
        else:
            self.outcome.fault("other statuses", (status, text))

    def judge_refusal(self, text: bytes, flying: int) -> None:
        """Compare the queue that a 503 states with its limits, and with what was sent."""
        reason = json.loads(text)["error"].partition(":")[0]
        self.outcome.reasons[reason] += 1
        if reason.startswith("no answer within"):
            return
        queue = json.loads(text).get("queue", {})
        full = any(queue.get(what, 0) > queue.get(f"most_{what}", 0) for what in QUEUE)
        true = queue.get("images", 0) <= flying + 64 * self.options.hostile
        if not (full and true):
            self.outcome.fault("503 below the queue", (flying, text))

    def run_all(self) -> None:
        """Run all clients for the time of the options."""
        png(9_000, 9_000)  # made once for the hostile ones, which takes seconds
        self.until = time.monotonic() + 60 * self.options.minutes
        bad, photo = self.options.hostile, self.photos[0].body[0].partition(b"\r\n\r\n")[2]

        def work(number: int) -> None:
            if number == 0:
                self.watch()
            elif number == 1:
                self.change()
            elif number < 2 + bad:
                body = int(self.options.body * MB)
                seen = hostile(self.server.address, photo, body, self.until, number)
                with self.lock:
                    for kind, statuses in seen.items():
                        self.outcome.hostile.setdefault(kind, Counter()).update(statuses)
            else:
                self.polite(number)

        threads(2 + self.options.clients, work)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Load a server, and return what was measured and the number of each fault."""
    with tempfile.TemporaryDirectory(prefix="load-") as temporary:
        folder = Path(temporary)
        sources = {}
        for place, name in enumerate(("first", "second")):
            seeded = argparse.Namespace(
                **{**vars(options), "seed": options.seed + place, "classes": 8}
            )
            sources[name] = fitted(seeded, folder / name)
            if options.engine == "onnx":
                (folder / f"{name}-onnx").mkdir()
                moved = shutil.move(sources[name], folder / f"{name}-onnx" / "run")
                sources[name] = exported(seeded, "onnx", Path(moved))
        run = Path(shutil.copytree(sources["first"], folder / "run"))
        words = ["serve", run, "--seconds", options.seconds, "--queue", options.queue]
        words += ["--body", options.body, "--max-images", min(64, options.queue)]
        words += ["--threads", options.threads, "--backbone", options.backbone]
        if options.workers > 1:
            words += ["--workers", options.workers]
        server = Server(words)
        try:
            return loaded(server, options, run, sources)
        finally:
            if server.process.is_running():
                server.process.kill()


def loaded(
    server: Server, options: argparse.Namespace, run: Path, sources: dict[str, Path]
) -> dict[str, object]:
    load = Load(server, options, run, sources)
    outcome = load.outcome
    client = Client(server.address)
    for _ in range(8 * options.workers):  # every worker has answered
        assert client.post(*load.photos[0].body)[0] == 200
        client.connection.close()
    start = server.memory()
    load.learn()
    learnt, opened = server.memory(), server.open()
    averages, cpu = [os.getloadavg()[0]], server.cpu()
    load.run_all()
    cpu = server.cpu() - cpu
    averages.append(os.getloadavg()[0])
    end = calm(server, opened)
    if end > opened + SLACK:
        outcome.fault("left open", f"{opened} before, {end} after")
    after = server.memory()
    most = max(load.memory, default=0.0)
    if most > GROWTH * start:
        outcome.fault("memory", f"{most:.0f} MB, {start:.0f} at the start")
    if code := server.end():
        outcome.fault("odd exit", code)
    for line in server.said:
        if "not reloaded" in line:
            outcome.fault("reloads refused", line)
        if "Traceback" in line:
            outcome.fault("tracebacks", "\n".join(server.said)[-1000:])
    for example in outcome.examples:
        print(example, file=sys.stderr)
    return summary(load, (start, learnt, most, after), averages, cpu)


def calm(server: Server, opened: int) -> int:
    """Wait until connections are closed; return file descriptors and threads."""
    until = time.monotonic() + CALM
    while server.open() > opened + SLACK and time.monotonic() < until:
        time.sleep(0.5)
    return server.open()


def summary(
    load: Load, memory: tuple[float, float, float, float], averages: list[float], cpu: float
) -> dict[str, object]:
    outcome, refused = load.outcome, load.outcome.statuses[503]
    tenth = len(load.memory) // 10 + 1
    p50, p99 = np.percentile(outcome.seconds or [float("nan")], [50, 99])
    return {
        "minutes": load.options.minutes,
        "clients": load.options.clients,
        "hostile": load.options.hostile,
        "workers": load.options.workers,
        "answered": outcome.statuses[200],
        "503": refused,
        "reasons of 503": ", ".join(f"{why}: {n}" for why, n in outcome.reasons.items()),
        "answered after a 503": outcome.back_in_time,
        "p50 s": round(float(p50), 2),
        "p99 s": round(float(p99), 2),
        "reloads": outcome.reloads,
        "hostile requests": sum(found.total() for found in outcome.hostile.values()),
        "hostile statuses": statuses(outcome.hostile),
        "MB at start": round(memory[0]),
        "MB before load": round(memory[1]),
        "MB median of first tenth": round(float(np.median(load.memory[:tenth]))),
        "MB median of last tenth": round(float(np.median(load.memory[-tenth:]))),
        "MB most": round(memory[2]),
        "MB after": round(memory[3]),
        "CPU s of the server": round(cpu),
        "load average": " to ".join(f"{one:.1f}" for one in averages),
        **{name: outcome.faults[name] for name in FAULTS},
    }


def statuses(kinds: dict[str, Counter[int]]) -> str:
    total: Counter[int] = Counter()
    for found in kinds.values():
        total.update(found)
    return ", ".join(f"{status}: {count}" for status, count in sorted(total.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50, help="a fifth of them hostile")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--engine", default="torch", help="torch or onnx")
    parser.add_argument("--queue", type=int, default=256, help="images, of the server")
    parser.add_argument("--seconds", type=float, default=30, help="for an answer, of the server")
    parser.add_argument("--body", type=float, default=32, help="MB, of the server")
    parser.add_argument("--every", type=float, default=15, help="seconds between two reloads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    options.hostile = options.clients // 5
    sys.exit(show(measure(options), FAULTS, options.json))


if __name__ == "__main__":
    main()
