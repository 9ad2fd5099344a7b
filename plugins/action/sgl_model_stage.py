# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Calls the module in slices and shows how far it is; sends a model of the controller by rsync,
over the connection's own SSH settings.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, cast

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ..module_utils._contract.texts import one_line
from ..module_utils._model_files import ModelError
from ..module_utils._model_stage import listing
from ..module_utils._model_staging import SourceFile, read_source, survey
from ..plugin_utils.told_action import ToldAction

# A slice ends with the file that it reads, which may take longer: a line is shown in between all
# the same.
_BUDGET_S = 10.0
Owner = tuple[int, int]
_HEARTBEAT_S = 12.0
_CACHE = "~/.cache/slice_bench.sglang"
_INTERNAL = ("budget_s", "run_id", "manifest", "prepare")
_RSYNC_BYTES = re.compile(rb"([\d.,]+)\s+\d+%")
_NO_RSYNC = re.compile(
    r"rsync: (\d+: )?(command )?not found|rsync: No such file|failed to execute rsync",
    re.IGNORECASE,
)
# Of flock, where the lock is held. rsync hands it on, or, where it notices the closed connection
# first, has a code of its own.
_HELD = 75
_CLOSED = "connection unexpectedly closed (0 bytes received so far)"
_NO_SUDO = re.compile(r"sudo: .*(password|terminal|tty)", re.IGNORECASE)


