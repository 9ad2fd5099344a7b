"""The hub's own client as a process of this host.

It stands for the throw-away container of the image: the same program and the same environment,
without Docker around it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from ansible_collections.slice_bench.sglang.plugins.module_utils._model_hub import (
    CLIENT,
    PROXY_VARIABLES,
    ContainerClient,
)

# requirements/dev.in has the version of roles/image/files/flavours/local/requirements.txt.
PYTHON = sys.executable


class ProcessClient(ContainerClient):
    """Each start is one process, in `started`; its arguments are in its list and environment."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.arguments: list[str] = []

    def running(self) -> bool:
        return bool(self.started) and self.started[-1].poll() is None

    def start(self, folder: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.arguments = [PYTHON, "-c", CLIENT, folder, *arguments]
        # No proxy stands between this host and itself.
        inherited = {
            name: value for name, value in os.environ.items() if name not in PROXY_VARIABLES
        }
        self.started.append(
            subprocess.Popen(
                self.arguments, env={**inherited, **environment}, stdin=subprocess.DEVNULL
            )
        )

    def stop(self) -> None:
        self.end()

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
