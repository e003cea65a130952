"""Ask a language model at an OpenAI-compatible address (`POST .../chat/completions`)."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rmadapter import UserError

KEY = "RMADAPTER_CHAT_KEY"  # not that of `serve` or of a provider, which others must not get
PATH = "/chat/completions"
TIMEOUT = 120.0  # seconds without an answer
TRIES = 4
MAX_PAUSE = 60.0  # seconds between two tries
MAX_ANSWER_BYTES = 2**22
TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # status codes
REFUSALS = {
    401: f"does not accept the key in {KEY}, or there is none",
    403: f"does not accept the key in {KEY}, or there is none",
    404: "has no such model or path; check the address and --model",
    **dict.fromkeys(range(300, 400), "leads to another address; give that one"),
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the key would go to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Chat:
    """A language model at an address.

    Attributes:
        url: Address of the service, such as http://localhost:11434/v1.
        model: Its name there.
        key: Sent as a bearer token, and neither stored nor printed; "" for none.
        wait: Sleeps between two tries.
    """

    url: str
    model: str
    key: str = ""
    wait: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise UserError(
                f"--ask {self.url[:100]!r}: give the address of a service, such as "
                "http://localhost:11434/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"--ask {parts.scheme}://{host}: leave out names, keys and ? from the address; put "
                f"the key into {KEY}"
            )
        if self.key and parts.scheme == "http" and not _is_here(host):
            raise UserError(f"--ask {self.url}: {KEY} would be sent unencrypted; use https")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{KEY}: has characters that no key has; set it again")

    @classmethod
    def at(cls, url: str, model: str) -> Chat:
        """Return the model at an address, with the key that the environment has. Raises UserError
        for an impossible address."""
        return cls(url.rstrip("/"), model, os.environ.get(KEY, "").strip())

    @property
    def who(self) -> str:
        """Model and address in words."""
        return f"{self.model} at {self.url}"

    def ask(self, question: str) -> str:
        """Return the answer to one question, asked without any other. Raises UserError if the
        service refuses, does not answer after several tries, or answers in another form."""
        reason = ""
        for number in range(TRIES):
            pause = 2.0**number
            try:
                return self._text_of(self._post(question))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in TRY_AGAIN:
                        refusal = REFUSALS.get(error.code, "refuses the question")
                        raise UserError(f"{self.url}: {refusal} (status {error.code})") from None
                    reason = f"status {error.code}"
                    with suppress(ValueError):
                        pause = max(pause, float(error.headers.get("Retry-After", "")))
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if number < TRIES - 1:
                self.wait(min(pause, MAX_PAUSE))
        raise UserError(
            f"{self.url}: no answer after {TRIES} tries ({reason}); run the same command again "
            "later to go on"
        )

    def _post(self, question: str) -> bytes:
        content = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.url if self.url.endswith(PATH) else self.url + PATH
        request = urllib.request.Request(url, json.dumps(content).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MAX_ANSWER_BYTES + 1)
        return data

    def _text_of(self, data: bytes) -> str:
        """Return the text of an answer."""
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            if len(data) <= MAX_ANSWER_BYTES:
                text = json.loads(data)["choices"][0]["message"]["content"]
                if isinstance(text, str) and text.strip():
                    return text
        raise UserError(
            f"{self.url}: answers in another form than OpenAI's chat completions, or with nothing; "
            "check the address and --model"
        )


def _is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
