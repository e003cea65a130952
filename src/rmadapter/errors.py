"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

MOST = 100  # known words that a message lists at most


class UserError(ValueError):
    """A mistake in the user's input, described in one sentence that says what to do.

    The command line prints it on stderr and exits with code 2; every other exception is a bug of
    ours.
    """


def mistake(error: Exception) -> str:
    """What the user did wrong, for one line on stderr: a UserError or a mistake in the command
    line; "" if help was printed instead. Raises any other error again: it is a bug."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if not hasattr(
        error, "format_message"
    ):  # Typer's errors have it; their class depends on its version
        raise error
    context: Any = getattr(error, "ctx", None)
    path, text = (
        getattr(context, "command_path", "rmadapter"),
        " ".join(str(error.format_message()).split()),
    )
    wanted = str(getattr(error, "option_name", None) or "").lstrip("-").replace("-", "_")
    takes = [
        name
        for option in getattr(getattr(context, "command", None), "params", ())
        for name in option.opts
    ]
    hint = (
        f"a setting of the method is given as --set {wanted}=VALUE; "
        if wanted and "--set" in takes
        else ""
    )
    text = text.rstrip(".")
    return (
        f"{text[0].lower()}{text[1:]} ({hint}`{path} -h` lists arguments and options)"
        if text
        else ""
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'rank'?` when a known word is close to `word`, else `; known are ...` (the
    first `MOST`)."""
    words = sorted(known)
    close = difflib.get_close_matches(word[:100], words, n=1, cutoff=0.5)
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return (
        f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(words[:MOST])}{more}"
    )


def quoted(value: Any) -> str:
    """A value as messages quote it: a line of at most 80 characters, however large or deep it is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 79
_SHORT.maxlevel = 3  # and six items at each level: large values cost no more


def is_text(value: str) -> bool:
    """Whether tokenizers, files and terminals accept a text: no NUL, and no lone surrogate, as
    Python has in names that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def first_fault(error: Any) -> tuple[str, str]:
    """Place and reason of the first fault that pydantic found, each short."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"][:6])
    return place, str(first["msg"])[:200]
