# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an action says. Hosts and their containers put words into it: none of them has a control
character, or makes a line of its own.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils._contract.texts import clean, printable


class ToldAction(ActionBase):
    """An action whose answer and whose lines meanwhile may be shown on a terminal; a subclass has
    `act` in place of `run`.
    """

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self._vars: dict[str, Any] = task_vars or {}
        answer: dict[str, Any] = clean({**super().run(tmp, task_vars), **self.act()})
        return answer

    def act(self) -> dict[str, Any]:
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Show a line, with the host that it is about."""
        host = self._vars.get("inventory_hostname", "localhost")
        self._display.display(printable(f"{host}: {text}"))

    def warn(self, text: object) -> None:
        self._display.warning(printable(str(text)))
