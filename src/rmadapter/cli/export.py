"""The verbs `export` and `push`; slow imports wait until a verb runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.artifacts.run_folder import find_run, is_remote
from rmadapter.cli.options import (
    Json,
    Outside,
    Quiet,
    Run,
    SavedOptions,
    command,
)
from rmadapter.export import targets
from rmadapter.support.files import user_path
from rmadapter.support.terminal import table

if TYPE_CHECKING:
    from rmadapter.export.folder import ExportFacts


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how."""

    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="onnx | openvino | litert | web",
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

    def what(self) -> targets.ExportOptions:
        """Return what is to be written."""
        return targets.ExportOptions(
            self.to, self.precision, self.force, self.embeddings, self.text
        )

    def folder(self, run: Path, place: Path) -> Path:
        """Return the folder to write, by default beside that of the run.

        Args:
            run: The run as the user named it.
            place: Its folder.
        """
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
    from rmadapter.data.formats.registry import locate

    options.check(run)
    if wanted.data:
        locate(wanted.data).check()
    folder = find_run(run)
    out, what = wanted.folder(run, folder), wanted.what()
    targets.check_options(out, what)
    from rmadapter.export import folder as exporting

    saved = options.load_on(folder, "cpu")
    facts = exporting.export(
        folder, saved, out, what, data=wanted.data, outside=outside, command=command()
    )
    if as_json:
        print(json.dumps({"export": str(out), **facts}))
        return
    _show_parity(facts)
    print(f"export: {out}, {facts['bytes'] / 1e6:.1f} MB in {wanted.precision}")


def _show_parity(facts: ExportFacts) -> None:
    """Print how the exported model compares with the run."""
    from rmadapter.export.parity import DECISIONS, HEADER, Parity

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
    from rmadapter.export.hub import PushOptions, push as push_run

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
