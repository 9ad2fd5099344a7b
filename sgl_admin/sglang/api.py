"""What SGLang's server is asked over HTTP: whether it is ready, and for a completion."""

from __future__ import annotations

from sgl_admin.base.engine import Post
from sgl_admin.contract.texts import read_json_text

HEALTH_PATH = "/health"


def is_ready(status: int) -> bool:
    """An open port, or other pages answering, does not count."""
    return status == 200


def completion(prompt: str, temperature: float, max_tokens: int) -> Post:
    return Post(
        "/v1/completions",
        {
            "model": "default",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
        },
    )


def timed_completion(prompt: str, tokens: int) -> Post:
    """The text's end is no end: a tiny model's first token may be one."""
    post = completion(prompt, 0.0, tokens)
    return Post(post.path, {**post.body, "ignore_eos": True})


def prompt_tokens_used(answer: bytes) -> int:
    return int(read_json_text(answer)["usage"]["prompt_tokens"])


def completion_tokens_used(answer: bytes) -> int:
    return int(read_json_text(answer)["usage"]["completion_tokens"])
