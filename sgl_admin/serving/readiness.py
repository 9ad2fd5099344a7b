"""Whether METRICS_READY holds now: the run is live, the prepared server is still the one that was
proven, and Prometheus stands by the proof.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.base import clock, files, paths, ports
from sgl_admin.base.errors import Refused
from sgl_admin.records import prepared, remembered, served
from sgl_admin.records.run import Run
from sgl_admin.serving import benchmark_server, probe, services

_AGAIN = "run the prep again (playbooks/prep.yml)"
_BY_THE_SERVER = (
    "start the server that was prepared before, which makes the proof (sgl-admin server start)"
)


def readiness(live: Run, identity: str | None = None) -> dict[str, Any]:
    """Of the latest prepared server, or of the one with this identity: `ready`, and the `reason`
    where it is not. Reads and asks; starts and writes nothing.
    """
    answer: dict[str, Any] = {
        "schema_version": "1",
        "ready": False,
        "reason": None,
        "run_id": live.run_id,
        "prep_id": None,
        "model": None,
        "server": None,
        "proven_at": None,
        "checked_at": clock.utc(),
    }
    if identity is None and _may_be_proven_by_a_start(live):
        answer["reason"] = f"nothing was prepared in {live.run_id} yet: {_BY_THE_SERVER}"
        return answer
    try:
        record = _record(live, identity)
        proof = record["telemetry_probe"]
        answer.update(
            prep_id=record.get("prep_id"),
            model=record["model"],
            server=record["identity"],
            proven_at=proof.get("probed_at") if proof.get("ok") is True else None,
        )
        reason = _problem(live, record, proof)
    except (ValueError, Refused) as error:
        reason = f"{error}; {_AGAIN}"
    except OSError as error:
        reason = f"{files.reason(error)}; {_AGAIN}"
    return {**answer, "ready": reason is None, "reason": reason}


def _may_be_proven_by_a_start(live: Run) -> bool:
    """Whether the run has no prep, as after a reboot, and an earlier one ended with a proof."""
    return not paths.prep_result(live.run_id).exists() and remembered.any_profile()


def _record(live: Run, identity: str | None) -> dict[str, Any]:
    """Raises ValueError where the record is missing or cannot be read."""
    if identity is None:
        server = prepared.latest(live.run_id).get("server")
        identity = server.get("identity") if isinstance(server, dict) else None
        if not isinstance(identity, str):
            raise ValueError(f"the prep of {live.run_id} is from a release that names no server")
    return prepared.read(live.run_id, identity)


def _problem(live: Run, record: dict[str, Any], proof: dict[str, Any]) -> str | None:
    if proof.get("ok") is not True or proof.get("server") != record["identity"]:
        return f"the metrics of this server are not proven: {proof.get('reason')}; {_AGAIN}"
    command = prepared.command(record)
    now = served.identity(command.argv, command.env, served.image())
    if now != record["identity"]:
        return (
            f"{record['model']}, a file that the server's arguments name, or the container's"
            f" environment has changed since the proof; {_AGAIN}"
        )
    running = benchmark_server.read(live.run_id)
    if running is not None and running["state"] == benchmark_server.RUNNING:
        if not command.is_that_of(running):
            return (
                f"{running['server_id']} runs with other settings than the prepared server: stop"
                " it (sgl-admin server stop)"
            )
        if who := ports.intruder(running["port"]):
            return (
                f"{who} answers a connection to the server's port {running['port']}: stop that"
                " process, and start the container again (playbooks/start.yml)"
            )
    if problem := services.intrusion(live.manifest):
        return problem
    if lost := probe.lost(live.manifest["services"]["prometheus"]["url"], proof):
        return f"{lost}; {_AGAIN}"
    return services.obstacle(services.states(live.manifest))
