#!/usr/bin/env python3
"""What sharing a cache costs: `sgl-admin caches export` and `import`, beside `tar | tar` plus
sha256sum of the same files.

    .venv/bin/python tests/bench/cache_share.py [--mb 500] [--files 2000] [--folder DIR]

Both are run in turn and the medians compared, so that what else the machine does falls on both.
Exit code 1 where the ratio is over its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import tools  # noqa: E402
from tests.unit.model_files import write_model  # noqa: E402

RUNS = 5
AT_MOST = 2.0
# A stage's record is made as a prep makes it, by the code that a prep runs.
RECORD = """
import sys
from pathlib import Path
from sgl_admin.records import caches, run, standalone
from sgl_admin.commands import main as cli, request as request_cli
from sgl_admin.prep.plan import plan_prep
standalone.begin(sys.argv[1])
parsed = cli._parser().parse_args(["caches", "ensure", "--model", sys.argv[2]])
plan = plan_prep(run.live(), request_cli.of(parsed, run.live()))
plan.decisions[3].record.write(served=plan.context.served_identity)
"""


def admin(root: Path, *words: str) -> str:
    command = [sys.executable, "-m", "sgl_admin", "--root", str(root), "caches", *words]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def fill(root: Path, model: Path, count: int, size: int) -> None:
    """A finished stage with so many files of random bytes, a tenth of them eight times as long as
    the others.
    """
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from sgl_admin.records import standalone; standalone.begin(sys.argv[1])",
            str(root),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    unit = size // (count + 7 * (count // 10))
    for number in range(count):
        path = root / "profiles" / "triton" / f"{number % 97:02x}" / f"kernel-{number}.cubin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(unit * (8 if number % 10 == 0 else 1)))
    subprocess.run(
        [sys.executable, "-c", RECORD, str(root), str(model)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def theirs(source: Path, target: Path) -> float:
    begin = time.monotonic()
    pack = subprocess.Popen(["tar", "-C", str(source), "-cf", "-", "."], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-C", str(target), "-xf", "-"], stdin=pack.stdout, check=True)
    if pack.wait():
        raise SystemExit("tar failed")
    files = subprocess.run(
        ["find", str(target), "-type", "f", "-print0"], check=True, capture_output=True
    ).stdout
    subprocess.run(["xargs", "-0", "sha256sum"], input=files, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def ours(source: Path, target: Path, model: Path, archive: Path) -> tuple[float, float]:
    begin = time.monotonic()
    admin(source, "export", str(archive), "--model", str(model))
    middle = time.monotonic()
    taken = json.loads(admin(target, "import", str(archive), "--model", str(model), "--json"))
    end = time.monotonic()
    if taken["stages"]["inductor"]["status"] != "imported" or taken["stages"]["inductor"]["reason"]:
        raise SystemExit(f"not imported: {taken}")
    return middle - begin, end - middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument(
        "--folder",
        default=None,
        help="where the files lie (default: the system's folder for temporary files)",
    )
    arguments = parser.parse_args()
    tools.require("tests/bench/cache_share.py")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        base = Path(folder)
        model = write_model(base / "model")
        (base / "source").mkdir()
        fill(base / "source", model, arguments.files, arguments.mb * 10**6)
        tars, exports, imports = [], [], []
        for _ in range(RUNS):
            (base / "tar").mkdir()
            tars.append(theirs(base / "source" / "profiles", base / "tar"))
            shutil.rmtree(base / "tar")
            packed, taken = ours(base / "source", base / "target", model, base / "caches.tar")
            exports.append(packed)
            imports.append(taken)
            shutil.rmtree(base / "target")
            (base / "caches.tar").unlink()
    reference = statistics.median(tars)
    total = statistics.median(
        packed + taken for packed, taken in zip(exports, imports, strict=True)
    )
    print(
        f"tar | tar and sha256sum: {reference:.3f} s ({', '.join(f'{each:.3f}' for each in tars)})"
    )
    print(
        f"export {statistics.median(exports):.3f} s, import {statistics.median(imports):.3f} s,"
        f" both {total:.3f} s"
    )
    print(f"ratio {total / reference:.3f} (at most {AT_MOST})")
    return 0 if total <= AT_MOST * reference else 1


if __name__ == "__main__":
    sys.exit(main())
