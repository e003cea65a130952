"""Check that a documented command is valid."""

from __future__ import annotations

from functools import cache
from typing import Any

from typer.main import get_command

from rmadapter.bench.plan import common_and_own
from rmadapter.bench.protocols import AXES, PROTOCOLS
from rmadapter.methods import DEFAULT, load_method
from rmadapter.runs.request import Request
from rmadapter.settings import parse_overrides

PLACEHOLDERS = ("NAME", "package:Class", "file.py:Class")


@cache
def parser() -> Any:
    """Return the command line's parser, which takes Typer half a second to make."""
    from rmadapter.cli.main import add_installed, app

    add_installed()
    return get_command(app)


def assert_parses(words: list[str], whole: bool = True) -> None:
    """Check a command by the command line's own parser, then its settings and methods."""
    group = parser()
    if words[0] in {option for parameter in group.params for option in (*parameter.opts, "--help")}:
        return
    verb, *arguments = words
    if verb == "help":
        assert {*arguments} <= {*group.commands, "VERB", "all"}
        return
    assert verb in group.commands, f"no verb {verb}"
    try:
        # a command keeps the names of its help option from its first use
        given = group.commands[verb].make_context(verb, arguments, **group.context_settings).params
    except Exception as error:
        options = {option for parameter in group.commands[verb].params for option in parameter.opts}
        if whole or type(error).__name__ != "MissingParameter":
            raise
        assert {word for word in arguments if word.startswith("--")} <= options
        return
    sets = parse_overrides(given.get("sets") or [])
    named = given.get("method") or ("rmadapter" if verb in ("tune", "eval") else DEFAULT)
    if verb == "methods" and given["name"] not in (None, *PLACEHOLDERS):
        load_method(given["name"], sets)
    elif verb == "bench":
        assert given["protocol"] in PROTOCOLS
        assert {axis for axis in given["axes"].split(",") if axis} <= set(AXES)
        task, machine, own = common_and_own(sets)
        Request.make(task | machine)
        for name in {*filter(None, given["methods"].split(",")), *own} - {*PLACEHOLDERS}:
            load_method(name, own.get(name, {}))
    elif named not in PLACEHOLDERS:
        Request.make(sets, named, given.get("effort") or "normal")
