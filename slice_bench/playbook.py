"""Runs a playbook of the checkout, shows that it goes on, and says what became of the host."""

from __future__ import annotations

import json
import locale
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.contract.texts import say
from slice_bench import words
from slice_bench.caller import Caller

CHECKOUT = Path(__file__).resolve().parents[1]
HEARTBEAT_S = 5.0
EXIT_FAILED, EXIT_USAGE, EXIT_OWNERSHIP = 1, 2, 3
_REPORT = "slice_bench.sglang.report"
# The role of a task, without the collection's name; of a task of the playbook itself there is none.
_TASK = re.compile(r"^TASK \[(?:(?:[\w.]*\.)?(\w+) : )?.*\] \**$")
# What the collection's actions say of long work, "<host>: ...", and not Ansible's own "ok:
# [<host>]".
_PROGRESS = re.compile(r"^(?!(?:included|skipping|Origin): )[\w.-]+: [^\s\[]")
# What follows is an error's, which may hold lines of any form.
_ERROR = re.compile(r"^(?:\[ERROR\]:|ERROR[!:]|fatal: )")


class Failed(Exception):
    """The playbook did not do it; the message names the reason and the remedy, and `exit_code` is
    the caller's.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Outcome:
    """What became of the host: its part of the report (schemas/report.schema.json). `log` is the
    file with all that a failed playbook printed.
    """

    host: dict[str, Any]
    log: Path | None = None

    def failure(self) -> Failed | None:
        if self.host["status"] == "ok":
            return None
        return Failed(
            _with_log(words.of_caller(str(self.host["problem"])), self.log),
            EXIT_OWNERSHIP if self.host["foreign"] else EXIT_FAILED,
        )


def play(
    name: str, caller: Caller, variables: dict[str, Any], *flags: str, heartbeat: bool = False
) -> Outcome:
    """Run playbooks/<name>.yml with these variables beside the caller's. Raises Failed where it
    ended before it could say anything of the host.
    """
    with tempfile.TemporaryDirectory(prefix="slice-bench-") as folder:
        given, outcome = Path(folder) / "variables.json", Path(folder) / "outcome.json"
        given.write_text(json.dumps({**caller.variables, **variables}), encoding="utf-8")
        with _ansible_playbook(
            f"playbooks/{name}.yml",
            *("--extra-vars", f"@{given}", *caller.flags, *flags),
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment_of_checkout(outcome),
        ) as process:
            output = _follow(process, name, caller.verbose, heartbeat)
        log = _write_log(name, output) if process.returncode or not outcome.exists() else None
        if not outcome.exists():
            why = words.of_caller(words.error_of("".join(output)))
            # Where it did nothing and sees no fault in that, no host was named.
            code = EXIT_FAILED if process.returncode else EXIT_USAGE
            raise Failed(_with_log(why, log), code)
        hosts = json.loads(outcome.read_text(encoding="utf-8"))["hosts"]
    if len(hosts) != 1:
        raise Failed(
            f"the inventory has {len(hosts)} hosts, and this is for one: name it with --limit, or"
            " use `slice_bench fleet` to prepare all"
        )
    return Outcome(hosts[0], log)


def _environment_of_checkout(outcome: Path) -> dict[str, str]:
    """The environment of a playbook that runs in the checkout, wherever the caller stands."""
    environment = {
        **_environment(outcome),
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    if own := environment.get("SLICE_BENCH_PROFILES"):
        environment["SLICE_BENCH_PROFILES"] = os.pathsep.join(
            os.path.abspath(os.path.expanduser(folder))
            for folder in own.split(os.pathsep)
            if folder
        )
    for place in ("SGL_REPORT_DIR", "ANSIBLE_INVENTORY"):
        # An inventory may be a list of hosts, too.
        if environment.get(place) and (
            place == "SGL_REPORT_DIR" or os.path.exists(environment[place])
        ):
            environment[place] = os.path.abspath(environment[place])
    return environment


def _with_log(problem: str, log: Path | None) -> str:
    """The problem, with the file that has all the rest."""
    if log is None:
        return problem
    if "\n" in problem:
        return f"{problem}\nAll that was printed is in {log}"
    return f"{problem.rstrip('.')}; all that was printed is in {log}"


def _write_log(name: str, output: list[str]) -> Path | None:
    """A new file with all that a playbook printed, beside the reports or else among the temporary
    files; None where neither can be written.
    """
    kept = os.environ.get("SGL_REPORT_DIR", str(CHECKOUT / "reports"))
    prefix = f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-"
    for folder in filter(None, (kept, tempfile.gettempdir())):
        try:
            os.makedirs(folder, exist_ok=True)
            descriptor, path = tempfile.mkstemp(".log", prefix, os.path.abspath(folder))
            with open(descriptor, "w", encoding="utf-8", errors="replace") as stream:
                stream.writelines(output)
            return Path(path)
        except OSError:
            continue
    return None


def play_fleet(
    name: str, *flags: str, output_on_stderr: bool = False
) -> tuple[int, dict[str, Any] | None]:
    """Run playbooks/<name>.yml with these arguments from the folder that the caller stands in, and
    let its output through.

    Returns ansible-playbook's exit code and the report, which is None where the run ended before it
    could say anything of a host.
    """
    with tempfile.TemporaryDirectory(prefix="slice-bench-") as folder:
        outcome = Path(folder) / "outcome.json"
        environment = _environment(outcome)
        # A lab's own configuration says where its reports go, too.
        if "ANSIBLE_CONFIG" not in environment:
            environment["ANSIBLE_CONFIG"] = str(CHECKOUT / "ansible.cfg")
            environment.setdefault("SGL_REPORT_DIR", str(CHECKOUT / "reports"))
        sys.stdout.flush()
        with _ansible_playbook(
            str(CHECKOUT / "playbooks" / f"{name}.yml"),
            *flags,
            stdout=sys.stderr if output_on_stderr else None,
            env=environment,
        ) as process:
            code = process.wait()
        return code, json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None


def _environment(outcome: Path) -> dict[str, str]:
    """The caller's environment, with the callback that writes what came of a playbook to `outcome`;
    a caller's own ones go beside it.
    """
    enabled = {*filter(None, os.environ.get("ANSIBLE_CALLBACKS_ENABLED", "").split(",")), _REPORT}
    return {
        **os.environ,
        **_usable_locale(),
        "SGL_REPORT_OUTCOME": str(outcome),
        "ANSIBLE_CALLBACKS_ENABLED": ",".join(sorted(enabled)),
    }


def _usable_locale() -> dict[str, str]:
    """What makes Ansible start where the caller's locale is not installed or is not UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "")
        usable = locale.nl_langinfo(locale.CODESET).upper() in ("UTF-8", "UTF8")
    except locale.Error:
        usable = False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return {} if usable else {"LC_ALL": "C.UTF-8"}


