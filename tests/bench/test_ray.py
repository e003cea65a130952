"""Runs on a Ray cluster give the same records as here, whatever dies meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import Record, read_record
from rmadapter.bench.protocols import expand
from rmadapter.bench.ray import BenchWorker, digests_of, next_job, work
from rmadapter.bench.runner import in_order
from rmadapter.errors import UserError
from rmadapter.support.cluster import Host
from rmadapter.support.locks import exclusive
from rmadapter.support.machine import version_of
from tests.helpers.bench_runs import (
    METHODS,
    QUICK,
    VALUES,
    Bench,
    bench,
    bench_command,
    finished_bench,
    records,
)
from tests.helpers.ray_cluster import NEEDS_RAY, ray_session

__all__ = ["bench", "finished_bench", "ray_session"]  # fixtures
CRASHING = f"{Path(__file__).parents[1] / 'helpers/crashing_method.py'}:CrashingMethod"


def do(
    bench: Bench, out: Path, jobs: Any = None, values: Any = None, processes: int = 1,
    address: str = "",
) -> list[Record]:  # fmt: skip
    engine = partial(work, address=address)
    return bench.run(out, jobs, processes, engine, values=values)


def test_the_next_run_is_on_the_same_images() -> None:
    jobs = in_order(expand("few-shot", ["a", "b"], ["coop", "zero-shot"], [1], [1, 2]))
    a, b = jobs[0], next(job for job in jobs if job.task.data == "b")
    assert next_job(None, jobs, []) == a
    assert next_job(a, jobs[1:], []).images == a.images
    assert next_job(b, jobs, []).images == b.images
    other = next_job(None, jobs[1:], [a])
    assert other.images != a.images
    assert next_job(None, jobs[:2], [a]) == a  # nothing else is left


def test_records_are_those_of_the_local_engine(
    ray_session: None, finished_bench: Path, bench: Bench, tmp_path: Path
) -> None:
    """To the last digit; test_runner.py has the same of local processes. Every thread count is
    one."""
    found, here = do(bench, tmp_path, processes=2), bench.run(finished_bench)
    assert [record.scores for record in found] == [record.scores for record in here]
    assert [record.key for record in found] == [record.key for record in here]
    assert [record.machine["threads"] for record in found] == [1] * 6
    # no lock, no activations
    assert {path.name for path in tmp_path.iterdir()} == {"base-to-novel"}
    before = records(tmp_path)
    do(bench, tmp_path)
    assert records(tmp_path) == before


def test_a_training_of_another_protocol_is_not_repeated(
    ray_session: None, finished_bench: Path, bench: Bench, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    found = do(bench, out, bench.jobs(protocol="ablation-layers", seeds=[1]))
    original = f"base-to-novel/{bench.colors.name}/rmadapter/default-2shots-seed1.json"
    assert [record.copied_from for record in found] == ["", original, ""]


def test_a_worker_that_dies_in_a_run_loses_nothing(
    ray_session: None, bench: Bench, tmp_path: Path
) -> None:
    (folder := tmp_path / "fits_folder").mkdir()
    jobs = bench.jobs(methods=[CRASHING, "zero-shot"])
    values = {CRASHING: {"fits_folder": str(folder), "crashes": 2}}
    found = do(bench, tmp_path / "out", jobs, values)
    assert [record.status for record in found] == ["finished"] * 4
    assert len(list(folder.iterdir())) == 2 + 2  # two crashes, and each of two runs once
    assert found[0].metrics == found[2].metrics  # it answers as zero-shot does


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("weights of", "weights of .* differ"),
        ("images of colors0", "images of colors0 differ"),
        ("version", "but needs 0.0"),
    ],
)
def test_a_node_with_other_data_weights_or_version_is_refused(
    wrong: str, words: str, bench: Bench, tmp_path: Path
) -> None:
    """A worker in this process, as if it were on another machine: what it expects is changed."""
    pytest.importorskip("ray", reason=NEEDS_RAY)
    [job] = bench.jobs(methods=["zero-shot"], seeds=[1])
    plan = bench.plan(tmp_path / "none", [job])
    here, digests = version_of("rmadapter"), digests_of(plan.lab(), [job])
    sound = BenchWorker(plan, {}, here, digests)
    assert (sound.do(job).status, sound.lab.folder) == ("finished", None)
    other = {name: "0" * 64 if name.startswith(wrong) else own for name, own in digests.items()}
    version = "0.0" if wrong == "version" else here
    changed = Host(partial(BenchWorker, plan, {}, version, other), Path.cwd(), 1)
    with pytest.raises(UserError, match=rf"^node [0-9.]+: .*{words}"):
        changed.ready() or changed.do(job)
    elsewhere = replace(plan, root=tmp_path)
    missing = Host(partial(BenchWorker, elsewhere, {}, here, digests), Path.cwd(), 1)
    missing.ready()
    with pytest.raises(UserError, match=r"^node [0-9.]+: .*every node needs data, backbone"):
        missing.do(job)


def test_a_locked_folder_is_refused(ray_session: None, bench: Bench, tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="another process is at work"):
        do(bench, tmp_path, bench.jobs(methods=["zero-shot"]))


def waited(out: Path, count: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while len(records(out)) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
def test_an_interrupted_command_resumes(bench: Bench, tmp_path: Path) -> None:
    """With it the cluster dies that it had started; what is done is kept."""
    pytest.importorskip("ray", reason=NEEDS_RAY)
    words = [*bench_command(bench, tmp_path / "out", "--ray", "--jobs", "2", "--json")]
    kept: dict[str, bytes] = {}
    for number, code, least in ((signal.SIGKILL, -9, 2), (signal.SIGINT, 130, 4), (0, 0, 9)):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        waited(tmp_path / "out", least)
        if number:
            process.send_signal(number)
        out, errors = process.communicate(timeout=300)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        found = records(tmp_path / "out")
        assert {path: found[path] for path in kept} == kept
        kept = found
    assert len(json.loads(out)) == len(kept) == 9
    assert {read_record(tmp_path / "out" / path).status for path in kept} == {"finished"}


@pytest.mark.slow
def test_a_node_that_dies_loses_nothing(bench: Bench, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason=NEEDS_RAY)
    from ray.cluster_utils import Cluster

    ray.shutdown()  # the ray_session of the tests above
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        jobs = bench.jobs(methods=list(METHODS), seeds=[1, 2, 3, 4])
        lost = threading.Thread(
            target=lambda: (
                waited(tmp_path, 2),
                cluster.remove_node(nodes[1], allow_graceful=False),
            )
        )
        lost.start()
        values = {method: {**QUICK, "epochs": 20} for method in VALUES}
        found = do(bench, tmp_path, jobs, values, 2, cluster.address)
        lost.join()
    finally:
        cluster.shutdown()
    assert [record.status for record in found] == ["finished"] * 12
    assert len(records(tmp_path)) == 12
