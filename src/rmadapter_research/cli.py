"""The verbs `tune`, `reproduce` and `leaderboard`; slow imports wait until they run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter import UserError
from rmadapter.cli import (
    Command,
    Crops,
    ExperimentOptions,
    FileOptions,
    Json,
    MethodName,
    PlanOnly,
    Precision,
    Quiet,
    RayOptions,
    SettingOptions,
    ShotOptions,
    Tolerance,
    comma_list,
    note,
    table,
)

if TYPE_CHECKING:
    from rmadapter_research.reproduce import ReproduceOptions, Verdict
    from rmadapter_research.tune import Tuned

MAX_SHOWN_TRIALS = 10  # in the table of `tune`
DEFAULT_METHOD = "rmadapter"  # of `tune`


def tune(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of class folders, table, or a format in docs/reference/formats.md."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for results; repeat the command to resume.")
    ],
    method: MethodName = "",
    trials: Annotated[
        int, typer.Option(min=2, help="Number of settings to try, the given ones first.")
    ] = 20,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="FIELD[=LOW..HIGH]",
            help="What to try; also FIELD=A,B,C. May be repeated.",
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=2, help="Number of folds; of the shots, to judge each setting by.")
    ] = 4,
    drawing: ShotOptions = ShotOptions(),
    precision: Precision = None,
    ray: RayOptions = RayOptions(),
    crops: Crops = False,
    settings: SettingOptions = SettingOptions(),
    files: FileOptions = FileOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search for better settings of a method on your images.

    Each trial is judged on folds of the training images; no test image is read.
    """
    from rmadapter.runs import Request
    from rmadapter_research.search_space import make_space
    from rmadapter_research.tune import Search, tune as run_tune

    cluster = ray.address if ray.chosen() else None
    name, values = settings.read(method, {**vars(drawing), "precision": precision})
    request = Request.make(values, name or DEFAULT_METHOD, data=str(data))
    ranges = make_space(request.method, request.name, search or ())
    read = {"skip_bad": files.skip_bad, "outside": files.outside, "crops": crops}
    searched = Search(request, values, folds, read)
    tuned = run_tune(searched, ranges, trials, out, ray.jobs, cluster)
    _show_tuned(tuned, [*ranges], out, as_json)


def _show_tuned(tuned: Tuned, names: list[str], out: Path, as_json: bool) -> None:
    from rmadapter_research.tune import BEST, FILE, PICTURE

    best, gain = tuned.best, tuned.gain
    places = {"config": str(out / BEST), "picture": str(out / PICTURE), "trials": str(out / FILE)}
    for trial in tuned.trials:
        if trial.reason:
            note(f"trial {trial.number}: {trial.reason}")
    if as_json:
        facts = {"number": best.number, "params": best.params, "accuracy": best.accuracy}
        points = {"gain": gain and gain[0], "error": gain and gain[1]}
        print(json.dumps({"best": facts, **points, **places}))
        return
    ordered = sorted(
        (trial for trial in tuned.trials if trial.right), key=lambda trial: -(trial.accuracy or 0)
    )
    rows = []
    for trial in ordered[:MAX_SHOWN_TRIALS]:
        number = f"{trial.number}" if trial.number else "0 (as given)"
        values = [_cell(trial.params.get(name)) for name in names]
        rows.append([number, *values, f"{trial.accuracy:.1f}", f"{trial.seconds:.0f}"])
    table(["trial", *names, "accuracy in %", "seconds"], rows)
    print(f"judged by {len(best.right):,} training images in folds; no model read a test image")
    if gain:
        print(f"the best is {gain[0]:.1f} ± {gain[1]:.1f} points ahead of the given settings")
        if gain[0] <= 2 * gain[1]:
            note(
                "that is within two standard errors, so it may be chance alone: no reason to "
                "leave the given settings"
            )
    print("\n".join(f"{what}: {place}" for what, place in places.items()))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class PaperOptions(ExperimentOptions):
    """What to reproduce of the paper, and how."""

    root: Annotated[Path, typer.Option(help="Folder of data sets.")] = field()
    tables: Annotated[str, typer.Option(help="Tables of the paper, by number.")] = "1,2,3,4,5,6"
    backbone: Annotated[
        str, typer.Option(help="Name or folder of the backbone; the paper's by default.")
    ] = "ViT-B-16/openai"

    def chosen(self) -> ReproduceOptions:
        """Return the options as the bench takes them. Raises UserError for impossible ones."""
        from rmadapter_research.reproduce import ReproduceOptions

        task, machine, own = self.configured({"backbone": self.backbone})
        return ReproduceOptions(
            self.root,
            self.out,
            comma_list(self.tables),
            comma_list(self.methods),
            self.seed_numbers(),
            self.per_set,
            self.templates == "dataset",
            task,
            machine,
            own,
        )


