"""The experiments as lists of runs: how many, on what, and with which settings."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from rmadapter.bench.methods import load_method
from rmadapter.bench.protocols import AXES, PROTOCOLS, expand
from rmadapter.errors import UserError


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    for name in ("photo", "sketch", "cartoon", ".cache"):
        (tmp_path / "pacs" / name).mkdir(parents=True)
    (tmp_path / "pacs" / "readme.txt").write_text("no domain")
    return tmp_path


def test_base_to_novel_is_every_combination_once() -> None:
    runs = expand("base-to-novel", ["a", "b"], ["mma", "zero-shot"], [1, 2, 3])
    cells = Counter((run.dataset, run.method, run.seed) for run in runs)
    assert set(cells) == {(d, m, s) for d in "ab" for m in ("mma", "zero-shot") for s in (1, 2, 3)}
    assert set(cells.values()) == {1}
    assert {(run.shots, run.asked, run.targets, run.overrides) for run in runs} == {(16, "halves", (), ())}
    assert len({run.path for run in runs}) == len(runs) == 12
    assert runs[0].path.as_posix() == "base-to-novel/a/mma/default-16shots-seed1.json"


def test_what_is_asked_of_each_protocol(domains: Path) -> None:
    [run] = expand("cross-dataset", ["a", "b", "c"], ["mma"], [1])
    assert (run.dataset, run.targets, run.asked) == ("a", ("b", "c"), "targets")
    [run] = expand("domain-generalization", ["pacs/photo"], ["mma"], [1], root=domains)
    assert (run.dataset, run.targets) == ("pacs/photo", ("pacs/cartoon", "pacs/sketch"))
    assert run.path.parts[:3] == ("domain-generalization", "pacs", "photo")
    [run] = expand("domain-generalization", ["imagenet"], ["mma"], [1])
    assert run.targets == ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    runs = expand("few-shot", ["a"], ["mma"], [1])
    assert [run.shots for run in runs] == [1, 2, 4, 8, 16]
    assert {run.asked for run in runs} == {"accuracy"}
    assert [run.shots for run in expand("few-shot", ["a"], ["mma"], [1], [3])] == [3]


@pytest.mark.parametrize("protocol", [name for name, plan in PROTOCOLS.items() if plan.variants])
def test_every_variant_is_another_valid_setting_and_has_a_file_of_its_own(protocol: str) -> None:
    runs = expand(protocol, ["a"], seeds=[1])
    assert len({run.path for run in runs}) == len(runs)
    configs = [str(load_method(run.method, dict(run.overrides)).config().model_dump()) for run in runs]
    per_axis = Counter(zip([run.axis for run in runs], configs, strict=True))
    assert set(per_axis.values()) == {1}
    default = str(load_method("rmadapter").config().model_dump())
    for axis in {run.axis for run in runs}:  # RMAdapter itself is a row of every ablation, a point of every curve
        assert per_axis[axis, default] == 1


def test_ablations_have_the_rows_of_the_papers_tables() -> None:
    """Names but for what stands in brackets, as the report matches them with the printed tables."""
    table = Path(__file__).parents[1] / "src/rmadapter/assets/paper/tables4-6_ablations.csv"
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"components": "ablation-components", "sharing": "ablation-sharing"}
    names["reconstruction_layers"] = "ablation-layers"
    for ablation, protocol in names.items():
        printed = [row["variant"].split(" (")[0] for row in rows if row["ablation"] == ablation]
        ours = [variant.label.split(" (")[0] for variant in PROTOCOLS[protocol].variants]
        assert set(printed) <= set(ours)


def test_components_switch_one_loss_after_the_other() -> None:
    runs = expand("ablation-components", ["a"], seeds=[1])
    terms = ("lambda_image_rec", "lambda_text_rec", "lambda_image_con", "lambda_text_con")
    on = {}
    for run in runs:
        config = load_method(run.method, dict(run.overrides)).config()
        on[run.variant] = "".join(str(int(getattr(config, term) > 0)) for term in terms)
    assert list(on.values()) == ["0000", "0000", "0011", "0111", "1011", "1111"]
    assert [run.method for run in runs] == ["mma", *["rmadapter"] * 5]


def test_axes_of_sensitivity() -> None:
    assert {run.axis for run in expand("sensitivity", ["a"], seeds=[1])} == set(AXES)
    runs = expand("sensitivity", ["a"], seeds=[1], axes=["rank"])
    assert [(run.value, dict(run.overrides)) for run in runs] == [(r, {"rank": r}) for r in (4, 8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"protocol": "base-to-new"}, "did you mean 'base-to-novel'"),
        ({"protocol": "ablation-layers", "methods": ["mma"]}, "leave out --methods"),
        ({"datasets": ["a", "a"]}, "--datasets a,a: something is named twice"),
        ({"seeds": [-1]}, "--seeds -1"),
        ({"seeds": []}, "at least one"),
        ({"axes": ["rank"]}, "leave out --axes"),
        ({"protocol": "sensitivity", "axes": ["rnak"]}, "did you mean 'rank'"),
        ({"protocol": "cross-dataset"}, "two --datasets or more"),
        ({"protocol": "domain-generalization", "datasets": ["pacs"]}, "pacs/photo"),
        ({"protocol": "domain-generalization", "datasets": ["pacs/foto"]}, "no such folder"),
    ],
)
def test_what_is_refused(words: dict, complaint: str, domains: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        expand(**{"protocol": "base-to-novel", "datasets": ["a"], "seeds": [1], "root": domains, **words})


def test_the_file_of_a_dataset_given_by_its_path_stays_below_the_results() -> None:
    for dataset in ("/data/mine", "../mine", "~/mine", "a/b.csv"):
        [run] = expand("base-to-novel", [dataset], ["mma"], [1])
        assert not run.path.is_absolute()
        assert ".." not in run.path.parts
