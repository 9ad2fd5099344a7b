"""A double of Prometheus' query API.

It stands for a Prometheus whose scrapes of the server arrive late, arrive in part, or stop: what
the real one, which the integration tests use, does only when something is broken. It answers
`/api/v1/query` of a range selector as the real one does: the raw samples of each series in the
window before `time`.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class PrometheusApi:
    """`series` holds each one's (time, value) samples; the first `blank` answers are empty, as
    before the first scrape.
    """

    def __init__(
        self,
        series: list[list[tuple[float, float]]],
        blank: int = 0,
        status: int = 200,
        body: str | None = None,
        labels: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """`labels` are those of each series; by default they differ in is_streaming, as SGLang's
        do from 0.5.23 on.
        """
        self.series = series
        self.labels = labels
        self.blank = blank
        self.status = status
        self.body = body
        self.queries: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> PrometheusApi:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> str:
        url = urllib.parse.urlsplit(path)
        assert url.path == "/api/v1/query", url.path
        given = dict(urllib.parse.parse_qsl(url.query))
        self.queries.append(given["query"])
        window = re.fullmatch(r"\{.*\}\[(\d+)s\]", given["query"])
        assert window, given["query"]
        end = float(given["time"])
        shown: list[list[tuple[float, float]]] = (
            [] if len(self.queries) <= self.blank else self.series
        )
        found: list[dict[str, Any]] = []
        for number, samples in enumerate(shown):
            values = [
                [moment, str(value)]
                for moment, value in samples
                if end - int(window[1]) < moment <= end
            ]
            if values:
                found.append(
                    {
                        "metric": self._metric(number),
                        "values": values,
                    }
                )
        return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}})

    def _metric(self, number: int) -> dict[str, str]:
        own = {"is_streaming": str(number)} if self.labels is None else self.labels[number]
        return {"__name__": "sglang:prompt_tokens_total", "instance": "127.0.0.1:30000", **own}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = double.answer(self.path) if double.body is None else double.body
                self.send_response(double.status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
