from __future__ import annotations

import sys

import pytest

from rmadapter.console import CONTROL, bar, note, plain, streams, table, track


@pytest.mark.parametrize("enabled", [True, False])
def test_track_passes_everything_on_and_prints_nothing_into_a_pipe(
    enabled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(iter("abc"), 3, "letters", enabled)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_drawn_on_stderr_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that this is a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bar() as display:
        display.add_task("training", total=4, completed=3, note="loss 0.125")
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("training", "3/4", "loss 0.125"):
        assert word in err


def test_an_error_within_track_ends_the_bar() -> None:
    def broken() -> object:
        yield 1
        raise ValueError("third image")

    with pytest.raises(ValueError, match="third image"):
        list(track(broken(), 3, "images"))
    assert list(track([1], 1, "again")) == [1]  # rich would refuse a second display beside a live one


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    table(["class", "n"], [["[/red]", "1"], [":cat:", "2"], [long, "3"]])
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("[/red]", ":cat:", long):
        assert name in out


HOSTILE = "\x1b[2J\x07\r\x9b31m\u202egpj.png"
SHOWN = r"\x1b[2J\x07\r\x9b31m\u202egpj.png"


def test_control_characters_are_shown_and_never_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(HOSTILE) == SHOWN
    assert plain("größe 斑马 👩‍🚀\nنام\u00a0\u200c") == "größe 斑马 👩‍🚀\nنام\u00a0\u200c"  # these are letters
    note(f"{HOSTILE}\nrmadapter: a forged line")
    table(["class"], [[HOSTILE]])
    out, err = capsys.readouterr()
    assert err == f"note: {SHOWN} rmadapter: a forged line\n".replace(r"\x07\r", r"\x07 ")
    assert SHOWN in out
    assert not CONTROL.search(out + err)


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams(["predict", "\x1b.png"]):
        print("\x1b.png")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "\\x1b.png\n"
