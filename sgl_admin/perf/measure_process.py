"""The process that measures: the order comes on standard input, a line of JSON for each
measurement goes to the descriptor in argv.

It is a process of its own because it imports torch, holds the GPU, and may hang or be ended by a
GPU that is lost. What libraries print goes to standard error, the run's log.
"""

from __future__ import annotations

import sys
from typing import Any

from sgl_admin.base import ordered
from sgl_admin.perf import measure

EXIT_CANNOT_MEASURE = 3


def run(order: dict[str, Any], tell: Any) -> int:
    """Measure as the order says, and tell of it; returns the exit code."""
    try:
        import torch
    except ImportError as error:
        tell(problem=f"this image has no torch to measure with ({error})")
        return EXIT_CANNOT_MEASURE
    gpus = int(order["gpus"])
    try:
        if gpus and not torch.cuda.is_available():
            tell(problem="torch in this image sees no GPU (torch.cuda.is_available() is false)")
            return EXIT_CANNOT_MEASURE
        works = list(measure.on_gpus(torch, gpus) if gpus else measure.on_cpu(torch))
        _measure(torch, works, gpus, tell)
    except (RuntimeError, MemoryError) as error:
        # What torch says of a GPU that is lost, or of memory that is not there.
        words = " ".join(str(error).split())[:200]
        tell(problem=f"torch failed: {words or type(error).__name__}")
        return EXIT_CANNOT_MEASURE
    return 0


def _measure(torch: Any, works: list[measure.Work], gpus: int, tell: Any) -> None:
    def synchronise() -> None:
        for index in range(gpus):
            torch.cuda.synchronize(index)

    for number, work in enumerate(works):
        tell(begins=work.name, done=number, total=len(works))
        if work.missing is not None:
            tell(skipped=work.name, why=work.missing)
            continue
        value, spread = measure.rate(work, synchronise)
        tell(name=work.name, value=value, spread=spread)
        if gpus:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(ordered.obey(run))
