"""Work is shared among workers on a Ray cluster that this module starts, reaches and closes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rmadapter.errors import UserError
from rmadapter.support.cluster import connected, run_on_cluster, settle, shares
from tests.helpers.ray_cluster import NEEDS_RAY, ray_session

__all__ = ["ray_session"]  # a fixture


WAITING = """
from rmadapter.support.stop import stoppable
from rmadapter.support.cluster import connected, ray_module
with stoppable(), connected(processors=1):
    ray = ray_module()
    nothing = ray.remote(lambda: __import__("time").sleep(600)).remote()
    print("waiting", flush=True)
    while True:
        ray.wait([nothing], timeout=0.5)
"""


class Counting:
    """Remembers what it did."""

    def __init__(self) -> None:
        self.did: list[int] = []

    def do(self, work: int) -> list[int]:
        if work < 0:
            raise UserError(f"{work} is too little")
        if work == 99:
            import os

            os._exit(1)
        self.did.append(work)
        return self.did


def counted(todo: list[int], size: int) -> Iterator[tuple[int, list[int]]]:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    return (found for found in run_on_cluster(Counting, todo, size, "cpu") if found)


def test_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"rmadapter\[ray\]"), connected():
        pass


def test_an_address_without_a_cluster_is_refused() -> None:
    pytest.importorskip("ray", reason=NEEDS_RAY)
    with (
        pytest.raises(UserError, match="no Ray cluster could be reached"),
        connected("127.0.0.1:1"),
    ):
        pass


def test_ctrl_c_while_ray_waits_leaves_no_process() -> None:
    pytest.importorskip("ray", reason=NEEDS_RAY)
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=-1, stderr=-1, text=True)
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) > 3  # what Ray is made of, and a worker
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "rmadapter: stopped" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(below, timeout=20)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_all_work_is_done_once_by_one_or_two_workers(ray_session: None) -> None:
    for size in (1, 2):
        found = dict(counted([1, 2, 3, 4, 5], size))
        assert sorted(found) == [1, 2, 3, 4, 5]
        # each begins once: they are kept
        assert sum(len(did) == 1 for did in found.values()) <= size


def test_an_error_of_one_worker_ends_all_with_its_message(ray_session: None) -> None:
    with pytest.raises(UserError, match=r"^node [0-9.]+: -1 is too little"):
        list(counted([1, -1, 2], 2))


def test_work_that_kills_three_workers_is_given_up(ray_session: None) -> None:
    with pytest.raises(UserError, match="3 workers died on this, perhaps out of memory: 99"):
        list(counted([1, 99], 2))


def test_processors_are_shared(ray_session: None) -> None:
    assert [shares(count)["num_cpus"] for count in (1, 2, 3)] == [2, 1, 1]


def test_gpus_are_shared(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes = [
        {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": 2.0}} for alive in (True, True, False)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [shares(count)["num_gpus"] for count in (1, 4, 5, 8)] == [1, 1, 1 / 2, 1 / 2]
    assert [shares(count)["num_cpus"] for count in (1, 4, 5, 8)] == [8, 4, 2, 2]
    assert shares(4, "cpu")["num_gpus"] == 0


def test_a_cluster_started_here_requires_a_token(ray_session: None) -> None:
    """So nobody else who reaches its ports is let in."""
    import ray

    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init({address!r}, log_to_driver=False); print('in')"
    words, here = [sys.executable, "-c", code], dict(os.environ)
    wrong = {**here, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    right = {**here, "RAY_AUTH_MODE": "token"}
    found = [
        subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
        for env in (right, wrong)
    ]
    assert found[0].stdout == "in\n", found[0].stderr
    assert found[1].returncode != 0
    assert "oken" in found[1].stderr


def test_a_worker_changes_to_the_folder_of_the_user(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.chdir(Path.cwd())
    try:
        settle(tmp_path, 3)
        assert (Path.cwd(), torch.get_num_threads()) == (tmp_path, 3)
        settle(tmp_path / "nowhere", 0.5)
        assert (Path.cwd(), torch.get_num_threads()) == (tmp_path, 1)
    finally:
        torch.set_num_threads(before)
