"""What the exit code of a status command says of a prep or a smoke."""

from __future__ import annotations

from typing import Any

from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_RESULT, EXIT_OK

MEANING = (
    f"Exit code: that with which it ended, {EXIT_BUSY} while it runs, {EXIT_NO_RESULT} where none"
    f" was begun in this run or it ended without a result. With --json: {EXIT_OK} wherever the"
    " document was printed."
)


def status_code(record: dict[str, Any] | None) -> int:
    """The exit code for the record of a prep or a smoke; None where none was begun."""
    if record is None:
        return EXIT_NO_RESULT
    if record["state"] == "running":
        return EXIT_BUSY
    return record["exit_code"] if record["exit_code"] in range(256) else EXIT_NO_RESULT
