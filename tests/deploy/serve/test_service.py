"""Images are decoded, asked about with those of other requests, and answered, whatever their
neighbours are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.deploy.serve.model import open_served
from rmadapter.deploy.serve.options import Limits, ServeOptions
from rmadapter.deploy.serve.service import Counters, Service, Upload
from rmadapter.errors import UserError

from tests.helpers.serving import HTTPException, Toy, colour_image, read, running_service  # isort: skip

from prometheus_client.parser import text_string_to_metric_families

RED = Upload("red.png", colour_image(255, 0, 0))
BAD = Upload("bad.png", b"\x89PNG")


def refusal(service: Service, *uploads: Upload, model: str = "toy", **more: bool) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        asyncio.run(service.answer(model, uploads, **more))
    return caught.value


def test_bad_images_are_named_and_can_be_skipped() -> None:
    with running_service(Toy()) as service:
        found = refusal(service, RED, BAD, Upload("text.txt", b"text"))
        assert found.status_code == 422
        told = found.detail["images"]  # type: ignore[index]
        assert [(one["index"], one["image"]) for one in told] == [(1, "bad.png"), (2, "text.txt")]
        assert told[0]["error"].startswith("bad.png: not a")
        rows = asyncio.run(service.answer("toy", [BAD, RED, BAD], skip_bad=True)).rows
        assert [isinstance(row, UserError) for row in rows] == [True, False, True]
        assert rows[1].probabilities.argmax() == 0  # type: ignore[union-attr]
        assert (
            asyncio.run(service.answer("toy", [BAD], skip_bad=True))
            .rows[0]
            .args[0]
            .startswith("bad.png")
        )  # type: ignore
        assert service.counters.total("rmadapter_images", outcome="bad") == 5
        assert service.counters.total("rmadapter_images", outcome="answered") == 1


def test_full_queue_refuses_and_loses_nothing() -> None:
    async def both(service: Service, toy: Toy) -> None:
        toy.gate.clear()
        first = asyncio.create_task(service.answer("toy", [RED] * 3))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as caught:
            await service.answer("toy", [RED] * 2)
        assert caught.value.status_code == 429
        assert caught.value.headers == {"Retry-After": "1"}
        toy.gate.set()
        assert len((await first).rows) == 3
        assert len((await service.answer("toy", [RED] * 4)).rows) == 4  # all places are free again

    toy = Toy()
    with running_service(toy, queue=4, images=4) as service:
        asyncio.run(both(service, toy))


def test_names_of_models() -> None:
    with running_service(Toy(features=False)) as service:
        assert service.only() == "toy"
        assert "'toy'" in refusal(service, RED, model="toi").detail
        found = refusal(service, RED, features=True)
        assert (found.status_code, found.detail.startswith("toy gives no features")) == (404, True)
        service.put("other", Toy().served)
        with pytest.raises(HTTPException, match=r"\?model=.* other, toy"):
            service.only()


def test_model_is_replaced_while_it_answers() -> None:
    async def exchanged(service: Service, old: Toy) -> None:
        old.gate.clear()
        first = asyncio.create_task(service.answer("toy", [RED] * 3))
        await asyncio.sleep(0.05)
        service.put("toy", Toy(labels=("rot", "grün", "blau")).served)
        second = await service.answer("toy", [RED])
        assert second.model.labels[0] == "rot"
        assert not first.done()
        old.gate.set()
        assert (await first).model.labels[0] == "red"

    toy = Toy()
    with running_service(toy) as service:
        asyncio.run(exchanged(service, toy))


def test_concurrent_requests_get_the_answers_of_predict(
    finished: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Mixed sizes, and bad ones between them."""
    files = [Upload(*one) for one in read(sorted(colors.glob("*/*/*.png")))]
    files += [
        Upload(f"{n}.png", colour_image(9 * n, 200 - 5 * n, 40, (5 + 31 * n, 400 - 29 * n)))
        for n in range(12)
    ]
    service = Service(
        {"run": open_served(ServeOptions(finished, backbone=tiny_clip.name))}, Limits(batch=7)
    )
    paths = [tmp_path / f"{place}.png" for place in range(len(files))]
    for path, one in zip(paths, files, strict=True):
        path.write_bytes(one.data)
    saved = load(finished, tiny_clip)
    wanted = np.concatenate(
        [part.numpy() for part in saved.fitted.probabilities(paths, saved.names)]
    )

    async def ask(place: int) -> np.ndarray:
        rows = (
            await service.answer("run", [files[place], BAD], features=place % 3 == 0, skip_bad=True)
        ).rows
        assert isinstance(rows[1], UserError)
        return rows[0].probabilities  # type: ignore[union-attr]

    async def all_at_once() -> list[np.ndarray]:
        return await asyncio.gather(*map(ask, range(len(files))))

    try:
        assert np.abs(np.stack(asyncio.run(all_at_once())) - wanted).max() < 1e-6
        assert service.counters.registry.get_sample_value(
            "rmadapter_batch_images_count", {"model": "run"}
        ) < len(files)  # type: ignore
    finally:
        service.close()


# Counters


def test_prometheus_parses_counters() -> None:
    counters = Counters()
    for status, count in ((200, 3), (429, 2)):
        counters.requests.labels("/predict", status).inc(count)
    counters.batches.labels('a "model"').observe(5)
    found = {
        family.name: family for family in text_string_to_metric_families(counters.text().decode())
    }
    samples = found["rmadapter_requests"].samples
    assert {
        tuple(sample.labels.values()): sample.value
        for sample in samples
        if sample.name.endswith("_total")
    } == {("/predict", "200"): 3, ("/predict", "429"): 2}
    buckets = {
        sample.labels.get("le"): sample.value for sample in found["rmadapter_batch_images"].samples
    }
    assert (buckets["4.0"], buckets["8.0"]) == (0, 1)
    assert counters.total("rmadapter_requests") == 5
    assert counters.total("rmadapter_requests", status="429") == 2
    assert counters.total("rmadapter_images") == 0


def test_servers_count_separately() -> None:
    first, second = Counters(), Counters()
    first.requests.labels("/", 200).inc()
    assert second.total("rmadapter_requests") == 0
