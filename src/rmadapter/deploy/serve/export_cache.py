"""A run exported once for an engine other than torch, cached under a digest of its contents."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from rmadapter.artifacts.model_file import MODEL
from rmadapter.deploy.serve.options import Wish, answers_of
from rmadapter.errors import UserError
from rmadapter.support.checksums import check_sums, sha256
from rmadapter.support.files import cache_folder, user_path
from rmadapter.support.locks import hold
from rmadapter.support.terminal import note

PATIENCE = 1800  # seconds to wait for another server's export


def cached(folder: Path, wish: Wish) -> Path:
    """The export of a run, made now if not cached. Raises UserError as `load` and `export`."""
    if not (folder / MODEL).is_file():
        raise UserError(
            f"{folder}: not a run that --engine {wish.engine} can serve; `rmadapter fit` makes one"
        )
    check_sums(folder)
    # model.json holds the digests of the weights and of the backbone
    own = user_path(wish.method.rpartition(":")[0])  # the file of a method from outside
    code = sha256(own) if wish.method and own.is_file() else ""
    words = (
        f"{sha256(folder / MODEL)} {wish.engine} {metadata.version('rmadapter')} {code}".rstrip()
    )
    place = cache_folder() / "serve" / hashlib.sha256(words.encode()).hexdigest()[:32]
    if place.is_dir():
        return place
    taken = UserError(
        f"{folder}: another server has been exporting it for {PATIENCE // 60} minutes"
    )
    failed = f"{place}: cannot be written (%s); point RMADAPTER_CACHE elsewhere"
    with hold(
        place.with_name(f".{place.name}.lock"), PATIENCE, taken, failed
    ):  # servers of one run share the cache
        if not place.is_dir():
            _export(folder, wish, place)
    return place


def _export(folder: Path, wish: Wish, place: Path) -> None:
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.deploy.export.folder import check_wishes, export

    check_wishes(place, wish.engine, "fp32")
    note(f"{folder}: exporting it for {wish.engine} and comparing, once; the cache keeps it")
    saved = load(folder, wish.backbone, method=wish.method, device="cpu")
    export(folder, saved, place, to=wish.engine, embeddings=answers_of(saved)[1])
