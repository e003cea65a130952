"""Names in prompts and parents of labels, from files of the user."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from rmadapter.data.image_set import ImageSet
from rmadapter.data.label_files import (
    check_known,
    parents_of,
    read_names,
    read_parents,
    with_parents,
)
from rmadapter.data.names import descriptions, prompt_names
from rmadapter.errors import UserError


def test_names_from_a_csv_file(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text('\ufeffname,label,note\nzebra , n01,x\n"crane, the bird",crane_bird\n', "utf-8")
    given = read_names(file)
    assert given == {"n01": "zebra", "crane_bird": "crane, the bird"}
    check_known(given, ("n01", "crane_bird", 3), file)
    with pytest.raises(UserError, match=r"names\.csv: names 'crane_bird', which is not a class"):
        check_known(given, ("n01", "crane-bird"), file)


def test_several_names_describe_one_class(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("label;name\nb;crane\na;ant\nb; a tall,  grey bird \nb;crane\n")
    given = read_names(file)
    assert given == {"b": "crane | a tall,  grey bird", "a": "ant"}
    names = prompt_names(["a", "b", "x | y_z"], given)
    assert names == {"a": "ant", "b": "crane | a tall, grey bird", "x | y_z": "x | y z"}
    assert descriptions(names["b"]) == ("crane", "a tall, grey bird")
    assert descriptions("either|or") == ("either|or",)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("label;called\n", r"none of its columns \(label, called\) is called name"),
        ("label,name\na,\n", "line 2: label or name is empty"),
        ("label,name\na\n", "line 2: label or name is empty"),
    ],
)
def test_bad_files_of_names_are_refused(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(UserError, match=hint):
        read_names(tmp_path / "names.csv")


# Parents

PARENTS = {"cat": "mammal", "trout": "fish", "mammal": "animal", "fish": "animal"}
FILES = {
    "t.csv": "label,parent,grandparent\ncat,mammal,animal\ntrout,fish,animal\ncat,mammal,\n",
    "semicolons.csv": "label;parent\ncat;mammal\ntrout;fish\nmammal;animal\nfish;animal\n",
    "t.jsonl": "".join(
        json.dumps({"class": child, "parent": parent}) + "\n" for child, parent in PARENTS.items()
    ),
    "flat.json": json.dumps(PARENTS),
    "deep.json": json.dumps({"cat": ["mammal", "animal"], "trout": ["fish", "animal"]}),
}


@pytest.mark.parametrize("name", FILES)
def test_parents_are_read_from_any_form(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_parents(tmp_path / name) == PARENTS


def test_a_column_of_a_parquet_table_of_images(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"image": ["a", "b"], "species": ["cat", "trout"], "parent": ["m", "f"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_parents(tmp_path / "t.parquet", "species") == {"cat": "m", "trout": "f"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "t.csv",
            "label,parent\ncat,mammal\ncat,fish\n",
            "'cat' has the parents 'mammal' and 'fish'",
        ),
        ("t.csv", "label,parent,grandparent\ncat,,animal\n", "empty"),
        ("t.csv", "label,name\ncat,mammal\n", "parent"),
        ("t.json", '["cat"]', "write it as"),
        ("t.json", '{"cat": 3}', "'cat'"),
        ("t.json", '{"cat": ["mammal", ""]}', "without a name"),
        ("t.json", "{", "not readable JSON"),
        ("t.json", '{"cat": ["a \\ud800"]}', "not UTF-8"),
        ("t.json", '{"cat": ["a\\u0000"]}', "NUL"),
        ("t.json", json.dumps({"cat": ["a" * 1001]}), "more than 1,000 characters"),
        ("t.csv", f"label,parent\ncat,{'a' * 1001}\n", "more than 1,000 characters"),
    ],
)
def test_a_file_in_another_form_is_refused(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name) as caught:
        read_parents(tmp_path / name)
    assert words in str(caught.value)


def test_labels_keep_the_spelling_of_the_data() -> None:
    found = parents_of({"Sea horse": "fish", "7": "odd", "fish": "animal"}, ["sea_horse", 7], "t")
    assert found == {"sea_horse": "fish", "7": "odd", "fish": "animal"}
    images = ImageSet((), (), ("sea horse", "seven"), written=("sea_horse", 7))
    tree = with_parents({"all": images}, found)["all"].taxonomy
    assert tree is not None
    assert [tree.groups(level)[0] for level in (1, 2)] == [("fish", "7"), ("animal", "odd")]
    assert images.taxonomy is None


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ({"cat": "mammal"}, "class 'trout' has no parent"),
        ({**PARENTS, "dgo": "mammal"}, "'dgo' is neither a class nor a parent"),
        ({**PARENTS, "animal": "mammal"}, "is its own parent"),
        ({**PARENTS, "mammal": "trout"}, "'trout' is a class, and the parent of"),
        ({**PARENTS, "CAT": "fish"}, "'cat' has two parents"),
        ({"trout": "fish", **dict(pairwise(["cat", *map(str, range(101))]))}, "100 parents"),
    ],
)
def test_what_does_not_fit_the_classes_is_refused(parents: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=r"t\.csv: ") as caught:
        parents_of(parents, ["cat", "trout"], "t.csv")
    assert words in str(caught.value)


def test_more_parents_than_a_run_keeps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.label_files.MAX_LABELS", 3)
    with pytest.raises(UserError, match=r"t\.csv: 4 names have a parent, of 3"):
        parents_of(PARENTS, ["cat", "trout"], "t.csv")
