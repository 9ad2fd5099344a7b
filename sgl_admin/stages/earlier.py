"""Work that a release recorded whose signatures held less (before inputs.VERSION 2).

It is taken over where the record of a prep shows that it was made for just this server: the same
model, command line and environment, and nothing beside the model's config to tell how its weights
are quantised, which that release did not look at. Otherwise a server has to run with it once, which
compiles nothing that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin.base import paths
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.contract.texts import is_duration
from sgl_admin.records import caches, vouched
from sgl_admin.sglang import ENGINE

if TYPE_CHECKING:
    from sgl_admin.stages.base import Context, Stage


@dataclass(frozen=True)
class Work:
    """The files that an earlier release's record vouches for, and how long they took."""

    files: tuple[Path, ...]
    seconds: float | None


def work(stage: Stage, context: Context, signature: dict[str, Any]) -> Work | None:
    """An earlier release's work, where its record is of what this signature describes."""
    if not stage.server_made or context.model_files or signature.get("named_files"):
        return None
    recorded = {
        caches.digest(record["signature"]): record
        for record in stage.record(signature).all()
        if "inputs_version" not in record["signature"]
        and _agrees(record["signature"], signature)
        and vouched.problem(record) is None
    }
    if not recorded:
        return None
    for result in results():
        made = result["stages"].get(stage.name)
        if not isinstance(made, dict) or made.get("status") != "ok":
            continue
        record = recorded.get(caches.digest(made.get("signature") or {}))
        if record is not None and record["files"] and _same_server(result["run"], context):
            seconds = made.get("duration_s")
            return Work(
                tuple(paths.PROFILES / name for name in record["files"]),
                seconds if is_duration(seconds) else None,
            )
    return None


def results() -> Iterator[dict[str, Any]]:
    """What preps of this host ended with."""
    for path in sorted(paths.RUNS.glob("*/prep_result.json"), reverse=True):
        if result := caches.readable(path, RESULT_SHAPE):
            yield result


def _agrees(earlier: dict[str, Any], signature: dict[str, Any]) -> bool:
    """Whether two signatures say the same wherever both say something."""
    shared = earlier.keys() & signature.keys()
    return "device_name" in shared and caches.digest(
        {key: earlier[key] for key in shared}
    ) == caches.digest({key: signature[key] for key in shared})


def _same_server(run: dict[str, Any], context: Context) -> bool:
    """Whether a prep's server was the one that would run here, but for its port."""
    server = run.get("server")
    if run.get("model_identity") != context.model.identity or not isinstance(server, dict):
        return False
    argv, request = server.get("argv"), context.request
    if not isinstance(argv, list):
        return False
    try:
        port = ENGINE.port(argv)
    except (IndexError, TypeError, ValueError):
        return False
    expected = ENGINE.command(request.model, request.tp, port, list(context.arguments))
    env = server.get("env")
    if not isinstance(env, dict):
        return False
    return argv == expected and caches.settings(env) == caches.settings(dict(context.environment))
