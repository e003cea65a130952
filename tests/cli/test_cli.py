"""The command line as a shell sees it: exit codes, one line on stderr, JSON on stdout."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from rmadapter.cli import machine
from rmadapter.cli import main as cli
from tests.helpers.commands import parser
from tests.helpers.shell import Command, backbone_option, refused, rmadapter, run_process

__all__ = ["rmadapter"]  # a fixture

VERBS = {
    "suspects": "--out --apply --method --backbone --image-column --set"
    " --allow-outside --quiet --json",
    "fit": "--method --backbone --shots --seed --classes --effort --config --set --out --json",
    "eval": "--split --classes --backbone --set --skip-bad --allow-outside --quiet --json",
    "predict": "--names --backbone --top --out --sort-into --unsure"
    " --skip-bad --engine --quiet --json",
    "add": "--out --old-data --shots --backbone --quiet --json",
    "compare": "--data --split --backbone --json",
    "explain": "--out --data --backbone --quiet --json",
    "suggest": "--n --start --names --out --rule --seed --backbone --skip-bad --quiet --json",
    "serve": "--host --port --engine --batch --queue --cors --backbone --json",
    "app": "--host --port --backbone --runs --keep-hours --open --quiet --json",
    "export": "--to --precision --out --data --force --backbone --allow-outside --quiet --json",
    "push": "--private --to --half --examples --licence --quiet --json",
    "params": "--backbone --method --config --set --json",
    "demo": "--out --seed --quiet",
    "doctor": "--json",
    "cache": "--clear --json",
    "data": "--root --check --download --json",
    "bench": "--datasets --methods --backbone --seeds --shots --root --out --jobs"
    " --engine --allow-outside --json",
    "tune": "--out --method --trials --search --folds --jobs --engine --address"
    " --config --set --quiet --json",
    "report": "--out --check --json",
    "methods": "--json",
}
QUICK = ["--set", "first_block=3", "--set", "rank=4", "--set", "epochs=2", "--set", "device=cpu"]


# ---- starting ----


def test_version(rmadapter: Command) -> None:
    from rmadapter import __version__

    assert rmadapter("--version") == (0, f"rmadapter {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = rmadapter(verb, "--help")
    assert (code, err) == (0, "")
    for option in VERBS[verb].split():
        assert option in out
    assert rmadapter(verb, "-h").out == out
    assert verb in rmadapter("--help").out


def test_help_groups_verbs(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = rmadapter("--help").out
    order = (
        "Make a model; demo; fit; eval; Look at data; suspects; Use a model; predict; export; "
        "Research; bench; This machine; doctor"
    )
    places = [out.index(f" {word} ") for word in order.split("; ")]
    assert places == sorted(places)
    shown = out.splitlines()
    for verb, command in parser().commands.items():  # each in one line, as in its docstring
        first = command.help.partition("\n")[0]
        assert any(verb in line and first in line for line in shown), verb


def test_help_imports_nothing_heavy() -> None:
    """What makes --help fast, without a stopwatch."""
    code = """
