"""Errors of the Hugging Face hub."""

from __future__ import annotations

import logging

import pytest
from huggingface_hub.utils import http_backoff

from rmadapter.support.hub import Unreachable, hub_errors


def test_attempts_to_connect_are_one_note(capsys: pytest.CaptureFixture[str]) -> None:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: logged.append(entry.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    try:
        for _ in range(2):
            with pytest.raises(Unreachable, match="'anna/x'"), hub_errors("anna/x"):
                http_backoff("GET", "http://127.0.0.1:9", max_retries=2, base_wait_time=0)
            assert logged == []
            assert capsys.readouterr().err.count("\n") == 1
        logging.getLogger("huggingface_hub.utils._http").warning("outside")
        assert logged == ["outside"]
    finally:
        logger.removeHandler(handler)
