"""The command `app`; slow imports wait until it runs."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import re
import signal
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.deploy.sockets import address, bound, until_ended
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import user_path
from rmadapter.support.terminal import Json, Quiet, note

if TYPE_CHECKING:
    from starlette.applications import Starlette

NEEDS = ("starlette", "uvicorn")
HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
ORIGIN = re.compile(rf"https?://{HOST.pattern}(:\d+)?", re.IGNORECASE)


def app(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    backbone: Annotated[
        str, typer.Option(help="As for `fit`; every classifier on the page uses it.")
    ] = "pocket",
    runs: Annotated[
        Path | None, typer.Option(help="Folder of runs that the page may open.")
    ] = None,
    keep_hours: Annotated[
        float,
        typer.Option(
            min=0.01, help="Hours without activity after which a visitor's data is removed."
        ),
    ] = 12.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name by which others open the page; may be repeated."),
    ] = None,
    allow_frame: Annotated[
        list[str] | None,
        typer.Option(
            help="Site that may show the page in a frame, such as https://huggingface.co."
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Serve a page for making a classifier without writing code."""
    check_extra()
    if runs is not None and not user_path(runs).is_dir():
        raise UserError(f"{runs}: not a folder of runs")
    others = checked("--allow-host", allow_host or (), HOST, "anna-photos.hf.space")
    frames = checked("--allow-frame", allow_frame or (), ORIGIN, "https://huggingface.co")
    with bound(host, port) as door:
        door.listen()
        from rmadapter.backbones.choice import first_of
        from rmadapter.deploy.app.jobs import Jobs
        from rmadapter.deploy.app.server import build
        from rmadapter.deploy.app.session import Shared
        from rmadapter.support.machine import find_device

        chosen = first_of(backbone).to(find_device("auto"))
        names = {host, socket.gethostname(), *others}
        site = build(Shared(chosen, Jobs(), runs and user_path(runs)), keep_hours, names, frames)
        where = f"{address(door)}/"
        if others or not is_loopback(host):
            its = " or ".join((where, *others))
            note(
                f"anyone who reaches {its} can use this page, this machine's time and its disk: there is no login"
            )
        print(
            json.dumps({"address": where}) if as_json else f"{where} (Ctrl-C ends it)", flush=True
        )
        if browser:
            webbrowser.open(where)
        serve(site, door)


def check_extra() -> None:
    """Raises UserError if the extra is not installed."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"app needs {', '.join(missing)}; run `pip install 'rmadapter[app]'`")


def checked(
    option: str, words: Sequence[str], form: re.Pattern[str], example: str
) -> Sequence[str]:
    """The words. Raises UserError for one of another form."""
    for word in words:
        if not form.fullmatch(word):
            raise UserError(
                f"{option} {quoted(word)}: write it as {example}, with nothing before or after"
            )
    return words


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(site: Starlette, door: socket.socket) -> None:
    """Serve until stopped; what was written for visitors is then deleted."""
    import uvicorn

    if hasattr(signal, "SIGHUP"):  # of a terminal that is closed
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    settings = uvicorn.Config(site, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
                              timeout_graceful_shutdown=5)  # fmt: skip
    until_ended(settings, door)
