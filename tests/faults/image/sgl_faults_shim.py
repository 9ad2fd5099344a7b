"""Counts every operation by which sgl-admin and the init change a file or a folder, and fails at
one of them.

It is no list of the product's writers made by hand: it stands in the functions by which Python
changes files, for every caller, and an audit hook reports what came by another way (operation
`missed`), so that the count is known to be whole.

In the folder that SGL_TEST_FAULTS names:

    operations.log  a line for each operation: program, its number in that process, the operation,
                    the path
    plan            `<program>:<number>:<kind>`: what to do, once, at which operation of which
                    program
    hit             made when it was done; from then on the plan is void, so that the next
                    start runs undisturbed
    full            while it is there, whatever needs space fails, in every program

The kinds: `before` and `after` end the process there; `torn` ends it with a file's last bytes lost,
at a write or an fsync; `enospc` lets that operation fail for want of space, a write in its middle;
`full` that one and every later one, until `full` goes.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PROGRAMS = {
    "sgl_admin": "cli",
    "sgl_admin.prep.worker": "worker",
    "sgl_admin.smoke.worker": "smoke",
    "sgl_admin.init.start": "start",
    "sgl_admin.init.publish": "publish",
}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# A full disk refuses these; it lets everything else through.
NEED_SPACE = frozenset(
    {
        "open",
        "write",
        "mkdir",
        "fsync",
        "fsync_folder",
        "fdatasync",
        "rename",
        "replace",
        "link",
        "symlink",
        "truncate",
        "ftruncate",
    }
)
# What the audit hook sees of the functions that are replaced below, and of those that are not.
AUDITED = frozenset(
    "os.rename os.remove os.mkdir os.rmdir os.link os.symlink os.truncate os.chmod os.chown"
    " os.utime os.setxattr os.mkfifo".split()
)
T = TypeVar("T")


def install(folder: str, argv: list[str]) -> None:
    """Begin to count in this process, if it is one of the product's programs."""
    module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
    if module in PROGRAMS:
        Shim(folder, PROGRAMS[module]).install()


