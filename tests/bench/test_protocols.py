"""The experiments as lists of jobs: how many, on what, and with which settings."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from rmadapter.bench.protocols import AXES, DOMAINS, PROTOCOLS, expand, with_own_templates
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.settings import configured, settings_of
from rmadapter.task import Task


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    for name in ("photo", "sketch", "cartoon", ".cache"):
        (tmp_path / "pacs" / name).mkdir(parents=True)
    (tmp_path / "pacs" / "readme.txt").write_text("no domain")
    return tmp_path


def test_base_to_novel_is_every_combination_once() -> None:
    jobs = expand("base-to-novel", ["a", "b"], ["mma", "zero-shot"], [1, 2, 3])
    cells = Counter((job.task.data, job.method, job.task.seed) for job in jobs)
    assert set(cells) == {(d, m, s) for d in "ab" for m in ("mma", "zero-shot") for s in (1, 2, 3)}
    assert set(cells.values()) == {1}
    assert {(job.task.shots, job.task.classes, job.values) for job in jobs} == {(16, "base", ())}
    assert [question.name for question in jobs[0].task.questions] == ["base", "novel"]
    assert len({job.path for job in jobs}) == len(jobs) == 12
    assert jobs[0].path.as_posix() == "base-to-novel/a/mma/default-16shots-seed1.json"


@pytest.mark.parametrize(
    ("protocol", "datasets", "targets"),
    [
        ("cross-dataset", ["a", "b", "c"], ("b", "c")),
        ("domain-generalization", ["pacs/photo"], ("pacs/cartoon", "pacs/sketch")),
        ("domain-generalization", ["imagenet"], DOMAINS["imagenet"]),
        ("few-shot", ["a"], ()),
    ],
)
def test_questions_are_about_all_classes_and_each_target(
    protocol: str, datasets: list[str], targets: tuple[str, ...], domains: Path
) -> None:
    [job] = expand(protocol, datasets, ["mma"], [1], [3], root=domains)
    assert (job.task.classes, job.task.data) == ("all", datasets[0])
    asked = [(question.name, question.data) for question in job.task.questions]
    assert asked == [("all", ""), *((name, name) for name in targets)]
    assert job.path.parts[:-2] == (protocol, *datasets[0].split("/"))


def test_open_world_asks_about_the_halves_and_then_about_all() -> None:
    [job] = expand("open-world", ["a"], ["mma"], [1])
    assert (job.task.classes, job.task.shots) == ("base", 16)
    asked = [(question.name, question.classes) for question in job.task.questions]
    assert asked == [("base", "base"), ("novel", "novel"), ("all", "all")]


def test_few_shot_has_five_numbers_of_shots() -> None:
    jobs = expand("few-shot", ["a"], ["mma"], [1])
    assert [job.task.shots for job in jobs] == [1, 2, 4, 8, 16]


def test_tasks_share_the_common_settings() -> None:
    common = configured(Task(), {"backbone": "x", "views": 2})
    [job] = expand("few-shot", ["eurosat"], ["mma"], [1], [1], common=common)
    expected = ("x", 2, ("a photo of a {}.",))
    assert (job.task.backbone, job.task.views, job.task.templates) == expected
    own, other = (
        with_own_templates(expand("few-shot", [name], ["mma"], [1], [1]))[0]
        for name in ("eurosat", "a")
    )
    assert "satellite" in own.task.templates[0]
    assert other.task.templates == ("a photo of a {}.",)


@pytest.mark.parametrize("protocol", [name for name, plan in PROTOCOLS.items() if plan.variants])
def test_every_variant_is_another_valid_setting_and_has_a_file_of_its_own(protocol: str) -> None:
    jobs = expand(protocol, ["a"], seeds=[1])
    assert len({job.path for job in jobs}) == len(jobs)
    methods = [load_method(job.method, dict(job.values)) for job in jobs]
    per_axis = Counter(zip([job.axis for job in jobs], methods, strict=True))
    assert set(per_axis.values()) == {1}
    # RMAdapter itself is a row of every ablation and a point of every curve
    for axis in {job.axis for job in jobs}:
        assert per_axis[axis, load_method("rmadapter")] == 1


def test_ablations_have_the_rows_of_the_papers_tables() -> None:
    """Names but for what stands in brackets, as the report matches them with the printed tables; of
    parts that are added, to what they are added."""
    table = (
        Path(__file__).parents[2] / "src/rmadapter_research/assets/printed/tables4-6_ablations.csv"
    )
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"components": "ablation-components", "sharing": "ablation-sharing"}
    names["reconstruction_layers"] = "ablation-layers"
    for ablation, protocol in names.items():
        printed = [row["variant"].split(" (")[0] for row in rows if row["ablation"] == ablation]
        printed = [name.replace("MMA +", "RMAdapter's adapters +") for name in printed]
        ours = [variant.label.split(" (")[0] for variant in PROTOCOLS[protocol].variants]
        assert set(printed) <= set(ours)


def test_components_switch_one_loss_after_the_other() -> None:
    jobs = expand("ablation-components", ["a"], seeds=[1])
    terms = ("lambda_image_rec", "lambda_text_rec", "lambda_image_con", "lambda_text_con")
    on = {}
    for job in jobs:
        settings = settings_of(load_method(job.method, dict(job.values)))
        on[job.variant] = "".join(str(int(settings[term] > 0)) for term in terms)
    assert list(on.values()) == ["0000", "0000", "0011", "0111", "1011", "1111"]
    assert [job.method for job in jobs] == ["mma", *["rmadapter"] * 5]


def test_axes_of_sensitivity() -> None:
    assert {job.axis for job in expand("sensitivity", ["a"], seeds=[1])} == set(AXES)
    jobs = expand("sensitivity", ["a"], seeds=[1], axes=["rank"])
    values = [(job.value, dict(job.values)) for job in jobs]
    assert values == [(rank, {"rank": rank}) for rank in (4, 8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"protocol": "base-to-new"}, "did you mean 'base-to-novel'"),
        ({"protocol": "ablation-layers", "methods": ["mma"]}, "leave out --methods"),
        ({"datasets": ["a", "a"]}, "--datasets a,a"),
        ({"seeds": [-1]}, "--seeds -1"),
        ({"seeds": []}, "at least one"),
        ({"axes": ["rank"]}, "leave out --axes"),
        ({"protocol": "sensitivity", "axes": ["rnak"]}, "did you mean 'rank'"),
        ({"protocol": "cross-dataset"}, "at least two --datasets"),
        ({"protocol": "cross-dataset", "datasets": ["a", "all"]}, "--datasets all"),
        ({"protocol": "domain-generalization", "datasets": ["pacs"]}, "pacs/photo"),
        ({"protocol": "domain-generalization", "datasets": ["pacs/foto"]}, "not such a folder"),
    ],
)
def test_invalid_experiments_are_refused(words: dict, complaint: str, domains: Path) -> None:
    fields = {"protocol": "base-to-novel", "datasets": ["a"], "seeds": [1], "root": domains}
    with pytest.raises(UserError, match=complaint):
        expand(**{**fields, **words})


def test_the_record_of_a_data_set_with_a_path_is_below_the_results() -> None:
    for dataset in ("/data/mine", "../mine", "~/mine", "a/b.csv"):
        [job] = expand("base-to-novel", [dataset], ["mma"], [1])
        assert not job.path.is_absolute()
        assert ".." not in job.path.parts
