"""Push a run to the Hugging Face hub: what others need to use it, and nothing about whose images it
was made from.

Sent: the weights, model.json, config.yaml, run.json, a model card, SHA256SUMS. Not sent: names and
copies of images (split.json, predictions.csv, why.json, images.csv, report.html), paths, the
command, the machine, notes, reasons that may name files, and, unless requested, the features of the
training images.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple, TypedDict

from huggingface_hub import EvalResult, HfApi, ModelCardData

from rmadapter import __version__
from rmadapter.answers.held_out import describe_images, least_share
from rmadapter.artifacts.checkpoint import EXAMPLES, config_of, to_half
from rmadapter.artifacts.model_file import Model, read_model, read_weights
from rmadapter.artifacts.record import BackboneName, MethodName, Record, read_record
from rmadapter.artifacts.run_folder import HUB, RunFolder, check_model
from rmadapter.artifacts.summary import promise_table
from rmadapter.artifacts.value import BackboneChoice
from rmadapter.backbones.load import is_published
from rmadapter.backbones.names import HF_HUB
from rmadapter.backbones.published import caveat, licence_of, repository_of
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, traits_of
from rmadapter.methods.uses import uses_of
from rmadapter.settings import to_yaml
from rmadapter.support.files import (
    SUMS,
    check_new,
    last_part,
    sha256,
    write_json,
    write_sums,
    write_tensors,
    write_text,
)
from rmadapter.support.html import template
from rmadapter.support.hub import check_repository, hub_errors
from rmadapter.support.locks import staged_folder
from rmadapter.support.terminal import note

README = "README.md"
FILES = (*(file.name for file in RunFolder(Path()).shared), README)
SENT_FILES = {*FILES, SUMS}
FILES_OF_THE_HUB = {".gitattributes"}  # in every repository
LIBRARY, TASK = "rmadapter", "image-classification"
MAX_CARD_CLASSES = 50  # listed in the model card


class PushOptions(NamedTuple):
    """What of a run is sent.

    Attributes:
        half: Whether to store float32 numbers as float16.
        examples: Whether to send features of the training images, too.
        licence: Licence of what was trained, as the hub calls it.
    """

    half: bool = False
    examples: bool = False
    licence: str = "unknown"


DEFAULTS = PushOptions()


class Pushed(TypedDict, total=False):
    """Files with their sizes in bytes, and where they are: a folder, or a repository."""

    folder: str
    repository: str
    url: str
    commit: str
    load: str
    files: dict[str, int]
    bytes: int


def push(
    run: Path,
    repository: str,
    options: PushOptions = DEFAULTS,
    *,
    private: bool = False,
    to: Path | None = None,
) -> Pushed:
    """Push a run to the Hugging Face hub in one commit; a note first lists what is sent.

    Args:
        run: Folder of the run.
        repository: OWNER/NAME: a new one, or one that holds a run.
        options: What is sent.
        private: Whether a new repository is made private.
        to: New folder for what would be sent; then nothing leaves this machine.

    Raises:
        UserError: Anything but a finished run of this version, a repository that holds something
            else or is public despite `private`, and whatever the hub refuses.
    """
    check_repository(repository)
    if to is not None:
        check_new(to)
        with staged_folder(to) as stage:
            sizes = _write(stage, run, repository, options)
        return {"folder": str(to), "files": sizes, "bytes": sum(sizes.values())}
    with tempfile.TemporaryDirectory() as folder:
        sizes = _write(Path(folder), run, repository, options)
        total = sum(sizes.values())
        listed = ", ".join(f"{name} ({size / 1e6:.2f} MB)" for name, size in sizes.items())
        note(f"to {repository}: {listed}; {total / 1e6:.2f} MB in all")
        return {**_upload(Path(folder), repository, private), "files": sizes, "bytes": total}


def _write(folder: Path, run: Path, repository: str, options: PushOptions) -> dict[str, int]:
    """Write what is sent; return the size of each file."""
    source, copy = RunFolder(run), RunFolder(folder)
    check_model(run)
    model = read_model(source.model)
    tensors = read_weights(source, model)
    source.check_sums(without=[source.weights])
    if not options.examples:
        tensors.pop(EXAMPLES, None)
    write_tensors(copy.weights, to_half(tensors) if options.half else tensors)
    record = None
    if source.record.is_file():
        record = anonymise_record(read_record(source.record))
        record.save(copy.record)
        write_text(copy.config, to_yaml(config_of(record)))
    method, backbone = anonymise_names(model.method, model.backbone)
    update = {"method": method, "backbone": backbone, "versions": libraries(model.versions)}
    model = model.model_copy(update={**update, "sha256": sha256(copy.weights)})
    write_json(copy.model, model.model_dump(mode="json"))
    card = model_card(model, record, repository, options.licence, EXAMPLES in tensors)
    write_text(folder / README, card)
    write_sums(folder, FILES)
    files = sorted(file for file in folder.iterdir() if file.name in SENT_FILES)
    return {file.name: file.stat().st_size for file in files}


# The hub


def _upload(folder: Path, repository: str, private: bool) -> Pushed:
    api = HfApi(library_name=LIBRARY, library_version=__version__)
    with hub_errors(repository):
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[*SENT_FILES],
            delete_patterns=[*SENT_FILES],  # of an earlier run
            commit_message=f"A run of {LIBRARY} {__version__}",
            parent_commit=_open_repository(api, repository, private),
        )
    url = f"{api.endpoint}/{repository}"
    load = f"{HUB}{repository}"
    return {"repository": repository, "url": url, "commit": commit.oid, "load": load}


def _open_repository(api: HfApi, repository: str, private: bool) -> str | None:
    """Return the last commit of the repository, which is created if new."""
    api.create_repo(repository, private=private, exist_ok=True)
    info = api.model_info(repository)
    existing = {file.rfilename for file in info.siblings or ()}
    if existing - FILES_OF_THE_HUB and info.library_name != LIBRARY:
        raise UserError(
            f"{repository} already exists and is not a run of {LIBRARY}; choose another name"
        )
    if private and not info.private:
        raise UserError(
            f"{repository} already exists and is public, which --private does not change: make it "
            "private on its page of the hub, or choose another name"
        )
    return info.sha


# The model card


def model_card(
    model: Model, record: Record | None, repository: str, licence: str, examples: bool
) -> str:
    """Return README.md with the hub's metadata: what a run is, how good it is, what is untested.

    Args:
        model: The model.
        record: Record of its run; None if the model was saved by itself.
        repository: OWNER/NAME.
        licence: Licence of what was trained.
        examples: Whether the weights include features of the training images.
    """
    judged = record.judgement if record else None
    functions = {"cell": _cell, "percent": _percent, "rate": _rate}
    text = template("modelcard.md.j2", escape=False, **functions).render(
        metadata=_metadata(model, record, repository, licence),
        model=model,
        labels=[*map(str, model.labels)],
        most=MAX_CARD_CLASSES,
        record=record,
        promises=judged and judged.promises and promise_table(judged.promises),
        repository=repository,
        hub=HUB,
        licence=licence,
        known=is_published(model.backbone.name),
        its_licence=licence_of(model.backbone.name),
        caveat=caveat(model.backbone.name),
        examples=examples,
        least=least_share,
        describe=describe_images,
    )
    return str(text)


def _cell(value: object) -> str:
    """Return text as one line of Markdown, escaped so that no class or folder name can break it or
    become HTML."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(str(value).split()))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _rate(share: float) -> str:
    """Return a share in percent, as options take it."""
    return f"{100 * share:g}%"


