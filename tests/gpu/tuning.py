"""The MoE tuner on one GPU or more, and what its files bring: at many sizes from 1 to 16384, also
between the files' rows, against SGLang's defaults and the files that it ships.

    python tests/gpu/tuning.py --out FOLDER --shape fp8 [--seconds 570] [--cards 2]

Tunes what the stage tunes, then measures in a fresh process, in turns. Whatever is known is in
FOLDER at once, as JSON; begun again with the same `--root`, it goes on where it was. It needs this
checkout, SGLang, pebble and nvidia-ml-py in the Python that runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

from sgl_admin.base import paths, versions  # noqa: E402
from sgl_admin.facts import devices, gpu_fit  # noqa: E402
from sgl_admin.moe import config_files, gain, space, tables, verdict  # noqa: E402
from sgl_admin.moe.shape import Lookup, MoeShape  # noqa: E402
from sgl_admin.moe.tables import Pair  # noqa: E402
from sgl_admin.moe.tuner import Order, Tuner  # noqa: E402
from sgl_admin.sglang import ENGINE  # noqa: E402
from sgl_admin.stages.moe_tune import BATCH_SIZES  # noqa: E402

LARGEST = 16384
TURNS = 30
# What the measuring needs of the time that a command has.
MEASURE_S = 170.0
# Qwen3-Next-80B-A3B-FP8 with its shared expert fused, the same on two ranks, and Qwen3-30B-A3B.
SHAPES = {
    "fp8": MoeShape(Lookup(513, 512, "fp8_w8a8", (128, 128)), 2048, 10, 1, "bfloat16"),
    "ep2": MoeShape(Lookup(257, 512, "fp8_w8a8", (128, 128)), 2048, 10, 1, "bfloat16", ranks=2),
    "bf16": MoeShape(Lookup(128, 768, None, None), 2048, 8, 0, "bfloat16"),
    # GLM-4.5-FP8 on eight GPUs, and Qwen3-30B-A3B-GPTQ-Int4, which was not measured yet.
    "channel": MoeShape(Lookup(161, 192, "fp8_w8a8", None, True), 5120, 8, 1, "bfloat16"),
    "int4": MoeShape(Lookup(128, 384, "int4_w4a16", None), 2048, 8, 0, "bfloat16", group=128),
}


class Tuning:
    def __init__(
        self, name: str, root: Path, out: Path, sample: int | None = None, cards: int = 1
    ) -> None:
        self.name, self.root, self.out = name, root, out
        self.shape = SHAPES[name]
        self.sample = sample
        self.cards = cards
        out.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        paths.relocate(root)
        self.release, _ = ENGINE.release()
        self.device = devices.find()
        self.sm = int((self.device.compute_capability or "0").replace(".", ""))
        self.triton = str(versions.installed("triton"))
        self.path = config_files.folder(self.triton) / ENGINE.moe.file_name(
            self.shape.lookup, self.device.name
        )
        self.tuning = {"measured": name, "sample": sample, "sglang": ENGINE.version()}

    def rivals(self) -> dict[str, Any]:
        names = [self.device.name, *ENGINE.moe.nearest_devices(self.device.name, self.sm)]
        return config_files.rivals(self.path, self.release, names, self.triton)

    def tune(self) -> dict[str, Any]:
        """The stage's work without a server; each row is in the files and in `out` at once."""
        done = self.out / f"tuned-{self.name}.json"
        if (self.root / done.name).exists():
            known = dict(json.loads((self.root / done.name).read_text()))
            self._save(done, known)
            return known
        rivals = self.rivals()
        rivals.pop(verdict.PREVIOUS, None)
        others = {size for each in rivals.values() for size in each["up"] or ()}
        hopper = self.sm >= 90 and self.shape.by_tma
        both = self.release.down_files
        order = Order(
            space.configs(self.shape.lookup.block_shape, self.sample),
            tables.ladder(BATCH_SIZES, others, LARGEST),
            {},
            rivals,
            up_tma=hopper and self.release.up_tma,
            down_tma=hopper and both,
            base=lambda rows: config_files.lay(self.path, rows, both),
        )
        log = self.root / f"tuner-{self.name}.log"
        log.touch()
        started, at = time.monotonic(), []

        def found(size: int, pair: Pair, row: dict[str, Any]) -> None:
            config_files.add(self.path, self.tuning, size, *pair, row, both)
            at.append([size, round(time.monotonic() - started, 1)])
            print(f"{at[-1][1]:7.1f} s  {size:6} {row}", flush=True)
            self._save(done, {"rows_at_s": at, "gain": self._gain()})

        tuner = Tuner(
            self.shape,
            order,
            self.tuning,
            self.sm,
            log,
            _tell(started),
            lambda group: None,
            {},
            self._gpus(),
        )
        try:
            outcome = vars(tuner.run(list(BATCH_SIZES), found))
        finally:
            shutil.copy(log, self.out)
            for file in (self.path, config_files.down_file(self.path)):
                if file.exists():
                    shutil.copy(file, self.out)
        result = {
            "device": self.device.name,
            "outcome": outcome,
            "rows_at_s": at,
            "gain": self._gain(),
        }
        self._save(done, result)
        (self.root / done.name).write_text(json.dumps(result))
        return result

    def _gpus(self) -> gpu_fit.Gpus | None:
        """So many of those that are idle; with one card the first that CUDA shows."""
        if self.cards == 1:
            return None
        found = gpu_fit.all_idle(self.device)
        if len(found.idle) < self.cards:
            raise SystemExit(f"{len(found.idle)} GPUs are idle ({', '.join(found.busy)})")
        return replace(found, idle=found.idle[: self.cards])

    def _gain(self) -> dict[str, Any] | None:
        return gain.summary(config_files.gains(self.path, self.tuning))

    def _save(self, path: Path, found: dict[str, Any]) -> None:
        path.write_text(json.dumps({"machine": machine(), **found}, indent=1))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Defaults, shipped files and ours at many sizes, in a fresh process."""
        up, down = (
            config_files.read(self.path),
            config_files.read(config_files.down_file(self.path)),
        )
        rivals = {name: each for name, each in self.rivals().items() if name != verdict.PREVIOUS}
        order: dict[str, Any] = {
            "name": self.name,
            "sizes": sizes(sorted(up)),
            "rivals": {**rivals, "ours": {"up": up, "down": down or None}},
            "out": str(self.out / f"measured-{self.name}.json"),
            "sm": self.sm,
            "seconds": seconds,
        }
        cache = self.root / "triton-measure"
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        given = self.root / f"measure-{self.name}.in.json"
        given.write_text(json.dumps(order))
        subprocess.run(
            [sys.executable, __file__, "--measure", str(given)], env=environment, check=True
        )
        found: dict[str, Any] = json.loads(Path(order["out"]).read_text())
        return found


def sizes(keys: list[int]) -> list[int]:
    """At least 40 from 1 to 16384: the keys, where one gives way to the next, and others."""
    wanted = {1, LARGEST, *keys}
    for low, high in tables.gaps(keys):
        wanted |= {tables.middle(low, high), min(high, tables.middle(low, high) + 1)}
    wanted |= {round(1.37**power) for power in range(1, 31)}
    return sorted(size for size in wanted if 1 <= size <= LARGEST)


def _tell(started: float) -> Any:
    last = [""]

    def tell(done: int, total: int, unit: str, message: str) -> None:
        if message != last[0]:
            last[0] = message
            print(f"{time.monotonic() - started:7.1f} s  {message}", flush=True)

    return tell


def machine() -> dict[str, Any]:
    found = devices.find()
    packages = ("sglang", "torch", "triton", "sglang-kernel", "sgl-kernel")
    return {
        "gpu": found.name,
        "driver": found.driver_version,
        "processors": len(os.sched_getaffinity(0)),
        **{name: versions.installed(name) for name in packages},
    }


# --- the measuring process ------------------------------------------------------------------------


def measure(order: dict[str, Any]) -> None:
    import torch

    from sgl_admin.moe.bench import FusedExperts
    from sgl_admin.moe.compiling import Compilers
    from sgl_admin.moe.search import CannotRun, trials_of
    from sgl_admin.moe.tune_process import tables_of

    started = time.monotonic()
    shape = SHAPES[order["name"]]
    release, _ = ENGINE.release()
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    compilers = Compilers(order["sm"], [release.kernels], workers, 120.0)
    bench = FusedExperts(shape, release, tables_of(order["rivals"]))
    found: dict[str, Any] = {"bandwidth_gb_s": bandwidth(torch), "rows": [], "turns": TURNS}
    # The extremes and the middle first: what a limit cuts off is then spread.
    ordered = [size for step in (4, 2, 1) for size in order["sizes"][::step]]
    at = list(dict.fromkeys(ordered))
    pairs = {size: bench.rivals(size) for size in at}
    keys: dict[str, None] = {}
    for size in at:
        for pair in pairs[size].values():
            for trial in trials_of(pair):
                keys.update(dict.fromkeys(bench.launches(size, trial)))
    found["failed"] = dict(
        compilers.compile([bench.known(key) for key in keys], lambda done, total: None)
    )
    compilers.close()
    found["ready_s"] = round(time.monotonic() - started, 1)
    print(f"{found['ready_s']} s: {len(keys)} kernels compiled, {len(at)} sizes", flush=True)
    for size in at:
        if time.monotonic() - started > order["seconds"]:
            found["cut_off"] = True
            break
        try:
            row = measured(bench, size, pairs[size], shape)
        except CannotRun as error:
            row = {"size": size, "error": str(error)}
        found["rows"].append(row)
        print(json.dumps(row), flush=True)
        Path(order["out"]).write_text(json.dumps({"machine": machine(), **found}, indent=1))
    found["summary"] = summary(found["rows"])
    found["seconds"] = round(time.monotonic() - started, 1)
    Path(order["out"]).write_text(json.dumps({"machine": machine(), **found}, indent=1))


def measured(bench: Any, size: int, pairs: dict[str, Pair], shape: MoeShape) -> dict[str, Any]:
    distinct = list({pair.key: pair for pair in pairs.values()}.values())
    for pair in distinct:
        bench.check(size, pair)
    times = dict(
        zip([pair.key for pair in distinct], bench.compare(size, distinct, TURNS), strict=True)
    )
    ours = times[pairs["ours"].key]
    row: dict[str, Any] = {"size": size, "floor_bytes": floor_bytes(bench, size, shape)}
    for name, pair in pairs.items():
        row[name] = round(verdict.median(times[pair.key]), 2)
        if name != "ours":
            won, noise = verdict.gain(ours, times[pair.key])
            row[f"gain over {name}"] = round(won, 4)
            row[f"noise over {name}"] = round(noise, 4)
    return row


def floor_bytes(bench: Any, size: int, shape: MoeShape) -> int:
    """What a call has to read at least: the weights of the experts that its tokens choose."""
    lookup = shape.lookup
    bytes_each = 2 if lookup.dtype is None else 1
    each = (3 if shape.gated else 2) * lookup.N * shape.hidden_size * bytes_each
    experts = [
        choice.topk_ids[choice.topk_ids >= 0].unique().numel()
        for choice in bench._input(size).choices
    ]
    return int(each * sum(experts) / len(experts))


def bandwidth(torch: Any) -> float:
    """Of a copy on the device, read and written, in GB/s."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    begin.record()
    for _ in range(20):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return round(20 * 2 * (1 << 30) / (begin.elapsed_time(end) / 1000) / 1e9, 1)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each rival: how many times as fast ours is (geometric mean), and where it is worst."""
    names = sorted({name for row in rows for name in row if name.startswith("gain over ")})
    found: dict[str, Any] = {"sizes": len(rows)}
    for name in names:
        gains = [(row[name], row["size"]) for row in rows if name in row]
        mean = math.exp(sum(-math.log(1 - won) for won, _ in gains) / len(gains))
        found[name] = {
            "times_as_fast": round(mean, 4),
            "worst": min(gains),
            "slower_by_a_hundredth": [size for won, size in gains if won < -0.01],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("/tmp/sgl-moe"), help="its caches")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--shape", choices=SHAPES, default="fp8")
    parser.add_argument("--sample", type=int, help="tune with so many configurations alone")
    parser.add_argument("--cards", type=int, default=1, help="tune on so many GPUs at once")
    parser.add_argument("--seconds", type=float, default=570.0, help="what a command may take")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(json.loads(arguments.measure.read_text()))
        return
    started = time.monotonic()
    tuning = Tuning(
        arguments.shape, arguments.root, arguments.out, arguments.sample, arguments.cards
    )
    tuned = tuning.tune()
    print(json.dumps(tuned["outcome"]), flush=True)
    left = arguments.seconds - (time.monotonic() - started)
    if left < MEASURE_S:
        print(f"{left:.0f} s are left, too few to measure: run it again", flush=True)
        return
    print(json.dumps(tuning.measure(left - 20).get("summary"), indent=1), flush=True)


if __name__ == "__main__":
    main()
