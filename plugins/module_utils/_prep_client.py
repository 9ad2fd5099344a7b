# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks sgl-admin in the container for a prep, follows it by short polls, and says what came of
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ._contract.exit_codes import REFUSALS
from ._contract.texts import read_json_text
from ._docker_cli import InputRunner, explain


class AdminError(Exception):
    """The work did not begin, or sgl-admin's answer cannot be understood; the message is its own,
    with its remedy.

    ``exit_code`` is sgl-admin's, where it gave one other than 0.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class AdminClient:
    """Asks sgl-admin in the container."""

    def __init__(self, run: InputRunner, container: str) -> None:
        self._run = run
        self._container = container

    def call(
        self, problem: str, arguments: list[str], text: str, refusals: Mapping[int, str]
    ) -> str:
        """What it prints. Raises AdminError with the problem, and with the name of its exit code
        among the refusals.
        """
        interactive = ["--interactive"] if text else []
        code, output, error = self._run(
            ["docker", "exec", *interactive, self._container, "sgl-admin", *arguments], text
        )
        if code:
            message = explain(error.strip() or output.strip()).removeprefix("sgl-admin: ")
            raise AdminError(
                f"{problem} ({refusals.get(code, f'exit code {code}')}): {message}", code
            )
        return output


class PrepClient(AdminClient):
    def start(
        self, request: dict[str, Any], wait_s: float, standing: bool = False
    ) -> dict[str, Any]:
        """Begin a prep, or attach to the same one; returns {job, result} once it ends or after
        `wait_s` seconds.

        With `standing`, a prep that has something to do is not begun: its plan is returned.
        """
        options = ["--detach", "--wait", f"{wait_s:g}", *(["--standing"] if standing else [])]
        return self._envelope("the prep did not begin", *self._ensure(request, *options))

    def follow(self, prep_id: str, wait_s: float) -> dict[str, Any]:
        """{job, result} of the prep once it ends or after `wait_s` seconds. Raises AdminError when
        another took its place.
        """
        envelope = self._envelope(
            f"{prep_id} cannot be followed any more, run this again",
            ["status", "--json", "--wait", f"{wait_s:g}"],
            "",
        )
        if envelope["job"] is None or envelope["job"].get("prep_id") != prep_id:
            raise AdminError(
                f"{prep_id} is gone: the container was restarted meanwhile; run this again"
            )
        return envelope

    def dry_run(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a prep would do."""
        arguments, text = self._ensure(request, "--dry-run", "--json")
        output = self.call("sgl-admin cannot say what a prep would do", arguments, text, REFUSALS)
        return self._object(output[: output.rindex("}") + 1] if "}" in output else output)

    @staticmethod
    def _ensure(request: dict[str, Any], *options: str) -> tuple[list[str], str]:
        """The command that takes the request, and its standard input."""
        return ["caches", "ensure", "--request", "-", *options], json.dumps(request)

    def _envelope(self, problem: str, arguments: list[str], text: str) -> dict[str, Any]:
        output = self.call(problem, arguments, text, REFUSALS)
        envelope = self._object(output)
        if not all(
            name in envelope and isinstance(envelope[name], (dict, type(None)))
            for name in ("job", "result")
        ):
            raise AdminError(f"sgl-admin answered without job and result: {output[:300]!r}")
        if envelope["result"] is not None and (lacking := _lacking(envelope["result"])) is not None:
            raise AdminError(
                f"the prep's result has no valid {lacking}, so it proves nothing: look at"
                " prep_result.json of the run, and run the prep again"
            )
        return envelope

    @staticmethod
    def _object(text: str) -> dict[str, Any]:
        try:
            document = read_json_text(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise AdminError(f"sgl-admin's answer is not JSON: {error}: {text[-300:]!r}") from error
        if not isinstance(document, dict):
            raise AdminError(f"sgl-admin's answer is no JSON object: {text[-300:]!r}")
        return document


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which JSON does not have: no other reader of a record does."""
    raise ValueError(f"it holds {name}")


# What is built on of a result and of each of its stages, here and in the report.
_RESULT: dict[str, Any] = {
    "run": dict,
    "stages": dict,
    "telemetry_probe": dict,
    "profile_cache": dict,
    "warnings": list,
}
_STAGE: dict[str, Any] = {
    "status": str,
    "ran": bool,
    "duration_s": (int, float),
    "errors": list,
    "log_tail": list,
}


def _lacking(result: dict[str, Any]) -> str | None:
    """The first part of a result that is missing or of another type; None where all are there."""
    for key, kind in _RESULT.items():
        if not isinstance(result.get(key), kind):
            return key
    if not isinstance(result["telemetry_probe"].get("ok"), bool):
        return "telemetry_probe.ok"
    for name, stage in result["stages"].items():
        for key, kind in _STAGE.items():
            if not isinstance(stage, dict) or not isinstance(stage.get(key), kind):
                return f"stages.{name}.{key}"
    return None


def did_work(result: dict[str, Any]) -> bool:
    """Whether a stage did work, or the proof was made by this prep."""
    proof = result["telemetry_probe"]
    proven = proof["ok"] is True and proof.get("prep_id") == result["run"]["prep_id"]
    return proven or any(stage.get("ran") for stage in result["stages"].values())


def failure(job: dict[str, Any], result: dict[str, Any] | None) -> str | None:
    """Why the prep failed, with the last lines of the log that shows it; None when all is well."""
    if result is None:
        return (
            f"{job['prep_id']} ended without a result ({job['state']}): {job['message']}; run it"
            " again to finish what is missing"
        )
    for name, stage in result["stages"].items():
        if stage["status"] == "error":
            tail = "\n".join(stage["log_tail"])
            return f"stage {name} failed, {stage['error_type']}: {'; '.join(stage['errors'])}" + (
                f"\n{tail}" if tail else ""
            )
    if job["exit_code"]:
        return (
            "the stages are fine, but METRICS_READY is not proven:"
            f" {result['telemetry_probe']['reason']}"
        )
    if job["state"] != "done" or job["exit_code"] != 0:
        # Killed between its result and its last record, which would say whether the proof that was
        # wanted was made.
        return (
            f"{job['prep_id']} ended before it could say so ({job['state']}): {job['message']}; run"
            " it again to finish what is missing"
        )
    return None
