"""A paper's file says all about its method: adding one edits that file and one line of METHODS."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rmadapter import methods
from rmadapter.backbones import Backbone
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import in_order
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, need_text
from rmadapter.methods.uses import backbones_in, track_of
from rmadapter.task import Task
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # a fixture

SOURCE = Path(methods.__file__).parents[1]
PAPER = '''
"""A paper."""

from dataclasses import dataclass
from typing import ClassVar

from rmadapter.training.traits import About, Traits, Uses
from tests.helpers.external_methods import ExternalMethod


@dataclass(frozen=True)
class Newest(ExternalMethod):
    title: ClassVar[str] = "Newest"
    traits: ClassVar[Traits] = Traits(
        uses=Uses(track="teacher", teacher="ViT-L/14", tuned="fairies", backbones=("kind",)),
        about=About("nothing", "a mean of the shots", "unicorns"),
        reads="features",
        without_text=True,
    )
'''


@pytest.fixture
def newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a paper's file beside the others, and its line to METHODS."""
    (tmp_path / "a_newest_paper.py").write_text(PAPER)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setitem(METHODS, "newest", "a_newest_paper:Newest")
    return "newest"


@pytest.mark.ci
@pytest.mark.usefixtures("vit_b16_drawn_once")
def test_a_new_paper_is_described_wherever_methods_are(
    rmadapter: Command, newest: str, tiny_timm: Backbone
) -> None:
    listed = {one["name"]: one for one in rmadapter.json("methods")}[newest]
    assert listed["uses"]["tuned"] == "fairies"
    assert listed["about"]["trains"] == "a mean of the shots"
    assert "unicorns" in rmadapter.done("methods").out
    alone = " ".join(rmadapter.done("methods", newest).out.replace("│", " ").split())
    assert all(text in alone for text in ("every backbone", "fairies", "teacher"))
    with pytest.raises(UserError, match=newest):
        need_text(tiny_timm, "a word")


def test_a_new_paper_is_treated_as_it_says(newest: str) -> None:
    assert track_of(newest, {}) == "teacher"
    assert backbones_in(newest, {"kind": "ViT-L-14"}) == ["ViT-L-14"]
    jobs = [Job("few-shot", Task("colors"), name) for name in (newest, "maple")]
    assert [job.method for job in in_order(jobs)] == ["maple", newest]


def names_in(file: Path) -> set[str]:
    """Return the methods that the lists, tuples, sets and dictionaries of a file name."""
    groups = (ast.List, ast.Tuple, ast.Set, ast.Dict)
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, groups):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            found |= {part.value for part in parts if isinstance(part, ast.Constant)}
    return {name for name in METHODS if name in found}


def test_only_the_registry_lists_the_methods() -> None:
    """Besides experiments, which name what they compare, and `auto`, which chooses among some."""
    files = [file for file in SOURCE.rglob("*.py") if file.parts[len(SOURCE.parts)] != "bench"]
    listing = [file.name for file in files if len(names_in(file)) > 1]
    assert sorted(listing) == ["registry.py"]
