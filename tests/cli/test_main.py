"""The command line as a shell sees it: options, help, exit codes, errors, completion."""

from __future__ import annotations

import inspect
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from rmadapter import __version__
from rmadapter.backbones import Backbone
from rmadapter.cli import machine, main as cli
from rmadapter.cli.checks import check_folder
from rmadapter.cli.options import Columns, expand
from rmadapter.errors import UserError
from rmadapter.export.targets import TARGETS
from rmadapter.methods import EFFORTS
from rmadapter_serve.model import RUN_ENGINES
from tests.helpers.commands import assert_parses, parser
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
    run_process,
)

__all__ = ["rmadapter"]  # a fixture

VERBS = parser().commands
WIDTH = 78  # what a terminal of 80 columns shows in a line


def test_the_module_is_the_command_line(rmadapter: Command) -> None:
    words = [sys.executable, "-m", "rmadapter", "--version"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"rmadapter {__version__}\n")
    assert rmadapter("--version") == (0, done.stdout, "")


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_examples_that_parse(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = rmadapter(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert rmadapter(verb, "-h").out == rmadapter("help", verb).out == done.out
    lines = [line.strip() for line in done.out.splitlines() if line.strip()]
    shown = lines[lines.index("Examples:") + 1 :]
    [command] = [command for command in (*cli.COMMANDS, *cli.installed()) if command.name == verb]
    assert shown == [*command.examples]
    assert 1 <= len(shown) <= 3
    for line in shown:
        assert len(line) <= WIDTH
        program, *words = line.split()
        assert (program, words[0]) == ("rmadapter", verb)
        assert_parses(words)


# What Typer shows, and readers do not understand.
ARTEFACTS = (
    r"\}\.\.\.",
    r"\]\.\.\.",
    r"\[default: (\(|None|\])",
    r"<(bool|str|list|float|int range)",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_no_python(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = rmadapter(verb, "--help").out
    usage = re.search(r"Usage: .*?\n *\n", out, re.DOTALL)
    assert usage
    assert re.fullmatch(r"[A-Za-z./ \n\[\]-]+", usage[0].partition(":")[2])
    options = out.partition("─ Options ")[2]
    for pattern in ARTEFACTS:
        assert not re.search(pattern, usage[0] + options), pattern
    assert max(map(len, out.splitlines())) <= 80


def test_help_groups_verbs(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first = rmadapter("--help").out
    listed = [verb for verb in VERBS if re.search(rf"^│ {verb} ", first, re.MULTILINE)]
    assert len(listed) == 10
    assert {"fit", "predict", "app"} <= {*listed}
    out = rmadapter("help", "all").out
    order = (
        "Make a model; demo; fit; eval; Look at data; suspects; Use a model; predict; export; "
        "Research; bench; This machine; backbones; doctor"
    )
    places = [out.index(f" {word} ") for word in order.split("; ")]
    assert places == sorted(places)
    assert {"--install-completion", "--show-completion"} <= {*out.split()}
    shown = out.splitlines()
    for verb, command in VERBS.items():  # each in one line, as in its docstring
        first = command.help.partition("\n")[0]
        assert any(verb in line and first in line for line in shown), verb


@pytest.mark.parametrize(
    ("verb", "option", "values"),
    [
        ("fit", "effort", EFFORTS),
        ("export", "to", TARGETS),
        ("export", "precision", {name for one in TARGETS.values() for name in one.precisions}),
        ("serve", "engine", RUN_ENGINES),
        ("fit", "precision", ("fp32", "bf16", "fp16", "auto")),
        ("fit", "half", ("all", "base", "novel")),
    ],
)
def test_help_shows_the_values_of_a_closed_list(
    verb: str, option: str, values: Iterable[str]
) -> None:
    [found] = [one for one in VERBS[verb].params if one.name == option]
    assert {*found.metavar.split(" | ")} == {*values}


def test_out_has_a_short_form() -> None:
    found = [one for verb in VERBS.values() for one in verb.params if one.name == "out"]
    assert len(found) > 10
    assert all(one.opts == ["--out", "-o"] for one in found)


# Options that differ between commands, and why.
DIFFERENT = {
    "--out": "what is written differs: a run, a page, answers",
    "--precision": "a file may be in int8, a training not; a training may choose",
    "--set": "in a bench, METHOD.FIELD is a setting of one of its methods",
    "--shots": "a bench takes several numbers",
    "--to": "a model and labels have other formats",
}


def test_an_option_means_the_same_everywhere() -> None:
    """Its type, what --help shows as its value, and its help up to the first semicolon, after which
    stands what is particular to a command."""
    meanings: dict[str, set[tuple[object, ...]]] = {}
    for verb in VERBS.values():
        for one in verb.params:
            if one.param_type_name == "option":
                long = next(word for word in one.opts if word.startswith("--"))
                meaning = one.help.partition(";")[0].rstrip(".")
                old = getattr(one, "type", None)  # of older Typer
                taken = str(one.type_descriptor.annotation) if old is None else old.name
                # a switch has no value, and its first use sets "" in place of None
                kind = (taken, one.metavar or "", one.multiple)
                meanings.setdefault(long, set()).add((meaning, *kind, *one.opts))
    differ = {long for long, found in meanings.items() if len(found) > 1}
    assert differ == {*DIFFERENT}


@pytest.mark.parametrize(
    ("words", "meant"),
    [("fit data --names a.csv", "--names-from"), ("add run x --run-dat y", "--run-data")],
)
def test_a_misspelt_option_is_corrected(rmadapter: Command, words: str, meant: str) -> None:
    refused(rmadapter(*words.split()), "no such option", meant)


@pytest.mark.parametrize("option", [["--unsure", "0.9"], ["--unsure=0.9"]])
def test_an_old_option_names_the_new_one(rmadapter: Command, option: list[str]) -> None:
    refused(rmadapter("predict", "run", "a.png", *option), "--unsure", "--wrong 10%")


def test_help_imports_nothing_heavy() -> None:
    """It is fast for that reason; Typer itself takes pydantic."""
    code = """
import sys
from rmadapter.cli.main import main
verbs = [[verb, "--help"] for verb in ("fit", "bench", "report", "methods", "data")]
for words in (["--help"], ["--version"], *verbs):
    sys.argv = ["rmadapter", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = "torch open_clip timm transformers matplotlib jinja2 sklearn scipy numpy PIL".split()
heavy += ["safetensors", "yaml"]
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "predict" in done.stdout


@pytest.mark.ci
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pre", "predict"),
        ("ex", "explain export"),
        ("fit --eff", "--effort"),
        ("--ver", "--version"),
    ],
)
def test_bash_completes(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, offered: str
) -> None:
    """By the script itself, in a real bash."""
    program = Path(sys.executable).with_name("rmadapter")
    if not program.is_file():
        pytest.skip("the command is not installed beside this Python")
    monkeypatch.setenv("_RMADAPTER_COMPLETE", "source_bash")
    (tmp_path / "script").write_text(rmadapter().out)
    monkeypatch.delenv("_RMADAPTER_COMPLETE")
    words = f"source {tmp_path / 'script'}; COMP_WORDS=(rmadapter {typed})"
    words += f"; COMP_CWORD={len(typed.split())}"
    words += f'; _rmadapter_completion {program}; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert sorted(done.stdout.split()) == offered.split(), done.stderr


# Mistakes and bugs


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        ("fitt", ["no such command 'fitt'", "(`rmadapter -h` lists arguments and options)"]),
        ("leaderboard data", ["missing option '--out' / '-o' (`rmadapter leaderboard -h`"]),
        ("fit data --out", ["'--out' requires an argument"]),
        ("predict run a.png --top 0", ["invalid value for '--top'"]),
        ("methods --rank\x1b[2J 3", ["no such option"]),
    ],
)
def test_wrong_usage_is_one_line(
    rmadapter: Command, colors: Path, words: str, hints: list[str]
) -> None:
    refused(rmadapter(*words.replace("data", str(colors)).split()), *hints)


def test_a_mistake_is_one_line_in_a_real_process() -> None:
    words = ("fit", "gone", "--out", "x", "--shots", "no")
    refused(run_process(*words), "'--shots'", "a valid integer")


def test_several_processes_of_one_command_are_refused(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them: each would do the same. Only `fit` trains in several."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("0", "0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    refused(rmadapter("doctor"), "doctor", "torchrun")


def test_several_processes_of_fit_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would choose its own."""
    check_folder(None)
    monkeypatch.setattr("rmadapter.cli.checks.launched", lambda: True)
    with pytest.raises(UserError, match="--out"):
        check_folder(None)


def test_a_bug_of_ours_is_no_mistake_of_the_users(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(machine, "diagnose", bug)
    with pytest.raises(ValueError, match="ours"):
        rmadapter("doctor")


def test_names_with_control_characters_never_reach_the_terminal(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    good, bad = tmp_path / f"{evil}.png", tmp_path / f"{evil}.jpg"
    shutil.copy(colors / "test/red/0.png", good)
    bad.write_bytes(b"")
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    shutil.copy(bad, data / "train/red" / bad.name)
    fit = fit_command(data, tiny_clip, tmp_path / "run", *quick_options(2))
    its = backbone_option(finished)
    answers = [
        rmadapter("predict", finished, *words, *its) for words in ([good], [good, "--json"], [bad])
    ]
    answers += [rmadapter("report", finished, evil, "--out", "x"), rmadapter(f"--{evil}")]
    answers += [rmadapter(*fit), rmadapter(*fit, "--skip-bad")]
    assert [answer.code for answer in answers] == [0, 0, 2, 2, 2, 2, 0]
    for answer in answers:
        assert not {"\x1b", "\x07"} & {*answer.out, *answer.err}
        assert "owned" in answer.out + answer.err


# Keystrokes and streams


def test_ctrl_c_ends_with_one_line(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "diagnose", lambda *_: signal.raise_signal(signal.SIGINT))
    code, out, err = rmadapter("doctor")
    assert (code, out) == (130, "")
    assert err.startswith("rmadapter: stopped")
    assert len(err.splitlines()) == 1


LOST = """
import signal, sys, time
from rmadapter.cli import machine
from rmadapter.cli import main as cli
from rmadapter.support import stop
stop.GRACE_SECONDS = 1
class Callback:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def lost(*_):
    del callback[0]
    time.sleep(60)
def waits(*_):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        time.sleep(60)
def ends(*_):  # slowly, after Python has given its handlers back
    Callback.__del__ = lambda _, sleep=time.sleep: sleep(2)
    signal.raise_signal(signal.SIGINT)
callback, sys.argv = [Callback()], ["rmadapter", "doctor"]
machine.diagnose = {}
cli.main()
"""


@pytest.mark.ci
@pytest.mark.parametrize("where", ["lost", "waits", "ends"])
def test_ctrl_c_ends_it_where_an_exception_would_not(where: str) -> None:
    """Python drops what is raised in a callback, and clearing up may wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", LOST.format(where)], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("rmadapter: stopped; repeat the command")
    assert done.stderr.count("\n") == 1


FULL = "rmadapter: cannot write to stdout (No space left on device): redirect it\n"
SHELL = """
exec 3>&1
{ %s; echo $? >&3; } %s
"""


@pytest.mark.ci
@pytest.mark.parametrize(
    ("words", "streams", "code", "err"),
    [
        ("methods --help", ">&-", 0, ""),
        ("methods --help", "2>&-", 0, ""),
        ("methods --help", "<&- >&- 2>&-", 0, ""),
        ("methods --help", ">/dev/full", 2, FULL),
        ("methods --help", "2>/dev/full", 0, ""),
        ("methods --help", ">/dev/full 2>&1", 2, ""),
        ("methods --help", "| true", 141, ""),
        ("no-such-verb", ">&- 2>&-", 2, ""),
        ("no-such-verb", ">/dev/full 2>/dev/full", 2, ""),
        ("no-such-verb", "2>&-", 2, ""),
    ],
)
def test_closed_full_and_broken_streams_give_a_code_and_no_traceback(
    words: str, streams: str, code: int, err: str
) -> None:
    slow = "" if "|" not in streams else "sleep 0.5; "  # until nobody reads any more
    command = f"{slow}{sys.executable} -m rmadapter {words}"
    line = ["bash", "-c", SHELL % (command, streams)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (int(done.stdout.splitlines()[-1]), done.stderr) == (code, err)


# Classes of options


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1)]
    height: Annotated[int, typer.Option("--high")] = 2


def paint(
    out: Annotated[Path, typer.Argument()], size: Size, columns: Columns = Columns(), last: int = 0
) -> None:
    """Paint."""
    print(out, size, columns.named(), last)


def test_fields_stand_where_their_class_stood() -> None:
    parameters = inspect.signature(expand(paint)).parameters
    columns = [f"{kind}_column" for kind in ("image", "label", "split", "group")]
    assert [*parameters] == ["out", "width", "height", *columns, "last"]
    assert parameters["width"].default is inspect.Parameter.empty
    assert parameters["height"].default == 2


def test_a_command_gets_the_class() -> None:
    app = typer.Typer()
    app.command()(expand(paint))
    call: Any = CliRunner().invoke
    answer = call(app, ["a.png", "--width", "3", "--label-column", "art", "--last", "5"])
    assert answer.stdout == f"a.png {Size(3, 2)} {{'label': 'art'}} 5\n"
    assert call(app, ["a.png"]).exit_code == 2  # --width is required
    assert call(app, ["a.png", "--width", "0"]).exit_code == 2


def test_columns_that_were_named() -> None:
    assert Columns(label_column="art", group_column="patient").named() == {
        "label": "art",
        "group": "patient",
    }
    with pytest.raises(AttributeError):
        Columns().image_column = "x"  # type: ignore[misc]
