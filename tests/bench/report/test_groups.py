"""Only comparable runs share a group."""

from __future__ import annotations

from typing import Any

import pytest

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.report.groups import (
    by_size,
    common_targets,
    complete,
    describe_shots,
    group_records,
    rows_of,
    slug,
)
from rmadapter.bench.report.tables import make_tables
from rmadapter.methods import load_method
from tests.helpers.synthetic_runs import VIT, record, with_method

VALUES = {"base": 50.0, "novel": 40.0}


def run(method: str = "mma", data: str = "a", **fields: Any) -> Record:
    return record(method, data, fields.pop("seed", 1), fields.pop("values", VALUES), **fields)


def test_protocols_backbones_shots_and_precisions_have_separate_groups() -> None:
    few = {"protocol": "few-shot", "values": {"all": 1.0}}
    ablation = run(protocol="ablation-sharing", variant="independent")
    runs = [run(), run(data="b"), run(**VIT), run(shots=4), run(precision="bf16"), ablation]
    groups = group_records([*runs, run(shots=1, **few), run(shots=2, **few)])
    assert sorted(len(group.records) for group in groups) == [1, 1, 1, 1, 2, 2]
    assert len({group.slug for group in groups}) == len(groups)
    assert [group.shots for group in groups if group.protocol == "few-shot"] == [None]


def test_methods_of_different_tracks_never_share_a_table_or_a_test() -> None:
    """Nor do those that do not state what they use, with any."""
    names = ("zero-shot", "mma", "zero-shot-descriptions", "tda", "x:X", "y:Y")
    groups = group_records([run(name, data) for name in names for data in "abcd"])
    assert [(group.track, {r.method.name for r in group.records}) for group in groups] == [
        ("ranked", {"zero-shot", "mma"}),
        ("extra data", {"zero-shot-descriptions"}),
        ("test time", {"tda"}),
        ("not stated", {"x:X", "y:Y"}),
    ]
    assert groups[2].title == f"{groups[0].title}, test time"
    assert len({group.slug for group in groups}) == 4
    tests = [
        any("minus the others" in table.title for table in make_tables(group)) for group in groups
    ]
    assert tests == [True, False, False, False]


def test_a_setting_may_change_the_track() -> None:
    texts = with_method(run("coprompt"), settings={"descriptions": "x"})
    assert [group.track for group in group_records([run(), texts])] == ["ranked", "extra data"]


def test_one_backbone_under_two_names_is_one() -> None:
    names = {name: BackboneName(name=name, digest="d") for name in ("x", "/y/x")}
    two = [run(backbone=names["x"]), run("coop", backbone=names["/y/x"])]
    [group] = group_records(two)
    assert (len(group.records), group.backbone.name) == (2, "x")


def test_all_images_are_the_most_shots() -> None:
    assert sorted([4, 0, 16, 1], key=by_size) == [1, 4, 16, 0]
    assert describe_shots(1, 4, 0) == "1, 4 shots, all images"
    expected = ("1 shot", "4 shots", "all images")
    assert (describe_shots(1), describe_shots(4), describe_shots(0)) == expected
    [group] = group_records([run(shots=0)])
    assert group.title.endswith("all images")


def test_names_of_files_keep_letters_of_any_script() -> None:
    assert slug("Ä_b c/猫") == "ä-b-c-猫"


def test_templates_may_differ_between_data_sets_but_not_within_one() -> None:
    common = "a photo of a {}."
    (own,) = group_records([run(data=name, templates=(f"{name} {{}}.",)) for name in ("a", "b")])
    assert own.shared["templates"] == "each data set's own"
    prompts = [("dtd", common), ("pets", common), ("dtd", "Texture: {}.")]
    first, second = group_records([run(data=name, templates=(text,)) for name, text in prompts])
    assert (first.shared["templates"], first.datasets) == ((common,), ["dtd", "pets"])
    assert (second.shared["templates"], second.datasets) == (("Texture: {}.",), ["dtd"])
    assert first.slug != second.slug


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        (
            [run(name) for name in ("rmadapter", "mma", "coop", "zero-shot")],
            ["Zero-shot CLIP", "coop", "MMA", "RMAdapter"],
        ),
        (
            [run(axis="rank", value=n, variant=f"rank={n}") for n in (16, 4, 128)],
            ["rank=4", "rank=16", "rank=128"],
        ),
        (
            [
                run(protocol="ablation-sharing", variant=label)
                for label in ("shared down-projection (RMAdapter)", "independent")
            ],
            ["independent", "shared down-projection (RMAdapter)"],
        ),
        ([run(name, title="Tip") for name in ("tip", "tip-f")], ["Tip (tip)", "Tip (tip-f)"]),
    ],
    ids=["methods", "values", "variants", "one title"],
)
def test_order_and_labels_of_rows(runs: list[Record], labels: list[str]) -> None:
    assert list(rows_of(runs)) == labels


def test_complete_data_sets_and_seeds_are_those_of_all_rows() -> None:
    def cells(*pairs: tuple[str, int], shots: int = 16) -> list[Record]:
        return [run(data=data, seed=seed, shots=shots) for data, seed in pairs]

    full = cells(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
    assert complete({"x": full, "y": cells(("a", 1), ("a", 2), ("b", 2))}) == (["a", "b"], [2])
    assert complete({"x": [*full, *cells(("a", 1), ("b", 1), shots=4)]}) == (["a", "b"], [1])
    assert complete({"x": full, "y": cells(("d", 1))}) == ([], [])
    assert complete({}) == ([], [])


def test_common_targets_are_those_of_all_runs_with_the_same_source() -> None:
    targets = {("s", 1): "xy", ("s", 2): "y", ("t", 1): "z"}
    *runs, other = (
        run(data=data, seed=seed, values={"all": 1.0, **dict.fromkeys(names, 1.0)})
        for (data, seed), names in targets.items()
    )
    assert [r.targets for r in common_targets([*runs, other])] == [["y"], ["y"], ["z"]]
    assert [r.metric("all") for r in common_targets(runs)] == [1.0, 1.0]


def test_a_changed_setting_stands_beside_the_name() -> None:
    def epochs(method: str, count: int, **fields: Any) -> Record:
        settings = {"epochs": count, "rank": 32, "of another version": 1}
        return with_method(run(method, **fields), settings=settings)

    published = load_method("rmadapter").recipe
    assert published is not None
    assert list(rows_of([epochs("rmadapter", published.epochs)])) == ["RMAdapter"]
    assert list(rows_of([epochs("rmadapter", 3)])) == ["RMAdapter (epochs=3)"]
    assert list(rows_of([epochs("not:Installed", 3)])) == ["not:Installed"]
    mine = run("elsewhere/mine.py:Mine", title="mine")
    mine = with_method(mine, settings={"size": 9, "rate": [1, 2]}, published={"size": 3})
    assert list(rows_of([mine])) == ["mine (size=9)"]  # without running its code
    sharing = {"protocol": "ablation-sharing", "variant": "shared up-projection"}
    variant = with_method(run("rmadapter", **sharing), settings={"share": "up", "epochs": 3})
    assert list(rows_of([variant])) == ["shared up-projection (epochs=3)"]
