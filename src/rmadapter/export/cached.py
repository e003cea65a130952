"""Export a run into the user's cache, once for each state of the run."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from rmadapter.artifacts.model_file import check_weights, read_model
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.errors import UserError
from rmadapter.export.targets import ExportOptions, check_options
from rmadapter.support.files import cache_folder, sha256, user_path
from rmadapter.support.locks import build_once
from rmadapter.support.terminal import note


def cached_export(folder: Path, engine: str, backbone: str | None = None, method: str = "") -> Path:
    """Return the export of a run in the cache; it is made if it is not there, while other processes
    that need it wait.

    Args:
        folder: Folder of the run.
        engine: Target of the export, as in `targets.TARGETS`.
        backbone: Backbone of the run, as for `load`.
        method: Method from outside, as for `load`; its code is a part of the run's state.

    Raises:
        UserError: As `load` and `export`.
    """
    run = RunFolder(folder)
    if not run.model.is_file():
        raise UserError(
            f"{folder}: not a run that --engine {engine} can serve; `rmadapter fit` makes one"
        )
    run.check_sums()
    check_weights(run, read_model(run.model))  # while it is being saved, there are no sums
    # model.json holds the digests of the weights and of the backbone
    words = [sha256(run.model), engine, metadata.version("rmadapter")]
    code = user_path(method.rpartition(":")[0])  # the file of a custom method
    if method and code.is_file():
        words.append(sha256(code))
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:32]

    place = cache_folder() / "serve" / digest

    def build(stage: Path) -> None:
        check_options(place, ExportOptions(engine))
        from rmadapter.artifacts.checkpoint import load
        from rmadapter.export.folder import write_export
        from rmadapter.export.graph import FittedModel

        note(f"{folder}: exporting it for {engine} and comparing, once; the cache keeps it")
        saved = load(folder, backbone, method=method, device="cpu")
        embeddings = FittedModel(saved).gives_features
        write_export(stage, folder, saved, ExportOptions(engine, embeddings=embeddings))

    build_once(place, build)
    return place
