"""Whether a container with this environment could start: asked in a container that is thrown away,
before a healthy one is stopped for the new one.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sgl_admin.base import clock, paths
from sgl_admin.contract.services import BY_NAME, LOOPBACK, SGLANG, Service
from sgl_admin.init.services import (
    COMMANDS,
    Settings,
    of_image,
    prometheus_config,
    render_prometheus_config,
)
from sgl_admin.serving.services import answers

_POLL_S = 0.05
_LONGEST = 240
_LOGGED_ERROR = re.compile(r'\berr="((?:\\.|[^"\\])*)"')


def problems() -> Iterator[str]:
    """What keeps the services from starting with the container's environment, each in a sentence.

    The services whose settings an operator chooses are started for a moment, at ports that are
    free and in a scratch folder; one that neither answers nor ends is left to the start itself.
    """
    try:
        settings = Settings.from_environment()
    except ValueError as error:
        yield f"a port of the container's environment is not a number: {error}"
        return
    services = of_image()
    yield from _shared_ports(settings, services)
    # Where everything is, in a root of this process's own.
    with tempfile.TemporaryDirectory() as scratch:
        paths.relocate(Path(scratch))
        for name in services:
            if BY_NAME[name].configured and (problem := _start(name, settings)):
                yield f"{name} does not start with these settings: {problem}"


def _shared_ports(settings: Settings, services: list[str]) -> Iterator[str]:
    used = [*(port.name for name in services for port in BY_NAME[name].ports), SGLANG.name]
    counts = Counter(settings.ports[name] for name in used)
    for number in sorted(number for number, count in counts.items() if count > 1):
        sharers = " and ".join(name for name in used if settings.ports[name] == number)
        yield f"port {number} is given to {sharers}: give each a port of its own"


def _start(name: str, settings: Settings) -> str | None:
    """Start the service; why it ended, or None once it answers."""
    run_id = clock.new_id("container-run")
    elsewhere = replace(settings, bind=LOOPBACK, ports=_free_ports(settings.ports))
    for folder in (paths.run_dir(run_id), paths.PROMETHEUS / run_id, paths.JAEGER / run_id):
        folder.mkdir(parents=True)
    prometheus_config(run_id).write_text(
        render_prometheus_config(elsewhere, run_id, []), encoding="utf-8"
    )
    with tempfile.TemporaryFile() as errors:
        try:
            # Prometheus' standard output is its whole usage.
            process = subprocess.Popen(
                COMMANDS[name](elsewhere, run_id),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        try:
            if not _ends(process, elsewhere, BY_NAME[name]):
                return None
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return _reason(said) or f"it ended with exit code {process.returncode}"


def _free_ports(names: Iterable[str]) -> dict[str, int]:
    with ExitStack() as held:
        sockets = {name: held.enter_context(socket.socket()) for name in names}
        for each in sockets.values():
            each.bind((LOOPBACK, 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def _ends(process: subprocess.Popen[bytes], settings: Settings, service: Service) -> bool:
    """Whether it ends before it answers."""
    deadline = time.monotonic() + service.ready_timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        port = settings.ports[service.ports[0].name]
        if answers(settings.reachable, port, service):
            return False
        time.sleep(_POLL_S)
    return process.poll() is not None


def _reason(said: str) -> str:
    """What a service says of its end: the error in it, or its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    # Of a line of Prometheus' log.
    logged = _LOGGED_ERROR.search(line)
    text = logged[1].replace('\\"', '"') if logged else line
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
