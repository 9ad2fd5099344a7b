"""PERF_READY: this host is as fast as its product's data sheet, and as it was before.

The proof stands for the settings of the host that it was made with, and for some days.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin.base import clock, files, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract import perf
from sgl_admin.contract.perf import Tolerance
from sgl_admin.facts import devices
from sgl_admin.perf import data_sheet, history, metrics, served
from sgl_admin.perf.measuring import Measured, Measuring
from sgl_admin.perf.verdict import Verdict
from sgl_admin.records import caches
from sgl_admin.records.served import image
from sgl_admin.sglang import ENGINE
from sgl_admin.stages.base import Context, Offer, Stage

if TYPE_CHECKING:
    from sgl_admin.records.archive import Part

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DAY_S = 86400
# A clock that NTP slews.
_AHEAD_S = 60
_SHAPE: files.Shape = {"perf_probe": dict, "settings": dict, "measured_s": (int, float)}
_WORDS = {
    "driver": "the driver",
    "gpus": "a GPU, its VBIOS or its power limit",
    "image": "the image",
    "boot": "the boot",
}
_FLEET = "the report compares the hosts of a fleet"


class Perf(Stage):
    name = "perf"
    server_made = False
    failure_type = "measurement_failed"

    def skip_reason(self, context: Context) -> str | None:
        return None

    def key(self, context: Context) -> str | None:
        """None, as each host measures itself."""
        return None

    def offer(self, context: Context) -> Offer | None:
        return None

    def foreign(self, context: Context, part: Part) -> str | None:
        return "a measurement is of the host that made it"

    def signature(self, context: Context) -> dict[str, Any]:
        return {
            **super().signature(context),
            "tp": context.request.tp,
            "server": context.served_identity,
        }

    def lacking(self, context: Context) -> str | None:
        try:
            proof = files.read_record(self._path(context), _SHAPE)
        except ValueError:
            return "the measurement's record cannot be read"
        if proof is None:
            return "this host has not been measured for this server"
        if proof["perf_probe"].get("ok") is not True:
            return f"the last measurement failed: {proof['perf_probe'].get('reason')}"
        now = _settings(context)
        for name, words in _WORDS.items():
            if proof["settings"].get(name) != now[name]:
                return f"{words} is another than at the last measurement"
        return _expired(proof["measured_s"], context.request.option("perf_max_age"), time.time())

    def content(self, context: Context) -> Iterable[Path] | None:
        return [self._path(context)]

    def standing(self, context: Context) -> dict[str, Any]:
        proof = files.read_json(self._path(context)) or {}
        _publish(context, proof["perf_probe"], proof["measured_s"])
        return _artifacts(proof["perf_probe"], [])

    def run(self, context: Context) -> dict[str, Any]:
        # A measurement that fails leaves no verdict of before.
        metrics.withdraw(context.run_id)
        warnings: list[str] = []
        earlier = history.read(warnings)
        settings = _settings(context)
        measured = self._measure(context)
        subject = caches.digest(self.signature(context))
        verdict = self._judge(context, measured, earlier, subject)
        samples = _write_samples(context, measured)
        measured_s = time.time()
        probe = {
            "ok": verdict.verdict != perf.FAIL,
            "measured_at": clock.utc(measured_s),
            "device_name": context.devices.name,
            "subject": subject,
            "measurements": [
                {
                    "name": name,
                    "value": float(perf.shown(value)),
                    "unit": perf.BY_NAME[name].unit,
                    "spread_percent": measured.spreads.get(name),
                }
                for name, value in measured.values.items()
            ],
            "skipped": [{"name": name, "reason": why} for name, why in measured.skipped.items()],
            "samples": samples,
            "tolerance": asdict(_tolerance(context)),
            **verdict.to_json(),
        }
        entry = {
            "measured_at": probe["measured_at"],
            "subject": subject,
            "device_name": context.devices.name,
            "verdict": verdict.verdict,
            "values": measured.values,
        }
        history.add(earlier, entry)
        files.write_json(
            self._path(context),
            {
                "schema_version": "1",
                "perf_probe": probe,
                "settings": settings,
                "measured_s": measured_s,
            },
            mode=0o600,
        )
        _publish(context, probe, measured_s)
        if verdict.verdict == perf.FAIL and context.request.option("perf_required"):
            raise StageFailure(
                "too_slow",
                f"this host is too slow: {verdict.reason}; sgl_perf_required fails it",
                artifacts={"perf_probe": probe},
            )
        return _artifacts(probe, warnings)

    def _path(self, context: Context) -> Path:
        name = f"{caches.digest(self.signature(context))}.json"
        return paths.PROFILES / self.caches[0] / name

    def _measure(self, context: Context) -> Measured:
        """The devices without a server beside them, and then the server."""
        warmup = context.warmup
        if warmup.started:
            warmup.rest()
        warmup.keep_place()
        measured = Measuring(
            context.request.tp if context.devices.cuda else 0,
            {**ENGINE.network_environment(()), **dict(context.environment)},
            warmup.server.log,
            context.progress,
            context.on_group,
        ).run()
        context.progress(0, 1, "servers", "the server starts, and one request is timed")
        values, skipped = served.measure(warmup, context.batch_sizes)
        measured.values.update(values)
        measured.skipped.update(skipped)
        return measured

    def _judge(
        self, context: Context, measured: Measured, earlier: list[dict[str, Any]], subject: str
    ) -> Verdict:
        tolerance = _tolerance(context)
        name, values = context.devices.name, measured.values
        floors, no_floor = data_sheet.judge(name, values)
        before, no_history = history.judge(earlier, subject, name, values, tolerance)
        without = {"data_sheet": no_floor, "history": no_history, "fleet": _FLEET}
        return Verdict(
            (*floors, *before),
            tuple(measured.seen.findings()),
            {reference: why for reference, why in without.items() if why is not None},
        )


def _tolerance(context: Context) -> Tolerance:
    option = context.request.option
    return Tolerance(float(option("perf_warn_percent")), float(option("perf_fail_percent")))


def _settings(context: Context) -> dict[str, Any]:
    """What of the host the proof stands for."""
    visible = dict(context.environment).get(devices.VISIBLE)
    try:
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return {
        "driver": context.devices.driver_version,
        "gpus": devices.settings(visible) if context.devices.cuda else [],
        "image": image(),
        "boot": boot,
    }


def _expired(measured_s: float, days: float, now: float) -> str | None:
    """Why a measurement of that time does not count any more; None where it does."""
    if measured_s > now + _AHEAD_S:
        return "the last measurement is from after the host's present time: its clock was set"
    if not now - measured_s <= days * _DAY_S:
        return f"the last measurement is older than {days:g} days"
    return None


def _publish(context: Context, probe: dict[str, Any], measured_s: float) -> None:
    expires_s = measured_s + float(context.request.option("perf_max_age")) * _DAY_S
    metrics.publish(context.run_id, metrics.render(probe, measured_s, expires_s))


def _write_samples(context: Context, measured: Measured) -> dict[str, Any]:
    path = paths.perf_samples(context.run_id)
    samples = measured.seen.samples
    files.write_json(
        path,
        {
            "schema_version": "1",
            "gpus": context.devices.count if context.devices.cuda else 0,
            "samples": [asdict(sample) for sample in samples],
            "processes": [asdict(process) for process in measured.seen.processes.values()],
        },
    )
    return {
        "container_path": str(path),
        "host_path": paths.to_host(path),
        "count": len(samples),
    }


def _artifacts(probe: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    told = [*warnings]
    if probe["verdict"] != perf.PASS:
        told.append(f"perf: {probe['verdict']}: {probe['reason']}")
    return {"perf_probe": probe, "warnings": told}
