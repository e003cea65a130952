"""MATLAB files: what SciPy writes is read as it was; a file that crashes SciPy is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from rmadapter.data.catalog import matlab
from rmadapter.data.catalog.matlab import structures, variable
from rmadapter.data.catalog.sets import CATALOG, table_of
from rmadapter.errors import UserError
from tests.helpers import archives
from tests.helpers.slow import ci_except


def test_lists_and_structures(tmp_path: Path) -> None:
    rows = np.array(
        [[(39, 2, "a.jpg"), (40, 1, "b.jpg")]],
        dtype=[("x", object), ("class", object), ("fname", object)],
    )
    values: dict[str, Any] = {
        "labels": np.array([[3, 1]], np.uint8),
        "one": 7,
        "names": np.array(["a", "bc"], object),
    }
    savemat(tmp_path / "a.mat", {**values, "rows": rows}, do_compression=True)
    assert variable(tmp_path / "a.mat", "labels") == [3, 1]
    assert variable(tmp_path / "a.mat", "one") == [7]
    assert variable(tmp_path / "a.mat", "names") == ["a", "bc"]
    assert structures(tmp_path / "a.mat", "rows", "fname", "class") == [("a.jpg", 2), ("b.jpg", 1)]


def test_other_values_become_their_repr(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"labels": np.array([np.zeros((2, 2)), 1 + 2j], object)})
    expected = ["array([[0., 0.],\n       [0., 0.]])", "(1+2j)"]
    assert variable(tmp_path / "a.mat", "labels") == expected


@pytest.mark.parametrize("what", ["missing", "text", "other name", "crash", "slow", "field"])
def test_unreadable_files_fail(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, fields = tmp_path / "a.mat", ["fname"] if what == "field" else []
    savemat(file, {"other" if what == "other name" else "labels": [1, 2]})
    if what == "missing":
        file.unlink()
    elif what == "text":
        file.write_text("labels")
    elif what in ("crash", "slow"):  # as SciPy does on some damaged files
        child = tmp_path / "child.py"
        child.write_text(
            "import os; os.abort()" if what == "crash" else "import time; time.sleep(60)"
        )
        monkeypatch.setattr(matlab, "__file__", str(child))
        monkeypatch.setattr(matlab, "MAX_SECONDS", 0.2 if what == "slow" else 60)
    with pytest.raises(UserError, match=r"a\.mat: not a MATLAB file with 'labels'"):
        structures(file, "labels", *fields) if fields else variable(file, "labels")


@pytest.mark.parametrize(
    "labels",
    ci_except(
        [[1.5], [float("nan")], [float("inf")], [0], ["a"], 2 + 3j, [[1, 2], [3, 4]]], [1.5], ["a"]
    ),
    ids=str,
)
def test_labels_that_are_not_class_numbers_are_refused(tmp_path: Path, labels: Any) -> None:
    archives.oxford_flowers(tmp_path)
    savemat(tmp_path / "imagelabels.mat", {"labels": labels})
    with pytest.raises(UserError, match=r"imagelabels\.mat: .* is not a class number"):
        table_of(CATALOG["oxford_flowers"], tmp_path)


def test_cars_without_labels_are_refused(tmp_path: Path) -> None:
    """The development kit's own test list has no classes; it is the file people take by mistake."""
    archives.stanford_cars(tmp_path)
    rows = np.array([[("00001.jpg",)]], dtype=[("fname", object)])
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(UserError, match="'annotations' of fname and class"):
        table_of(CATALOG["stanford_cars"], tmp_path)
