"""A smoke from its command line to its records: real worker processes, and a double of the
server.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths, processes
from sgl_admin.commands import main as cli
from sgl_admin.commands import smoke as smoke_cli
from sgl_admin.records import run, scenario
from sgl_admin.records import smokes as record
from sgl_admin.smoke import runner
from tests.contract import validators
from tests.doubles import chat_server
from tests.doubles.chat_server import MODEL, ChatServer

DOUBLE = str(Path(chat_server.__file__).resolve())
OTHER_RUN = "container-run-20261123T091500Z-00000000"
SMOKE_ID = "smoke-20261123T095000Z-5be01a77"
# Makes sgl_admin's paths, in each process that is started, those of the test.
SITE = """
from pathlib import Path
from sgl_admin.base import paths
for name, value in {paths!r}.items():
    setattr(paths, name, Path(value))
paths._HOST_ROOTS = tuple((Path(root), variable) for root, variable in {roots!r})
"""
TWO: dict[str, Any] = {
    "name": "two",
    "tests": [{"name": "first", "turns": ["a"]}, {"name": "second", "turns": ["b", "c"]}],
}


class Site:
    """A live run whose prep is done, with the double as its prepared server, and sgl-admin's smoke
    command.
    """

    def __init__(self, run_id: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_id = run_id
        self._folder = folder
        self._capsys = capsys
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.err = ""

    def listen_at(self, port: int) -> None:
        manifest = files.read_json(paths.manifest(self.run_id)) or {}
        manifest["services"]["sglang"]["port"] = port
        files.write_json(paths.manifest(self.run_id), manifest)

    def prepare(self, *arguments: str, argv: list[str] | None = None) -> None:
        """Write a prep_result whose server is the double, with these arguments, or another
        command.
        """
        double = [sys.executable, DOUBLE, "--port", str(self.port), *arguments]
        result = validators.example("prep_result")
        result["run"]["server"] = {
            "argv": argv or double,
            "env": {"SGL_TEST_WORD": "the prepared environment"},
        }
        files.write_json(paths.prep_result(self.run_id), result)

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit code and standard output of `sgl-admin smoke`; standard error is `err`."""
        self._capsys.readouterr()
        code = cli.main(["smoke", *arguments])
        out, self.err = self._capsys.readouterr()
        return code, out

    def run(self, *arguments: str, tests: dict[str, Any] | None = None) -> tuple[int, str]:
        if tests is not None:
            (self._folder / "scenario.json").write_text(json.dumps(tests))
            arguments = (*arguments, "--scenario", str(self._folder / "scenario.json"))
        return self.call("run", *arguments)

    def detached(self, until: str, tests: dict[str, Any] | None = None) -> dict[str, Any]:
        """Begin a smoke and return its summary once the run's log says `until`."""
        code, out = self.run("--detach", tests=tests)
        assert code == 0
        smoke_id = json.loads(out)["smoke"]["smoke_id"]
        wait_for(lambda: until in paths.log(self.run_id).read_text())
        return self.summary(smoke_id)

    def ended(self) -> dict[str, Any]:
        """The last smoke's summary, as `status` tells it once it has ended."""
        code, out = self.call("status", "--json", "--wait", "60")
        summary = json.loads(out)["smoke"]
        assert (
            code == 0
            and summary == self.summary(summary["smoke_id"])
            and summary["state"] != "running"
        )
        return summary

    def summary(self, smoke_id: str | None = None) -> dict[str, Any]:
        """The summary on disk, held to the contract."""
        smoke_id = smoke_id or record.latest(self.run_id) or ""
        found = files.read_json(record.path(self.run_id, smoke_id)) or {}
        validators.validate_smoke_summary(found)
        return found

    def statuses(self) -> list[str]:
        return [test["status"] for test in self.summary()["tests"]]

    def nothing_is_left(self) -> None:
        """No process of the prepared server runs, its port and the lock are free, and no temp file
        lies about.
        """
        assert processes_with(str(self.port)) == []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", self.port))
        wait_for(lock_is_free)
        assert list(record.folder(self.run_id).rglob("*.tmp")) == []


