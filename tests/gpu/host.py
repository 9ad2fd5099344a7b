"""The host's measurements on a machine with GPUs, without a server: three times, beside plain loops
of torch, once while another process uses the first GPU, and once while one makes an Xid error.

    python tests/gpu/host.py --out FOLDER [--gpus 2]

What is seen is written to FOLDER/host.json after each step. It needs this checkout, torch, psutil
and nvidia-ml-py in the Python that runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

from sgl_admin.contract import perf  # noqa: E402
from sgl_admin.facts import devices  # noqa: E402
from sgl_admin.perf import data_sheet  # noqa: E402
from sgl_admin.perf.measuring import Measured, Measuring  # noqa: E402
from sgl_admin.perf.verdict import Verdict  # noqa: E402

# Each in TFLOP/s or GB/s, timed by CUDA's events: nothing of the product is in it.
PLAIN = """
import json, sys, torch
size, mib = 8192, 1 << 20
def tell(name, value): print(json.dumps({"name": name, "value": value}), flush=True)
def rate(call, amount, seconds=4.0):
    call(); torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    rates, spent = [], 0.0
    while spent < seconds:
        begin.record()
        for _ in range(20): call()
        end.record(); end.synchronize()
        took = begin.elapsed_time(end) / 1000
        spent += took; rates.append(20 * amount / took)
    return sorted(rates)[len(rates) // 2]
a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
tell("gemm_bf16", rate(lambda: a @ b, 2 * size**3 / 1e12))
x, y = (t.to(torch.float8_e4m3fn) for t in (a, b))
one = torch.tensor(1.0, device="cuda")
scaled = lambda: torch._scaled_mm(x, y.t(), one, one, out_dtype=torch.bfloat16)
tell("gemm_fp8", rate(scaled, 2 * size**3 / 1e12))
s, t = (torch.empty(1024 * mib, dtype=torch.uint8, device="cuda") for _ in range(2))
tell("hbm_copy", rate(lambda: t.copy_(s), 2 * 1024 * mib / 1e9))
h = torch.empty(1024 * mib, dtype=torch.uint8, pin_memory=True)
up, down = lambda: t.copy_(h, non_blocking=True), lambda: h.copy_(t, non_blocking=True)
tell("h2d", rate(up, 1024 * mib / 1e9))
tell("d2h", rate(down, 1024 * mib / 1e9))
"""
# A neighbour on the GPU: it ends with its standard input.
NEIGHBOUR = """
import sys, threading, torch
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
print("loaded", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
while True:
    for _ in range(50): a @ a
    torch.cuda.synchronize()
"""

# A program that writes where nothing is, some seconds after it began; triton reads it as a file.
WILD = """
import time, torch, triton
import triton.language as tl
@triton.jit
def wild(pointer):
    tl.store(pointer + (1 << 38), 1.0)
somewhere = torch.zeros(16, device="cuda")
time.sleep(10)
wild[(1,)](somewhere)
torch.cuda.synchronize()
"""


def measured(gpus: int, log: Path, name: str) -> dict[str, Any]:
    began = time.monotonic()
    found = Measuring(gpus, dict(os.environ), log, lambda *_: None, lambda group: None).run()
    return {"seconds": round(time.monotonic() - began, 2), **described(found, name)}


def described(found: Measured, name: str) -> dict[str, Any]:
    floors, without = data_sheet.judge(name, found.values)
    verdict = Verdict(tuple(floors), tuple(found.seen.findings()), {})
    gpus = [gpu for sample in found.seen.samples for gpu in sample.gpus]
    return {
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "without": without,
        "values": {key: float(perf.shown(value)) for key, value in found.values.items()},
        "spread_percent": found.spreads,
        "skipped": found.skipped,
        "judgements": [asdict(each) for each in floors],
        "samples": len(found.seen.samples),
        "a_second": rate_of(found),
        "first": asdict(gpus[0]) if gpus else None,
        "busiest": asdict(max(gpus, key=lambda each: each.power_w or 0)) if gpus else None,
        "xids": sorted({code for gpu in gpus for code in gpu.xids}),
        "most_sm_mhz": max((gpu.sm_mhz or 0 for gpu in gpus), default=None),
        "throttles": sorted({name for gpu in gpus for name in gpu.throttles}),
        "processes": [asdict(each) for each in found.seen.processes.values()],
    }


def rate_of(found: Measured) -> float | None:
    samples = found.seen.samples
    return round((len(samples) - 1) / samples[-1].at_s, 2) if samples and samples[-1].at_s else None


@contextlib.contextmanager
def neighbour() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(timeout=30)


@contextlib.contextmanager
def wild(folder: Path) -> Iterator[subprocess.Popen[str]]:
    path = folder / "wild.py"
    path.write_text(WILD)
    process = subprocess.Popen([sys.executable, path], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def plain() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: round(line["value"], 1) for line in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    log, seen = given.out / "measuring.log", {}
    device = devices.find()
    gpus = given.gpus if given.gpus is not None else device.count if device.cuda else 0
    seen["device"] = {**asdict(device), "settings": devices.settings(None) if gpus else []}

    def note(name: str, value: Any) -> None:
        seen[name] = value
        (given.out / "host.json").write_text(json.dumps(seen, indent=1))
        print(json.dumps({name: value}), flush=True)

    def attempt(name: str) -> None:
        try:
            note(name, measured(gpus, log, device.name))
        except Exception as error:
            note(name, {"failed": f"{type(error).__name__}: {error}"})

    for number in range(given.times):
        attempt(f"run {number + 1}")
    if gpus:
        note("plain", plain())
        with neighbour() as pid:
            note("neighbour", pid)
            attempt("beside a neighbour")
        with wild(given.out) as process:
            attempt("beside a program that fails")
            _none, said = process.communicate()
            note("the program that failed", said.splitlines()[-1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
