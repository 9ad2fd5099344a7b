"""What `sgl-admin server start` brings by reading the weights while the server imports: starts with
it and without it in turns, each with the weights on the disk alone.

    python tests/gpu/start.py --out FOLDER [--turns 3]

Writes 16.4 GB of random weights below `--root`. It needs this checkout, SGLang, pebble and
nvidia-ml-py in the Python that runs it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

from sgl_admin.base import paths  # noqa: E402
from tests.gpu import acceptance  # noqa: E402
from tests.gpu.models import write_qwen3_8b  # noqa: E402

WITH, WITHOUT = "read_ahead", "as_sglang_does"
# Without graphs, imports and weights are all of the start.
SERVER = ("--mem-fraction-static", "0.6", "--disable-cuda-graph")
REQUEST = ("--deep-gemm", "skip", "--moe", "skip", "--flashinfer", "skip")
_LOADED = re.compile(r"Load weight end\. elapsed=([0-9.]+) s")
# sgl-admin without the one thing that is measured.
_WITHOUT = """
import runpy, sys
from sgl_admin.serving import read_ahead
read_ahead.begin = lambda *words: None
sys.argv = ["sgl-admin", *sys.argv[1:]]
runpy.run_module("sgl_admin", run_name="__main__", alter_sys=True)
"""


class Starts(acceptance.Acceptance):
    server = SERVER

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self.out, self.request = root, out, REQUEST
        self.model = root / "models" / "qwen3-8b-random"
        if not (self.model / "model.safetensors.index.json").exists():
            write_qwen3_8b(self.model)
        os.sync()
        paths.relocate(root)

    def start(self, variant: str) -> dict[str, Any]:
        """One start until `/health`, in seconds; of it what SGLang says of loading the weights."""
        began = resident(self.model)
        forget(self.model)
        log = max(paths.LOGS.glob("*.log"), key=lambda path: path.stat().st_mtime)
        length, before = log.stat().st_size, resident(self.model)
        started = time.monotonic()
        way = ["-c", _WITHOUT] if variant == WITHOUT else ["-m", "sgl_admin"]
        done = self.python(*way, "server", "start", "--json", timeout_s=300)
        try:
            acceptance.check(done.returncode == 0, f"server start: {done.stdout[-500:]}")
            ready_s = self.wait_healthy(started)
        finally:
            self.admin("server", "stop", "--json")
        text = log.read_bytes()[length:].decode(errors="replace")
        return {
            "variant": variant,
            "resident_before_drop": began,
            "resident_before": before,
            "ready_s": round(ready_s, 2),
            "weights_s": [float(found) for found in _LOADED.findall(text)],
        }


def weights(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def forget(model: Path) -> None:
    """Drop the weights from the page cache."""
    for path in weights(model):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(model: Path) -> float:
    """The share of the weights that is in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    there = pages = 0
    for path in weights(model):
        size = path.stat().st_size
        count = -(-size // mmap.PAGESIZE)
        found = ctypes.create_string_buffer(count)
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE) as area:
            address = ctypes.c_char.from_buffer(area)
            code = libc.mincore(ctypes.addressof(address), size, found)
            del address
        acceptance.check(code == 0, f"mincore: {os.strerror(ctypes.get_errno())}")
        pages += count
        there += sum(byte & 1 for byte in found.raw)
    return round(there / pages, 4)


def main() -> None:
    parser = acceptance.parser(__doc__, "/tmp/sgl-start")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    starts = Starts(arguments.root, arguments.out)
    result, took = starts.caches("ensure")
    print(f"prepared in {took:.1f} s: {acceptance.statuses(result)}", flush=True)
    found: list[dict[str, Any]] = []
    for turn in range(arguments.turns):
        for variant in (WITHOUT, WITH):
            found.append({"turn": turn, **starts.start(variant)})
            print(found[-1], flush=True)
            starts.save("start", {"starts": found})
    for variant in (WITHOUT, WITH):
        each = [start["ready_s"] for start in found if start["variant"] == variant]
        print(f"{variant}: ready after {median(each):.1f} s (median of {len(each)})")


if __name__ == "__main__":
    main()
