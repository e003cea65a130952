"""Strip local paths from records and commands before sharing them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PureWindowsPath

from rmadapter.artifacts.record import BackboneName, Choice, MethodName, Record
from rmadapter.backbones.load import is_published
from rmadapter.methods.uses import USES
from rmadapter.support.files import last_part

# settings that name a file or a backbone
FILES = {name for uses in USES.values() for name in (*uses.files, *uses.backbones)}


def anonymise_names(method: MethodName, backbone: BackboneName) -> tuple[MethodName, BackboneName]:
    """Strip folders from a custom method's file, from files in its settings, and from an
    unpublished backbone."""
    uses = USES.get(method.name, method.uses)
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
    return word if is_published(word) or word.startswith(("hf:", "hf-hub:")) else last_part(word)


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
        "choice": _anonymise_choice(record.choice),
        "reason": anonymise_reason(record.reason),
        "versions": libraries(record.versions),
        "command": "",
        "machine": {},
        "notes": (),
        "columns": {},
        "copied_from": "",
    }
    return record.model_copy(update=update)


def _anonymise_choice(choice: Choice | None) -> Choice | None:
    if choice is None:
        return None
    rows = []
    for row in choice.rows:
        reason = anonymise_reason(row.reason)
        rows.append(row.model_copy(update={"name": last_part(row.name), "reason": reason}))
    return choice.model_copy(update={"rows": tuple(rows), "chosen": last_part(choice.chosen)})


def anonymise_command(command: str) -> str:
    """Return the command with each path cut to its last part; backbones and repositories keep their
    whole names."""

    def anonymise(word: str) -> str:
        name, equals, value = word.rpartition("=")
        if value[:1] in ("/", "~", ".") or PureWindowsPath(value).drive:
            return name + equals + last_part(value)
        names_file = not equals or name.startswith("--") or name.rpartition(".")[2] in FILES
        return name + equals + anonymise_word(value) if names_file else word  # others may be texts

    return shlex.join(map(anonymise, shlex.split(command)))
