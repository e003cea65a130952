"""Images of many requests are asked about together, and none fails for another."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.deploy.serve.batcher import Batcher, QueueFull
from rmadapter.deploy.serve.options import Limits
from tests.helpers.serving import Toy, wait_for


def pixels(red: float) -> np.ndarray:
    return np.stack([np.full((4, 4), value, np.float32) for value in (red, 0.5, 0.5)])


def test_waiting_images_are_batched() -> None:
    toy, told = Toy(), list[int]()
    batcher = Batcher(toy.served, Limits(batch=4, wait=0), told.append)
    toy.gate.clear()
    first = batcher.submit(pixels(0))
    wait_for(lambda: toy.sizes, "the thread never started")
    others = [batcher.submit(pixels(place / 10), features=place == 2) for place in range(1, 7)]
    toy.gate.set()
    rows = [answer.result(10) for answer in (first, *others)]
    assert toy.sizes == told == [1, 4, 2]
    for place, row in enumerate(rows):
        assert row.probabilities[0] == pytest.approx(place / 10 / (1 + place / 10), abs=1e-6)
        assert (row.features is not None) == (place == 2)
    batcher.retire()
    batcher.thread.join(10)
    assert not batcher.thread.is_alive()


def test_batch_waits_until_it_is_full() -> None:
    toy = Toy()
    batcher = Batcher(toy.served, Limits(batch=2, wait=1000))
    for answer in [batcher.submit(pixels(0.1)) for _ in range(2)]:
        assert answer.result(0.9)
    assert toy.sizes == [2]
    batcher.retire()


def test_failed_batch_is_answered_one_by_one() -> None:
    toy = Toy()
    toy.poison = 0.3
    batcher = Batcher(toy.served, Limits(wait=50))
    answers = [batcher.submit(pixels(place / 10)) for place in range(5)]
    for place, answer in enumerate(answers):
        if place == 3:
            assert isinstance(answer.exception(10), RuntimeError)
        else:
            assert answer.result(10).probabilities[0] == pytest.approx(
                place / 10 / (1 + place / 10), abs=1e-6
            )
    assert toy.sizes[0] == 5
    assert isinstance(
        batcher.submit(np.full((3, 4, 4), np.nan, np.float32)).exception(10), ArithmeticError
    )
    batcher.retire()


def test_cancelled_images_are_not_computed() -> None:
    toy = Toy()
    batcher = Batcher(toy.served, Limits(wait=0, batch=1))
    toy.gate.clear()
    first = batcher.submit(pixels(0))
    wait_for(lambda: toy.sizes, "the thread never started")
    assert batcher.submit(pixels(0.1)).cancel()
    last = batcher.submit(pixels(0.2))
    toy.gate.set()
    assert first.result(10)
    assert last.result(10)
    assert toy.sizes == [1, 1]
    batcher.retire()


def test_queue_is_limited_and_thread_ends_after_the_last_image() -> None:
    toy = Toy()
    batcher = Batcher(toy.served, Limits(queue=64))
    batcher.take(60)
    with pytest.raises(QueueFull):
        batcher.take(5)
    batcher.take(4)
    batcher.release(60)
    batcher.retire()
    answer = batcher.submit(pixels(0.1))  # of the four that are still there
    assert answer.result(10)
    assert batcher.thread.is_alive()
    batcher.submit(pixels(0.1)).cancel()
    batcher.release(4)
    batcher.thread.join(10)
    assert not batcher.thread.is_alive()
