"""Check the arguments of a command before torch or a model is loaded and images are opened, so that
a mistake costs no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmadapter.artifacts.run_folder import check_model, is_remote
from rmadapter.backbones.names import AUTO, check_name, names_in
from rmadapter.data.formats.base import URL
from rmadapter.errors import UserError
from rmadapter.settings import parse_overrides, read_yaml
from rmadapter.support.distributed import launched
from rmadapter.support.files import user_path
from rmadapter.support.terminal import note


def check_runs(*runs: str | Path) -> None:
    """Raise UserError for a web address and for a folder without a model; a run on the hub is
    looked up later."""
    for run in runs:
        if is_remote(run):
            continue
        if URL.match(str(run)):
            raise UserError(
                f"{run}: a web address; name a folder written by `fit`, or a run on the hub as "
                "hf:OWNER/NAME"
            )
        check_model(user_path(run))


def check_folder(out: Path | None) -> None:
    """Raise UserError for a run's folder that is a file, and for none where several processes train
    one model, because each would choose its own."""
    if out is None:
        if launched():
            raise UserError("--out: name the run's folder, which all processes of torchrun share")
    elif user_path(out).is_file():
        raise UserError(f"{out}: cannot be written to: it is a file; choose another --out")


def check_backbones(
    names: str | None,
    sets: Sequence[str] | None = None,
    config: Path | None = None,
    default: str = "",
    choosing: bool = False,
) -> None:
    """Raise UserError for a backbone that cannot exist.

    Args:
        names: Backbones that an option names.
        sets: Settings, which come before the option.
        config: File of settings, which comes after it.
        default: Backbones of the command otherwise.
        choosing: Whether `auto` may stand for some.
    """
    named = parse_overrides([*(sets or ())]).get("backbone") or names
    if named is None and config:
        named = read_yaml(config).get("backbone")
    named = named or default
    for name in names_in(str(named)) if named else ():
        if not (choosing and name == AUTO):
            check_name(name)


def note_caveats(*backbones: str) -> None:
    """Note what small backbones are for."""
    from rmadapter.backbones.published import caveat

    for text in filter(None, map(caveat, backbones)):
        note(text)
