"""The verb `serve`; slow imports wait until it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter import UserError
from rmadapter.artifacts import find_run
from rmadapter.cli import Command, Json, Quiet, RunOptions, comma_list, escape
from rmadapter_serve.limits import Limits
from rmadapter_serve.sockets import address, bind

if TYPE_CHECKING:
    from rmadapter_serve.model import ServeOptions
    from rmadapter_serve.server import Access

HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)


Hosts = Annotated[
    list[str] | None,
    typer.Option(help="Host names by which others open the page, as a,b."),
]


Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses.")]


Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]


def check_extra(verb: str, needed: Sequence[str]) -> None:
    """Raises UserError if the extra of a verb is not installed."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{verb} needs {', '.join(missing)}; run `pip install 'rmadapter[{verb}]'`")


def checked(
    option: str, words: Sequence[str], form: re.Pattern[str], example: str
) -> Sequence[str]:
    """Return the parts of lists with commas. Raises UserError for one of another form."""
    parts = [part.strip(" ") for word in words for part in word.split(",")]
    for word in parts:
        if not form.fullmatch(word):
            raise UserError(f"{option} {word[:100]!r}: write it like {example}, and nothing else")
    return parts


KEY = "RMADAPTER_API_KEY"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


NEEDED_BY_SERVE = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


Engine = Annotated[
    str, typer.Option(metavar="torch | onnx | openvino", help="By default torch, or the export's.")
]


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Folders of runs or exports; NAME=FOLDER names one."),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    engine: Engine = "",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads per model; 0 leaves it to the engine.")
    ] = 0,
    limits: Limits = Limits(),
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origins of web pages that may send requests, as a,b."),
    ] = None,
    allow_host: Hosts = None,
    log: Annotated[
        bool, typer.Option("--log", help="Print a line on stderr for each request.")
    ] = False,
    options: RunOptions = RunOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Classify images over HTTP.

    If RMADAPTER_API_KEY is set, requests must carry that key. Otherwise, their host name must be
    localhost, an IP address, --host, the machine's own name or one of --allow-host.
    """
    check_extra("serve", NEEDED_BY_SERVE)
    from rmadapter.export import engine_of

    folders = named(runs)
    options.check(*(folder for folder in folders.values() if not engine_of(folder)))
    from rmadapter_serve.model import ServeOptions
    from rmadapter_serve.server import Access

    if limits.workers > 1:
        threads = _threads_of_worker(threads)
    models = {
        name: ServeOptions(
            folder, engine, threads, options.backbone, options.code, options.device or "auto"
        )
        for name, folder in folders.items()
    }
    key = os.environ.get(KEY, "")
    others = checked("--allow-host", allow_host or (), HOST, "birds.example.org")
    hosts = None if key else {host, socket.gethostname(), *others}  # no other site knows the key
    origins = [part for word in cors or () for part in comma_list(word)]
    access = Access(key, origins, log, hosts)
    with bind(host, port) as listening:
        _listen(listening, models, limits, access, as_json)


def _listen(
    listening: socket.socket,
    models: dict[str, ServeOptions],
    limits: Limits,
    access: Access,
    as_json: bool,
) -> None:
    """Open the models and serve them, in as many processes as the limits say."""
    from rmadapter_serve.model import open_served
    from rmadapter_serve.server import run
    from rmadapter_serve.service import Service

    opened = {name: open_served(each) for name, each in models.items()}  # replaced by reloads
    where = address(listening)

    def ready() -> None:
        if as_json:
            folders = {name: str(each.folder) for name, each in models.items()}
            print(json.dumps({"address": where, "models": folders}), flush=True)
        else:
            print(escape(f"rmadapter: {', '.join(models)} at {where}"), file=sys.stderr, flush=True)

    if limits.workers == 1:
        service = Service(opened, limits)
        opened.clear()
        run(service, models, listening, ready, access)
    else:
        from rmadapter_serve.workers import run_workers  # type: ignore[attr-defined, unused-ignore]

        run_workers(opened, models, limits, listening, ready, access)


def _threads_of_worker(threads: int) -> int:
    """Raises UserError where there are no workers, and for several threads."""
    if sys.platform != "linux":
        raise UserError("--workers needs Linux; start several servers on other ports instead")
    if threads > 1:
        raise UserError("--threads with --workers: each worker has one; leave out one of them")
    return 1


def named(words: Sequence[str]) -> dict[str, Path]:
    """Return folders by the names under which they are served: NAME of NAME=FOLDER or
    hf:OWNER/NAME, else the folder's name.

    Raises UserError for a name that cannot be in a URL, and for one given twice.
    """
    by_name: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or os.path.isdir(word):
            name, folder = Path(word).resolve().name, word
        if not sign:
            name = name.partition("@")[0]  # without the revision of a repository
        if not NAME.fullmatch(name):
            raise UserError(
                f"{word}: give it a name of letters, digits, dots, _ and -, as in birds={folder}"
            )
        if name in by_name:
            raise UserError(
                f"{word}: {name} is already {by_name[name]}; give one of them another name: "
                f"NAME={folder}"
            )
        by_name[name] = find_run(folder)
    return by_name


SERVE = Command(
    "serve",
    serve,
    "Use a model",
    (
        "rmadapter serve runs/first",
        "rmadapter serve my-model birds=runs/second --port 8080",
    ),
)
