"""What every process of a bench knows."""

from __future__ import annotations

import pickle
from pathlib import Path

from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import expand
from rmadapter.methods import load_method


def test_a_plan_can_be_sent_to_another_process(tmp_path: Path) -> None:
    plan = Plan(
        tuple(expand("ablation-layers", ["a"], seeds=[1])),
        tmp_path,
        values={"rmadapter": {"rank": 3}},
    )
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_protocols_settings_go_before_those_of_set(tmp_path: Path) -> None:
    values = {"rmadapter": {"rank": 3, "reconstruction_layers": 3}}
    plan = Plan(tuple(expand("ablation-layers", ["a"], seeds=[1])), tmp_path, values=values)
    assert [plan.method(job) for job in plan.jobs] == [
        load_method("rmadapter", {"rank": 3, "reconstruction_layers": layers})
        for layers in (1, 2, 3)
    ]


def test_activations_lie_in_the_folder_of_results(tmp_path: Path) -> None:
    lab = Plan((), tmp_path, Path("data"), crops=True).lab()
    assert (lab.folder, lab.root, lab.keep) == (tmp_path / ".activations", Path("data"), True)
    assert (lab.outside, lab.crops) == (False, True)
