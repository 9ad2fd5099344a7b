"""One smoke: the prepared server, its tests one after the other, and a record of each before the
next begins.
"""

from __future__ import annotations

import os
import time
from typing import Any

from sgl_admin.base import clock, failures, files, logs, paths
from sgl_admin.base.command import Command
from sgl_admin.base.errors import Interrupted, Refused, StageFailure
from sgl_admin.base.interruption import Interruptible
from sgl_admin.base.processes import start_time
from sgl_admin.contract.exit_codes import EXIT_NO_RESULT, EXIT_SERVER_FAILED, EXIT_SMOKE_FAILED
from sgl_admin.perf import windows
from sgl_admin.records import prepared as servers
from sgl_admin.records import smokes as record
from sgl_admin.records.run import Run
from sgl_admin.records.scenario import Scenario, Test
from sgl_admin.serving import benchmark_server
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE
from sgl_admin.smoke import chat


def is_served(live: Run) -> bool:
    """Whether a server is there already: one that was started as it was prepared, or a healthy one
    at the port that Prometheus scrapes.
    """
    return _started(live) is not None or _at(live).healthy()


def _started(live: Run) -> dict[str, Any] | None:
    """The record of the server that `sgl-admin server start` started, where it runs."""
    found = benchmark_server.read(live.run_id)
    return found if found is not None and found["state"] == benchmark_server.RUNNING else None


def _at(live: Run) -> Server:
    """Whatever listens at the port that Prometheus scrapes."""
    port = int(live.manifest["services"]["sglang"]["port"])
    return Server(Command.public([], {}), port, paths.log(live.run_id))


