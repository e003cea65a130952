"""Damage bytes, texts and JSON values reproducibly."""

from __future__ import annotations

import json
import random
from typing import Any

TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\ud800",
        "caf\udce9",
        "\u202e",
        "\x1b[31m",
        "\r\n",
        "%s%n",
        "{}",
        "{0}",
        "../../x",
        "~",
        ".",
    ),
    *(
        "~nosuchuser/x",
        "/dev/zero",
        "/proc/self",
        "nul",
        "=HYPERLINK(1)",
        "<script>",
        "true",
        "null",
        "1e308",
        "-1",
    ),
    *(
        "٣",
        "𝟛",
        "ﬀ",
        "e\u0301",
        "x" * 300,
        "x" * 100_000,
        "é" * 128,
        "a/b",
        "a\\b",
        "$(id)",
        "`id`",
        "&amp;",
        "\ufeff",
    ),
)
NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**10,
    10**26,
    10**400,
    1e308,
    -1e308,
    5e-324,
    0.5,
    float("nan"),
    float("inf"),
)
DEEP = "\ue000deep"  # stands for lists in lists, which Python itself could not write


def nasty(rng: random.Random) -> Any:
    """A value of any kind and size."""
    kinds = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False, [], {}, [[]], {"": ""})),
        lambda: [nasty(rng) for _ in range(rng.randrange(4))],
        lambda: {str(rng.choice(TEXTS))[:40]: nasty(rng) for _ in range(rng.randrange(3))},
        lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 1000, 20_000)),
        lambda: f"{DEEP}{rng.choice((100, 900, 5_000, 100_000))}",
    )
    return rng.choice(kinds)()


def altered(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A JSON value with one place replaced, removed, added or given twice; and what was done."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return "whole", nasty(rng)
    owner, key = rng.choice(places)
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "double", "text"))
    if what == "replace":
        owner[key] = nasty(rng)
    elif what == "text":
        owner[key] = str(owner[key])
    elif what == "double":
        owner[key] = [owner[key], owner[key]]
    elif isinstance(owner, list):
        owner[key : key + (what == "remove")] = [] if what == "remove" else [nasty(rng)]
    elif what == "remove":
        del owner[key]
    else:
        owner[rng.choice(("extra", "", "\ud800", "x" * 1000))] = nasty(rng)
    return f"{what}-{str(key)[:20]}", value


def _places(value: Any) -> Any:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in inside:
        yield value, key
        yield from _places(part)


def written(value: Any) -> bytes:
    """As JSON, with lists as deep as DEEP says."""
    text = json.dumps(value)
    while (mark := json.dumps(DEEP)[1:-1]) in text:
        before, _, after = text.partition(f'"{mark}')
        depth, _, after = after.partition('"')
        text = f"{before}{'[' * int(depth)}{']' * int(depth)}{after}"
    return text.encode()


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Bytes with flipped bits, a part cut out, doubled or overwritten; and what was done."""
    what = rng.choice(("flip", "flip", "flip", "cut", "start", "double", "zeros", "noise"))
    at, length = rng.randrange(len(data) or 1), rng.randrange(1, 40)
    if what == "flip":
        spoilt = bytearray(data or b"\0")
        for _ in range(rng.choice((1, 1, 8))):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        return what, bytes(spoilt)
    middle = {
        "double": data[at : at + length] * 2,
        "zeros": bytes(length),
        "noise": rng.randbytes(length),
    }
    rest = b"" if what == "start" else data[at + length :]
    return what, data[:at] + middle.get(what, b"") + rest


def spoilt_json(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """A JSON file that was altered as a value or damaged as bytes."""
    if rng.random() < 0.7:
        what, found = altered(rng, value)
        return what, written(found)
    if rng.random() < 0.1:
        text = rng.choice(("[", '{"a":')) * rng.choice((5_000, 100_000))
        return "deep", text.encode()
    return damaged(rng, json.dumps(value).encode())