def reproduce(
    options: PaperOptions,
    plan: PlanOnly = False,
    tolerance: Tolerance = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the paper's tables and judge each printed figure.

    The verdicts: within the tolerance, off by some points, or not run. Exit code 1 if one is off.
    """
    from rmadapter_research import paper, reproduce as work

    chosen = options.chosen()
    absent = work.missing_data(chosen)
    for key, why in absent.items():
        how = f"`rmadapter data {key} --root {options.root}` says how to get it"
        note(f"{key} is incomplete ({why}); {how}")
    if plan:
        lines = work.outline(work.make_plans(chosen, ()), absent)
        if as_json:
            print(json.dumps([dict(zip(work.OUTLINE, line, strict=True)) for line in lines]))
        else:
            table(work.OUTLINE, [line.row() for line in lines])
            runs = sum(line.runs for line in lines)
            left = runs - sum(line.finished for line in lines)
            print(f"{left} of {runs} runs are left")
        return
    made = work.make_plans(chosen, absent)
    records = work.run_plans(made, options.jobs)
    judged = work.judge(chosen, made, paper.TOLERANCE if tolerance is None else tolerance)
    _show_verdicts(judged, as_json, options.out / work.VERDICTS)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        counts = f"{len(failed)} of {len(records)} runs failed ({failed[0].reason})"
        raise UserError(f"{counts}; the same command retries them")
    if any(row["within"] is False for row in judged):
        raise typer.Exit(1)


def _show_verdicts(judged: Sequence[Verdict], as_json: bool, where: Path) -> None:
    if as_json:
        print(json.dumps(judged))
        return
    kinds = ("within", "off", "some seeds", "not run")
    counts: dict[str, Counter[str]] = {}
    for row in judged:
        verdict = row["verdict"]
        kind = "off" if verdict.startswith("off") else verdict if verdict in kinds else "some seeds"
        counts.setdefault(row["table"], Counter())[kind] += 1
    rows = [[name, *(str(count[kind]) for kind in kinds)] for name, count in counts.items()]
    table(["table", *kinds], rows)
    print(f"{len(judged)} verdicts, one on each printed figure for each of our entries: {where}")


def leaderboard(
    results: Annotated[
        Path, typer.Argument(help="Folder written by `bench`, or a file of records.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page.")],
    as_json: Json = False,
) -> None:
    """Rank all measured methods by track on one page.

    What their papers print stands beside the measured figures.
    """
    from rmadapter_research.leaderboard import write_leaderboard

    written = write_leaderboard(results, out)
    print(json.dumps(written) if as_json else f"leaderboard: {out / 'index.html'}")


TUNE = Command(
    "tune",
    tune,
    "Make a model",
    (
        "rmadapter tune my-images --out tuned --method clip-lora --trials 20",
        "rmadapter tune my-images --out tuned --search rank=8,16,32 --search alpha",
    ),
)
LEADERBOARD = Command(
    "leaderboard", leaderboard, "Research", ("rmadapter leaderboard results --out board",)
)
REPRODUCE = Command(
    "reproduce",
    reproduce,
    "Research",
    (
        "rmadapter reproduce --root data --out results --plan",
        "rmadapter reproduce --root data --out results --tables 1,2",
    ),
)
