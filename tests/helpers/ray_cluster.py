"""One Ray session a test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

NEEDS_RAY = "needs the extra ray: `make scale` installs it"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A cluster of this machine's, with two processors."""
    pytest.importorskip("ray", reason=NEEDS_RAY)
    from rmadapter.support.cluster import connected

    with connected(processors=2):
        yield
