"""The command `serve`; slow imports wait until it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.errors import UserError
from rmadapter.support.hub import HUB, run_folder
from rmadapter.support.terminal import Its, Json, Name, Quiet, plain

if TYPE_CHECKING:
    from rmadapter.deploy.serve.model import Wish

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
KEY = "RMADAPTER_API_KEY"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Folders of runs or exports; NAME=FOLDER names one."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    engine: Annotated[
        str, typer.Option(help="torch, onnx or openvino; by default torch, or the export's.")
    ] = "",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads per model; 0 leaves it to the engine.")
    ] = 0,
    batch: Annotated[
        int, typer.Option(min=1, help="Most images sent to a model in one batch.")
    ] = 16,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to wait for a batch to fill.")
    ] = 3.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Most images waiting for a model; beyond that, status 429.")
    ] = 256,
    images: Annotated[int, typer.Option(min=1, help="Most images per request.")] = 64,
    body: Annotated[float, typer.Option(min=0.001, max=10_000, help="Most MB per request.")] = 32.0,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=86_400, help="Most seconds for a body to arrive, and for an answer."
        ),
    ] = 30.0,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may send requests; may be repeated."),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Print a line on stderr for each request.")
    ] = False,
    method: Name = "",
    backbone: Its = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Classify images over HTTP; requests must carry the key in RMADAPTER_API_KEY, if set."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {', '.join(missing)}; run `pip install 'rmadapter[serve]'`")
    from rmadapter.deploy.serve import listen
    from rmadapter.deploy.serve.limits import Limits
    from rmadapter.deploy.serve.model import Wish, open_served
    from rmadapter.deploy.serve.service import Service
    from rmadapter.deploy.sockets import address, bound

    limits = Limits(batch, wait, queue, images, body, seconds)
    wishes = {
        name: Wish(folder, engine, threads, backbone, method)
        for name, folder in named(runs).items()
    }
    key = os.environ.get(KEY, "")
    with bound(host, port) as listening:
        service = Service({name: open_served(wish) for name, wish in wishes.items()}, limits)
        where = address(listening)
        listen.run(
            service, wishes, listening, lambda: _tell(where, wishes, as_json), key=key, cors=cors or (), log=log
        )  # fmt: skip


def named(words: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that they are served under: NAME of NAME=FOLDER or hf:OWNER/NAME, else
    the folder's own.

    Raises UserError for a name that cannot be in a URL, and for one given twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or os.path.isdir(word):
            name, folder = Path(word).resolve().name, word
        if not sign and word.startswith(HUB):
            name = name.partition("@")[0]  # without the revision
        if not NAME.fullmatch(name):
            raise UserError(
                f"{word}: give it a name of letters, digits, dots, _ and -, as in birds={folder}"
            )
        if name in found:
            raise UserError(
                f"{word}: {name} is already {found[name]}; give one of them another name: NAME={folder}"
            )
        found[name] = run_folder(folder)
    return found


def _tell(where: str, wishes: dict[str, Wish], as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "address": where,
                    "models": {name: str(wish.folder) for name, wish in wishes.items()},
                }
            )
        )
        sys.stdout.flush()
    else:
        print(plain(f"rmadapter: {', '.join(wishes)} at {where}"), file=sys.stderr, flush=True)
