"""The exception whose message a user reads, and the parts of such messages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_LISTED_WORDS = 100  # known words that a message lists at most
MAX_COMPARED_WORDS = 1000  # known words among which a close one is sought; each takes 1 ms at most
LINE, END = 1000, 300  # characters of a message, and those of its end if it is longer
NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED")  # of torch, MPS and libraries of CUDA
COMPILERS = {  # what errors of torch.compile say -> what it needs
    "InvalidCxxCompiler": "a C++ compiler, such as g++",
    "Failed to find C compiler": "a C compiler, such as gcc",
    "Cannot find a working triton": "Triton, on Windows the package triton-windows",
}


class UserError(ValueError):
    """A mistake in the user's input, described in one sentence that says what to do.

    The command line prints it on stderr and exits with code 2; any other exception is a bug.

    Args:
        message: Text; it becomes one line of at most 1,000 characters, whatever names from files it
            quotes.

    Example:
        >>> from rmadapter import UserError, read_images
        >>> try:
        ...     read_images("colours")
        ... except UserError as error:
        ...     print(error)
        colours: no such file or folder; give a folder of class folders; ...
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Join the lines of a text, and leave out the middle of a long one: its beginning names the
    file, its end says what to do."""
    if len(text) > LINE:
        text = f"{text[: LINE - END - 3]} … {text[-END:]}"
    return " ".join(text.splitlines())


def user_message(error: Exception) -> str:
    """Return the line on stderr for a UserError, a full GPU, a compiler that is not there or a
    mistake in the command line; "" if help was printed instead. Raises any other error again, since
    it is a bug."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if memory_ended(error):
        return (
            "the GPU's memory ended: end what else uses it, take a smaller backbone, or set "
            "device=cpu"
        )
    for words, needed in COMPILERS.items():
        if words in str(error):
            return f"torch.compile needs {needed}: install it, or set compile=none"
    # Typer's errors have this method; their class depends on its version.
    if not hasattr(error, "format_message"):
        raise error
    text = one_line(" ".join(str(error.format_message()).split()).rstrip("."))
    if not text:
        return ""
    context: object = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "rmadapter")
    parameters = getattr(getattr(context, "command", None), "params", ())
    takes_settings = any("--set" in parameter.opts for parameter in parameters)
    unknown = str(getattr(error, "option_name", None) or "").lstrip("-").replace("-", "_")
    hint = (
        f"a setting of the method is given as --set {unknown}=VALUE; "
        if unknown and takes_settings
        else ""
    )
    return f"{text[0].lower()}{text[1:]} ({hint}`{path} -h` lists arguments and options)"


def memory_ended(error: Exception) -> bool:
    """Return whether a device had no memory left. Not all of torch raises its OutOfMemoryError."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"  # torch takes long to import
        or any(words in str(error) for words in NO_MEMORY)
    )


def damaged(place: object, error: Exception) -> UserError:
    """Return what to raise for a file or folder that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{place}: damaged ({type(error).__name__}: {reason})")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'rank'?` if a known word is close to `word`, else `; known are ...`
    (the first `MAX_LISTED_WORDS`)."""
    words = sorted(known)
    compared = words[:MAX_COMPARED_WORDS]
    close = difflib.get_close_matches(word[:100], compared, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(words) - MAX_LISTED_WORDS} more" if len(words) > MAX_LISTED_WORDS else ""
    return f"; known are {', '.join(words[:MAX_LISTED_WORDS])}{more}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 79
_SHORT.maxlevel = 3  # and six items at each level: large values cost no more


def quoted(value: object) -> str:
    """Quote a value in a line of at most 80 characters, however large or deep it is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def is_text(value: str) -> bool:
    """Return whether tokenizers, files and terminals accept a text: no NUL, and no lone surrogate,
    as Python has in names that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Return place and reason of the first fault that pydantic reports, each short."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"][:6])
    return place, str(first["msg"])[:200]
