"""Commands run one after the other: their messages, their ends, and what a stopped one leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rmadapter.backbones.published import caveat
from rmadapter.data.decode import advice
from rmadapter.data.image_set import SKIP_BAD
from rmadapter.errors import UserError
from rmadapter_studio import cli, jobs as module
from rmadapter_studio.jobs import COMMAND_WORDS, Job, Jobs, without_commands

# The last word is the folder that it writes.
SCRIPT = """
import os, sys, time
kind, out = sys.argv[1:]
os.mkdir(out)
lines = "note: two classes", "training: 1,500 of 2,000, 3 s left, loss 0.5"
print(*lines, sep="\\n", file=sys.stderr, flush=True)
if kind == "long":
    time.sleep(60)
if kind == "wrong":
    print("rmadapter: give more", file=sys.stderr)
    sys.exit(2)
if kind == "bug":
    1 / 0
if kind == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", SCRIPT))
    queue = Jobs()
    yield queue
    queue.close()


def job(folder: Path, kind: str, name: str = "out") -> Job:
    return Job("Training", [kind, name], folder, folder / name)


def wait(what: Job, state: str) -> None:
    wait_until(lambda: what.state == state, lambda: f"{what.state}: {what.message}")


def wait_until(ready: Callable[[], bool], why: Callable[[], str]) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until, why()
        time.sleep(0.01)


def is_removed(path: Path) -> bool:
    wait_until(lambda: not path.exists(), lambda: f"{path} is still there")
    return True


def test_successful_job(jobs: Jobs, tmp_path: Path) -> None:
    one, seen = job(tmp_path, "well"), []
    one.on_success = lambda: seen.append(one.out.is_dir())
    jobs.add(one)
    wait(one, "done")
    assert seen == [True]
    assert (one.notes, one.share) == (["two classes"], 0.75)
    assert one.message == "learning from them: 3 s left"
    assert one.out.is_dir()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two classes", "two classes"),
        ("a model of birds: --backbone hf-hub:birds", "a model of birds"),
        (f"a.heic: no image; {SKIP_BAD}", "a.heic: no image"),
        (f"a.heic: no image; {advice('.heic') or 'pip install x'}", "a.heic: no image"),
        ("it only knows red; `rmadapter add RUN FOLDER` trains it again", "it only knows red"),
        ("b--c.png: empty; give others; see --set x=1", "b--c.png: empty; give others"),
    ],
)
def test_messages_lose_what_is_typed_in_a_shell(text: str, shown: str) -> None:
    assert without_commands(text) == shown
    one = Job("Training", [], Path(), Path())
    one.read_line(f"note: {text}")
    assert one.notes == [shown]


def test_the_note_on_a_small_backbone_stays_whole() -> None:
    text = caveat("pocket-3")
    shown = without_commands(text)
    assert "`" in text
    assert "`" not in shown
    assert shown.endswith("a real CLIP is far better")


def test_own_messages_name_no_command() -> None:
    """What the page's own code raises, and its constants; arguments of commands are neither, and
    who reads messages of the verbs types them."""
    files = {*Path(module.__file__).parent.glob("*.py")} - {Path(cli.__file__)}
    for file in files:
        tree = ast.parse(file.read_text("utf-8"))
        constants = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        for node in [*constants, *raised]:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    assert "command line" not in part.value
                    assert not COMMAND_WORDS.search(part.value) or "(?<!" in part.value


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong", "give more"),
        ("bug", "exit code 1, which is a bug"),
        ("killed", "as when memory runs out"),
    ],
)
def test_failed_job_leaves_nothing(jobs: Jobs, tmp_path: Path, kind: str, message: str) -> None:
    one = job(tmp_path, kind)
    one.on_success = lambda: pytest.fail("it did not end well")
    jobs.add(one)
    wait(one, "failed")
    assert message in one.message
    assert is_removed(one.out)


def test_on_success_may_fail(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise UserError("not this one")

    def fail() -> None:
        raise ZeroDivisionError

    for on_success, message in ((refuse, "not this one"), (fail, "Internal error")):
        one = job(tmp_path, "well")
        one.on_success = on_success
        jobs.add(one)
        wait(one, "failed")
        assert message in one.message
        assert is_removed(one.out)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_jobs_run_in_order_and_can_be_stopped(jobs: Jobs, tmp_path: Path) -> None:
    one, two, three = (job(tmp_path, "long" if name == "a" else "well", name) for name in "abc")
    for each in (one, two, three):
        jobs.add(each)
    wait(one, "running")
    while one.share is None:
        time.sleep(0.01)
    assert [jobs.place(each) for each in (one, two, three)] == [0, 1, 2]
    jobs.stop(two)
    assert (two.state, jobs.place(three)) == ("stopped", 1)
    jobs.stop(one)
    wait(three, "done")
    assert (one.state, is_removed(one.out), two.out.exists()) == ("stopped", True, False)
    jobs.stop(three)
    assert (three.state, three.out.exists()) == ("done", True)


def test_the_end_of_the_server_stops_all(jobs: Jobs, tmp_path: Path) -> None:
    one, two = job(tmp_path, "long", "a"), job(tmp_path, "well", "b")
    jobs.add(one)
    jobs.add(two)
    wait(one, "running")
    started = time.monotonic()
    jobs.close()
    assert time.monotonic() - started < 30
    assert {one.state, two.state} == {"stopped"}
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_a_job_ends_with_a_killed_server(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from rmadapter_studio import jobs
module = "import os, sys; from rmadapter.support.stop import end_with_stdin as end; end()"
wait = "; print(os.getpid(), file=sys.stderr, flush=True); import time; time.sleep(60)"
jobs.COMMAND = (sys.executable, "-c", module + wait)
one = jobs.Job("Training", [], Path(), Path("out"))
one.read_line = lambda line: print(line, flush=True)
jobs.Jobs().add(one)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server.stdout:
        process = psutil.Process(int(server.stdout.readline()))
        server.kill()
        server.wait(30)
    process.wait(30)


def test_progress_lines_become_messages() -> None:
    one = Job("Training", [], Path(), Path("x"))
    for line, message, share in (
        ("checking images: 7", "checking images", None),
        ("frozen activations: 5 of 10, 12 s left", "looking at the images: 12 s left", 0.5),
        ("checking images: 9 of 10, 0 s left, loss 0.1", "checking images", None),
        ("something else: entirely", "checking images", None),
    ):
        one.read_line(line)
        assert (one.message, one.share) == (message, share)
