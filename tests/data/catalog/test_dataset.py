"""A row of the catalogue's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rmadapter.data.catalog.dataset import Dataset

ROW: dict[str, Any] = {
    "key": "x", "title": "X", "folder": "x", "classes": 2, "counts": {"test": 1}, "templates": ["a {}."],
    "licence": "MIT", "size": "1 MB", "citation": "", "url": "", "steps": [], "reader": "class_folders",
}  # fmt: skip


def test_an_archive_is_told_from_any_folder(tmp_path: Path) -> None:
    dataset = Dataset(**ROW, images="pics", split="split.json", lists={"train": "lists/train"})
    assert not dataset.laid_out(tmp_path)
    (tmp_path / "cat").mkdir()
    assert not dataset.laid_out(tmp_path)
    for path in ("pics", "lists/train"):
        (tmp_path / path).mkdir(parents=True)
        assert dataset.laid_out(tmp_path)
        (tmp_path / path).rmdir()
    (tmp_path / "split.json").write_text("{}")
    assert dataset.laid_out(tmp_path)
    assert not Dataset(**ROW).laid_out(tmp_path)


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="licens"):
        Dataset(**ROW, licens="MIT")
