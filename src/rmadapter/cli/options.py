"""Options that several commands share, and classes of options that a command takes as one
argument."""

from __future__ import annotations

import copy
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.models import ArgumentInfo, OptionInfo

from rmadapter.errors import UserError
from rmadapter.support.terminal import set_quiet

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from rmadapter.artifacts.checkpoint import Saved
    from rmadapter.data.formats.registry import Located
    from rmadapter.data.image_set import ImageSet
    from rmadapter.settings import Machine
    from rmadapter.task import Task

# panels of the help, for options that few people need
READING = "Options: reading images and labels"
TRAINING = "Options: training"

Run = Annotated[Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=set_quiet, help="Hide progress and notes, but not errors."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Print the tables of the report in place of sentences.")
]
MethodName = Annotated[
    str,
    typer.Option("--method", help="Name from `rmadapter methods`, package:Class or file.py:Class."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder for the run, by default runs/NAME-1, ...; name a stopped run to resume it.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any setting; for example rank=8.",
        rich_help_panel=TRAINING,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of settings, such as a run's config.yaml.",
        rich_help_panel=TRAINING,
    ),
]
Half = Annotated[
    str | None,
    typer.Option(
        "--half",
        metavar="all | base | novel",
        help="Classes: all (the default), base (the first half) or novel (the second).",
        rich_help_panel=TRAINING,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Name or folder of the backbone; pocket-3 by default, in bench pocket; "
        "laptop, accuracy, phone, ViT-B-16/openai, hf-hub:..., timm:...; A,B: in fit the better on "
        "your images (auto: of all on this disk), else B if A is unavailable.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto (the default), cpu, cuda or cuda:N.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32 | bf16 | fp16 | auto",
        help="Number format of training; by default fp32, on a GPU auto: the fastest.",
        rich_help_panel=TRAINING,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option("--shots", help="Images per class to train on; 0: all, as `fit` does; else 16."),
]
Draw = Annotated[
    str | None,
    typer.Option(
        "--draw",
        metavar="balanced | natural",
        help="As many shots of each class (the default), or by the data's own frequencies.",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed for everything random; 1 by default.")
]
RunData = Annotated[
    Path | None, typer.Option("--run-data", help="Where the run's own images are now.")
]
ImageColumn = Annotated[
    str,
    typer.Option(
        help="Table column of paths; by default path, image, file, filename, ...",
        rich_help_panel=READING,
    ),
]
Crops = Annotated[
    bool,
    typer.Option(
        "--crops",
        help="COCO, YOLO, Label Studio, FiftyOne: use the boxes as images.",
        rich_help_panel=READING,
    ),
]
Outside = Annotated[
    bool,
    typer.Option(
        "--allow-outside",
        help="Read listed files even outside the data's folder.",
        rich_help_panel=READING,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Skip unreadable images and report them.", rich_help_panel=READING
    ),
]
Tolerance = Annotated[
    float | None, typer.Option(help="Points by which a figure may be off; 1 by default.")
]
PlanOnly = Annotated[
    bool,
    typer.Option("--plan", help="Show what would run, without running it."),
]
OnRay = Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster; needs the extra `ray`.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Number of processes, or of workers with --ray.")
]
Address = Annotated[
    str, typer.Option(help="HOST:PORT of a Ray cluster, or auto; by default one is started here.")
]


@dataclass(frozen=True)
class Columns:
    """Columns of a table of images."""

    image_column: ImageColumn = ""
    label_column: Annotated[
        str,
        typer.Option(
            help="Table column of classes; by default label, class or category.",
            rich_help_panel=READING,
        ),
    ] = ""
    split_column: Annotated[
        str,
        typer.Option(
            help="Table column of train, val or test; by default split or subset. none: one set.",
            rich_help_panel=READING,
        ),
    ] = ""
    group_column: Annotated[
        str,
        typer.Option(
            help="Table column of groups, such as patients; by default group.",
            rich_help_panel=READING,
        ),
    ] = ""

    def named(self) -> dict[str, str]:
        """Return the columns that the user named, as `read_images` takes them."""
        kinds = ("image", "label", "split", "group")
        named = {kind: getattr(self, f"{kind}_column") for kind in kinds}
        return {kind: name for kind, name in named.items() if name}


@dataclass(frozen=True)
class DataOptions(Columns):
    """Where a data set's labels and images are."""

    crops: Crops = False


@dataclass(frozen=True)
class FileOptions:
    """Which files of a data set are read."""

    skip_bad: SkipBad = False
    outside: Outside = False

    def locate(
        self, data: Path, columns: Columns, crops: bool = False, one_class: bool = False
    ) -> Located:
        """Find the format of a data set.

        Args:
            data: Its file or folder.
            columns: Columns of a table.
            crops: Whether to read boxes.
            one_class: Whether a folder of images without class folders is one class.

        Raises:
            UserError: What can be seen without a search for images.
        """
        from rmadapter.data.formats.class_folders import FORMAT, ONE_CLASS
        from rmadapter.data.formats.registry import locate

        found = locate(data, columns.named(), crops, self.outside)
        if one_class and found.format is FORMAT and ONE_CLASS.detects(found.path):
            return replace(found, format=ONE_CLASS)
        return found.check()

    def read(
        self, data: Located, names: Mapping[str, str] | None = None, check: bool | None = None
    ) -> dict[str, ImageSet]:
        """Read the splits of a data set.

        Args:
            data: The data set.
            names, check: As for `read_images`.
        """
        from rmadapter.data.read import read_images

        return read_images(data, skip_bad=self.skip_bad, check=check, names=names)


@dataclass(frozen=True)
class SavedOptions:
    """What a run may load beyond its own folder."""

    code: Annotated[
        str,
        typer.Option(help="The run's method, if it is your own: package:Class or file.py:Class."),
    ] = ""
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="Name or folder of the backbone; needed if the run's is a folder or a repository.",
        ),
    ] = None

    def check(self, *runs: str | Path) -> None:
        """Raise UserError, before anything slow, for a run or a backbone that cannot exist."""
        from rmadapter.cli.checks import check_backbones, check_runs

        check_runs(*runs)
        check_backbones(self.backbone)

    def load_on(self, run: Path, device: str) -> Saved:
        """Load the run on a device."""
        from rmadapter.backbones.importing import import_for_command

        import_for_command()
        from rmadapter.artifacts.checkpoint import load

        return load(run, self.backbone, method=self.code, device=device)


