"""Arguments that several commands have."""

from __future__ import annotations

from typing import Any

from sgl_admin.commands import request_fields

SERVER_TIMEOUT_S: float = request_fields.FIELDS["server_timeout"].default
_seconds = request_fields.flag_type(request_fields.number, request_fields.seconds)


def add_seconds(parser: Any, flag: str, meaning: str, default: float = 0.0) -> None:
    """Add a flag that takes a number of seconds."""
    shown = " (default: %(default)s)" if default else ""
    parser.add_argument(flag, type=_seconds, default=default, metavar="S", help=f"{meaning}{shown}")
