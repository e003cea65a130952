"""Damage bytes, texts and JSON values reproducibly."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "caf\udce9", "\u202e", "\x1b[31m", "\r\n", "%s%n", "{}", "{0}",
    "../../x", "~", ".", "~nosuchuser/x", "/dev/zero", "/proc/self", "nul", "=HYPERLINK(1)",
    "<script>", "true", "null", "1e308", "-1", "٣", "𝟛", "ﬀ", "e\u0301", "x" * 300, "x" * 100_000,
    "é" * 128, "a/b", "a\\b", "$(id)", "`id`", "&amp;", "\ufeff",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**31, 2**63, 2**64, 10**10, 10**26, 10**400, 1e308, -1e308, 5e-324, 0.5,
    float("nan"), float("inf"),
)  # fmt: skip
DEEP = "\ue000deep"  # stands for lists in lists, which Python itself could not write


def odd_value(rng: random.Random) -> Any:
    """Return a value of any kind and size."""
    kinds = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False, [], {}, [[]], {"": ""})),
        lambda: [odd_value(rng) for _ in range(rng.randrange(4))],
        lambda: {str(rng.choice(TEXTS))[:40]: odd_value(rng) for _ in range(rng.randrange(3))},
        lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 1000, 20_000)),
        lambda: f"{DEEP}{rng.choice((100, 900, 5_000, 100_000))}",
    )
    return rng.choice(kinds)()


def alter(rng: random.Random, value: Any) -> tuple[str, Any]:
    """Change one place of a JSON value; return what was done and the value."""
    value = json.loads(json.dumps(value))
    places = list(places_of(value))
    if not places or rng.random() < 0.03:
        return "whole", odd_value(rng)
    owner, key = rng.choice(places)
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "double", "text"))
    if what == "replace":
        owner[key] = odd_value(rng)
    elif what == "text":
        owner[key] = str(owner[key])
    elif what == "double":
        owner[key] = [owner[key], owner[key]]
    elif isinstance(owner, list):
        owner[key : key + (what == "remove")] = [] if what == "remove" else [odd_value(rng)]
    elif what == "remove":
        del owner[key]
    else:
        owner[rng.choice(("extra", "", "\ud800", "x" * 1000))] = odd_value(rng)
    return f"{what}-{str(key)[:20]}", value


def places_of(value: Any) -> Any:
    """Yield the owner and the key of every value in a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield value, key
        yield from places_of(part)


def to_json(value: Any) -> bytes:
    """Write JSON, with lists as deep as DEEP says."""
    text = json.dumps(value)
    mark = f'"{json.dumps(DEEP)[1:-1]}'  # a list that was made a text has it without the quote
    while mark in text:
        before, _, after = text.partition(mark)
        depth, _, after = after.partition('"')
        text = f"{before}{'[' * int(depth)}{']' * int(depth)}{after}"
    return text.encode()


def damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Flip bits, or cut, double or overwrite a part; return what was done and the bytes."""
    what = rng.choice(("flip", "flip", "flip", "cut", "start", "double", "zeros", "noise"))
    at, length = rng.randrange(len(data) or 1), rng.randrange(1, 40)
    if what == "flip":
        flipped = bytearray(data or b"\0")
        for _ in range(rng.choice((1, 1, 8))):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return what, bytes(flipped)
    middle = {"double": data[at : at + length] * 2, "zeros": bytes(length)}
    middle["noise"] = rng.randbytes(length)
    rest = b"" if what == "start" else data[at + length :]
    return what, data[:at] + middle.get(what, b"") + rest


def damage_json(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """Write a JSON file, altered as a value or damaged as bytes."""
    if rng.random() < 0.7:
        what, changed = alter(rng, value)
        return what, to_json(changed)
    if rng.random() < 0.1:
        text = rng.choice(("[", '{"a":')) * rng.choice((5_000, 100_000))
        return "deep", text.encode()
    return damage(rng, json.dumps(value).encode())


def packed(contents: dict[str, bytes]) -> bytes:
    """Return a zip of members by their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()
