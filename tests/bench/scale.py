#!/usr/bin/env python3
"""What a fleet costs the controller: a converged run, and one in which each host takes a cache, on
1 to 50 hosts.

    .venv/bin/python tests/bench/scale.py [--hosts 1,10,25,50] [--runs 3] [--forks 20]

Each host has a Docker daemon and a Prometheus of its own, which are doubles
(tests/doubles/docker_daemon.py, prep_container.py); its tree, its records and caches, the modules,
Docker's client and sgl-admin are real. The connection is `local`: SSH's own cost is not in it. All
hosts are this machine, so the wall time has their work in it; their processor time is taken by
their shells and told apart.

Exit code 1 where a run was not as it has to be, or the controller's processor time for each further
host grows by more than GROWTH.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / ".ansible" / "collections")]

from ansible_collections.slice_bench.sglang.plugins.action import sgl_image  # noqa: E402
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import (  # noqa: E402
    stages,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (  # noqa: E402
    INPUTS_LABEL,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.options import (  # noqa: E402
    prep_spec,
    request_document,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import (  # noqa: E402
    FLAVOUR_LABEL,
    host_architecture,
)

from tests import tools  # noqa: E402
from tests.doubles.docker_daemon import Daemon, Daemons  # noqa: E402
from tests.doubles.prep_container import PROOF, PrepContainer  # noqa: E402
from tests.hosts.host import STACK_VARIABLES, program, recap, write_inventory  # noqa: E402

GROWTH = 1.3
PREP = str(ROOT / "playbooks" / "prep.yml")
IMAGE = "sglang-dev:scale"
# No registry has it: where the image's digest is not the one computed here, the run fails, and
# nothing is built on this machine.
BASE = "scale.invalid/base:1"
CONTEXT = ROOT / "roles" / "image" / "files"
FIRST_PORT = 21000
KERNELS, KERNEL_BYTES = 40, 20_000
# A first prep without a server: what only it can make is made below.
COLD = {
    "sgl_stages": dict.fromkeys(stages.OPTIONS.values(), "skip"),
    "sgl_probe": "never",
    "sgl_cache_share": "none",
}
# By the code that a prep runs: the record that vouches for the caches, and the result with the
# contract's proof in it.
WARM = """
import json, sys
from sgl_admin.commands import main as cli, request as request_cli
from sgl_admin.base import clock, files, paths
from sgl_admin.records import job, prepared, run
from sgl_admin.prep.execute import Execution
from sgl_admin.prep.plan import plan_prep
live = run.live()
request = request_cli.of(cli._parser().parse_args(["caches", "ensure", "--request", "-"]), live)
plan = plan_prep(live, request)
[warm] = [each for each in plan.decisions if each.stage.name == "inductor"]
warm.record.write(served=plan.context.served_identity)
prep_id = clock.new_id("prep")
begun = job.Job(live.run_id, request, prep_id)
result, code = Execution(plan_prep(live, request), begun).run()
server = result["run"]["server"]
made = {**result["telemetry_probe"], **json.loads(sys.argv[1]), "server": server["identity"]}
made = {**made, "prometheus_query": result["telemetry_probe"]["prometheus_query"]}
prepared.write(live.run_id, result["run"], made, plan.command)
files.write_json(paths.prep_result(live.run_id), {**result, "telemetry_probe": made})
sys.exit(code)
"""
# The host's login shell: whose daemon its commands ask, and what they take, as user and system
# seconds, a line each.
SHELL = """#!/bin/bash
export DOCKER_HOST=unix://{socket}
TIMEFORMAT='%3U %3S'
{{ time /bin/sh "$@" 2>&3; }} 3>&2 2>>{times}
"""


class Wrong(Exception):
    """A run was not as it has to be; the message has the end of what it said."""


class Host:
    """One of the hosts: everything of it lies below `folder`."""

    def __init__(self, folder: Path, number: int, image: dict[str, Any]) -> None:
        self.name = f"host-{number:02d}"
        self.root = folder / "tree"
        self.times = folder / "times"
        self._shell = folder / "shell"
        self._port = FIRST_PORT + number
        self.container = PrepContainer(self.root)
        self.daemon = Daemon(folder / "docker.sock", image, self.container)
        folder.mkdir()
        self._shell.write_text(
            SHELL.format(socket=self.daemon.socket, times=self.times), encoding="utf-8"
        )
        self._shell.chmod(0o755)

    @property
    def variables(self) -> dict[str, Any]:
        """A daemon knows its own host's container only, so a host that asked another's would
        fail.
        """
        return {
            "ansible_shell_executable": str(self._shell),
            "sgl_root": str(self.root),
            "sgl_container": f"scale-{self.name}",
            "sgl_prometheus_port": self._port,
        }

    @property
    def seconds(self) -> float:
        """Processor time that its commands took so far."""
        return (
            sum(map(float, self.times.read_text(encoding="ascii").split()))
            if self.times.exists()
            else 0.0
        )

    def warm(self, request: dict[str, Any]) -> None:
        """Finished caches, and the proof of a server's metrics. Raises Wrong."""
        for number in range(KERNELS):
            kernel = (
                self.root
                / "profiles"
                / ("triton" if number % 2 else "torchinductor")
                / f"{number:02d}"
                / "kernel.bin"
            )
            kernel.parent.mkdir(parents=True, exist_ok=True)
            kernel.write_bytes(number.to_bytes(1, "big") * KERNEL_BYTES)
        command = [
            sys.executable,
            "-P",
            "-c",
            WARM,
            json.dumps(PROOF),
        ]
        environment = {**self.container.environment(), **self.daemon.environment}
        done = subprocess.run(
            command,
            input=json.dumps({**request, "model": self.container.inside(request["model"])}),
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            raise Wrong(f"{self.name} cannot be made warm: {done.stderr[-2000:]}")

    def forget(self) -> None:
        """Lose the caches that another host may have; their folders stay as they are."""
        for cache in ("triton", "torchinductor"):
            for entry in (self.root / "profiles" / cache).iterdir():
                shutil.rmtree(entry)


@dataclass
class Cost:
    """Seconds of one run; `cpu` is the controller's processor time, `hosts_cpu` that of the
    commands on the hosts.
    """

    wall: float
    cpu: float
    hosts_cpu: float
    counts: dict[str, dict[str, int]]

    @property
    def ok(self) -> int:
        """How many tasks did something on a host; what is done once for all hosts counts for the
        first one alone.
        """
        return round(statistics.median(counts["ok"] for counts in self.counts.values()))


@dataclass
class Lab:
    work: Path
    hosts: list[Host]
    forks: int | None

    def inventory(self, count: int) -> Path:
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            **STACK_VARIABLES,
            "sgl_allow_root": True,
            "sgl_image": IMAGE,
            "sgl_image_base": BASE,
            "sgl_node_exporter_port": FIRST_PORT - 1,
            "sgl_sglang_port": FIRST_PORT - 2,
            "sgl_cache_dir": str(self.work / "caches"),
        }
        return write_inventory(
            self.work / f"{count}.yml",
            {host.name: host.variables for host in self.hosts[:count]},
            variables,
        )

    def play(self, count: int, playbook: str, *arguments: str) -> Cost:
        """Run a playbook on so many hosts. Raises Wrong where it fails on any."""
        forks = ["--forks", str(self.forks)] if self.forks else []
        command = [
            program("ansible-playbook"),
            "-i",
            str(self.inventory(count)),
            playbook,
            *forks,
            *arguments,
        ]
        settings = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "SGL_REPORT_DIR": str(self.work / "reports"),
        }
        before = sum(host.seconds for host in self.hosts)
        said = self.work / "output"
        with said.open("wb") as output:
            begin = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            # Its own, with all the processes that it began and that have ended.
            _pid, status, used = os.wait4(process.pid, 0)
            wall = time.monotonic() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
        text = said.read_text(encoding="utf-8", errors="replace")
        counts = recap(text)
        if (
            process.returncode
            or len(counts) != count
            or any(found["failed"] or found["unreachable"] for found in counts.values())
        ):
            raise Wrong(
                f"{Path(playbook).name} on {count} hosts ended with exit code"
                f" {process.returncode}:\n{text[-4000:]}"
            )
        hosts_cpu = sum(host.seconds for host in self.hosts) - before
        return Cost(wall, used.ru_utime + used.ru_stime - hosts_cpu, hosts_cpu, counts)

    def make(self) -> None:
        """Hosts as a first prep leaves them, with warm caches and the proof."""
        self.play(
            len(self.hosts),
            PREP,
            "--extra-vars",
            yaml.safe_dump(COLD, default_flow_style=True, width=10**6),
        )
        options = {name: option.get("default") for name, option in prep_spec().items()}
        request = request_document(
            {**options, "model": f"/models/{STACK_VARIABLES['sgl_model']}", "probe": "never"}
        )
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda host: host.warm(request), self.hosts))

    def converged(self, count: int) -> Cost:
        """Raises Wrong where it changes anything, or a host was not asked at its own socket and its
        own Prometheus.
        """
        before = [(host.daemon.asked.total(), host.container.proofs) for host in self.hosts]
        cost = self.play(count, PREP)
        changed = [name for name, counts in cost.counts.items() if counts["changed"]]
        if changed:
            raise Wrong(
                "the run was not converged on"
                f" {', '.join(changed)}:\n{(self.work / 'output').read_text()[-4000:]}"
            )
        for host, (asked, proofs) in zip(self.hosts[:count], before, strict=False):
            if host.daemon.asked.total() == asked or host.container.proofs == proofs:
                raise Wrong(
                    f"{host.name} has a daemon or a Prometheus of its own that nothing asked"
                )
        return cost

    def ping(self, count: int, tasks: int) -> Cost:
        path = self.work / "ping.yml"
        pings = [
            {"name": f"Ping {number + 1}", "ansible.builtin.ping": {}} for number in range(tasks)
        ]
        path.write_text(
            yaml.safe_dump(
                [{"name": "Ping", "hosts": "sglang", "gather_facts": False, "tasks": pings}]
            ),
            encoding="utf-8",
        )
        return self.play(count, str(path))

    def take(self, count: int) -> Cost:
        """All hosts but the first lack what that has. Raises Wrong where one does not take it."""
        shutil.rmtree(self.work / "caches", ignore_errors=True)
        for host in self.hosts[1:count]:
            host.forget()
        cost = self.play(count, PREP)
        for host in self.hosts[:count]:
            kernels = len(list((host.root / "profiles").glob("t*/*/kernel.bin")))
            if kernels != KERNELS or (cost.counts[host.name]["changed"] == 0) != (
                host is self.hosts[0]
            ):
                raise Wrong(
                    f"{host.name} has {kernels} of {KERNELS}"
                    f" kernels:\n{(self.work / 'output').read_text()[-4000:]}"
                )
        return cost


