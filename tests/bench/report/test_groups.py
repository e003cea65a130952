"""What differs in kind never meets in a group."""

from __future__ import annotations

from rmadapter.artifacts.record import BackboneName, MethodName, Record
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
from tests.helpers.synthetic_runs import VIT, record

VALUES = {"base": 50.0, "novel": 40.0}


def test_groups_never_mix() -> None:
    runs = [
        record("mma", "a", 1, VALUES),
        record("mma", "b", 1, VALUES),
        record("mma", "a", 1, VALUES, **VIT),
        record("mma", "a", 1, VALUES, shots=4),
        record("mma", "a", 1, VALUES, precision="bf16"),
        record("mma", "a", 1, VALUES, protocol="ablation-sharing", variant="independent"),
        record("mma", "a", 1, {"all": 1.0}, protocol="few-shot", shots=1),
        record("mma", "a", 1, {"all": 1.0}, protocol="few-shot", shots=2),
    ]
    groups = group_records(runs)
    assert sorted(len(group.records) for group in groups) == [1, 1, 1, 1, 2, 2]
    assert len({group.slug for group in groups}) == len(groups)
    assert [group.shots for group in groups if group.protocol == "few-shot"] == [None]


def test_methods_of_different_tracks_never_share_a_table_or_a_test() -> None:
    """Nor do those that do not say what they use, with anyone."""
    names = ("zero-shot", "mma", "zero-shot-descriptions", "tda", "x:X", "y:Y")
    runs = [record(name, data, 1, VALUES) for name in names for data in "abcd"]
    groups = group_records(runs)
    assert [(group.track, {r.method.name for r in group.records}) for group in groups] == [
        ("ranked", {"zero-shot", "mma"}),
        ("extra data", {"zero-shot-descriptions"}),
        ("test time", {"tda"}),
        ("not stated", {"x:X", "y:Y"}),
    ]
    assert groups[0].title == "base-to-novel: pocket, 16 shots"
    assert groups[2].title == "base-to-novel: pocket, 16 shots, test time"
    assert len({group.slug for group in groups}) == 4
    tested = [
        [table.title for table in make_tables(group) if "minus the others" in table.title]
        for group in groups
    ]
    assert tested == [["Zero-shot CLIP minus the others, in points"], [], [], []]
    texts = [
        run.model_copy(
            update={"method": MethodName(name="coprompt", settings={"descriptions": "x"})}
        )
        for run in runs[:4]
    ]
    expected = ["ranked", "extra data"]
    assert [group.track for group in group_records([*runs[4:8], *texts])] == expected


def test_one_backbone_under_two_names_is_one() -> None:
    names = {name: BackboneName(name=name, digest="d") for name in ("x", "/y/x")}
    two = [
        record("mma", "a", 1, VALUES, backbone=names["x"]),
        record("coop", "a", 1, VALUES, backbone=names["/y/x"]),
    ]
    [group] = group_records(two)
    assert (len(group.records), group.backbone.name) == (2, "x")


def test_all_images_are_the_most_shots() -> None:
    assert sorted([4, 0, 16, 1], key=by_size) == [1, 4, 16, 0]
    assert describe_shots(1, 4, 0) == "1, 4 shots, all images"
    expected = ("1 shot", "4 shots", "all images")
    assert (describe_shots(1), describe_shots(4), describe_shots(0)) == expected
    [group] = group_records([record("mma", "a", 1, VALUES, shots=0)])
    assert group.title == "base-to-novel: pocket, all images"


def test_names_of_files_keep_letters_of_any_script() -> None:
    assert slug("Ä_b c/猫") == "ä-b-c-猫"


def test_templates_may_differ_between_data_sets_but_not_within_one() -> None:
    def of(data: str, template: str) -> Record:
        return record("mma", data, 1, {"base": 1.0}, templates=(template,))

    (own,) = group_records([of("dtd", "{} texture."), of("pets", "a photo of a {}, a pet.")])
    assert own.shared["templates"] == "each data set's own"
    common = "a photo of a {}."
    first, second = group_records(
        [of("dtd", common), of("pets", common), of("dtd", "Texture: {}.")]
    )
    assert (first.shared["templates"], first.datasets) == ((common,), ["dtd", "pets"])
    assert (second.shared["templates"], second.datasets) == (("Texture: {}.",), ["dtd"])
    assert first.slug != second.slug


def test_order_of_rows() -> None:
    methods = [record(m, "a", 1, {"base": 1.0}) for m in ("rmadapter", "mma", "coop", "zero-shot")]
    assert list(rows_of(methods)) == ["Zero-shot CLIP", "coop", "MMA", "RMAdapter"]
    values = [
        record("rmadapter", "a", 1, VALUES, axis="rank", value=v, variant=f"rank={v}")
        for v in (16, 4, 128)
    ]
    assert list(rows_of(values)) == ["rank=4", "rank=16", "rank=128"]
    planned = ("shared down-projection (RMAdapter)", "independent")
    sharing = [
        record("rmadapter", "a", 1, VALUES, protocol="ablation-sharing", variant=v) for v in planned
    ]
    assert list(rows_of(sharing)) == ["independent", "shared down-projection (RMAdapter)"]
    twins = [record(m, "a", 1, {"base": 1.0}, title="Tip") for m in ("tip", "tip-f")]
    assert list(rows_of(twins)) == ["Tip (tip)", "Tip (tip-f)"]


def test_complete_is_a_rectangle() -> None:
    def cells(*pairs: tuple[str, int], shots: int = 16) -> list[Record]:
        return [record("mma", data, seed, {"base": 1.0}, shots=shots) for data, seed in pairs]

    full = cells(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
    assert complete({"x": full, "y": cells(("a", 1), ("a", 2), ("b", 2))}) == (["a", "b"], [2])
    assert complete({"x": [*full, *cells(("a", 1), ("b", 1), shots=4)]}) == (["a", "b"], [1])
    assert complete({"x": full, "y": cells(("d", 1))}) == ([], [])
    assert complete({}) == ([], [])


def test_alike_keeps_the_targets_of_all_with_the_same_source() -> None:
    runs = [
        record("mma", "s", 1, {"all": 1.0, "x": 1.0, "y": 1.0}),
        record("mma", "s", 2, {"all": 1.0, "y": 1.0}),
    ]
    other = record("mma", "t", 1, {"all": 1.0, "z": 1.0})
    assert [r.targets for r in common_targets([*runs, other])] == [["y"], ["y"], ["z"]]
    assert [r.metric("all") for r in common_targets(runs)] == [1.0, 1.0]
