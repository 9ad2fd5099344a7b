"""SGLang's counter of prompt tokens: on the server's metrics page, and in Prometheus."""

from __future__ import annotations

import re

PATH, FLAG = "/metrics", "--enable-metrics"
# With a colon in most releases, with an underscore in newer ones.
_COUNTER = "sglang[:_]prompt_tokens_total"
# A label's value may hold anything but a bare quote.
_SAMPLE = re.compile(
    rf'^{_COUNTER}(?:\{{(?:[^"}}]|"(?:\\.|[^"\\])*")*\}})?[ \t]+(\S+)', re.MULTILINE
)


def prompt_tokens_total(metrics: str) -> float:
    """The sum over all of the counter's series; 0 without any. Raises ValueError."""
    values = _SAMPLE.findall(metrics)
    try:
        return sum(float(value) for value in values)
    except ValueError as error:
        raise ValueError(f"the server counts its prompt tokens as {values[0][:40]!r}") from error


def prompt_tokens_query(run_id: str) -> str:
    return f'{{__name__=~"{_COUNTER}",container_run="{run_id}"}}'
