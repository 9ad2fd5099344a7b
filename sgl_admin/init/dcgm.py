"""Runs dcgm-exporter with the rights and the engine that there are, looked at again at each of its
starts, and holds it to its page.

Profiling metrics need CAP_SYS_ADMIN. devuser can get it by a file capability alone, and a program
that has one outside the container's bounding set does not start at all: so the image has
dcgm-exporter twice, once with the capability, and one of them is chosen here. The flags are those
of dcgm-exporter 4.4.1-4.5.2.

Its /health says 200 whatever it collects (internal/pkg/server/server.go). Where a GPU cannot be
profiled, it goes on without those metrics ("Not collecting DCP metrics: ...", pkg/cmd/app.go).
Where the profiling metrics cannot be watched, it drops all metrics of the GPU ("Not collecting GPU
metrics; ...", the same file) and its page is empty, or it ends (collector_factory.go). Then the
copy without profiling is started in its place.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sgl_admin.base import files, http_client, paths, rights
from sgl_admin.contract.services import BY_NAME, LOOPBACK
from sgl_admin.contract.texts import say
from sgl_admin.init.services import Settings

WARNING = (
    "dcgm-exporter lacks cap_sys_admin; start container with --cap-add SYS_ADMIN for profiling"
    " metrics"
)
PLAIN = "/usr/local/bin/dcgm-exporter"
PRIVILEGED = "/usr/local/lib/sgl/dcgm-exporter"
DCGMI = "/usr/bin/dcgmi"
# Where nv-hostengine listens by default.
HOST_ENGINE_PORT = 5555
COUNTERS = Path("/etc/dcgm-exporter")
_CAP_SYS_ADMIN = 21
_COLLECT_INTERVAL_MS = 1000
_PROFILING = "DCGM_FI_PROF_"
_SERVICE = BY_NAME["dcgm_exporter"]
# How long the first page may take, then the GPUs' metrics on it, then the profiling metrics.
_PATIENCE_S = (25.0, 8.0, 5.0)
_END_S = 5.0
_POLL_S = 0.2
_LONGEST = 200
_NO_RIGHT = "profiling metrics need SYS_ADMIN"
# What dcgm-exporter says of metrics that it leaves out, and of its end.
_LEFT_OUT = re.compile(r'Not collecting (?:DCP|GPU) metrics[:;] ([^"\n]+)')
_FATAL = re.compile(r'level=(?:fatal|error) msg="((?:\\.|[^"\\])*)"', re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Whose engine is asked, whether it may profile, and why not. `settled` once the page has shown
    that it is so.
    """

    host_engine: bool
    profiling: bool
    reason: str = ""
    settled: bool = False


def main() -> None:
    rights.begin()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    sys.exit(run(choose(status, *host_engine()), Settings.from_environment()))


def run(choice: Choice, settings: Settings) -> int:
    """Run the exporter of a choice to its end, or the plain one where that has no metrics of the
    GPUs. Returns its exit code.
    """
    _write_note(choice)
    with Exporter(choice, settings) as exporter:
        settled = settle(exporter, choice, settings)
        if settled is not None:
            _write_note(replace(settled, settled=True))
        if settled is not None or not choice.profiling:
            return exporter.wait()
        code = exporter.code
    what = (
        f"dcgm-exporter ended with exit code {code} with them"
        if code is not None
        else "dcgm-exporter had no metrics of the GPUs with them"
    )
    said = exporter.left_out or exporter.fatal
    reason = f"no profiling metrics: {what}{f' ({said})' if said else ''}"
    return run(Choice(False, False, reason), settings)


