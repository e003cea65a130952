"""Pairs of --set for several methods: accepted ones survive a config file and build a model."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from rmadapter.methods import METHODS
from rmadapter.runs.request import Request
from rmadapter.settings import parse_overrides, read_yaml, settings_of, to_yaml
from rmadapter.task import COMMON_SETTINGS
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import NUMBERS, TEXTS, damaged

SHAPES = (
    *(
        "[{}]",
        "{{a: {}}}",
        "[{}, {}]",
        "&a {}",
        "!!binary {}",
        "!!float {}",
        "!!set {{{}}}",
        "!!timestamp {}",
        "? {}",
    ),
    *(
        "!!python/object/apply:os.system ['{}']",
        "!!python/name:os.{}",
        "'{}'",
        '"{}"',
        "|\n {}",
        "{}: {}",
        "--- {}\n---\n",
    ),
)
VALUES = (
    *(
        "[" * 500,
        "[" * 5_000,
        "[" * 60_000,
        "{a: " * 5_000,
        "&a [*a]",
        "&a [*a, *a]",
        "2024-13-45",
        "2024-01-01",
        "1:1:1:1",
    ),
    *(
        "0x" + "f" * 5_000,
        "9" * 5_000,
        "1_000",
        "0o17",
        "010",
        ".inf",
        "-.inf",
        ".nan",
        "1e308",
        "1e309",
        "1e-400",
        "yes",
    ),
    *(
        r'"\ud800"',
        r'"\0"',
        r'"\x1b[2J"',
        "- a\n- b",
        "a: b",
        "%YAML 9.9\n---\n1",
        "@",
        "`",
        "*x",
        "!",
        "~",
        "=",
        "<<",
        "...",
    ),
    "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c], [*d,*d,*d,*d]]",
)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng, methods = random.Random(seed), list(METHODS)
    for number in range(count):
        method = methods[number % len(methods)]
        own = settings_of(Request.make({}, method).method)
        name = rng.choice([*COMMON_SETTINGS, *own, *own])
        sound = (
            yaml.safe_dump(own.get(name, 1)).removesuffix("\n...\n") if rng.random() < 0.7 else "3"
        )
        text = (
            sound if rng.random() < 0.25 else rng.choice((*VALUES, *TEXTS, *map(_digits, NUMBERS)))
        )
        if rng.random() < 0.3:
            text = rng.choice(SHAPES).replace("{}", text).replace("{{", "{").replace("}}", "}")
        pair = (
            f"{name}={text}"
            if rng.random() < 0.9
            else rng.choice((text, f"{text}={name}", f"{method}.{name}={text}"))
        )
        content = pair.encode("utf-8", "surrogatepass")
        yield (
            f"{method}-{name}-{number}",
            damaged(rng, content)[1] if rng.random() < 0.1 else content,
        )


def _digits(number: float) -> str:
    return repr(number) if isinstance(number, float) or number < 10**300 else "1" + "0" * 400


def ask(name: str, content: bytes, folder: Path) -> object:
    method = next(
        known for known in sorted(METHODS, key=len, reverse=True) if name.startswith(f"{known}-")
    )
    return same_again(parse_overrides([os.fsdecode(content)]), method, folder)


def same_again(values: dict[str, object], method: str, folder: Path) -> Request:
    """The request, if it is the same when its settings were written and read, and if a model can be
    built of it."""
    fields = settings_of(Request.make({}, method).method) if method in METHODS else {}
    small = {
        name: value for name, value in valid.QUICK.items() if name in fields
    }  # it has two blocks
    wanted = Request.make({**small, **values}, method)
    own = {
        f"{method}.{name}" if name in COMMON_SETTINGS else name: v
        for name, v in settings_of(wanted.method).items()
    }
    task = {
        name: getattr(wanted.task, name)
        for name in ("shots", "seed", "classes", "templates", "views", "backbone")
    }
    (folder / "config.yaml").write_text(to_yaml({**task, **own}), encoding="utf-8")
    again = Request.make(read_yaml(folder / "config.yaml"), method)
    if (again.task, again.method) != (wanted.task, wanted.method):
        raise Changed(f"{wanted.task}, {wanted.method} became {again.task}, {again.method}"[:1000])
    wanted.method.parameters(valid.backbone(), 5, 2)
    return wanted


def config(rng: random.Random, method: str) -> str:
    """A sound config file of a method."""
    own = settings_of(Request.make({}, method).method)
    kept = rng.sample(sorted(own), min(len(own), rng.randrange(1, 8)))
    values = {
        "method": method,
        "shots": 4,
        "seed": 1,
        "templates": ["a {}."],
        **{name: own[name] for name in kept},
    }
    return yaml.safe_dump(
        {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    )
