"""What has to hold on a Hopper GPU with SGLang installed, with or without Docker: each phase writes
what it saw as JSON.

    python tests/gpu/acceptance.py --out FOLDER [PHASE ...]

The phases build on each other's caches, below `--root`; each prints a short summary, and fails with
the first thing that does not hold. It needs nothing but this checkout, SGLang, pebble and
nvidia-ml-py in the Python that runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

from sgl_admin.base import paths, versions  # noqa: E402
from sgl_admin.facts import devices  # noqa: E402
from sgl_admin.records import caches  # noqa: E402
from tests.gpu import host, tuning  # noqa: E402
from tests.gpu.models import write_qwen3_next_fp8  # noqa: E402

# In their order: each builds on the caches of those before it.
PHASES = ("cold", "prepared", "perf", "shipped", "taken_over", "gain", "without_fa3")
PORT = 30000
BATCH_SIZE, SAMPLE = 64, 32
GRAPHS = "1,2,4,8"
TUNE_S, MEASURE_S = 480.0, 300.0
# Dummy weights; and of the GPU no more than such a model needs.
SERVER: tuple[str, ...] = ("--load-format", "dummy", "--mem-fraction-static", "0.6")
# The pip packages of FlashInfer need not be of one version.
ENVIRONMENT: tuple[str, ...] = ("FLASHINFER_DISABLE_VERSION_CHECK=1",)
LONG = " ".join(f"w{number % 1900 + 3}" for number in range(700))
# A request: all stages, and the MoE kernel alone, without a server.
WHOLE = ("--moe-batch-sizes", str(BATCH_SIZE), "--cuda-graph-bs", GRAPHS)
MOE_ALONE = ("--moe", "ensure", "--moe-fusion", "skip", "--moe-batch-sizes", "8,64,512")


class Acceptance:
    # The server's arguments and its environment's settings.
    server, environment = SERVER, ENVIRONMENT

    def __init__(self, root: Path, out: Path, request: tuple[str, ...] = WHOLE) -> None:
        self.root = root
        self.out = out
        self.request = request
        self.model = write_qwen3_next_fp8(root / "models" / "qwen3-next-4-layers-fp8")
        paths.relocate(root)

    def admin(self, *words: str, timeout_s: float = 1800) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "sgl_admin", *words, timeout_s=timeout_s)

    def python(self, *start: str, timeout_s: float = 1800) -> subprocess.CompletedProcess[str]:
        """sgl-admin, by the words of Python that start it and its own."""
        python_path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        way, what, *words = start
        return subprocess.run(
            [sys.executable, "-P", way, what, "--root", str(self.root), *words],
            env={**os.environ, "PYTHONPATH": python_path},
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def caches(self, action: str, *words: str) -> tuple[dict[str, Any], float]:
        """An action of `caches` for the request; returns what it printed and the seconds that it
        took.
        """
        server = [f"--server-arg={word}" for word in self.server] + [
            f"--server-env={setting}" for setting in self.environment
        ]
        started = time.monotonic()
        done = self.admin(
            "caches",
            action,
            *words,
            "--json",
            "--model",
            str(self.model),
            "--moe-sample",
            str(SAMPLE),
            *self.request,
            *server,
        )
        took = time.monotonic() - started
        text = done.stdout.partition("\nRESULT_JSON")[0]
        try:
            return json.loads(text), took
        except ValueError:
            sys.exit(
                f"no result (exit code {done.returncode}): {done.stdout[-2000:]}\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        logs = sorted(paths.LOGS.glob("*.log"))
        return (
            "\n".join(logs[-1].read_text(errors="replace").splitlines()[-60:]) if logs else "no log"
        )

    def save(self, name: str, found: dict[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}.json").write_text(
            json.dumps({"machine": machine(), **found}, indent=1)
        )

    # --- phases

    def cold(self) -> None:
        """Every stage from empty caches, and again."""
        first, took = self.caches("ensure")
        second, again = self.caches("ensure")
        found = {"first": first, "first_s": took, "second": second, "second_s": again}
        self.save("cold", found)
        for log in paths.LOGS.glob("*.log"):
            shutil.copy(log, self.out / "cold.log")
        for name, stage in first["stages"].items():
            print(
                f"{name:10} {stage['status']:6} {stage['duration_s']:8.1f} s  {stage['artifacts']} "
                f" {stage['errors']}"
            )
        print(f"cold ensure {took:.1f} s; again {again:.2f} s: {statuses(second)}")
        check(statuses(first) == ["ok"] * 4, f"cold: {statuses(first)}\n{self.log_tail()}")
        check(
            first["stages"]["moe_tune"]["artifacts"]["verified_in_log"],
            "the server did not say that it read our file",
        )
        check(statuses(second) == ["noop"] * 4, f"again: {statuses(second)}")
        check(again < 1, f"a no-op took {again:.2f} s")

    def prepared(self) -> None:
        """A server on prepared caches: nothing is compiled from its start to the last request."""
        found = self.serve()
        self.save("prepared", found)
        print(
            json.dumps({key: value for key, value in found.items() if key != "metrics"}, indent=1)
        )
        check(not found["new_files"], f"{len(found['new_files'])} new files in the caches")

    def without_fa3(self) -> None:
        """SGLang's kernels without FlashAttention 3, as in the wheels for arm64: another backend is
        chosen, its stages are done, and its prepared server compiles nothing.
        """
        with fa3_away() as away:
            first, took = self.caches("ensure")
            second, again = self.caches("ensure")
            found: dict[str, Any] = {"away": away, "first": first, "first_s": took}
            found |= {"second": second, "second_s": again, **self.serve()}
        self.save("without_fa3", found)
        chosen = [
            word for choice in first["run"]["server"]["chosen"] for word in choice["arguments"]
        ]
        print(f"without {away}: {chosen}; {statuses(first)} in {took:.1f} s, again {again:.2f} s")
        shown = ("ready_s", "first_greedy", "first_sampled", "new_files", "graphs")
        print(json.dumps({key: found[key] for key in shown}, indent=1))
        check(chosen == ["--attention-backend", "flashinfer"], f"chosen: {chosen}")
        check({*statuses(first)} <= {"ok", "noop"}, f"without FA3: {statuses(first)}")
        check(statuses(second) == ["noop"] * 4, f"again: {statuses(second)}")
        check(not found["new_files"], f"{len(found['new_files'])} new files in the caches")

    def shipped(self) -> None:
        """The caches exported, and imported into empty ones, as another host of the fleet takes
        them: everything hits.
        """
        archive = self.root / "caches.tar"
        packed = self.root / "profiles.packed"
        exported, export_s = self.caches("export", str(archive))
        paths.PROFILES.rename(packed)
        try:
            imported, import_s = self.caches("import", str(archive))
            result, took = self.caches("ensure")
            found = {
                "export": exported,
                "export_s": export_s,
                "archive_bytes": archive.stat().st_size,
                "import": imported,
                "import_s": import_s,
                "ensure": statuses(result),
                "ensure_s": took,
                **self.serve(),
            }
        finally:
            shutil.rmtree(packed)
        self.save("shipped", found)
        print(
            json.dumps({key: value for key, value in found.items() if key != "metrics"}, indent=1)
        )
        check(found["ensure"] == ["noop"] * 4, f"ensure after the import: {found['ensure']}")
        check(not found["new_files"], f"{len(found['new_files'])} new files in the caches")

    def taken_over(self) -> None:
        """A tuning that is killed after a batch size: another host takes what is finished and tunes
        the rest, and gives it back.
        """
        archive = self.root / "so-far.tar"
        killed, other = (
            Acceptance(self.root / name, self.out, MOE_ALONE) for name in ("killed", "other")
        )
        begun, _ = killed.caches("ensure", "--detach", "--wait", "0")
        finished: list[int] = []
        for _ in range(3000):
            job = json.loads(killed.admin("status", "--json").stdout)["job"]
            finished = job.get("finished_batch_sizes", [])
            if finished or job["state"] != "running":
                break
            time.sleep(0.1)
        so_far, _ = killed.caches("export", str(archive))
        os.kill(begun["job"]["pid"], signal.SIGKILL)
        taken, _ = other.caches("import", str(archive))
        result, rest_s = other.caches("ensure")
        whole, _ = other.caches("export", str(archive))
        back, _ = killed.caches("import", str(archive))
        again, _ = killed.caches("ensure")
        artifacts = result["stages"]["moe_tune"]["artifacts"]
        skipped, new = artifacts["skipped_batch_sizes"], artifacts["new_batch_sizes"]
        work = [
            str(path)
            for host in (killed, other)
            for path in host.root.glob("profiles/moe_configs/.tuning/*")
        ]
        found = {
            "finished": finished,
            "so_far": so_far,
            "taken": taken,
            "ensure": result,
            "ensure_s": rest_s,
            "whole": whole,
            "back": back,
            "again": again,
            "work": work,
            "compute_processes": compute_processes(),
        }
        self.save("taken_over", found)
        paths.relocate(self.root)
        print(
            f"killed after {finished}; the other host had {skipped} and tuned {new} in {rest_s:.1f}"
            f" s; back: {statuses(again)}"
        )
        check(0 < len(finished) < 3, f"killed after {finished}")
        check(set(finished) <= set(skipped), "what was finished was tuned once more")
        check(
            bool(new) and sorted(skipped + new) == [8, 64, 512],
            f"the other host had {skipped} and tuned {new}",
        )
        check(
            again["stages"]["moe_tune"]["status"] == "noop", f"back: {again['stages']['moe_tune']}"
        )
        check(
            not work and not found["compute_processes"],
            f"left: {work} {found['compute_processes']}",
        )

    def perf(self) -> None:
        """The host measured with its prepared server: it passes, a second time there is nothing to
        do, and a process that uses the GPU meanwhile is named.
        """
        first, took = self.caches("ensure", "--perf", "ensure")
        second, again = self.caches("ensure", "--perf", "ensure")
        with host.neighbour() as pid:
            beside, _ = self.caches("ensure", "--perf", "rebuild")
        found = {"first": first, "first_s": took, "second": second, "second_s": again}
        self.save("perf", {**found, "neighbour": pid, "beside": beside})
        stage, noop = (each["stages"]["perf"] for each in (first, second))
        probe = first["perf_probe"]
        print(json.dumps({key: probe.get(key) for key in ("verdict", "reason", "skipped")}))
        for measurement in probe.get("measurements", []):
            print(json.dumps(measurement))
        reason = beside["perf_probe"]["reason"]
        print(
            f"perf {stage['status']} in {stage['duration_s']:.1f} s {stage['errors']}; again"
            f" {noop['status']} in {again:.2f} s; beside process {pid}: {reason}"
        )
        check(probe.get("verdict") == "pass", f"perf: {stage}")
        check(noop["status"] == "noop", f"again: {noop}")
        check(f"pid {pid}" in str(reason), "the process on the GPU was not named")

    def gain(self) -> None:
        """Thirteen batch sizes tuned on the whole space as a user has it, and the files against
        SGLang's defaults and what it ships: nowhere slower, and not in longer than eight minutes.
        """
        measuring = tuning.Tuning("fp8", self.root / "gain", self.out)
        tuned = measuring.tune()
        found = measuring.measure(MEASURE_S)
        print(json.dumps(found["summary"], indent=1))
        check(tuned["outcome"]["duration_s"] <= TUNE_S, "tuning took more than eight minutes")
        for name, against in found["summary"].items():
            if name in ("gain over default", "gain over shipped"):
                slower = against["slower_by_a_hundredth"]
                check(not slower, f"{name}: slower at {slower}")

    # --- a server

    def serve(self) -> dict[str, Any]:
        """Start the prepared server, ask it, stop it; returns times in seconds and the files that
        came into the caches.
        """
        before = snapshot()
        started = time.monotonic()
        begun = self.admin("server", "start", "--json")
        check(begun.returncode == 0, f"server start: {begun.stdout[-500:]}")
        try:
            ready_s = self.wait_healthy(started)
            ready = snapshot()
            first, sampled = stream("w5 w6 w7 w8", 0.0), stream("w9 w10 w11", 0.8)
            with ThreadPoolExecutor(8) as pool:
                for size in (2, 4, 8):
                    for temperature in (0.0, 0.8):
                        list(
                            pool.map(
                                lambda number, heat=temperature: stream(
                                    f"w{number + 20} w{number + 21}", heat
                                ),
                                range(size),
                            )
                        )
            long = stream(LONG, 0.8)
            metrics = [
                line for line in get("/metrics").splitlines() if line.startswith("sglang:startup")
            ]
        finally:
            self.admin("server", "stop", "--json")
        after = snapshot()
        return {
            "ready_s": ready_s,
            "first_greedy": first,
            "first_sampled": sampled,
            "long_sampled": long,
            "metrics": metrics,
            "files_before": len(before),
            "new_until_ready": sorted(ready.keys() - before.keys()),
            "new_files": sorted(after.keys() - before.keys()),
            "graphs": graph_times(),
        }

    def wait_healthy(self, started: float) -> float:
        while time.monotonic() - started < 500:
            try:
                if get("/health", timeout_s=5) is not None:
                    return time.monotonic() - started
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"the server did not become healthy\n{self.log_tail()}")


@contextlib.contextmanager
def fa3_away() -> Iterator[list[str]]:
    """The library of FlashAttention 3 beside its package, and back in the end."""
    package = versions.package_folder("sgl_kernel")
    check(package is not None, "sgl_kernel is not installed")
    assert package is not None
    names = [path.name for path in package.glob("flash_ops*.so")]
    check(bool(names), f"{package} has no flash_ops library")
    aside = package.with_name("sgl_kernel-without-fa3")
    aside.mkdir()
    try:
        for name in names:
            (package / name).rename(aside / name)
        yield names
    finally:
        for path in aside.iterdir():
            path.rename(package / path.name)
        aside.rmdir()


def get(path: str, timeout_s: float = 30) -> str:
    """Raises OSError where it does not answer 200."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"HTTP {response.status}")
    return text