class Exporter:
    """A dcgm-exporter that runs; what it logs goes to this process's output."""

    def __init__(self, choice: Choice, settings: Settings) -> None:
        argv = command(choice, settings)
        # What it said of metrics that it leaves out, and of its end.
        self.left_out = self.fatal = ""
        what = "profiling" if choice.profiling else choice.reason
        say(f"dcgm_exporter: {what}: {' '.join(argv)}", flush=True)
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_ignored: object) -> None:
        if self.code is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.wait()

    def _pass_on(self) -> None:
        for line in self._process.stdout or ():
            say(line.rstrip("\r\n"), flush=True)
            if found := _LEFT_OUT.search(line):
                self.left_out = found[1].strip()[:_LONGEST]
            if found := _FATAL.search(line):
                self.fatal = found[1].strip()[:_LONGEST]

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code, once all that it logged has been passed on."""
        code = self._process.wait()
        self._reader.join(timeout=_END_S)
        return code if code >= 0 else 128 - code


def settle(exporter: Exporter, choice: Choice, settings: Settings) -> Choice | None:
    """The choice as the page shows it; None where there are no metrics of the GPUs in time."""
    reached, since = 0, time.monotonic()
    while exporter.code is None:
        text = page(settings)
        profiles = not choice.profiling or f"\n{_PROFILING}" in text
        stage = 2 if _SERVICE.shows in text else 1 if text else 0
        if stage == 2 and profiles:
            return choice
        if stage != reached:
            reached, since = stage, time.monotonic()
        if time.monotonic() - since >= _PATIENCE_S[stage]:
            reason = f"no profiling metrics: {exporter.left_out or 'dcgm-exporter gives none'}"
            return replace(choice, profiling=False, reason=reason) if stage == 2 else None
        time.sleep(_POLL_S)
    return None


def page(settings: Settings) -> str:
    """What Prometheus would scrape; nothing where it does not answer."""
    port = settings.ports[_SERVICE.ports[0].name]
    try:
        status, text = http_client.ask(settings.reachable, port, _SERVICE.page, 2)
    except http_client.NO_ANSWER:
        return ""
    return f"\n{text.decode(errors='replace')}" if status == 200 else ""


def choose(status: str, host_engine: bool, problem: str) -> Choice:
    """`status` is this process's /proc/self/status; `problem` is why an engine of the host cannot
    be asked. The host's own engine profiles by its own rights.
    """
    if host_engine:
        return Choice(True, True)
    if problem:
        return Choice(False, False, problem)
    if may_gain(status, _CAP_SYS_ADMIN):
        return Choice(False, True)
    return Choice(False, False, _NO_RIGHT)


def may_gain(status: str, capability: int) -> bool:
    """Whether a file capability takes effect: it is in the bounding set, and nothing forbids new
    privileges.
    """
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return (
        bounding is not None
        and bool(int(bounding[1], 16) >> capability & 1)
        and not re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    )


def host_engine() -> tuple[bool, str]:
    """Whether an nv-hostengine of the host, whose network this is, can be asked; and why not where
    something has its port: two engines that profile one GPU get in each other's way.
    """
    try:
        socket.create_connection((LOOPBACK, HOST_ENGINE_PORT), timeout=1).close()
    except OSError:
        return False, ""
    # DCGM's own client can tell. That of DCGM 4 cannot ask an engine of DCGM 3, as on DGX OS
    # (NVIDIA/dcgm-exporter#106).
    discovery = [DCGMI, "discovery", "--host", f"{LOOPBACK}:{HOST_ENGINE_PORT}", "--list"]
    try:
        done = subprocess.run(
            discovery,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        words = f"{DCGMI}: {getattr(error, 'strerror', None) or 'no answer within 10 s'}"
    else:
        if done.returncode == 0:
            return True, ""
        lines = done.stdout.decode(errors="replace").split("\n")
        words = next((line.strip() for line in lines if line.strip()), "")[:_LONGEST]
        words = words or f"exit code {done.returncode}"
    return False, (
        f"no profiling metrics: what listens at {LOOPBACK}:{HOST_ENGINE_PORT} is no host engine of"
        f" DCGM 4 ({words}), and may profile the GPUs itself: update datacenter-gpu-manager on the"
        " host to 4, or stop it (`systemctl stop nvidia-dcgm`), and restart the container"
    )


def command(choice: Choice, settings: Settings) -> list[str]:
    """dcgm-exporter's argument list; its list of metrics is written beside. Raises OSError."""
    counters = paths.STATE / "dcgm-counters.csv"
    source = COUNTERS / ("dcp-metrics-included.csv" if choice.profiling else "default-counters.csv")
    # The default list names some profiling metrics too.
    lines = [
        line
        for line in source.read_text(encoding="utf-8").splitlines()
        if choice.profiling or not line.startswith(_PROFILING)
    ]
    files.write_text(counters, "\n".join(lines) + "\n", mode=0o644)
    argv = [
        PRIVILEGED if choice.profiling and not choice.host_engine else PLAIN,
        f"--address={settings.address('dcgm_exporter')}",
        f"--collectors={counters}",
        f"--collect-interval={_COLLECT_INTERVAL_MS}",
    ]
    return (
        [*argv, f"--remote-hostengine-info={LOOPBACK}:{HOST_ENGINE_PORT}"]
        if choice.host_engine
        else argv
    )


def chosen() -> Choice:
    """What the latest start of dcgm-exporter chose."""
    note: dict[str, Any] = files.read_json(_note()) or {}
    reason = note.get("reason")
    return Choice(
        note.get("host_engine") is True,
        note.get("profiling") is True,
        reason if isinstance(reason, str) and reason else _NO_RIGHT,
        note.get("settled") is True,
    )


def warning(choice: Choice) -> str:
    """What the manifest warns of where there are no profiling metrics."""
    return WARNING if choice.reason == _NO_RIGHT else f"dcgm_metrics: {choice.reason}"


def _write_note(choice: Choice) -> None:
    files.write_json(_note(), asdict(choice), mode=0o644)


def _note() -> Path:
    return paths.STATE / "dcgm-exporter.json"


if __name__ == "__main__":
    main()
