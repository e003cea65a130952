"""Pairs of --set: accepted ones survive a config file, and a model can be built of them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from rmadapter.artifacts.record import MethodName
from rmadapter.methods import METHODS
from rmadapter.runs.request import Request
from rmadapter.settings import parse_overrides, read_yaml, settings_of, to_yaml
from rmadapter.task import COMMON_SETTINGS, qualified_settings
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import NUMBERS, TEXTS, damage

SHAPES = (
    "[{}]", "{{a: {}}}", "[{}, {}]", "&a {}", "!!binary {}", "!!float {}", "!!set {{{}}}",
    "!!timestamp {}", "? {}", "!!python/object/apply:os.system ['{}']", "!!python/name:os.{}",
    "'{}'", '"{}"', "|\n {}", "{}: {}", "--- {}\n---\n",
)  # fmt: skip
# each list holds the one before several times
NESTED = (
    "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c], [*d,*d,*d,*d]]"
)
VALUES = (
    "[" * 500, "[" * 5_000, "[" * 60_000, "{a: " * 5_000, "&a [*a]", "&a [*a, *a]", "2024-13-45",
    "2024-01-01", "1:1:1:1", "0x" + "f" * 5_000, "9" * 5_000, "1_000", "0o17", "010", ".inf",
    "-.inf", ".nan", "1e308", "1e309", "1e-400", "yes", r'"\ud800"', r'"\0"', r'"\x1b[2J"',
    "- a\n- b", "a: b", "%YAML 9.9\n---\n1", "@", "`", "*x", "!", "~", "=", "<<", "...", NESTED,
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng, methods = random.Random(seed), list(METHODS)
    for number in range(count):
        method = methods[number % len(methods)]
        own = settings_of(Request.make({}, method).method)
        name = rng.choice([*COMMON_SETTINGS, *own, *own])
        text = "3"
        if rng.random() < 0.7:
            text = yaml.safe_dump(own.get(name, 1)).removesuffix("\n...\n")
        if rng.random() >= 0.25:
            text = rng.choice((*VALUES, *TEXTS, *map(_digits, NUMBERS)))
        if rng.random() < 0.3:
            text = rng.choice(SHAPES).replace("{}", text).replace("{{", "{").replace("}}", "}")
        pair = f"{name}={text}"
        if rng.random() >= 0.9:
            pair = rng.choice((text, f"{text}={name}", f"{method}.{name}={text}"))
        content = pair.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = damage(rng, content)[1]
        yield f"{method}-{name}-{number}", content


def _digits(number: float) -> str:
    return repr(number) if isinstance(number, float) or number < 10**300 else "1" + "0" * 400


def check(name: str, content: bytes, folder: Path) -> object:
    longest_first = sorted(METHODS, key=len, reverse=True)
    method = next(known for known in longest_first if name.startswith(f"{known}-"))
    return check_settings(parse_overrides([os.fsdecode(content)]), method, folder)


def check_settings(values: dict[str, object], method: str, folder: Path) -> Request:
    """Make a request of settings, write and read them, and build a model of them."""
    fields = settings_of(Request.make({}, method).method) if method in METHODS else {}
    small = {name: value for name, value in valid.QUICK.items() if name in fields}
    request = Request.make({**small, **values}, method)  # the backbone has two blocks
    names = ("shots", "seed", "classes", "templates", "views", "backbone")
    written = {name: getattr(request.task, name) for name in names}
    written |= qualified_settings(method, settings_of(request.method))
    (folder / "config.yaml").write_text(to_yaml(written), encoding="utf-8")
    again = Request.make(read_yaml(folder / "config.yaml"), method)
    before, after = (request.task, request.method), (again.task, again.method)
    if before != after:
        raise Changed(f"{before} became {after}"[:1000])
    MethodName(name=method, settings=settings_of(request.method))  # else refused after training
    request.method.parameters(valid.backbone(), 5, 2)
    return request


def config(rng: random.Random, method: str) -> str:
    """Write a valid config file of a method."""
    own = settings_of(Request.make({}, method).method)
    kept = rng.sample(sorted(own), min(len(own), rng.randrange(1, 8)))
    values = {"method": method, "shots": 4, "seed": 1, "templates": ["a {}."]}
    for name in kept:
        values[name] = list(own[name]) if isinstance(own[name], tuple) else own[name]
    return yaml.safe_dump(values)