def _metadata(model: Model, record: Record | None, repository: str, licence: str) -> str:
    """Return the hub's metadata, as YAML."""
    results = _results(record) if record else []
    base = hub_name(model.backbone.name)
    method = re.sub(r"[^a-z0-9-]+", "-", model.method.name.lower())
    card = ModelCardData(
        license=licence,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[LIBRARY, "clip", "few-shot", "adapter", method],
        base_model=base,
        metrics=["accuracy"] if results else None,
        base_model_relation="adapter" if base else None,
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def hub_name(backbone: str) -> str | None:
    """Return the repository on the hub that a backbone's weights come from, if one is known."""
    if backbone.startswith(HF_HUB):
        return backbone.removeprefix(HF_HUB)
    architecture, _, tag = backbone.partition("/")
    return (repository_of(architecture, tag) if tag else "") or None


def _results(record: Record) -> list[EvalResult]:
    """Return scores that the hub shows beside the card, as fractions of 1."""
    data = record.task.data or "unknown"
    judgement = record.judgement
    if judgement:
        fitted = judgement.fitted
        figures = [
            (data, judgement.how, "accuracy", fitted.accuracy),
            (data, judgement.how, "f1", fitted.macro_f1),
            (data, judgement.how, "expected_calibration_error", fitted.calibration_error),
        ]
    else:
        figures = [
            (score.data or data, score.title, "accuracy", score.accuracy)
            for score in record.scores
            if score.accuracy is not None
        ]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=re.sub(r"[^\w.-]+", "-", name),
            dataset_name=name,
            dataset_split=split,
            metric_type=kind,
            metric_value=round(value / 100, 4),
        )
        for name, split, kind, value in figures
    ]