def processes_with(argument: str) -> list[list[str]]:
    """The command lines of the double's processes that have such an argument; a process that has
    ended has none.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if DOUBLE in words and argument in words:
            found.append(words)
    return found


def lock_is_free() -> bool:
    if (lock := locks.try_lock(record.LOCK)) is None:
        return False
    os.close(lock)
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come in a minute"
        time.sleep(0.02)


@pytest.fixture
def site(
    live_run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Site]:
    patched = {name: str(value) for name, value in vars(paths).items() if isinstance(value, Path)}
    text = SITE.format(
        paths=patched, roots=[(str(root), variable) for root, variable in paths._HOST_ROOTS]
    )
    (tmp_path / "sitecustomize.py").write_text(text)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(run.__file__).parents[2])])
    )
    monkeypatch.setenv("HOME", str(tmp_path))

    made = Site(live_run, tmp_path, capsys)
    made.listen_at(made.port)
    made.prepare()
    yield made
    # A test that failed leaves nothing to the next one.
    for entry in record.folder(live_run).glob("*/summary.json"):
        found = files.read_json(entry) or {}
        if found.get("state") == "running" and found["pid"] != os.getpid():
            os.kill(found["pid"], signal.SIGTERM)
            record.wait(live_run, entry.parent.name, 60)


# --- whose server ---------------------------------------------------------------------------------


def test_a_running_server_is_used_and_left_running(site: Site) -> None:
    paths.log(site.run_id).write_text("lines of before\n")
    with ChatServer("reasoning_content") as server:
        site.listen_at(server.port)
        code, out = site.run("--json")
        assert code == 0 and runner.is_served(run.live())
    text, _, last = out.rstrip("\n").rpartition("\n")
    summary = site.summary()
    assert (
        json.loads(text) == summary
        and last == f"SMOKE_SUMMARY {record.path(site.run_id, summary['smoke_id'])}"
    )
    nothing = dict.fromkeys(("argv", "pgid", "start_ticks", "ready_after_s"))
    assert summary["server"] == {"used": "running", "port": server.port, "log_tail": [], **nothing}
    assert (summary["state"], summary["exit_code"], summary["model"], summary["scenario"]) == (
        "done",
        0,
        MODEL,
        "default",
    )
    assert summary["counts"] == {"total": 2, "passed": 2, "failed": 0, "not_run": 0}
    assert (summary["prep_metrics_ready"], summary["prep_metrics_ready_source"]) == (
        True,
        "container_path",
    )
    one, multi = summary["tests"]
    assert (one["turns"], multi["turns"], multi["turns_done"], multi["stop_reason"]) == (
        1,
        2,
        2,
        "stop",
    )
    assert multi["usage"] == {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24}
    assert (
        summary["window"]["start"]
        <= one["prometheus"]["start"]
        <= one["prometheus"]["end"]
        <= multi["prometheus"]["start"]
    )
    assert multi["prometheus"]["end"] <= summary["window"]["end"]
    assert (
        one["log"]["file"] == str(paths.log(site.run_id))
        and one["log"]["host_file"] == f"/host/telemetry/logs/{site.run_id}.log"
    )
    assert one["log"]["start_byte"] == len("lines of before\n")
    lines = [line.split(": ", 1)[1].split()[:2] for line in site.err.splitlines()]
    assert lines == [["server", "running"], ["one-shot", "passed"], ["multi-turn", "passed"]]


HELD = {"kind": "throttled", "what": "GPU 0 was throttled (thermal, by software)"}


@pytest.mark.parametrize(
    ("watch", "windows", "undisturbed", "said"),
    [
        ("True", [], True, "undisturbed"),
        ("True", [HELD], False, f"disturbed from 2026-11-23T09:15:00Z for 9 s: {HELD['what']}"),
        ("True", None, None, "did not watch all of it"),
        ("False", [], None, ""),
    ],
    ids=["quiet", "throttled", "died", "off"],
)
def test_the_summary_says_whether_the_tests_were_undisturbed(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    watch: str,
    windows: list[dict[str, Any]] | None,
    undisturbed: bool | None,
    said: str,
) -> None:
    monkeypatch.setenv("SGL_WATCH", watch)
    now = time.monotonic()
    begin, end = 1795425300.0, 1795425309.0
    always = {"begin": begin, "end": end, "begin_s": 0.0, "end_s": now + 600}
    # One that died before the tests began.
    stretches = [always if windows is not None else {**always, "end_s": now - 60}]
    document = {
        "stretches": stretches,
        "windows": [{**always, **each} for each in windows or []],
        "complete_since_s": 0.0,
    }
    files.write_json(paths.watch(site.run_id), document)
    with ChatServer() as server:
        site.listen_at(server.port)
        code, out = site.run(tests=TWO)
    summary = site.summary()
    assert code == 0 and summary["undisturbed"] is undisturbed
    assert summary["disturbances"] == [
        {"begin": begin, "end": end, **each} for each in windows or []
    ]
    assert bool(summary["warnings"]) is (windows is None)
    assert said in out + site.err


def test_only_answers_go_into_the_history(site: Site) -> None:
    with ChatServer("closing_tag") as server:
        site.listen_at(server.port)
        assert (
            site.run(tests={**TWO, "tests": [{**TWO["tests"][1], "system": "Be brief."}]})[0] == 0
        )
    system, b, c = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c"},
    )
    answer = {"role": "assistant", "content": "It is 22."}
    assert [asked["messages"] for asked in server.requests] == [[system, b], [system, b, answer, c]]
    found = site.summary()["tests"][0]
    transcript = files.read_json(Path(found["transcript"]["container_path"])) or {}
    thought = {**answer, "reasoning": "I add them."}
    given = [{**message, "reasoning": None} for message in (system, b, c)]
    assert transcript["messages"] == [*given[:2], thought, given[2], thought]
    assert found["transcript"]["host_path"].startswith("/host/telemetry/container_runs/")
    metrics = files.read_json(Path(found["metrics"]["container_path"])) or {}
    assert [turn["turn"] for turn in metrics["turns"]] == [1, 2] and metrics["error"] is None
    assert found["latency_s"] == pytest.approx(sum(turn["latency_s"] for turn in metrics["turns"]))
    assert (
        found["ttft_s"] == metrics["turns"][0]["ttft_s"] > 0
        and metrics["turns"][0]["output_tokens_per_s"] > 0
    )


def test_the_prepared_server_is_started_and_stopped(site: Site) -> None:
    code, out = site.run()
    summary = site.summary()
    assert code == 0 and f"{summary['smoke_id']} done: default, 2 of 2 tests passed" in out
    used = summary["server"]
    assert (used["used"], used["port"], used["argv"][:2]) == (
        "started",
        site.port,
        [sys.executable, DOUBLE],
    )
    assert used["ready_after_s"] > 0 and used["pgid"] is None
    assert "double: begins with the prepared environment" in paths.log(site.run_id).read_text()
    site.nothing_is_left()


def test_a_failed_test_leaves_no_server_and_the_next_test_runs(site: Site) -> None:
    site.prepare("--mode", "http_500", "--first", "3")
    three = {"name": "three", "tests": [*TWO["tests"], {"name": "third", "turns": ["d"]}]}
    code, out = site.run(tests=three)
    assert site.call("status")[0] == 8
    assert code == runner.EXIT_SMOKE_FAILED == 8 and site.statuses() == [
        "passed",
        "failed",
        "failed",
    ]
    summary = site.summary()
    failed = summary["tests"][1]
    assert (failed["error"]["kind"], failed["error"]["turn"], failed["turns_done"]) == (
        "http_error",
        2,
        1,
    )
    assert (
        "second failed  http_error in turn 2: HTTP 500" in out
        and summary["state"] == "failed"
        and summary["errors"] == []
    )
    transcript = files.read_json(Path(failed["transcript"]["container_path"])) or {}
    assert [message["role"] for message in transcript["messages"]] == ["user", "assistant", "user"]
    site.nothing_is_left()


def test_a_server_that_dies_while_starting_ends_with_7(site: Site) -> None:
    site.prepare(argv=["/bin/sh", "-c", "echo no such model; exit 3", "--port", str(site.port)])
    assert site.run()[0] == 7
    summary = site.summary()
    assert (summary["state"], summary["exit_code"], site.statuses()) == (
        "failed",
        7,
        ["not_run", "not_run"],
    )
    assert "exit code 3" in summary["errors"][0] and summary["server"]["log_tail"] == [
        "no such model"
    ]
    assert "exit code 3" in site.err
    site.nothing_is_left()


@pytest.mark.slow
def test_a_server_that_is_never_healthy_ends_with_7(site: Site) -> None:
    site.prepare("--mode", "never_healthy")
    assert site.run("--server-timeout", "1")[0] == 7
    [error] = site.summary()["errors"]
    assert error.startswith(
        "server_unhealthy_timeout: the server did not become healthy within 1 s: double: "
    )
    assert "the log is /host/" in error
    site.nothing_is_left()


def test_a_port_that_another_holds_ends_with_7(site: Site) -> None:
    with ChatServer("never_healthy", site.port):
        assert site.run()[0] == 7
    assert site.summary()["errors"][0].startswith(f"port_busy: port {site.port}")


def test_a_command_that_no_process_can_have_ends_with_7(site: Site) -> None:
    site.prepare("a\0b")
    assert site.run()[0] == 7 and "cannot be started" in site.summary()["errors"][0]


# --- its end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "until"), [("never_healthy", "double: begins"), ("hang", "double: asked 2")]
)
def test_a_smoke_that_is_told_to_stop_ends_its_server(site: Site, mode: str, until: str) -> None:
    site.prepare("--mode", mode, "--first", "2")
    os.kill(site.detached(until, TWO)["pid"], signal.SIGTERM)
    summary = site.ended()
    assert (summary["state"], summary["exit_code"], summary["errors"]) == (
        "interrupted",
        1,
        ["it was told to stop; run it again"],
    )
    assert site.statuses() == (["passed", "not_run"] if mode == "hang" else ["not_run", "not_run"])
    site.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["status", "run"])
def test_a_killed_smoke_is_interrupted_and_leaves_nothing(site: Site, asked: str) -> None:
    site.prepare("--mode", "hang", "--first", "2")
    running = site.detached("double: asked 2", TWO)
    assert running["server"]["pgid"] is not None and len(processes_with(str(site.port))) == 2
    os.kill(running["pid"], signal.SIGKILL)
    wait_for(lock_is_free)
    if asked == "status":
        site.ended()
    else:
        site.prepare()
        assert site.run()[0] == 0
    summary = site.summary(running["smoke_id"])
    assert (summary["state"], summary["exit_code"], summary["server"]["pgid"]) == (
        "interrupted",
        None,
        None,
    )
    assert [test["status"] for test in summary["tests"]] == [
        "passed",
        "not_run",
    ] and "killed" in summary["errors"][0]
    assert Path(summary["tests"][0]["transcript"]["container_path"]).exists()
    site.nothing_is_left()


def in_process(site: Site) -> runner.Smoke:
    return runner.Smoke(run.live(), scenario.parse(json.dumps(TWO)), SMOKE_ID, 60)


def when_written(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], None]) -> None:
    real = files.write_json

    def write_json(path: Path, document: dict[str, Any], *arguments: Any) -> None:
        if path.name == name:
            action()
        real(path, document, *arguments)

    monkeypatch.setattr(files, "write_json", write_json)


def test_an_interruption_between_two_turns_keeps_the_records_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer() as server:
        site.listen_at(server.port)
        made = in_process(site)
        when_written(monkeypatch, "metrics.json", made.interrupt)
        assert made.execute() == 1
    assert (
        site.statuses() == ["passed", "not_run"]
        and site.summary()["state"] == "interrupted"
        and len(server.requests) == 1
    )


def test_a_full_disk_ends_the_smoke_and_its_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(paths.TELEMETRY / "x"))

    when_written(monkeypatch, "transcript.json", full)
    with pytest.raises(OSError, match="No space left"):
        in_process(site).execute()
    summary = site.summary()
    assert (summary["state"], summary["exit_code"]) == ("failed", 1)
    assert summary["errors"] == ["no space left on /host/telemetry/x: free some and run again"]
    site.nothing_is_left()


@pytest.mark.parametrize("group", [0, 1, -1, True, 10**30, "7"])
def test_the_group_of_a_spoiled_summary_is_not_killed(
    site: Site, monkeypatch: pytest.MonkeyPatch, group: object
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(processes, "end_group", killed.append)
    summary = in_process(site).summary
    summary["server"].update(pgid=group)
    files.write_json(record.path(site.run_id, SMOKE_ID), summary)
    assert site.ended()["state"] == "interrupted" and killed == []


# --- before it begins -----------------------------------------------------------------------------


def test_another_smoke_ends_with_5_and_is_named(site: Site) -> None:
    site.prepare("--mode", "silent")
    running = site.detached("double: asked 1")
    code, out = site.run()
    assert (
        code == 5
        and out == ""
        and f"busy: {running['smoke_id']} (pid {running['pid']})" in site.err
    )
    os.kill(running["pid"], signal.SIGTERM)
    assert site.ended()["smoke_id"] == running["smoke_id"]
    site.nothing_is_left()


def test_a_lock_of_another_container_ends_with_5(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke_cli, "_START_PATIENCE_S", 0.0)
    lock = locks.try_lock(record.LOCK)
    assert lock is not None
    try:
        assert site.run()[0] == 5 and "another container" in site.err
    finally:
        os.close(lock)


def test_without_a_live_run_it_ends_with_4(site: Site) -> None:
    paths.POINTER.unlink()
    assert site.run()[0] == 4 and "playbooks/start.yml" in site.err


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_without_a_prep_it_ends_with_4(site: Site, spoil: Callable[[Path], object]) -> None:
    spoil(paths.prep_result(site.run_id))
    assert site.run()[0] == 4 and "playbooks/prep.yml" in site.err
    assert lock_is_free() and record.latest(site.run_id) is None


@pytest.mark.parametrize("argv", [[], "python", ["python", 7]])
def test_a_prep_without_a_servers_command_ends_with_4(site: Site, argv: Any) -> None:
    result = validators.example("prep_result")
    result["run"]["server"]["argv"] = argv
    files.write_json(paths.prep_result(site.run_id), result)
    assert site.run()[0] == 4 and "playbooks/prep.yml" in site.err


def test_a_running_server_needs_no_prep(site: Site) -> None:
    paths.prep_result(site.run_id).unlink()
    with ChatServer("no_models") as server:
        site.listen_at(server.port)
        assert site.run()[0] == 0
    summary = site.summary()
    assert (
        summary["prep_metrics_ready"],
        summary["prep_metrics_ready_source"],
        summary["model"],
    ) == (None, None, "default")
    assert "names no model" in summary["warnings"][0] and server.requests[0]["model"] == "default"


def test_a_wrong_scenario_ends_with_2(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.run(tests={"name": "x", "tests": [{"name": "t", "turns": []}]})[0] == 2
    assert "tests[0].turns: must be a list" in site.err
    assert site.run("--scenario", "/no/such/file")[0] == 2 and "/no/such/file" in site.err
    assert site.run("--scenario", "/")[0] == 2 and "is not a file" in site.err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff")))
    assert site.run("--scenario", "-")[0] == 2
    assert record.latest(site.run_id) is None


def test_a_scenario_comes_from_standard_input(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(TWO).encode())))
    with ChatServer() as server:
        site.listen_at(server.port)
        assert site.run("--scenario", "-")[0] == 0
    assert site.summary()["scenario"] == "two"


FULL = """
from sgl_admin.base import files
def write_json(path, *_):
    raise OSError(28, "No space left on device", str(path))
