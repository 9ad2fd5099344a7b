"""The watcher (sgl_watch): samples the host once a second while the container runs, and writes what
disturbed it, for the summary of a smoke, and what it sees, for Prometheus.

What goes wrong costs what cannot be seen, never the watching: it is said once in the run's log.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sgl_admin.base import files, paths, rights
from sgl_admin.base.errors import GpuUnavailable
from sgl_admin.base.processes import cpu_ticks
from sgl_admin.contract.texts import one_line, say
from sgl_admin.facts import devices, gpu_owners
from sgl_admin.facts.devices import GpuProcess, GpuSample
from sgl_admin.perf import conditions, watch, watch_metrics
from sgl_admin.perf.conditions import Conditions, CpuClocks, Moment
from sgl_admin.perf.windows import Windows

PERIOD_S = 1.0
# How often the CPUs' frequencies are read: each read may wake a CPU.
_CLOCKS_S = 10.0
# Of a process that uses a GPU; the driver lists some that only ask it.
_LEAST_MIB = 256

Gpus = Callable[[], list[GpuSample]]


def main() -> None:
    rights.begin()
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    watcher = Watcher(sys.argv[1])
    say("watcher: watching this host once a second", flush=True)
    watcher.run(ending)


class Watcher:
    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._windows = Windows.resumed(run_id)
        self._conditions = Conditions()
        self._cpus, self._cpus_due = CpuClocks(), 0.0
        self._listed: list[GpuProcess] = []
        self._own: set[int] = set()
        self._said: set[str] = set()
        self._due = time.monotonic()

    def run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            try:
                with _gpus() as (gpus, unread):
                    while not ending.is_set():
                        self.take(gpus, unread)
                        self._rest(ending)
            except GpuUnavailable as error:
                self.take(None, [f"the GPUs could not be read ({one_line(str(error), 200)})"])
                self._rest(ending)
        # A value that is not sampled any more would be scraped as one of now.
        watch_metrics.path(self._run_id).unlink(missing_ok=True)

    def _rest(self, ending: threading.Event) -> None:
        now = time.monotonic()
        self._due = self._due + PERIOD_S if now < self._due + PERIOD_S else now + PERIOD_S
        ending.wait(self._due - now)

    def take(self, gpus: Gpus | None, unread: list[str]) -> None:
        """Sample the host, and write what that says."""
        at_s, wall_s = time.monotonic(), time.time()
        if at_s >= self._cpus_due:
            self._cpus, self._cpus_due = conditions.cpu_clocks(), at_s + _CLOCKS_S
        sample = watch.take(at_s, cpu_ticks, gpus)
        foreign = self._foreign() if gpus else []
        if foreign is None:
            unread = [*unread, "the driver does not show the processes on the GPUs in a container"]
        moment = Moment(sample, wall_s, tuple(foreign or ()), self._cpus, tuple(unread))
        held = self._conditions.at(moment)
        for condition in held:
            if condition.kind == conditions.UNWATCHED:
                self._say_once(condition.what)
        self._windows.add(at_s, wall_s, held)
        text = watch_metrics.render(moment, held, self._conditions.others_percent)
        self._write(paths.watch(self._run_id), self._windows.text())
        self._write(watch_metrics.path(self._run_id), text)

    def _foreign(self) -> list[GpuProcess] | None:
        listed = devices.processes(least_mib=0)
        if [each.pid for each in listed] != [each.pid for each in self._listed] or not listed:
            self._own = gpu_owners.own()
        self._listed = listed
        found = gpu_owners.foreign(listed, self._own)
        return found and [each for each in found if each.memory_mib >= _LEAST_MIB]

    def _write(self, path: Path, text: str) -> None:
        try:
            files.write_text(path, text, durable=False)
        except OSError as error:
            self._say_once(f"{path.name} is not written: {files.reason(error)}")

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            say(f"watcher: WARNING: {what}", flush=True)


@contextmanager
def _gpus() -> Iterator[tuple[Gpus | None, list[str]]]:
    """What samples the GPUs, where the host has some, and what they do not tell."""
    if not devices.CONTROL.exists():
        yield None, []
        return
    with devices.watching() as gpus:
        yield gpus, devices.untold()


if __name__ == "__main__":
    main()
