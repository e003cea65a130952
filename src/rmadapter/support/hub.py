"""A run on the Hugging Face hub: where `hf:OWNER/NAME` is on this disk, and what can go wrong with
a repository."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from rmadapter.errors import UserError, quoted
from rmadapter.support.files import user_path

HUB = "hf:"
FILES = (
    "model.safetensors",
    "model.json",
    "config.yaml",
    "run.json",
    "SHA256SUMS",
)  # all that is ever fetched
LOG_IN = "`hf auth login`, or a token in HF_TOKEN"
GATED = "accept its conditions on its hub page first"


def run_folder(name: str | Path) -> Path:
    """The folder of a run. For `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, it is a snapshot in the
    hub's cache, updated if the hub can be reached; any other name is already that of a folder, with
    ~ for home.

    Raises UserError if the repository does not exist, holds no model of ours, or cannot be fetched.
    """
    text = str(name).replace("\\", "/")  # as a Path of Windows has it
    if not is_remote(name):
        return user_path(name)
    import huggingface_hub

    repository, _, revision = text.removeprefix(HUB).partition("@")
    check_repository(repository)
    with told(repository):
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES)
        )
    if not Path(found, "model.json").is_file():
        raise UserError(f"{text}: holds no rmadapter model: model.json is missing")
    return Path(found)


def is_remote(name: str | Path) -> bool:
    return str(name).startswith(HUB)


def check_repository(name: str) -> None:
    """Raises UserError unless the name has the form OWNER/NAME."""
    if (
        not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII)
        or len(name) > 96
        or ".." in name
        or "--" in name
    ):
        raise UserError(
            f"{quoted(name)}: not a repository name; write OWNER/NAME, as in anna/sea-horses"
        )


@contextlib.contextmanager
def told(repository: str) -> Iterator[None]:
    """Turn every error of the hub or the network within the block into a UserError of one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} on the Hugging Face hub has no such revision") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repository}: {GATED}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the Hugging Face hub has no {repository!r}, or it is private: use {LOG_IN}"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(
            f"{repository}: the Hugging Face hub does not know who you are: use {LOG_IN}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{repository}: {_refusal(error.response.status_code)}") from error
    except ValueError as error:  # such as invalid metadata
        raise UserError(
            f"the Hugging Face hub does not accept {repository}: {' '.join(str(error).split())[:300]}"
        ) from error
    except Exception as error:  # networks fail in many ways
        raise UserError(
            f"the Hugging Face hub cannot be reached for {repository!r} ({type(error).__name__}); check the connection"
        ) from error


def _refusal(status: int) -> str:
    if status == 401:
        return f"the Hugging Face hub does not know who you are, or your token has expired: use {LOG_IN}"
    if status == 403:
        return "your token may not write there; use one with write access, or a name of your own"
    if status == 412:
        return "somebody else changed it at the same time; try again"
    return f"the Hugging Face hub refused with status {status}; try again later"
