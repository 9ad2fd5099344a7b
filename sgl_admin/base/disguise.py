"""Becomes a Python program whose command line has values that are not shown: they come on a
descriptor, so neither `ps` nor the program's log has them, nor what it answers to an HTTP GET.

This is run by its path, so it imports nothing of ours. argv: the descriptor, and then the command
line as it is shown. What comes on the descriptor is a JSON object: the real command line, and what
the log must not have.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_CHUNK = 1 << 16


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as stream:
        order = json.load(stream)
    forms = [form.encode() for form in order["forms"]]
    filter_output(forms, order["instead"].encode())
    _python, _option, module, *words = order["argv"]
    sys.argv = [module, *words]
    # As `python -m` has it.
    sys.path[0] = os.getcwd()
    filter_answers(forms)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def filter_output(forms: list[bytes], instead: bytes) -> None:
    """Lead this process's output, and that of all that it starts, through a process that hides
    these values. It is no child of the server's, which ends all of its own before its last words.
    """
    if not forms:
        return
    source, sink = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.close(sink)
            # It ends with the last writer.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            try:
                relay(source, 1, forms, instead)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(source)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)


# ASGI's messages, and how an application sends one.
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def filter_answers(forms: list[bytes]) -> None:
    """Hide these values in what the program's FastAPI application answers to a GET.

    SGLang's /server_info gives every argument, with the admin key, to any client that may ask for
    a completion (sgl-project/sglang issues 30166 and 37457, open with 0.5.23). Other methods pass
    as they are: a benchmark's requests cost nothing.
    """
    try:
        application = importlib.import_module("fastapi").FastAPI
    except ImportError:
        return
    real = application.__call__

    async def call(app: Any, scope: Message, receive: Any, send: Send) -> None:
        async def send_hidden(message: Message) -> None:
            body = message.get("body")
            await send({**message, "body": blank(body, forms)} if body else message)

        hides = scope["type"] == "http" and scope["method"] == "GET"
        await real(app, scope, receive, send_hidden if hides else send)

    application.__call__ = call


def blank(text: bytes, forms: list[bytes]) -> bytes:
    """A text with asterisks for each of the forms: as long as it was, as its header says."""
    for form in forms:
        text = text.replace(form, b"*" * len(form))
    return text


def relay(source: int, target: int, forms: list[bytes], instead: bytes) -> None:
    """Copy until the source ends, with `instead` for each of the forms."""
    kept = b""
    while True:
        chunk = os.read(source, _CHUNK)
        text = kept + chunk
        for form in forms:
            text = text.replace(form, instead)
        kept = _may_begin(text, forms) if chunk else b""
        done = text[: len(text) - len(kept)]
        while done:
            done = done[os.write(target, done) :]
        if not chunk:
            return


def _may_begin(text: bytes, forms: list[bytes]) -> bytes:
    """The end of a text with which one of the forms may begin."""
    longest = max(len(form) for form in forms) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(form.startswith(text[-length:]) for form in forms):
            return text[-length:]
    return b""


if __name__ == "__main__":
    main()