@contextmanager
def _ansible_playbook(*arguments: str, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process of ansible-playbook. Where the caller is interrupted it ends, and so do its
    children; a prep or a smoke in the container goes on.
    """
    command = [str(_program("ansible-playbook")), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **how)
    try:
        yield process
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _program(name: str) -> Path:
    """A program of the environment that this runs in."""
    return Path(sys.executable).with_name(name)


def _follow(process: subprocess.Popen[str], name: str, verbose: bool, heartbeat: bool) -> list[str]:
    """Read the playbook's output to its end; shows on standard error what a person wants to see
    meanwhile.
    """
    output: list[str] = []
    beat = _Heartbeat(name)
    if heartbeat:
        beat.start()
    is_error = False
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        is_error = is_error or bool(_ERROR.match(line))
        if found := _TASK.match(line):
            beat.doing, is_error = words.doing(found[1]), False
        if verbose or (_PROGRESS.match(line) and not is_error):
            beat.say(line.rstrip())
    process.wait()
    beat.ended.set()
    return output


class _Heartbeat(threading.Thread):
    """Says what is being done, whenever nothing else was said for HEARTBEAT_S seconds."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self._title = name
        self._began = self._said_at = time.monotonic()
        self.doing = "beginning"
        self.ended = threading.Event()

    def say(self, line: str) -> None:
        self._said_at = time.monotonic()
        say(line, file=sys.stderr, flush=True)

    def run(self) -> None:
        while not self.ended.wait(max(0.0, self._said_at + HEARTBEAT_S - time.monotonic())):
            if time.monotonic() - self._said_at >= HEARTBEAT_S:
                self.say(f"{self._title}: {time.monotonic() - self._began:.0f} s: {self.doing}")
