"""The server that a benchmark uses: exactly the prepared one, started detached, and ended with all
its processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, files, locks, paths
from sgl_admin.base.command import Command
from sgl_admin.base.errors import Refused, StageFailure
from sgl_admin.base.processes import end_noted, is_running, start_time
from sgl_admin.contract import places
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_SERVER_FAILED
from sgl_admin.records import caches, job
from sgl_admin.records import prepared as servers
from sgl_admin.records import smokes as smoke
from sgl_admin.records.run import Run
from sgl_admin.serving import read_ahead
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE

# Held while a server is started or stopped, and by a prep or a smoke as long as it has one of its
# own; and by the server that `sgl-admin server start` started, as long as anything of it lives.
LOCK, SERVES = places.LOCK_SERVER, places.LOCK_SERVING
RUNNING, ENDED, STOPPED = "running", "ended", "stopped"
_SHAPE: files.Shape = {
    "server_id": str,
    "state": str,
    "pgid": int,
    "start_ticks": str,
    "argv": list,
    "env": dict,
    "port": int,
    "log_start": int,
}
_LOCK_TIMEOUT_S = 10.0
_PREPARE = "prepare it first (playbooks/prep.yml, or sgl-admin caches ensure)"
_HELD = "a prep, a smoke or another command has the place of the server"


@dataclass(frozen=True)
class Prepared:
    """What a prep says of its server: its command, with the environment beyond the container's own,
    its model, and by which name records of caches have it; that is empty in results of releases
    before 1.2. `start_env` is beside the command's environment.
    """

    command: Command
    model: str
    served: str
    start_env: dict[str, str]

    @property
    def port(self) -> int:
        return ENGINE.port(self.command.argv)

    def server(self, run_id: str, **options: Any) -> Server:
        """The server to be started, or one that runs already: `options` are those of Server."""
        log = paths.log(run_id)
        return Server(self.command, self.port, log, start_env=self.start_env, **options)


def prepared(live: Run, identity: str | None = None) -> Prepared:
    """The server of the run's latest prep, or the one of an earlier prep with this identity (or
    the beginning of it). Raises Refused where none was made, or its record cannot be read.
    """
    try:
        server, model, source = (
            _of_latest_prep(live.run_id) if identity is None else _of_identity(live, identity)
        )
        argv, env = (
            (server.get("argv"), server.get("env")) if isinstance(server, dict) else (None, None)
        )
    except ValueError as error:
        raise Refused(EXIT_NO_LIVE_RUN, f"{error}; {_PREPARE}") from error
    start_env = server.get(servers.START_ENV, {}) if isinstance(server, dict) else {}
    texts = isinstance(argv, list) and all(isinstance(word, str) for word in argv)
    if not (texts and isinstance(model, str) and _are_texts(env) and _are_texts(start_env)):
        raise Refused(EXIT_NO_LIVE_RUN, f"{source} names no server; {_PREPARE}")
    try:
        command = servers.command({**server, "run_id": live.run_id})
    except ValueError as error:
        raise Refused(EXIT_NO_LIVE_RUN, f"{error}; {_PREPARE}") from error
    made = Prepared(command, model, str(server.get("served", "")), start_env)
    try:
        if made.port not in range(1, 2**16):
            raise ValueError
    except (ValueError, IndexError):
        raise Refused(
            EXIT_NO_LIVE_RUN, f"the server that {source} names has no port; {_PREPARE}"
        ) from None
    return made


def _are_texts(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(word, str) for word in (*found, *found.values())
    )


def _of_latest_prep(run_id: str) -> tuple[Any, Any, Path]:
    run = servers.latest(run_id)
    return run.get("server"), run.get("model"), paths.prep_result(run_id)


def _of_identity(live: Run, identity: str) -> tuple[Any, Any, Path]:
    record = servers.read(live.run_id, identity)
    return record, record["model"], servers.path(live.run_id, record["identity"])


def read(run_id: str) -> dict[str, Any] | None:
    """The record of the run's server, with its state as it is now; None where none was started, or
    what is there is no record of one.
    """
    record = files.read_or_set_aside(paths.server(run_id), _SHAPE, [])
    if record is not None and not _usable(record):
        return None
    if (
        record is not None
        and record["state"] == RUNNING
        and not is_running(record["pgid"], record["start_ticks"])
    ):
        record["state"] = ENDED
    return record


def _usable(record: dict[str, Any]) -> bool:
    words = (*record["argv"], *record["env"].values())
    known = record["state"] in (RUNNING, ENDED, STOPPED)
    return (
        known
        and record["port"] in range(1, 2**16)
        and record["log_start"] in range(2**53)
        and all(isinstance(word, str) for word in words)
    )


def start(live: Run, wanted: Prepared) -> tuple[dict[str, Any], bool]:
    """Start the prepared server where it does not run; returns its record, and whether it was
    started now.

    It is not healthy yet. Raises Refused: another server of ours runs, or its port is taken.
    """
    settle_dead(live.run_id)
    with locked():
        # Of a command that was killed; no other writes this record.
        files.sweep_temporaries(paths.run_dir(live.run_id), paths.server(live.run_id).name)
        record = read(live.run_id)
        if record is not None and record["state"] == ENDED:
            # Its leader is gone; what is left of it may hold the GPU.
            end_noted(record["pgid"], record["start_ticks"])
        if record is not None and record["state"] == RUNNING:
            if wanted.command.is_that_of(record):
                return record, False
            raise Refused(
                EXIT_BUSY,
                f"{record['server_id']} runs with other settings than the prepared ones:"
                f" {' '.join(record['argv'])}; stop it (sgl-admin server stop) and run this again",
            )
        if (serves := locks.try_lock(SERVES)) is None:
            raise Refused(
                EXIT_BUSY,
                "a server of another container of this host runs on these caches, or one of an"
                f" earlier run (its lock is held by {locks.holder(SERVES)}); stop it first",
            )
        server = wanted.server(live.run_id, inherits=(serves,))
        try:
            server.start()
        except StageFailure as failure:
            raise Refused(EXIT_SERVER_FAILED, str(failure)) from failure
        finally:
            os.close(serves)
        try:
            record = _began(live, wanted, server)
            files.write_json(paths.server(live.run_id), record)
        except BaseException:
            server.stop()
            raise
        server.release()
        read_ahead.begin(wanted.model, wanted.command.argv, record["pgid"], record["start_ticks"])
        caches.note_use(wanted.served)
        return record, True


def _began(live: Run, wanted: Prepared, server: Server) -> dict[str, Any]:
    """The record of a server that begins."""
    assert server.group is not None
    return {
        "schema_version": "1",
        "server_id": clock.new_id("server"),
        "run_id": live.run_id,
        "state": RUNNING,
        "pgid": server.group,
        "start_ticks": start_time(server.group),
        **wanted.command.shown,
        servers.START_ENV: wanted.start_env,
        "model": wanted.model,
        "port": wanted.port,
        "log_start": server.log_start,
        "started_at": clock.utc(),
    }


def wait(
    run_id: str, timeout_s: float, tick: Callable[[float], None] = lambda waited_s: None
) -> tuple[dict[str, Any] | None, bool]:
    """The server's record and whether it is healthy: as soon as it is, when it has ended, or after
    so many seconds.
    """
    began = time.monotonic()
    while True:
        record = read(run_id)
        healthy = (
            record is not None and record["state"] == RUNNING and handle(run_id, record).healthy()
        )
        waited_s = time.monotonic() - began
        if healthy or record is None or record["state"] != RUNNING or waited_s >= timeout_s:
            return record, healthy
        tick(waited_s)
        time.sleep(0.1)


def stop(run_id: str) -> dict[str, Any] | None:
    """End the run's server, so that its port is free and no process is left; returns its record,
    None where none was started.

    Raises StageFailure(cleanup_failed) where a process outlives SIGKILL.
    """
    if read(run_id) is None:
        return None
    with locked():
        files.sweep_temporaries(paths.run_dir(run_id), paths.server(run_id).name)
        record = read(run_id)
        if record is None or record["state"] == STOPPED:
            return record
        end_noted(record["pgid"], record["start_ticks"])
        record.update(state=STOPPED, stopped_at=clock.utc())
        files.write_json(paths.server(run_id), record)
        return record


def handle(run_id: str, record: dict[str, Any]) -> Server:
    """The server of a record, to be asked and for its log; it is not this process's child."""
    return Server(
        Command.public(record["argv"], record["env"]),
        record["port"],
        paths.log(run_id),
        record["log_start"],
        group=record["pgid"],
    )


