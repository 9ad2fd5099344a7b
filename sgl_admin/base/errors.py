"""What can go wrong: in a stage, by the contract's closed list of error types; and with a command,
by its exit code.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.contract.stages import ERROR_TYPES


class StageFailure(Exception):
    """A stage could not do its work; `log_tail` holds the last lines of the log that shows why,
    `artifacts` what its record keeps all the same.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        log_tail: list[str] | None = None,
        artifacts: dict[str, Any] | None = None,
    ) -> None:
        assert error_type in ERROR_TYPES, error_type
        super().__init__(message)
        self.error_type = error_type
        self.log_tail = log_tail or []
        self.artifacts = artifacts or {}


class Interrupted(StageFailure):
    """SIGTERM or SIGINT came: whatever runs is ended in order, and the rest is not begun."""

    def __init__(self) -> None:
        super().__init__(
            "interrupted", "the prep was told to stop; run it again to finish what is missing"
        )


class GpuUnavailable(RuntimeError):
    """A GPU is there, or should be, and does not answer; the message names the remedy."""


class Explained(Exception):
    """Its message names the thing and the remedy."""


class Refused(Explained):
    """The command cannot be done; the message names the thing and the remedy."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
