"""Serve a run that changes file by file, for `kills`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rmadapter.artifacts.checkpoint import save
from rmadapter.backbones import load_backbone
from rmadapter.methods import load_method
from rmadapter.training.contract import Known
from tests.helpers.serving import colour_image, post, wait_for

COLOURS, FARBEN = ("blue", "green", "red"), ("blau", "grün", "rot")
IMAGE = [("a.png", colour_image(250, 5, 5))]


def changing_run(
    root: Path, backbone: Path
) -> tuple[tuple[str, ...], Callable[[Path, Path], None]]:
    """Write two versions of a model to `root`; return the words of `serve`, and a function after
    which it serves the first one while that becomes the second one."""
    loaded = load_backbone(str(backbone))
    fitted = load_method("zero-shot").restore(loaded, Known(COLOURS, ("a photo of {}",)), {})
    old, new = root / "old", root / "new"
    save(old, fitted, "zero-shot", COLOURS)
    save(new, fitted, "zero-shot", FARBEN)

    def prepare(out: Path, log: Path) -> None:
        run = out / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(old, run)
        sys.argv.append(str(run))
        said = log.stat().st_size if log.exists() else 0
        work = partial(
            change, run, new, out / "answers.json", lambda: log.read_text(encoding="utf-8")[said:]
        )
        threading.Thread(target=work, daemon=True).start()

    words = ("serve", "--port", "0", "--engine", "onnx", "--backbone", str(backbone))
    return words, prepare


def change(run: Path, new: Path, answers: Path, said: Callable[[], str]) -> None:
    """Copy the files of `new` over those of a served run; reload and ask after each half of a file;
    then stop this server. said: returns what it has printed."""
    try:
        wait_for(lambda: "http://" in said(), "no address")
        address = re.findall(r"http://[\d.:]+", said())[0]
        seen: list[object] = [answer(address)]
        for file in sorted(new.iterdir()):
            content = file.read_bytes()
            for size in (len(content) // 2, len(content)):
                (run / file.name).write_bytes(content[:size])
                seen.append(reloaded(address, said))
        answers.write_text(json.dumps(seen), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGTERM)
    except OSError:  # the server was stopped
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def answer(address: str) -> object:
    """Return the classes of the image, with their probabilities."""
    status, content = post(address, "/predict", IMAGE)
    assert status == 200, content
    return content["answers"][0]["classes"]


def reloaded(address: str, said: Callable[[], str]) -> tuple[str, object]:
    """Reload the run; return what the server reports, and its answer."""
    before = said().count("reloaded")
    os.kill(os.getpid(), signal.SIGHUP)
    wait_for(lambda: said().count("reloaded") > before, "no report of a reload")
    refused = "not reloaded" in said().splitlines()[-1]
    return "refused" if refused else "reloaded", answer(address)
