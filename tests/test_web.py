"""The web page of an export: the numbers of Pillow in JavaScript, and the answers of `predict` in a browser."""

from __future__ import annotations

import functools
import json
import queue
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.deploy import web
from rmadapter.deploy.runtime import Transform
from rmadapter.errors import UserError

NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_NODE = """
import {{ tensor }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
for (const {{ width, height, file, transform }} of JSON.parse(readFileSync({cases}, "utf8"))) {{
  const found = tensor({{ width, height, data: readFileSync(file) }}, transform);
  writeFileSync(file + ".out", Buffer.from(found.buffer));
}}
"""
# A page beside the exported one: asks about images of the same server, hands one to the exported page as a user does,
# and posts what it found.
IN_BROWSER = """<!doctype html><iframe src="index.html"></iframe><script type="module">
  import { load } from "./answer.mjs";
  const until = async (look) => { while (!look()) await new Promise((done) => setTimeout(done, 50)); return look(); };
  async function all() {
    const ask = await load(), answers = [], blobs = [];
    for (const name of NAMES) blobs.push(await (await fetch(name)).blob());
    for (const blob of blobs) answers.push(await ask(blob));
    const page = await until(() => frames[0].document.getElementById("files")?.ownerDocument);
    await until(() => page.getElementById("state").textContent === "Ready.");
    const chosen = new DataTransfer(), input = page.getElementById("files");
    chosen.items.add(new File([blobs[0]], "first.png", { type: "image/png" }));
    input.files = chosen.files;
    input.dispatchEvent(new Event("change"));
    const shown = await until(() => page.querySelector("#answers h2"));
    return { answers, shown: shown.textContent, rows: page.querySelectorAll("#answers tr").length };
  }
  const found = await all().catch((error) => ({ error: String(error) }));
  await fetch("found", { method: "POST", body: JSON.stringify(found) });
</script>"""


@pytest.mark.skipif(NODE is None, reason="no Node.js")
def test_the_numbers_of_pillow(tmp_path: Path) -> None:
    rng, cases, wanted = np.random.default_rng(0), [], []
    for width, height in ((32, 32), (33, 32), (31, 47), (200, 33), (64, 300), (7, 5), (401, 277)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        for resize in ("shortest", "longest", "squash"):
            for interpolation in ("bicubic", "bilinear"):
                numbers = {"size": 32, "resize": resize, "interpolation": interpolation, "fill": 7}
                numbers |= {"mean": [0.48, 0.45, 0.4], "std": [0.22, 0.3, 0.26]}
                file = tmp_path / f"{len(cases)}.rgb"
                file.write_bytes(pixels.tobytes())
                cases.append({"width": width, "height": height, "file": str(file), "transform": numbers})
                wanted.append(Transform(**numbers)(Image.fromarray(pixels)))  # type: ignore[arg-type]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    module, listed = (json.dumps(str(path)) for path in (web.PAGE / "pixels.mjs", tmp_path / "cases.json"))
    (tmp_path / "run.mjs").write_text(IN_NODE.format(module=module, cases=listed))
    subprocess.run([str(NODE), tmp_path / "run.mjs"], check=True)
    for case, tensor in zip(cases, wanted, strict=True):
        found = np.frombuffer(Path(f"{case['file']}.out").read_bytes(), np.float32).reshape(tensor.shape)
        levels = np.abs(found - tensor) * 255 * np.array(case["transform"]["std"])[:, None, None]
        if case["width"] >= case["height"]:
            assert np.array_equal(found, tensor), case
        else:  # of these Pillow may do the other pass first, and rounds after each
            assert levels.mean() < 0.5, case


def browse(folder: Path, page: str, home: Path) -> dict[str, Any]:
    """What a page of a folder posts, in a browser of its own."""
    posted: queue.Queue[bytes] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={home}", "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/{page}"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return json.loads(posted.get(timeout=240))
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_answers_as_the_model_does(finished: Path, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    from rmadapter.checkpoint import load
    from rmadapter.deploy.export import export
    from rmadapter.record import read_record

    try:
        web.engine()
    except UserError as error:
        pytest.skip(str(error))
    saved = load(finished, read_record(finished / "run.json").backbone.name)
    out = tmp_path / "page"
    export(finished, saved, out, data=colors, to="web")
    images = sorted(colors.glob("test/*/*.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(noise).resize((700, 900)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([noise, noise[:, :, :1]])).save(tmp_path / "clear.png")
    images += [tmp_path / "turned.jpg", tmp_path / "clear.png"]
    for number, image in enumerate(images):
        shutil.copy(image, out / f"{number}{image.suffix}")
    names = json.dumps([f"{number}{image.suffix}" for number, image in enumerate(images)])
    (out / "test.html").write_text(IN_BROWSER.replace("NAMES", names))
    found = browse(out, "test.html", tmp_path / "home")
    assert "error" not in found, found["error"]
    table = next(saved.fitted.probabilities(images, saved.names)).numpy()
    for answer, shares in zip(found["answers"], table, strict=True):
        assert answer[0]["label"] == saved.labels[int(shares.argmax())]
        theirs = {each["label"]: each["probability"] for each in answer}
        difference = max(abs(theirs[str(label)] - share) for label, share in zip(saved.labels, shares, strict=True))
        assert difference < 2e-2
    exact = [
        abs(answer[0]["probability"] - shares.max()) for answer, shares in zip(found["answers"], table, strict=True)
    ][:16]
    assert max(exact) < 1e-4
    assert found["shown"] == f"first.png: {found['answers'][0][0]['label']}"
    assert found["rows"] == len(saved.labels)


def test_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--to web takes onnxruntime-web .+ from npm, which is not there"):
        web.engine()
    (tmp_path / web.TARBALL).write_bytes(b"another file")
    with pytest.raises(UserError, match="is not the file that it should be"):
        web.engine()
