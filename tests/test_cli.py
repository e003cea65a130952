"""The command line as a shell sees it: exit codes, one line on stderr, JSON on stdout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from rmadapter import cli, doctor
from rmadapter.backbone import Backbone
from rmadapter.config import Config

VERBS = {
    "fit": ["--backbone", "--preset", "--shots", "--seed", "--classes", "--set", "--out", "--skip-bad", "--json"],
    "eval": ["--split", "--classes", "--alpha", "--skip-bad", "--json"],
    "predict": ["--classes", "--top", "--json"],
    "params": ["--backbone", "--preset", "--set", "--json"],
    "demo": ["--out"],
    "doctor": ["--json"],
    "data": ["--root", "--check", "--download", "--json"],
    "bench": ["--datasets", "--methods", "--backbone", "--seeds", "--shots", "--root", "--out", "--jobs", "--json"],
    "report": ["--out", "--check", "--json"],
    "methods": ["--json"],
}
QUICK = ["--set", "first_block=3", "--set", "rank=4", "--set", "epochs=2", "--set", "device=cpu"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def rmadapter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `main()` in this process, where the libraries are imported already."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["rmadapter", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Answer(int(stop.value.code or 0), *capsys.readouterr())

    before = signal.getsignal(signal.SIGINT)
    yield call
    signal.signal(signal.SIGINT, before)


def process(*words: object) -> Answer:
    code = "from rmadapter.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


def refused(answer: Answer, *hints: str) -> None:
    assert answer.code == 2
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith("rmadapter: ")
    for hint in hints:
        assert hint in line


# ---- starting ----


def test_version(rmadapter: Command) -> None:
    from rmadapter import __version__

    assert rmadapter("--version") == (0, f"rmadapter {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = rmadapter(verb, "--help")
    assert (code, err) == (0, "")
    for option in VERBS[verb]:
        assert option in out
    assert rmadapter(verb, "-h").out == out
    assert verb in rmadapter("--help").out


def test_help_imports_nothing_heavy() -> None:
    """What makes --help fast, without a stopwatch."""
    code = """
