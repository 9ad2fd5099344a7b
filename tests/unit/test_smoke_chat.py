"""One turn of a chat with a server that answers well, thinks aloud, or is broken."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_admin.records.scenario import Options
from sgl_admin.smoke import chat, thinking
from tests.doubles.chat_server import MODEL, USAGE, ChatServer
from tests.fuzz.fuzzing import damaged, documents, encoded, mostly, spoiled

MESSAGES = [{"role": "user", "content": "What is 17 plus 5?"}]
fuzz = settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)


def ask(mode: str = "", stream: bool = True, **options: Any) -> chat.Answer:
    with ChatServer(mode) as server:
        return chat.ask(server.port, MODEL, MESSAGES, Options(stream=stream, **options))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("mode", "reasoning", "content"),
    [
        ("", None, "It is 22."),
        ("tags", "I add them.", "It is 22."),
        ("closing_tag", "I add them.", "It is 22."),
        ("never_closed", "I add and add", ""),
        ("reasoning_content", "I add them.", "It is 22."),
    ],
)
def test_an_answer_and_what_was_thought(
    mode: str, reasoning: str | None, content: str, stream: bool
) -> None:
    answer = ask(mode, stream)
    assert (answer.reasoning, answer.content, answer.finish_reason, answer.usage) == (
        reasoning,
        content,
        "stop",
        USAGE,
    )
    assert (
        0 < answer.latency_s
        and answer.output_tokens_per_s == USAGE["completion_tokens"] / answer.latency_s
    )
    assert (
        (answer.ttft_s is not None and 0 < answer.ttft_s <= answer.latency_s)
        if stream
        else answer.ttft_s is None
    )


@pytest.mark.parametrize(
    ("mode", "stream", "kind", "words"),
    [
        ("http_500", True, "http_error", "HTTP 500: .*Internal server error"),
        ("http_500", False, "http_error", "HTTP 500: .*Internal server error"),
        ("error_chunk", True, "http_error", "reports an error: .*out of KV cache"),
        ("reset", True, "http_error", "reset by peer"),
        ("reset", False, "http_error", "reset by peer"),
        ("reset_late", True, "http_error", "reset by peer"),
        ("cut", True, "schema_error", r"ended without \[DONE\]"),
        ("cut", False, "http_error", "20 more expected"),
        ("hang", True, "timeout", "within 0.2 s"),
        ("silent", True, "timeout", "within 0.2 s"),
        ("silent", False, "timeout", "within 0.2 s"),
        ("bad_json", True, "schema_error", "malformed JSON: .*del"),
        ("bad_json", False, "schema_error", "malformed JSON: .*mess"),
        ("no_choices", True, "schema_error", "no choices"),
        ("no_choices", False, "schema_error", "no choices"),
        ("no_usage", True, "schema_error", "no usage"),
        ("no_usage", False, "schema_error", "no usage"),
        ("no_finish_reason", True, "schema_error", "no finish_reason"),
        ("no_finish_reason", False, "schema_error", "no finish_reason"),
        ("no_done", True, "schema_error", r"ended without \[DONE\]"),
        ("content_is_a_list", True, "schema_error", "is no text"),
        ("content_is_a_list", False, "schema_error", "is no text"),
    ],
)
def test_a_broken_answer_has_its_kind(mode: str, stream: bool, kind: str, words: str) -> None:
    # Only those that never end may be cut short.
    limit = {"timeout_s": 0.2} if kind == "timeout" else {}
    with pytest.raises(chat.ChatFailure, match=words) as caught:
        ask(mode, stream, **limit)
    assert caught.value.kind == kind


def test_a_server_that_is_gone_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(chat.ChatFailure, match="refused") as caught:
            chat.ask(taken.getsockname()[1], MODEL, MESSAGES, Options())
    assert caught.value.kind == "http_error"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (
            {},
            {
                "temperature": 0,
                "max_tokens": 64,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        (
            {"stream": False, "temperature": 0.5, "max_tokens": 3, "top_p": 0.9, "seed": 0},
            {"stream": False, "temperature": 0.5, "max_tokens": 3, "top_p": 0.9, "seed": 0},
        ),
    ],
)
def test_what_is_not_set_is_not_sent(options: dict[str, Any], sent: dict[str, Any]) -> None:
    with ChatServer() as server:
        chat.ask(server.port, MODEL, MESSAGES, Options(**options))
    assert server.requests == [{"model": MODEL, "messages": MESSAGES, **sent}]


def test_the_servers_name_of_its_model() -> None:
    with ChatServer() as server:
        assert chat.served_model(server.port) == MODEL
    with ChatServer("no_models") as server:
        assert chat.served_model(server.port) is None
    assert chat.served_model(server.port) is None, "the server is gone"


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("", None, ""),
        (" plain\n", None, " plain\n"),
        ("<think>a</think>b", "a", "b"),
        ("<think></think>\n\nb", "", "b"),
        ("\n<think>\na\n</think>\n\nb\n", "a", "b"),
        ("a</think>b", "a", "b"),
        ("</think>b", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</think>b<think>c</think>d", "a\nc", "bd"),
    ],
)
def test_thoughts_are_told_from_the_answer(text: str, reasoning: str | None, answer: str) -> None:
    assert thinking.split(text) == (reasoning, answer)


def read(body: bytes, stream: bool) -> chat.Answer:
    reading = chat.Reading()
    if stream:
        reading.stream(body.splitlines(keepends=True))
    else:
        reading.whole(body)
    return reading.answer(time.monotonic() - 1, time.monotonic())


def test_lines_of_one_event_are_one_document() -> None:
    text = json.dumps(
        {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}], "usage": USAGE},
        indent=1,
    )
    lines = "".join(f"data:{line}\r\n" for line in text.splitlines())
    assert read(f"id: 1\r\n{lines}\r\n\r\ndata: [DONE]\n\n".encode(), stream=True).content == "x"


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [],
        "7",
        {**USAGE, "total_tokens": None},
        {**USAGE, "prompt_tokens": True},
        {**USAGE, "prompt_tokens": -1},
    ],
)
def test_a_usage_that_is_none_is_refused(usage: Any) -> None:
    answer = {**ChatServer.answer(""), "usage": usage}
    with pytest.raises(chat.ChatFailure, match="usage"):
        read(json.dumps(answer).encode(), stream=False)


def holds(body: bytes, stream: bool) -> None:
    """It is read, or refused with the parser's own error."""
    try:
        answer = read(body, stream)
    except chat.ChatFailure as failure:
        assert failure.kind in ("schema_error", "http_error") and str(failure)
    else:
        assert (
            isinstance(answer.content, str)
            and answer.finish_reason
            and set(answer.usage) == set(USAGE)
        )
        assert answer.output_tokens_per_s >= 0


@fuzz
@given(
    damaged(
        mostly(spoiled(ChatServer.answer("reasoning_content")), documents("choices", "usage")).map(
            encoded
        )
    )
)
def test_any_whole_answer_is_read_or_refused(body: bytes) -> None:
    holds(body, stream=False)


EVENTS = [
    event.removeprefix(b"data: ")
    for event in ChatServer.events("tags")
    if event.startswith(b"data: {")
]
chunks = (
    st.sampled_from(EVENTS).flatmap(lambda event: spoiled(json.loads(event), most=1)).map(encoded)
)


@fuzz
@given(st.lists(mostly(st.sampled_from(EVENTS), damaged(chunks)), max_size=12), st.booleans())
def test_any_stream_is_read_or_refused(events: list[bytes], done: bool) -> None:
    holds(
        b"".join(b"data: %b\n\n" % event for event in [*events, *([b"[DONE]"] if done else [])]),
        stream=True,
    )


@fuzz
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from([b"data:", b"data: [DONE]", b"\n", b"\r\n", b":", b"{}", b"id", b"\xff"])
    ).map(b"".join)
)
def test_any_bytes_are_no_stream_or_one(body: bytes) -> None:
    holds(body, stream=True)
