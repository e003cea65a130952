"""Errors of the Hugging Face hub."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from rmadapter.support import hub
from rmadapter.support.hub import Unreachable, check_reachable, hub_errors
from tests.helpers.fake_hub import point_to


def test_a_hub_that_refuses_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    start = time.monotonic()
    errors = hub_errors("anna/x", typed="ViT-B-16/mine")
    with pytest.raises(Unreachable, match="'ViT-B-16/mine'"), errors:
        check_reachable()
    assert time.monotonic() - start < hub.ANSWER_SECONDS


def test_a_hub_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch)
        with pytest.raises(Unreachable, match="'anna/x'"), hub_errors("anna/x"):
            check_reachable()
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            check_reachable()
        assert time.monotonic() - start > 0.3