import sys
from rmadapter.cli import main
for words in (["--help"], ["--version"], ["fit", "--help"]):
    sys.argv = ["rmadapter", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
# Typer itself takes pydantic
heavy = "torch open_clip timm transformers matplotlib jinja2 sklearn scipy numpy PIL safetensors yaml".split()
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "predict" in done.stdout


def test_wrong_usage_exits_with_2(rmadapter: Command) -> None:
    for words in ([], ["fitt"], ["fit", "data"], ["predict", "run", "a.png", "--top", "0"], ["params", "--rank", "3"]):
        code, _, err = rmadapter(*words)
        assert code == 2
        assert "Traceback" not in err
    assert "--out" in rmadapter("fit", "data").err  # says what is missing


# ---- what is refused ----


def test_a_mistake_is_one_line_in_a_real_process() -> None:
    refused(process("params", "--backbone", "ViT-B-17/openai"), "ViT-B-17", "ViT-B-16")


def test_what_fit_refuses(rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone) -> None:
    out = tmp_path / "run"
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("no picture")
    good = ["--backbone", tiny_clip.name, *QUICK]
    refused(rmadapter("fit", colors, "--backbone", "pokket", "--out", out), "'pokket'", "pocket")
    refused(rmadapter("fit", colors, "--set", "rnak=3", "--out", out), "unknown field 'rnak'; did you mean 'rank'?")
    refused(rmadapter("fit", colors, "--set", "rank", "--out", out), "write it as field=value")
    refused(rmadapter("fit", colors, "--set", "rank=no", "--out", out), "rank=False")
    refused(rmadapter("fit", colors, "--preset", "nma", "--out", out), "unknown preset 'nma'; did you mean 'mma'?")
    refused(rmadapter("fit", colors, "--classes", "old", "--out", out), "classes='old'", "'all', 'base' or 'novel'")
    refused(rmadapter("fit", colors, "--shots", "-1", "--out", out), "shots=-1")
    refused(rmadapter("fit", tmp_path / "gone", "--out", out), f"{tmp_path / 'gone'}: neither a folder")
    refused(rmadapter("fit", tmp_path / "file", "--out", out), "neither a folder of class folders nor a CSV file")
    refused(rmadapter("fit", tmp_path / "empty", "--out", out), "holds no class folders")
    refused(rmadapter("fit", tmp_path, "--out", out), f"{tmp_path / 'empty'}: no picture in this folder")
    refused(rmadapter("fit", colors, *good, "--set", "first_block=5", "--out", out), "have 4 and 4 blocks")
    refused(rmadapter("fit", colors, *good, "--set", "precision=fp16", "--out", out), "precision=fp16 needs a GPU")
    refused(rmadapter("fit", colors, *good, "--set", "device=tpu9", "--out", out), "device='tpu9'")
    refused(rmadapter("fit", colors, *good, "--out", tmp_path / "file"), f"{tmp_path / 'file'}: no folder to write")
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


def test_what_eval_refuses(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(finished, tmp_path / "run"))
    (broken / "adapter.safetensors").write_bytes(b"PK\x03\x04")
    refused(rmadapter("eval", broken, colors), "adapter.safetensors: damaged or no safetensors file")
    refused(rmadapter("eval", tmp_path, colors), "not a finished run; `rmadapter fit DATA --out")
    refused(rmadapter("eval", finished, tmp_path / "gone"), "gone: neither a folder")
    flat = ["eval", finished, colors / "train"]
    refused(rmadapter(*flat), "there is no test split in the data: give --split one of all, heldout")
    refused(rmadapter("eval", finished, colors, "--split", "val"), "give --split one of train, test, heldout")
    refused(rmadapter("eval", finished, colors, "--classes", "old"), "classes='old'")


def test_what_predict_refuses(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    picture = colors / "test" / "red" / "0.png"
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    refused(rmadapter("predict", finished, tmp_path / "bad.png"), "bad.png: not")
    refused(rmadapter("predict", finished, picture, tmp_path / "gone.png"), "gone.png: not a readable image")
    refused(rmadapter("predict", finished, colors), f"{colors}: not a readable image")
    for classes in ("", " , ", "cat,cat", "Cat,cat"):
        refused(
            rmadapter("predict", finished, picture, "--classes", classes), "at least one, none empty and none twice"
        )
    refused(rmadapter("predict", colors, picture), "not a finished run")


def test_a_keystroke_that_stops_it_leaves_a_sentence(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda *_: signal.raise_signal(signal.SIGINT))
    code, out, err = rmadapter("doctor")
    assert (code, out) == (130, "")
    assert err.startswith("rmadapter: stopped")
    assert len(err.splitlines()) == 1


def test_a_bug_of_ours_is_no_mistake_of_the_users(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(doctor, "diagnose", bug)
    monkeypatch.setattr(sys, "argv", ["rmadapter", "doctor"])
    with pytest.raises(ValueError, match="ours"):
        cli.main()


# ---- what the verbs do ----


def test_fit_then_eval_then_predict(rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone) -> None:
    out = tmp_path / "run"
    command = ["fit", colors, "--backbone", tiny_clip.name, "--preset", "mma", "--shots", 3, "--seed", 2]
    command += ["--classes", "base", *QUICK, "--set", "templates=a {}.", "--out", out]
    code, text, err = rmadapter(*command, "--json")
    assert (code, err) == (0, "")
    assert list(json.loads(text)) == ["test, base classes", "test, novel classes", "harmonic_mean"]
    values = {"shots": 3, "seed": 2, "classes": "base", "templates": ["a {}."], "backbone": tiny_clip.name}
    assert Config.load(out / "config.yaml") == Config.make(
        {**values, "first_block": 3, "rank": 4, "epochs": 2, "device": "cpu"}, "mma"
    )
    again = rmadapter(*command)  # a table this time, without training again
    assert again.code == 0
    for words in ("test, base classes", "harmonic mean", "zero-shot", f"report: {out / 'report.html'}"):
        assert words in again.out
    refused(rmadapter(*command, "--set", "rank=5"), "holds another run: choose another --out")
    code, text, err = rmadapter("eval", out, colors, "--classes", "base", "--json")
    assert (code, err) == (0, "")
    assert json.loads(text) == json.loads((out / "run.json").read_text())["metrics"]["test, base classes"]


def test_eval_prints_exactly_these_keys(rmadapter: Command, finished: Path, colors: Path) -> None:
    code, out, err = rmadapter("eval", finished, colors, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["accuracy", "zero_shot_accuracy", "chance", "n_images", "n_classes"]
    assert (found["chance"], found["n_images"], found["n_classes"]) == (25, 16, 4)
    assert found["accuracy"] > 90 > 50 > found["zero_shot_accuracy"]
    dialled = json.loads(rmadapter("eval", finished, colors, "--alpha", 0, "--json").out)
    assert dialled["accuracy"] == dialled["zero_shot_accuracy"] == found["zero_shot_accuracy"]
    novel = json.loads(rmadapter("eval", finished, colors, "--classes", "novel", "--split", "train", "--json").out)
    assert (novel["n_images"], novel["n_classes"]) == (12, 2)
    assert json.loads(rmadapter("eval", finished, colors, "--split", "heldout", "--json").out)["n_images"] == 8
    table = rmadapter("eval", finished, colors).out
    assert f"{found['accuracy']:.1f}" in table
    assert "zero-shot" in table


def test_predict(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    pictures = [colors / "test" / name / "0.png" for name in ("red", "night_sky")]
    code, out, err = rmadapter("predict", finished, *pictures, "--top", 2, "--json")
    assert (code, err) == (0, "")
    answers = json.loads(out)
    assert [answer["image"] for answer in answers] == [str(picture) for picture in pictures]
    assert [answer["classes"][0]["class"] for answer in answers] == ["red", "night sky"]
    for answer in answers:
        assert 0 <= answer["novelty"] <= 100
        first, second = (guess["probability"] for guess in answer["classes"])
        assert 1 >= first > second >= 0
    (answer,) = json.loads(rmadapter("predict", finished, pictures[0], "--classes", "zebra, 斑马,red ", "--json").out)
    assert {guess["class"] for guess in answer["classes"]} == {"zebra", "斑马", "red"}
    assert sum(guess["probability"] for guess in answer["classes"]) == pytest.approx(1, abs=1e-5)
    table = rmadapter("predict", finished, pictures[0], "--classes", "[/red],[bold]x,:cat:").out
    for name in ("[/red]", "[bold]x", ":cat:", str(pictures[0])):
        assert name in table
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))  # a name that is not UTF-8
    with open(strange, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    assert rmadapter("predict", finished, strange).code == 0
    (answer,) = json.loads(rmadapter("predict", finished, strange, "--json").out)
    assert answer["image"] == str(strange)


def test_params_of_the_paper(rmadapter: Command) -> None:
    code, out, err = rmadapter("params", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"trainable": 1_020_928, "inference": 666_112, "reconstruction": 354_816}


def test_params_of_mma_and_of_other_settings(rmadapter: Command, tiny_clip: Backbone) -> None:
    table = rmadapter("params", "--preset", "mma").out
    assert table.count("674,560") == 2
    tiny = ["params", "--backbone", tiny_clip.name, "--json", "--set", "rank=2", "--set", "last_block=3"]
    counts = json.loads(rmadapter(*tiny, "--set", "first_block=3", "--preset", "mma").out)
    one = sum(2 * width * 2 + 2 + width for width in (64, 48))  # W_down and W_up with their biases
    assert counts == {"trainable": one + 2 * 2 + 2, "inference": one + 2 * 2 + 2, "reconstruction": 0}
    refused(rmadapter(*tiny, "--set", "first_block=4"), "last_block=3 lies below first_block=4")
