"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us, told in one sentence that says what to do.

    The command line prints it on stderr and exits with code 2; every other exception is a bug of ours.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'rank'?` when a known word is close to `word`, else `; known are ...`."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(words)}"
