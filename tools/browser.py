"""Drive a headless Chromium through a pipe by its own protocol: press keys, and read what a screen
reader and the eye get."""

from __future__ import annotations

import base64
import fcntl
import functools
import io
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "Escape": (27, ""), "Delete": (46, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
}  # fmt: skip
SHIFT = 8  # of the protocol's modifiers
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
AREA = """(() => {
  const margin = 12, boxes = %s.map((one) => document.querySelector(one).getBoundingClientRect());
  const top = Math.max(Math.min(...boxes.map((box) => box.top)) + scrollY - margin, 0);
  const bottom = Math.max(...boxes.map((box) => box.bottom)) + scrollY + margin;
  return { x: 0, y: top, width: innerWidth, height: bottom - top };
})()"""  # of elements, with a margin, as wide as the page
STATE = "document.getElementById('state').textContent"  # of an exported page


@contextmanager
def served(folder: Path, types: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve a folder on this machine; yields the address. types: suffix -> MIME type, instead of
    the usual one."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | dict(types or {})

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Ignore errors of a browser that is gone."""

    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Tab:
    """A page in a browser process of its own."""

    def __init__(self, home: Path, flags: Sequence[str] = ()) -> None:
        (theirs, self._out), (self._in, answers) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs, answers)]

        def pipes() -> None:  # the browser reads from 3 and writes to 4
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [str(BROWSER), *FLAGS, f"--user-data-dir={home}", *flags, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=pipes,
        )  # fmt: skip
        for end in (theirs, answers, *high):
            os.close(end)
        self._count, self._rest, self._session, self.events = 0, b"", "", []  # type: ignore[var-annotated]
        target = next(
            each for each in self("Target.getTargets")["targetInfos"] if each["type"] == "page"
        )
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "DOM", "Runtime", "Accessibility"):
            self(f"{domain}.enable")

    def __call__(self, method: str, seconds: float = 120, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result; events in the meantime go to
        `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            reply = self._next(until)
            if reply.get("id") == self._count:
                assert "error" not in reply, reply["error"]
                return reply["result"]
            self.events.append(reply)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(until - time.monotonic(), 0))[0], (
                "the browser is silent"
            )
            block = os.read(self._in, 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def event(self, method: str, seconds: float = 30) -> dict[str, Any]:
        """Return the parameters of the first such event that was not returned before."""
        until = time.monotonic() + seconds
        while True:
            for event in self.events:
                if event.get("method") == method:
                    self.events.remove(event)
                    return event["params"]
            self.events.append(self._next(until))

    def script(self, code: str) -> Any:
        """Return the value of an expression in the page, awaited."""
        reply = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def until(self, code: str, seconds: float = 120) -> Any:
        """Return the first value of an expression that is true."""
        end = time.monotonic() + seconds
        while not (value := self.script(code)):
            assert time.monotonic() < end, (
                f"{code} is not so: {self.script('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def go(self, address: str) -> None:
        self("Page.navigate", url=address)
        self.event("Page.loadEventFired")

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key: one of KEYS, or a letter or digit."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        for kind in ("keyDown", "keyUp"):
            more: dict[str, Any] = {"text": text} if text and kind == "keyDown" else {}
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=SHIFT * shift,
                **more,
            )

    def heard(self) -> list[tuple[str, str]]:
        """Return role and name of everything that a screen reader gets, in order."""
        nodes = self("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]

    def write(self, text: str) -> None:
        """Write a text where the focus is."""
        self("Input.insertText", text=text)

    def download_to(self, folder: Path) -> None:
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a field of the page."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        field = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=field, files=[str(file.resolve()) for file in files])

    def resize(self, width: int, height: int = 0) -> None:
        """Set the size of the window in pixels. height: 0 for that of the page."""
        height = height or self.script("document.documentElement.scrollHeight")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)

    def shot(self, file: Path, *selectors: str) -> None:
        """Save a picture of the page as a PNG of 256 colours, less than half as large as with all.
        selectors: of the parts that it shows, with what is between them; all if none."""
        self.until("[...document.images].every((one) => one.complete)")
        whole: dict[str, Any] = {"captureBeyondViewport": True}
        if selectors:
            whole["clip"] = {**self.script(AREA % json.dumps(selectors)), "scale": 1}
        data = base64.b64decode(self("Page.captureScreenshot", **whole)["data"])
        with Image.open(io.BytesIO(data)) as picture:
            picture.convert("RGB").quantize().save(file, optimize=True)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)


@contextmanager
def tab(home: Path, *flags: str) -> Iterator[Tab]:
    opened = Tab(home, flags)
    try:
        yield opened
    finally:
        opened.close()
