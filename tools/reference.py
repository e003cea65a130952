"""Write the pages of the reference that the code itself says: commands, settings, and the JSON
files of a run.

    python tools/reference.py docs/reference
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, TypeAdapter

from rmadapter.artifacts.model_file import Model
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.cli import main as command_line
from rmadapter.cli.options import Command
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import Machine, members, settings_of
from rmadapter.support.files import write_text
from rmadapter.task import Task

BASE = "https://json-schema.org/draft/2020-12/schema"
PAGE = re.compile(r"docs/([\w/]+)\.md")  # as help texts and docstrings name it
NUMBERS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def cell(text: object) -> str:
    """Write a text for a cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def code(text: str) -> str:
    return f"`{cell(text)}`" if text else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Commands


def commands() -> str:
    """Describe each verb with its arguments, options and examples, as --help does."""
    command_line.add_installed()
    group: Any = typer.main.get_command(command_line.app)
    parts = [
        "# Commands",
        "Made from the commands themselves: `rmadapter help VERB` prints the same in a terminal. "
        "All verbs have the same [exit codes](/reference/runs.md#exit-codes).",
    ]
    panels: dict[str, list[Command]] = {}
    for command in (*command_line.COMMANDS, *command_line.installed()):
        panels.setdefault(command.panel, []).append(command)
    for panel, verbs in panels.items():
        parts.append(f"## {panel}")
        for verb in verbs:
            parts += describe_command(verb, group.commands[verb.name])
    return "\n\n".join(parts) + "\n"