@dataclass(frozen=True)
class RunOptions(SavedOptions):
    """What a run may load beyond its own folder, and the device that it works on."""

    device: Device = None

    def load(self, run: Path) -> Saved:
        """Load the run."""
        return self.load_on(run, self.device or "auto")


@dataclass(frozen=True)
class SettingOptions:
    """Settings from a file and from the command line."""

    config: Config = None
    sets: Sets = None

    def read(self, method: str, flags: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        """Return the method and the values of settings: those of the file, overridden by other
        options, which --set overrides.

        Args:
            method: Method that an option names; "" for that of the file.
            flags: Values of other options; None for one that was not given.
        """
        from rmadapter.runs.request import read_config
        from rmadapter.settings import parse_overrides

        named, values = read_config(self.config, (method,))
        given = {name: value for name, value in flags.items() if value is not None}
        return method or named, {**values, **given, **parse_overrides(self.sets or [])}


@dataclass(frozen=True)
class ShotOptions:
    """Which shots are drawn, and the backbone that sees them."""

    backbone: Backbone = None
    shots: Shots = None
    seed: Seed = None
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What the experiments of the bench and of the paper have in common."""

    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for results; repeat the command to resume.")
    ]
    methods: Annotated[
        str, typer.Option(help="Names from `rmadapter methods`, package:Class or file.py:Class.")
    ] = ""
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds of draw, initialisation and batches.")
    ] = "1,2,3"
    root: Annotated[Path, typer.Option(help="Folder of data sets.")] = Path()
    templates: Annotated[
        str,
        typer.Option(
            help='"dataset" for that of the set trained on, or one prompt template with {}.',
        ),
    ] = ""
    per_set: Annotated[
        bool,
        typer.Option("--per-set", help="Also run with the authors' constants for each data set."),
    ] = False
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]FIELD=VALUE",
            help="Any setting; of one method, or common to all.",
        ),
    ] = None
    device: Device = None
    precision: Precision = None
    jobs: Jobs = 1

    def seed_numbers(self) -> list[int]:
        """Return the seeds."""
        return numbers("seeds", self.seeds)

    def configured(
        self, values: Mapping[str, object]
    ) -> tuple[Task, Machine, dict[str, dict[str, object]]]:
        """Return what these options make of values of settings: what is common to all tasks, the
        machine, and {method: {setting: value}}."""
        from rmadapter.bench.plan import configure

        flags = {"device": self.device, "precision": self.precision}
        given = {name: value for name, value in flags.items() if value is not None}
        return configure({**values, **given}, self.templates, self.sets)


@dataclass(frozen=True)
class RayOptions:
    """Where the work is done."""

    jobs: Jobs = 1
    on_ray: OnRay = False
    address: Address = ""

    def chosen(self) -> bool:
        """Return whether a Ray cluster does the work. Raises UserError for options that need
        one."""
        return is_ray(self.on_ray, self.address, self.jobs)


def is_ray(wanted: bool, address: str = "", workers: int = 1) -> bool:
    """Return whether a Ray cluster is wanted. Raises UserError for an address or workers without
    it."""
    if address and not wanted:
        raise UserError("--address needs --ray")
    if workers > 1 and not wanted:
        raise UserError("--jobs needs --ray")
    return wanted


def comma_list(text: str) -> list[str]:
    """Return the parts of a list with commas, without empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def share(text: str | float) -> float:
    """Parse a share such as 5% or 0.05. Raises typer.BadParameter for others."""
    from rmadapter.answers.sets import parse_share  # takes NumPy, which --help needs not

    try:
        return parse_share(str(text))
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


def numbers(name: str, text: str) -> list[int]:
    """Return the numbers of a list with commas. Raises UserError, naming the option, for others."""
    try:
        return [int(part) for part in comma_list(text)]
    except ValueError:
        raise UserError(f"--{name} {text}: write whole numbers, such as 1,2,3") from None


def command() -> str:
    """Return the running command, quoted for a shell."""
    return shlex.join(["rmadapter", *sys.argv[1:]])


class Command(NamedTuple):
    """A verb of the command line, as the entry points of `rmadapter.commands` name it.

    Attributes:
        name: What the user types.
        run: Function whose parameters are the verb's options.
        panel: Group of verbs in which `--help` lists it.
        examples: Working commands to begin with, below the options in the verb's own `--help`.
    """

    name: str
    run: Callable[..., None]
    panel: str
    examples: tuple[str, ...]


# What --help shows as the value of an option.
VALUES = ((int, "<int>"), (float, "<number>"), (Path, "<path>"), (str, "<text>"))


class Verb(TyperCommand):
    """A command whose usage line names arguments as most programs do: RUN IMAGES..."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the parts of the usage line."""
        arguments = [one for one in self.params if one.param_type_name == "argument"]
        names = [f"{one.metavar}" if one.required else f"[{one.metavar}]" for one in arguments]
        return ["[OPTIONS]", *names]

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the words. Raises UserError for an option that has another name now."""
        for word in args:
            name = word.partition("=")[0]
            if name in MOVED_OPTIONS:
                raise UserError(f"{name}: write {MOVED_OPTIONS[name]}")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: typer.Context) -> list[TyperOption]:  # type: ignore[override]
        """Return arguments and options, --help among them."""
        return _switches(cast("list[TyperOption]", super().get_params(ctx)))


# What most people need, and `--help` lists; `help all` lists the others, too.
FIRST_VERBS = (
    "fit",
    "eval",
    "add",
    "app",
    "suspects",
    "predict",
    "explain",
    "export",
    "serve",
    "bench",
)
# Verbs and options of earlier versions, and what does the same now.
MOVED_OPTIONS = {"--unsure": "--wrong 10% where 90 % of the sure answers are to be right"}
MOVED_VERBS = {
    "plan": "bench ... --plan",
    "params": "methods NAME",
    "convert": "backbones convert FILE",
}


class Verbs(TyperGroup):
    """The group of all commands."""

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Verb | None:  # type: ignore[override]
        """Return a command, or None if there is none of this name. Raises UserError for one that
        has moved."""
        if cmd_name in MOVED_VERBS:
            raise UserError(f"{cmd_name}: write `rmadapter {MOVED_VERBS[cmd_name]}`")
        return cast("Verb | None", super().get_command(ctx, cmd_name))

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the verbs that `--help` lists: the first ones, or all after `help all`; all for a
        shell that completes."""
        names: list[str] = super().list_commands(ctx)
        if ctx.resilient_parsing or sys.argv[1:] == ["help", "all"]:
            return names
        return [name for name in names if name in FIRST_VERBS]

    def get_params(self, ctx: typer.Context) -> list[TyperOption]:  # type: ignore[override]
        """Return the options, those of Typer among them."""
        return _switches(cast("list[TyperOption]", super().get_params(ctx)))


def _switches(params: list[TyperOption]) -> list[TyperOption]:
    """Return the parameters, of which switches show no value."""
    for one in params:
        if getattr(one, "is_flag", False):  # an argument has none
            one.metavar = ""
    return params


def _shown(name: str, annotation: object) -> object:
    """Return the annotation of an option or an argument with what --help shows for its value,
    unless it says so itself."""
    args = get_args(annotation)
    if not args:
        return annotation
    kind, info = args[0], copy.copy(args[1])
    kinds = {kind, *get_args(kind)}  # X, None of X | None
    several = list[str] in kinds
    if several:
        kinds.add(str)
    if info.metavar is None and isinstance(info, ArgumentInfo):
        info.metavar = name.upper() + "..." * several
    elif info.metavar is None and isinstance(info, OptionInfo):
        info.metavar = next((text for one, text in VALUES if one in kinds), None)
    return Annotated[kind, info]


def expand(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a function for Typer that calls `verb`.

    In its signature, the fields of each parameter that is a dataclass stand in that parameter's
    place.
    """
    # get_type_hints would put these into Optional[] where None is the default, until Python 3.11
    taken = inspect.signature(verb, eval_str=True).parameters
    hints = {name: parameter.annotation for name, parameter in taken.items()}
    groups: dict[str, type[DataclassInstance]] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }

    def run(**values: object) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        verb(**values)

    options: dict[str, tuple[object, object]] = {}  # annotation and default by name
    for name, parameter in taken.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            options |= {one.name: (types[one.name], one.default) for one in fields(groups[name])}
        else:
            options[name] = (hints[name], parameter.default)
    options = {
        name: (_shown(name, annotation), default) for name, (annotation, default) in options.items()
    }
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=annotation,
        )
        for name, (annotation, default) in options.items()
    ]
    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    run.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
