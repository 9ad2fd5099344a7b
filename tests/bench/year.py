#!/usr/bin/env python3
"""What a host's year costs: a converged run on a host with the remains of a year, beside one on a
fresh host; then a prune, killed again and again before it may finish.

    .venv/bin/python tests/bench/year.py

The year: 400 runs with their records, samples and logs, 40 images that were replaced, and 2,000
files of reports. Each run is a copy of the host's real one under another name and time. Both hosts
are installations of their own on this machine, and are run in turn. Exit code 1 where the converged
run costs more than 1.1 times a fresh host's, where the prune does not come back to its bounds,
where it touches what is live or another's, or where a killed one leaves half a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sgl_admin.contract import labels  # noqa: E402
from tests import tools  # noqa: E402
from tests.integration.installation import Site, docker, installation, make_image  # noqa: E402

RUNS, IMAGES, REPORT_FILES = 400, 40, 2000
MAX_RATIO, TIMES, KILLS = 1.1, 7, 12
KEEP = {"runs": 30, "images": 2, "reports": 200}
IMAGE = "sglang-dev-year:local"
# Of one run: what Prometheus writes in a few minutes, and a log.
SAMPLES, LOG_LINES = 24, 400


class Lab:
    """A host, and the folder of its reports on the controller."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.reports = folder / site.container
        self._options: dict[str, Any] = {
            "variables": {"sgl_image": IMAGE, "sgl_keep": KEEP},
            "environment": {"SGL_REPORT_DIR": str(self.reports)},
        }

    def play(self, name: str, *flags: str) -> str:
        return self.site.must_play(name, *flags, **self._options).output

    def start(self, name: str) -> subprocess.Popen[str]:
        return self.site.start_play(name, **self._options)

    def converged_s(self) -> float:
        began = time.monotonic()
        play = self.site.must_play("prep", **self._options)
        took = time.monotonic() - began
        must(play.changed == 0, f"the run was not converged:\n{play.output}")
        return took


def must(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"year.py: {what}")


def owned(path: Path, site: Site) -> None:
    for place in [path, *path.rglob("*")]:
        os.chown(place, *site.owner, follow_symlinks=False)


