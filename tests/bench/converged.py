#!/usr/bin/env python3
"""What a converged run costs: its wall time beside that of as many pings over the same connection.

    .venv/bin/python tests/bench/converged.py [--profile] [--only local|ssh|fleet]
    .venv/bin/python tests/bench/converged.py --against COMMIT

On one host, as many pings as the run calls modules; on three, as many as the run has tasks that did
something on a host (its recap's ok). Both are run in turn (prep, ping, prep, ping, ...) and the
medians compared, so that what else the machine does falls on both. Exit code 1 where the ratio or
the number of module calls is over its limit, or a file does not belong to its user.

With --against it is the converged run of another commit of this repository that is beside it, on
this machine, with an image, a container and a tree of its own: exit code 1 where this one takes
more calls, or longer than its limit allows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import tools  # noqa: E402
from tests.hosts.fleet import REPOSITORY, Fleet  # noqa: E402
from tests.hosts.host import (  # noqa: E402
    STACK_IMAGES,
    STACK_VARIABLES,
    UIDS,
    TestHost,
    ansible,
    recap,
    run,
    write_inventory,
)

RUNS = 5
# Each pair of these is a few seconds, and a machine's noise 15%.
RUNS_AGAINST = 11
MAX_AGAINST = 1.05
MAX_RATIO = 1.5
FLEET_MAX_RATIO = 1.2
MAX_CALLS = 12
PREP = str(ROOT / "playbooks" / "prep.yml")
CALLBACKS = {"ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "bench" / "callback_plugins")}
# Beside whatever else runs on the machine: a container, ports and a tree of its own.
VARIABLES = {
    **STACK_VARIABLES,
    "sgl_container": "sglang-dev-bench",
    "sgl_prometheus_port": 19290,
    "sgl_node_exporter_port": 19299,
    "sgl_sglang_port": 31290,
    # This machine may have no other user.
    "sgl_allow_root": True,
}
# And beside that one, another commit's.
VARIABLES_BEFORE = {
    **VARIABLES,
    "sgl_image": "sglang-dev:bench-before",
    "sgl_container": "sglang-dev-bench-before",
    "sgl_prometheus_port": 19280,
    "sgl_node_exporter_port": 19289,
    "sgl_sglang_port": 31280,
}


class Row(NamedTuple):
    where: str
    prep_s: float
    calls: list[str]
    ping_s: float
    spread: str
    pings: int
    limit: float

    @property
    def ratio(self) -> float:
        return self.prep_s / self.ping_s

    @property
    def good(self) -> bool:
        return self.ratio <= self.limit and len(self.calls) <= MAX_CALLS


@contextmanager
def local(
    work: Path, checkout: Path = ROOT, variables: dict[str, object] = VARIABLES
) -> Iterator[Path]:
    work.mkdir(exist_ok=True)
    root = work / "sglang-observability"
    connection = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = write_inventory(
        work / "local.yml", {"here": connection}, {**variables, "sgl_root": str(root)}
    )
    try:
        ansible("-i", str(inventory), in_checkout(checkout, "prep"), env=settings(checkout))
        yield inventory
        check_owner(
            run(
                "find",
                str(root),
                "-not",
                "(",
                "-uid",
                str(os.geteuid()),
                "-gid",
                str(os.getegid()),
                ")",
            ).stdout.splitlines()
        )
    finally:
        stop = in_checkout(checkout, "stop")
        ansible("-i", str(inventory), stop, env=settings(checkout), check=False)


def in_checkout(checkout: Path, name: str) -> str:
    return str(checkout / "playbooks" / f"{name}.yml")


def settings(checkout: Path) -> dict[str, str]:
    return {"ANSIBLE_CONFIG": str(checkout / "ansible.cfg")}


@contextmanager
def another(work: Path, commit: str) -> Iterator[Path]:
    """A checkout of another commit, which finds its own collection as this one does."""
    checkout = work / "checkout"
    run("git", "clone", "--quiet", "--shared", str(ROOT), str(checkout))
    run("git", "-C", str(checkout), "checkout", "--quiet", commit)
    link = checkout / ".ansible" / "collections" / "ansible_collections" / "slice_bench" / "sglang"
    link.parent.mkdir(parents=True)
    link.symlink_to(checkout)
    try:
        yield checkout
    finally:
        run("docker", "image", "rm", "--force", str(VARIABLES_BEFORE["sgl_image"]), check=False)


def against(commit: str, work: Path) -> int:
    """Compares the converged run with that of another commit, in turn."""
    with ExitStack() as stack:
        checkout = stack.enter_context(another(work, commit))
        before = stack.enter_context(local(work / "before", checkout, VARIABLES_BEFORE))
        now = stack.enter_context(local(work / "now"))
        states = [
            (inventory, in_checkout(root, "prep"), settings(root))
            for inventory, root in ((now, ROOT), (before, checkout))
        ]
        calls = [count_calls(inventory, prep, work, env) for inventory, prep, env in states]
        pairs = [[timed(*state) for state in states] for _pair in range(RUNS_AGAINST)]
    medians = [statistics.median(walls) for walls in zip(*pairs, strict=True)]
    ratio = statistics.median(this / other for this, other in pairs)
    good = ratio <= MAX_AGAINST and len(calls[0]) <= len(calls[1])
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {RUNS_AGAINST} pairs,"
        f" run in turn\nthis state {medians[0]:.2f} s and {len(calls[0])} calls, {commit}"
        f" {medians[1]:.2f} s and {len(calls[1])} calls (medians)\nmedian of the pairs' ratios"
        f" {ratio:.2f}{'' if good else f'   over: at most {MAX_AGAINST}, and no more calls'}\n"
        + " ".join(f"{this:.2f}/{other:.2f}" for this, other in pairs)
    )
    return 0 if good else 1


@contextmanager
def ssh(work: Path) -> Iterator[Path]:
    with TestHost("sglang-testhost-bench", "127.0.0.21", 2221) as host:
        host.load(*STACK_IMAGES)
        inventory = write_inventory(
            work / "ssh.yml", {"testhost": host.inventory_vars("ops")}, VARIABLES
        )
        ansible("-i", str(inventory), PREP)
        yield inventory
        check_owner(host.not_owned(UIDS["ops"], "/home/ops/sglang-observability"))


@contextmanager
def fleet(work: Path) -> Iterator[Path]:
    """Three hosts that share their caches through a registry."""
    hosts = Fleet(work / "fleet")
    try:
        hosts.up()
        shared = {
            "sgl_image_source": "share",
            "sgl_cache_share": "registry",
            "sgl_cache_registry": REPOSITORY,
        }
        inventory = write_inventory(work / "fleet.yml", hosts.host_vars(), {**VARIABLES, **shared})
        ansible("-i", str(inventory), PREP)
        yield inventory
    finally:
        hosts.down()


def check_owner(foreign: list[str]) -> None:
    if foreign:
        raise SystemExit(
            "these do not belong to the user who ran the playbook:\n" + "\n".join(foreign[:20])
        )


def timed(inventory: Path, playbook: str, env: dict[str, str] | None = None) -> float:
    """Wall seconds of a run that changes nothing."""
    begin = time.monotonic()
    done = ansible("-i", str(inventory), playbook, env=env)
    wall = time.monotonic() - begin
    for host, counts in recap(done.stdout).items():
        if counts["changed"]:
            raise SystemExit(f"the run on {host} was not converged:\n{done.stdout}")
    return wall


def count_calls(
    inventory: Path, playbook: str, work: Path, env: dict[str, str] | None = None
) -> list[str]:
    """The names of the modules that one run ran on the host, in order."""
    calls = work / "calls"
    calls.unlink(missing_ok=True)
    ansible(
        "-i",
        str(inventory),
        playbook,
        env={
            **(env or {}),
            **CALLBACKS,
            "ANSIBLE_CALLBACKS_ENABLED": "count_modules",
            "SGL_BENCH_CALLS": str(calls),
        },
    )
    return calls.read_text(encoding="utf-8").split()


def ping_playbook(work: Path, number: int) -> str:
    path = work / "ping.yml"
    tasks = [{"name": f"Ping {index + 1}", "ansible.builtin.ping": {}} for index in range(number)]
    path.write_text(
        yaml.safe_dump(
            [{"name": "Ping", "hosts": "sglang", "gather_facts": False, "tasks": tasks}]
        ),
        encoding="utf-8",
    )
    return str(path)


def measure(where: str, inventory: Path, work: Path, profile: bool) -> Row:
    counts = recap(ansible("-i", str(inventory), PREP).stdout)
    calls = count_calls(inventory, PREP, work)[:: len(counts)]
    pings = len(calls) if len(counts) == 1 else max(host["ok"] for host in counts.values())
    ping = ping_playbook(work, pings)
    if count_calls(inventory, ping, work) != ["ansible.builtin.ping"] * pings * len(counts):
        raise SystemExit("the ping playbook does not run as many modules as were counted")
    walls: dict[str, list[float]] = {PREP: [], ping: []}
    for _run in range(RUNS):
        for playbook, seen in walls.items():
            seen.append(timed(inventory, playbook))
    if profile:
        for playbook in walls:
            done = ansible(
                "-i",
                str(inventory),
                playbook,
                env={"ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks"},
            )
            print(
                f"--- {where}:"
                f" {Path(playbook).name}\n{done.stdout[done.stdout.index('PLAY RECAP') :]}"
            )
    spread = " ".join(
        "/".join(f"{wall:.2f}" for wall in pair) for pair in zip(*walls.values(), strict=True)
    )
    return Row(
        where,
        statistics.median(walls[PREP]),
        calls,
        statistics.median(walls[ping]),
        spread,
        pings,
        MAX_RATIO if len(counts) == 1 else FLEET_MAX_RATIO,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="What a converged run costs, beside as many pings."
    )
    parser.add_argument(
        "--profile", action="store_true", help="also show where one run of each spends its time"
    )
    parser.add_argument("--only", choices=["local", "ssh", "fleet"], help="one of the three")
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare with this commit's converged run"
    )
    options = parser.parse_args()
    tools.require("tests/bench/converged.py")
    if options.against:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return against(options.against, Path(folder))
    rows = []
    for where, made in (("local", local), ("ssh", ssh), ("fleet", fleet)):
        if options.only in (None, where):
            with ExitStack() as stack:
                work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
                rows.append(measure(where, stack.enter_context(made(work)), work, options.profile))
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {RUNS}, run"
        " in turn"
    )
    print(f"{'':8}{'converged':>12}{'calls':>8}{'pings':>8}{'they take':>12}{'ratio':>8}")
    for row in rows:
        verdict = "" if row.good else f"   over: at most {row.limit} and {MAX_CALLS} calls"
        print(
            f"{row.where:8}{row.prep_s:>10.2f}"
            f" s{len(row.calls):>8}{row.pings:>8}{row.ping_s:>10.2f} s{row.ratio:>8.2f}{verdict}"
        )
    for row in rows:
        print(
            f"{row.where}: {', '.join(name.rpartition('.')[2] for name in row.calls)}\n{row.where}:"
            f" prep/ping {row.spread}"
        )
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
