"""In a bench of many methods on one set, every test image is decoded once, and passes the untouched
encoder once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rmadapter.encoders import ImageEncoder
from rmadapter.methods import METHODS, load_method, traits_of
from rmadapter.settings import settings_of
from tests.helpers.bench_runs import QUICK, Bench, bench
from tests.helpers.decodes import count_decodes

__all__ = ["bench"]  # a fixture
IN_BLOCKS = ("rmadapter", "mma")  # whose adapters begin at the same block
# which begin at others
ELSEWHERE = ("clip-lora", "2sfs", "maple", "dept", "mmrl", "skip-tuning", "full-finetune", "lweib")
# one needs texts about its classes, the other reads crops of each test image
APART = ("zero-shot-descriptions", "tpt")
FREE = tuple(name for name in METHODS if traits_of(name).reads != "tokens" and name not in APART)


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(FREE, id="features", marks=pytest.mark.slow),
        pytest.param((*FREE[:3], *IN_BLOCKS), id="tokens"),
        pytest.param(
            (*FREE[:11], *IN_BLOCKS, *ELSEWHERE),
            id="twenty methods that begin at several blocks",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_test_image_is_decoded_and_encoded_once(
    methods: tuple[str, ...],
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tokens: with methods in blocks, whose tokens bring along the features that others read.
    Tokens of several blocks come from one pass."""
    decoded = count_decodes(monkeypatch)
    encoded: list[int] = []
    frozen_at = ImageEncoder.frozen_at

    def encode(self: ImageEncoder, images: Tensor, *words: Any, **more: Any) -> Any:
        encoded.append(len(images) if images.any() else 0)  # a blank one tells shapes alone
        return frozen_at(self, images, *words, **more)

    monkeypatch.setattr(ImageEncoder, "frozen_at", encode)
    values = {name: QUICK for name in IN_BLOCKS if name in methods}
    for name in {*methods} - {*values}:
        small = {"epochs": 2, "iterations": 2, "first_block": 3, "layer": 3}
        own = {key: value for key, value in small.items() if key in settings_of(load_method(name))}
        values |= {name: own} if own else {}
    jobs = bench.jobs(methods=[*methods], seeds=[1])
    found = bench.run(tmp_path / "out", jobs, values=values)
    assert (
        {record.method.name for record in found if record.status == "finished"}
        == {*methods}
        <= {*METHODS}
    )
    tests = {name: count for name, count in decoded.items() if "/test/" in name}
    assert tests == dict.fromkeys(map(str, bench.colors.glob("test/*/*.png")), 1)
    assert sum(encoded) == sum(decoded.values())