def pass_a_year(lab: Lab) -> None:
    """Lay out what a year leaves: runs on the host, reports on the controller, images in Docker."""
    site, live = lab.site, lab.site.run_id
    runs, samples, logs = (
        site.telemetry / name for name in ("container_runs", "prometheus", "logs")
    )
    now = time.time()
    for number in range(RUNS):
        moment = now - (RUNS - number) * 365 / RUNS * 86400
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))
        run = f"container-run-{stamp}-{number:08x}"
        shutil.copytree(runs / live, runs / run)
        texts = [path for path in (runs / run).rglob("*") if path.is_file()]
        shutil.copy2(runs / f"{live}.json", runs / f"{run}.json")
        for path in [*texts, runs / f"{run}.json"]:
            path.write_text(path.read_text(errors="replace").replace(live, run))
        block = samples / run / "data" / "chunks_head"
        block.mkdir(parents=True)
        for part in range(SAMPLES):
            (block / f"{part:06}").write_bytes(os.urandom(4096))
        (logs / f"{run}.log").write_text(
            "2026-01-01T00:00:00Z sglang: a line of a log\n" * LOG_LINES
        )
        for path in (runs / run, runs / f"{run}.json", samples / run, logs / f"{run}.log"):
            owned(path, site)
            for place in [path, *path.rglob("*")]:
                os.utime(place, (moment, moment), follow_symlinks=False)
    (page,) = lab.reports.glob("*.html")
    for number in range(REPORT_FILES // 2):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now - (REPORT_FILES - number) * 15_000))
        for kind in (".html", ".json"):
            name = lab.reports / f"report-{stamp}-{number:08x}{kind}"
            shutil.copy2(page.with_suffix(kind), name)
    for number in range(IMAGES):
        dockerfile = (
            f"FROM {IMAGE}\nLABEL {labels.NAME_LABEL}={IMAGE} {labels.INPUTS_LABEL}={number:064x}\n"
        )
        subprocess.run(
            ["docker", "build", "--quiet", "-"],
            input=dockerfile, text=True, check=True, capture_output=True,
        )  # fmt: skip


def images() -> list[str]:
    """The images of the year that are there still."""
    found = docker(
        *("image", "ls", "--all", "--quiet", "--no-trunc"),
        *("--filter", "dangling=true", "--filter", f"label={labels.NAME_LABEL}={IMAGE}"),
    )
    return sorted(set(found.stdout.split()))


def whole_runs(site: Site) -> Iterator[str]:
    """Each run that has a record; a half one ends the bench."""
    folder = site.telemetry / "container_runs"
    for manifest in folder.glob("*.json"):
        must(
            json.loads(manifest.read_text())["container_run_id"] == manifest.stem
            and (folder / manifest.stem / "prep_result.json").exists(),
            f"the run {manifest.stem} is half there",
        )
        yield manifest.stem


def counts(lab: Lab) -> dict[str, int]:
    """How many there are of each kind."""
    return {
        "runs": len(list(whole_runs(lab.site))),
        "images": len(images()),
        "reports": len(list(lab.reports.glob("*.html"))),
    }


def held(site: Site) -> dict[str, Any]:
    """What no prune may touch: the container, the live run's records, the caches, and a file of
    another's.
    """
    live = [site.pointer, site.pointed(), *site.run_dir().rglob("*"), *site.profiles.rglob("*")]
    files = {
        str(path): path.read_bytes()
        for path in [*live, site.telemetry / "container_runs" / "mine.txt"]
        if path.is_file() and ".locks" not in path.parts
    }
    found = site.inspect()
    return {"container": found and found["Id"], **files}


def kill_all(pid: int) -> None:
    """A process with all that it began: Ansible's workers have sessions of their own."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            kill_all(int(child))
        os.kill(pid, signal.SIGKILL)


def prune(lab: Lab) -> int:
    """Prune, killed at a moment of its own again and again; returns how often it was killed."""
    chance, killed = random.Random(20261129), 0
    began = time.monotonic()
    lab.play("prune", "--check")
    takes = time.monotonic() - began
    for _ in range(KILLS):
        process = lab.start("prune")
        try:
            process.communicate(timeout=chance.uniform(0.3, 1.5) * takes)
        except subprocess.TimeoutExpired:
            kill_all(process.pid)
            process.communicate()
            killed += 1
        list(whole_runs(lab.site))
    print(lab.play("prune").partition("on_the_controller")[2].partition("PLAY RECAP")[0])
    return killed


def main() -> None:
    tools.require("tests/bench/year.py")
    make_image(IMAGE)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        old, fresh = (
            Lab(stack.enter_context(installation(Site, container=name)), folder)
            for name in ("sglang-dev-year", "sglang-dev-year-fresh")
        )
        for lab in (old, fresh):
            lab.play("prep")
        pass_a_year(old)
        mine = old.site.telemetry / "container_runs" / "mine.txt"
        mine.write_text("another's\n")
        owned(mine, old.site)
        for lab in (old, fresh):
            lab.converged_s()
        walls: dict[Lab, list[float]] = {old: [], fresh: []}
        for _ in range(TIMES):
            for lab, seen in walls.items():
                seen.append(lab.converged_s())
        year_s, fresh_s = (statistics.median(seen) for seen in walls.values())
        before, grown = held(old.site), counts(old)
        killed = prune(old)
        must(held(old.site) == before, "the prune touched what is live, or another's")
        bounded = counts(old)
        pruned_s = statistics.median(old.converged_s() for _ in range(TIMES))
        ratio = year_s / fresh_s
        print(f"converged: fresh {fresh_s:.2f} s, after a year {year_s:.2f} s, ratio {ratio:.3f}")
        print(f"after the prune: {pruned_s:.2f} s; it was killed {killed} times")
        for kind, most in KEEP.items():
            print(f"{kind}: {grown[kind]} -> {bounded[kind]}, at most {most}")
            must(bounded[kind] <= most, f"more {kind} are left than sgl_keep allows")
        must(ratio <= MAX_RATIO, f"a converged run costs {ratio:.2f} times a fresh host's")


if __name__ == "__main__":
    main()