def stream(prompt: str, temperature: float) -> dict[str, float]:
    """Seconds to the first token of a streamed completion, and to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=500)
    body = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": 16,
        "temperature": temperature,
        "stream": True,
        "ignore_eos": True,
    }
    started = time.monotonic()
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    check(response.status == 200, f"HTTP {response.status}")
    first = None
    for line in response:
        if first is None and line.startswith(b"data: {"):
            first = time.monotonic() - started
    connection.close()
    check(first is not None, "no token came")
    return {"first_token_s": round(first or 0, 3), "end_s": round(time.monotonic() - started, 3)}


def graph_times() -> list[str]:
    """What the servers' log says of the capture of graphs, and of what it compiles."""
    log = max(paths.LOGS.glob("*.log"), key=lambda path: path.stat().st_mtime)
    words = (
        "apture",
        "fired up",
        "DeepGEMM",
        "ttention backend",
        "Load weight",
        "MoE kernel config",
        "elapsed",
    )
    lines = log.read_text(errors="replace").splitlines()
    return [
        line[:220] for line in lines if any(word in line for word in words) and "%|" not in line
    ][-60:]


def snapshot() -> dict[str, int]:
    """Every content file of every cache, with its size."""
    return {
        str(path): stat.st_size
        for cache in caches.CACHES
        for path, stat in caches.cache_files(cache)
    }


