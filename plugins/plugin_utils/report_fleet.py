# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a report says of all its hosts together, as JSON and in lines for a terminal.

It reads the hosts of any report: one of an older release has no groups, and does not say who was
stopped.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..module_utils._contract import perf
from ..module_utils._contract.stages import NAMES as STAGES


def fleet(hosts: list[dict[str, Any]], names: Collection[str] | None = None) -> dict[str, Any]:
    """Of a report's hosts, or of those with these names. All times are seconds."""
    counted = [host for host in hosts if names is None or host["host"] in names]
    return {
        "metrics_ready": {"ready": sum(is_ready(host) for host in counted), "of": len(counted)},
        "groups": _groups(counted),
        "failures": [
            {
                "host": host["host"],
                "task": host["failed_task"],
                "reason": host["problem"],
                "unreachable": host["status"] == "unreachable",
            }
            for host in counted
            if host["status"] != "ok"
        ],
        "not_finished": [host["host"] for host in counted if host.get("unfinished")],
        "not_proven": [
            {"host": host["host"], "reason": _why_unproven(host)}
            for host in counted
            if host["status"] == "ok" and not is_ready(host) and not host.get("unfinished")
        ],
        "perf": _perf(counted),
        "tuning_s": round(sum(sum(host.get("work_s", {}).values()) for host in counted), 3),
    }


def _perf(hosts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The measured hosts beside each other; None where none was measured. Tolerances are those of
    the first.
    """
    probes = {host["host"]: host["perf"] for host in hosts if host.get("perf")}
    if not probes:
        return None
    outliers, without = perf.of_fleet(probes)
    return {
        "outliers": [
            {
                "host": host,
                "name": judgement.name,
                "verdict": judgement.verdict,
                "sentence": judgement.sentence,
            }
            for host, judgement in outliers
        ],
        "without": without,
    }


def warn_of_outliers(hosts: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Each host that is slower than the fleet has that among its warnings."""
    for outlier in (found["perf"] or {"outliers": []})["outliers"]:
        for host in hosts:
            if host["host"] == outlier["host"]:
                host["warnings"].append(f"perf: {outlier['verdict']}: {outlier['sentence']}")


def of_report(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report.get("fleet") or fleet(report["hosts"])
    return found


def is_ready(host: dict[str, Any]) -> bool:
    """Whether it went to its end with a proof; one that failed after its proof needs another
    run.
    """
    return host["status"] == "ok" and host["metrics_ready"] is True and not host.get("unfinished")


def summary(report: dict[str, Any]) -> list[str]:
    """How many hosts are ready, and a line for each other one. Nothing in it can move a terminal's
    cursor.
    """
    found = of_report(report)
    ready, of = found["metrics_ready"]["ready"], found["metrics_ready"]["of"]
    why_stopped = {host["host"]: host.get("unfinished") for host in report["hosts"]}
    lines = [
        f"METRICS_READY: {ready} of {of} {'host' if of == 1 else 'hosts'}"
        + (", as they were found (check mode changes nothing)" if report["check_mode"] else "")
    ]
    lines += _of_profiles(report["hosts"])
    for failure in found["failures"]:
        lines.append(
            f"{failure['host']}: {'unreachable' if failure['unreachable'] else 'failed'}:"
            f" {first_line(failure['reason'])}"
        )
    for host in found["not_finished"]:
        lines.append(f"{host}: not finished: {first_line(why_stopped.get(host))}")
    measured = found.get("perf") or {"outliers": []}
    for outlier in measured["outliers"]:
        lines.append(f"{outlier['host']}: slow ({outlier['verdict']}): {outlier['sentence']}")
    if not report["check_mode"]:
        for unproven in found["not_proven"]:
            lines.append(f"{unproven['host']}: not proven: {first_line(unproven['reason'])}")
    return [
        "".join(character if character.isprintable() else "?" for character in line)
        for line in lines
    ]


def _of_profiles(hosts: list[dict[str, Any]]) -> list[str]:
    """Of each profile, on how many of the hosts that came to it its server's metrics are proven."""
    rows = [row for host in hosts for row in host.get("profiles") or []]
    lines = []
    for name in dict.fromkeys(row["profile"] for row in rows):
        told = [row["metrics_ready"] for row in rows if row["profile"] == name]
        lines.append(f"profile {name}: {told.count(True)} of {len(told)}")
    return lines


def first_line(text: str | None) -> str:
    return next(
        (line.strip() for line in (text or "").splitlines() if line.strip()), "no reason is known"
    )


def _why_unproven(host: dict[str, Any]) -> str:
    proof = host["telemetry_probe"]
    return (proof and proof["reason"]) or "no proof was made in this run"


def _groups(hosts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hosts whose stages have equal signatures, in the order of their first hosts; for each stage,
    who made it and who took it.
    """
    members: dict[str, list[dict[str, Any]]] = {}
    for host in hosts:
        if host.get("group"):
            members.setdefault(host["group"], []).append(host)
    return [
        {
            "id": group,
            "hosts": [host["host"] for host in found],
            "makers": [host["host"] for host in found if host["shared"]["made"]],
            "stages": {
                stage: part for stage in STAGES if any((part := _stage(stage, found)).values())
            },
        }
        for group, found in members.items()
    ]


def _stage(stage: str, hosts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "made_by": [host["host"] for host in hosts if stage in host["shared"]["made"]],
        "failed_on": [
            host["host"]
            for host in hosts
            if stage in host["work_s"] and stage not in host["shared"]["made"]
        ],
        "taken_by": [
            host["host"]
            for host in hosts
            if any(taken["stage"] == stage for taken in host["shared"]["took"])
        ],
        "seconds": round(sum(host["work_s"].get(stage, 0.0) for host in hosts), 3),
    }
