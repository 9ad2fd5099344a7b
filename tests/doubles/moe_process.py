"""The tuning process as it is, on a double of a GPU that misbehaves on demand.

It stands for sgl_admin.moe.tune_process with torch, Triton and an SGLang: its order, journal,
search, compiling processes and what it tells are real. MOE_GPU says by JSON at which call of the
bench (`at`, and `size` and `config` where they matter) what happens (`do`), the first so many
`times`; `notes` is the folder in which that is counted and each look is noted. `uncompilable` is a
configuration. Where it happens on one GPU alone, `gpu` is what CUDA_VISIBLE_DEVICES says there;
`together` is the number of GPUs that have to look at something before any goes on.
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

from sgl_admin.base import ordered
from sgl_admin.moe import space, tune_process
from sgl_admin.moe.compiling import Compilers, Launch
from sgl_admin.moe.search import _LAST_TURNS, CannotRun
from sgl_admin.moe.space import Config, Trial
from sgl_admin.moe.tables import Pair
from tests.doubles import moe_compile_work
from tests.doubles.moe_bench import Bench, Tables, time_us

_TOLD: dict[str, Any] = json.loads(os.environ.get("MOE_GPU", "{}"))
_NOTES = Path(_TOLD.get("notes", "/nonexistent"))
_GPU = os.environ.get("CUDA_VISIBLE_DEVICES")


class OutOfMemoryError(RuntimeError):
    """As torch.cuda's."""


def _note(name: str, line: str) -> None:
    with open(_NOTES / name, "a") as stream:
        stream.write(line + "\n")


def _misbehave(at: str, size: int = 0, config: Config | None = None) -> None:
    if (
        _TOLD.get("at") != at
        or _TOLD.get("gpu", _GPU) != _GPU
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
            raise CannotRun("no configuration can be used at batch size 16")
        case "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "bug":
            # torch 2.14.1, for an FP8 tensor.
            raise NotImplementedError("\"normal_kernel_cuda\" not implemented for 'Float8_e4m3fn'")
        case "stay":
            # All is reported, and yet the process does not end.
            os.close(int(sys.argv[1]))
            time.sleep(600)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)


def _await_others(patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while len(list(_NOTES.glob("at-*"))) < _TOLD.get("together", 1):
        assert time.monotonic() < deadline, "the other GPUs do not look at anything"
        time.sleep(0.01)


class FusedExperts(Bench):
    """As sgl_admin.moe.bench's."""

    def __init__(self, shape: object, release: object, rivals: Tables) -> None:
        _note("began", f"{os.getpid()}")
        _misbehave("init")
        super().__init__({}, rivals=rivals)
        self._known: dict[str, Launch] = {}

    def warm(self, sizes: Sequence[int]) -> None:
        _misbehave("warm")

    def group(self, size: int) -> str:
        return "sixteens" if size % 16 == 0 else "odd"

    def launches(self, size: int, trial: Trial) -> list[str]:
        _misbehave("launches", size, trial.config)
        keys = super().launches(size, trial)
        what = "raise ptxas fatal" if trial.config == _TOLD.get("uncompilable") else "nothing"
        self._known.update({key: Launch(key, "m", "f", what) for key in keys})
        return keys

    def known(self, key: str) -> Launch:
        return self._known[key]

    def look(self, size: int, trial: Trial, hopeless_us: float) -> float:
        _note("looks", f"{size} {trial.part} {space.key(trial.config)}")
        _note(f"at-{_GPU}", f"{size}")
        _await_others()
        _misbehave("look", size, trial.config)
        return time_us(size, trial)

    def check(self, size: int, pair: Pair) -> None:
        _misbehave("check", size, pair.up)

    def compare(self, size: int, pairs: Sequence[Pair], turns: int) -> list[list[float]]:
        _note(f"at-{_GPU}", f"{size}")
        if turns == _LAST_TURNS:
            _misbehave("compare", size)
        return super().compare(size, pairs, turns)


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
    ended = ordered.obey(tune_process.tune)
    _misbehave("end")
    return ended


if __name__ == "__main__":
    sys.exit(main())