files.write_json = write_json
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [(FULL, "no space left on /host/telemetry/"), ("import os; os._exit(3)", "exit code 3;")],
)
def test_a_smoke_that_ends_before_it_begins_is_told_with_its_reason(
    site: Site, tmp_path: Path, fault: str, told: str
) -> None:
    with open(tmp_path / "sitecustomize.py", "a") as stream:
        stream.write(fault)
    assert (
        site.run()[0] == 1
        and f"ended before it began: {told}" in site.err
        and "/host/telemetry/logs/" in site.err
    )
    assert lock_is_free()


# --- what is shown --------------------------------------------------------------------------------


def test_detached_it_is_waited_for_as_long_as_asked(site: Site) -> None:
    assert site.call("status", "--json") == (0, '{"smoke": null}\n')
    assert site.call("status") == (1, f"no smoke yet in {site.run_id}\n")
    with ChatServer() as server:
        site.listen_at(server.port)
        code, out = site.run("--detach", "--wait", "60")
        assert (
            code == 0
            and json.loads(out) == {"smoke": site.summary()}
            and site.summary()["state"] == "done"
        )
    code, out = site.call("status")
    assert code == 0 and "done: default, 2 of 2 tests passed" in out and "multi-turn passed" in out


def test_who_stops_following_is_told_that_the_smoke_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with ChatServer() as server:
        site.listen_at(server.port)
        with monkeypatch.context() as patch:
            patch.setattr(smoke_cli, "_follow", interrupted)
            assert site.run()[0] == 130 and "goes on by itself" in site.err
        assert site.ended()["state"] == "done"


