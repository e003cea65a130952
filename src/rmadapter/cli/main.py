"""The command line: `rmadapter VERB`. Every slow import waits until its verb runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rmadapter.cli import bench, curate, deploy, machine, predict, runs
from rmadapter.cli.examples import epilog
from rmadapter.cli.options import expand
from rmadapter.errors import user_message
from rmadapter.support import distributed
from rmadapter.support.files import at_home
from rmadapter.support.terminal import escape, stoppable, streams

app = typer.Typer(
    help="Adapt a CLIP-like model with a few images per class without losing what it already "
    "knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Groups and verbs in the order a new user needs them.
VERBS = {
    "Make a model": (
        runs.demo, runs.fit, runs.evaluate, runs.add, runs.compare, runs.tune, deploy.app,
    ),
    "Look at data": (curate.suspects, curate.suggest, machine.data),
    "Use a model": (predict.predict, predict.explain, deploy.export, deploy.push, deploy.serve),
    "Research": (
        bench.bench, bench.plan, bench.report, bench.leaderboard, bench.reproduce, machine.methods,
        machine.params,
    ),
    "This machine": (machine.backbones, machine.convert, machine.cache, machine.doctor),
}  # fmt: skip
NAMES = {"evaluate": "eval"}  # of verbs that Python or this package calls otherwise


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 2."""
    with streams(sys.argv[1:]), stoppable():
        try:
            words = [*map(at_home, sys.argv[1:])]
            code = app(words, prog_name="rmadapter", standalone_mode=False)  # else errors in a box
        except Exception as error:
            if text := user_message(error):
                distributed.print_error(escape(text))
            code = 2
        sys.exit(code)


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


for panel, verbs in VERBS.items():
    for verb in verbs:
        name = NAMES.get(verb.__name__, verb.__name__)
        app.command(name, epilog=epilog(name), rich_help_panel=panel)(expand(verb))
