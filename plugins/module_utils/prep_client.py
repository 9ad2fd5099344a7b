# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks sgl-admin in the container for a prep, follows it by short polls, and says what came of
it.
"""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils.docker_cli import Runner, explain

# sgl-admin's exit codes for a prep that did not begin.
_REFUSALS = {2: "usage", 3: "permission", 4: "no live run", 5: "busy"}


class PrepError(Exception):
    """The prep did not begin, or sgl-admin's answer cannot be understood; the message is its own,
    with its remedy.

    ``exit_code`` is sgl-admin's, where it gave one other than 0.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PrepClient:
    def __init__(self, run: Runner, container: str) -> None:
        self._run = run
        self._container = container

    def start(self, arguments: list[str], wait_s: float) -> dict[str, Any]:
        """Begin a prep, or attach to the same one; returns {job, result} once it ends or after
        `wait_s` seconds.
        """
        return self._envelope(
            "the prep did not begin",
            "caches",
            "ensure",
            "--detach",
            "--wait",
            f"{wait_s:g}",
            *arguments,
        )

    def follow(self, prep_id: str, wait_s: float) -> dict[str, Any]:
        """{job, result} of the prep once it ends or after `wait_s` seconds. Raises PrepError when
        another took its place.
        """
        envelope = self._envelope(
            f"{prep_id} cannot be followed any more, run this again",
            "status",
            "--json",
            "--wait",
            f"{wait_s:g}",
        )
        if envelope["job"] is None or envelope["job"].get("prep_id") != prep_id:
            raise PrepError(
                f"{prep_id} is gone: the container was started anew meanwhile; run this again"
            )
        return envelope

    def dry_run(self, arguments: list[str]) -> dict[str, Any]:
        """What a prep would do."""
        output = self._call(
            "sgl-admin cannot tell what a prep would do",
            "caches",
            "ensure",
            "--dry-run",
            "--json",
            *arguments,
        )
        return self._object(output[: output.rindex("}") + 1] if "}" in output else output)

    def _envelope(self, problem: str, *arguments: str) -> dict[str, Any]:
        text = self._call(problem, *arguments)
        envelope = self._object(text)
        if not all(
            name in envelope and isinstance(envelope[name], (dict, type(None)))
            for name in ("job", "result")
        ):
            raise PrepError(f"sgl-admin answered without job and result: {text[:300]!r}")
        return envelope

    def _call(self, problem: str, *arguments: str) -> str:
        code, output, error = self._run(
            ["docker", "exec", self._container, "sgl-admin", *arguments]
        )
        if code:
            message = explain(error.strip() or output.strip()).removeprefix("sgl-admin: ")
            raise PrepError(
                f"{problem} ({_REFUSALS.get(code, f'exit code {code}')}): {message}", code
            )
        return output

    @staticmethod
    def _object(text: str) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PrepError(f"sgl-admin's answer is not JSON: {error}: {text[-300:]!r}") from error
        if not isinstance(document, dict):
            raise PrepError(f"sgl-admin's answer is no JSON object: {text[-300:]!r}")
        return document


def command_line(options: dict[str, Any]) -> list[str]:
    """sgl-admin's arguments for the module's options."""
    arguments = [
        "--model",
        options["model"],
        "--tp",
        str(options["tp"]),
        "--probe",
        options["probe"],
    ]
    for option, flag in (
        ("deep_gemm", "--deep-gemm"),
        ("moe", "--moe"),
        ("flashinfer", "--flashinfer"),
        ("inductor", "--inductor"),
    ):
        arguments += [flag, options[option]]
    if options["moe_batch_sizes"]:
        arguments += ["--moe-batch-sizes", ",".join(map(str, options["moe_batch_sizes"]))]
    if options["cuda_graph_batch_sizes"]:
        arguments += ["--cuda-graph-bs", ",".join(map(str, options["cuda_graph_batch_sizes"]))]
    arguments += [
        "--moe-dtype",
        options["moe_dtype"],
        "--moe-fusion",
        options["moe_fusion"],
        "--server-timeout",
        f"{options['server_timeout']:g}",
    ]
    arguments += ["--probe-timeout", f"{options['probe_timeout']:g}"]
    # One word with its flag: a server's argument begins with dashes itself.
    arguments += [f"--server-arg={argument}" for argument in options["server_args"]]
    return arguments + [
        f"--server-env={name}={value}" for name, value in options["server_env"].items()
    ]


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
