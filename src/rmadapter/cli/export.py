"""The verbs `export`, `push`, `serve` and `app`; slow imports wait until a verb runs."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.artifacts.run_folder import HUB, find_run, is_remote
from rmadapter.cli.options import (
    Device,
    Json,
    Outside,
    Quiet,
    Run,
    RunOptions,
    SavedOptions,
    command,
)
from rmadapter.deploy.sockets import address, bind, serve_until_stopped
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import user_path
from rmadapter.support.terminal import escape, note, table

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from rmadapter.deploy.export.folder import ExportFacts
    from rmadapter.deploy.serve.model import ServeOptions
    from rmadapter.deploy.serve.server import Access
    from rmadapter.deploy.serve.service import Limits

NEEDED_BY_APP = ("starlette", "uvicorn")
NEEDED_BY_SERVE = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
KEY = "RMADAPTER_API_KEY"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
ORIGIN = re.compile(rf"https?://{HOST.pattern}(:\d+)?", re.IGNORECASE)
Hosts = Annotated[
    list[str] | None,
    typer.Option(help="Host name by which others open the page; may be repeated."),
]
Frames = Annotated[
    list[str] | None,
    typer.Option(help="Site that may show the page in a frame, such as https://huggingface.co."),
]
Engine = Annotated[
    str, typer.Option(metavar="torch | onnx | openvino", help="By default torch, or the export's.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
SEARCHED = ["weights in 8 bits", "MB", "same %", "differs", "images/s", "taken"]  # `int8.search`


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how."""

    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="onnx | openvino | torch | litert | web",
            help="What to write; litert is for phones, web a page.",
        ),
    ] = "onnx"
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32 | fp16 | bf16 | int8",
            help="Number format; int8 for onnx and openvino, bf16 for openvino.",
        ),
    ] = "fp32"
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder; by default RUN-onnx and so on.")
    ] = None
    data: Annotated[
        Path | None, typer.Option("--data", help="Images to compare on; by default the run's own.")
    ] = None
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Output image features, too.")
    ] = False
    text: Annotated[
        bool,
        typer.Option("--text", help="Allow classes to be added by name; outputs features, too."),
    ] = False
    force: Annotated[
        bool, typer.Option("--force", help="Keep a model that differs by more than allowed.")
    ] = False

    def folder(self, run: Path, place: Path) -> Path:
        """Return the folder to write. place: the folder of the run."""
        if self.out:
            return self.out
        # "." has no name of its own
        where = place.resolve() if place.name in ("", "..") else place
        default = Path(run.name) if is_remote(run) else where
        return default.with_name(f"{default.name}-{self.to}")


def export(
    run: Run,
    wanted: ExportOptions = ExportOptions(),
    options: SavedOptions = SavedOptions(),
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a run to a folder that works without rmadapter.

    Its answers are compared with the run's before it is written.
    """
    from rmadapter.cli.checks import check_backbones, check_runs
    from rmadapter.data.formats.registry import check_source
    from rmadapter.deploy.export.targets import check_options

    check_runs(run)
    check_backbones(options.backbone)
    if wanted.data:
        check_source(wanted.data)
    folder = find_run(run)
    out, to, text, embeddings = (
        wanted.folder(run, folder),
        wanted.to,
        wanted.text,
        wanted.embeddings,
    )
    check_options(out, to, wanted.precision, text, embeddings)
    from rmadapter.deploy.export import folder as exporting

    saved = options.load_on(folder, "cpu")
    facts = exporting.export(
        folder, saved, out, wanted.precision, wanted.data, to=to, outside=outside,
        force=wanted.force, command=command(), embeddings=embeddings, text=text,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"export": str(out), **facts}))
        return
    _show_parity(facts)
    print(f"export: {out}, {facts['bytes'] / 1e6:.1f} MB in {wanted.precision}")


def _show_parity(facts: ExportFacts) -> None:
    """Print how the exported model compares with the run."""
    from rmadapter.deploy.export.parity import DECISIONS, HEADER, Parity

    if facts["search"]:
        rows = [
            [*map(str, list(row.values())[:-1]), "*" if row["chosen"] else ""]
            for row in facts["search"]
        ]
        table(SEARCHED, rows)
    parity = Parity(**facts["parity"])
    table(HEADER, [parity.row()])
    if parity.decisions and facts["precision"] != "fp32":
        table(DECISIONS, parity.decision_rows())
    if parity.features is not None:
        print(f"features differ by at most {parity.features:.1e}")
    if parity.added is not None:
        print(f"with a class added by name, probabilities differ by at most {parity.added:.1e}")


def push(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`.")],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME",
            help="Repository on the Hugging Face hub: new, or one that holds a run.",
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for what would be sent; nothing is sent."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store weights in 16 bits.")] = False,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="Include features of the training images, for `predict --unfamiliar`.",
        ),
    ] = False,
    licence: Annotated[
        str, typer.Option(help="Licence of what was trained, as the hub calls it: apache-2.0.")
    ] = "unknown",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Push a run to the Hugging Face hub, with a model card.

    Names of your files stay here. `hf:OWNER/NAME` then works as a run.
    """
    from rmadapter.deploy.hub import PushOptions
    from rmadapter.deploy.hub import push as push_run

    push_options = PushOptions(fp16, examples, licence)
    facts = push_run(user_path(run), repository, push_options, private=private, to=out)
    if as_json:
        print(json.dumps(facts))
        return
    table(["file", "bytes"], [[name, f"{size:,}"] for name, size in facts["files"].items()])
    if out:
        print(f"folder: {out}; nothing was sent")
    else:
        print(f"{facts['url']}: rmadapter predict {facts['load']} IMAGES")


@dataclass(frozen=True)
class LimitOptions:
    """What the server does at most."""

    batch: Annotated[int, typer.Option(min=1, help="Most images sent to a model in one batch.")] = (
        16
    )
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to wait for a batch to fill.")
    ] = 3.0
    queue: Annotated[
        int, typer.Option(min=1, help="Most images waiting for a model; beyond that, status 503.")
    ] = 256
    max_images: Annotated[int, typer.Option(min=1, help="Most images per request.")] = 64
    body: Annotated[float, typer.Option(min=0.001, max=10_000, help="Most MB per request.")] = 32.0
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86_400,
            help="Most seconds for a body to arrive, and for an answer; a request that is "
            "expected to take more than a quarter of them is refused with status 503.",
        ),
    ] = 30.0

    def limits(self, workers: int) -> Limits:
        """Return the limits as the server takes them. workers: processes."""
        from rmadapter.deploy.serve.service import Limits

        return Limits(
            self.batch, self.wait, self.queue, self.max_images, self.body, self.seconds, workers
        )  # fmt: skip


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
    limits: LimitOptions = LimitOptions(),
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes, of one thread per model each (Linux).")
    ] = 1,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may send requests; may be repeated."),
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
    from rmadapter.cli.checks import check_backbones, check_runs
    from rmadapter.deploy.export.engines import ENGINES

    folders = named(runs)
    for folder in folders.values():
        if not any((folder / name).is_file() for name in ENGINES):
            check_runs(folder)
    check_backbones(options.backbone)
    from rmadapter.deploy.serve.model import ServeOptions
    from rmadapter.deploy.serve.server import Access

    if workers > 1:
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
    access = Access(key, cors or (), log, hosts)
    with bind(host, port) as listening:
        _listen(listening, models, limits.limits(workers), access, as_json)


