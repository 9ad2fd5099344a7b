"""Ends a program of the product at one chosen write, and says what it left and what the next run
makes of that.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import ValidationError

from sgl_admin.contract import places
from sgl_admin.contract.records import MADE_IN
from tests.contract import validators
from tests.faults.fault_site import FaultSite
from tests.faults.leftovers import settled
from tests.integration.installation import docker, lock_is_free, port_is_free, wait_for

STATE = "/var/lib/sgl"
# What differs between two runs that came to the same: when, how long, who; and what the second
# finds done by the first.
_VARYING = frozenset(
    "started_at finished_at updated_at probed_at taken_at pid_started_at latest_mtime_iso"
    " duration_s elapsed_s eta_s waited_s pid pid_start_ticks start_ticks owner_pid done total unit"
    " message sample_count tokens_seen tokens_expected warmup_requests ran reason warnings before"
    " start_byte end_byte latency_s ttft_s ready_after_s output_tokens_per_s pgid log_start"
    " stopped_at since until compiled_files new_files server_starts start_advice mtime_ns"
    f" made {MADE_IN}".split()
)
_IDS = re.compile(r"\b(container-run|prep|smoke|server)-\d{8}T\d{6}Z-[0-9a-f]{8}\b")


@dataclass(frozen=True)
class Operation:
    """One change of a file or folder, as the shim counted it."""

    program: str
    number: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.program}:{self.number} {self.name} {self.path}"


@dataclass
class Undisturbed:
    """What the programs do, and what a run comes to, when nothing disturbs it."""

    operations: list[Operation]
    state: dict[str, Any]


class Rig:
    """One container, its tree and the shim's folder."""

    def __init__(self, site: FaultSite) -> None:
        self.site = site
        # The situation that the rig is in, and what happens there undisturbed.
        self.arranged: tuple[str, Undisturbed] | None = None
        self._kept = site.root.parent / "kept"
        self.keep("bare")

    # --- the shim ---------------------------------------------------------------------------------

    def plan(self, operation: Operation | None = None, kind: str = "") -> None:
        """Forget what the shim noted, and tell it what to do next."""
        for name in ("plan", "hit", "full", "operations.log"):
            (self.site.shim / name).unlink(missing_ok=True)
        if operation:
            (self.site.shim / "plan").write_text(f"{operation.program}:{operation.number}:{kind}")

    @property
    def hit(self) -> bool:
        return (self.site.shim / "hit").exists()

    def free_space(self) -> None:
        """The disk that the shim declared full is not any more."""
        (self.site.shim / "full").unlink(missing_ok=True)

    def operations(self) -> list[Operation]:
        log = self.site.shim / "operations.log"
        lines = (
            [line.split(" ", 3) for line in log.read_text().splitlines()] if log.exists() else []
        )
        return [
            Operation(program, int(number), name, path) for program, number, name, path in lines
        ]

    # --- the tree ---------------------------------------------------------------------------------

    def keep(self, name: str = "begin") -> None:
        """Remember the records and the caches as they are now."""
        kept = self._kept / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for part in parts(self.site.root):
            copy(self.site.root / part, kept / part)

    def restore(self, name: str = "begin") -> None:
        """The records and the caches as they were; the mounted folders themselves stay."""
        for part in parts(self.site.root):
            remove(self.site.root / part)
        for part in parts(self._kept / name):
            copy(self._kept / name / part, self.site.root / part)

    @property
    def kept_pointer(self) -> str:
        return (self._kept / "begin" / "telemetry" / self.site.pointer.name).read_text()

    def log(self) -> str:
        """What the container printed in its present or last life, and the log of its latest run."""
        done = docker("logs", "--since", self.site.state()["StartedAt"], self.site.container)
        logs = sorted(
            (self.site.telemetry / "logs").iterdir(), key=lambda path: path.stat().st_mtime
        )
        return done.stdout + done.stderr + (logs[-1].read_text(errors="replace") if logs else "")

    # --- what is there ----------------------------------------------------------------------------

    def broken(self) -> list[str]:
        """Each contract file that is there and not whole; what keeps to its schema is whole."""
        found: list[str] = []
        for path, validate in self._contract_files():
            try:
                validate(path)
            except (ValueError, ValidationError, KeyError, OSError, yaml.YAMLError) as error:
                found.append(f"broken: {path}: {str(error).splitlines()[0]}")
        found += [f"set aside as broken: {path}" for path in self.site.root.rglob("*.corrupt-*")]
        return found

    def _contract_files(self) -> Iterator[tuple[Path, Any]]:
        if self.site.pointer.exists():
            yield self.site.pointer, self._check_pointer
        runs = self.site.telemetry / "container_runs"
        for path in runs.glob("*.json"):
            yield path, lambda path: validators.validate_manifest(load(path))
        for name, validate in (
            ("*/prep_result.json", validators.validate_prep_result),
            ("*/job.json", validators.validate_job),
            ("*/stages/*.json", validators.validate_stage),
            ("*/smokes/*/summary.json", validators.validate_smoke_summary),
            (
                "*/server.json",
                lambda record: (record["server_id"], record["argv"], record["state"]),
            ),
        ):
            for path in runs.glob(name):
                yield path, lambda path, validate=validate: validate(load(path))
        for path in runs.glob("*/prometheus.yml"):
            yield path, check_prometheus_config
        for path in (self.site.profiles / ".in_progress").glob("*.json"):
            yield path, lambda path: load(path)["stage"]
        for path in self.site.profiles.glob("*/.signatures/*.json"):
            yield (
                path,
                lambda path: (
                    load(path)["signature"],
                    load(path)["files"],
                    load(path)["summary"],
                ),
            )

    def _check_pointer(self, path: Path) -> None:
        named = validators.parse_and_validate_pointer(path.read_text())
        validators.validate_manifest(load(Path(named["CONTAINER_RUN_META_JSON_HOST"])))

    def leftovers(self) -> list[str]:
        """What no finished run leaves: temp files, markers, held locks, servers, a taken port,
        records that say they run.
        """
        return settled(self._left_now)

    def _left_now(self) -> list[str]:
        site = self.site
        found = [
            f"temp file: {path}"
            for path in site.root.rglob("*.tmp")
            if "prometheus" not in path.parts
        ]
        found += [
            f"temp file: {STATE}/{name}"
            for name in site.docker_exec("ls", "-A", STATE).stdout.split()
            if name.endswith(".tmp")
        ]
        found += [f"marker: {path}" for path in (site.profiles / ".in_progress").iterdir()]
        found += [
            f"held lock: {path}"
            for path in (site.profiles / ".locks").iterdir()
            if not lock_is_free(path)
        ]
        found += [
            f"process: {line}"
            for line in site.commands()
            if "sglang::" in line or "launch_server" in line or ".worker" in line
        ]
        found += [] if port_is_free(site.ports["sglang"]) else ["the server's port is taken"]
        for name in ("*/job.json", "*/smokes/*/summary.json", "*/server.json"):
            found += [
                f"record of what runs: {path}"
                for path in (site.telemetry / "container_runs").glob(name)
                if load(path)["state"] == "running"
            ]
        return found

    def end_state(self) -> dict[str, Any]:
        """Every record of the live run and all that the caches hold, less what differs between two
        runs that came to the same.
        """
        site, run_id = self.site, self.site.run_id
        state: dict[str, Any] = {"pointer": _IDS.sub(r"\1-ID", site.pointer.read_text())}
        smokes = sorted(
            site.run_dir().glob("smokes/*/summary.json"), key=lambda path: path.stat().st_mtime_ns
        )
        # Of several smokes the last one counts; the one before it may be the one that was
        # disturbed.
        earlier = [path.parent for path in smokes[:-1]]
        for path in [
            site.pointed(),
            *(path for path in site.run_dir().rglob("*") if path.is_file()),
        ]:
            if any(path.is_relative_to(folder) for folder in earlier):
                continue
            state[_IDS.sub(r"\1-ID", str(path.relative_to(site.telemetry)))] = comparable(path)
        for path in site.profiles.rglob("*"):
            # When a record was last used differs by what the next run found done, and Python leaves
            # the file that it was writing byte code to.
            if places.BYTE_CODE in path.parts or path.suffix == places.USED:
                continue
            if path.is_file():
                state[str(path.relative_to(site.root))] = comparable(path)
        manifest = state["container_runs/container-run-ID.json"]
        # What the caches held before differs by how far a killed run came; and a restart is another
        # process.
        del manifest["profile_cache"], manifest["pid1"]
        state["log"] = (site.telemetry / "logs" / f"{run_id}.log").exists()
        return state


