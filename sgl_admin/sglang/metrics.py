"""SGLang's counter of prompt tokens: on the server's metrics page, and in Prometheus."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

PATH, FLAG = "/metrics", "--enable-metrics"
# With a colon in most releases, with an underscore in newer ones.
_COUNTER = "sglang[:_]prompt_tokens_total"
# A label's value may hold anything but a bare quote.
_SAMPLE = re.compile(rf'^{_COUNTER}(\{{(?:[^"}}]|"(?:\\.|[^"\\])*")*\}})?[ \t]+(\S+)', re.MULTILINE)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:\\.|[^"\\])*)"')
# Labels that repeat one count instead of splitting it: the counter's two spellings, how it was
# scraped, and the ranks of one replica (python/sglang/srt/managers/scheduler_metrics_mixin.py;
# dp_rank is left out, as each of those ranks serves requests of its own).
_REPEATING = re.compile(r"__name__|job|instance|(?!dp_rank$)\w*_rank")


def total(series: Iterable[tuple[Mapping[str, str], float]]) -> float:
    """The prompt tokens that these series of one server count together, by their labels and
    values: summed, but once where series repeat each other. Not finite where one of them is not.
    """
    counts: dict[frozenset[tuple[str, str]], float] = {}
    for labels, value in series:
        if not math.isfinite(value):
            return value
        kept = frozenset(
            (name, text) for name, text in labels.items() if not _REPEATING.fullmatch(name)
        )
        counts[kept] = max(counts.get(kept, value), value)
    return sum(counts.values())


def prompt_tokens_total(metrics: str) -> float:
    """The server's count by its metrics page; 0 without any series. Raises ValueError."""
    samples = _SAMPLE.findall(metrics)
    try:
        return total((dict(_LABEL.findall(labels)), float(value)) for labels, value in samples)
    except ValueError as error:
        value = samples[0][1]
        raise ValueError(f"the server counts its prompt tokens as {value[:40]!r}") from error


def prompt_tokens_query(run_id: str, address: str) -> str:
    return f'{{__name__=~"{_COUNTER}",container_run="{run_id}",instance="{address}"}}'
