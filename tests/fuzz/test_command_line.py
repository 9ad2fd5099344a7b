"""What sgl-admin is asked on its command line, by its worker's input and by the server's
metrics.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from sgl_admin.base.command import Command
from sgl_admin.base.errors import Refused, StageFailure
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.records import run
from sgl_admin.records.request import Request
from sgl_admin.serving import probe
from sgl_admin.serving.server import Server
from tests.fuzz.fuzzing import files_of, fuzz, mostly, reached, text
from tests.fuzz.test_records_of_a_container import GOOD, MODEL, container, nothing_begins, put

WORDS = [
    *[
        "caches",
        "ensure",
        "inspect",
        "status",
        "version",
        "--help",
        "--json",
        "--dry-run",
        "--detach",
        "--watch",
        "--",
        "-h",
    ],
    *[
        "--model",
        "--tp",
        "--inductor",
        "--moe",
        "--deep-gemm",
        "--probe",
        "--port",
        "--wait",
        "--server-arg",
        "--moe-batch-sizes",
    ],
    *[
        "--server-timeout",
        "--probe-timeout",
        "--moe-dtype",
        "ensure",
        "rebuild",
        "skip",
        "always",
        "1",
        "0",
        "-1",
        "65536",
        "nan",
        "inf",
        "1e999",
    ],
    *[
        "1,2",
        "1,,2",
        "\u00b2",
        "9" * 5000,
        "--server-arg=--api-key=x",
        "--wait=0",
        "--tp=2",
        "/models/none",
        "m" * 300,
        "a\0b",
        "\udcff",
        "a\nb",
    ],
]
ENSURE = ["caches", "ensure", "--model", MODEL]


@fuzz(
    deep=0.15,
    words=st.one_of(
        st.lists(st.sampled_from(WORDS) | text(), max_size=6),
        st.lists(st.sampled_from(WORDS) | text(), max_size=4).map(lambda more: [*ENSURE, *more]),
        st.lists(
            st.sampled_from(
                [
                    "--json",
                    "--dry-run",
                    "--detach",
                    "--tp=1",
                    "--inductor=skip",
                    "--probe=never",
                    "--port=1",
                ]
            )
        ).map(lambda more: [*ENSURE, *more]),
        st.lists(st.sampled_from(["--json", "--watch", "--wait=0"]), max_size=3).map(
            lambda more: ["status", *more]
        ),
    ),
)
def test_any_words_end_with_an_exit_code(words: list[str]) -> None:
    with container() as inside, nothing_begins(True):
        for name, thing in GOOD.items():
            put(inside / name, thing)
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                code = cli.main([str(inside / word) if word == MODEL else word for word in words])
            except SystemExit as ended:
                assert ended.code in (0, cli.EXIT_USAGE), ended.code
                assert "usage: sgl-admin" in (error.getvalue() if ended.code else out.getvalue())
                return
        reached()
        assert code in (0, 1, 2), error.getvalue()
        # A prep that began says before what it will cost.
        words = [line for line in error.getvalue().splitlines() if not line.startswith("prep-")]
        assert not code or words[0].startswith("sgl-admin: ")


REQUEST: dict[str, Any] = {
    "model": "/models/m",
    "tp": 1,
    "stages": {"inductor": "ensure"},
    "moe_batch_sizes": [1, 2],
    "moe_dtype": "auto",
    "probe": "auto",
    "server_args": ["--x"],
    "server_timeout_s": 1.0,
    "probe_timeout_s": 2.5,
    "warmup_port": 31999,
}


@fuzz(deep=0.15, content=files_of(REQUEST, most=2))
def test_a_request_is_read_or_refused(content: bytes) -> None:
    try:
        found = Request.from_json(content.decode(errors="surrogateescape"))
    except ValueError:
        return
    reached()
    assert isinstance(found, Request)


DOCUMENT: dict[str, Any] = {
    "model": "/models/m",
    "tp": 1,
    "stages": {"inductor": "ensure"},
    "moe_batch_sizes": [1, 2],
    "server_args": ["--x"],
    "server_env": {"A": "1"},
    "server_timeout": 1.0,
    "port": 31999,
}


@fuzz(deep=0.15, content=files_of(DOCUMENT, most=2))
def test_a_document_is_read_or_refused_as_usage(content: bytes) -> None:
    try:
        fields = request_cli.from_json(content)
    except Refused as refusal:
        assert refusal.exit_code == cli.EXIT_USAGE and str(refusal).startswith("the request")
        return
    reached()
    assert fields["model"] and fields.keys() <= request_cli.FIELDS.keys()


@fuzz(
    deep=0.5,
    arguments=st.lists(
        text().map(lambda word: f"--server-arg={word}")
        | st.sampled_from(["--tp=3", "--moe=rebuild", "--probe=never", "--port=7"])
    ),
)
def test_a_request_survives_the_way_to_its_worker_and_describes_itself(
    arguments: list[str],
) -> None:
    def asked(words: list[str]) -> Request:
        return request_cli.of(
            cli._parser().parse_args(["caches", "ensure", *words]),
            run.Run("r", {"services": {"sglang": {"port": 31999}}}),
        )

    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        made = asked(["--model=/models/m", *arguments])
        reached()
        assert (
            Request.from_json(made.to_json()) == made
            and Request.from_json(made.to_json()).digest == made.digest
        )
        again = asked([*made.describe(), f"--port={made.warmup_port}"])
        assert again == made


# --- what the server says -------------------------------------------------------------------------


def labels() -> st.SearchStrategy[dict[str, str]]:
    """Their values as a page of metrics escapes them."""
    value = mostly(st.sampled_from(["default", "{a}"]), text(), 60).map(
        lambda name: name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    )
    return st.dictionaries(st.sampled_from(["model_name", "tp_rank"]), value)


def shown(labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


@st.composite
def metrics(draw: st.DrawFn) -> tuple[bytes, float]:
    """A page of metrics, and the prompt tokens in it."""
    name = draw(st.sampled_from(["sglang:prompt_tokens_total", "sglang_prompt_tokens_total"]))
    others = st.sampled_from(
        [
            "# HELP sglang:prompt_tokens_total Tokens",
            "sglang:prompt_tokens_total_created 1",
            "up 1",
            "",
            'sglang:x{a="}"} 5',
        ]
    )
    lines = []
    # The ranks of a model repeat each other's count; models have counts of their own.
    counts: dict[str | None, float] = {}
    for number in draw(st.lists(st.integers(0, 10**6), max_size=3)):
        drawn = draw(labels())
        lines += [draw(others), f"{name}{shown(drawn)} {float(number)}"]
        # As the page is encoded.
        model = drawn.get("model_name")
        key = None if model is None else model.encode(errors="replace").decode()
        counts[key] = max(counts.get(key, 0.0), number)
    return "\n".join([*lines, draw(others)]).encode(errors="replace"), sum(counts.values())


class Answering(Server):
    """Stands for a server that gives this answer to every request."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(Command.public([], {}), 9, Path(os.devnull))
        self.answer = answer

    def _ask(
        self, path: str, timeout_s: float, body: Any = None, begin: Any = None
    ) -> tuple[int, bytes]:
        return 200, self.answer

    def log_tail(self, lines: int = 20) -> list[str]:
        return []

    def _has_the_port(self) -> bool:
        return True