@pytest.mark.parametrize(
    "tests",
    [
        [None],
        [{}],
        [{"name": [], "status": {}}],
        [{"name": "x", "status": "passed", "latency_s": "\n"}],
    ],
)
def test_a_strange_summary_is_shown_in_lines_that_print(site: Site, tests: list[Any]) -> None:
    summary = {
        **in_process(site).summary,
        "state": "done",
        "tests": tests,
        "scenario": "\x1b[31m",
        "counts": {},
    }
    files.write_json(record.path(site.run_id, SMOKE_ID), summary)
    code, out = site.call("status")
    assert code == 1 and all(line.isprintable() for line in out.splitlines())


# --- METRICS_READY, as the prep says --------------------------------------------------------------


def ready_of(site: Site, path: Path, ok: object = True, run_id: str | None = None) -> None:
    result = validators.example("prep_result")
    result["telemetry_probe"]["ok"] = ok
    result["run"]["run_id"] = run_id or site.run_id
    files.write_json(path, result)


def name_in_manifest(site: Site, path: object) -> None:
    manifest = files.read_json(paths.manifest(site.run_id)) or {}
    manifest["paths"]["container"]["prep_result"] = path
    files.write_json(paths.manifest(site.run_id), manifest)


def test_the_manifests_path_goes_first(site: Site, tmp_path: Path) -> None:
    ready_of(site, tmp_path / "elsewhere.json", ok=False)
    name_in_manifest(site, str(tmp_path / "elsewhere.json"))
    assert record.prep_metrics_ready(run.live()) == (False, "manifest")


@pytest.mark.parametrize("named", ["/no/such/file", "", 7, None, "a\0b", "x" * 5000])
def test_where_the_manifest_names_none_the_containers_own_path_is_read(
    site: Site, named: object
) -> None:
    name_in_manifest(site, named)
    assert record.prep_metrics_ready(run.live()) == (True, "container_path")


@pytest.mark.parametrize(
    ("ok", "run_id"), [(None, None), ("yes", None), (1, None), (True, OTHER_RUN)]
)
def test_what_says_nothing_of_this_run_is_null(site: Site, ok: object, run_id: str | None) -> None:
    ready_of(site, paths.prep_result(site.run_id), ok, run_id)
    name_in_manifest(site, str(paths.prep_result(site.run_id)))
    assert record.prep_metrics_ready(run.live()) == (None, None)
