"""Limits of a server."""

from __future__ import annotations

import pytest

from rmadapter.deploy.serve.options import Limits
from rmadapter.errors import UserError


def test_requests_larger_than_the_queue_are_refused() -> None:
    assert Limits(queue=5, images=5, body=0.5).bytes == 500_000
    with pytest.raises(UserError, match="--images 6"):
        Limits(queue=5, images=6)
