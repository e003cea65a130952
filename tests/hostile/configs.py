"""Damaged config.yaml files: an accepted one survives writing and reading."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from rmadapter.methods import METHODS
from rmadapter.runs.request import read_config
from tests.hostile import sets
from tests.hostile.mutate import damage, odd_value, to_json

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]"  # each list holds the one before ten times
for before, name in zip("abcdefgh", "bcdefghi", strict=True):
    BOMB += f"\n{name}: &{name} [{','.join([f'*{before}'] * 10)}]"
WHOLE = (
    "", "- a", "3", "null", "\0", "\ufeff", "a: b: c", "? [a]\n: b", "<<: {rank: 3}", "1: 2",
    "rank: 3\nrank: 4", "\trank: 3", "%TAG ! tag:x,2000:\n--- !a\n", "--- \n---\n",
    "x: " + "[" * 5_000, "x: " + "[" * 100_000, "{x: " * 5_000, BOMB, "- " * 5_000, "rank: &a [*a]",
    "rank: 10000000000", f"seed: {10**26}", "classes: null", "~nosuchuser/x: 1", "a" * 70_000,
    "\n" * 70_000,
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng, methods = random.Random(seed), list(METHODS)
    for number in range(count):
        text = sets.config(rng, methods[number % len(methods)])
        draw = rng.random()
        if draw < 0.15:
            what, content = "whole", rng.choice(WHOLE).encode()
        elif draw < 0.6:
            lines = text.splitlines()
            place = rng.randrange(len(lines))
            odd = rng.choice(sets.VALUES), to_json(odd_value(rng)).decode()
            value = rng.choice((*odd, str(rng.randrange(9)), "0.5"))
            lines[place] = f"{lines[place].partition(':')[0]}: {value}"
            what, content = "value", "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            what, content = damage(rng, text.encode())
        yield f"{what}-{number}", content


def check(name: str, content: bytes, folder: Path) -> object:
    file = folder / "given.yaml"
    file.write_bytes(content)
    method, values = read_config(file)
    return sets.check_settings(values, method or "rmadapter", folder)
