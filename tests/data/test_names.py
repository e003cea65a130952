"""Names of classes and their spellings."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.names import (
    CATCH_ALL_NAME,
    class_indices,
    default_name,
    key,
    prompt_name,
    prompt_names,
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
        assert default_name(label) == CATCH_ALL_NAME
    assert default_name("other_animals") == "other animals"
    assert prompt_names(["cat", "other"]) == {"cat": "cat", "other": CATCH_ALL_NAME}
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
