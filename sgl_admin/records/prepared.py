"""The servers that the preps of a run prepared, one record for each: how it is started, and the
proof of it. The latest is the one that the aggregate prep_result.json is of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.command import SETTINGS, Command
from sgl_admin.contract.records import RESULT_SHAPE

SHAPE: files.Shape = {
    "run_id": str,
    "identity": str,
    "model": str,
    "argv": list,
    "env": dict,
    "telemetry_probe": dict,
}
# What a server has at its start beside the environment that says which one it is.
START_ENV = "start_env"
_FOLDER = "prepared"
# What only the service user reads.
_PRIVATE_MODE = 0o600


def short(identity: str) -> str:
    """The 16 hexadecimal digits by which a person names a server."""
    return identity.rpartition(":")[2][:16]


def folder(run_id: str) -> Path:
    return paths.run_dir(run_id) / _FOLDER


def path(run_id: str, identity: str) -> Path:
    return folder(run_id) / f"{short(identity)}.json"


def write(run_id: str, section: dict[str, Any], proof: dict[str, Any], command: Command) -> None:
    """Of the server in a result's section `run`. Values of the command that are not shown go to a
    file of their own, which only its owner may read. Raises OSError.
    """
    server = section["server"]
    if command.hidden:
        private = {"schema_version": "1", "argv": command.argv, "env": command.env}
        files.write_json(_private(run_id, server["identity"]), private, mode=_PRIVATE_MODE)
    document = {
        "schema_version": "1",
        "run_id": run_id,
        "identity": server["identity"],
        **{name: section[name] for name in ("prep_id", "profile", "model")},
        "argv": server["argv"],
        "env": server["env"],
        **{name: server[name] for name in (SETTINGS, "served", START_ENV) if name in server},
        "telemetry_probe": proof,
    }
    files.write_json(path(run_id, server["identity"]), document)


def latest(run_id: str) -> dict[str, Any]:
    """What the run's latest prep says of its run, the server and the model among it. Raises
    ValueError where there was no prep, or its record cannot be read.
    """
    result = files.read_record(paths.prep_result(run_id), RESULT_SHAPE)
    if result is None:
        raise ValueError(f"nothing was prepared in {run_id} yet")
    run: dict[str, Any] = result["run"]
    return run


def read(run_id: str, name: str) -> dict[str, Any]:
    """The record of the server with this identity, or the beginning of it in hexadecimal. Raises
    ValueError where no server of the run, or more than one, has it, or it cannot be read.
    """
    digits = name.rpartition(":")[2]
    found = [place for place in folder(run_id).glob("*.json") if place.stem.startswith(digits[:16])]
    unknown = ValueError(f"no server {name} was prepared in {run_id}")
    if not digits or len(found) != 1:
        raise unknown
    record = files.read_record(found[0], SHAPE)
    if record is None or record["run_id"] != run_id or short(record["identity"]) != found[0].stem:
        raise unknown
    env = record["env"]
    if not all(isinstance(word, str) for word in (*record["argv"], *env, *env.values())):
        raise ValueError(f"{found[0]} has no valid argv or env")
    return record


def command(record: dict[str, Any]) -> Command:
    """The command of a record, as `read` gave it. Raises ValueError where its hidden values cannot
    be read, or belong to another server.
    """
    if SETTINGS not in record:
        return Command.public(record["argv"], record["env"])
    place = _private(record["run_id"], record["identity"])
    private = files.read_record(place, {"argv": list, "env": dict})
    if private is None:
        raise ValueError(f"{place} is gone, which has the values that {record['identity']} hides")
    words = (*private["argv"], *private["env"], *private["env"].values())
    whole = Command(private["argv"], private["env"], record["argv"], record["env"])
    if not all(isinstance(word, str) for word in words) or not whole.is_that_of(record):
        raise ValueError(f"{place} belongs to another server than {record['identity']}")
    return whole


def same_command(run_id: str, shown: dict[str, Any]) -> Command | None:
    """The command of which another record of the run has argv and env; None where no record that
    can be read is of it.
    """
    for place in folder(run_id).glob("*.json"):
        try:
            if (whole := command(read(run_id, place.stem))).is_that_of(shown):
                return whole
        except (OSError, ValueError):
            continue
    return None


def _private(run_id: str, identity: str) -> Path:
    return folder(run_id) / f"{short(identity)}.private"
