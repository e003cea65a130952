"""Check the arguments of a command before torch or a model is loaded and images are opened, so that
a mistake costs no time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rmadapter.artifacts.run_folder import check_model, is_remote
from rmadapter.backbones.names import (
    AUTO,
    HF_HUB,
    INSTEAD,
    PRESETS,
    check_name,
    names_in,
    needs_hub,
)
from rmadapter.backbones.packaged import POCKET_3
from rmadapter.data.formats.base import URL
from rmadapter.errors import UserError
from rmadapter.settings import parse_overrides, read_yaml
from rmadapter.support.distributed import launched
from rmadapter.support.files import cache_folder, user_path, write_text
from rmadapter.support.hub import check_reachable, hub_errors
from rmadapter.support.terminal import note

ASKED = "asked.txt"  # in the cache's folder, once a user was asked for a backbone


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
    choosing: bool = False,
) -> str:
    """Return the backbones that a command names, "" for none. Raises UserError for one that cannot
    exist.

    Args:
        names: Backbones that an option names.
        sets: Settings, which come before the option.
        config: File of settings, which comes after it.
        choosing: Whether `auto` may stand for some.
    """
    named = parse_overrides([*(sets or ())]).get("backbone") or names
    if named is None and config:
        named = read_yaml(config).get("backbone")
    text = str(named or "")
    known = names_in(text) if text else []
    for name in known:
        if not (choosing and name == AUTO):
            check_name(name)
    if len(known) == 1 and known != [AUTO]:
        _check_hub(known[0], text)
    return text


def _check_hub(name: str, typed: str) -> None:
    """Refuse a model of the hub, as it was typed, if the hub is out of reach and the model, or all
    of them where the repository is unknown here, was never fetched: what else finds that out
    imports torch first. Raises Unreachable."""
    if not needs_hub(name):
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    own = cache / f"models--{name.removeprefix(HF_HUB).replace('/', '--')}"
    if own.is_dir() if name.startswith(HF_HUB) else any(cache.glob("models--*")):
        return
    with hub_errors(name, otherwise=INSTEAD, typed=typed):
        check_reachable()


def ask_for_backbone() -> str | None:
    """Ask on a terminal whether to fetch the backbone for laptops; return its short name if so.

    It is asked once for all, and never in a script or where the hub is out of reach.
    """
    asked = cache_folder() / ASKED
    if launched() or asked.exists() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    import typer

    from rmadapter.backbones.published import PUBLISHED, caveat

    try:
        check_reachable()
    except Exception:  # networks fail in many ways
        return None
    write_text(asked, "whether to fetch a backbone\n")
    name = PRESETS["laptop"]
    known = PUBLISHED[name]
    size = f"{name}, {known.megabytes} MB, licence: {known.licence}"
    question = f"{caveat(POCKET_3)}. Fetch the backbone laptop ({size}), and use it for this run?"
    return "laptop" if typer.confirm(question, default=True, err=True) else None


def note_caveats(*backbones: str) -> None:
    """Note what small backbones are for."""
    from rmadapter.backbones.published import caveat

    for text in filter(None, map(caveat, backbones)):
        note(text)