def compute_processes() -> list[int]:
    """The processes that hold memory of a GPU."""
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    shown = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [int(line) for line in shown.split() if line.isdigit()]


def statuses(result: dict[str, Any]) -> list[str]:
    """Of the stages that fill caches."""
    return [stage["status"] for name, stage in result["stages"].items() if name != "perf"]


def machine() -> dict[str, Any]:
    found = devices.find()
    packages = (
        "sglang",
        "torch",
        "triton",
        "flashinfer-python",
        "sgl-deep-gemm",
        "sglang-kernel",
        "apache-tvm-ffi",
    )
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpu": found.name,
        "driver": found.driver_version,
        "cuda": versions.cuda_runtime(),
        "cpu_arch": found.cpu_arch,
        "processors": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "versions": {name: versions.installed(name) for name in packages},
    }


def check(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"acceptance: {message}")


def parser(doc: str | None, root: str) -> argparse.ArgumentParser:
    """What each of these programs takes."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--root", type=Path, default=Path(root), help="folder for caches and records")
    made.add_argument("--out", type=Path, required=True, help="folder for the results")
    return made


def chosen(named: str | list[str], every: Iterable[str]) -> Iterable[str]:
    """Of an argument that takes these names or `all`, which is its default."""
    return every if "all" in named else named


def main() -> None:
    takes = parser(__doc__, "/tmp/sgl-acceptance")
    takes.add_argument("phases", nargs="*", choices=("all", *PHASES), default="all")
    arguments = takes.parse_args()
    acceptance = Acceptance(arguments.root, arguments.out)
    for phase in chosen(arguments.phases, PHASES):
        started = time.monotonic()
        print(f"--- {phase}", flush=True)
        getattr(acceptance, phase)()
        print(f"--- {phase}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