@fuzz(deep=1.0, page=metrics())
def test_the_servers_count_is_the_sum_of_its_models_series(page: tuple[bytes, float]) -> None:
    reached()
    assert Answering(page[0]).prompt_tokens() == page[1]


@fuzz(deep=0.2, value=mostly(st.floats().map(str), text(), 60))
def test_a_server_that_counts_strangely_is_a_failure_of_its_request(value: str) -> None:
    page = f"sglang:prompt_tokens_total {value}\n".encode(errors="replace")
    with contextlib.suppress(StageFailure):
        assert isinstance(Answering(page).prompt_tokens(), (float, int))
        reached()


@fuzz(deep=0.1, answer=files_of({"usage": {"prompt_tokens": 7, "total_tokens": 9}}, most=1))
def test_a_completion_counts_its_tokens_or_fails(answer: bytes) -> None:
    with contextlib.suppress(StageFailure):
        assert isinstance(Answering(answer).complete("a", 0.0), int)
        reached()


@fuzz(deep=0.3, counted=st.floats() | st.sampled_from([0.0, 12.0]), taken=st.integers(-5, 50))
def test_a_ledger_begins_with_a_count_that_is_one(counted: float, taken: int) -> None:
    server = mock.Mock()
    server.prompt_tokens.return_value, server.complete.return_value = counted, taken
    ledger = probe.TokenLedger(server)
    try:
        with mock.patch.object(probe, "_POLL_S", 0.0):
            ledger.complete("a", 0.0)
    except StageFailure:
        assert not math.isfinite(counted)
        return
    reached()
    assert ledger.baseline == counted and ledger.tokens == taken
