"""Safetensors weights and small files from the Hugging Face hub, or from its local cache if they
are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rmadapter.backbones.trust import how_to_convert
from rmadapter.errors import UserError
from rmadapter.support.hub import GATED

SMALL_FILES = ["*.json", "*.txt", "*.model"]  # configurations and tokenizers


class Unreachable(UserError):
    """The files are not in the cache and cannot be fetched now."""


def fetch(repository: str, file: str) -> Path:
    """Fetch one file. A cached copy is used as it is, so that a backbone does not change between
    runs.

    Raises UserError when it is not cached and cannot be fetched.
    """
    import huggingface_hub

    with _told_in_a_sentence(repository):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            return Path(huggingface_hub.hf_hub_download(repository, file))


def model_folder(repository: str) -> Path:
    """A folder with the configuration, the tokenizer and the safetensors weights of a repository,
    never its pickles.

    Raises UserError when it is not cached and cannot be fetched.
    """
    folder = _snapshot(repository, "*.safetensors")
    if any(folder.glob("*.safetensors")):
        return folder
    open_clip = (folder / "open_clip_config.json").is_file()
    return fetch(
        repository, "open_clip_model.safetensors" if open_clip else "model.safetensors"
    ).parent


def tokenizer_folder(repository: str) -> Path:
    """A folder with the small files of a repository, including its tokenizer.

    Raises UserError when it is not cached and cannot be fetched.
    """
    return _snapshot(repository, "tokenizer*", "vocab*", "*.model")


def _snapshot(repository: str, *wanted: str) -> Path:
    """The cached snapshot if it has a file of a wanted pattern; otherwise its small files are
    fetched."""
    import huggingface_hub

    with _told_in_a_sentence(repository):
        try:
            folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
            if any(True for pattern in wanted for _ in folder.glob(pattern)):
                return folder
        except huggingface_hub.errors.LocalEntryNotFoundError:
            pass
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=SMALL_FILES))


@contextlib.contextmanager
def _told_in_a_sentence(repository: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:  # which counts as not found
        raise UserError(f"{repository}: {GATED}") from error
    except (
        errors.RepositoryNotFoundError,
        errors.RemoteEntryNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise UserError(
            f"the Hugging Face hub has no {repository!r}, or none with safetensors weights; "
            f"if it holds a pickle, fetch that: {how_to_convert(Path('FILE'))}"
        ) from error
    except Exception as error:  # networks fail in many ways
        raise Unreachable(
            f"{repository!r} could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            f"check the connection, give a local file or folder, or use the backbone 'pocket'"
        ) from error
