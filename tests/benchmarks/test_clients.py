"""Clients of the benchmark: every answer in its place, and nothing hostile that a small server does
not refuse."""

from __future__ import annotations

import time

import clients
import pytest

from tests.helpers.serving import Toy, colour_image, running_server


def test_well_behaved_clients_get_each_answer_in_its_place() -> None:
    bodies = [clients.form(colour_image(250 - 4 * n, 4 * n, 0)) for n in range(30)]
    with running_server(Toy()) as address:
        found = clients.closed_loop(address, bodies, 5)
        shares = [
            answer["answers"][0]["classes"][0]["probability"]
            for status, answer in found
            if status == 200
        ]
        assert shares == pytest.approx([max(250 - 4 * n, 4 * n) / 250 for n in range(30)], abs=1e-3)
        spent, statuses = clients.open_loop(address, bodies, 40, 1, 8)
        assert statuses == {200: 40}
        assert len(spent) == 40
        assert 0 < min(spent) < max(spent) < 1
        assert clients.metrics(address)["process_resident_memory_bytes"] > 1e6


@pytest.mark.ci
def test_hostile_clients_are_refused_or_answered() -> None:
    with running_server(Toy()) as address:
        kinds = clients._kinds(
            address, colour_image(9, 9, 9, (90, 70), "JPEG"), 200_000, clients.random.Random(1)
        )
        statuses = {kind: send() for kind, send in kinds.items() if kind != "large image"}
        assert statuses.pop("slow body") == clients.GONE
        assert statuses.pop("damaged JPEG") in (200, 422)
        assert statuses.pop("damaged form") in (200, 400, 422)
        assert statuses.pop("wrong JSON") in (400, 422)
        assert statuses == {
            "random bytes": 422, "truncated JPEG": 422, "bomb": 422, "line": 422, "huge body": 413,
            "huge body in chunks": 413, "no such path": 404,
        }  # fmt: skip
        assert clients.hostile(
            address, colour_image(9, 9, 9, (90, 70), "JPEG"), 200_000, time.monotonic() + 0.5, 2
        )
