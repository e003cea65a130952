"""What slow.txt lists is there, or it would leave out nothing."""

from __future__ import annotations

from tests.conftest import SLOW, slow_tests


def test_every_line_names_a_test() -> None:
    lines = slow_tests()
    assert len({name for name, *_ in lines}) == len(lines) > 0
    for name, *kept in lines:
        file, _, test = name.partition("::")
        text = (SLOW.parent / file).read_text(encoding="utf-8")
        assert f"def {test}(" in text, name
        assert kept or text.count("\ndef test_") > 1, f"{name}: leaves {file} without a test"
