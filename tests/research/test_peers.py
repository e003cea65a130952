"""peers.py on a tiny model. What it measures is never asserted: machines differ."""

from __future__ import annotations

import json

import pytest

from rmadapter.methods import METHODS
from rmadapter.settings import settings_of
from tests.helpers.benchmarks import ONCE, Printed, run, tiny_model
from tests.helpers.slow import slow_except

import past_figures  # isort: skip
import peers  # isort: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a backbone of six blocks, which MMRL needs."""
    return [*ONCE, "--backbone", tiny_model(tmp_path_factory.mktemp("peers"), layers=6)]


def test_every_peer_is_measured_with_its_published_batch_and_a_single_pass() -> None:
    batches = {name: settings_of(peers.quick(name)).get("batch_size") for name in METHODS}
    assert (batches["coop"], batches["cocoop"], batches["maple"], batches["mma"]) == (32, 1, 4, 16)
    assert batches["zero-shot"] is None
    assert {settings_of(peers.quick(name)).get("epochs", 1) for name in METHODS} == {1}
    assert settings_of(peers.quick("clip-lora"))["iterations"] == 0


@pytest.mark.parametrize("name", slow_except(peers.IN_BLOCKS, "rmadapter"))
def test_the_lean_pass_is_the_plain_one(
    name: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    given = (*tiny, "--classes", "3", "--largest", "3", "--methods", name, "--json")
    found = json.loads(run(peers, monkeypatch, capsys, *given))
    (row,) = found[0]["methods"]
    assert f"| {name} |" in past_figures.peers(found)
    assert row["batch"] == (1 if name == "cocoop" else 3)
    assert row["loss_difference"] < 1e-5
    assert row["gradient_difference"] < 1e-4
    assert row["operations"] > 1.5
    assert row["ratio"] == pytest.approx(row["reference_cpu_seconds"] / row["step_cpu_seconds"])
    assert row["bf16_ratio"] == pytest.approx(row["step_cpu_seconds"] / row["bf16_cpu_seconds"])
