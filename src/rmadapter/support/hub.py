"""Repositories of the Hugging Face hub: their names, and errors of the hub or the network."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

from rmadapter.errors import UserError, quoted

ANSWER_SECONDS = 2.5  # in which the hub answers, unless HF_HUB_ETAG_TIMEOUT says otherwise
LOG_IN = "`hf auth login`, or a token in HF_TOKEN"


class Unreachable(UserError):
    """The hub or the network does not answer, or not as it should."""


def check_repository(name: str) -> None:
    """Raise UserError unless the name has the form OWNER/NAME."""
    form = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII)
    if not form or len(name) > 96 or ".." in name or "--" in name:
        raise UserError(
            f"{quoted(name)}: not a repository name; write OWNER/NAME, as in anna/sea-horses"
        )


def check_reachable() -> None:
    """Ask the hub for any answer, once, as its library would try for half a minute.

    Raises:
        Exception: Whatever the network raises, or TimeoutError; `hub_errors` says it in a sentence.
    """
    import huggingface_hub

    head = huggingface_hub.get_session().head
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_SECONDS)
    # a thread, because the search for a host's address has no limit of its own
    with ThreadPool(1) as pool:
        try:
            pool.apply_async(head, (huggingface_hub.constants.ENDPOINT,)).get(seconds)
        except multiprocessing.TimeoutError:
            raise TimeoutError from None


@contextlib.contextmanager
def hub_errors(
    repository: str, missing: str = "", otherwise: str = "", typed: str = ""
) -> Iterator[None]:
    """Convert hub and network errors into a UserError of one line.

    Args:
        repository: Name of the repository.
        missing: What else to do if the repository, or a file of it, does not exist; a token may be
            missing, too, since the hub hides private ones.
        otherwise: What else to do if the hub cannot be reached.
        typed: What the user named, if that is not the repository.

    Raises:
        UserError: The hub refuses.
        Unreachable: The hub does not answer, and trying again may help.
    """
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} on the Hugging Face hub has no such revision") from error
    except errors.GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise UserError(
            f"{repository}: accept its conditions on its hub page first, then use {LOG_IN}"
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RemoteEntryNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise UserError(
            f"the Hugging Face hub has no {repository!r}, or it is private: use {LOG_IN}{missing}"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{repository}: {_refusal(401)}") from error
    except errors.HfHubHTTPError as error:
        raise Unreachable(f"{repository}: {_refusal(error.response.status_code)}") from error
    except ValueError as error:  # such as invalid metadata
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the Hugging Face hub does not accept {repository}: {reason}") from error
    except Exception as error:  # networks fail in many ways
        raise Unreachable(
            f"{typed or repository!r}: the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); check the connection, or set HTTPS_PROXY, SSL_CERT_FILE or "
            f"HF_ENDPOINT for a proxy, its certificate or a mirror{otherwise}"
        ) from error


def _refusal(status: int) -> str:
    if status == 401:
        return f"the Hugging Face hub does not accept your token, or there is none: use {LOG_IN}"
    if status == 403:
        return "your token may not write there; use one with write access, or a name of your own"
    if status == 412:
        return "somebody else changed it at the same time; try again"
    return f"the Hugging Face hub refused with status {status}; try again later"
