"""The verbs that list what can be used and what this machine has; slow imports wait until a verb
runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.backbones.names import PRESETS
from rmadapter.backbones.packaged import OWN_PACKAGES, packaged_names
from rmadapter.backbones.published import READY, licence_of, listed
from rmadapter.cli.options import Json, Sets
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support import cache as kept
from rmadapter.support.files import cache_folder, read_text
from rmadapter.support.machine import find_device, named, processor, versions
from rmadapter.support.terminal import note, table, wrapped

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from rmadapter.backbones import Backbone
    from rmadapter.training.traits import About

FOR_DEVELOPERS = ("dev", "docs", "release")  # extras that no user needs
UNMEASURED = "which --speed measures on this machine, in about a minute"
SHOTS = 16  # per class, for which the parameters of a method are counted


@dataclass(frozen=True)
class Listed:
    """A method in the list.

    Attributes:
        name: Name that `--method` takes.
        title: Name in tables.
        source: Paper, and where the settings are from.
        parameters: Number trained; None where the settings do not fit the backbone.
        inference: Number of those that predictions need, too.
        reason: Why there is no number.
        settings: Settings by flat name.
        uses: What it uses beyond the shots, where that is known.
        about: What it trains and is for, where that is known.
    """

    name: str
    title: str
    source: str
    parameters: int | None
    inference: int | None
    reason: str
    settings: dict[str, object]
    uses: dict[str, object] | None
    about: About | None


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its settings; all of them by default.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Name or folder of the backbone; to count the parameters on.")
    ] = "ViT-B-16/none",
    classes: Annotated[
        int, typer.Option(min=1, help="Number of classes; only a few methods depend on it.")
    ] = 100,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """List the methods: what each trains, costs, and is good for.

    With NAME, also how many parameters it trains and predictions need, and its settings.
    """
    from rmadapter.backbones import load_backbone
    from rmadapter.methods import METHODS, entry_points, load_method
    from rmadapter.settings import parse_overrides

    if sets and not name:
        raise UserError("--set: name the method whose settings these are")
    values = parse_overrides(sets or [])
    if name:
        load_method(name, values)  # refused before the backbone is loaded
    loaded = load_backbone(backbone)
    names = [name] if name else [*METHODS, *entry_points()]
    entries = [_listed(one, loaded, classes, values) for one in names]
    counted = f"on {backbone} with {classes} classes and {SHOTS} shots"
    if as_json:
        print(json.dumps([asdict(one) for one in entries]))
    elif name:
        _show_method(entries[0], counted)
    else:
        _show_methods(entries, counted)


def _listed(name: str, backbone: Backbone, classes: int, values: Mapping[str, object]) -> Listed:
    from rmadapter.methods import load_method
    from rmadapter.methods.uses import uses_of
    from rmadapter.settings import settings_of

    method = load_method(name, values)
    trained, inference, reason = None, None, ""
    try:
        counted = method.parameters(backbone, classes, SHOTS)
        trained, inference = counted.trained, counted.trained - counted.training_only
    except UserError as error:  # the settings do not fit the backbone
        reason = str(error)
    settings = settings_of(method)
    uses = uses_of(name, settings, method.traits.uses)
    return Listed(
        name,
        method.title,
        method.source,
        trained,
        inference,
        reason,
        settings,
        uses.model_dump() if uses else None,
        method.traits.about,
    )


def _show_methods(entries: Sequence[Listed], counted: str) -> None:
    """Print all methods in tables by cost."""
    from rmadapter.training.traits import COSTS

    headings = [*COSTS.items(), (None, "From installed packages that do not say more")]
    header = ["method", "numbers", "what it trains; what it is for", "new"]
    for cost, heading in headings:
        rows = []
        for one in entries:
            if (one.about.cost if one.about else None) == cost:
                trained = "-" if one.parameters is None else _short(one.parameters)
                rows.append([one.name, trained, *_about(one.title, one.about)])
        if rows:
            print(f"\n{heading}:")
            table(header, rows, max_columns=80)
    print(f"\nnumbers: trained parameters {counted}.")
    print("new: whether a model can be asked about classes that it was not trained on.")
    print("The source, settings and costs of one: rmadapter methods NAME")


def _show_method(method: Listed, counted: str) -> None:
    """Print a method's paper, costs and settings."""
    from rmadapter.methods import load_method
    from rmadapter.methods.citation import bibtex
    from rmadapter.methods.uses import uses_of
    from rmadapter.settings import documentation
    from rmadapter.training.traits import COSTS, READS

    trains, new = _about("", method.about)
    known = load_method(method.name)
    uses = uses_of(method.name, method.settings, known.traits.uses)
    facts = {
        "what it does": trains,
        "cost": COSTS[method.about.cost] if method.about else "",
        "what it reads": READS[known.traits.reads],
        "trained parameters": method.reason,
        "new classes": new,
        "track": uses.track if uses else "",
        "what it uses": uses.words if uses else "",
    }
    if method.parameters is not None:
        facts["trained parameters"] = f"{method.parameters:,} {counted}"
        facts["of these, predictions need"] = f"{method.inference:,}"
    print(wrapped(f"{method.name}: {method.title}, {method.source}"))
    table(
        ["what", method.name],
        [[what, text] for what, text in facts.items() if text],
        max_columns=80,
    )
    meaning = documentation(known)
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value), meaning.get(name, "")]
        for name, value in method.settings.items()
    ]
    if rows:
        header = ["setting", "value", "meaning"] if meaning else ["setting", "value"]
        table(header, [row[: len(header)] for row in rows], max_columns=80)
    entry = bibtex(method.name, method.title, method.source)
    if entry:
        print(f"\n{entry}", end="")


