"""Images are decoded, batched with those of other requests, and answered, whatever their neighbours
are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.errors import UserError
from tests.helpers.serving import HTTPException, Toy, colour_image, read, running_service, wait_for

from prometheus_client.parser import text_string_to_metric_families  # isort: skip

from rmadapter_serve import service as service_module
from rmadapter_serve.limits import Limits
from rmadapter_serve.model import ServeOptions, open_served
from rmadapter_serve.service import Batcher, Counters, Service, Upload

RED = Upload("red.png", colour_image(255, 0, 0))
BAD = Upload("bad.png", b"\x89PNG")


def test_requests_larger_than_the_queue_are_refused() -> None:
    assert Limits(queue=5, max_images=5, body=0.5).bytes == 500_000
    with pytest.raises(UserError, match="--max-images 6"):
        Limits(queue=5, max_images=6)


# One model


def pixels(red: float) -> np.ndarray:
    return np.stack([np.full((4, 4), value, np.float32) for value in (red, 0.5, 0.5)])


def share_of_red(red: float) -> Any:
    return pytest.approx(red / (1 + red), abs=1e-6)


@contextmanager
def running_batcher(toy: Toy, *on_batch: Any, **limits: Any) -> Iterator[Batcher]:
    """Run a batcher of the toy, whose thread must end."""
    batcher = Batcher(toy.served, Limits(**limits), *on_batch)
    yield batcher
    batcher.retire()
    batcher.thread.join(10)
    assert not batcher.thread.is_alive()


def test_waiting_images_are_batched() -> None:
    toy, sizes = Toy(), list[int]()
    with running_batcher(toy, sizes.append, batch=4, wait=0) as batcher:
        toy.gate.clear()
        first = batcher.submit(pixels(0))
        wait_for(lambda: toy.sizes, "the thread never started")
        others = [batcher.submit(pixels(place / 10), more=place == 2) for place in range(1, 7)]
        toy.gate.set()
        rows = [answer.result(10) for answer in (first, *others)]
    assert toy.sizes == sizes == [1, 4, 2]
    for place, row in enumerate(rows):
        assert row.probabilities[0, 0] == share_of_red(place / 10)
    assert rows[2].features is not None
    assert rows[0].features is None


def test_batch_waits_until_it_is_full() -> None:
    toy = Toy()
    with running_batcher(toy, batch=2, wait=1000) as batcher:
        for answer in [batcher.submit(pixels(0.1)) for _ in range(2)]:
            assert answer.result(0.9)
        assert toy.sizes == [2]


def test_failed_batch_is_answered_one_by_one() -> None:
    toy = Toy()
    toy.poison = 0.3
    with running_batcher(toy, wait=50) as batcher:
        answers = [batcher.submit(pixels(place / 10)) for place in range(5)]
        assert isinstance(answers.pop(3).exception(10), RuntimeError)
        for red, answer in zip((0, 0.1, 0.2, 0.4), answers, strict=True):
            assert answer.result(10).probabilities[0, 0] == share_of_red(red)
        assert toy.sizes[0] == 5
        nan = batcher.submit(np.full((3, 4, 4), np.nan, np.float32))
        assert isinstance(nan.exception(10), ArithmeticError)


def test_cancelled_images_are_not_computed() -> None:
    toy = Toy()
    with running_batcher(toy, wait=0, batch=1) as batcher:
        toy.gate.clear()
        first = batcher.submit(pixels(0))
        wait_for(lambda: toy.sizes, "the thread never started")
        assert batcher.submit(pixels(0.1)).cancel()
        last = batcher.submit(pixels(0.2))
        toy.gate.set()
        assert first.result(10)
        assert last.result(10)
    assert toy.sizes == [1, 1]


def test_thread_ends_after_the_last_image() -> None:
    with running_batcher(Toy(), queue=64) as batcher:
        with batcher.place(60), pytest.raises(HTTPException), batcher.place(5):
            pass
        with batcher.place(4):
            batcher.retire()
            answer = batcher.submit(pixels(0.1))  # one of the four that still have places
            assert answer.result(10)
            assert batcher.thread.is_alive()
            batcher.submit(pixels(0.1)).cancel()


# All models


def refusal(service: Service, *uploads: Upload, model: str = "toy", **more: bool) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        asyncio.run(service.answer(model, uploads, **more))
    return caught.value


def test_bad_images_are_named_and_can_be_skipped() -> None:
    with running_service(Toy()) as service:
        error = refusal(service, RED, BAD, Upload("text.txt", b"text"))
        assert error.status_code == 422
        images = error.detail["images"]  # type: ignore[index]
        assert [(one["index"], one["image"]) for one in images] == [(1, "bad.png"), (2, "text.txt")]
        assert images[0]["error"].startswith("bad.png: not a")
        rows = asyncio.run(service.answer("toy", [BAD, RED, BAD], skip_bad=True)).rows
        assert [isinstance(row, UserError) for row in rows] == [True, False, True]
        assert rows[1].probabilities.argmax() == 0  # type: ignore[union-attr]
        (row,) = asyncio.run(service.answer("toy", [BAD], skip_bad=True)).rows
        assert str(row).startswith("bad.png")
        assert service.counters.total("rmadapter_images", outcome="bad") == 5
        assert service.counters.total("rmadapter_images", outcome="answered") == 1


def test_full_queue_refuses_and_loses_nothing() -> None:
    async def ask_too_much(service: Service, toy: Toy) -> None:
        toy.gate.clear()
        first = asyncio.create_task(service.answer("toy", [RED] * 3))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as caught:
            await service.answer("toy", [RED] * 2)
        assert caught.value.status_code == 503
        assert int(caught.value.headers["Retry-After"]) >= 1  # type: ignore[index]
        queue = caught.value.detail["queue"]  # type: ignore[index]
        assert (queue["images"], queue["most_images"]) == (5, 4)
        toy.gate.set()
        assert len((await first).rows) == 3
        assert len((await service.answer("toy", [RED] * 4)).rows) == 4  # all places are free again

    toy = Toy()
    with running_service(toy, queue=4, max_images=4) as service:
        asyncio.run(ask_too_much(service, toy))


def test_few_images_are_decoded_before_their_turn() -> None:
    async def ask(service: Service, toy: Toy) -> None:
        toy.gate.clear()
        task = asyncio.create_task(service.answer("toy", [RED] * 20))
        await asyncio.to_thread(wait_for, lambda: toy.sizes, "the thread never started")
        await asyncio.sleep(0.2)
        assert 2 <= toy.decoded <= 4
        toy.gate.set()
        assert len((await task).rows) == 20

    toy = Toy()
    with running_service(toy, batch=2) as service:
        asyncio.run(ask(service, toy))


def test_large_images_are_decoded_one_at_a_time_beside_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "LARGE", 100_000)
    large = Upload("large.png", colour_image(255, 0, 0, (1100, 50)))

    async def ask(service: Service, toy: Toy) -> None:
        toy.slow.clear()
        tasks = [asyncio.create_task(service.answer("toy", [large])) for _ in range(3)]
        await asyncio.to_thread(wait_for, lambda: toy.large, "no large image was decoded")
        assert len((await service.answer("toy", [RED] * 5)).rows) == 5
        assert toy.large == 1
        toy.slow.set()
        assert [len(answers.rows) for answers in await asyncio.gather(*tasks)] == [1, 1, 1]
        assert toy.large == 3

    toy = Toy()
    with running_service(toy) as service:
        asyncio.run(ask(service, toy))


def test_an_old_model_is_gone_before_the_next_is_loaded() -> None:
    async def replace_model(service: Service, old: Toy) -> None:
        old.gate.clear()
        first = asyncio.create_task(service.answer("toy", [RED]))
        await asyncio.to_thread(wait_for, lambda: old.sizes, "the thread never started")
        service.put("toy", Toy().served)
        settled = asyncio.create_task(service.settle())
        await asyncio.sleep(0.2)
        assert not settled.done()
        old.gate.set()
        await first
        await asyncio.wait_for(settled, 10)

    toy = Toy()
    with running_service(toy) as service:
        asyncio.run(replace_model(service, toy))


def test_unknown_models_and_missing_features_are_refused() -> None:
    with running_service(Toy(features=False)) as service:
        assert service.only() == "toy"
        assert "served are toy" in refusal(service, RED, model="toi").detail
        error = refusal(service, RED, features=True)
        assert (error.status_code, error.detail.startswith("toy gives no features")) == (404, True)
        service.put("other", Toy().served)
        with pytest.raises(HTTPException, match=r"\?model=.* other, toy"):
            service.only()


def test_model_is_replaced_while_it_answers() -> None:
    async def replace_model(service: Service, old: Toy) -> None:
        old.gate.clear()
        first = asyncio.create_task(service.answer("toy", [RED] * 3))
        await asyncio.sleep(0.05)
        service.put("toy", Toy(labels=("rot", "grün", "blau")).served)
        second = await service.answer("toy", [RED])
        assert second.served.model.decider.labels[0] == "rot"
        assert not first.done()
        old.gate.set()
        assert (await first).served.model.decider.labels[0] == "red"

    toy = Toy()
    with running_service(toy) as service:
        asyncio.run(replace_model(service, toy))


def test_concurrent_requests_get_the_answers_of_predict(
    finished: Path, saved: Saved, colors: Path, tmp_path: Path
) -> None:
    """Images of many sizes, each beside a bad one."""
    files = [Upload(*one) for one in read(sorted(colors.glob("*/*/*.png")))]
    for n in range(12):
        size = (5 + 31 * n, 400 - 29 * n)
        files.append(Upload(f"{n}.png", colour_image(9 * n, 200 - 5 * n, 40, size)))
    paths = [tmp_path / f"{place}.png" for place in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file.data)
    parts = saved.fitted.probabilities(paths, saved.names)
    expected = np.concatenate([part.numpy() for part in parts])
    model = open_served(ServeOptions(finished, backbone=saved.fitted.backbone.name))
    service = Service({"run": model}, Limits(batch=7))

    async def ask(place: int) -> np.ndarray:
        images = [files[place], BAD]
        answers = await service.answer("run", images, features=place % 3 == 0, skip_bad=True)
        assert isinstance(answers.rows[1], UserError)
        return answers.rows[0].probabilities[0]  # type: ignore[union-attr]

    async def ask_at_once() -> list[np.ndarray]:
        return await asyncio.gather(*map(ask, range(len(files))))

    try:
        assert np.abs(np.stack(asyncio.run(ask_at_once())) - expected).max() < 1e-6
        read_count = service.counters.registry.get_sample_value
        batches = read_count("rmadapter_batch_images_count", {"model": "run"})
        assert batches is not None
        assert batches < len(files)
    finally:
        service.close()


# Counters


def test_prometheus_parses_counters() -> None:
    counters, other = Counters(), Counters()
    for status, count in ((200, 3), (503, 2)):
        counters.requests.labels("/predict", status).inc(count)
    counters.batches.labels('a "model"').observe(5)
    text = counters.text().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    totals = {
        tuple(sample.labels.values()): sample.value
        for sample in families["rmadapter_requests"].samples
        if sample.name.endswith("_total")
    }
    assert totals == {("/predict", "200"): 3, ("/predict", "503"): 2}
    samples = families["rmadapter_batch_images"].samples
    buckets = {sample.labels.get("le"): sample.value for sample in samples}
    assert (buckets["4.0"], buckets["8.0"]) == (0, 1)
    assert counters.total("rmadapter_requests") == 5
    assert counters.total("rmadapter_requests", status="503") == 2
    assert counters.total("rmadapter_images") == 0
    assert other.total("rmadapter_requests") == 0  # each server has its own
