"""Asking a language model, at a server that the tests start."""

from __future__ import annotations

import pytest

from rmadapter.errors import UserError
from rmadapter_research.chat import KEY, TRIES, Chat
from tests.helpers.chat_server import Model, model

__all__ = ["model"]  # a fixture


def test_a_question_is_one_message(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Chat.at(model.url + "/", "small").ask("What has a cat?") == "fur"
    monkeypatch.setenv(KEY, "secret")
    chat = Chat.at(f"{model.url}/chat/completions", "small")
    chat.ask("And a dog?")
    first, second = model.requests
    message = {"role": "user", "content": "What has a cat?"}
    assert first == ("/v1/chat/completions", None, {"model": "small", "messages": [message]})
    assert (second.path, second.key) == ("/v1/chat/completions", "Bearer secret")
    assert chat.who == f"small at {model.url}/chat/completions"


def test_it_asks_again_where_that_may_help(model: Model) -> None:
    pauses: list[float] = []
    model.answers, model.headers = [503, 429, "stripes"], {"Retry-After": "3"}
    assert Chat(model.url, "m", wait=pauses.append).ask("?") == "stripes"
    assert pauses == [3, 3]
    model.answers, model.headers = [500], {"Retry-After": "1e9"}
    with pytest.raises(UserError, match="status 500") as caught:
        Chat(model.url, "m", wait=pauses.append).ask("?")
    assert "run the same command again" in str(caught.value)
    assert len(model.requests) == 3 + TRIES
    assert max(pauses) == 60


def test_nobody_answers(model: Model) -> None:
    model.server_close()
    pauses: list[float] = []
    with pytest.raises(UserError, match="no answer after"):
        Chat(model.url, "m", wait=pauses.append).ask("?")
    assert pauses == [1, 2, 4]


@pytest.mark.parametrize(("status", "word"), [(401, KEY), (404, "--model"), (400, "400")])
def test_a_refusal_is_final(model: Model, status: int, word: str) -> None:
    model.answers = [status]
    with pytest.raises(UserError, match=word) as caught:
        Chat(model.url, "m", "secret").ask("?")
    assert len(model.requests) == 1
    assert "secret" not in str(caught.value)


def test_the_key_follows_no_redirect(model: Model) -> None:
    model.answers, model.headers = [302], {"Location": f"{model.url}/elsewhere"}
    with pytest.raises(UserError, match="leads to another address"):
        Chat(model.url, "m", "secret").ask("?")
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"no",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": " "}}]}',
        b"[" * 9999,
    ],
)
def test_another_form_is_refused(model: Model, content: bytes) -> None:
    model.answers = [content]
    with pytest.raises(UserError, match="another form"):
        Chat(model.url, "m").ask("?")


@pytest.mark.parametrize(
    ("url", "key", "word"),
    [
        ("file:///etc/passwd", "", "address"),
        ("localhost:11434", "", "address"),
        ("http://[", "", "address"),
        ("https://me:secret@models.test/v1", "", KEY),
        ("https://models.test/v1?key=secret", "", KEY),
        ("http://models.test/v1", "secret", "https"),
        ("https://models.test/v1", "sec\nret", KEY),
    ],
)
def test_an_address_that_would_leak_or_fail_is_refused(url: str, key: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Chat(url, "m", key)
    assert "secret" not in str(caught.value)
