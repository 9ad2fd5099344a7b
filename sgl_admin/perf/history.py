"""The host's earlier measurements: profiles/perf/history.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.contract import perf
from sgl_admin.contract.perf import Judgement, Tolerance

REFERENCE = "the host's own history"
_MOST = 50
_SHAPE: files.Shape = {"entries": list}


def path() -> Path:
    return paths.PROFILES / "perf" / "history.json"


def read(warnings: list[str]) -> list[dict[str, Any]]:
    """Its entries. A file that cannot be read is set aside with a warning; an entry that is not
    one is left out.
    """
    document = files.read_or_set_aside(path(), _SHAPE, warnings)
    return [entry for entry in (document or {}).get("entries", []) if _is_entry(entry)]


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("subject"), str)
        and isinstance(entry.get("device_name"), str)
        and isinstance(entry.get("values"), dict)
        and all(perf.is_value(value) for value in entry["values"].values())
    )


def add(entries: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    document = {"schema_version": "1", "entries": [*entries, entry][-_MOST:]}
    files.write_json(path(), document, mode=0o600)


def judge(
    entries: list[dict[str, Any]],
    subject: str,
    device_name: str,
    values: dict[str, float],
    tolerance: Tolerance,
) -> tuple[list[Judgement], str | None]:
    """Each measurement beside those of the same subject that passed; or why there is nothing to
    compare with.
    """
    earlier = [entry for entry in entries if entry["subject"] == subject]
    honest = [entry["values"] for entry in earlier if entry.get("verdict") == perf.PASS]
    found = []
    for name, value in values.items():
        others = [each[name] for each in honest if name in each]
        if len(others) >= perf.LEAST_HISTORY:
            found.append(perf.beside(name, value, others, REFERENCE, tolerance))
    if found:
        return found, None
    devices = {entry["device_name"] for entry in entries} - {device_name}
    if devices and not earlier:
        return [], f"the history is that of {', '.join(sorted(devices))}, and not of {device_name}"
    return [], (
        f"the history has {len(honest)} measurements that passed, and a reference takes"
        f" {perf.LEAST_HISTORY}"
    )
