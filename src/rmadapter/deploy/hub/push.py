"""Push a run to the Hugging Face hub: what others need to use it, and nothing about whose images it
was made from.

Sent: the weights, model.json, config.yaml, run.json, a model card, SHA256SUMS. Not sent: names and
copies of images (split.json, predictions.csv, why.json, images.csv, report.html), paths, the
command, the machine, notes, reasons that may name files, and, unless asked for, the features of the
training images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.artifacts.checkpoint import EXAMPLES, check_weights, config_of, read_tensors, to_half
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import HUB, RunFolder, without_model
from rmadapter.deploy.export.folder import README
from rmadapter.deploy.hub.anonymise import bare_names, bare_record, libraries
from rmadapter.deploy.hub.model_card import LIBRARY, modelcard
from rmadapter.errors import UserError
from rmadapter.settings import to_yaml
from rmadapter.support.checksums import SUMS, sha256, write_sums
from rmadapter.support.files import check_new, write_json, write_tensors, write_text
from rmadapter.support.hub import check_repository, hub_errors
from rmadapter.support.locks import staged_folder
from rmadapter.support.terminal import note

FILES = (*(file.name for file in RunFolder(Path()).shared), README)
OURS = {*FILES, SUMS}
THE_HUBS = {".gitattributes"}  # in every repository


class Wishes(NamedTuple):
    """half: store float32 numbers as float16. examples: also send features of the training images.
    licence: of what was trained, as the hub calls it."""

    half: bool = False
    examples: bool = False
    licence: str = "unknown"


PLAIN = Wishes()


def push(
    run: Path,
    repository: str,
    wishes: Wishes = PLAIN,
    *,
    private: bool = False,
    to: Path | None = None,
) -> dict[str, Any]:
    """Push a run to a repository OWNER/NAME of the Hugging Face hub in one commit; a note first
    lists what is sent.

    to: a new folder for what would be sent; then nothing leaves this machine. private: make a new
    repository private. Returns the files with their sizes in bytes, and where they are. Raises
    UserError for anything but a finished run of this version, for a repository that holds something
    else or is public despite `private`, and for whatever the hub refuses.
    """
    check_repository(repository)
    if to is not None:
        check_new(to, option="--to")
        with staged_folder(to) as stage:
            return {"folder": str(to), **_written(stage, run, repository, wishes)}
    with tempfile.TemporaryDirectory() as place:
        facts = _written(Path(place), run, repository, wishes)
        listed = ", ".join(f"{name} ({size / 1e6:.2f} MB)" for name, size in facts["files"].items())
        note(f"to {repository}: {listed}; {facts['bytes'] / 1e6:.2f} MB in all")
        return {**_uploaded(Path(place), repository, private), **facts}


def _written(folder: Path, run: Path, repository: str, wishes: Wishes) -> dict[str, Any]:
    source, copy = RunFolder(run), RunFolder(folder)
    if not source.model.is_file():
        raise UserError(f"{run}: {without_model(run)}")
    model, record = read_model(source.model), None
    check_weights(source, model)
    source.check_sums()
    tensors = read_tensors(source.weights)
    if not wishes.examples:
        tensors.pop(EXAMPLES, None)
    write_tensors(copy.weights, to_half(tensors) if wishes.half else tensors)
    if source.record.is_file():
        record = bare_record(read_record(source.record))
        record.save(copy.record)
        write_text(copy.config, to_yaml(config_of(record)))
    method, backbone = bare_names(model.method, model.backbone)
    update = {"method": method, "backbone": backbone, "versions": libraries(model.versions)}
    model = model.model_copy(update={**update, "sha256": sha256(copy.weights)})
    write_json(copy.model, model.model_dump(mode="json"))
    card = modelcard(model, record, repository, wishes.licence, EXAMPLES in tensors)
    write_text(folder / README, card)
    write_sums(folder, FILES)
    sizes = {
        file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name in OURS
    }
    return {"files": sizes, "bytes": sum(sizes.values())}


# The hub


def _uploaded(folder: Path, repository: str, private: bool) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from rmadapter import __version__

    api = HfApi(library_name=LIBRARY, library_version=__version__)
    names = sorted(file.name for file in folder.iterdir() if file.name in OURS)
    with hub_errors(repository):
        before, there = _opened(api, repository, private)
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        operations += [CommitOperationDelete(name) for name in sorted((there & OURS) - {*names})]
        message = f"A run of {LIBRARY} {__version__}"
        done = api.create_commit(
            repository, operations, commit_message=message, parent_commit=before
        )
    url = f"{api.endpoint}/{repository}"
    return {"repository": repository, "url": url, "commit": done.oid, "load": f"{HUB}{repository}"}


def _opened(api: Any, repository: str, private: bool) -> tuple[str | None, set[str]]:
    """Last commit and files of the repository, which is created if new."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=private)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    info = api.model_info(repository)
    there = {file.rfilename for file in info.siblings or ()}
    if there - THE_HUBS and info.library_name != LIBRARY:
        raise UserError(
            f"{repository} already exists and is not a run of {LIBRARY}; choose another name"
        )
    if private and not info.private:
        raise UserError(
            f"{repository} already exists and is public, which --private does not change: make it private on its "
            f"page of the hub, or choose another name"
        )
    return info.sha, there
