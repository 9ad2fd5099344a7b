"""What a run must not leave behind, whatever became of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.integration.installation import Site, lock_is_free, port_is_free

_PATIENCE_S = 10


def settled(look: Callable[[], list[str]]) -> list[str]:
    """What a look still finds once what ends has ended: a worker writes its last record, and its
    caller returns, a moment before the worker's process and its locks are gone.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def leftovers(site: Site) -> list[str]:
    """Stray processes, ports, locks, markers and temp files of an installation on which nothing
    runs; each in words.
    """
    return settled(lambda: left_now(site))


def left_now(site: Site) -> list[str]:
    """The same, at this moment."""
    found = [
        f"temp file {path}"
        for path in site.root.rglob("*")
        if path.name.endswith(".tmp") or path.name.startswith(".sgl-new-")
    ]
    found += [f"marker {path}" for path in (site.profiles / ".in_progress").glob("*")]
    found += [
        f"lock {path} is held"
        for path in (site.profiles / ".locks").glob("*.lock")
        if not lock_is_free(path)
    ]
    container = site.inspect()
    running = container is not None and container["State"]["Running"]
    if running:
        found += [f"process {' '.join(line)}" for line in site.servers()]
    held = ["sglang"] if running else list(site.ports)
    found += [
        f"port {site.ports[name]} is taken" for name in held if not port_is_free(site.ports[name])
    ]
    if not running and site.pointer.exists() and container is None:
        found.append(f"pointer {site.pointer} without a container")
    return found