def image() -> dict[str, Any]:
    """As Docker would describe the image that was built of this checkout."""
    inputs = sgl_image.digest(
        sgl_image.pack(str(CONTEXT), "local"),
        {"flavour": "local", "base_name": BASE, "base_suite": None},
    )
    return {
        "Id": f"sha256:{'5' * 64}",
        "RepoTags": [IMAGE],
        "RepoDigests": [],
        "Created": "2026-11-23T09:00:00Z",
        "Architecture": host_architecture(),
        "Os": "linux",
        "Config": {"Labels": {INPUTS_LABEL: inputs, FLAVOUR_LABEL: "local"}, "Env": []},
    }


def median(costs: list[Cost], part: str) -> float:
    return statistics.median([float(getattr(cost, part)) for cost in costs])


def table(title: str, rows: dict[int, list[Cost]]) -> None:
    print(
        f"\n{title}\n{'hosts':>6}{'wall':>10}{'controller':>14}{'the hosts':>13}"
        f"{'spread of the controller':>34}"
    )
    for count, costs in rows.items():
        spread = " ".join(f"{cost.cpu:.2f}" for cost in costs)
        parts = [median(costs, part) for part in ("wall", "cpu", "hosts_cpu")]
        print(f"{count:>6}{parts[0]:>8.2f} s{parts[1]:>12.2f} s{parts[2]:>11.2f} s{spread:>34}")


