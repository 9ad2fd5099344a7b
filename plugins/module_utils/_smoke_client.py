# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks sgl-admin in the container for a smoke, follows it by short polls, and says what came of
it.
"""

from __future__ import annotations

import json
from typing import Any

from ._contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_USAGE
from ._contract.texts import read_json_text
from ._prep_client import AdminClient, AdminError

_REFUSALS = {EXIT_USAGE: "usage", EXIT_NO_LIVE_RUN: "no live run or no prep", EXIT_BUSY: "busy"}


class SmokeClient(AdminClient):
    def start(self, scenario: dict[str, Any], server_timeout_s: float) -> dict[str, Any]:
        """Begin a smoke; returns its summary as it stands."""
        arguments = [
            "run",
            "--scenario",
            "-",
            "--detach",
            "--server-timeout",
            f"{server_timeout_s:g}",
        ]
        try:
            text = json.dumps(scenario)
        except (TypeError, ValueError, RecursionError) as error:
            raise AdminError(
                f"the scenario holds what JSON does not have ({error}): put dates and the like in"
                " quotes",
                2,
            ) from error
        return self._summary("the smoke did not begin", arguments, text)

    def follow(self, smoke_id: str, wait_s: float) -> dict[str, Any]:
        """The smoke's summary once it ends or after `wait_s` seconds. Raises AdminError when
        another took its place.
        """
        summary = self._summary(
            f"{smoke_id} cannot be followed any more",
            ["status", "--json", "--wait", f"{wait_s:g}"],
            "",
        )
        if summary["smoke_id"] != smoke_id:
            raise AdminError(
                f"{smoke_id} is gone: another smoke was begun meanwhile; run this again"
            )
        return summary

    def _summary(self, problem: str, arguments: list[str], text: str) -> dict[str, Any]:
        output = self.call(problem, ["smoke", *arguments], text, _REFUSALS)
        try:
            summary: dict[str, Any] = read_json_text(output)["smoke"]
            # Whatever is used of it, so that it is missed here and not later.
            if not isinstance(summary["smoke_id"], str) or not isinstance(summary["state"], str):
                raise TypeError
            if (
                not {"tests", "counts", "server", "summary", "errors", "exit_code"}
                <= summary.keys()
            ):
                raise KeyError("summary")
        except (ValueError, LookupError, TypeError) as broken:
            raise AdminError(
                f"sgl-admin's answer is no smoke's summary: {output[-300:]!r}; is the image older"
                " than this collection?"
            ) from broken
        return summary


def test_line(test: dict[str, Any]) -> str:
    """One test that has ended, for a person."""
    if error := test["error"]:
        return f"{test['name']}: {error['kind']} in turn {error['turn']}: {error['message']}"
    return (
        f"{test['name']}: {test['status']}, {test['usage']['completion_tokens']} tokens in"
        f" {test['latency_s']:.2f} s, {test['stop_reason']}"
    )


def failure(summary: dict[str, Any]) -> str | None:
    """Why the smoke failed; None when all tests passed."""
    if summary["state"] == "done":
        return None
    failed = [test_line(test) for test in summary["tests"] if test["error"]]
    reasons = [*failed, *map(str, summary["errors"])] or [
        f"it ended without a result ({summary['state']}); run it again"
    ]
    tail = "\n".join(map(str, summary["server"].get("log_tail") or []))
    return f"{summary['smoke_id']}: {'; '.join(reasons)}" + (f"\n{tail}" if tail else "")
