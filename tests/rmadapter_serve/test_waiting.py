"""A queue accepts what it can answer in time, as measured, and says when to come back."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException

from rmadapter_serve import waiting
from rmadapter_serve.waiting import Queue


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def answer(queue: Queue, clock: Clock, images: int, seconds: float) -> None:
    for _ in range(images):
        with queue.place(1):
            clock.now += seconds


def test_pace_is_that_of_recent_images(clock: Clock) -> None:
    queue = Queue(100, 10)
    assert queue.pace == 0
    for seconds in (2.0, 0.5):
        answer(queue, clock, 150, seconds)
        clock.now += 1000  # nothing waits
        assert queue.pace == pytest.approx(seconds, rel=0.01)


def test_requests_that_would_take_too_long_are_refused(clock: Clock) -> None:
    queue = Queue(100, 10)
    answer(queue, clock, 200, 1)
    queue.take(6)
    with pytest.raises(HTTPException) as caught:
        queue.take(5)
    state = caught.value.detail["queue"]  # type: ignore[index]
    assert state["images"] == 11
    assert state["seconds"] == pytest.approx(11, rel=0.01)
    assert caught.value.status_code == 503
    assert caught.value.headers == {"Retry-After": "6"}  # the six are then answered
    queue.take(3)
    queue.release(9)
    queue.take(64)  # nothing else waits


def test_images_without_an_answer_do_not_count(clock: Clock) -> None:
    queue = Queue(100, 10)
    answer(queue, clock, 200, 1)
    with pytest.raises(asyncio.CancelledError), queue.place(50):  # out of time
        raise asyncio.CancelledError
    assert (queue.taken, queue.pace) == (0, pytest.approx(1, rel=0.01))
