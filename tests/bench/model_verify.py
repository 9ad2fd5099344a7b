#!/usr/bin/env python3
"""What verifying a model costs, beside sha256sum over the same files; and what a killed staging
copies again.

    .venv/bin/python tests/bench/model_verify.py [--gb 2] [--folder DIR]

The three are run in turn and the medians compared, so that what else the machine does falls on all
of them. Exit code 1 where a ratio is over its limit, or where the resumed staging copies what was
there.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / ".ansible" / "collections")]

from ansible_collections.slice_bench.sglang.plugins.module_utils import (  # noqa: E402
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_stage import (  # noqa: E402
    Request,
    Stage,
)

from tests import tools  # noqa: E402
from tests.doubles.model_folder import make_model  # noqa: E402

RUNS = 3
SHARDS = 8
# Of sha256sum's time, on two cores.
FIRST_AT_MOST = 0.6
AGAIN_AT_MOST = 1 / 50
STAGE = (
    "import os, sys\nsys.path[:0] = sys.argv[1:3]\nfrom"
    " ansible_collections.slice_bench.sglang.plugins.module_utils._model_stage import Request,"
    " Stage\nStage(Request(path=sys.argv[4] + '/m', models_root=sys.argv[4], source='local',"
    " origin=sys.argv[3], uid=os.geteuid(), gid=os.getegid())).slice()\n"
)


def sha256sum(files: list[Path]) -> float:
    begin = time.monotonic()
    subprocess.run(["sha256sum", *map(str, files)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def verify(model: Path, *, full: bool, wanted: int) -> float:
    begin = time.monotonic()
    found = model_digests.verify(str(model), full=full)
    wall = time.monotonic() - begin
    if not found.verified or found.bytes_read != wanted:
        raise SystemExit(
            f"read {found.bytes_read} bytes, not {wanted}, or the model is not verified: {found}"
        )
    return wall


def resumed(source: Path, root: Path, total: int) -> tuple[int, int]:
    """The bytes that were there when the staging was killed in its middle, and the bytes that the
    next run moved.
    """
    root.mkdir()
    call = f"copy_file_range:{total // 2 // (16 << 20)}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests" / "doubles" / "model_kill"),
        "SGL_TEST_KILL": call,
    }
    paths = [str(ROOT), str(ROOT / ".ansible" / "collections"), str(source), str(root)]
    done = subprocess.run([sys.executable, "-c", STAGE, *paths], check=False, env=environment)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"the staging ended with {done.returncode} before it could be killed")
    staged = sum(
        file.stat().st_size
        for file in (root / ".staging" / "m").iterdir()
        if not file.name.startswith(".sgl-")
    )
    request = Request(
        path=str(root / "m"),
        models_root=str(root),
        source="local",
        origin=str(source),
        uid=os.geteuid(),
        gid=os.getegid(),
    )
    answer = Stage(request).slice()
    if not answer["verified"]:
        raise SystemExit("the model is not verified after its staging went on")
    return staged, answer["bytes_moved"]


def main() -> int:
    parser = argparse.ArgumentParser(description="What verifying a model costs, beside sha256sum.")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the model that is made")
    parser.add_argument(
        "--folder", help="where to make it; by default the folder for temporary files"
    )
    options = parser.parse_args()
    tools.require("tests/bench/model_verify.py")
    with tempfile.TemporaryDirectory(prefix="bench-model-", dir=options.folder) as work:
        model = Path(work) / "model"
        make_model(model, SHARDS, int(options.gb * 1e9) // SHARDS)
        files = [file for file in model.iterdir() if file.is_file()]
        total = sum(file.stat().st_size for file in files)
        walls: dict[str, list[float]] = {"sha256sum": [], "first": [], "again": []}
        for _run in range(RUNS):
            walls["sha256sum"].append(sha256sum(files))
            walls["first"].append(verify(model, full=True, wanted=total))
            walls["again"].append(verify(model, full=False, wanted=0))
        staged, moved = resumed(model, Path(work) / "models", total)
    base = statistics.median(walls["sha256sum"])
    limits = {"sha256sum": None, "first": FIRST_AT_MOST, "again": AGAIN_AT_MOST}
    good = moved == total - staged
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {total / 1e9:.1f} GB in"
        f" {len(files)} files, medians of {RUNS}"
    )
    print(f"{'':12}{'median':>10}{'ratio':>10}{'at most':>10}")
    for name, seen in walls.items():
        ratio, limit = statistics.median(seen) / base, limits[name]
        over = limit is not None and ratio > limit
        good = good and not over
        print(
            f"{name:12}{statistics.median(seen):>8.3f}"
            f" s{ratio:>10.4f}{limit or 1:>10.2f}{'   over' if over else ''}"
        )
    print(
        "each run: "
        + ", ".join(
            "/".join(f"{wall:.3f}" for wall in row) for row in zip(*walls.values(), strict=True)
        )
    )
    print(
        f"killed with {staged / 1e6:.1f} MB there, then moved {moved / 1e6:.1f} MB of"
        f" {total / 1e6:.1f} MB"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