def growth(title: str, rows: dict[int, list[Cost]]) -> bool:
    """Print what each further host costs; whether the last step costs no more than GROWTH of the
    one before it.
    """
    counts, parts = list(rows), ("wall", "cpu")
    steps = [
        [
            (median(rows[after], part) - median(rows[before], part)) / (after - before) * 1000
            for part in parts
        ]
        for before, after in zip(counts, counts[1:], strict=False)
    ]
    for (before, after), (wall, cpu) in zip(
        zip(counts, counts[1:], strict=False), steps, strict=True
    ):
        print(
            f"{title}, {before} to {after} hosts: {wall:.0f} ms wall and {cpu:.0f} ms of the"
            " controller for each further host"
        )
    if len(steps) < 2:
        return True
    last, earlier = steps[-1][1], steps[-2][1]
    print(
        f"{title}: the last step costs {last / earlier:.2f} times the one before it (at most"
        f" {GROWTH})"
    )
    return last <= GROWTH * earlier


def measure(lab: Lab, counts: list[int], runs: int) -> bool:
    prep: dict[int, list[Cost]] = {count: [] for count in counts}
    pings: dict[int, list[Cost]] = {count: [] for count in counts}
    takes: dict[int, list[Cost]] = {count: [] for count in counts if count > 1}
    for _run in range(runs):
        for count in counts:
            prep[count].append(lab.converged(count))
            pings[count].append(lab.ping(count, prep[count][0].ok))
            if count > 1:
                takes[count].append(lab.take(count))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"load average {load} on {os.cpu_count()} cores; medians of {runs}, run in turn")
    largest = max(counts)
    table("converged", prep)
    table(f"as many pings ({prep[largest][0].ok})", pings)
    table(
        (
            f"each host but the first takes a cache ({takes[largest][0].ok} tasks)"
            if takes
            else "no taking by one host"
        ),
        takes,
    )
    print()
    fine = [growth("converged", prep), growth("pings", pings), growth("taking", takes)]
    ratio = median(prep[largest], "cpu") / median(pings[largest], "cpu")
    print(f"{largest} hosts: the controller works {ratio:.2f} times as long as for as many pings")
    return fine[0] and fine[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="What a fleet costs the controller.")
    parser.add_argument(
        "--hosts",
        default="1,10,25,50",
        help="how many, from few to many; two steps at least are needed to tell growth",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--forks", type=int, help="as in the checkout's ansible.cfg by default")
    options = parser.parse_args()
    tools.require("tests/bench/scale.py")
    counts = sorted(map(int, options.hosts.split(",")))
    # Short, as a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as folder:
        work = Path(folder)
        described = image()
        hosts = [
            Host(work / f"{number:02d}", number, described) for number in range(1, max(counts) + 1)
        ]
        lab = Lab(work, hosts, options.forks)
        with Daemons([host.daemon for host in hosts]):
            try:
                lab.make()
                fine = measure(lab, counts, options.runs)
            except Wrong as error:
                unknown = sorted({words for host in hosts for words in host.daemon.unknown})
                print(
                    error,
                    *(f"a stand-in for a daemon does not know: {words}" for words in unknown),
                    sep="\n",
                    file=sys.stderr,
                )
                return 1
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
