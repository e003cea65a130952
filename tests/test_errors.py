from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from rmadapter.errors import (
    LINE,
    UserError,
    did_you_mean,
    first_fault,
    is_text,
    memory_ended,
    quoted,
    user_message,
)


def test_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="say so"):
        raise UserError("say so")


def test_user_message_is_one_line_and_reraises_bugs() -> None:
    class Usage(Exception):
        def format_message(self) -> str:
            return "Missing option\n'--out'."

    assert user_message(UserError("two\n  lines")) == "two lines"
    assert (
        user_message(Usage())
        == "missing option '--out' (`rmadapter -h` lists arguments and options)"
    )
    with pytest.raises(ZeroDivisionError):
        user_message(ZeroDivisionError())


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (torch.OutOfMemoryError("CUDA ran full"), True),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, max: 20 GB)"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ends_is_recognised(error: Exception, ended: bool) -> None:
    assert memory_ended(error) == ended
    if ended:
        assert "device=cpu" in user_message(error)
    else:
        with pytest.raises(type(error)):
            user_message(error)


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx: (None, 'g++')", "a C++"),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment", "a C comp"),
        ("Cannot find a working triton installation. Either the package is not", "Triton"),
    ],
)
def test_what_compiling_lacks_is_told_in_one_line(text: str, needed: str) -> None:
    told = user_message(RuntimeError(text))
    assert told.startswith(f"torch.compile needs {needed}")
    assert "compile=none" in told


def test_did_you_mean_suggests_a_close_word_or_lists_all() -> None:
    known = {"rank": 1, "alpha": 2, "epochs": 3}
    assert did_you_mean("rnak", known) == "; did you mean 'rank'?"
    assert did_you_mean("epoch", known) == "; did you mean 'epochs'?"
    assert did_you_mean("zzz", known) == "; known are alpha, epochs, rank"
    assert did_you_mean("zzz", map(str, range(102))).endswith(", 97 and 2 more")
    assert did_you_mean("zzz", iter(known)) == did_you_mean("zzz", known)  # any iterable, read once


def test_quoted_is_short_and_on_one_line() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep, deep]  # printed in full it would have 2^500 brackets
    for value in (
        "x" * 10**6,
        "a\nb\x1b[2J",
        deep,
        dict.fromkeys(range(1000), deep),
        [10**5000],
        10**5000,
        b"x" * 10**6,
    ):
        text = quoted(value)
        assert len(text) <= 80
        assert text.isprintable()
    assert quoted("rank") == "'rank'"
    assert quoted([1, None]) == "[1, None]"


@pytest.mark.parametrize("part", ["x", "a\nb", "a\r\n\u2028b\x85", "é\x1b"])
def test_any_message_is_one_line_with_its_beginning_and_end(part: str) -> None:
    for count in (1, 30, 400_000):
        text = str(UserError(f"file.csv: {part * count}: write it anew"))
        assert len(text) <= LINE
        assert len(text.splitlines()) == 1
        assert text.startswith("file.csv: ")
        assert text.endswith(": write it anew")
        assert str(UserError(text)) == text


def test_is_text_refuses_nul_and_lone_surrogates() -> None:
    assert all(is_text(text) for text in ("", "größe", "斑马", "\u202e", "a\nb"))
    assert not any(is_text(text) for text in ("a\0b", "caf\udce9", "\ud800"))


def test_the_first_fault_is_short() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"k" * 1000: "v" * 1000})
    place, reason = first_fault(caught.value)
    assert place == "k" * 40
    assert reason.startswith("Input should be a valid integer")
