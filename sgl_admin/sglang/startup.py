"""Where a server's start goes, by what its log and its metrics page say.

Read in 0.5.17 and 0.5.23: entrypoints/engine.py (its arguments, the first line that it logs),
distributed/bootstrap.py (process group), model_executor/model_runner.py and
model_runner_components/cuda_graph_setup.py (weights, graphs), deep_gemm_wrapper/compile_utils.py
(its loop over shapes, which runs also where nothing is left to compile), and
observability/metrics_collector.py (`emit_startup_time`). A line that is not there leaves its phase
out, and one that is not known says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# In their order; the two of imports are by the stamps of lines, which have whole seconds.
PHASES = (
    "imports", "worker_imports", "process_group", "weights", "kv_cache", "prefill_graphs",
    "decode_graphs",
)  # fmt: skip

_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d{3})?([^\]]*)\] ")
_SECONDS = r"(\d+(?:\.\d+)?) s\b"
_ARGUMENTS = re.compile(r"\bserver_args=")
_BEGINS = re.compile(r"Init (?:torch distributed|parallel) begin\.")
_ENDS = {
    "process_group": re.compile(rf"Init (?:torch distributed|parallel) ends\. elapsed={_SECONDS}"),
    "weights": re.compile(rf"Load weight end\. .{{0,200}}?(?:\belapsed=| in ){_SECONDS}"),
}
_GRAPHS = re.compile(
    rf"Capture (.{{0,40}}?) ?(?:CUDA|cuda) graph end\. .{{0,200}}?elapsed[=:] ?{_SECONDS}"
)
# tqdm's bar, which is on one line with what it said before.
_BAR = re.compile(r"DeepGEMM warmup: +100%[^\r\n\[]{0,200}\[(?:(\d+):)?(\d\d):(\d\d)<")
_COMPILES = re.compile(r"Try DeepGEMM JIT Compiling for ")
_SAMPLE = re.compile(
    r"^sglang[:_]startup_(cuda_graph_)?time_seconds\{([^\n]*)\}[ \t]+(\S+)", re.MULTILINE
)
_PHASE = re.compile(r'\bphase="([^"]*)"')
_BY_METRIC = {
    ("", "load_weight"): "weights",
    ("", "kv_cache_allocation"): "kv_cache",
    ("cuda_graph_", "prefill"): "prefill_graphs",
    ("cuda_graph_", "decode"): "decode_graphs",
}
# What skips DeepGEMM's loop, and what that brought (docs/benchmarks).
_PRECOMPILE = "SGLANG_JIT_DEEPGEMM_PRECOMPILE"
_PRECOMPILE_BROUGHT = (
    "52.7 s to 48.2 s until ready, no file compiled: two NVIDIA H200, tp 2, SGLang 0.5.17,"
    " Qwen3-Next-80B-A3B-FP8 with 4 layers and dummy weights, 2026-11-27"
)
# The longest of its lines that say a phase.
_LINE = 1000
# Of an hour at most: a start that takes longer is no sum of what is known here.
_MOST_S = 3600.0


@dataclass
class _Log:
    arguments_at: float | None = None
    workers_at: float | None = None
    # Of each rank, by the words before a message.
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    loops: int = 0
    loops_s: float = 0.0

    def read(self, line: str) -> None:
        if bars := _BAR.findall(line):
            hours, minutes, seconds = (int(part or 0) for part in bars[-1])
            self.loops_s += 3600 * hours + 60 * minutes + seconds
        line = line[:_LINE]
        stamp = _STAMP.search(line[:200])
        at, rank = (_moment(stamp[1]), stamp[2]) if stamp else (None, "")
        if self.arguments_at is None and _ARGUMENTS.search(line):
            self.arguments_at = at
        if self.workers_at is None and _BEGINS.search(line):
            self.workers_at = at
        for phase, pattern in _ENDS.items():
            if ended := pattern.search(line):
                self._add(phase, rank, float(ended[1]))
        if captured := _GRAPHS.search(line):
            phase = "prefill_graphs" if "prefill" in captured[1] else "decode_graphs"
            self._add(phase, rank, float(captured[2]))
        self.loops += len(_COMPILES.findall(line))

    def _add(self, phase: str, rank: str, seconds: float) -> None:
        ranks = self.seconds.setdefault(phase, {})
        ranks[rank] = ranks.get(rank, 0.0) + seconds


def breakdown(lines: Iterable[str], page: str, began_at: float, ready_s: float) -> dict[str, Any]:
    """A start that took `ready_s` from `began_at` on, in seconds since the epoch, by the server's
    own lines and its metrics page; where several ranks say a phase, the slowest counts.
    """
    log = _Log()
    for line in lines:
        log.read(line)
    found = {phase: max(ranks.values()) for phase, ranks in log.seconds.items()}
    found.update(_by_metrics(page))
    if log.arguments_at is not None:
        found["imports"] = log.arguments_at - began_at
        if log.workers_at is not None:
            found["worker_imports"] = log.workers_at - log.arguments_at
    phases: list[dict[str, Any]] = [
        {"phase": phase, "seconds": round(max(0.0, found[phase]), 3)}
        for phase in PHASES
        if phase in found and found[phase] < _MOST_S
    ]
    named_s = sum(phase["seconds"] for phase in phases)
    return {
        "ready_s": ready_s,
        "phases": phases,
        "other_s": round(max(0.0, ready_s - named_s), 3),
        "deep_gemm": {"shapes": log.loops, "seconds": round(log.loops_s, 3)},
    }


def advice(starts: Sequence[Mapping[str, Any]], compiled: int) -> list[dict[str, str]]:
    """Only where a server has shown that its caches are whole: it ran through the loop, and the
    prep compiled no file.
    """
    loop = starts[-1]["deep_gemm"] if starts else {"shapes": 0}
    if compiled or not loop["shapes"]:
        return []
    return [
        {
            "setting": "sgl_server_fast_start: true",
            "reason": (
                f"DeepGEMM went through {loop['shapes']} shapes in {loop['seconds']:.0f} s, and"
                f" nothing was left to compile. It sets {_PRECOMPILE}=0 for the servers that"
                " are started later: a kernel that the caches lack is then compiled at the first"
                " request that needs it"
            ),
            "measured": _PRECOMPILE_BROUGHT,
        }
    ]


def fast_environment(done: Collection[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What the work of these stages makes needless; what the operator sets stands."""
    needless = "deep_gemm" in done and _PRECOMPILE not in environment
    return {_PRECOMPILE: "0"} if needless else {}


def _moment(stamp: str) -> float | None:
    try:
        # In the container's time zone, as the server writes it.
        return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _by_metrics(page: str) -> dict[str, float]:
    """Its own gauges, which name a thousandth of a second."""
    found: dict[str, float] = {}
    for kind, labels, value in _SAMPLE.findall(page):
        named = _PHASE.search(labels)
        phase = _BY_METRIC.get((kind, named[1])) if named else None
        try:
            seconds = float(value)
        except ValueError:
            continue
        # A phase that did not happen is 0 there, and is in the log where it did.
        if phase is not None and 0 < seconds < _MOST_S:
            found[phase] = max(seconds, found.get(phase, 0.0))
    return found
