"""The notebook among the examples runs from top to bottom, and is committed as it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
NOTEBOOK = Path(__file__).parents[2] / "examples/shapes.ipynb"


def passing(output: Any) -> bool:
    """Whether this is a warning or a progress bar, which a slow machine shows and a fast one does
    not."""
    return output.get("name") == "stderr" or output.output_type == "display_data"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_was_executed_in_order_and_names_no_place() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 4
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert not any(word in str(outputs) for word in ("Traceback", "/home", "/tmp", "site-packages"))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own parts
def test_it_runs(pocket: Backbone, tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("pandas", reason="pandas is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = [[output.output_type for output in cell.outputs] for cell in code_cells(notebook)]
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    ran = [
        [output.output_type for output in cell.outputs if not passing(output)]
        for cell in code_cells(notebook)
    ]
    assert ran == shown
