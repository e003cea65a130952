"""Workers share a port: they reload, are replaced and end together."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.errors import UserError
from tests.helpers.serving import Process, Toy, colour_image, post, wait_for
from tests.helpers.shell import backbone_option

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

from rmadapter_serve import workers  # isort: skip
from rmadapter_serve.limits import Limits  # isort: skip

IMAGE = [("a.png", colour_image(1, 2, 3))]


def test_bytes_of_bodies_are_shared_among_workers() -> None:
    assert Limits(workers=2, body=1).held == Limits(body=1).held / 2
    assert Limits(workers=64, body=1).held == Limits(body=1).bytes


def test_an_engine_with_threads_of_its_own_has_no_workers() -> None:
    with pytest.raises(UserError, match="toy is run with toy"):
        workers.run_workers(
            {"toy": Toy().served},
            {},
            Limits(),
            None,  # type: ignore[arg-type]
            lambda: None,
            None,  # type: ignore[arg-type]
        )


@pytest.mark.slow
def test_workers_reload_are_replaced_and_end(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    saved = load(finished, backbone_option(finished)[1])
    (run / "run.json").unlink()  # a model alone may be saved again

    with Process(run, *backbone_option(finished), "--workers", "2") as process:
        parent = psutil.Process(process.process.pid)

        def classes() -> set[str]:
            """Return the best classes of answers of both workers, each on a new connection."""
            answers = [post(process.address, "/predict", IMAGE) for _ in range(12)]
            assert {status for status, _ in answers} == {200}
            return {answer["answers"][0]["classes"][0]["class"] for _, answer in answers}

        def settled() -> bool:
            return len(parent.children()) == 2

        (old,) = classes()
        first = parent.children()
        save(run, saved.fitted, saved.name, labels=("blau", "grün", "nacht", "rot"))
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("reloaded" in line for line in process.said), "not reloaded")
        wait_for(lambda: settled() and parent.children() != first, "the old workers remain")
        (new,) = classes()
        assert new != old

        parent.children()[0].kill()
        wait_for(lambda: any("takes its place" in line for line in process.said), "no report")
        assert classes() == {new}
        assert settled()

        children = parent.children()
        assert process.end() == 0
        assert not any(child.is_running() for child in children)
    assert not any("Traceback" in line for line in process.said)


@pytest.mark.slow
def test_workers_end_with_their_parent(finished: Path) -> None:
    with Process(finished, *backbone_option(finished), "--workers", "2") as process:
        assert post(process.address, "/predict", IMAGE)[0] == 200
        children = psutil.Process(process.process.pid).children()
        assert len(children) == 2
        process.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
