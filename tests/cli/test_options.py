"""Classes of options, expanded into options of a command."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from rmadapter.cli.options import Columns, expand


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1)]
    height: Annotated[int, typer.Option("--high")] = 2


def paint(
    out: Annotated[Path, typer.Argument()], size: Size, columns: Columns = Columns(), last: int = 0
) -> None:
    """Paint."""
    print(out, size, columns.named(), last)


def test_fields_stand_where_their_class_stood() -> None:
    parameters = inspect.signature(expand(paint)).parameters
    columns = [f"{kind}_column" for kind in ("image", "label", "split", "group")]
    assert [*parameters] == ["out", "width", "height", *columns, "last"]
    assert parameters["width"].default is inspect.Parameter.empty
    assert parameters["height"].default == 2


def test_a_command_gets_the_class() -> None:
    app = typer.Typer()
    app.command()(expand(paint))
    call: Any = CliRunner().invoke
    answer = call(app, ["a.png", "--width", "3", "--label-column", "art", "--last", "5"])
    assert answer.stdout == f"a.png {Size(3, 2)} {{'label': 'art'}} 5\n"
    assert call(app, ["a.png"]).exit_code == 2  # --width is required
    assert call(app, ["a.png", "--width", "0"]).exit_code == 2


def test_columns_that_were_named() -> None:
    assert Columns(label_column="art", group_column="patient").named() == {
        "label": "art",
        "group": "patient",
    }
    with pytest.raises(AttributeError):
        Columns().image_column = "x"  # type: ignore[misc]
