"""The verb `explain`: a table, JSON, and a page."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_a_table_json_and_a_page(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    images = [colors / "test/red/0.png", colors / "test/blue/1.png"]
    command = ["explain", finished, *images, "--data", colors, *backbone_option(finished), "-q"]
    done = rmadapter(*command)
    assert (done.code, done.err) == (0, "")
    assert "nearest training images" in done.out
    found = json.loads(rmadapter(*command, "--json").out)
    assert [set(one) for one in found] == [{"image", "classes", "zero_shot", "neighbours"}] * 2
    assert len(found[0]["classes"]) == len(found[0]["zero_shot"]) == 2
    assert len(found[0]["neighbours"]) == 5
    facts = json.loads(rmadapter(*command, "--out", tmp_path / "why", "--json").out)
    assert facts == {"page": str(tmp_path / "why/explain.html"), "images": found}
    assert (tmp_path / "why/explain.html").is_file()
    refused(rmadapter(*command, "--out", tmp_path / "why"), "already exists")


def test_mistakes_are_one_sentence(rmadapter: Command, finished: Path, colors: Path) -> None:
    refused(rmadapter("explain", colors, colors), "not a run")
    file = finished / "run.json"
    refused(
        rmadapter("explain", finished, colors, "--out", file),
        "run.json: is a file; choose another --out",
    )
    command = [
        "explain",
        finished,
        "nowhere.png",
        colors / "test/red/0.png",
        *backbone_option(finished),
        "-q",
    ]
    refused(rmadapter(*command), "nowhere.png", "--skip-bad (skip_bad=True) leaves out such files")
    assert len(json.loads(rmadapter(*command, "--skip-bad", "--json").out)) == 1