def _listen(
    listening: socket.socket, models: dict[str, ServeOptions], most: Limits, access: Access,
    as_json: bool,
) -> None:  # fmt: skip
    """Open the models and serve them, in as many processes as the limits say."""
    from rmadapter.deploy.serve.model import open_served
    from rmadapter.deploy.serve.server import run
    from rmadapter.deploy.serve.service import Service

    opened = {name: open_served(each) for name, each in models.items()}  # replaced by reloads
    where = address(listening)

    def ready() -> None:
        _announce(where, models, as_json)

    if most.workers == 1:
        service = Service(opened, most)
        opened.clear()
        run(service, models, listening, ready, access)
    else:
        from rmadapter.deploy.serve.workers import run_workers

        run_workers(most.workers, opened, models, most, listening, ready, access)


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
        if not sign and word.startswith(HUB):
            name = name.partition("@")[0]  # without the revision
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


def _announce(where: str, models: dict[str, ServeOptions], as_json: bool) -> None:
    if as_json:
        folders = {name: str(each.folder) for name, each in models.items()}
        print(json.dumps({"address": where, "models": folders}), flush=True)
    else:
        print(escape(f"rmadapter: {', '.join(models)} at {where}"), file=sys.stderr, flush=True)


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
    ] = "pocket",
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
    if folder is not None and not user_path(folder).is_dir():
        raise UserError(f"{folder}: not a folder of images")
    if runs is not None and not user_path(runs).is_dir():
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
        from rmadapter.backbones.choice import first_of
        from rmadapter.curate.project import Project
        from rmadapter.deploy.app.jobs import Jobs
        from rmadapter.deploy.app.server import build
        from rmadapter.deploy.app.shared import Shared
        from rmadapter.support.machine import find_device

        project = None
        if folder:
            project = Project(folder)
            stack.enter_context(project.alone())
        chosen = first_of(backbone).to(find_device(device or "auto"))
        names = {host, socket.gethostname(), *others}
        shared = Shared(chosen, Jobs(), runs and user_path(runs), project)
        site = build(shared, keep_hours, names, frames)
        where = f"{address(listening)}/{'label' if project else ''}"
        if others or not is_loopback(host):
            addresses = " or ".join((where, *others))
            note(
                f"anyone who reaches {addresses} can use this page, this machine's time and its "
                "disk: there is no login"
            )
        line = json.dumps({"address": where}) if as_json else f"{where} (Ctrl-C ends it)"
        print(line, flush=True)
        if browser:
            webbrowser.open(where)
        run_server(site, listening)


def check_extra(verb: str, needed: Sequence[str]) -> None:
    """Raises UserError if the extra of a verb is not installed."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{verb} needs {', '.join(missing)}; run `pip install 'rmadapter[{verb}]'`")


def checked(
    option: str, words: Sequence[str], form: re.Pattern[str], example: str
) -> Sequence[str]:
    """Return the words. Raises UserError for one of another form."""
    for word in words:
        if not form.fullmatch(word):
            raise UserError(f"{option} {quoted(word)}: write it like {example}, and nothing else")
    return words


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_server(site: Starlette, listening: socket.socket) -> None:
    """Serve the page until stopped, and then delete what was written for visitors."""
    import uvicorn

    if hasattr(signal, "SIGHUP"):  # of a terminal that is closed
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    settings = uvicorn.Config(site, log_level="warning", access_log=False, server_header=False,
                              proxy_headers=False,
                              timeout_graceful_shutdown=5)  # fmt: skip
    serve_until_stopped(settings, listening)
