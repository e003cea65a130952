"""Class names, their spellings, and files of names."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.names import (
    ELSE,
    check_known,
    class_indices,
    default_name,
    descriptions,
    key,
    prompt_name,
    prompt_names,
    read_names,
)
from rmadapter.data.read import read_images
from rmadapter.errors import UserError


def test_prompt_name_and_key() -> None:
    assert prompt_name("  Sea--horse_\t(small) ") == "Sea horse (small)"
    apart = unicodedata.normalize("NFD", "Käfer_Ö")
    assert prompt_name(apart) == "Käfer Ö" != apart
    assert key(apart) == key("käfer-ö") == "käfer ö"


def test_prompt_name_of_a_catch_all_class() -> None:
    for label in ("other", "_other", "Other", "none", "_NONE_"):
        assert default_name(label) == ELSE
    assert default_name("other_animals") == "other animals"
    assert prompt_names(["cat", "other"]) == {"cat": "cat", "other": ELSE}
    assert prompt_names(["cat", "other"], {"other": "thing"}) == {"cat": "cat", "other": "thing"}
    with pytest.raises(UserError, match="classes 'none' and 'other' are both called"):
        prompt_names(["none", "other"])


def test_prompt_names_of_labels_as_written() -> None:
    apart = unicodedata.normalize("NFD", "käfer")
    given = {"käfer": "beetle", "n02391049": "zebra (animal)"}
    expected = {apart: "beetle", "n02391049": "zebra (animal)", "sea_horse": "sea horse"}
    assert prompt_names([apart, "n02391049", "sea_horse"], given) == expected
    for twins in (["a_b", "A-b"], [apart, "Käfer"], ["cat", "cat"]):
        with pytest.raises(UserError, match="are both called"):
            prompt_names(twins)


def test_labels_match_as_written_then_by_key_then_by_prompt_name() -> None:
    written, names = ["n01", "sea_horse", "zebra"], ["zebra", "sea horse", "horse"]
    labels = ["zebra", "n01", "Sea-Horse", "N01", "horse"]
    assert class_indices(labels, written, names) == [2, 0, 1, 0, 2]
    assert class_indices([1, 0, "cat"], [0, 1], ["cat", "dog"]) == [1, 0, 0]
    for wrong, hint in (
        ("zebar", "label 'zebar' is not one .* did you mean 'zebra'"),
        (0, "label 0 is not one"),
    ):
        with pytest.raises(UserError, match=hint):
            class_indices([wrong], written, names)


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


@pytest.mark.parametrize("written", ["caf\udce9", "a\0b"])
def test_class_names_must_be_valid_text(written: str) -> None:
    """Such as a folder's name that is not UTF-8, which a tokenizer would refuse only later."""
    with pytest.raises(UserError, match=r"^shop: class .* is not UTF-8 or contains a NUL: rename"):
        prompt_names(["cat", written], where="shop: ")
    with pytest.raises(UserError, match="rename it"):
        prompt_names(["cat"], {"cat": written})


def test_spellings_of_the_path_of_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photo/train/cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo/train/cat/1.png")
    (tmp_path / "classnames.json").write_text('{"cat": "tabby"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "photo")
    for data in (".", "../photo", "~/photo", tmp_path / "photo"):
        assert read_images(data, progress=False)["train"].classes == ("tabby",), data
