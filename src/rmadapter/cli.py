"""The command line: thin verbs over the library. Every import that costs time waits for its verb."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rmadapter.bench import cli as bench_cli
from rmadapter.errors import UserError

app = typer.Typer(
    help="Adapt a CLIP-like model with a few images per class without losing what it already knows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of the config.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Half = Annotated[str, typer.Option("--classes", help="all, base (first half) or novel (second half).")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images and report them.")]


def main() -> None:
    """Run the command line; a UserError becomes one line on stderr and exit code 2."""
    signal.signal(signal.SIGINT, _stop)  # Typer would swallow a KeyboardInterrupt, or say "Aborted" by its version
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names a terminal cannot show
    try:
        app()
    except UserError as error:
        print("rmadapter:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def _stop(number: int, frame: Any) -> None:
    print("rmadapter: stopped; the same command starts again, and an unfinished `fit` goes on", file=sys.stderr)
    sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from rmadapter import __version__

        print(f"rmadapter {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Folder of class folders, or CSV of path,label[,split].")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; the same command resumes it.")],
    backbone: Annotated[str, typer.Option(help="pocket, ViT-B-16/openai, hf-hub:..., or a local folder.")] = "pocket",
    preset: Annotated[str, typer.Option(help="rmadapter, mma or paper (RMAdapter trained as MMA).")] = "rmadapter",
    shots: Annotated[int, typer.Option(help="Training images per class; 0 takes all.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draw, the initialisation and the batches.")] = 1,
    classes: Half = "all",
    cache_memory: Annotated[float, typer.Option(help="GB of memory for frozen activations; else a file.")] = 4.0,
    sets: Sets = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Adapt a backbone to images; writes the adapter, its record and report.html."""
    from rmadapter.config import Config, parse_overrides
    from rmadapter.data.images import read_images
    from rmadapter.run import fit as run_fit

    flags = {"backbone": backbone, "shots": shots, "seed": seed, "classes": classes, "cache_memory": cache_memory}
    config = Config.make({**flags, **parse_overrides(sets or [])}, preset)
    run = run_fit(read_images(data, skip_bad=skip_bad), config, out, data=data.resolve().name)
    for note in run["notes"]:
        print(f"note: {note}", file=sys.stderr)
    _show_metrics(run["metrics"], as_json)
    if not as_json:
        print(f"report: {out / 'report.html'}")


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    data: Annotated[Path, typer.Argument(help="Folder or CSV of images.")],
    split: Annotated[str, typer.Option(help="Split of the data, or heldout: what fit did not draw.")] = "test",
    classes: Half = "all",
    alpha: Annotated[float | None, typer.Option(help="0 is the untouched model; default is the trained one.")] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Accuracy of a run on a data set, beside the untouched backbone's."""
    from rmadapter.config import Config
    from rmadapter.data.images import read_images
    from rmadapter.run import evaluate_run

    which = Config.make({"classes": classes}).classes
    result = evaluate_run(run, read_images(data, skip_bad=skip_bad), split, which, alpha)
    if as_json:
        print(json.dumps(result.summary()))
    else:
        _show_metrics({result.title: result.summary()}, False)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    classes: Annotated[str | None, typer.Option(help='Other class names, as "cat,dog,zebra".')] = None,
    top: Annotated[int, typer.Option(min=1, help="Answers per image.")] = 5,
    as_json: Json = False,
) -> None:
    """The most probable classes of images."""
    from rmadapter.classifier import RMAdapterClassifier

    classifier = RMAdapterClassifier.load(run)
    if classes is not None:
        classifier.set_classes([name.strip() for name in classes.split(",") if name.strip()])
    table = classifier.predict_proba([str(image) for image in images])
    novelty = classifier.novelty([str(image) for image in images]) if classifier.quantiles_ else [None] * len(images)
    answers: list[dict[str, Any]] = [
        {
            "image": str(image),
            "novelty": None if score is None else round(float(score), 1),
            "classes": [
                {"class": classifier.class_names_[i], "probability": round(float(row[i]), 6)}
                for i in (-row).argsort()[:top]
            ],
        }
        for image, row, score in zip(images, table, novelty, strict=True)
    ]
    if as_json:
        print(json.dumps(answers))
        return
    rows = [
        [answer["image"] if i == 0 else "", guess["class"], f"{100 * guess['probability']:.1f} %"]
        for answer in answers
        for i, guess in enumerate(answer["classes"])
    ]
    _table(["image", "class", "probability"], rows)


