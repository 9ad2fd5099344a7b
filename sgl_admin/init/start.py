"""pid 1 until it becomes supervisord: identity, a new run's folders and configuration."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import socket
import sys
from pathlib import Path

from sgl_admin.base import clock, files, keyed, locks, paths, ports, rights
from sgl_admin.base.errors import Refused, StageFailure
from sgl_admin.contract import locks as contract_locks
from sgl_admin.contract import places
from sgl_admin.contract.services import BY_NAME
from sgl_admin.contract.texts import say
from sgl_admin.init.services import (
    COMMANDS,
    Settings,
    of_image,
    prometheus_config,
    render_prometheus_config,
)
from sgl_admin.records import job
from sgl_admin.records import smokes as smoke
from sgl_admin.serving import benchmark_server

USER = "devuser"
SUPERVISOR_CONFIG = paths.STATE / "supervisord.conf"
# Below the container's stop timeout, so that everything is ended in order.
STOP_WAIT_S = 25
# supervisord waits a second longer before each try (process.py of supervisor 4), and gives up
# after three of them by default.
_TRIES = 1_000_000


def main() -> None:
    rights.begin()
    settings = Settings.from_environment()
    services = of_image()
    try:
        # A container that is started again has its last life's: no run is live until this one's is
        # published.
        paths.LIVE_RUN.unlink(missing_ok=True)
        tidy()
        add_user(os.getuid(), os.getgid())
        refuse_busy_ports(settings, services)
        run_id = begin_run(settings, services)
    except OSError as error:
        sys.exit(
            f"sgl-init: ERROR: {files.printable(files.reason(error))} (this container runs as"
            f" {os.getuid()}:{os.getgid()})"
        )
    say(f"sgl-init: {run_id}, log {paths.log(run_id)}", flush=True)
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-P",
            "-m",
            "supervisor.supervisord",
            "--nodaemon",
            "--configuration",
            str(SUPERVISOR_CONFIG),
        ],
    )


def tidy() -> None:
    """Mend what a killed container left: its temp files go, and the records of its prep and its
    smoke say that they ended.

    No process of this container writes yet. What other containers of the host may write is held by
    the prep lock, and waits for the next start where it is taken. Nothing here keeps a run from
    starting.
    """
    try:
        files.sweep_temporaries(paths.STATE)
        files.sweep_temporaries(paths.TELEMETRY, paths.POINTER.name)
        with locks.tried(job.LOCK) as lock:
            if lock is not None:
                files.sweep_temporaries(paths.RUNS)
                for pattern in ("*/", "*/stages", "*/metrics"):
                    for folder in paths.RUNS.glob(pattern):
                        files.sweep_temporaries(folder)
                for record in paths.RUNS.glob("*/job.json"):
                    job.settle(record.parent.name, [])
        smokes = [folder.parent.name for folder in paths.RUNS.glob("*/smokes")]
        if smokes:
            with locks.tried(smoke.LOCK) as lock:
                for run_id in smokes if lock is not None else ():
                    smoke.settle(run_id)
                    smoke.sweep(run_id)
        servers = list(paths.RUNS.glob("*/server.json"))
        if servers and not locks.held(benchmark_server.SERVES):
            for server in servers:
                benchmark_server.stop(server.parent.name)
    except (OSError, Refused, StageFailure) as error:
        say(
            "sgl-init: WARNING: what an earlier run left is not tidied:"
            f" {files.reason(error) if isinstance(error, OSError) else error}",
            flush=True,
        )


def add_user(uid: int, gid: int) -> None:
    """Give the host's uid:gid a name. /etc/passwd and /etc/group are links to files that any uid of
    this container may write.
    """
    for database, number, line in (
        ("passwd", uid, f"{USER}:x:{uid}:{gid}:{USER}:/home/{USER}:/bin/bash"),
        ("group", gid, f"{USER}:x:{gid}:"),
    ):
        others = [
            entry
            for entry in Path(f"/etc/{database}.image").read_text(encoding="utf-8").splitlines()
            if entry.split(":")[0] != USER and entry.split(":")[2] != str(number)
        ]
        files.write_text(paths.STATE / database, "\n".join([*others, line]) + "\n", mode=0o644)
    assert pwd.getpwuid(uid).pw_name == USER


def refuse_busy_ports(settings: Settings, services: list[str]) -> None:
    """The network is the host's: a port that another process holds would let its answers pass for
    our service's.
    """
    for service, port in [(name, port) for name in services for port in BY_NAME[name].ports]:
        where, number = settings.address(port.name), settings.ports[port.name]
        with socket.socket(socket.AF_INET6 if ":" in settings.bind else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((settings.bind, number))
                trial.listen(1)
            except OSError as error:
                who = f" by {ports.holder(number)}" if error.errno == errno.EADDRINUSE else ""
                sys.exit(
                    files.printable(
                        f"sgl-init: ERROR: {service} cannot listen on {where}:"
                        f" {error.strerror}{who}; stop what holds it, or set another port"
                    )
                )


def close_prometheus_lock(run_id: str) -> None:
    """Make the file that Prometheus locks, so that only its owner can open and hold it.

    Prometheus' own would be open to the group (tsdb/fileutil/flock_unix.go), and a member could
    keep it from starting again. It takes a file that is there, with one warning in the log
    (tsdb/tsdbutil/dir_locker.go).
    """
    os.close(contract_locks.open_file(str(paths.PROMETHEUS / run_id / places.PROMETHEUS_LOCK)))


def begin_run(settings: Settings, services: list[str]) -> str:
    """A new run: its id, its folders, its configuration. The pointer is published once the services
    answer.
    """
    run_id = clock.new_id("container-run")
    for folder in (
        paths.run_dir(run_id) / "stages",
        paths.metrics(run_id),
        paths.PROMETHEUS / run_id,
        paths.JAEGER / run_id,
    ):
        folder.mkdir(parents=True)
    close_prometheus_lock(run_id)
    keyed.ensure()
    files.write_text(
        prometheus_config(run_id), render_prometheus_config(settings, run_id, services)
    )
    files.write_text(SUPERVISOR_CONFIG, render_supervisor_config(settings, services, run_id))
    files.write_text(paths.LIVE_RUN, run_id + "\n")
    return run_id


def render_supervisor_config(settings: Settings, services: list[str], run_id: str) -> str:
    log = paths.log(run_id)
    sections = [
        f"[supervisord]\nlogfile={log}\nlogfile_maxbytes=0\n"
        f"pidfile={paths.STATE}/supervisord.pid\n"
        f"umask={rights.umask():03o}\nuser={os.getuid()}\n"
    ]

    def program(name: str, command: list[str], priority: int, stop_wait_s: int) -> str:
        # supervisord expands % itself.
        line = shlex.join(command).replace("%", "%%")
        return (
            f"[program:{name}]\ncommand={line}\npriority={priority}\n"
            f"autorestart=true\nstartretries={_TRIES}\nstopwaitsecs={stop_wait_s}\n"
            f"stdout_logfile={log}\nstdout_logfile_maxbytes=0\nredirect_stderr=true\n"
        )

    for name in services:
        sections.append(program(name, COMMANDS[name](settings, run_id), BY_NAME[name].priority, 10))
    if settings.watch:
        sections.append(
            program(
                "watcher", [sys.executable, "-P", "-m", "sgl_admin.init.watcher", run_id], 800, 10
            )
        )
    # Last to start and first to end: it publishes the run once the services answer, and takes the
    # pointer back before they go.
    sections.append(
        program(
            "run_record",
            [sys.executable, "-P", "-m", "sgl_admin.init.publish", run_id],
            900,
            STOP_WAIT_S,
        )
    )
    return "\n".join(sections)


if __name__ == "__main__":
    main()
