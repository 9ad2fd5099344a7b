# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the action plugins share that follow sgl-admin's work over the host's connection."""

from __future__ import annotations

import shlex

from .told_action import ToldAction

# What an answer raises whose parts are missing or of another type.
BROKEN_ANSWER = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
)


def breaks_the_contract(error: Exception) -> str:
    return (
        f"sgl-admin's answer breaks the contract: {repr(error)[:300]}; is the image older than this"
        " collection?"
    )


class AdminAction(ToldAction):
    def call(self, arguments: list[str], text: str) -> tuple[int, str, str]:
        """Run a command on the host, without a module; `text` is its standard input."""
        done = self._low_level_execute_command(
            shlex.join(arguments), in_data=text.encode() if text else None
        )
        return int(done["rc"]), str(done["stdout"]), str(done["stderr"])
