"""A real OCI registry on a loopback port, Debian's docker-registry, that any process can start and
stop.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

_CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}
http: {{addr: {address}}}
log: {{level: error}}
"""
_START_LIMIT_S = 30.0


class Registry:
    """What it stores, its log and its process id are in `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        self._pid_file = folder / "pid"

    def start(self) -> None:
        """Returns when it answers. Raises RuntimeError with its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yml"
        config.write_text(
            _CONFIG.format(data=self.folder / "data", address=self.address), encoding="utf-8"
        )
        with open(self.folder / "log", "ab") as log:
            server = subprocess.Popen(
                ["docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(str(server.pid), encoding="utf-8")
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.answers():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the registry does not answer at {self.address}:"
                    f" {(self.folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """Returns when nothing answers any more; what it stores stays."""
        if self._pid_file.exists():
            try:
                os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
            except ProcessLookupError:
                pass
            self._pid_file.unlink()
        deadline = time.monotonic() + _START_LIMIT_S
        while self.answers() and time.monotonic() < deadline:
            time.sleep(0.1)

    def remove(self) -> None:
        """Stop it, and forget what it stores."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/v2/", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
