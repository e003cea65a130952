"""Escape what a terminal obeys instead of showing."""

from __future__ import annotations

import re

# Characters that a terminal obeys, or that turn the direction of text; file names may hold them.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Return a text with its control characters escaped as in Python, except for newlines."""
    return CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)
