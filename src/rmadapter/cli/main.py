"""The command line: `rmadapter VERB`. Every slow import waits until its verb runs."""

from __future__ import annotations

import sys
from functools import cache
from typing import Annotated

import typer

from rmadapter.cli import (
    bench,
    curate,
    demo,
    explain,
    export,
    machine,
    predict,
    report,
    runs,
)
from rmadapter.cli.options import Command, Verb, Verbs, expand
from rmadapter.errors import user_message
from rmadapter.support import distributed
from rmadapter.support.escape import escape
from rmadapter.support.files import at_home
from rmadapter.support.stop import end_with_stdin, stoppable
from rmadapter.support.streams import streams

app = typer.Typer(
    cls=Verbs,
    help="Adapt a CLIP-like model with a few images per class without losing what it already "
    "knows.",
    epilog="rmadapter help VERB lists the options of a verb, with examples; rmadapter help all "
    "lists every verb.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The library's own verbs, in the order a new user needs them. The other packages of this wheel add
# theirs as entry points, as any installed package may.
COMMANDS = (
    Command("demo", demo.demo, "Make a model", ("rmadapter demo --out runs/demo",)),
    Command(
        "fit",
        runs.fit,
        "Make a model",
        (
            "rmadapter fit my-images --out runs/first",
            "rmadapter fit photos.csv --label-column species --out runs/species",
            "rmadapter fit my-images --backbone ViT-B-16/openai --out runs/clip",
        ),
    ),
    Command(
        "eval",
        runs.evaluate,
        "Make a model",
        (
            "rmadapter eval runs/first new-images",
            "rmadapter eval runs/first my-images --split heldout --json",
        ),
    ),
    Command(
        "add",
        runs.add,
        "Make a model",
        (
            "rmadapter add runs/first zebra,okapi --out runs/wider",
            "rmadapter add runs/first new-photos --out runs/grown",
        ),
    ),
    Command(
        "compare",
        runs.compare,
        "Make a model",
        ("rmadapter compare runs/first runs/second --data new-images",),
    ),
    Command(
        "suspects",
        curate.suspects,
        "Look at data",
        (
            "rmadapter suspects my-images --out suspects",
            "rmadapter suspects photos.csv --method rmadapter",
        ),
    ),
    Command(
        "data",
        machine.data,
        "Look at data",
        ("rmadapter data", "rmadapter data dtd --root data --download"),
    ),
    Command(
        "predict",
        predict.predict,
        "Use a model",
        (
            "rmadapter predict runs/first photos --top 3",
            "rmadapter predict runs/first photos --out answers.csv",
            "rmadapter predict runs/first photos --sort-into sorted --wrong 10%",
        ),
    ),
    Command(
        "explain",
        explain.explain,
        "Use a model",
        ("rmadapter explain runs/first photos/001.jpg --out why",),
    ),
    Command(
        "export",
        export.export,
        "Use a model",
        (
            "rmadapter export runs/first --out my-model",
            "rmadapter export runs/first --to web",
            "rmadapter export runs/first --precision int8 --data my-images",
        ),
    ),
    Command(
        "push",
        export.push,
        "Use a model",
        (
            "rmadapter push runs/first anna/sea-horses --out look-at-it",
            "rmadapter push runs/first anna/sea-horses --private --licence cc-by-4.0",
        ),
    ),
    Command(
        "bench",
        bench.bench,
        "Research",
        (
            "rmadapter bench few-shot --datasets my-images --methods mma,coop --out few",
            "rmadapter bench base-to-novel --datasets dtd --root data --out results --plan",
            "rmadapter bench few-shot --datasets my-images --methods mma --tune 10 --out t",
        ),
    ),
    Command(
        "report",
        report.report,
        "Research",
        ("rmadapter report results --out report", "rmadapter report runs/first"),
    ),
    Command(
        "methods",
        machine.methods,
        "Research",
        (
            "rmadapter methods",
            "rmadapter methods rmadapter-plus --classes 50",
            "rmadapter methods --json",
        ),
    ),
    Command(
        "backbones",
        machine.backbones,
        "This machine",
        (
            "rmadapter backbones",
            "rmadapter backbones get pocket-3",
            "rmadapter backbones convert clip.pt --architecture ViT-B-32 --out my-clip",
        ),
    ),
    Command(
        "cache",
        machine.cache,
        "This machine",
        ("rmadapter cache", "rmadapter cache unpacked --clear", "rmadapter cache --clear"),
    ),
    Command("doctor", machine.doctor, "This machine", ("rmadapter doctor",)),
)
GROUP = "rmadapter.commands"  # of entry points whose values are `Command`s


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 2."""
    end_with_stdin()
    with streams(sys.argv[1:]), stoppable():
        try:
            words = as_help([*map(at_home, sys.argv[1:])])
            if not {*words[:1]} & {command.name for command in COMMANDS}:
                add_installed()
            code = app(words, prog_name="rmadapter", standalone_mode=False)  # else errors in a box
        except Exception as error:
            text = user_message(error)
            if text:
                distributed.print_error(escape(text))
            code = 2
        sys.exit(code)


def as_help(words: list[str]) -> list[str]:
    """Return `VERB --help` for `help VERB`, `--help` for `help all`, and other words as they
    are."""
    if words == ["help", "all"]:
        return ["--help"]
    return [*words[1:], "--help"] if words[:1] == ["help"] else words


def _version(wanted: bool) -> None:
    if wanted:
        from rmadapter import __version__

        print(f"rmadapter {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    distributed.enter(str(context.invoked_subcommand))


def installed() -> list[Command]:
    """Return the verbs that entry points name."""
    from importlib.metadata import entry_points  # takes long, and most verbs need it not

    return [found.load() for found in entry_points(group=GROUP)]


def add(command: Command) -> None:
    """Add a verb to the command line."""
    epilog = "\n\n".join(("Examples:", *command.examples))  # Typer keeps paragraphs apart
    register = app.command(command.name, cls=Verb, epilog=epilog, rich_help_panel=command.panel)
    register(expand(command.run))


@cache
def add_installed() -> None:
    """Add the verbs that entry points name, once."""
    for command in installed():
        add(command)


for command in COMMANDS:
    add(command)
