"""Compiles kernel launches in parallel processes, from one queue and with a time limit for each.

A launch is what Triton hands to its cache hook before it compiles; `JITFunction.preload` compiles
the same from it in another process, into the same cache. No process here uses the GPU: its kind is
all that the compiler has to know.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from sgl_admin.base.gate import end_with_parent
from sgl_admin.contract import locks

# For another process's compiler; after that the kernel is compiled twice.
_WAIT_S = 60.0


@dataclass(frozen=True)
class Launch:
    """One kernel with its types and constants."""

    key: str
    module: str
    function: str
    specialization: str


@dataclass(frozen=True)
class _NoDevice:
    """Stands in the place of Triton's driver: it knows the target, and nothing can be launched on
    it.
    """

    sm: int

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.sm, 32)


def begin(sm: int, niceness: int) -> None:
    """Makes a process a compiler for a compute capability, as a number: 90 for Hopper."""
    os.nice(niceness)
    # The parent limits how long one may hang: without the parent it must end.
    end_with_parent()
    from triton.runtime import driver

    driver.set_active(_NoDevice(sm))


def compile_launch(launch: Launch) -> None:
    """Compiles into the cache of this process's environment; what is there already is not done
    again.
    """
    function = getattr(importlib.import_module(launch.module), launch.function)
    function.preload(launch.specialization)


def _once(work: Callable[[Launch], None], launch: Launch, folder: Path) -> None:
    """While one process compiles a kernel, another one that needs it waits, and then finds it in
    the cache.
    """
    path = folder / hashlib.sha256(launch.key.encode()).hexdigest()
    descriptor = locks.open_file(str(path))
    try:
        with contextlib.suppress(locks.LockTimeout):
            locks.take(descriptor, _WAIT_S, str(path))
        work(launch)
    finally:
        os.close(descriptor)


def _ready() -> None:
    """Nothing: a compiler that has done this has started."""


class Compilers:
    """Compiling processes, started at once so that they are there when they are needed."""

    def __init__(
        self, sm: int, modules: Iterable[str], workers: int, limit_s: float,
        work: Callable[[Launch], None] = compile_launch, start: Callable[[int, int], None] = begin,
        shared: Path | None = None, niceness: int = 0,
    ) -> None:  # fmt: skip
        """`modules` are imported once, before the processes are forked from whatever did it; a
        compiler over `limit_s` seconds is ended. `shared` is a folder of those who share the cache.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(modules))
        self._limit_s = limit_s
        self._work = work
        if shared is not None:
            shared.mkdir(parents=True, exist_ok=True)
            self._work = functools.partial(_once, work, folder=shared)
        self._pool = ProcessPool(
            max_workers=workers,
            context=context,
            initializer=start,
            initargs=(sm, niceness),
        )
        self._pool.schedule(_ready)

    def begin(self, launches: Iterable[Launch]) -> None:
        """Compile every launch some time; the caller that needs one sees whether it failed."""
        for launch in launches:
            self._pool.schedule(self._work, args=(launch,), timeout=self._limit_s)

    def compile(
        self, launches: Iterable[Launch], progress: Callable[[int, int], None]
    ) -> Mapping[str, str]:
        """Compile every launch; returns why for each that could not be, by key."""
        pending: dict[futures.Future[None], Launch] = {
            self._pool.schedule(self._work, args=(launch,), timeout=self._limit_s): launch
            for launch in launches
        }
        failed: dict[str, str] = {}
        for done, future in enumerate(futures.as_completed(pending)):
            progress(done, len(pending))
            launch = pending[future]
            try:
                future.result()
            except futures.TimeoutError:
                failed[launch.key] = f"its compiler took more than {self._limit_s:.0f} s"
            except ProcessExpired as error:
                failed[launch.key] = f"its compiler ended with exit code {error.exitcode}"
            except Exception as error:
                failed[launch.key] = (
                    f"it does not compile: {type(error).__name__}: {str(error)[:200]}"
                )
        progress(len(pending), len(pending))
        return failed

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()
