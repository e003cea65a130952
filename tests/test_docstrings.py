"""Docstrings of public names: Google style, every parameter described, every example true."""

from __future__ import annotations

import builtins
import doctest
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sphinx.ext.napoleon import Config, GoogleDocstring

import rmadapter
from tests.helpers.images import write_colors
from tests.helpers.models import write_tiny_clip

# pydocstyle's, in Google style, and the imperative mood; a magic method needs no docstring, nor
# does one that inherits it
STYLE = ["--select=D,D401", "--ignore=D10", '--config=lint.pydocstyle.convention="google"']
NAMES = sorted({*rmadapter.__all__} - {"__version__"})
ITEMS: dict[str, Any] = {name: getattr(rmadapter, name) for name in NAMES}
CLASSES = {name: item for name, item in ITEMS.items() if isinstance(item, type)}


class Documented(NamedTuple):
    """A class, function, method or property of the reference, and its parameters or fields."""

    item: Any
    parameters: list[str]
    what: str = "function"

    @property
    def text(self) -> str:
        return inspect.getdoc(self.item) or ""


def parameters_of(item: Any) -> list[str]:
    """Return the parameters, except those fields that `option` describes."""
    if item is rmadapter.NotApplicable:  # has the signature of Exception
        return []
    described = [n for n, f in getattr(item, "__pydantic_fields__", {}).items() if f.description]
    names = inspect.signature(item).parameters
    return [name for name in names if name not in ("self", "cls", *described)]


def documented() -> Iterator[tuple[str, Documented]]:
    """Yield the public names, and what their classes define themselves."""
    for name, item in ITEMS.items():
        yield name, Documented(item, parameters_of(item))
    for name, kind in CLASSES.items():
        for part, value in vars(kind).items():
            item = getattr(value, "__func__", value)
            if isinstance(value, property | cached_property):
                item = value.fget if isinstance(value, property) else value.func
            if part.startswith("_") or getattr(item, "__name__", "") != part:
                continue  # also the default of a field
            # an override without a docstring inherits one
            if item.__doc__ or not inspect.getdoc(getattr(kind, part)):
                what = "function" if value is item else type(value).__name__
                yield f"{name}.{part}", Documented(item, parameters_of(item), what)


DOCUMENTED = dict(documented())


def shown(one: Documented) -> str:
    """Return a docstring as Sphinx reads it."""
    what = "property" if "property" in one.what else "function"
    return str(GoogleDocstring(one.text, Config(napoleon_use_ivar=True), what=what))


def fields_of(one: Documented, kinds: str) -> list[str]:
    """Return the names of the fields of a docstring, such as `:param x:`."""
    names = ", ".join(re.findall(rf"^:(?:{kinds}) (.+?):", shown(one), re.M))
    return names.split(", ") if names else []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_parameter_and_field_is_described_once(name: str) -> None:
    one = DOCUMENTED[name]
    assert one.text
    assert sorted(fields_of(one, "param|ivar")) == sorted(one.parameters)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_returned_is_described(name: str) -> None:
    one = DOCUMENTED[name]
    returns = getattr(one.item, "__annotations__", {}).get("return", "None") != "None"
    if returns and not isinstance(one.item, type):
        assert re.match("Return|Yield|Count", one.text) or "\nReturns:\n" in one.text
    # made of words before a colon, in place of a type
    assert not re.search(r"^:r?type:", shown(one), re.M)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_raises_names_exceptions(name: str) -> None:
    item = DOCUMENTED[name].item
    known = {**vars(builtins), **ITEMS}
    for error in fields_of(DOCUMENTED[name], "raises"):
        assert issubclass(known[error], Exception), item


def test_the_style_is_googles() -> None:
    """Ruff judges whole files; what it says of the lines of public docstrings counts."""
    files: dict[str, list[range]] = {}
    for one in DOCUMENTED.values():
        if one.item.__doc__:
            lines, first = inspect.getsourcelines(one.item)
            head = next(i for i, line in enumerate(lines) if '"""' in line)
            tail = head + len(one.item.__doc__.splitlines())
            files.setdefault(str(inspect.getsourcefile(inspect.unwrap(one.item))), []).append(
                range(first + head, first + tail + 1)
            )
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--output-format=json", *STYLE]
    done = subprocess.run([*ruff, *files], capture_output=True, text=True)
    faults = [
        f"{fault['filename']}:{row}: {fault['code']} {fault['message']}"
        for fault in json.loads(done.stdout)
        for row in [fault["location"]["row"]]
        if any(row in lines for lines in files[fault["filename"]])
    ]
    assert not faults, "\n".join(faults)


# Examples


@pytest.fixture(scope="module")
def folder(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pytest.MonkeyPatch]:
    """Work in a folder as docs/reference/python.md describes it: colors, tiny and run."""
    place = tmp_path_factory.mktemp("examples")
    write_colors(place / "colors")
    write_tiny_clip(place / "tiny")
    shutil.copytree(finished, place / "run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(place)
        yield monkeypatch


def examples_of(name: str) -> doctest.DocTest:
    text = inspect.cleandoc(ITEMS[name].__doc__)
    return doctest.DocTestParser().get_doctest(text, {}, name, None, None)


def failures(test: doctest.DocTest) -> tuple[int, str]:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    return runner.run(test, out=said.append).failed, "".join(said)


@pytest.mark.parametrize("name", [name for name in NAMES if examples_of(name).examples])
def test_an_example_prints_what_it_says(name: str, folder: pytest.MonkeyPatch) -> None:
    count, said = failures(examples_of(name))
    assert not count, said


def test_a_wrong_output_fails() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert failures(test)[0] == 1


def test_all_names_have_an_example() -> None:
    assert not [name for name in NAMES if not examples_of(name).examples]