def parts(root: Path) -> list[Path]:
    """What a tree's records and caches are made of, but for what Prometheus and supervisord hold
    open.
    """
    folders = [root / name for name in ("telemetry", "profiles") if (root / name).exists()]
    return [
        entry.relative_to(root)
        for folder in folders
        for entry in folder.iterdir()
        if entry.name not in ("prometheus", "logs")
    ]


def comparable(path: Path) -> Any:
    text = _IDS.sub(r"\1-ID", path.read_text(errors="replace"))
    return simplify(json.loads(text)) if path.suffix == ".json" and text.startswith("{") else text


def simplify(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"start", "end"}:
        return "two moments"
    if isinstance(value, dict):
        return {
            key: "ok" if (key, item) == ("status", "noop") else simplify(item)
            for key, item in value.items()
            if key not in _VARYING
        }
    return [simplify(item) for item in value] if isinstance(value, list) else value


def difference(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How one end state differs from another, by file."""
    problems = [f"missing: {name}" for name in wanted.keys() - found.keys()] + [
        f"too much: {name}" for name in found.keys() - wanted.keys()
    ]
    for name in wanted.keys() & found.keys():
        if wanted[name] != found[name]:
            problems.append(f"differs: {name}: {found[name]!r} instead of {wanted[name]!r}")
    return sorted(problems)


def load(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def check_prometheus_config(path: Path) -> None:
    if [job["job_name"] for job in yaml.safe_load(path.read_text())["scrape_configs"]][
        -1
    ] != "sglang":
        raise ValueError("it does not end with the server's target")


def copy(source: Path, target: Path) -> None:
    """With owners, modes and times."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def new_rig(template: FaultSite, number: int) -> Iterator[Rig]:
    """A container like the template's, with names, ports and a tree of its own: same directories
    and model, cold caches, no runs.
    """
    base = template.root.parent / f"rig{number}"
    base.mkdir()
    base.chmod(0o755)
    ports = {name: port + number for name, port in template.ports.items()}
    ports["node_exporter"] = template.ports["node_exporter"] - number
    site = FaultSite(
        base / template.root.name, f"{template.container}-{number}", ports, template.user
    )
    copy(template.root, site.root)
    for folder in ("container_runs", "logs", "prometheus", "jaeger"):
        for entry in (site.telemetry / folder).iterdir():
            remove(entry)
    site.pointer.unlink()
    for cache in site.profiles.iterdir():
        for entry in cache.iterdir():
            remove(entry)
    found = template.inspect()
    assert found is not None
    try:
        site.create(found, template)
        yield Rig(site)
    finally:
        docker("rm", "--force", site.container, check=False)
        wait_for(lambda: port_is_free(ports["prometheus"]), "the port")
        shutil.rmtree(base, ignore_errors=True)