# Paths of this machine, in records and commands


def anonymise_names(method: MethodName, backbone: BackboneName) -> tuple[MethodName, BackboneName]:
    """Strip folders from a custom method's file, from files in its settings, and from an
    unpublished backbone."""
    uses = uses_of(method.name, method.settings, method.uses)
    named = () if uses is None else (*uses.files, *uses.backbones)

    def anonymise(name: str, value: object) -> object:
        if not isinstance(value, str):
            return value
        is_path = name in named or os.path.exists(value) or value[:1] in "/~."
        return anonymise_word(value) if is_path else value

    settings = {name: anonymise(name, value) for name, value in method.settings.items()}
    update = {"name": last_part(method.name), "settings": settings}
    backbone_name = anonymise_word(backbone.name)
    return method.model_copy(update=update), backbone.model_copy(update={"name": backbone_name})


def anonymise_word(word: str) -> str:
    """Return the last part of a path; published backbones and repositories keep their whole
    name."""
    return word if is_published(word) or word.startswith((HUB, HF_HUB)) else last_part(word)


def anonymise_reason(text: str) -> str:
    """Return the reason why a score is missing, unless it could name a file."""
    return "left out, as it may name a file" if "/" in text or "\\" in text else text


def libraries(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of libraries alone, without the platform."""
    return {name: version for name, version in versions.items() if name != "platform"}


def anonymise_record(record: Record) -> Record:
    """Return the record without paths, command, machine, notes, and the names of a table's
    columns."""
    method, backbone = anonymise_names(record.method, record.backbone)
    tests = tuple(replace(test, data=last_part(test.data)) for test in record.task.tests)
    data = last_part(record.task.data)
    task = replace(record.task, data=data, backbone=backbone.name, tests=tests)
    scores = []
    for score in record.scores:
        reason = anonymise_reason(score.reason)
        scores.append(score.model_copy(update={"data": last_part(score.data), "reason": reason}))
    update = {
        "method": method,
        "backbone": backbone,
        "task": task,
        "scores": tuple(scores),
        "choice": None,
        "backbones": record.backbones and _anonymise_choice(record.backbones),
        "reason": anonymise_reason(record.reason),
        "versions": libraries(record.versions),
        "command": "",
        "machine": {},
        "notes": (),
        "columns": {},
        "copied_from": "",
    }
    return record.model_copy(update=update)


def _anonymise_choice(choice: BackboneChoice) -> BackboneChoice:
    """Return a choice whose names are shortened, without reasons that could name a file."""
    rows = []
    for row in choice.rows:
        update = {"name": anonymise_word(row.name), "reason": anonymise_reason(row.reason)}
        rows.append(row.model_copy(update=update))
    return choice.model_copy(update={"rows": tuple(rows), "chosen": anonymise_word(choice.chosen)})


@cache
def _file_settings() -> set[str]:
    """Return the settings of all methods that name a file or a backbone."""
    every = [traits_of(name).uses for name in METHODS]
    return {name for uses in every if uses for name in (*uses.files, *uses.backbones)}


def anonymise_command(command: str) -> str:
    """Return the command with each path cut to its last part; backbones and repositories keep their
    whole names."""

    def anonymise(word: str) -> str:
        name, equals, value = word.rpartition("=")
        if value[:1] in ("/", "~", ".") or PureWindowsPath(value).drive:
            return name + equals + last_part(value)
        setting = name.rpartition(".")[2]
        names_file = not equals or name.startswith("--") or setting in _file_settings()
        return name + equals + anonymise_word(value) if names_file else word  # others may be texts

    return shlex.join(map(anonymise, shlex.split(command)))
