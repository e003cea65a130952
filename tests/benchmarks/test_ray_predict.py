"""The benchmark of bulk prediction on a tiny model: its JSON, never its figures."""

from __future__ import annotations

import json
import sys

import pytest

from rmadapter.backbones import Backbone

pytest.importorskip("ray", reason="needs the extra ray: `make scale` installs it")
import ray_predict


def test_rows_and_shares(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--backbone",
        tiny_clip.name,
        "--images",
        "300",
        "--pixels",
        "32",
        "32",
        "--classes",
        "3",
        "--workers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["ray_predict.py", *words, "--json"])
    ray_predict.main()
    result = json.loads(capsys.readouterr().out)
    local, one = result["rows"]
    assert (local["workers"], one["workers"]) == (0, 1)
    assert local["share"] == 1
    assert one["share"] == local["seconds"] / one["seconds"]
    monkeypatch.setattr(sys, "argv", ["ray_predict.py", "--images", "10"])
    with pytest.raises(SystemExit, match="give more than"):
        ray_predict.main()
