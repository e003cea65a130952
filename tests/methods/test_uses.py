"""What methods use beyond the shots: declared for all, valid, and what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import published_settings
from rmadapter.methods import METHODS, load_method
from rmadapter.methods.uses import named_sums, uses_of
from rmadapter.settings import settings_of
from rmadapter.training.traits import TRACKS, Uses
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

PAGE = Path(__file__).parents[2] / "docs/reference/methods.md"


def test_every_method_declares_what_it_uses_and_the_page_says_the_same() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## What each uses")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| (.*?) \| (.*?) \|$", text, re.M)
    declared = {name: uses_of(name, {}) for name in METHODS}
    known = {name: uses for name, uses in declared.items() if uses}
    assert rows == [(name, uses.track, uses.words) for name, uses in known.items()]
    assert known.keys() == METHODS.keys()
    assert all(f"`{track}`" in text for track in TRACKS)
    files = {
        name: (*uses.files, *uses.backbones)
        for name, uses in known.items()
        if uses.files or uses.backbones
    }
    assert all(
        set(fields) <= settings_of(load_method(name)).keys() for name, fields in files.items()
    )


def test_constants_that_were_read_belong_to_methods_that_say_so() -> None:
    uses = [uses_of(name, {}) for name in published_settings()]
    assert all(one and one.constants for one in uses)


@pytest.mark.parametrize("track", TRACKS[1:])
def test_a_track_says_what_it_uses(track: str) -> None:
    field = {"extra data": "extra", "teacher": "teacher", "test time": "test_time"}[track]
    with pytest.raises(
        ValidationError, match=f"a method of the track '{track}' must say what it uses"
    ):
        Uses(track=track, tuned="nothing")  # type: ignore[arg-type]
    found = Uses(track=track, tuned="nothing", **{field: "much"})  # type: ignore[arg-type]
    assert "much" in found.words
    with pytest.raises(ValidationError):
        Uses(track="ranked", tuned="")


def test_a_file_of_texts_moves_a_method_to_another_track() -> None:
    plain = uses_of("coprompt", {"descriptions": ""})
    given = uses_of("coprompt", {"descriptions": "texts.json"})
    assert plain is not None
    assert given is not None
    assert (plain.track, given.track) == ("ranked", "extra data")
    own = Uses(track="teacher", teacher="ViT-L/14", tuned="nothing")
    assert uses_of("theirs.py:Method", {}, own) == own
    assert uses_of("theirs.py:Method", {}) is None
    assert uses_of("mma", {}, own) == load_method("mma").traits.uses  # a name of ours stays ours


def test_files_in_settings_are_identified_by_content(tmp_path: Path, tiny_clip: Backbone) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text("{}")
    sums = named_sums("lweib", {"descriptions": str(texts)})
    texts.write_text("{ }")
    assert [*map(len, sums)] == [64]
    assert named_sums("lweib", {"descriptions": str(texts)}) != sums
    # a folder can hold other weights
    assert named_sums("prompt-kd", {"teacher": tiny_clip.name}) == [tiny_clip.digest]
    # its name says which, and it is not loaded
    assert named_sums("prompt-kd", {"teacher": "ViT-B-16/openai"}) == []
    assert named_sums("prompt-kd", {"teacher": ""}) == []
    assert named_sums("mine:Mine", {"teacher": "?"}) == []
    (code := tmp_path / "mine.py").write_text("a = 1")
    first = named_sums(f"{code}:Mine", {})
    code.write_text("a = 2")
    assert len(first) == 1
    assert named_sums(f"{code}:Mine", {}) != first


MINE = """
from dataclasses import dataclass
from typing import ClassVar
from tests.helpers.external_methods import ExternalMethod
from rmadapter import Traits, Uses

@dataclass(frozen=True)
class Mine(ExternalMethod):
    traits: ClassVar[Traits] = Traits(Uses(track="teacher", teacher="ViT-L/14", tuned="nothing"))

@dataclass(frozen=True)
class Wrong(ExternalMethod):
    traits: ClassVar[Traits] = Traits("a teacher")
"""


@pytest.mark.ci
def test_records_hold_what_a_method_from_outside_uses(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    command = ["bench", "few-shot", "--datasets", colors.name, "--root", colors.parent]
    command += ["--backbone", tiny_clip.name, "--seeds", "1", "--shots", "1"]
    command += ["--set", "device=cpu", "--out", tmp_path / "out"]
    records = rmadapter.json(*command, "--methods", f"zero-shot,{tmp_path / 'mine.py'}:Mine")
    ours, theirs = (parse_record(json.dumps(record), "") for record in records)
    assert ours.method.uses is None  # a name of ours is enough
    assert theirs.method.uses == Uses(track="teacher", teacher="ViT-L/14", tuned="nothing")
    wrong = f"{tmp_path / 'mine.py'}:Wrong"
    refused(rmadapter(*command, "--methods", wrong), "mine.py:Wrong")
