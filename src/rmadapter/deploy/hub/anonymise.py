"""Remove the names of this machine's folders and files from records and commands that leave it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any

from rmadapter.artifacts.record import BackboneName, MethodName, Record
from rmadapter.backbones.load import is_published
from rmadapter.methods.uses import USES
from rmadapter.support.files import last_part

FILES = {
    name for uses in USES.values() for name in (*uses.files, *uses.backbones)
}  # settings that name any


def bare_reason(text: str) -> str:
    """The reason why a score is missing, unless it could name a file."""
    return "left out, as it may name a file" if "/" in text or "\\" in text else text


def libraries(versions: Mapping[str, str]) -> dict[str, str]:
    """Versions of libraries alone, without the platform."""
    return {name: version for name, version in versions.items() if name != "platform"}


def bare_names(method: MethodName, backbone: BackboneName) -> tuple[MethodName, BackboneName]:
    """Strip folders from a method's own file, from files in its settings, and from an unpublished
    backbone."""
    uses = USES.get(method.name, method.uses)
    named = () if uses is None else (*uses.files, *uses.backbones)

    def bare(name: str, value: Any) -> Any:
        path = isinstance(value, str) and (
            name in named or os.path.exists(value) or value[:1] in "/~."
        )
        return bare_word(value) if path else value

    settings = {name: bare(name, value) for name, value in method.settings.items()}
    return (
        method.model_copy(update={"name": last_part(method.name), "settings": settings}),
        backbone.model_copy(update={"name": bare_word(backbone.name)}),
    )


def bare_word(word: str) -> str:
    """The last part of a path; the whole name of a published backbone and of a repository."""
    return word if is_published(word) or word.startswith(("hf:", "hf-hub:")) else last_part(word)


def bare_record(record: Record) -> Record:
    """The record without paths, command, machine, notes, and the names of a table's columns."""
    method, backbone = bare_names(record.method, record.backbone)
    asked = tuple(
        replace(question, data=last_part(question.data)) for question in record.task.tests
    )
    task = replace(
        record.task, data=last_part(record.task.data), backbone=backbone.name, tests=asked
    )
    scores = tuple(
        score.model_copy(
            update={"data": last_part(score.data), "reason": bare_reason(score.reason)}
        )
        for score in record.scores
    )
    if choice := record.choice:
        rows = tuple(
            row.model_copy(update={"name": last_part(row.name), "reason": bare_reason(row.reason)})
            for row in choice.rows
        )
        choice = choice.model_copy(update={"rows": rows, "chosen": last_part(choice.chosen)})
    gone: Mapping[str, Any] = {
        "command": "",
        "machine": {},
        "notes": (),
        "columns": {},
        "copied_from": "",
    }
    kept = {
        "method": method,
        "backbone": backbone,
        "task": task,
        "scores": scores,
        "choice": choice,
    }
    return record.model_copy(
        update={
            **kept,
            "reason": bare_reason(record.reason),
            "versions": libraries(record.versions),
            **gone,
        }
    )


def bare_command(command: str) -> str:
    """The command with each path cut to its last part; backbones and repositories keep their full
    names."""

    def bare(word: str) -> str:
        name, equals, value = word.rpartition("=")
        option = not equals or name.startswith("--") or name.rpartition(".")[2] in FILES
        if value[:1] in ("/", "~", ".") or PureWindowsPath(value).drive:
            return name + equals + last_part(value)
        return name + equals + bare_word(value) if option else word  # others may be texts

    return shlex.join(map(bare, shlex.split(command)))
