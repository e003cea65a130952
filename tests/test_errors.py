from __future__ import annotations

import pytest

from rmadapter.errors import UserError, nearest


def test_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="say so"):
        raise UserError("say so")


def test_nearest_names_the_word_that_was_meant_or_all() -> None:
    known = {"rank": 1, "alpha": 2, "epochs": 3}
    assert nearest("rnak", known) == "; did you mean 'rank'?"
    assert nearest("epoch", known) == "; did you mean 'epochs'?"
    assert nearest("zzz", known) == "; known are alpha, epochs, rank"
    assert nearest("zzz", iter(known)) == nearest("zzz", known)  # any iterable, read once
