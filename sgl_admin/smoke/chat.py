"""One turn of a chat over the OpenAI API, streamed or not: its answer and its numbers, or the kind
of its failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_admin.base import http_client
from sgl_admin.base.engine import HOST
from sgl_admin.contract.texts import read_json_text
from sgl_admin.records.scenario import Options
from sgl_admin.smoke import thinking

HTTP_ERROR, TIMEOUT, SCHEMA_ERROR = KINDS = ("http_error", "timeout", "schema_error")
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_EXCERPT = 300


class ChatFailure(Exception):
    """A turn has no valid answer; `kind` is one of KINDS."""

    def __init__(self, kind: str, message: str) -> None:
        assert kind in KINDS, kind
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """`ttft_s` is None where nothing was streamed; seconds count from just before the connection is
    made.
    """

    content: str
    reasoning: str | None
    finish_reason: str
    usage: dict[str, int]
    latency_s: float
    ttft_s: float | None

    @property
    def output_tokens_per_s(self) -> float:
        """The completion's tokens, over the whole turn."""
        return self.usage["completion_tokens"] / self.latency_s


def ask(
    port: int,
    model: str,
    messages: Sequence[dict[str, Any]],
    options: Options,
    key: str | None = None,
) -> Answer:
    """Send the messages; `key` is what the server asks for. Raises ChatFailure."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "stream": options.stream,
    }
    if options.stream:
        body["stream_options"] = {"include_usage": True}
    body.update(
        {name: value for name in ("top_p", "seed") if (value := getattr(options, name)) is not None}
    )
    reading = Reading()
    started = time.monotonic()

    def begin() -> None:
        nonlocal started
        started = time.monotonic()

    ours = http_client.Ours(key, begin)
    try:
        with http_client.answering(
            HOST, port, "/v1/chat/completions", options.timeout_s, body, ours
        ) as response:
            if response.status != 200:
                raise ChatFailure(
                    HTTP_ERROR, f"HTTP {response.status}: {_excerpt(response.read(_EXCERPT))}"
                )
            if options.stream:
                reading.stream(response)
            else:
                reading.whole(http_client.limited(response))
    except TimeoutError as error:
        raise ChatFailure(TIMEOUT, f"no whole answer within {options.timeout_s:g} s") from error
    except http_client.NO_ANSWER as error:
        raise ChatFailure(
            HTTP_ERROR,
            f"no whole answer from {HOST}:{port}: {(str(error) or repr(error))[:_EXCERPT]}",
        ) from error
    return reading.answer(started, time.monotonic())


def served_model(port: int, key: str | None = None) -> str | None:
    """What the server calls its model; None where it does not say."""
    try:
        status, answer = http_client.ask(HOST, port, "/v1/models", 10, ours=http_client.Ours(key))
        name = read_json_text(answer)["data"][0]["id"] if status == 200 else None
    except (*http_client.NO_ANSWER, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


class Reading:
    """What has come of an answer. Its methods raise ChatFailure and nothing else, whatever
    comes.
    """

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._chosen = False
        self._first_at: float | None = None
        self._finish_reason: str | None = None
        self._usage: dict[str, int] | None = None

    def whole(self, body: bytes) -> None:
        self._take(body, "message")

    def stream(self, lines: Iterable[bytes]) -> None:
        """Server-sent events: the `data` lines before a blank line are one; other fields and
        comments say nothing here.
        """
        data: list[bytes] = []
        for ended in lines:
            line = ended.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and data:
                event, data = b"\n".join(data), []
                if event.strip() == b"[DONE]":
                    return
                if self._take(event, "delta") and self._first_at is None:
                    self._first_at = time.monotonic()
        raise ChatFailure(SCHEMA_ERROR, "the stream ended without [DONE]")

    def answer(self, started: float, ended: float) -> Answer:
        """What came, between two moments of time.monotonic."""
        if not self._chosen:
            raise ChatFailure(SCHEMA_ERROR, "the answer has no choices")
        if not self._content and not self._reasoning:
            raise ChatFailure(SCHEMA_ERROR, "the answer's choice has no content")
        if self._finish_reason is None:
            raise ChatFailure(SCHEMA_ERROR, "the answer has no finish_reason")
        if self._usage is None:
            raise ChatFailure(SCHEMA_ERROR, "the answer has no usage")
        content, given = "".join(self._content), "".join(self._reasoning)
        reasoning, answer = (given, content) if given else thinking.split(content)
        ttft_s = None if self._first_at is None else self._first_at - started
        return Answer(answer, reasoning, self._finish_reason, self._usage, ended - started, ttft_s)

    def _take(self, text: bytes, part_name: str) -> bool:
        """A whole answer or a chunk of it; returns whether words were in it."""
        try:
            document = read_json_text(text)
        except ValueError as error:
            raise ChatFailure(SCHEMA_ERROR, f"malformed JSON: {_excerpt(text)}") from error
        if not isinstance(document, dict):
            raise ChatFailure(SCHEMA_ERROR, f"not a JSON object: {_excerpt(text)}")
        if document.get("error"):
            raise ChatFailure(HTTP_ERROR, f"the server reports an error: {_excerpt(text)}")
        choices = document.get("choices")
        if not isinstance(choices, list):
            raise ChatFailure(SCHEMA_ERROR, f"no list of choices: {_excerpt(text)}")
        if document.get("usage") is not None:
            self._usage = _valid_usage(document["usage"], text)
        # The last chunk of a stream brings the usage, and no choice.
        return self._choose(choices[0], part_name, text) if choices else False

    def _choose(self, choice: Any, part_name: str, text: bytes) -> bool:
        part = choice.get(part_name) if isinstance(choice, dict) else None
        if not isinstance(part, dict):
            raise ChatFailure(SCHEMA_ERROR, f"a choice without a {part_name}: {_excerpt(text)}")
        self._chosen = True
        reason = choice.get("finish_reason")
        words = [part.get(name) for name in ("content", "reasoning_content")]
        if any(value is not None and not isinstance(value, str) for value in (reason, *words)):
            raise ChatFailure(
                SCHEMA_ERROR,
                f"content, reasoning_content or finish_reason is no text: {_excerpt(text)}",
            )
        self._finish_reason = reason or self._finish_reason
        for value, list_of in zip(words, (self._content, self._reasoning), strict=True):
            if value is not None:
                list_of.append(value)
        return any(words)


def _valid_usage(usage: Any, text: bytes) -> dict[str, int]:
    found = {name: usage.get(name) for name in COUNTS} if isinstance(usage, dict) else {}
    valid = {
        name: count for name, count in found.items() if type(count) is int and 0 <= count < 2**53
    }
    if len(valid) < len(COUNTS):
        raise ChatFailure(SCHEMA_ERROR, f"no valid usage: {_excerpt(text)}")
    return valid


def _excerpt(text: bytes) -> str:
    return repr(text[:_EXCERPT].decode(errors="replace"))
