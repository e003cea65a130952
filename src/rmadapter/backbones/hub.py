"""Fetch safetensors weights and small files from the Hugging Face hub, or read its local cache."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from rmadapter.backbones.trust import how_to_convert
from rmadapter.support.hub import hub_errors

SMALL_FILES = ["*.json", "*.txt", "*.model"]  # configurations and tokenizers


def _hub_errors(repository: str) -> AbstractContextManager[None]:
    return hub_errors(
        repository,
        missing=", or none with safetensors weights; if it holds a pickle, fetch that: "
        + how_to_convert(Path("FILE")),
        otherwise=", give a local file or folder, or use the backbone 'pocket'",
    )


def fetch(repository: str, file: str) -> Path:
    """Fetch one file. A cached copy is used as it is, so that a backbone stays the same.

    Raises UserError when it is not cached and cannot be fetched.
    """
    import huggingface_hub

    with _hub_errors(repository):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            return Path(huggingface_hub.hf_hub_download(repository, file))


def model_folder(repository: str) -> Path:
    """Return a folder with the configuration, tokenizer and safetensors weights of a repository.

    Raises UserError when it is not cached and cannot be fetched.
    """
    folder = _snapshot(repository, "*.safetensors")
    if any(folder.glob("*.safetensors")):
        return folder
    open_clip = (folder / "open_clip_config.json").is_file()
    weights = "open_clip_model.safetensors" if open_clip else "model.safetensors"
    return fetch(repository, weights).parent


def tokenizer_folder(repository: str) -> Path:
    """Return a folder with the small files of a repository, including its tokenizer.

    Raises UserError when it is not cached and cannot be fetched.
    """
    return _snapshot(repository, "tokenizer*", "vocab*", "*.model")


def _snapshot(repository: str, *wanted: str) -> Path:
    """Return the cached snapshot if it has a file of a wanted pattern; else fetch its small
    files."""
    import huggingface_hub

    with _hub_errors(repository):
        try:
            folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
            if any(True for pattern in wanted for _ in folder.glob(pattern)):
                return folder
        except huggingface_hub.errors.LocalEntryNotFoundError:
            pass
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=SMALL_FILES))
