"""What is known of somebody's public code."""

from __future__ import annotations

import pytest
from peer import Peer, Sizes


def test_a_tensor_is_called_by_its_own_name_or_that_of_its_layer() -> None:
    peer = Peer("a/b", "c:d", "", {}, {"down": "theirs.down", "up.bias": "theirs.offset"})
    assert peer.called("down.weight") == "theirs.down.weight"
    assert peer.called("up.bias") == "theirs.offset"
    with pytest.raises(KeyError):
        peer.called("up.weight")


def test_adapted_blocks_end_at_the_top() -> None:
    assert [*Sizes(depth=5, first=4, prompted=2).blocks] == [4, 5]
