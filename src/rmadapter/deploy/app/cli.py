"""The verb `app`; every import that costs time waits for it."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.console import Json, Quiet, note
from rmadapter.deploy.sockets import address, bound, until_ended
from rmadapter.errors import UserError
from rmadapter.files import user_path

if TYPE_CHECKING:
    from starlette.applications import Starlette

NEEDS = ("starlette", "uvicorn")


def app(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    backbone: Annotated[str, typer.Option(help="As of `fit`; all classifiers of the page are on it.")] = "pocket",
    runs: Annotated[Path | None, typer.Option(help="Folder of runs that the page may open.")] = None,
    keep_hours: Annotated[float, typer.Option(min=0.01, help="Then what somebody left alone is removed.")] = 12.0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A page on which somebody who writes no code makes a classifier."""
    check_extra()
    if runs is not None and not user_path(runs).is_dir():
        raise UserError(f"{runs}: no folder of runs")
    with bound(host, port) as door:
        door.listen()
        from rmadapter.backbones.choice import first_of
        from rmadapter.deploy.app.jobs import Jobs
        from rmadapter.deploy.app.session import Shared
        from rmadapter.deploy.app.site import build
        from rmadapter.machine import find_device

        chosen = first_of(backbone).to(find_device("auto"))
        site = build(Shared(chosen, Jobs(), runs and user_path(runs)), keep_hours, {host, socket.gethostname()})
        where = f"{address(door)}/"
        if not is_loopback(host):
            note(f"anybody who reaches {where} can use this page, this machine's time and its disk: there is no login")
        print(json.dumps({"address": where}) if as_json else f"{where} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(where)
        serve(site, door)


def check_extra() -> None:
    """Raises UserError where the extra is missing."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"app needs {', '.join(missing)}; `pip install 'rmadapter[app]'` brings what is missing")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(site: Starlette, door: socket.socket) -> None:
    """Until somebody ends it; what was written for visitors is then gone."""
    import uvicorn

    settings = uvicorn.Config(site, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
                              timeout_graceful_shutdown=5)  # fmt: skip
    until_ended(settings, door)
