"""What a server takes at most."""

from __future__ import annotations

import pytest

from rmadapter.deploy.serve.limits import Limits
from rmadapter.errors import UserError


def test_a_request_that_the_queue_could_never_hold_is_refused_at_the_start() -> None:
    assert Limits(queue=5, images=5, body=0.5).bytes == 500_000
    with pytest.raises(UserError, match=r"--images 6: must not exceed --queue 5"):
        Limits(queue=5, images=6)
