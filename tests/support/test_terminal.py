"""Tables, notes, progress, lost streams and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys

import pytest

from rmadapter.support import progress_lines, stop
from rmadapter.support.escape import CONTROL_CHARACTERS, escape
from rmadapter.support.streams import streams
from rmadapter.support.terminal import bar, note, set_quiet, table, track, wrapped


@pytest.mark.parametrize("enabled", [True, False])
def test_track_yields_all_items_and_prints_nothing_into_a_pipe(
    enabled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(iter("abc"), 3, "letters", enabled)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_drawn_on_stderr_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that this is a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with bar() as display:
        text = "evaluating line art, novel classes"
        display.advance(display.add_task(text, total=10_000, note="loss 0.125"), 5000)
        display.refresh()
    out, err = capsys.readouterr()
    assert out == ""
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err).split("\r")[-2].rstrip()
    assert re.fullmatch(rf"{text} [━╸╺]{{16}}  5000/10000 [-\d]+:[-\d]+ loss 0\.125", last)
    assert len(last) <= 80


def test_a_pipe_gets_a_line_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress_lines, "LINE_SECONDS", 10)
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: clock[0])
    with bar() as display:
        task = display.add_task("training", total=2000, completed=1000, note="")
        for step in range(1000):
            clock[0] += 0.024
            display.update(task, advance=1, note=f"loss {step}")
    assert capsys.readouterr() == (
        "",
        "training: 1,417 of 2,000, 14 s left, loss 416\n"
        "training: 1,834 of 2,000, 4 s left, loss 833\n",
    )
    for _ in track(range(3), 3, "\x1b[2J\n"):
        clock[0] += 100
    text = "\\x1b[2J\n: "
    lines = ("1 of 3", "2 of 3, 2 min left", "3 of 3, 0 s left")
    assert capsys.readouterr().err == "".join(f"{text}{line}\n" for line in lines)


@pytest.mark.parametrize(("often", "seconds"), [("", 20), ("1", 0.5)])
def test_a_program_may_ask_for_more_lines(often: str, seconds: float) -> None:
    code = "from rmadapter.support import progress_lines as lines; print(lines.LINE_SECONDS)"
    environment = {**os.environ, "RMADAPTER_OFTEN": often}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert float(printed) == seconds


@pytest.mark.ci
@pytest.mark.parametrize("tied", ["", "1"])
def test_a_command_may_end_with_the_one_that_started_it(tied: str) -> None:
    code = "import time; from rmadapter.support.stop import end_with_stdin; end_with_stdin()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); time.sleep(3)"],
        env={**os.environ, "RMADAPTER_ENDS_WITH_STDIN": tied},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(30) == (stop.STOPPED if tied else 0)


def test_quiet_is_for_one_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lines, "LINE_SECONDS", 0)
    with streams():
        set_quiet(True)
        note("something")
        assert list(track([1, 2], 2, "images")) == [1, 2]
        with bar() as display:
            display.console.print("a record")
    assert capsys.readouterr() == ("", "")
    note("something")
    assert list(track([1], 1, "images")) == [1]
    assert capsys.readouterr().err == "note: something\nimages: 1 of 1, 0 s left\n"


def test_an_error_within_track_ends_the_bar() -> None:
    def broken() -> object:
        yield 1
        raise ValueError("third image")

    with pytest.raises(ValueError, match="third image"):
        list(track(broken(), 3, "images"))
    # rich would refuse a second display beside a live one
    assert list(track([1], 1, "again")) == [1]


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    table(["class", "n"], [["[/red]", "1"], [":cat:", "2"], [long, "3"]])
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("[/red]", ":cat:", long):
        assert name in out


@pytest.mark.parametrize(
    ("columns", "most", "width"), [("60", 80, 60), ("90", 80, 80), ("x", 70, 70)]
)
def test_a_table_is_as_wide_as_columns_says_and_cuts_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    most: int,
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    path = "photos/" + "x" * 200
    table(["image", "n"], [[path, "1"]], max_columns=most)
    lines = capsys.readouterr().out.splitlines()
    assert {*map(len, lines)} == {width}
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(cells) == path
    text = f"  1. Put {path} there: " + "word " * 40
    assert [*map(len, wrapped(text).splitlines())].count(width) <= len(text) // width
    assert wrapped(text).split() == text.split()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals")
def test_a_table_in_a_pager_is_as_wide_as_the_terminal() -> None:
    import fcntl
    import termios

    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 70, 0, 0))
    code = "from rmadapter.support.terminal import table; table(['a'], [['x' * 500]])"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=follower, env=environment, text=True, check=True,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)
    assert {*map(len, done.stdout.splitlines())} == {70}


HOSTILE = "\x1b[2J\x07\r\x9b31m\u202egpj.png"
SHOWN = r"\x1b[2J\x07\r\x9b31m\u202egpj.png"


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert escape(HOSTILE) == SHOWN
    letters = "größe 斑马 👩‍🚀\nنام\u00a0\u200c"
    assert escape(letters) == letters
    note(f"{HOSTILE}\nrmadapter: a forged line")
    table(["class"], [[HOSTILE]])
    out, err = capsys.readouterr()
    assert err == f"note: {SHOWN} rmadapter: a forged line\n".replace(r"\x07\r", r"\x07 ")
    assert SHOWN in out
    assert not CONTROL_CHARACTERS.search(out + err)


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams(["predict", "\x1b.png"]):
        print("\x1b.png")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "\\x1b.png\n"


def _import_that_is_interrupted() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except SystemExit:
        raise ImportError("initialization failed") from None


def test_ctrl_c_that_becomes_another_error_ends_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an ImportError in the first import of a compiled module."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended, stop.stoppable():
            _import_that_is_interrupted()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("rmadapter: stopped")
    with pytest.raises(ImportError), stop.stoppable():
        raise ImportError("of its own")
    signal.signal(signal.SIGINT, before)
