"""Reports to make pages of: a fleet of any size, and one of a host that wants into the page.

The contract's example is what an older release wrote.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.slice_bench.sglang.plugins.plugin_utils import report_fleet

from sgl_admin.contract import perf, stages
from tests.contract import validators

MIB = 1024**2
# The stages whose work most hosts take from another.
TAKEN = ("moe_tune", "inductor")
# Each is no more than text, wherever it stands.
HOSTILE = (
    "\"><script>document.title='taken'</script><img src=http://127.0.0.1:1/x"
    " onerror=alert(1)>\u202e'{{ 7 * 7 }}</td></details>"
)


def fleet(count: int) -> dict[str, Any]:
    """Hosts like the example's: most ok with times of their own, every 9th failed, every 13th
    unreachable, the 5th without a proof.

    They are two groups, by turns: the first host of each did the work, the others took it. Of more
    than nine, the last was stopped. Most are measured (:func:`_perf`).
    """
    report = validators.example("report")
    hosts = [_host(number) for number in range(count)]
    if count > 9:
        hosts[-1].update(
            status="ok",
            problem=None,
            failed_task=None,
            metrics_ready=None,
            telemetry_probe=None,
            stages={},
            steps=[],
        )
        hosts[-1].update(
            group=None,
            unfinished="its batch was not begun, because hosts before it failed",
            work_s={},
            perf=None,
        )
        hosts[-1]["shared"] = {"made": [], "gave": [], "took": []}
    ok = sum(host["status"] == "ok" for host in hosts)
    found = report_fleet.fleet(hosts)
    report_fleet.warn_of_outliers(hosts, found)
    report.update(
        hosts=hosts,
        status="ok" if ok == count else "partial" if ok else "failed",
        metrics_ready={
            "ready": sum(host["metrics_ready"] is True for host in hosts),
            "total": count,
        },
        duration_s=max(host["duration_s"] for host in hosts),
        fleet=found,
    )
    return report


def _host(number: int) -> dict[str, Any]:
    is_failed, is_gone = number % 9 == 8, number % 13 == 12
    host = validators.example("report")["hosts"][2 if is_gone else 1 if is_failed else 0]
    host["host"] = _name(number)
    # Spread without chance, so that a page that fails does so again.
    spread = 0.7 + (number * 37 % 100) / 200
    for step in host["steps"]:
        step["start_s"], step["duration_s"] = step["start_s"] * spread, step["duration_s"] * spread
    for stage in host["stages"].values():
        stage["duration_s"] *= spread
    for cache in (host["caches"] or {}).values():
        cache["after_bytes"] = (
            int(cache["after_bytes"] * spread)
            if cache["before_bytes"] == 0
            else cache["after_bytes"]
        )
    host["duration_s"] *= spread
    if "perf" in host["stages"]:
        host["stages"]["perf"]["duration_s"] = 41.2
    if number == 4:
        host["metrics_ready"] = False
        host["telemetry_probe"].update(
            ok=False,
            tokens_seen=0,
            reason="Prometheus was down when the proof was made; run this again",
        )
    host["perf"] = None if is_gone or is_failed else _perf(number)
    host.update(unfinished=None, group=None if is_gone else f"{number % 2 + 10:x}" * 16, work_s={})
    host["shared"] = {"made": [], "gave": [], "took": []}
    if number < 2:
        host["work_s"] = {
            name: stage["duration_s"]
            for name, stage in host["stages"].items()
            if stage["status"] in ("ok", "error") and name in stages.SHARED
        }
        host["shared"]["made"] = [
            name for name in host["work_s"] if host["stages"][name]["status"] == "ok"
        ]
        host["shared"]["gave"] = [
            {**_shared(name), "to": "controller"} for name in host["shared"]["made"]
        ]
    elif not is_gone:
        from_host = _name(number % 2) if number % 5 else None
        place = "controller:/home/ubuntu/.cache/slice_bench.sglang/caches"
        host["shared"]["took"] = [
            {
                **_shared(name),
                "from": f"{place}/{_shared(name)['name']}.tar",
                "from_host": from_host,
            }
            for name in TAKEN
        ]
        if not is_failed:
            _took(host)
    return host


def _took(host: dict[str, Any]) -> None:
    """What a host took, it did not make: those stages are no-ops, and the prep ends sooner."""
    for name in TAKEN:
        host["stages"][name].update(status="noop", reason="valid_signature", duration_s=0.4)
    prep = host["steps"][-1]
    host["duration_s"] -= prep["duration_s"]
    prep["duration_s"] = 40 + sum(stage["duration_s"] for stage in host["stages"].values())
    host["duration_s"] += prep["duration_s"]


# What hosts of a kind reach; the second kind is every 8th host's, the last that of the 6th alone.
MEASURED = {
    "NVIDIA GH200 480GB": {"gemm_bf16": 771.4, "gemm_fp8": 1388.0, "hbm_copy": 3517.0},
    "NVIDIA H100 80GB HBM3": {"gemm_bf16": 640.2, "gemm_fp8": 1205.0, "hbm_copy": 2780.0},
    "NVIDIA L40S": {"gemm_bf16": 181.0},
}
SERVED = {"h2d": 55.1, "decode": 171.3, "first_token": 31.4}


def _perf(number: int) -> dict[str, Any]:
    """Measurements within 1% of what is usual; the 4th, the 11th, the 20th and the 21st host are
    slower.
    """
    kind = list(MEASURED)[1 if number % 8 == 6 else 2 if number == 5 else 0]
    probe = validators.example("prep_result")["perf_probe"]
    slower = {3: 0.93, 10: 0.86, 19: 0.91, 20: 0.908}.get(number, 1.0)
    probe.update(device_name=kind, subject=kind, measurements=[])
    for place, (name, usual) in enumerate({**MEASURED[kind], **SERVED}.items()):
        value = usual * (1 + (number * (37 + 2 * place) % 101 - 50) / 5000)
        if name == "hbm_copy" or (name == "gemm_bf16" and number != 3):
            value *= slower
        if name == "first_token":
            value /= slower
        probe["measurements"].append(
            {
                "name": name,
                "value": round(value, 1),
                "unit": perf.BY_NAME[name].unit,
                "spread_percent": None,
            }
        )
    return probe


def _name(number: int) -> str:
    return f"gh200-{number + 1:02}.rack{number // 8 + 1}.lab"


def _shared(stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "name": f"{stage}-1f0c2a9b7d3e4f56",
        "bytes": 76 * MIB,
        "finished": True,
        "seconds": 4.2,
    }


def hostile() -> dict[str, Any]:
    """The example with :data:`HOSTILE` in every text that a host, a task or an inventory gives."""
    report = validators.example("report")
    report["playbook"] = HOSTILE
    for host in report["hosts"]:
        taken = {**_shared("moe_tune"), "name": HOSTILE, "from": HOSTILE, "from_host": HOSTILE}
        host.update(
            host=host["host"] + HOSTILE,
            warnings=[HOSTILE],
            group="a" * 16,
            work_s={"moe_tune": 1.0},
            unfinished=None,
        )
        host["shared"] = {
            "made": ["moe_tune"],
            "gave": [{**taken, "to": HOSTILE}],
            "took": [taken, {**taken, "stage": None}],
        }
        if host["status"] != "ok":
            host.update(problem=HOSTILE, failed_task=HOSTILE)
        for step in host["steps"]:
            step["name"] += HOSTILE
        for stage in host["stages"].values():
            stage["errors"] = [HOSTILE for _error in stage["errors"]]
        if host["model"]:
            host["model"].update(path="/models/" + HOSTILE, slug=HOSTILE)
            host["device"]["name"] = HOSTILE
            host["versions"] = {HOSTILE: HOSTILE}
            host["links"].update(prometheus="http://" + HOSTILE, log="/" + HOSTILE)
            host["perf"] = {**_perf(0), "device_name": HOSTILE, "subject": HOSTILE}
        if host["telemetry_probe"] and not host["telemetry_probe"]["ok"]:
            host["telemetry_probe"]["reason"] = HOSTILE
    report["fleet"] = report_fleet.fleet(report["hosts"])
    slow = {"name": "gemm_bf16", "verdict": "warn", "sentence": HOSTILE}
    report["fleet"]["perf"]["outliers"] = [{**slow, "host": report["hosts"][0]["host"]}]
    return report
