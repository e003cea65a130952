"""tools/reference.py and docs/reference: whatever users may name is in the reference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import reference
import typer

import rmadapter
from rmadapter.artifacts.record import Record
from rmadapter.cli.main import COMMANDS, add_installed, app, installed
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from rmadapter.task import Task

PYTHON = Path(__file__).parents[2] / "docs/reference/python.md"


@pytest.fixture(scope="module")
def group() -> Any:
    add_installed()
    return typer.main.get_command(app)


def section(page: str, title: str) -> str:
    """Return a section of a page by its heading, whatever its level."""
    return re.split(rf"^#+ {re.escape(title)}\n", page, flags=re.M)[1].split("\n#")[0]


@pytest.fixture(scope="module")
def commands() -> str:
    return reference.commands()


EXAMPLES = {command.name: command.examples for command in (*COMMANDS, *installed())}


@pytest.mark.parametrize("verb", EXAMPLES)
def test_a_verb_has_all_its_options_and_examples(verb: str, group: Any, commands: str) -> None:
    text = section(commands, verb)
    options = [name for part in group.commands[verb].params for name in part.opts]
    assert {name for name in options if name.startswith("--") and name not in text} <= {"--help"}
    assert all(example in text for example in EXAMPLES[verb])


def test_every_verb_has_a_section(group: Any, commands: str) -> None:
    assert {*re.findall(r"^### (.+)$", commands, re.M)} == {*group.commands}


def test_a_method_has_all_its_settings_with_their_defaults() -> None:
    page = reference.settings()
    for name in METHODS:
        method = load_method(name)
        rows = dict(
            re.findall(r"^\| `(\w+)` \| .*? \| `(.*?)` \| .*\|$", section(page, name), re.M)
        )
        settings = settings_of(method)
        assert rows.keys() == settings.keys()
        texts = {key: json.loads(text.replace("\\|", "|")) for key, text in rows.items()}
        assert texts == json.loads(json.dumps(settings, default=str))
    assert "| `seed` | whole number | `1` |" in section(page, "The task")


def test_files_have_the_fields_of_records_and_a_schema_that_records_fit() -> None:
    page = section(reference.files(), "Record")
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.M)} == {*Record.model_fields}
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", reference.files(), re.M)
    assert len(rows) > 80
    assert not [name for name, meaning in rows if not meaning]
    schema = json.loads(reference.schemas()["run.schema.json"])
    assert schema["properties"]["crops"]["description"].startswith("Whether the images are boxes")
    assert ">>>" not in json.dumps(schema)
    task = Task(data="photos")
    record = Record(
        format=2, task=task, method={"name": "mma"}, backbone={"name": "pocket", "digest": "0"}
    )
    line = json.loads(record.line())
    assert {*schema["required"]} <= {*line} <= {*schema["properties"]}


def test_the_page_of_python_has_every_public_name() -> None:
    names = re.findall(
        r"^\.\. auto(?:class|function):: rmadapter\.(\w+)$", PYTHON.read_text(), re.M
    )
    assert len(names) == len({*names})
    assert {*names} == {*rmadapter.__all__} - {"__version__"}
