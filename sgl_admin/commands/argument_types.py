"""Types of command-line arguments; each raises argparse.ArgumentTypeError with what it takes. And
what a status command's exit code says.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.commands import request_fields
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_RESULT

seconds = request_fields.flag_type(request_fields.number, request_fields.seconds)

STATUS_CODES = (
    "Exit code: that with which it ended, 5 while it runs, 1 where none was begun in this run or it"
    " ended without a result. With --json: 0 wherever the document was printed."
)


def status_code(record: dict[str, Any] | None) -> int:
    """The exit code for the record of a prep or a smoke; None where none was begun."""
    if record is None:
        return EXIT_NO_RESULT
    if record["state"] == "running":
        return EXIT_BUSY
    return record["exit_code"] if record["exit_code"] in range(256) else EXIT_NO_RESULT