class ActionModule(ToldAction):
    def act(self) -> dict[str, Any]:
        arguments = {
            name: value for name, value in self._task.args.items() if name not in _INTERNAL
        }
        arguments["run_id"] = secrets.token_hex(8)
        model = os.path.relpath(
            str(arguments.get("path", "")), str(arguments.get("models_root") or "/")
        )
        self._shown = Shown(lambda text: self.say(f"model {model}: {text}"))
        with self._shown.kept_alive():
            if arguments.get("source") != "controller":
                return self._slices(arguments)
            folder = os.path.abspath(os.path.expanduser(str(arguments.get("from") or "")))
            if self._connection.transport == "local":
                return self._slices({**arguments, "source": "local", "from": folder})
            try:
                return self._send(folder, {**arguments, "source": "staged", "from": folder})
            except ModelError as error:
                return {"failed": True, "msg": f"on the controller, {error}"}

    def _call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name="slice_bench.sglang.sgl_model_stage",
                module_args=arguments,
                task_vars=self._vars,
            )
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(
                f"what was done of the model is kept: run this again to go on from there ({error})"
            ) from error
        return answer

    def _slices(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The module again and again until it is done."""
        moved, warnings, changed = 0, [], False
        # Of the slice that changed something, which need not be the last.
        diff: dict[str, Any] = {}
        while True:
            answer = self._call({**arguments, "budget_s": _BUDGET_S})
            warnings += [
                warning for warning in answer.get("warnings", []) if warning not in warnings
            ]
            moved += answer.get("bytes_moved", 0)
            changed = changed or answer.get("changed", False)
            diff = answer.get("diff") or diff
            if answer.get("failed") or self._task.check_mode or answer.get("done") is not False:
                break
            self._shown.progress(
                str(answer["phase"]),
                answer["bytes_done"],
                answer["bytes_total"],
                one_line(answer.get("waits_for") or ""),
            )
        if not answer.get("failed"):
            answer.update(bytes_moved=moved, changed=changed)
            if diff:
                answer["diff"] = diff
        if warnings:
            answer["warnings"] = warnings
        return answer

    # --- from the controller ----------------------------------------------------------------------

    def _send(self, folder: str, arguments: dict[str, Any]) -> dict[str, Any]:
        files = survey(folder)
        answer = self._prepare({**arguments, "manifest": listing(files)})
        if answer.get("failed") or self._task.check_mode:
            return answer
        if answer.get("phase") != "sending":
            # It is there; what is left is to verify it.
            return self._slices({**arguments, "manifest": listing(files)})
        if self._connection.transport != "ssh":
            raise AnsibleActionFail(
                f"a model of the controller goes by SSH, not by {self._connection.transport}: copy"
                " it to the host, with source local"
            )
        if shutil.which("rsync") is None:
            raise AnsibleActionFail(
                "rsync is not installed on the controller: run `apt-get install rsync` there"
            )
        files = self._read(folder, files)
        arguments["manifest"] = listing(files)
        # The digests show what is there already.
        answer = self._prepare(arguments)
        if answer.get("failed"):
            return answer
        if answer.get("missing"):
            self._rsync(folder, files, answer, _owner(arguments))
        return self._slices(arguments)

    def _prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        while True:
            answer = self._call({**arguments, "prepare": True, "budget_s": _BUDGET_S})
            if answer.get("phase") != "waiting":
                return answer
            self._shown.progress("waiting", 0, 0)

    def _read(self, folder: str, files: dict[str, SourceFile]) -> dict[str, SourceFile]:
        """The digests that the folder came without; what was read is kept for the next run."""
        cache = os.path.join(os.path.expanduser(_CACHE), "models")
        os.makedirs(cache, mode=0o700, exist_ok=True)
        memo = os.path.join(cache, hashlib.sha256(os.fsencode(folder)).hexdigest() + ".json")
        progress = partial(self._shown.progress, "reading")
        return read_source(folder, files, memo, progress=progress)[1]

    def _rsync(
        self,
        folder: str,
        files: dict[str, SourceFile],
        place: dict[str, Any],
        owner: Owner | None,
    ) -> None:
        """Send what is missing to the place that was prepared. Raises AnsibleActionFail."""
        missing: list[str] = place["missing"]
        option = self._connection.get_option
        host = str(option("host"))
        remote = f"{option('remote_user')}@{host}" if option("remote_user") else host
        become = self._connection.become
        user = str(become.get_option("become_user") or "root") if become else None
        elevated = user is not None and user != (option("remote_user") or getpass.getuser())
        if elevated and become.name.rpartition(".")[2] != "sudo":
            raise AnsibleActionFail(
                f"a model of the controller goes with sudo, not {become.name}: copy it to the host,"
                " source local"
            )
        by_root = user == "root" if elevated else option("remote_user") == "root"
        command = [
            *(
                "rsync",
                "--copy-links",
                "--times",
                "--protect-args",
                "--partial-dir=.rsync-partial",
                "--info=progress2",
                "--no-human-readable",
                # A receiver whose network is gone would hold the lock for hours.
                "--timeout=300",
            ),
            *("--from0", "--files-from=-", "--rsh", rsync_words(ssh_command(option))),
            *(
                "--rsync-path",
                receiver(place["lock"], user if elevated else None, owner if by_root else None),
            ),
            f"{folder}/",
            f"{f'[{remote}]' if ':' in host else remote}:{place['staging']}/",
        ]
        returncode, said = _send_files(
            command, missing, sum(files[name].size for name in missing), self._shown
        )
        if returncode:
            raise AnsibleActionFail(explain(returncode, said, host))


def _send_files(command: list[str], names: list[str], total: int, shown: Shown) -> tuple[int, str]:
    """Run rsync for these files; its exit code, and its words on standard error."""
    with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as errors:
        listed.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        listed.seek(0)
        with subprocess.Popen(
            command, stdin=listed, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        ) as process:
            output = cast(IO[bytes], process.stdout)
            try:
                while text := output.read(1 << 16):
                    if found := _RSYNC_BYTES.findall(text):
                        shown.progress("sending", int(re.sub(rb"\D", b"", found[-1])), total)
            except BaseException:
                process.terminate()
                raise
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")


def _owner(arguments: dict[str, Any]) -> Owner | None:
    """The models' owner, where the task names one who is not root."""
    uid, gid = (arguments.get(name) for name in ("owner_uid", "owner_gid"))
    return (int(uid), int(gid)) if uid and gid is not None else None


def receiver(lock: str, user: str | None, owner: Owner | None = None) -> str:
    """rsync on the host, which holds the staging's lock for as long as it writes: no other run
    stages or swaps meanwhile. Root gives up its rights for those of the models' owner, who may
    exchange the folders that rsync writes in; setpriv is of util-linux, as flock is.
    """
    rights = (
        ["setpriv", f"--reuid={owner[0]}", f"--regid={owner[1]}", "--clear-groups"] if owner else []
    )
    words = [*rights, "flock", "--nonblock", "--conflict-exit-code", str(_HELD), lock, "rsync"]
    return shlex.join([*(["sudo", "-n", "-u", user] if user else []), *words])


def explain(code: int, said: str, host: str) -> str:
    """rsync's failure in a sentence."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if _NO_SUDO.search(said):
        return (
            f"sudo on {host} wants a password, which rsync cannot give: connect as the models'"
            " owner, or copy the model there, source local"
        )
    if _NO_RSYNC.search(said):
        return f"rsync is not installed on {host}: run `apt-get install rsync` there"
    # flock says nothing, and whatever else keeps rsync from starting says why.
    if code == _HELD or (_CLOSED in said and all(line.startswith("rsync") for line in lines)):
        return (
            f"another run sends or stages the same model on {host}: run this again when that one is"
            " done"
        )
    return (
        f"rsync to {host} ended with exit code {code} ({' / '.join(lines[:3])}): run this again,"
        " which goes on from here"
    )


def ssh_command(option: Callable[[str], Any]) -> list[str]:
    """ssh with the settings of Ansible's connection. A password cannot be handed on: keys or an
    agent must do.
    """
    words = [str(option("ssh_executable") or "ssh"), "-o", "BatchMode=yes"]
    for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
        # Weights do not shrink, and compressing them is slower than most networks.
        words += [word for word in shlex.split(str(option(name) or "")) if word != "-C"]
    if option("port"):
        words += ["-p", str(option("port"))]
    if option("private_key_file"):
        words += ["-i", os.path.expanduser(str(option("private_key_file")))]
    if option("host_key_checking") is False:
        words += ["-o", "StrictHostKeyChecking=no"]
    return words


def rsync_words(words: list[str]) -> str:
    """The words as rsync's option --rsh splits them: quotes as in a shell, and a doubled quote for
    one.
    """
    return " ".join(
        "'" + word.replace("'", "''") + "'" if re.search(r"[\s'\"]", word) or not word else word
        for word in words
    )


class Shown:
    """Lines of progress: at most one in ten seconds, and one where nothing else was said for
    twelve.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = "begins"
        self._said_at = time.monotonic()
        self._phase: tuple[str, int, float] | None = None
        self._lock = threading.Lock()

    def progress(self, phase: str, done: int, total: int, holder: str = "") -> None:
        now = time.monotonic()
        new = self._phase is None or self._phase[0] != phase
        if self._phase is None or new:
            self._phase = (phase, done, now)
        _name, first, since = self._phase
        rate = (done - first) / (now - since) if now > since else 0.0
        with self._lock:
            self._last = describe(
                phase, done, total, (total - done) / rate if rate > 0 else None, holder
            )
            if new or now - self._said_at >= _BUDGET_S * 0.9:
                self._tell(self._last)

    def _tell(self, text: str) -> None:
        self._said_at = time.monotonic()
        self._say(text)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Says that it goes on while one slice or file takes long."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                with self._lock:
                    if time.monotonic() - self._said_at >= _HEARTBEAT_S:
                        self._tell(f"{self._last}; goes on")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def describe(phase: str, done: int, total: int, left_s: float | None, holder: str = "") -> str:
    """``copying: 12.3 of 80.1 GB (15 %), about 210 s left``."""
    if phase == "waiting":
        return f"waiting for another run that stages it{f' ({holder})' if holder else ''}"
    unit, name = (10**9, "GB") if max(total, done) >= 10**9 else (10**6, "MB")
    if total <= 0:
        return f"{phase}: {done / unit:.1f} {name}"
    left = f", about {left_s:.0f} s left" if left_s is not None else ""
    return (
        f"{phase}: {done / unit:.1f} of {total / unit:.1f} {name} ({100 * done // total} %){left}"
    )