class Shim:
    def __init__(self, folder: str, program: str) -> None:
        self._folder = folder
        self._program = program
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._number = 0
        self._open = io.open
        self._os = {
            name: getattr(os, name)
            for name in ("open", "write", "close", "stat", "fstat", "readlink", "ftruncate")
        }
        plan = self._read("plan") if not self._there("hit") else ""
        named, _, rest = plan.strip().partition(":")
        number, _, kind = rest.partition(":")
        self._planned = (int(number), kind) if named == program else (0, "")

    # --- one operation ----------------------------------------------------------------------------

    def step(
        self,
        operation: str,
        path: str,
        do: Callable[[], T],
        torn: Callable[[], object] | None = None,
        changes: bool = True,
    ) -> T:
        """Count an operation and do it, or what the plan says in its place. `torn` does half of it;
        what changes nothing does not count.
        """
        if getattr(self._inside, "depth", 0) or not self._counts(path):
            return do()
        if not changes:
            self._inside.depth = 1
            try:
                return do()
            finally:
                self._inside.depth = 0
        with self._lock:
            self._number += 1
            number = self._number
        self._log(number, operation, path)
        kind = self._planned[1] if number == self._planned[0] else ""
        self._inside.depth = 1
        try:
            if kind in ("before", "torn"):
                self._hit()
                if kind == "torn" and torn is not None:
                    torn()
                self._die()
            if kind in ("enospc", "full"):
                self._hit()
                if kind == "full":
                    self._touch("full")
            if kind in ("enospc", "full") or (operation in NEED_SPACE and self._there("full")):
                if operation == "write" and torn is not None:
                    torn()
                raise OSError(
                    errno.ENOSPC,
                    os.strerror(errno.ENOSPC),
                    *(() if operation == "write" or "sync" in operation else (path,)),
                )
            try:
                return do()
            finally:
                if kind == "after":
                    self._hit()
                    self._die()
        finally:
            self._inside.depth = 0

    def _die(self) -> None:
        if os.getpid() == 1:
            # The kernel ignores a SIGKILL that the first process of a container sends itself; so it
            # ends at once, and with it all others.
            os._exit(137)
        os.kill(os.getpid(), signal.SIGKILL)

    def _counts(self, path: str) -> bool:
        return path.startswith("/") and not path.startswith(("/dev/", "/proc/", self._folder))

    # --- the functions that change files ----------------------------------------------------------

    def install(self) -> None:
        for name in (
            "mkdir",
            "rmdir",
            "unlink",
            "remove",
            "rename",
            "replace",
            "link",
            "symlink",
            "truncate",
            "chmod",
            "chown",
            "utime",
        ):
            self._replace_by_path(name)
        for name in ("fsync", "fdatasync", "fchmod", "fchown", "ftruncate"):
            self._replace_by_descriptor(name)
        self._replace_open()
        self._replace_write()
        shim = self

        class CountedFile(io.FileIO):
            """The lowest layer of an open file, which every write of the layers above comes down
            to.
            """

            counted_path = ""

            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                write = super().write
                written: int = shim.step(
                    "write",
                    self.counted_path,
                    lambda: write(view),
                    lambda: write(view[: len(view) // 2]),
                )
                return written

        def counted_open(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            path = shim._path(file)
            if not set(mode) & set("wax+") or not shim._counts(path):
                return shim._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw_mode = mode.replace("b", "").replace("t", "")

            def make() -> CountedFile:
                return CountedFile(file, raw_mode, closefd, opener)

            raw = (
                make()
                if isinstance(file, int)
                else shim.step("open", path, make, changes="w" in mode or not shim._exists(path))
            )
            raw.counted_path = path
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
            )

        builtins.open = io.open = counted_open
        sys.addaudithook(self._audit)

    def _replace_by_path(self, name: str) -> None:
        real = getattr(os, name)

        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            # Of a rename, the place where the content becomes visible.
            shown = arguments[0] if name in ("rename", "replace", "link", "symlink") else path
            shown = self._path(shown, options.get("dir_fd"))
            # Of a path of which more is missing, the rest is asked for first, and then this again.
            changes = name != "mkdir" or (
                not self._exists(shown) and self._exists(os.path.dirname(shown))
            )
            return self.step(
                name, shown, lambda: real(path, *arguments, **options), changes=changes
            )

        setattr(os, name, counted)
        # `shutil` and others ask whether a function takes a descriptor of a folder.
        for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if real in group:
                group.add(counted)

    def _replace_by_descriptor(self, name: str) -> None:
        real = getattr(os, name)

        def counted(descriptor: Any, *arguments: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            regular = stat.S_ISREG(self._os["fstat"](number).st_mode)
            half = (
                (lambda: self._os["ftruncate"](number, self._os["fstat"](number).st_size // 2))
                if regular and "sync" in name
                else None
            )
            operation = f"{name}_folder" if "sync" in name and not regular else name
            return self.step(
                operation, self._path(number), lambda: real(descriptor, *arguments), half
            )

        setattr(os, name, counted)

    def _replace_open(self) -> None:
        real = os.open

        def counted(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if not flags & WRITE_FLAGS:
                return real(path, flags, mode, dir_fd=dir_fd)
            shown = self._path(path, dir_fd)
            changes = bool(flags & os.O_TRUNC or (flags & os.O_CREAT and not self._exists(shown)))
            return self.step(
                "open", shown, lambda: real(path, flags, mode, dir_fd=dir_fd), changes=changes
            )

        os.open = counted
        if real in os.supports_dir_fd:
            os.supports_dir_fd.add(counted)

    def _replace_write(self) -> None:
        real = os.write

        def counted(descriptor: int, data: Any) -> int:
            half = bytes(data)[: len(data) // 2]
            return self.step(
                "write",
                self._path(descriptor),
                lambda: real(descriptor, data),
                lambda: real(descriptor, half),
            )

        os.write = counted

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(self._inside, "depth", 0):
            return
        if (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & WRITE_FLAGS
            and not isinstance(arguments[0], int)
        ):
            path = self._path(arguments[0])
        elif event in AUDITED:
            path = self._path(arguments[0])
        else:
            return
        if self._counts(path):
            self._log(0, "missed", f"{event} {path}")

    # --- paths, and this folder's own files -------------------------------------------------------

    def _path(self, path: Any, folder: int | None = None) -> str:
        """The absolute path of a path, a name in an open folder, or a descriptor."""
        if isinstance(path, int):
            try:
                return str(self._os["readlink"](f"/proc/self/fd/{path}"))
            except OSError:
                return ""
        name = os.fsdecode(path)
        base = self._path(folder) if isinstance(folder, int) and folder >= 0 else os.getcwd()
        return name if name.startswith("/") else f"{base}/{name}"

    def _log(self, number: int, operation: str, path: str) -> None:
        self._append("operations.log", f"{self._program} {number} {operation} {path}\n")

    def _hit(self) -> None:
        self._append("hit", "hit\n")

    def _touch(self, name: str) -> None:
        self._append(name, "")

    def _append(self, name: str, text: str) -> None:
        descriptor = self._os["open"](
            f"{self._folder}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
        self._os["write"](descriptor, text.encode())
        self._os["close"](descriptor)

    def _there(self, name: str) -> bool:
        return self._exists(f"{self._folder}/{name}")

    def _exists(self, path: str) -> bool:
        try:
            self._os["stat"](path)
        except OSError:
            return False
        return True

    def _read(self, name: str) -> str:
        try:
            return Path(self._folder, name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
