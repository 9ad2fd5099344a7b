"""The MoE tuner measured against the serial method of SGLang's own tuner, on one GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sgl_admin.facts import devices
from sgl_admin.moe import shape as shapes
from sgl_admin.moe import space
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.space import Config
from sgl_admin.moe.tuner import Outcome, Tuner
from sgl_admin.sglang import ENGINE

BATCH_SIZES = [2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 4096]
# One of each group of batch sizes that launch the same kernels, and one whose kernels are compiled
# by then.
SERIAL_SIZES = [4, 16, 64, 512]


def shape_of(model: Path) -> MoeShape:
    release, _ = ENGINE.release()
    return shapes.of(json.loads((model / "config.json").read_text()), 1, "auto", (), release)


def ours(model: Path, root: Path, configs: list[Config]) -> tuple[dict[int, Config], Outcome]:
    """The configurations that the tuner chooses, from an empty cache."""
    found: dict[int, Config] = {}
    log = root / "tuner.log"
    log.touch()
    tuner = Tuner(
        shape_of(model),
        configs,
        {"measured": len(configs)},
        _sm(),
        log,
        tell,
        lambda group: None,
        {},
    )
    outcome = tuner.run(BATCH_SIZES, lambda size, config: found.update({size: config}))
    return found, outcome


def _sm() -> int:
    return int((devices.find().compute_capability or "0").replace(".", ""))


def tell(done: int, total: int, unit: str, message: str) -> None:
    if done % 320 == 0 or done == total:
        print(f"{time.strftime('%H:%M:%S')} {message}: {done} of {total}", flush=True)


def compare(model: Path, root: Path, sample: int) -> dict[str, Any]:
    """Both methods on a fixed sample of the space; what the serial one would take for all of it is
    computed from that.
    """
    shape = shape_of(model)
    configs = space.configs(shape.lookup.block_shape, sample)
    whole = len(space.configs(shape.lookup.block_shape))
    chosen, outcome = ours(model, root, configs)
    serial = _process(
        root, "serial", {"shape": shape.to_json(), "configs": configs, "sizes": SERIAL_SIZES}
    )
    best = {int(size): found["best"] for size, found in serial["sizes"].items()}
    pairs = {size: [chosen[size], best[size]] for size in SERIAL_SIZES}
    turns = _process(root, "turns", {"shape": shape.to_json(), "pairs": pairs})
    ratios = {size: times[0] / times[1] for size, times in turns["us"].items()}
    summary = {
        "sample": sample,
        "space": whole,
        "ours_sample_s": outcome.duration_s,
        "serial_whole_s": _serial_whole(serial, whole),
        "ratios": ratios,
        "worst_ratio": max(ratios.values()),
    }
    return {
        "summary": summary,
        "chosen": chosen,
        "outcome": outcome.describe(),
        "serial": serial,
        "turns": turns,
    }


def _serial_whole(serial: dict[str, Any], whole: int) -> float:
    """The seconds of one configuration, where it compiles and where it does not, for all 13 batch
    sizes in their three groups.
    """
    per = {int(size): found["seconds"] / found["count"] for size, found in serial["sizes"].items()}
    compiling = [per[size] for size in SERIAL_SIZES[:3]]
    return round(whole * (sum(compiling) + (len(BATCH_SIZES) - 3) * per[SERIAL_SIZES[3]]), 1)


def full(model: Path, root: Path) -> dict[str, Any]:
    """The tuner on the whole space, as a user has it."""
    shape = shape_of(model)
    chosen, outcome = ours(model, root, space.configs(shape.lookup.block_shape))
    return {
        "file": ENGINE.moe.file_name(shape.lookup, devices.find().name),
        "chosen": chosen,
        "outcome": outcome.describe(),
    }


def _process(root: Path, what: str, order: dict[str, Any]) -> dict[str, Any]:
    """Runs this file in a fresh process with an empty Triton cache: `serial` or `turns`."""
    cache = root / f"triton-{what}"
    shutil.rmtree(cache, ignore_errors=True)
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    (root / f"{what}.in.json").write_text(json.dumps(order))
    subprocess.run([sys.executable, __file__, what, str(root)], env=environment, check=True)
    shutil.rmtree(cache, ignore_errors=True)
    answer: dict[str, Any] = json.loads((root / f"{what}.out.json").read_text())
    return answer


def _serial(order: dict[str, Any]) -> dict[str, Any]:
    """As SGLang's own tuner does it (benchmark/kernels/fused_moe_triton): for each configuration
    fresh weights, one call that compiles, a CUDA graph of ten calls, five replays to warm up and
    ten that are timed, each with another choice of experts; the mean counts.
    """
    import torch

    from sgl_admin.moe.bench import FusedExperts

    shape = MoeShape.from_json(order["shape"])
    release, _ = ENGINE.release()
    bench = FusedExperts(shape, release)
    # What is beside the tuned kernel is compiled before the clock runs: it is not what the two
    # methods differ in.
    bench.warm(
        order["sizes"],
        {**order["configs"][0], "BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "num_stages": 1},
    )
    found: dict[str, Any] = {}
    for size in order["sizes"]:
        best, best_us = None, math.inf
        looks: list[float | None] = []
        started = time.monotonic()
        for config in order["configs"]:
            try:
                bench._weights = {}
                bench._weights = bench._make_weights()
                with bench._experts.configured(config):
                    bench._call(size)
                    graph = bench._graph(size, 10)
                for _ in range(5):
                    graph.replay()
                times = [bench._replay(size, graph, 10, turn) for turn in range(10)]
            except Exception as error:
                if "CUDA error" in str(error):
                    raise
                looks.append(None)
                continue
            us = sum(times) / len(times)
            looks.append(us)
            if us < best_us:
                best, best_us = config, us
            del graph
            torch.cuda.synchronize()
        found[size] = {
            "seconds": time.monotonic() - started,
            "count": len(order["configs"]),
            "best": best,
            "us": best_us,
            "looks": looks,
        }
        print(
            f"serial, batch size {size}: {found[size]['seconds']:.1f} s for {found[size]['count']}",
            flush=True,
        )
    return {"sizes": found}


def _turns(order: dict[str, Any]) -> dict[str, Any]:
    from sgl_admin.moe.bench import FusedExperts

    release, _ = ENGINE.release()
    bench = FusedExperts(MoeShape.from_json(order["shape"]), release)
    return {
        "us": {
            size: bench.compare(int(size), configs, 60) for size, configs in order["pairs"].items()
        }
    }


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    order = json.loads((root / f"{what}.in.json").read_text())
    (root / f"{what}.out.json").write_text(
        json.dumps({"serial": _serial, "turns": _turns}[what](order))
    )
