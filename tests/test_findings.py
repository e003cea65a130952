"""The sentences say what synthetic runs were made to show, good or bad."""

from __future__ import annotations

from typing import Any

import pytest

from rmadapter.bench.findings import findings
from rmadapter.bench.records import Run, group_runs
from synthetic_runs import run

SEEDS = range(1, 9)
JITTER = (0.0, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2, 0.05)


def said(runs: list[Run]) -> str:
    (group,) = group_runs(runs)
    return "\n".join(findings(group))


def three(gain: float, novel: float = 0.0, spread: float = 1.0, **fields: Any) -> list[Run]:
    """Zero-shot and MMA at 60 / 50, RMAdapter `gain` points above in base and `novel` points in novel accuracy."""
    runs = []
    for seed, jitter in zip(SEEDS, JITTER, strict=True):
        runs += [run(m, "a", seed, {"base": 60.0, "novel": 50.0}, **fields) for m in ("zero-shot", "mma")]
        mine = {"base": 60 + gain + spread * jitter, "novel": 50 + novel}
        runs.append(run("rmadapter", "a", seed, mine, **fields))
    return runs


@pytest.mark.parametrize(
    ("gain", "spread", "wanted"),
    [
        (3.0, 1.0, "RMAdapter beats MMA in HM by "),
        (-3.0, 1.0, "RMAdapter does not beat MMA in HM: it is "),
        (0.0, 0.0, "RMAdapter does not beat MMA in HM: it is exactly as good"),
        (0.05, 9.0, "but the interval includes 0: it is not shown to beat it."),
    ],
)
def test_whether_rmadapter_beats_mma(gain: float, spread: float, wanted: str) -> None:
    assert wanted in said(three(gain, spread=spread))


def test_few_pairs_prove_nothing() -> None:
    runs = [r for r in three(3.0) if r.seed <= 3]
    assert "but the sign test does not confirm it: it is not shown to beat it." in said(runs)
    assert "but one pair proves nothing" in said([r for r in runs if r.seed == 1])


def test_novel_accuracy_below_zero_shot_is_said_plainly() -> None:
    text = said([*three(3.0, novel=-2.0), *(run("mma", "b", s, {"base": 60.0, "novel": 50.0}) for s in SEEDS)])
    assert "RMAdapter lies 2.00 points below zero-shot on novel classes (95 % interval −2.00 to −2.00, 8 " in text
    assert "MMA equals zero-shot on novel classes" in text
    both = three(3.0, novel=1.0) + [r.model_copy(update={"dataset": "b"}) for r in three(3.0, novel=-4.0)]
    assert "below zero-shot on novel classes" in said(both)
    assert "It is behind on b." in said(both)


def test_the_best_average_is_ranked() -> None:
    assert "The best HM on a is that of RMAdapter, 55.75; then Zero-shot CLIP 54.55, MMA 54.55." in said(three(3.0))


def test_targets_and_shots() -> None:
    targets = [
        run(m, "s", seed, {"source": 70.0, "targets": {"x": value + j}}, protocol="cross-dataset")
        for m, value in (("zero-shot", 50.0), ("mma", 48.0), ("rmadapter", 49.0))
        for seed, j in zip(SEEDS, JITTER, strict=True)
    ]
    text = said(targets)
    assert "RMAdapter beats MMA on the targets by 1.00 points" in text
    assert "RMAdapter lies 1.00 points below zero-shot on the targets" in text
    shots = [
        run(m, "a", seed, {"accuracy": value}, protocol="few-shot", shots=k)
        for m, k, value in (("mma", 1, 50.0), ("rmadapter", 1, 49.0), ("mma", 4, 50.0), ("rmadapter", 4, 52.0))
        for seed in SEEDS
    ]
    assert "RMAdapter does not beat MMA at 1 shot: it is 1.00 points behind" in said(shots)
    assert "RMAdapter beats MMA at 4 shots by 2.00 points" in said(shots)


def test_ablations_and_sensitivity() -> None:
    def of(protocol: str, hms: dict[str, float], **fields: Any) -> list[Run]:
        fields["protocol"] = protocol
        values = [(v, {"base": hm, "novel": hm}) for v, hm in hms.items()]
        return [run("rmadapter", "a", s, metrics, variant=v, **fields) for v, metrics in values for s in SEEDS]

    text = said(of("ablation-components", {"RMAdapter": 60.0, "MMA + constraint": 61.0}))
    assert "RMAdapter does not beat MMA + constraint in HM: it is 1.00 points behind" in text
    text = said(of("sensitivity", {"rank=4": 60.0, "rank=8": 61.5}, axis="rank"))
    assert "rank: the best mean HM is 61.50 ± 0.00 (rank=8), the worst 60.00 ± 0.00 (rank=4); 1.50 points" in text


def test_warnings() -> None:
    runs = [r for r in three(3.0) if not (r.method == "mma" and r.seed == 2)]
    assert "Incomplete: a seed 2 of MMA." in said(runs)
    set_ = {s: {"config": {**runs[0].config, "method": {"rank": s % 2}}} for s in SEEDS}
    changed = [r.model_copy(update=set_[r.seed]) if r.method == "mma" else r for r in runs]
    assert "The settings of MMA differ between its runs: rank (0, 1)." in said(changed)
    other = [r.model_copy(update={"split_digest": "x"}) if (r.method, r.seed) == ("mma", 1) else r for r in runs]
    assert "Not the same images:" in said(other)
    unnamed = run("probe", "a", 1, {"base": 60.0, "novel": None}, reason="it names no new classes")
    assert "probe has no figures on novel classes: it names no new classes." in said([*runs, unnamed])
    assert not any(word in said(three(3.0)) for word in ("Incomplete", "settings", "Not the same"))