def _about(title: str, about: About | None) -> tuple[str, str]:
    if about is None:
        return title, ""
    trains = f"{about.trains[0].upper()}{about.trains[1:]}."
    prefer = f" For {about.prefer}." if about.prefer else ""
    return trains + prefer, "yes" if about.new_classes else "no"


def _short(count: int) -> str:
    """Return a number in at most five characters."""
    if count < 1000:
        return str(count)
    if count < 1_000_000:
        return f"{count / 1000:.3g} k"
    return f"{count / 1_000_000:.3g} M"


def data(
    name: Annotated[
        str | None, typer.Argument(help="One data set; all of them by default.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of data sets.")] = Path("data"),
    status: Annotated[
        bool, typer.Option("--status", help="Report what is there below --root.")
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Download NAME.")] = False,
    as_json: Json = False,
) -> None:
    """List public data sets and how to get each.

    Shows licences and sizes; with NAME or --status, whether the files are complete.
    """
    from rmadapter.data.catalog import sets as catalog

    if download and not name:
        raise UserError("--download needs the name of one data set")
    if status and not root.is_dir():
        raise UserError(f"{root}: no such folder")
    chosen = [catalog.get(name)] if name else [*catalog.CATALOG.values()]
    if name and not as_json:
        print(wrapped(catalog.describe(chosen[0], root)), end="\n\n")
    if download:
        catalog.download(chosen[0], root)
    if name or status:
        states = [asdict(catalog.check(dataset, root)) for dataset in chosen]
        _show_facts(states, ["name", "status", "missing", "how"], as_json)
    else:
        facts = [dataset.model_dump() for dataset in chosen]
        _show_facts(facts, ["key", "group", "classes", "licence"], as_json)


def _show_facts(
    facts: Sequence[Mapping[str, object]], columns: Sequence[str], as_json: bool
) -> None:
    """Print facts as JSON, or some of them as a table."""
    if as_json:
        print(json.dumps(facts))
        return
    rows = []
    for one in facts:
        cells = [one[column] for column in columns]
        rows.append(["\n".join(cell) if isinstance(cell, tuple) else str(cell) for cell in cells])
    table(columns, rows)


def backbones(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="get NAME or convert FILE",
            help="Download one now, or make one of a checkpoint that torch.save wrote.",
        ),
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="convert: of open_clip, as ViT-B-16 or ViT-B-16-quickgelu.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="convert: new folder, to open with --backbone FOLDER."),
    ] = None,
    digest: Annotated[
        str, typer.Option(help="convert: SHA-256 that the file must have, in hex.")
    ] = "",
    speed: Annotated[
        bool,
        typer.Option("--speed", help="Measure the speed of the listed ones; takes about a minute."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Also list others that can be downloaded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List backbones for laptop, accuracy and phone, and those here.

    The licences of the three allow commercial use; `--backbone laptop` takes one. Most models of
    open_clip can be named, too. `convert` runs no code that a checkpoint asks for.
    """
    action = words[0] if words else ""
    if words and (len(words) != 2 or action not in ("get", "convert")):
        raise UserError(
            f"{' '.join(words)[:100]!r}: write `rmadapter backbones get NAME` or `rmadapter "
            "backbones convert FILE`, as in get pocket-3"
        )
    if action != "convert" and (architecture or out or digest):
        raise UserError("--architecture, --out and --digest are options of `backbones convert`")
    if words and action == "get":
        _get_backbone(words[1], as_json)
    elif words:
        if not architecture or out is None:
            raise UserError("`backbones convert` needs --architecture and --out")
        _convert_checkpoint(Path(words[1]), architecture, out, digest, as_json)
    else:
        _list_backbones(speed, every, as_json)


def _get_backbone(name: str, as_json: bool) -> None:
    from rmadapter.backbones import load_backbone

    loaded = load_backbone(name)
    facts = {"name": loaded.name, "digest": loaded.digest}
    print(json.dumps(facts) if as_json else f"{loaded.name} is ready")


def _convert_checkpoint(
    file: Path, architecture: str, out: Path, digest: str, as_json: bool
) -> None:
    from rmadapter.backbones.convert import convert

    done = convert(file, architecture, out, digest)
    if as_json:
        print(json.dumps(done))
        return
    if done["left_out"]:
        note(f"left out, not weights: {', '.join(done['left_out'][:5])}")
    print(f"{out} is ready: --backbone {out}; made from the file with SHA-256 {done['sha256']}")


def _list_backbones(speed: bool, every: bool, as_json: bool) -> None:
    from rmadapter.backbones.speed import BATCH_SIZE, SPEED_FIELDS, measured

    device = find_device("auto")
    presets = {name: preset for preset, name in PRESETS.items()}
    shown = [row for row in listed() if every or row["name"] in presets or row["state"] == READY]
    found = sorted(shown, key=lambda row: row["name"] not in presets)
    if speed:
        found = measured(found, device)
    if as_json:
        print(json.dumps(found))
        return
    header = ["--backbone", "state", "commercial", "s per 1,000", "about"]
    cells = []
    for row in found:
        name = f"{presets[row['name']]} ({row['name']})" if row["name"] in presets else row["name"]
        state = row["state"] if row["mb"] is None else f"{row['state']}, {row['mb']} MB"
        rate, memory = (row.get(key) for key in SPEED_FIELDS)
        seconds = f"{1000 / rate:,.0f}" if rate else "-"
        about = row["about"] if memory is None else f"{row['about']}; {memory} MB in memory"
        cells.append([name, state, row["commercial"], seconds, about])
    table(header, cells)
    how = f"encoded in batches of {BATCH_SIZE} on {named(device)}"
    print("commercial: whether the licence of the weights allows commercial use.")
    print(wrapped(f"s per 1,000: seconds per 1,000 images, {how if speed else UNMEASURED}."))
    print("To use one: rmadapter fit IMAGES --backbone laptop")


def cache(
    kind: Annotated[
        str | None, typer.Argument(help="One kind of the list; all kinds by default.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of it without asking.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what rmadapter keeps on this disk, or clear it.

    Everything shown can be made again. What another process is writing is kept. With KIND
    activations, a row for each data set and encoder is shown.
    """
    from rmadapter.training.disk_cache import Store, place

    if kind is not None and kind not in kept.KINDS:
        raise UserError(f"{kind!r} is no kind of the cache{did_you_mean(kind, kept.KINDS)}")
    kinds = [kind] if kind else [*kept.KINDS]
    before = sum(kept.usage(name).bytes for name in kinds)
    for name in kinds if clear else ():
        if name == "activations":
            Store(place()).clear()
            continue
        for path in kept.clear(name):
            note(f"{path}: kept, because another process is using it")
    rows = [kept.usage(name) for name in kinds]
    total = sum(row.bytes for row in rows)
    contents = Store(place()).contents() if "activations" in kinds else []
    if as_json:
        removed_mb = (before - total) / 1e6
        facts = {"folder": str(cache_folder()), "mb": total / 1e6, "removed_mb": removed_mb}
        listed = []
        for row in rows:
            size = {"files": row.files, "mb": row.bytes / 1e6, "used": row.used}
            listed.append({"kind": row.kind, "about": row.about, **size})
        print(json.dumps({**facts, "contents": contents, "kinds": listed}))
        return
    if kind == "activations":
        cells = [
            [one["what"], f"{one['images']:,}", f"{one['mb']:,.1f}", _day(one["used"])]
            for one in contents
        ]
        header = ["activations", "images", "MB", "last used"]
    else:
        cells = [
            [row.kind, row.about, f"{row.bytes / 1e6:,.1f}", _day(row.used)]
            for row in rows
            if row.files
        ]
        header = ["kind", "what it holds", "MB", "last used"]
    if cells:
        table(header, cells)
    removed = f"; {(before - total) / 1e6:,.1f} MB removed" if clear else ""
    print(f"{cache_folder()}: {total / 1e6:,.1f} MB{removed}")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def doctor(as_json: Json = False) -> None:
    """Show what this machine and installation can do."""
    facts = diagnose()
    if as_json:
        print(json.dumps(facts))
    else:
        table(["what", "found"], [[name, str(value)] for name, value in facts.items()])


def diagnose() -> dict[str, object]:
    """Return versions, devices, threads, optional parts and caches by name; for each backbone on
    this disk the licence and the files that would run code."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **versions(),
        "cpu": processor(),
        "cpu threads": torch.get_num_threads(),
        "cpu count": os.cpu_count(),
        "gpu": ", ".join(gpus) or "none",
        "bf16 on cpu": getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)(),
        **{f"extra {name}": state for name, state in _extras().items()},
        **_backbones(),
    }


def _extras() -> dict[str, str]:
    """Return "installed", or the command that installs it, for each extra for users."""
    from importlib import metadata

    from packaging.requirements import Requirement

    needs = [Requirement(line) for line in metadata.requires("rmadapter") or ()]

    def own(extra: str) -> list[Requirement]:
        return [
            one
            for one in needs
            if one.marker
            and one.marker.evaluate({"extra": extra})
            and not one.marker.evaluate({"extra": ""})
        ]

    def there(extra: str) -> bool:
        return all(
            all(map(there, one.extras)) if one.name == "rmadapter" else _has(one)
            for one in own(extra)
        )

    def state(name: str) -> str:
        if not own(name):
            return "for other versions of Python"
        return "installed" if there(name) else f"pip install 'rmadapter[{name}]'"

    names = metadata.metadata("rmadapter").get_all("Provides-Extra") or ()
    return {name: state(name) for name in sorted(names) if name not in FOR_DEVELOPERS}


def _has(need: Requirement) -> bool:
    """Return whether a required package is installed in a version that will do."""
    from importlib import metadata

    try:
        return need.specifier.contains(metadata.version(need.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _backbones() -> dict[str, str]:
    from rmadapter.backbones.trust import findings

    facts: dict[str, str] = {}
    licences: dict[str, list[str]] = {}  # names by licence: our own have the same
    refused: list[str] = []
    packages = packaged_names()
    for one in listed():
        name, folder = one["name"], Path(one["folder"])
        own = name in packages
        if name in OWN_PACKAGES or own:
            facts[name] = one["state"] if one["mb"] is None else one["folder"]
        if own or one["mb"] is not None:
            licences.setdefault(licence_of(name) if own else _licence(folder), []).append(name)
        if one["mb"] is None:
            continue
        places = [folder] if own else sorted(folder.glob("snapshots/*"))
        refused += [finding for place in places for finding in findings(place)]
    code = f"refused: {'; '.join(refused)}" if refused else "none"
    facts |= {f"licence of {', '.join(names)}": text for text, names in licences.items()}
    others = f"{', '.join(PRESETS)}: see `rmadapter backbones`"
    return {**facts, "backbones from the hub": others, "files that would run code": code}


def _licence(repository: Path) -> str:
    """Return where to read a licence, and what the model card in the hub's cache says, if any."""
    owner_and_name = repository.name.removeprefix("models--").replace("--", "/")
    where = f"its publisher's; read it at https://huggingface.co/{owner_and_name}"
    for card in sorted(repository.glob("snapshots/*/README.md")):
        with suppress(UserError):
            line = re.search(r"^license: *(\S.*)$", read_text(card, errors="replace"), re.M)
            if line:
                return f"{where} (its card here says {line[1].strip()[:80]})"
    return where