import sys
from rmadapter.cli.main import main
for words in (["--help"], ["--version"], ["fit", "--help"]):
    sys.argv = ["rmadapter", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
# Typer itself takes pydantic
heavy = "torch open_clip timm transformers matplotlib jinja2 sklearn scipy numpy PIL".split()
heavy += ["safetensors", "yaml"]
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "predict" in done.stdout


def test_wrong_usage_is_one_line(rmadapter: Command) -> None:
    refused(
        rmadapter("fitt"), "no such command 'fitt'", "(`rmadapter -h` lists arguments and options)"
    )
    refused(rmadapter("fit", "data"), "missing option '--out' (`rmadapter fit -h`")
    refused(rmadapter("fit", "data", "--out"), "'--out' requires an argument")
    refused(rmadapter("predict", "run", "a.png", "--top", "0"), "invalid value for '--top'")
    refused(rmadapter("params", "--rank\x1b[2J", "3"), "no such option")
    refused(
        rmadapter("fit", "data", "--out", "run", "--minutes", "3"),
        "--minutes limits the choice of --method auto",
    )
    code, _, err = rmadapter()
    assert (code, "Traceback" in err) == (2, False)


# ---- what is refused ----


def test_a_mistake_is_one_line_in_a_real_process() -> None:
    refused(
        run_process("fit", "gone", "--out", "x", "--shots", "no"), "'--shots'", "a valid integer"
    )


def test_what_fit_refuses(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out = tmp_path / "run"
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("no picture")
    good = ["--backbone", tiny_clip.name, *QUICK]
    refused(rmadapter("fit", colors, "--backbone", "pokket", "--out", out), "'pokket'", "pocket")
    refused(
        rmadapter("fit", colors, "--set", "rnak=3", "--out", out),
        "unknown setting 'rnak'; did you mean 'rank'?",
    )
    refused(rmadapter("fit", colors, "--set", "rank", "--out", out), "write it as field=value")
    refused(rmadapter("fit", colors, "--set", "rank=no", "--out", out), "rank=False")
    refused(
        rmadapter("fit", colors, "--method", "nma", "--out", out),
        "unknown method 'nma'; did you mean 'mma'?",
    )
    refused(rmadapter("fit", colors, "--effort", "quick", "--out", out), "effort='quick'")
    refused(
        rmadapter("fit", colors, "--config", tmp_path / "none.yaml", "--out", out),
        "not a readable config",
    )
    refused(
        rmadapter("fit", colors, "--classes", "old", "--out", out),
        "classes='old'",
        "'all', 'base' or 'novel'",
    )
    refused(rmadapter("fit", colors, "--shots", "-1", "--out", out), "shots=-1")
    refused(
        rmadapter("fit", tmp_path / "gone", "--out", out),
        f"{tmp_path / 'gone'}: no such file or folder",
    )
    refused(
        rmadapter("fit", tmp_path / "file", "--out", out),
        "unknown format; give a folder of class folders",
    )
    refused(rmadapter("fit", tmp_path / "empty", "--out", out), "holds no class folders")
    refused(
        rmadapter("fit", tmp_path, "--out", out), f"{tmp_path / 'empty'}: no image in this folder"
    )
    refused(
        rmadapter("fit", colors, *good, "--set", "first_block=5", "--out", out),
        "have 4 and 4 blocks",
    )
    refused(
        rmadapter("fit", colors, *good, "--set", "precision=fp16", "--out", out),
        "precision=fp16 needs a GPU",
    )
    refused(rmadapter("fit", colors, *good, "--set", "device=tpu9", "--out", out), "device='tpu9'")
    refused(
        rmadapter("fit", colors, *good, "--out", tmp_path / "file"),
        f"{tmp_path / 'file'}: cannot be written to",
    )
    assert not (out / "run.json").exists()


def test_a_bad_picture_is_refused_or_skipped(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    data, out = Path(shutil.copytree(colors, tmp_path / "data")), tmp_path / "run"
    (data / "train" / "red" / "bad.png").write_bytes(b"")
    command = ["fit", data, "--backbone", tiny_clip.name, *QUICK, "--out", out]
    refused(rmadapter(*command), "red/bad.png: not a readable image", "--skip-bad")
    code, _, err = rmadapter(*command, "--skip-bad", "--json")
    assert code == 0
    assert "note: train/red/bad.png: not a readable image" in err


def test_what_eval_refuses(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(finished, tmp_path / "run"))
    (broken / "model.safetensors").write_bytes(b"PK\x03\x04")
    refused(rmadapter("eval", broken, colors), "model.safetensors: does not match model.json")
    refused(rmadapter("eval", finished, colors), "name it yourself: --backbone '")
    its = backbone_option(finished)
    refused(
        rmadapter("eval", finished, colors, *its, "--set", "alfa=0"),
        "unknown field 'alfa'; did you mean 'alpha'?",
    )
    refused(rmadapter("eval", tmp_path, colors), "name the run first")
    refused(rmadapter("eval", finished, tmp_path / "gone", *its), "gone: no such file or folder")
    plain = ["eval", finished, colors / "train", *its]
    refused(rmadapter(*plain), "the data has no test split: give --split one of all, heldout")
    refused(
        rmadapter("eval", finished, colors, *its, "--split", "val"),
        "give --split one of train, test, heldout",
    )
    refused(rmadapter("eval", finished, colors, "--classes", "old"), "classes='old'")
    refused(
        rmadapter("eval", finished, colors, "--device", "cpu"),
        "--device",
        "is given as --set device=VALUE",
    )


def test_an_accuracy_on_what_was_trained_on_is_told(
    rmadapter: Command, finished: Path, colors: Path
) -> None:
    its = backbone_option(finished)
    told = "note: 16 of these 24 images were trained on: this accuracy says little about new ones"
    assert told in rmadapter("eval", finished, colors, *its, "--split", "train").err
    assert "trained on" not in rmadapter("eval", finished, colors, *its).err
    assert rmadapter("eval", finished, colors, *its, "--split", "train", "--quiet").err == ""


def test_what_predict_refuses(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    image, its = colors / "test" / "red" / "0.png", backbone_option(finished)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    refused(rmadapter("predict", finished, image), "name it yourself: --backbone '")
    refused(rmadapter("predict", finished, tmp_path / "bad.png", *its), "bad.png: not")
    refused(
        rmadapter("predict", finished, image, tmp_path / "gone.png", *its),
        "gone.png: not a readable image",
    )
    refused(
        rmadapter("predict", finished, finished, *its),
        f"{finished}: no images in a supported format (",
    )
    for names, words in (
        ("", "at least one"),
        (" , ", "at least one"),
        ("cat,cat", "both"),
        ("Cat,cat", "both called"),
    ):
        refused(rmadapter("predict", finished, image, *its, "--names", names), "--names", words)
    refused(rmadapter("predict", colors, image), "not a run")
    probe = tmp_path / "probe"
    fit = [
        "fit",
        colors,
        "--backbone",
        tiny_clip.name,
        "--method",
        "linear-probe",
        "--set",
        "device=cpu",
    ]
    assert rmadapter(*fit, "--out", probe).code == 0
    refused(
        rmadapter("predict", probe, image, *its, "--names", "red,zebra"),
        "--names: linear probe only",
        "'zebra'",
    )


def test_several_processes_of_one_command_are_refused(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them: each would do the same. tests/runs/test_team.py has `fit`, which
    several can do."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("0", "0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    refused(rmadapter("doctor"), "doctor", "torchrun")


def test_a_keystroke_that_stops_it_leaves_a_sentence(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "diagnose", lambda *_: signal.raise_signal(signal.SIGINT))
    code, out, err = rmadapter("doctor")
    assert (code, out) == (130, "")
    assert err.startswith("rmadapter: stopped")
    assert len(err.splitlines()) == 1


LOST = """
import signal, sys, time
from rmadapter.cli import machine
from rmadapter.cli import main as cli
from rmadapter.support import terminal
terminal.GRACE = 1
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


@pytest.mark.parametrize("where", ["lost", "waits", "ends"])
def test_a_keystroke_stops_it_where_an_exception_would_not(where: str) -> None:
    """Python drops what is raised in a callback, and clearing up may wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", LOST.format(where)], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (130, "")
    words = "repeat the command to start again, or to resume an unfinished `fit` or `predict --out`"
    assert done.stderr == f"rmadapter: stopped; {words}\n"


FULL = "rmadapter: cannot write to stdout (No space left on device): redirect it\n"
SHELL = """
exec 3>&1
{ %s; echo $? >&3; } %s
"""


@pytest.mark.parametrize(
    ("streams", "code", "err"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 2, FULL),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>&1", 2, ""),
        ("| true", 141, ""),
    ],
)
def test_closed_full_and_broken_streams(streams: str, code: int, err: str) -> None:
    """The code that every command gives, and no traceback."""
    slow = "" if "|" not in streams else "sleep 0.5; "  # until nobody reads any more
    words = f"{slow}{sys.executable} -m rmadapter params --help"
    done = subprocess.run(["bash", "-c", SHELL % (words, streams)], capture_output=True, text=True)
    assert (int(done.stdout.splitlines()[-1]), done.stderr) == (code, err)


def test_an_error_is_told_by_its_code_even_if_nobody_can_read_it() -> None:
    for streams in (">&- 2>&-", ">/dev/full 2>/dev/full", "2>&-"):
        words = f"{sys.executable} -m rmadapter no-such-verb"
        done = subprocess.run(["bash", "-c", f"{words} {streams}"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_names_with_control_characters_never_reach_the_terminal(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    good, bad = tmp_path / f"{evil}.png", tmp_path / f"{evil}.jpg"
    shutil.copy(colors / "test/red/0.png", good)
    bad.write_bytes(b"")
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    shutil.copy(bad, data / "train/red" / bad.name)
    fit = ["fit", data, "--backbone", tiny_clip.name, *QUICK, "--out", tmp_path / "run"]
    its = backbone_option(finished)
    answers = [
        rmadapter("predict", finished, *words, *its) for words in ([good], [good, "--json"], [bad])
    ]
    answers += [rmadapter("report", finished, evil, "--out", "x"), rmadapter(f"--{evil}")]
    answers += [rmadapter(*fit), rmadapter(*fit, "--skip-bad")]
    assert [answer.code for answer in answers] == [0, 0, 2, 2, 2, 2, 0]
    for answer in answers:
        assert "\x1b" not in answer.out + answer.err
        assert "\x07" not in answer.out + answer.err
        assert "owned" in answer.out + answer.err


def test_a_bug_of_ours_is_no_mistake_of_the_users(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(machine, "diagnose", bug)
    monkeypatch.setattr(sys, "argv", ["rmadapter", "doctor"])
    with pytest.raises(ValueError, match="ours"):
        cli.main()
