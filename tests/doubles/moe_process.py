"""The tuning process as it is, on a GPU that is none and misbehaves as it is told.

It stands for sgl_admin.moe.tune_process with torch, Triton and an SGLang: its order, journal,
search, compiling processes and what it tells are real. MOE_GPU says by JSON at which call of the
bench (`at`, and `size` and `config` where they matter) what happens (`do`), the first so many
`times`; `notes` is the folder in which that is counted and each look is noted. `uncompilable` is a
configuration.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sgl_admin.moe import space, tune_process
from sgl_admin.moe.compiling import Compilers, Launch
from sgl_admin.moe.search import CannotRun
from sgl_admin.moe.space import Config
from tests.doubles import moe_compile_work
from tests.doubles.moe_bench import time_us

_TOLD: dict[str, Any] = json.loads(os.environ.get("MOE_GPU", "{}"))
_NOTES = Path(_TOLD.get("notes", "/nonexistent"))


class OutOfMemoryError(RuntimeError):
    """As torch.cuda's."""


def _note(name: str, line: str) -> None:
    with open(_NOTES / name, "a") as stream:
        stream.write(line + "\n")


def _misbehave(at: str, size: int = 0, config: Config | None = None) -> None:
    if (
        _TOLD.get("at") != at
        or _TOLD.get("size", size) != size
        or _TOLD.get("config", config) != config
    ):
        return
    counted = _NOTES / "misbehaved"
    if counted.exists() and len(counted.read_text().splitlines()) >= _TOLD.get("times", 1):
        return
    _note("misbehaved", f"{os.getpid()}")
    match _TOLD["do"]:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(600)
        case "memory":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        case "no space":
            raise OSError(28, "No space left on device", "/profiles/kernel.cubin")
        case "no permission":
            raise PermissionError(13, "Permission denied", "/profiles/kernel.cubin")
        case "no gpu":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cannot run":
            raise CannotRun("none of 12 configurations can be used at batch size 16")
        case "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "stay":
            # All is told, and yet the process does not end.
            os.close(int(sys.argv[1]))
            time.sleep(600)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)


class FusedExperts:
    """As sgl_admin.moe.bench's."""

    def __init__(self, shape: object, release: object) -> None:
        _note("began", f"{os.getpid()}")
        _misbehave("init")

    def warm(self, sizes: Sequence[int], config: Config) -> None:
        _misbehave("warm")

    def launches(self, size: int, config: Config) -> list[Launch]:
        _misbehave("launches", size, config)
        group = "sixteens" if size % 16 == 0 else "odd"
        what = "raise ptxas fatal" if config == _TOLD.get("uncompilable") else "nothing"
        return [Launch(f"{group} {space.key(config)}", "m", "f", what)]

    def look(self, size: int, config: Config, hopeless_us: float) -> float:
        _note("looks", f"{size} {space.key(config)}")
        _misbehave("look", size, config)
        return time_us(size, config)

    def compare(self, size: int, configs: Sequence[Config], turns: int) -> list[float]:
        _misbehave("compare", size)
        return [time_us(size, config) for config in configs]


def main() -> int:
    torch, bench = ModuleType("torch"), ModuleType("sgl_admin.moe.bench")
    torch.__dict__["cuda"] = ModuleType("torch.cuda")
    torch.__dict__["cuda"].__dict__["OutOfMemoryError"] = OutOfMemoryError
    bench.__dict__["FusedExperts"] = FusedExperts
    sys.modules.update({"torch": torch, "sgl_admin.moe.bench": bench})
    with_work = functools.partial(
        Compilers, work=moe_compile_work.work, start=moe_compile_work.begin
    )
    setattr(tune_process, "Compilers", with_work)  # noqa: B010 - a name of its module's, which mypy knows for a class
    ended = tune_process.main()
    _misbehave("end")
    return ended


if __name__ == "__main__":
    sys.exit(main())