def describe_command(verb: Command, command: Any) -> Iterator[str]:
    name = verb.name
    context = command.make_context(f"rmadapter {name}", [], resilient_parsing=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"### {name}"
    yield str(command.help)
    yield f"    {usage}"
    rows = [
        [code(shown), cell(text)]
        for shown, text in (part.get_help_record(context) or ("", "") for part in command.params)
        if shown and "--help" not in shown
    ]
    if rows:
        yield markdown(["argument or option", "meaning"], rows)
    yield "```bash\n" + "\n".join(verb.examples) + "\n```"


# Settings


def settings() -> str:
    """List the settings that all tasks have, and those of each method."""
    parts = [
        "# Settings",
        "What `--set NAME=VALUE`, a file for `--config` and keyword arguments of "
        "`FewShotClassifier` accept. A method's settings are what its authors published, unless "
        "[defaults](/studies/defaults.md) says otherwise.",
        "## The task",
        table_of(Task(data="DATA"), without=("data",)),
        "## The machine",
        table_of(Machine()),
        "## Methods",
    ]
    for name in METHODS:
        method = load_method(name)
        parts += [f"### {name}", f"{method.title}: {method.source}.", about(type(method))]
        parts.append(table_of(method) if settings_of(method) else "It has no settings.")
    return "\n\n".join(parts) + "\n"


def about(kind: type) -> str:
    """Return the docstring of a class as paragraphs, without its sections."""
    return described(inspect.cleandoc(kind.__doc__ or ""))[0]


def meanings(kind: type) -> dict[str, str]:
    """Return what the docstring of a class says of its fields, by name."""
    return described(inspect.cleandoc(kind.__doc__ or ""))[1]


def described(docstring: str) -> tuple[str, dict[str, str]]:
    """Divide a docstring in Google style into its paragraphs and the meanings of its fields."""
    prose, *sections = re.split(
        r"^(Args|Attributes|Returns|Raises|Example):\n", docstring, flags=re.M
    )
    fields = dict[str, str]()
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        items = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", text, re.M)
        for names, meaning in items if title in ("Args", "Attributes") else ():
            fields |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return prose.strip(), fields


def table_of(owner: Any, without: Iterable[str] = ()) -> str:
    rows = [row for row in rows_of(owner) if row[0].strip("`") not in without]
    return markdown(["name", "values", "default", "meaning"], rows)


def rows_of(owner: Any) -> Iterator[list[str]]:
    """Yield name, kind of values, default and meaning of each setting, of nested groups, too."""
    hints = get_type_hints(type(owner))
    documented = getattr(type(owner), "__pydantic_fields__", {})
    names, written = settings_of(owner), meanings(type(owner))
    for field in members(owner):
        value = getattr(owner, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from rows_of(value)
        elif field.name in names:
            option = getattr(documented.get(field.name), "description", "")
            about = option or written.get(field.name, "")
            default = json.dumps(value, default=str, ensure_ascii=False)
            yield [code(field.name), cell(kind_of(hints[field.name])), code(default), cell(about)]


def kind_of(hint: Any) -> str:
    """Say in words what values a type has."""
    origin = get_origin(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if origin in (Union, UnionType):
        kinds = [kind_of(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join([*kinds, "nothing"])
    if origin is tuple:
        return f"list of {kind_of(get_args(hint)[0])}"
    if origin is dict:
        return "mapping"
    return NUMBERS.get(hint, getattr(hint, "__name__", str(hint)))


# Files of a run


def files() -> str:
    """List the files of a run, and the fields of those that are JSON."""
    places = (
        (getattr(RunFolder(Path()), name), about)
        for name, about in vars(RunFolder).items()
        if isinstance(about, property)
    )
    rows = [
        [code(place.name), cell(about.__doc__)]
        for place, about in places
        if isinstance(place, Path)
    ]
    parts = [
        "# Files of a run",
        "What `fit` writes into the folder of a run; [runs](/reference/runs.md) has the columns of "
        "its tables.",
        markdown(["file", "content"], rows),
    ]
    for name, model in (("run.json", Record), ("model.json", Model)):
        schema = name.replace(".json", ".schema.json")
        parts += [f"## {name}", f"[JSON schema](/reference/{schema})"]
        for part in nested(model):
            parts += [f"### {part.__name__}", about(part), fields_of(part)]
    return "\n\n".join(parts) + "\n"


def nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a model and the models of its fields, each once."""
    found = [model]
    for part in found:
        for hint in get_type_hints(part).values():
            found += [one for one in models_in(hint) if one not in found]
    return found


def models_in(hint: Any) -> Iterator[type[BaseModel]]:
    parts = get_args(hint)
    if not parts and isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint  # in Python 3.10, list[int] is a type, too
    for part in parts:
        yield from models_in(part)


def fields_of(model: type[BaseModel]) -> str:
    hints, written = get_type_hints(model), meanings(model)
    rows = []
    for name, info in model.model_fields.items():
        default = (
            ""
            if info.is_required()
            else json.dumps(info.get_default(call_default_factory=True), default=str)
        )
        meaning = cell(written.get(name, ""))
        rows.append([code(name), cell(kind_of(hints[name])), code(default), meaning])
    return markdown(["field", "values", "where it is left out", "meaning"], rows)


def schemas() -> Mapping[str, str]:
    """Return the JSON schemas of the files of a run by file name."""
    adapters: dict[str, TypeAdapter[Any]] = {
        "run.schema.json": TypeAdapter(Record),
        "model.schema.json": TypeAdapter(Model),
    }
    return {
        name: json.dumps({"$schema": BASE, **schema_of(adapter)}, indent=1) + "\n"
        for name, adapter in adapters.items()
    }


def schema_of(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """Return a JSON schema in which each field has its own description."""
    schema = adapter.json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["description"], written = described(part.get("description", ""))
        for name, meaning in written.items():
            part["properties"][name].setdefault("description", meaning)
    return schema


PAGES = {"commands.md": commands, "settings.md": settings, "files.md": files}


def write(folder: Path) -> None:
    """Write all pages and schemas into a folder."""
    for name, make in PAGES.items():
        write_text(folder / name, PAGE.sub(r"[\g<0>](/\1.md)", make()))
    for name, text in schemas().items():
        write_text(folder / name, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
