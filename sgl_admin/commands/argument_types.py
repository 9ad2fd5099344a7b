"""Types of command-line arguments; each raises argparse.ArgumentTypeError with what it takes."""

from __future__ import annotations

from sgl_admin.commands import request_fields

seconds = request_fields.flag_type(request_fields.number, request_fields.seconds)
