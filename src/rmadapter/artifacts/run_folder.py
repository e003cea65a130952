"""The folder of a run: the name of each file in it, and how to find the run that a user names."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.support.escape import escape
from rmadapter.support.files import (
    RECORD,
    RUNS,
    SPLIT,
    SUMS,
    check_sums,
    own_name,
    shortened,
    user_path,
    write_sums,
)
from rmadapter.support.hub import check_repository, hub_errors
from rmadapter.support.terminal import note

HUB = "hf:"  # before OWNER/NAME, for a run on the Hugging Face hub


class RunFolder:
    """The files of a run below a folder. The model is complete if `model` exists, the run if
    `record` does.

    Args:
        path: The folder.

    Attributes:
        weights: The trained tensors.
        model: A description of the model, which names the method, the backbone and the classes.
        config: The settings, as `--config` reads them.
        record: The record, one line of JSON.
        history: The loss terms of every step.
        split: The images that were drawn.
        predictions: The answers on the test images.
        mistakes: Some wrong answers, with the nearest training images.
        page: The page that shows all of this.
        images: The table of images of a run that grew, in place of a folder of data.
        sums: The SHA-256 of each file above.
        training: The state of an unfinished training.
        activations: A folder of frozen activations, needed only until the run is finished.
        shared: The files that go to the hub, besides `sums`.
        saved: The files that a finished run may have, besides `sums`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "model.safetensors"
        self.model = path / "model.json"
        self.config = path / "config.yaml"
        self.record = path / RECORD
        self.history = path / "history.csv"
        self.split = path / SPLIT
        self.predictions = path / "predictions.csv"
        self.mistakes = path / "why.json"
        self.page = path / "report.html"
        self.images = path / "images.csv"
        self.sums = path / SUMS
        self.training = path / "training.safetensors"
        self.activations = path / ".activations"
        self.shared = (self.weights, self.model, self.config, self.record)
        reports = (self.history, self.split, self.predictions, self.mistakes, self.page)
        self.saved = (*self.shared, *reports, self.images)

    def write_sums(
        self, without: Collection[Path] = (), to_come: Mapping[str, str] | None = None
    ) -> None:
        """Write `sums` for the saved files that exist.

        Args:
            without: Files to leave out.
            to_come: SHA-256, by name, of files that are written next.
        """
        names = [file.name for file in self.saved if file not in without]
        write_sums(self.path, names, to_come)

    def check_sums(self, needed: Collection[Path] = (), without: Collection[Path] = ()) -> None:
        """Raise UserError if a file has changed since it was saved, or a needed one is not in
        `sums`.

        Args:
            needed: Files that must be there.
            without: Files that are not compared.
        """
        check_sums(self.path, [file.name for file in needed], [file.name for file in without])


def is_remote(name: str | Path) -> bool:
    """Return whether the name is that of a run on the hub."""
    return str(name).startswith(HUB)


def find_run(name: str | Path) -> Path:
    """Return the folder of a run. `hf:OWNER/NAME` and `hf:OWNER/NAME@REVISION` are downloaded to
    the hub's cache, or updated there if the hub can be reached; any other name is a path, with ~
    for home.

    Raises UserError if the repository does not exist, holds no model of ours, or cannot be
    downloaded.
    """
    text = str(name).replace("\\", "/")  # a Path of Windows has backslashes
    if not is_remote(name):
        return user_path(name)
    import huggingface_hub

    repository, _, revision = text.removeprefix(HUB).partition("@")
    check_repository(repository)
    files = RunFolder(Path())
    names = [file.name for file in (*files.shared, files.sums)]
    with hub_errors(repository):
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=names
        )
    run = RunFolder(Path(folder))
    if not run.model.is_file():
        raise UserError(f"{text}: holds no rmadapter model: {run.model.name} is missing")
    return run.path


@contextmanager
def run_folder(out: Path | None, source: Path) -> Iterator[Path]:
    """Yield the folder of a new run: `out`, or if None, one that is created as runs/NAME-N.

    A note says how to resume the run if the block is stopped; a folder without any file is then
    removed.

    Args:
        out: The folder, if the user named one.
        source: Data or a run, which gives the name.

    Raises:
        UserError: The folder cannot be created.
    """
    if out is not None:
        yield out
        return
    folder = _new_run(_name_of(source))
    again = f"--out {shlex.quote(str(folder))}"
    note(f"the run is in {folder}; if it is stopped, repeat the command with {again} to resume it")
    try:
        yield folder
    except BaseException:
        try:
            folder.rmdir()
        except OSError:  # it holds files
            text = f"rmadapter: to resume this run, repeat the command with {again}"
            print(escape(text), file=sys.stderr)
        raise


def _name_of(source: Path) -> str:
    """Return a name for runs on some data, or for those made of a run: without an ending such as
    .csv or -2."""
    name = own_name(str(source))
    if is_remote(str(source)):
        name = name.partition("@")[0]
    elif user_path(source).is_file():
        name = Path(name).stem.removesuffix(".tar")
    else:
        name = re.sub(r"-\d+$", "", name) if RunFolder(user_path(source)).model.exists() else name
    return shortened(name.lstrip(".")) or "run"


def _new_run(name: str) -> Path:
    """Create runs/NAME-N, with a number above those of all others of the name."""
    form = re.compile(rf"{re.escape(name)}-(\d+)")
    home = Path(RUNS)
    try:
        home.mkdir(exist_ok=True)
        matches = [form.fullmatch(entry.name) for entry in home.iterdir()]
        number = max((int(match[1]) for match in matches if match), default=0)
        while True:
            number += 1
            folder = home / f"{name}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:  # another process was faster
                continue
            return folder
    except OSError as error:
        raise UserError(
            f"{home}: cannot be written to ({error.strerror or error}); name a folder with --out"
        ) from None


def check_model(folder: Path) -> None:
    """Raise UserError for a folder without a model."""
    if not RunFolder(folder).model.is_file():
        raise UserError(f"{folder}: {without_model(folder)}")


def check_no_model(out: Path) -> None:
    """Raise UserError for a folder that holds a model, which is not overwritten."""
    if RunFolder(out).model.exists():
        raise UserError(f"{out} already holds a model: choose another --out")


def without_model(folder: Path) -> str:
    """Say what a folder without a model is, and what to do, for a message."""
    makes = f"`rmadapter fit DATA --out {folder}` makes one"
    run = RunFolder(folder)
    if not folder.exists():
        models = sorted(folder.absolute().parent.glob(f"*/{run.model.name}"))
        beside = [file.parent.name for file in models]
        close = difflib.get_close_matches(folder.name, beside, n=1)
        return (
            f"no such folder; did you mean {close[0]!r}?" if close else f"no such folder; {makes}"
        )
    if (folder / "export.json").is_file():
        return (
            f"an export; ask it with `python {folder}/predict.py IMAGES` or `rmadapter serve "
            f"{folder}`"
        )
    begun = (run.record, run.split, run.config, run.weights, run.training)
    if folder.is_dir() and any(folder.iterdir()) and not any(file.exists() for file in begun):
        return "not a run but another folder; name the run first, then images or data"
    return f"not a finished run; {makes}"
