"""The run's record: waits for the services, writes the manifest, then the pointer; takes the
pointer back when the run ends.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, files, locks, logs, paths, ports, rights
from sgl_admin.base.errors import Refused, StageFailure
from sgl_admin.base.processes import start_time
from sgl_admin.contract import processes
from sgl_admin.contract.services import BY_NAME, LOOPBACK, SERVICES, SGLANG, Service
from sgl_admin.contract.texts import say
from sgl_admin.init import dcgm, surfaces
from sgl_admin.init.services import Settings, of_image
from sgl_admin.init.surfaces import Observed
from sgl_admin.records import caches, job, run
from sgl_admin.records import smokes as smoke
from sgl_admin.serving import benchmark_server
from sgl_admin.serving.services import answers

_RETRY_S = 1.0
# A thousand requests a second write 12 MB meanwhile.
_LOG_LOOK_S = 60.0


def main() -> None:
    rights.begin()
    run_id = sys.argv[1]
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    publish(run_id, ending)
    bound_log(run_id, ending)
    end_work(run_id)
    end_server(run_id)
    withdraw(run_id)
    say(f"run_record: {run_id} is ended", flush=True)


def publish(run_id: str, ending: threading.Event) -> None:
    """Manifest, then pointer. Where they cannot be written (a full disk), it says so once and tries
    until they can.
    """
    said = None
    while True:
        try:
            # Of a process of this program that was killed; no other writes the pointer.
            files.sweep_temporaries(paths.TELEMETRY, paths.POINTER.name)
            if not paths.manifest(run_id).exists():
                files.write_json(
                    paths.manifest(run_id),
                    build_manifest(run_id, Settings.from_environment(), ending),
                )
            if not ending.is_set():
                files.write_text(paths.POINTER, run.pointer_text(run_id), mode=0o600)
                say(f"run_record: {run_id} is published", flush=True)
            return
        except OSError as error:
            if (reason := files.reason(error)) != said:
                said = reason
                say(f"run_record: ERROR: {run_id} is not published yet: {reason}", flush=True)
        if ending.wait(_RETRY_S):
            return


def bound_log(run_id: str, ending: threading.Event) -> None:
    """Until the run ends, keep its log within its size. Where the file system cannot do that, it
    says so once.
    """
    most = Settings.from_environment().log_bytes
    said = None
    while not ending.wait(_LOG_LOOK_S):
        try:
            logs.bound(paths.log(run_id), most)
        except OSError as error:
            if error.errno != said:
                said = error.errno
                say(
                    f"run_record: WARNING: this log is not kept within sgl_log_size:"
                    f" {error.strerror}",
                    flush=True,
                )


def withdraw(run_id: str) -> None:
    """Take the pointer back, if it is this run's. One that cannot go is told apart by its readers,
    and the next start replaces it.
    """
    try:
        if run.pointed_run() == run_id:
            paths.POINTER.unlink()
            files.fsync_folder(paths.TELEMETRY)
    except OSError as error:
        say(f"run_record: ERROR: the pointer is not taken back: {files.reason(error)}", flush=True)


def end_work(run_id: str) -> None:
    """Tell the prep and the smoke that run in this container to stop, and wait until they have
    written their records.
    """
    smoke_id = smoke.latest(run_id)
    for record, lock in (
        (job.read(run_id), job.LOCK),
        (smoke.read(run_id, smoke_id) if smoke_id else None, smoke.LOCK),
    ):
        if (
            record is None
            or record["state"] != job.RUNNING
            or start_time(record["pid"]) != record.get("pid_start_ticks", "")
        ):
            continue
        os.kill(record["pid"], signal.SIGTERM)
        while start_time(record["pid"]) == record["pid_start_ticks"] and locks.held(lock):
            time.sleep(0.05)


def end_server(run_id: str) -> None:
    """End a server that was started for a benchmark, in order. What cannot be ended so goes with
    the container.
    """
    try:
        benchmark_server.stop(run_id)
    except (OSError, Refused, StageFailure) as error:
        say(f"run_record: ERROR: the server is not ended in order: {error}", flush=True)


def build_manifest(run_id: str, settings: Settings, ending: threading.Event) -> dict[str, Any]:
    facts = files.read_json(paths.IMAGE_FACTS) or {}
    flavour = files.read_json(paths.FLAVOUR) or {}
    started_at = clock.utc()
    profile_cache = caches.snapshot()
    states = wait_for_services(of_image(), settings, ending)
    container_paths = _container_paths(run_id)
    observed = Observed(
        states,
        flavour.get("unavailable", {}),
        facts["versions"],
        settings,
        strangers(states, settings),
    )
    telemetry_surfaces, warnings = surfaces.describe(observed)
    host_paths = {key: paths.to_host(path) for key, path in container_paths.items()}
    # The first prep names its result; the keys are there before.
    no_prep: dict[str, Any] = {"prep_result": None}
    return {
        "schema_version": "1",
        "container_run_id": run_id,
        "container_id": container_id(),
        "container_name": os.environ.get("SGL_CONTAINER_NAME", "unknown"),
        "started_at": started_at,
        "image": os.environ.get("SGL_IMAGE", "unknown"),
        "image_id": os.environ.get("SGL_IMAGE_ID", "unknown"),
        "image_inputs": facts["image_inputs"],
        "base_image": facts["base_image"],
        "flavour": facts["flavour"],
        "architecture": facts["architecture"],
        "git_revision": facts["git_revision"],
        "user": {
            "name": "devuser",
            "uid": os.getuid(),
            "gid": os.getgid(),
            "umask": f"{rights.umask():04o}",
        },
        "versions": facts["versions"],
        "services": describe_services(settings),
        "paths": {
            "container": {**container_paths, **no_prep},
            "host": {**host_paths, **no_prep},
        },
        "storage": {
            key: container_paths[key] for key in ("log_file", "prometheus_dir", "jaeger_dir")
        },
        "profile_cache": {"start": profile_cache},
        "telemetry_surfaces": telemetry_surfaces,
        "exporters_state": {
            service.name: states.get(service.name, "unavailable")
            for service in SERVICES
            if service.exporter
        },
        "warnings": warnings,
        # Readers on the host know by it whether this run is the live one.
        "pid1": processes.identity(1),
    }


def _container_paths(run_id: str) -> dict[str, str]:
    return {
        "telemetry_root": str(paths.TELEMETRY),
        "run_dir": str(paths.run_dir(run_id)),
        "log_file": str(paths.log(run_id)),
        "prometheus_dir": str(paths.PROMETHEUS / run_id),
        "jaeger_dir": str(paths.JAEGER / run_id),
        "profiles_root": str(paths.PROFILES),
        "models_root": str(paths.MODELS),
        "huggingface_root": str(paths.HUGGINGFACE),
    }


def describe_services(settings: Settings) -> dict[str, dict[str, Any]]:
    """`services` of the manifest: ports and addresses, of those that the image lacks too."""
    host = f"[{settings.reachable}]" if ":" in settings.reachable else settings.reachable
    described: dict[str, dict[str, Any]] = {}
    for service in SERVICES:
        entry: dict[str, Any] = {port.key: settings.ports[port.name] for port in service.ports}
        if service.has_url:
            entry["url"] = f"http://{host}:{settings.ports[service.ports[0].name]}"
        described[service.name] = entry
    server = settings.ports[SGLANG.name]
    described[SGLANG.name] = {"port": server, "url": f"http://{LOOPBACK}:{server}"}
    return described


def wait_for_services(
    names: list[str], settings: Settings, ending: threading.Event
) -> dict[str, str]:
    """`running` for each service once its page says 200 and is its own, `failed` for one that has
    not come so far within the time that its start may take.
    """
    began = time.monotonic()
    states: dict[str, str] = {}
    while len(states) < len(names):
        for name in names:
            service = BY_NAME[name]
            if name in states:
                continue
            if is_ready(service, settings):
                states[name] = "running"
            elif time.monotonic() - began >= service.ready_timeout_s or ending.is_set():
                states[name] = "failed"
        ending.wait(0.02)
    return {name: states[name] for name in names}


def is_ready(service: Service, settings: Settings) -> bool:
    # Whether dcgm-exporter gives profiling metrics is known a few seconds after its first page.
    settled = service.name != "dcgm_exporter" or dcgm.chosen().settled
    port = settings.ports[service.ports[0].name]
    return (
        settled
        and answers(settings.reachable, port, service)
        and ports.stranger(settings.reachable, port) is None
    )


def strangers(names: Iterable[str], settings: Settings) -> dict[str, str]:
    """Of services whose ports another process answers at, which port and who."""
    found = {}
    for name in names:
        for port in BY_NAME[name].ports:
            number = settings.ports[port.name]
            if who := ports.stranger(settings.reachable, number):
                found[name] = f"port {number} is answered by {who}"
    return found


def container_id(mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """This container's id, from the files that Docker mounts for it, or Podman from its folder
    overlay-containers: on the host's network the host name does not show.
    """
    found = re.search(r"[/-]containers/([0-9a-f]{64})/", mounts.read_text())
    return found.group(1) if found else "unknown"


if __name__ == "__main__":
    main()
