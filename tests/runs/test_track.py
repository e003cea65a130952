"""Runs in experiment trackers: what they get, once, and what happens when one is missing or
fails."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rmadapter import FewShotClassifier, Tracking
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.bench.runner import run_all
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.runs.fit import fit
from rmadapter.runs.trackers import TRACKERS, trackers_in
from rmadapter.support.files import read_json
from rmadapter.training.shots import Callback, Figures
from tests.helpers.bench_runs import Bench, bench
from tests.helpers.labs import prepare
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["bench", "rmadapter"]  # fixtures

ROOT = Path(__file__).parents[2]
NAMES = ("tensorboard", "mlflow", "wandb")


class Memory:
    """A tracker that keeps what it gets."""

    runs: ClassVar[list[Memory]]

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, str | float], folder: Path
    ) -> None:
        self.name, self.id, self.settings, self.folder = name, run_id, settings, folder
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.page = self.reason = ""
        self.runs.append(self)

    def log(self, figures: Figures, step: int) -> None:
        self.rows.append((step, dict(figures)))

    @property
    def results(self) -> dict[str, float]:
        """The figures that were logged last."""
        return self.rows[-1][1]

    def add_page(self, page: Path, step: int) -> None:
        self.page = page.read_text("utf-8")

    def finish(self, reason: str) -> None:
        self.reason = reason or "finished"

    def steps(self, name: str = "train/loss") -> list[int]:
        return [step for step, figures in self.rows if name in figures]

    def values(self, name: str) -> list[float]:
        return [figures[name] for _, figures in self.rows if name in figures]


class Failing(Memory):
    """A tracker that fails at the third step."""

    def log(self, figures: Figures, step: int) -> None:
        if step > 2:
            raise OSError(28, "No space left on device")
        super().log(figures, step)


class Absent(Memory):
    """A tracker that cannot start."""

    def __init__(self, *start: object) -> None:
        raise ConnectionError("no server at http://localhost:1")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """The runs that were tracked by "memory", "failing" and "absent"."""
    kinds = {"memory": Memory, "failing": Failing, "absent": Absent}
    for name, kind in kinds.items():
        monkeypatch.setitem(TRACKERS, name, kind)
    monkeypatch.setattr(Memory, "runs", [], raising=False)
    found = {name: find_spec("json") for name in kinds}
    monkeypatch.setattr(
        "rmadapter.runs.trackers.find_spec", lambda name: found.get(name) or find_spec(name)
    )
    return Memory.runs


def fit_tiny(
    backbone: Backbone, colors: Path, out: Path, trackers: str = "memory",
    callbacks: tuple[Callback, ...] = (), **settings: Any,
) -> None:  # fmt: skip
    """Fit for two epochs of two steps."""
    words: dict[str, Any] = {"shots": 4, "batch_size": 8, **settings}
    request, lab = prepare(backbone, read_images(colors), **words)
    lab.callbacks = callbacks
    names = trackers_in(trackers)
    fit(request.task, request.method, out, lab, request.name, folds=0, trackers=names)


# What is refused


def test_a_list_of_trackers_is_closed(memory: list[Memory]) -> None:
    assert trackers_in("") == trackers_in(" , ") == ()
    assert trackers_in("memory, failing,memory") == ("memory", "failing")
    with pytest.raises(UserError, match="'tensorbord': known are tensorboard, mlflow, wandb"):
        trackers_in("memory,tensorbord")


def test_a_missing_package_is_refused_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rmadapter.runs.trackers.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=rf"{name}.*rmadapter\[{name}\]"):
            trackers_in(name)


def test_a_folder_of_the_name_of_a_tracker_is_no_package(
    memory: list[Memory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(TRACKERS, "no_such_tracker", Memory)
    (tmp_path / "no_such_tracker").mkdir()  # as ./wandb, where wandb keeps its runs
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_tracker"):
        trackers_in("no_such_tracker")


@pytest.mark.parametrize(
    "words", ["fit gone", "tune gone --out out", "bench few-shot --datasets gone --out out"]
)
def test_commands_refuse_before_they_read_anything(
    rmadapter: Command, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.runs.trackers.find_spec", lambda name: None)
    refused(rmadapter(*words.split(), "--track", "tensorbord"), "--track", "known are tensorboard")
    refused(rmadapter(*words.split(), "--track", "tensorboard"), "rmadapter[tensorboard]")


@pytest.mark.parametrize("words", ["tune gone --out out", "bench few-shot --datasets a --out out"])
def test_workers_of_a_cluster_are_refused(
    rmadapter: Command, words: str, memory: list[Memory]
) -> None:
    refused(rmadapter(*words.split(), "--track", "memory", "--ray"), "--track", "--ray")


def test_a_refusal_needs_no_torch() -> None:
    code = "import sys; from rmadapter.runs.trackers import trackers_in; trackers_in(''); "
    code += "import rmadapter.runs.track; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_each_tracker_has_an_extra() -> None:
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in NAMES:
        assert re.search(rf'^{name} = \["{name}', extras, re.M), name
    assert f'track = ["rmadapter[{",".join(NAMES)}]"]' in extras


# What a tracker gets


def test_a_run_is_tracked_from_its_settings_to_its_page(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "first"
    fit_tiny(tiny_clip, colors, out)
    [run] = memory
    record = read_record(RunFolder(out).record)
    history = RunFolder(out).history.read_text().splitlines()[1:]
    assert run.steps() == [1, 2, 3, 4] == [int(line.split(",")[0]) for line in history]
    assert run.steps("epoch/loss") == [2, 4]
    losses, means = run.values("train/loss"), run.values("epoch/loss")
    assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert {"train/lr", "train/ce", "train/epoch"} <= run.rows[0][1].keys()
    assert (run.name, run.reason) == ("first", "finished")
    assert run.folder == out / "tensorboard"
    settings = run.settings
    assert (settings["method"], settings["method.rank"], settings["task.shots"]) == (
        "rmadapter", 4, 4
    )  # fmt: skip
    assert settings["versions.torch"] == record.versions["torch"]
    assert settings["key"] == record.key[:64]
    assert run.results["accuracy/all"] == record.metrics["all"]
    assert run.results["zero-shot/all"] == record.metric("all", zero_shot=True)
    assert run.results["parameters"] == record.parameters
    assert run.results["seconds/total"] == record.seconds["total"]
    assert (run.rows[-1][0], run.page) == (4, RunFolder(out).page.read_text("utf-8"))
    assert not RunFolder(out).tracking.exists()
    capsys.readouterr()
    fit_tiny(tiny_clip, colors, out)  # finished: shown, not tracked again
    assert len(memory) == 1
    assert "--track logs nothing" in capsys.readouterr().err


@pytest.mark.ci
def test_both_halves_and_their_mean_are_logged(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory]
) -> None:
    fit_tiny(tiny_clip, colors, tmp_path / "run", classes="base")
    assert {f"{kind}/{name}" for kind in ("accuracy", "zero-shot") for name in (
        "base", "novel", "hm"
    )} <= memory[0].results.keys()  # fmt: skip


def test_nothing_is_tracked_by_default(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory]
) -> None:
    fit_tiny(tiny_clip, colors, tmp_path / "run", "")
    assert not memory
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert not {"tensorboard", "tracking.json"} & names
    with Tracking("", "name") as tracked:
        assert tracked.callbacks == ()
        tracked.log({"accuracy": 1})


@pytest.mark.ci
def test_a_classifier_can_be_tracked(
    tiny_clip: Backbone, colors: Path, memory: list[Memory]
) -> None:
    model = FewShotClassifier(tiny_clip.name, method="clip-adapter", epochs=2, device="cpu")
    with Tracking(["memory"], "name", settings={"a": {"b (c)": 1, "d": None}}) as tracked:
        model.fit(colors, callbacks=tracked.callbacks)
        tracked.log({"accuracy": 0.5})
    [run] = memory
    assert run.settings == {"a.b _c_": 1}
    assert run.steps() == [int(step["step"]) for step in model.history_]
    assert (run.results, run.reason) == ({"accuracy": 0.5}, "finished")


def test_steps_of_a_second_training_count_on(memory: list[Memory]) -> None:
    with Tracking("memory", "name") as tracked:
        [callback] = tracked.callbacks
        for _ in range(2):
            for step in (1, 2, 3):
                callback.on_step({"step": step, "loss": 1.0})
    assert memory[0].steps() == [1, 2, 3, 4, 5, 6]


# What fails


@pytest.mark.ci
def test_a_run_goes_on_without_a_tracker_that_fails(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fit_tiny(tiny_clip, colors, tmp_path / "run", "absent,failing,memory")
    failing, run = memory
    assert (failing.steps(), failing.reason) == ([1, 2], "")
    assert (run.steps(), run.reason) == ([1, 2, 3, 4], "finished")
    notes = [line for line in capsys.readouterr().err.splitlines() if "goes on" in line]
    assert len(notes) == 2
    assert "absent failed" in notes[0]
    assert "no server" in notes[0]
    assert "failing failed" in notes[1]
    assert "No space left" in notes[1]


def test_a_run_that_fails_says_why(memory: list[Memory], tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with pytest.raises(UserError), Tracking("memory", "name", state=state):
        raise UserError("the loss became nan")
    with pytest.raises(KeyboardInterrupt), Tracking("memory", "name", state=state):
        raise KeyboardInterrupt
    assert [run.reason for run in memory] == ["the loss became nan", "stopped"]
    assert state.exists()


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("saves", [-1.0, 1000.0], ids=["after each step", "never"])
def test_a_resumed_run_goes_on_under_its_id(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory],
    monkeypatch: pytest.MonkeyPatch, saves: float,
) -> None:  # fmt: skip
    monkeypatch.setattr("rmadapter.training.loop.SAVE_SECONDS", saves)
    seen: list[int] = []

    def stop(figures: Figures) -> None:
        seen.append(int(figures["step"]))
        if len(seen) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        fit_tiny(tiny_clip, colors, tmp_path / "run", callbacks=(Callback(stop),), epochs=3)
    state = read_json(RunFolder(tmp_path / "run").tracking)
    fit_tiny(tiny_clip, colors, tmp_path / "run", callbacks=(Callback(stop),), epochs=3)
    first, second = memory
    assert first.id == second.id == state["id"]
    assert second.steps() == [*range(4 if saves < 0 else 1, 7)]
    assert not RunFolder(tmp_path / "run").tracking.exists()


@pytest.mark.ci
def test_another_run_and_a_damaged_state_start_anew(tmp_path: Path, memory: list[Memory]) -> None:
    state = tmp_path / "state.json"
    for content in (
        '{"id": "00000000", "key": "other"}',
        '{"id": "\' or 1", "key": "this"}',
        '{"id": "00000000"}',
        '{"id": 7, "key": "this"}',
        "[1]",
        "{",
        "",
    ):
        state.write_text(content)
        with Tracking("memory", "name", settings={"key": "this"}, state=state):
            pass
    with Tracking("memory", "name", state=tmp_path / "missing" / "state.json"):
        assert (tmp_path / "missing" / "state.json").exists()
    assert len({"00000000", *(run.id for run in memory)}) == 9


# Benches and searches


@pytest.mark.ci
def test_each_job_of_a_bench_is_a_run(
    bench: Bench, tmp_path: Path, memory: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = bench.jobs(methods=["zero-shot", "mma"], seeds=[1])
    plan = replace(bench.plan(tmp_path, jobs), trackers=("memory",))
    records = run_all(plan, progress=False)
    assert len(memory) == len(records) == 2
    by_name = {run.name: run for run in memory}
    for record, job in zip(records, jobs, strict=True):
        run = by_name[job.path.with_suffix("").as_posix()]
        assert run.results["accuracy/base"] == record.metrics["base"]
        assert run.folder == tmp_path / "tensorboard" / job.path.with_suffix("")
        assert bool(run.steps()) == (record.method.name == "mma")
        assert run.steps() == [*range(1, len(run.steps()) + 1)]
        assert run.reason == "finished"
    run_all(plan, progress=False)  # nothing is left to do
    assert len(memory) == 2
    assert not [*tmp_path.rglob("*.tracking")]


@pytest.mark.ci
def test_a_job_that_is_killed_goes_on_and_one_that_fails_starts_anew(
    bench: Bench, tmp_path: Path, memory: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = bench.jobs(methods=["mma"], seeds=[1])
    plan = replace(bench.plan(tmp_path, jobs), trackers=("memory",))
    errors: list[BaseException] = [Stopped(), UserError("failed"), UserError("again")]

    def broken(*words: object) -> None:
        raise errors.pop(0)

    with monkeypatch.context() as patch:
        patch.setattr("rmadapter.runs.run.evaluate", broken)
        with pytest.raises(Stopped):
            run_all(plan, progress=False)
        for _ in range(2):
            assert run_all(plan, progress=False)[0].status == "failed"
    first, second, third = memory
    assert first.id == second.id != third.id
    assert first.steps() == second.steps() == third.steps() != []
    assert (second.reason, third.reason) == ("failed", "again")


def test_each_trial_of_a_search_is_a_run(
    tiny_clip: Backbone, colors: Path, tmp_path: Path, memory: list[Memory]
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")
    from rmadapter.runs.request import Request
    from rmadapter_research.search_space import make_space
    from rmadapter_research.tune import Search, tune

    given = {"shots": 4, "device": "cpu", "epochs": 2, "backbone": tiny_clip.name}
    request = Request.make(given, "clip-adapter", data=str(colors))
    space = make_space(request.method, request.name, ["learning_rate=1e-5..1"])
    search = Search(request, given, 2)
    tuned = tune(search, space, 2, tmp_path / "tuned", progress=False, trackers=["memory"])
    assert [run.name for run in memory] == ["tuned/trial-0", "tuned/trial-1"]
    for run, trial in zip(memory, tuned.trials, strict=True):
        assert run.results["accuracy/folds"] == pytest.approx(trial.accuracy)
        assert run.steps() == [*range(1, len(run.steps()) + 1)]
        assert len(run.steps()) == 2 * 2 * 1  # two folds of two epochs
        assert run.settings["method.learning_rate"] == pytest.approx(
            trial.params.get("learning_rate", request.method.recipe.learning_rate)
        )
    assert not [*(tmp_path / "tuned").glob("*.tracking")]
