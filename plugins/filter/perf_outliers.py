# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which hosts of a fleet stage `perf` found slower than their siblings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import perf


def perf_outliers(done: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of the hosts with these results of sgl_prep, those that fail beside the others, each with its
    reason.
    """
    probes = {
        host: probe
        for host, each in done.items()
        if (probe := ((each or {}).get("result") or {}).get("perf_probe") or {}).get("tolerance")
    }
    if not probes:
        return {}
    outliers, _without = perf.of_fleet(probes)
    found: dict[str, list[str]] = {}
    for host, judgement in outliers:
        if judgement.verdict == perf.FAIL:
            found.setdefault(host, []).append(judgement.sentence)
    return {host: "; ".join(sentences) for host, sentences in found.items()}


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"perf_outliers": perf_outliers}
