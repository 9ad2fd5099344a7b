"""Three hosts from bare to METRICS_READY: one compiled, and the others took it."""

from __future__ import annotations

from typing import Any

from tests.hosts.fleet import NAMES

from .conftest import Installation


def test_each_host_proved_its_metrics_by_itself(
    converged: Installation, first_report: dict[str, Any]
) -> None:
    assert first_report["metrics_ready"] == {"ready": 3, "total": 3}
    proofs = [converged.prep_result(name)["telemetry_probe"] for name in NAMES]
    assert all(
        proof["ok"] and proof["tokens_seen"] >= proof["tokens_expected"] > 0 for proof in proofs
    ), proofs
    assert len({proof["prep_id"] for proof in proofs}) == 3


def test_one_host_compiled_and_the_others_had_nothing_to_do(first_report: dict[str, Any]) -> None:
    stages = {host["host"]: host["stages"]["inductor"] for host in first_report["hosts"]}
    assert sorted(stage["status"] for stage in stages.values()) == ["noop", "noop", "ok"], stages
    seconds = [stage["duration_s"] for stage in stages.values()]
    assert sum(seconds) <= 1.05 * max(seconds) and max(seconds) > 1, seconds


def test_what_was_taken_is_what_was_compiled(converged: Installation) -> None:
    """The same files, by digest and by time."""
    first, *others = (converged.caches(name) for name in NAMES)
    assert len(first) > 10
    for other in others:
        assert other == first


def test_nothing_is_left_of_the_way(converged: Installation) -> None:
    assert {name: found for name in NAMES if (found := converged.leftovers(name))} == {}
