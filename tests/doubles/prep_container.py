"""A double of the observability container, on this machine: what `docker start` and `docker exec`
begin in it.

Its init and its sgl-admin are the product's, on the host's own tree. It stands for the image around
them: of the services there is a Prometheus that says it is ready and no more, and no SGLang, so
what needs a server cannot be done in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FLAVOUR = ROOT / "roles" / "image" / "files" / "flavours" / "local" / "flavour.json"
_EXAMPLE = ROOT / "tests" / "contract" / "examples" / "manifest.json"
_READY = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 28\r\nConnection: close\r\n\r\nPrometheus Server is"
    b" Ready.\n"
)
# A proof that Prometheus stands by: all that it has is the sample which proved it.
_PROVEN = json.loads((_EXAMPLE.parent / "prep_result.json").read_text(encoding="utf-8"))
PROOF = {
    name: _PROVEN["telemetry_probe"][name]
    for name in ("ok", "reason", "sample_count", "tokens_expected", "tokens_seen", "window")
}
_UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# What sgl-init does, but become supervisord: the services are this double's. Docker mounts no file
# that tells the container's id.
_INIT = """
import sys, threading
from sgl_admin.init import publish, start
from sgl_admin.init.services import Settings, of_image
publish.container_id = lambda: sys.argv[1]
publish.publish(start.begin_run(Settings.from_environment(), of_image()), threading.Event())
"""
# sgl-admin with a request on standard input, whose model has the path of the container.
_REQUEST = """
import io, sys
from sgl_admin.commands import main
root, text = sys.argv.pop(1), sys.stdin.read()
text = text.replace('"/models/', f'"{root}/models/')
sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
sys.exit(main.main(sys.argv[1:]))
"""


class PrepContainer:
    """`root` is the host's tree. `proofs` counts how often Prometheus was asked whether it is
    ready.
    """

    # Whose start the manifest names: the machine's first process is seen from the host as the
    # container's would be.
    pid = 1

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proofs = 0

    def environment(self) -> dict[str, str]:
        """The image's: every path is below the tree, where the container would see it at its
        mounts.
        """
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**kept, "PYTHONPATH": str(ROOT), "SGL_ADMIN_ROOT": str(self.root)}

    def inside(self, word: str) -> str:
        """An argument as the container's mount of the models would have it."""
        return str(self.root / word.lstrip("/")) if word.startswith("/models/") else word

    async def start(self, container_id: str, environment: dict[str, str]) -> None:
        state = self.root / "state"
        state.mkdir(exist_ok=True)
        flavour = {**_json(_FLAVOUR), "services": ["prometheus"]}
        (state / "flavour.json").write_text(json.dumps(flavour), encoding="utf-8")
        # What the image's build records of it.
        facts = (
            "flavour",
            "architecture",
            "image_inputs",
            "base_image",
            "git_revision",
            "versions",
        )
        (state / "image.json").write_text(
            json.dumps({name: _json(_EXAMPLE)[name] for name in facts}), encoding="utf-8"
        )
        await asyncio.start_server(
            self._prometheus, "127.0.0.1", int(environment["SGL_PROMETHEUS_PORT"])
        )
        init = await self._begin(["-c", _INIT, container_id], environment, DEVNULL, DEVNULL)
        if await init.wait():
            raise RuntimeError(f"the init of {self.root} failed")

    async def execute(self, words: list[str], environment: dict[str, str]) -> Process:
        if words[0] != "sgl-admin":
            program = ["-c", f"raise SystemExit('no {words[0]} in this container')"]
        elif "--request" in words:
            program = ["-c", _REQUEST, str(self.root)]
        else:
            program = ["-m", "sgl_admin"]
        return await self._begin([*program, *map(self.inside, words[1:])], environment, PIPE, PIPE)

    async def _begin(
        self, words: list[str], environment: dict[str, str], stdin: int, stdout: int
    ) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            *words,
            cwd=self.root,
            env={**self.environment(), **environment},
            stdin=stdin,
            stdout=stdout,
            stderr=PIPE if stdout == PIPE else None,
        )

    async def _prometheus(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            self.proofs += asked == b"/-/ready"
            if asked.startswith(b"/api/v1/query?"):
                writer.write(_samples())
            else:
                writer.write(_READY if asked == b"/-/ready" else _UNKNOWN)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _samples() -> bytes:
    """The sample of the proof, as Prometheus answers with it."""
    window = PROOF["window"]
    sample = [window["until"], str(window["baseline"] + PROOF["tokens_seen"])]
    series = [{"metric": {"__name__": "sglang:prompt_tokens_total"}, "values": [sample]}]
    body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}})
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
