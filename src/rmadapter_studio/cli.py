"""The verbs `app` and `labels`; slow imports wait until they run."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import sys
import webbrowser
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter import UserError
from rmadapter.cli import Columns, Command, Device, Json, Outside, Quiet, table
from rmadapter_serve.cli import HOST, Host, Hosts, Port, check_extra, checked
from rmadapter_serve.sockets import address, bind, ip_address, serve_until_stopped

if TYPE_CHECKING:
    from starlette.applications import Starlette

NEEDED_BY_APP = ("starlette", "uvicorn")


ORIGIN = re.compile(rf"https?://{HOST.pattern}(:\d+)?", re.IGNORECASE)


Frames = Annotated[
    list[str] | None,
    typer.Option(help="Site that may show the page in a frame, such as https://huggingface.co."),
]


def app(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of images to label, or one whose labelling was begun before."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    backbone: Annotated[
        str,
        typer.Option(help="Name or folder of the backbone; every classifier on the page uses it."),
    ] = "pocket-3",
    device: Device = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of runs that the page may open.")
    ] = None,
    keep_hours: Annotated[
        float,
        typer.Option(
            min=0.01, help="Hours without activity after which a visitor's data is removed."
        ),
    ] = 12.0,
    allow_host: Hosts = None,
    allow_frame: Frames = None,
    browser: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Serve a page for labelling images and training without code.

    Labels are kept in FOLDER, for `rmadapter fit FOLDER`; its images stay as they are.
    """
    check_extra("app", NEEDED_BY_APP)
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        raise UserError(f"{folder}: not a folder of images")
    if runs is not None and not os.path.isdir(os.path.expanduser(runs)):
        raise UserError(f"{runs}: not a folder of runs")
    others = checked("--allow-host", allow_host or (), HOST, "anna-photos.hf.space")
    frames = checked("--allow-frame", allow_frame or (), ORIGIN, "https://huggingface.co")
    if folder and (others or not is_loopback(host)):
        raise UserError(
            f"{folder}: its images are shown to this machine alone; leave out --host and "
            "--allow-host, or forward the port by ssh -L"
        )
    with ExitStack() as stack:
        listening = stack.enter_context(bind(host, port))
        from rmadapter.cli import first_of
        from rmadapter_studio.jobs import Jobs
        from rmadapter_studio.project import Project
        from rmadapter_studio.server import build
        from rmadapter_studio.shared import Shared

        project = None
        if folder:
            project = Project(folder)
            stack.enter_context(project.alone())
        chosen = first_of(backbone, device or "auto")
        names = {host, socket.gethostname(), *others}
        # programs of other users of this machine reach the port, too
        secret = secrets.token_urlsafe(16) if project else ""
        shared = Shared(chosen, Jobs(), runs and runs.expanduser(), project, secret)
        site = build(shared, keep_hours, names, frames)
        where = f"{address(listening)}/{f'label?key={secret}' if project else ''}"
        if not quiet and (others or not is_loopback(host)):
            addresses = " or ".join((where, *others))
            print(
                f"note: anyone who reaches {addresses} can use this page, this machine's time "
                "and its disk: there is no login",
                file=sys.stderr,
            )
        line = json.dumps({"address": where}) if as_json else f"{where} (Ctrl-C ends it)"
        print(line, flush=True)
        if browser:
            webbrowser.open(where)
        run_server(site, listening)


def is_loopback(host: str) -> bool:
    found = ip_address(host)
    return found.is_loopback if found else host == "localhost"


def run_server(site: Starlette, listening: socket.socket) -> None:
    """Serve the page until stopped, and then delete what was written for visitors."""
    import uvicorn

    if hasattr(signal, "SIGHUP"):  # of a terminal that is closed
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    settings = uvicorn.Config(
        site,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    serve_until_stopped(uvicorn.Server(settings), listening)


def labels(
    data: Annotated[
        Path, typer.Argument(help="Labelled images in any format, such as a labelled folder.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="csv | coco | label-studio | folders", help="Format to write."
        ),
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New file, or folder of copied images.")
    ] = None,
    table_columns: Columns = Columns(),
    outside: Outside = False,
    as_json: Json = False,
) -> None:
    """Count the labels of images, or write them in another format."""
    from rmadapter.data import locate, write_labels

    splits = locate(data, table_columns.named(), outside=outside).read().splits
    if out:
        count = write_labels(splits, to, out.expanduser())
        facts = {"labels": str(out), "format": to, "images": count}
        images = f"{count:,} image{'' if count == 1 else 's'}"
        print(json.dumps(facts) if as_json else f"labels: {out}, {images}")
        return
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    if as_json:
        print(json.dumps(counts))
        return
    names = sorted({label for one in counts.values() for label in one})
    rows = [[name, *(f"{one[name]:,}" for one in counts.values())] for name in names]
    table(["label", *("images" if split == "all" else split for split in counts)], rows)


APP = Command(
    "app",
    app,
    "Make a model",
    (
        "rmadapter app --open",
        "rmadapter app photos --open",
        "rmadapter app --runs runs --backbone ViT-B-16/openai",
    ),
)
LABELS = Command(
    "labels",
    labels,
    "Look at data",
    (
        "rmadapter labels photos",
        "rmadapter labels photos --to coco --out photos/labels.json",
    ),
)