class Smoke(Interruptible):
    def __init__(
        self, live: Run, scenario: Scenario, smoke_id: str, server_timeout_s: float
    ) -> None:
        self._live = live
        self._scenario = scenario
        self._server_timeout_s = server_timeout_s
        self._started = time.monotonic()
        self._server: Server | None = None
        # Of the server's place, while this smoke's own has it.
        self._place: int | None = None
        # What the server asks its callers for.
        self._key: str | None = None
        self.summary = record.new(live, scenario, smoke_id)
        self._path = record.path(live.run_id, smoke_id)

    def execute(self) -> int:
        """Run the tests; returns the exit code, with the summary on disk and no server of its own
        left. Raises OSError.
        """
        try:
            self._write()
            state, exit_code = self._execute()
            self._end(state, exit_code)
            return exit_code
        except BaseException as error:
            self._abandon(error)
            raise

    def _execute(self) -> tuple[str, int]:
        try:
            try:
                self._reach_server()
                begin_s = time.monotonic()
                for number, test in enumerate(self._scenario.tests):
                    self.summary["tests"][number].update(self._test(test))
                    self.summary["counts"] = record.count(self.summary["tests"])
                    self._write()
                self._judge(begin_s, time.monotonic())
            finally:
                self._stop_server()
        except Interrupted:
            self.summary["errors"].append("it was told to stop; run it again")
            return record.INTERRUPTED, EXIT_NO_RESULT
        except StageFailure as failure:
            self.summary["errors"].append(f"{failure.error_type}: {failure}")
            self.summary["server"]["log_tail"] = failure.log_tail
            return record.FAILED, EXIT_SERVER_FAILED
        failed = self.summary["counts"][record.FAILED]
        return (record.FAILED, EXIT_SMOKE_FAILED) if failed else (record.DONE, 0)

    def _reach_server(self) -> None:
        used = self.summary["server"]
        if (started := _started(self._live)) is not None:
            used.update(used="running", argv=started["argv"], port=started["port"])
            if command := servers.same_command(self._live.run_id, started):
                self._key = ENGINE.api_key(command.argv)
            self._await_started()
        elif _at(self._live).healthy():
            used["used"] = "running"
        else:
            self._start_server(used)
        self.summary["model"] = chat.served_model(used["port"], self._key)
        if self.summary["model"] is None:
            self.summary["model"] = "default"
            self.summary["warnings"].append(
                "the server's /v1/models names no model; requests name it 'default'"
            )
        self._write()

    def _await_started(self) -> None:
        """A server that was started before may still be loading its model."""
        with self._may_be_interrupted():
            found, healthy = benchmark_server.wait(self._live.run_id, self._server_timeout_s)
        if not healthy:
            raise benchmark_server.unhealthy(self._live.run_id, found, self._server_timeout_s)

    def _start_server(self, used: dict[str, Any]) -> None:
        try:
            prepared = benchmark_server.prepared(self._live)
        except Refused as refusal:
            raise StageFailure("server_start_failed", str(refusal)) from refusal
        self._key = ENGINE.api_key(prepared.command.argv)
        self._place = benchmark_server.claim(self._live.run_id)
        self._server = prepared.server(self._live.run_id)
        used.update(used="started", argv=prepared.command.shown_argv, port=prepared.port)
        started = time.monotonic()
        self._server.start()
        group = self._server.group
        assert group is not None
        used.update(pgid=group, start_ticks=start_time(group))
        # It begins only once it is noted: a kill at any moment leaves no server without a record.
        self._write()
        with self._may_be_interrupted():
            self._server.wait_healthy(self._server_timeout_s, lambda: None)
        used["ready_after_s"] = round(time.monotonic() - started, 3)

    def _stop_server(self) -> None:
        try:
            if self._server is not None:
                self._server.stop()
                self.summary["server"].update(pgid=None, start_ticks=None)
        finally:
            if self._place is not None:
                os.close(self._place)
                self._place = None

    def _test(self, test: Test) -> dict[str, Any]:
        """Ask its turns, write its transcript and its metrics; returns its part of the summary."""
        log = paths.log(self._live.run_id)
        started_at, start, log_start = clock.utc(), time.time(), logs.size(log)
        messages = [] if test.system is None else [_message("system", test.system)]
        answers: list[chat.Answer] = []
        error: dict[str, Any] | None = None
        for number, text in enumerate(test.turns, 1):
            messages.append(_message("user", text))
            said = [{key: message[key] for key in ("role", "content")} for message in messages]
            try:
                with self._may_be_interrupted():
                    answer = chat.ask(
                        self.summary["server"]["port"],
                        self.summary["model"],
                        said,
                        test.options,
                        self._key,
                    )
            except chat.ChatFailure as failure:
                error = {"kind": failure.kind, "message": str(failure), "turn": number}
                break
            answers.append(answer)
            messages.append(_message("assistant", answer.content, answer.reasoning))
        folder = self._path.parent / "tests" / test.name
        head = {
            "schema_version": "1",
            "smoke_id": self.summary["smoke_id"],
            "run_id": self._live.run_id,
            "test": test.name,
        }
        files.write_json(folder / "transcript.json", {**head, "messages": messages})
        turns = [_metrics(number, answer) for number, answer in enumerate(answers, 1)]
        files.write_json(
            folder / "metrics.json",
            {**head, "options": vars(test.options), "turns": turns, "error": error},
        )
        return {
            "status": record.FAILED if error else record.PASSED,
            "error": error,
            "turns_done": len(answers),
            "stop_reason": answers[-1].finish_reason if answers else None,
            "usage": {name: sum(answer.usage[name] for answer in answers) for name in chat.COUNTS},
            "latency_s": round(sum(turn["latency_s"] for turn in turns), 6),
            "ttft_s": turns[0]["ttft_s"] if turns else None,
            "started_at": started_at,
            "finished_at": clock.utc(),
            "transcript": record.place(folder / "transcript.json"),
            "metrics": record.place(folder / "metrics.json"),
            "prometheus": {"start": start, "end": time.time()},
            "log": {
                "file": str(log),
                "host_file": paths.to_host(log),
                "start_byte": log_start,
                "end_byte": logs.size(log),
            },
        }

    def _judge(self, begin_s: float, end_s: float) -> None:
        """Say by the watcher's record whether something disturbed the tests."""
        judgement = windows.judged(self._live.run_id, begin_s, end_s)
        self.summary["undisturbed"] = judgement.undisturbed
        self.summary["disturbances"] = list(judgement.disturbances)
        if judgement.problem is not None:
            self.summary["warnings"].append(judgement.problem)

    def _write(self) -> None:
        self.summary["duration_s"] = round(time.monotonic() - self._started, 3)
        files.write_json(self._path, self.summary)

    def _end(self, state: str, exit_code: int) -> None:
        self.summary.update(state=state, exit_code=exit_code, finished_at=clock.utc())
        self.summary["window"]["end"] = time.time()
        self._write()

    def _abandon(self, error: BaseException) -> None:
        """Say that the smoke ends without a result, where that can be written: where not, the next
        one sees that its process is gone.
        """
        self.summary["errors"].append(str(failures.from_error(error)))
        try:
            self._end(record.FAILED, EXIT_NO_RESULT)
        except OSError:
            pass


def _message(role: str, content: str, reasoning: str | None = None) -> dict[str, Any]:
    return {"role": role, "content": content, "reasoning": reasoning}


def _metrics(number: int, answer: chat.Answer) -> dict[str, Any]:
    return {
        "turn": number,
        "latency_s": round(answer.latency_s, 6),
        "ttft_s": None if answer.ttft_s is None else round(answer.ttft_s, 6),
        **answer.usage,
        "output_tokens_per_s": round(answer.output_tokens_per_s, 3),
        "finish_reason": answer.finish_reason,
    }