def unhealthy(run_id: str, record: dict[str, Any] | None, waited_s: float) -> StageFailure:
    """Why the server of a record, as `wait` gave it, is not healthy."""
    if record is None or record["state"] == STOPPED:
        return StageFailure(
            "server_start_failed", "the server was stopped while it started; start it again"
        )
    server = handle(run_id, record)
    if record["state"] == ENDED:
        said = server.obituary(f"{record['server_id']} ended while starting")
        return StageFailure(server.death().error_type, said, server.log_tail())
    return StageFailure(
        "server_unhealthy_timeout",
        f"{record['server_id']} is not healthy after {waited_s:.0f} s (it goes on: sgl-admin server"
        f" status --wait 600, or sgl-admin server stop); the log is {server.log_name()}",
        server.log_tail(),
    )


def settle_dead(run_id: str) -> None:
    """End what a prep or a smoke that was killed left of its server; its record says then that it
    ended.
    """
    with locks.tried(job.LOCK) as lock:
        if lock is not None:
            job.settle(run_id, [])
    if smoke.latest(run_id):
        with locks.tried(smoke.LOCK) as lock:
            if lock is not None:
                smoke.settle(run_id)


def claim(run_id: str) -> int:
    """Take the place of the run's server, for a prep or a smoke that starts one of its own; returns
    a descriptor to close after it.

    Raises StageFailure(port_busy) where another has it.
    """
    try:
        lock = locks.acquire(LOCK, _LOCK_TIMEOUT_S)
    except TimeoutError as error:
        raise StageFailure(
            "port_busy",
            f"{_HELD}, and runs a server of its own: wait for its end, and run this again",
        ) from error
    try:
        _demand_no_server(read(run_id))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _demand_no_server(record: dict[str, Any] | None) -> None:
    """Raises StageFailure(port_busy) where a server was started for a benchmark, and lives: its
    lock tells, whatever the record says.
    """
    if record is not None and record["state"] == ENDED:
        # Its leader is gone; what is left of it may hold the GPU.
        end_noted(record["pgid"], record["start_ticks"])
    if record is not None and record["state"] == RUNNING:
        words = f"{record['server_id']} serves at port {record['port']}"
    elif locks.held(SERVES):
        words = (
            "a server that was started for a benchmark holds"
            f" {paths.to_host(paths.LOCKS) or paths.LOCKS}/{SERVES}.lock"
        )
    else:
        return
    raise StageFailure("port_busy", f"{words}: stop it first (sgl-admin server stop)")


@contextmanager
def locked() -> Iterator[None]:
    """Held while a server is started or stopped. Raises Refused where another does so for too
    long.
    """
    try:
        with locks.locked(LOCK, _LOCK_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise Refused(
            EXIT_BUSY,
            f"{_HELD}: wait for its end (sgl-admin status --watch, sgl-admin smoke status --wait"
            " 600)",
        ) from error
