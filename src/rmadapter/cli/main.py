"""The command line: `rmadapter VERB`. Every slow import waits until its verb runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rmadapter.cli import (
    bench,
    curate,
    demo,
    deploy,
    describe,
    explain,
    machine,
    predict,
    report,
    runs,
)
from rmadapter.cli.options import Verb, Verbs, expand
from rmadapter.errors import user_message
from rmadapter.support import distributed
from rmadapter.support.files import at_home
from rmadapter.support.terminal import end_with_parent, escape, stoppable, streams

app = typer.Typer(
    cls=Verbs,
    help="Adapt a CLIP-like model with a few images per class without losing what it already "
    "knows.",
    epilog="rmadapter help VERB lists the options of a verb, with examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Groups and verbs in the order a new user needs them.
VERBS = {
    "Make a model": (
        demo.demo, runs.fit, runs.evaluate, runs.add, runs.compare, runs.tune, deploy.app,
    ),
    "Look at data": (
        curate.suspects, curate.suggest, curate.labels, describe.describe, machine.data,
    ),
    "Use a model": (predict.predict, explain.explain, deploy.export, deploy.push, deploy.serve),
    "Research": (
        bench.bench, bench.plan, report.report, report.leaderboard, bench.reproduce,
        machine.methods, machine.params,
    ),
    "This machine": (machine.backbones, machine.convert, machine.cache, machine.doctor),
}  # fmt: skip
NAMES = {"evaluate": "eval"}  # of verbs that Python or this package calls otherwise

# Below the options in each verb's --help: working commands to begin with.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("rmadapter demo --out runs/demo",),
    "suspects": (
        "rmadapter suspects my-images --out suspects",
        "rmadapter suspects photos.csv --method rmadapter",
    ),
    "fit": (
        "rmadapter fit my-images --out runs/first",
        "rmadapter fit photos.csv --label-column species --out runs/species",
        "rmadapter fit my-images --backbone ViT-B-16/openai --out runs/clip",
    ),
    "predict": (
        "rmadapter predict runs/first photos --top 3",
        "rmadapter predict runs/first photos --out answers.csv",
        "rmadapter predict runs/first photos --sort-into sorted --unsure 0.9",
    ),
    "eval": (
        "rmadapter eval runs/first new-images",
        "rmadapter eval runs/first my-images --split heldout --json",
    ),
    "add": (
        "rmadapter add runs/first zebra --out runs/wider",
        "rmadapter add runs/first new-photos --out runs/grown",
    ),
    "compare": ("rmadapter compare runs/first runs/second --data new-images",),
    "export": (
        "rmadapter export runs/first --out my-model",
        "rmadapter export runs/first --to web",
        "rmadapter export runs/first --precision int8 --data my-images",
    ),
    "serve": (
        "rmadapter serve runs/first",
        "rmadapter serve my-model birds=runs/second --port 8080",
    ),
    "push": (
        "rmadapter push runs/first anna/sea-horses --out look-at-it",
        "rmadapter push runs/first anna/sea-horses --private --licence cc-by-4.0",
    ),
    "app": (
        "rmadapter app --open",
        "rmadapter app photos --open",
        "rmadapter app --runs runs --backbone ViT-B-16/openai",
    ),
    "explain": ("rmadapter explain runs/first photos/001.jpg --out why",),
    "suggest": (
        "rmadapter suggest runs/first unlabelled --n 20 --out next.csv",
        "rmadapter suggest unlabelled --start --names cat,dog,zebra",
    ),
    "describe": (
        "rmadapter describe my-images --out texts.json",
        "rmadapter describe my-images --out texts.json --answers answers.txt",
        "rmadapter describe my-images --out texts.json --measure",
    ),
    "labels": (
        "rmadapter labels photos",
        "rmadapter labels photos --to coco --out photos/labels.json",
    ),
    "tune": (
        "rmadapter tune my-images --out tuned --method clip-lora --trials 20",
        "rmadapter tune my-images --out tuned --search rank=8,16,32 --search alpha",
    ),
    "bench": (
        "rmadapter bench few-shot --datasets my-images --methods mma,coop --out few",
        "rmadapter bench base-to-novel --datasets dtd --root data --out results",
        "rmadapter bench few-shot --datasets my-images --methods mma --tune 10 --out t",
    ),
    "plan": (
        "rmadapter plan few-shot --datasets my-images --methods mma,coop --out few",
        "rmadapter plan base-to-novel --datasets dtd --root data --out results",
    ),
    "report": ("rmadapter report results --out report", "rmadapter report runs/first"),
    "leaderboard": ("rmadapter leaderboard results --out board",),
    "reproduce": (
        "rmadapter reproduce --root data --out results --plan",
        "rmadapter reproduce --root data --out results --tables 1,2",
    ),
    "methods": (
        "rmadapter methods",
        "rmadapter methods rmadapter-plus",
        "rmadapter methods --json",
    ),
    "params": ("rmadapter params --method mma --classes 50",),
    "data": ("rmadapter data", "rmadapter data dtd --root data --download"),
    "backbones": ("rmadapter backbones", "rmadapter backbones get pocket"),
    "convert": ("rmadapter convert clip.pt --architecture ViT-B-32 --out my-clip",),
    "cache": ("rmadapter cache", "rmadapter cache unpacked --clear", "rmadapter cache --clear"),
    "doctor": ("rmadapter doctor",),
}


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 2."""
    end_with_parent()
    with streams(sys.argv[1:]), stoppable():
        try:
            words = as_help([*map(at_home, sys.argv[1:])])
            code = app(words, prog_name="rmadapter", standalone_mode=False)  # else errors in a box
        except Exception as error:
            text = user_message(error)
            if text:
                distributed.print_error(escape(text))
            code = 2
        sys.exit(code)


def as_help(words: list[str]) -> list[str]:
    """Return `VERB --help` for `help VERB`, and other words as they are."""
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


def epilog(verb: str) -> str:
    """Return the examples as paragraphs, which Typer keeps apart."""
    return "\n\n".join(("Examples:", *EXAMPLES.get(verb, ())))


for panel, verbs in VERBS.items():
    for verb in verbs:
        name = NAMES.get(verb.__name__, verb.__name__)
        app.command(name, cls=Verb, epilog=epilog(name), rich_help_panel=panel)(expand(verb))