@app.command()
def params(
    backbone: Annotated[str, typer.Option(help="Any backbone; only its sizes count.")] = "ViT-B-16/none",
    preset: Annotated[str, typer.Option(help="rmadapter, mma or paper (RMAdapter trained as MMA).")] = "rmadapter",
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Number of trainable parameters, and how many of them inference needs."""
    from rmadapter.backbone import load_backbone
    from rmadapter.config import Config, parse_overrides
    from rmadapter.model import AdaptedCLIP

    config = Config.make({"backbone": backbone, **parse_overrides(sets or [])}, preset)
    counts = AdaptedCLIP(load_backbone(config.backbone), config).adapters.parameter_counts()
    if as_json:
        print(json.dumps(counts))
    else:
        _table(["parameters", "count"], [[name, f"{count:,}"] for name, count in counts.items()])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    as_json: Json = False,
) -> None:
    """Adapt the offline backbone to OpenMoji pictograms, and see what it gains and keeps."""
    from rmadapter.demo import demo as run_demo

    run = run_demo(out, seed)
    _show_metrics(run["metrics"], as_json)
    if not as_json:
        for note in run["notes"]:
            print(note)
        print(f"report: {out / 'report.html'}")


@app.command()
def doctor(
    backbone: Annotated[str | None, typer.Option(help="Say too which lean tricks apply to this backbone.")] = None,
    as_json: Json = False,
) -> None:
    """What this machine and installation can do."""
    from rmadapter.doctor import diagnose

    facts = diagnose(backbone)
    if as_json:
        print(json.dumps(facts))
    else:
        _table(["what", "found"], [[name, str(value)] for name, value in facts.items()])


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="One data set; without it, all of them.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of all data sets.")] = Path("data"),
    check: Annotated[Path | None, typer.Option(help="Say what is there below this folder.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch NAME with torchvision.")] = False,
    as_json: Json = False,
) -> None:
    """The paper's data sets: licence, size, how to get one, and whether what is there is complete."""
    from dataclasses import asdict

    from rmadapter.data import catalog

    chosen = [catalog.get(name)] if name else list(catalog.CATALOG.values())
    place = check or root
    if download and not name:
        raise UserError("--download needs the name of one data set")
    if check and not check.is_dir():
        raise UserError(f"{check}: no such folder")
    if name and not as_json:
        print(catalog.describe(chosen[0], place), end="\n\n")
    if download:
        catalog.download(chosen[0], place)
    if name or check:
        facts = [asdict(catalog.check(dataset, place)) for dataset in chosen]
        columns = ["name", "status", "missing"]
    else:
        facts = [dataset.model_dump() for dataset in chosen]
        columns = ["key", "classes", "size", "licence"]
    if as_json:
        print(json.dumps(facts))
    else:
        rows = [[fact[column] for column in columns] for fact in facts]
        _table(columns, [["\n".join(v) if isinstance(v, tuple) else str(v) for v in row] for row in rows])


for verb in (bench_cli.bench, bench_cli.report, bench_cli.methods):
    app.command()(verb)


def _show_metrics(metrics: dict[str, dict[str, float]], as_json: bool) -> None:
    """One row per evaluated set; percent."""
    if as_json:
        print(json.dumps(metrics))
        return
    rows = []
    for title, m in metrics.items():
        zero, adapted = m["zero_shot_accuracy"], m["accuracy"]
        chance, images = (f"{m['chance']:.1f}", str(int(m["n_images"]))) if "chance" in m else ("", "")
        rows.append(
            [title.replace("_", " "), images, chance, f"{zero:.1f}", f"{adapted:.1f}", f"{adapted - zero:+.1f}"]
        )
    _table(["accuracy in %", "images", "chance", "zero-shot", "adapted", "change"], rows)


def _table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 200  # a pipe has no width: let lines be as long as they are
    console = Console(width=width, markup=False, emoji=False, highlight=False)  # "[a]" or ":b:" may be a name
    console.print(table)
