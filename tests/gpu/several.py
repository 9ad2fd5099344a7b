"""A server over several GPUs of one host: prepared and started by sgl-admin, and where its
processes listen meanwhile.

    python tests/gpu/several.py --out FOLDER [VARIANT ...]

What is seen is written to FOLDER/several.json after each variant. It needs this checkout, SGLang,
pebble and nvidia-ml-py in the Python that runs it, and two GPUs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

from sgl_admin.base import paths  # noqa: E402
from sgl_admin.contract import listeners  # noqa: E402
from sgl_admin.facts import devices  # noqa: E402
from tests.gpu import acceptance  # noqa: E402
from tests.gpu.models import write_qwen3_four_layers  # noqa: E402

# Dense: what is compiled for experts is the acceptance suite's.
STAGES = ("--flashinfer", "ensure", "--cuda-graph-bs", "1,2")
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tp": (("--tp", "2", "--perf", "ensure"), ()),
    "pp": (("--tp", "1"), ("--pp-size", "2")),
    "dp": (("--tp", "1"), ("--dp-size", "2")),
}
# Where a host's GPUs are shared with others, a multicast group of NVLink can put them out of
# service.
NO_MULTICAST = (
    "NCCL_NVLS_ENABLE=0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST=1",
    "NVSHMEM_DISABLE_NVLS=1",
)
SERVER = (
    "--load-format",
    "dummy",
    "--mem-fraction-static",
    "0.3",
    "--disable-custom-all-reduce",
    "--enforce-disable-flashinfer-allreduce-fusion",
)


class Several(acceptance.Acceptance):
    environment = (*acceptance.ENVIRONMENT, *NO_MULTICAST)

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self.out = root, out
        self.model = write_qwen3_four_layers(root / "models" / "qwen3-4-layers")
        paths.relocate(root)

    def variant(self, name: str) -> dict[str, Any]:
        """One way to spread the server: its preparation, once more, and a start."""
        words, server = VARIANTS[name]
        self.request = (*STAGES, *words)
        self.server = (*SERVER, *server)
        with Listening() as listening:
            first, took = self.caches("ensure")
            second, again = self.caches("ensure")
            served = self.serve()
        return {
            "variant": name,
            "first": {key: first.get(key) for key in ("stages", "perf_probe")},
            "first_s": round(took, 1),
            "second": acceptance.statuses(second),
            "second_s": round(again, 2),
            "ready_s": round(served["ready_s"], 1),
            "new_files": served["new_files"],
            "listening": sorted(listening.seen),
            "left": acceptance.compute_processes(),
        }


class Listening:
    """Every address at which a process listened that was not there before."""

    def __init__(self) -> None:
        self._before = set(listeners.pids())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: set[str] = set()

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for pid in set(listeners.pids()) - self._before - {os.getpid()}:
                links = listeners.descriptors(pid)
                for port in listeners.ports_of(links):
                    self.seen |= {
                        f"{one.address} by {listeners.command(pid)}"
                        for one in listeners.listeners(port)
                        if one.link in links
                    }


def main() -> None:
    parser = acceptance.parser(__doc__, "/tmp/sgl-several")
    parser.add_argument("variants", nargs="*", choices=("all", *VARIANTS), default="all")
    arguments = parser.parse_args()
    count = devices.find().count
    acceptance.check(count > 1, f"several GPUs are needed, and this machine has {count}")
    several = Several(arguments.root, arguments.out)
    found: list[dict[str, Any]] = []
    for name in acceptance.chosen(arguments.variants, VARIANTS):
        started = time.monotonic()
        found.append(seen := several.variant(name))
        several.save("several", {"variants": found})
        shown = {key: value for key, value in seen.items() if key != "first"}
        print({**shown, "new_files": len(seen["new_files"])}, flush=True)
        print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)
        for stage, done in seen["first"]["stages"].items():
            print(f"{stage:10} {done['status']:7} {done['duration_s']:8.1f} s {done['errors']}")
        statuses = acceptance.statuses(seen["first"])
        acceptance.check({*statuses} <= {"ok", "noop", "skipped"}, f"{name}: {statuses}")
        acceptance.check("ok" not in seen["second"], f"{name}, again: {seen['second']}")
        acceptance.check(not seen["new_files"], f"{name}: new files: {seen['new_files'][:9]}")
        acceptance.check(not seen["left"], f"{name}: left on the GPUs: {seen['left']}")


if __name__ == "__main__":
    main()
