"""What methods use beyond the shots: declared for all, valid, and what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from rmadapter.bench.per_set import per_set
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from rmadapter.uses import TRACKS, USES, Uses, uses_of

PAGE = Path(__file__).parents[1] / "docs/methods.md"


def test_every_method_declares_what_it_uses_and_the_page_says_the_same() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## What each uses")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| (.*?) \| (.*?) \|$", text, re.M)
    assert rows == [(name, USES[name].track, USES[name].words) for name in METHODS]
    assert all(f"`{track}`" in text for track in TRACKS)
    files = {name: uses.files for name, uses in USES.items() if uses.files}
    assert all(set(fields) <= settings_of(load_method(name)).keys() for name, fields in files.items())


def test_constants_that_were_read_belong_to_methods_that_say_so() -> None:
    assert all(USES[name].constants for name in per_set())


@pytest.mark.parametrize("track", TRACKS[1:])
def test_a_track_says_what_it_uses(track: str) -> None:
    field = {"extra data": "extra", "teacher": "teacher", "test time": "test_time"}[track]
    with pytest.raises(ValidationError, match=f"a method of the track '{track}' says what it uses"):
        Uses(track=track, tuned="nothing")  # type: ignore[arg-type]
    found = Uses(track=track, tuned="nothing", **{field: "much"})  # type: ignore[arg-type]
    assert "much" in found.words
    with pytest.raises(ValidationError):
        Uses(track="ranked", tuned="")


def test_a_file_of_texts_moves_a_method_to_another_track() -> None:
    plain, given = uses_of("coprompt", {"descriptions": ""}), uses_of("coprompt", {"descriptions": "texts.json"})
    assert plain is not None
    assert given is not None
    assert (plain.track, given.track) == ("ranked", "extra data")
    own = Uses(track="teacher", teacher="ViT-L/14", tuned="nothing")
    assert uses_of("theirs.py:Method", {}, own) == own
    assert uses_of("theirs.py:Method", {}) is None
    assert uses_of("mma", {}, own) == USES["mma"]  # a name of ours stays ours
