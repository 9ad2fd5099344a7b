"""sgl-admin and the init are ended at every write that they do, and the disk is full at every
write; then they run again.

The shim in the fault image finds the writes and counts them. Each time the contract files are whole
or absent, and what the next run comes to equals what a run comes to that nothing disturbed.
"""

from __future__ import annotations

import os
import queue
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.faults.fault_site import FaultSite
from tests.faults.rig import Operation, Rig, Undisturbed, difference, new_rig
from tests.integration.installation import docker, lock_is_free, wait_for

# A start of the container and a prep wait more than they compute.
RIGS = 3
# In the slow lane; each case begins at another operation.
EVERY = int(os.environ.get("SGL_KILLS_EVERY", "1"))
KINDS = ("before", "after", "torn", "enospc", "full")
NEEDS_SPACE = frozenset({"open", "write", "mkdir", "fsync", "fsync_folder", "rename", "replace"})


@dataclass(frozen=True)
class Ended:
    """How a disturbed run ended, for its caller."""

    code: int
    text: str


class Scenario:
    """Programs in one situation: how that is arranged, the run that is disturbed, and the run after
    it.
    """

    kinds: tuple[str, ...] = KINDS

    def __init__(self, name: str, *programs: str) -> None:
        self.name = name
        self.programs = programs

    def points(self, operations: Sequence[Operation]) -> list[Operation]:
        """Those of the undisturbed run's operations that this scenario is about."""
        return [operation for operation in operations if operation.program in self.programs]

    def arrange(self, rig: Rig) -> None:
        """Bring the rig to where each disturbed run begins, and keep that."""
        raise NotImplementedError

    def run(self, rig: Rig) -> Ended:
        raise NotImplementedError

    def run_again(self, rig: Rig) -> list[str]:
        """Undisturbed; returns what went wrong."""
        raise NotImplementedError

    def told(self, ended: Ended, kind: str, rig: Rig) -> list[str]:
        """What is wrong with the answer that the caller of the disturbed run got."""
        problems = [f"a traceback: {ended.text[-1500:]}"] if "Traceback" in ended.text else []
        if (
            kind in ("enospc", "full")
            and ended.code != 0
            and not re.search("no space left", ended.text, re.IGNORECASE)
        ):
            problems.append(
                f"exit code {ended.code}, and no word of the space: {ended.text[-500:]!r}"
            )
        return problems


class Admin(Scenario):
    """`caches ensure` in a live run, from cold caches or from where `before` brings them."""

    arguments: tuple[str, ...] = ()

    def arrange(self, rig: Rig) -> None:
        stop(rig)
        rig.restore("bare")
        rig.plan()
        rig.site.start()
        self.before(rig)
        rig.keep()

    def before(self, rig: Rig) -> None:
        """Nothing: a first prep."""

    def run(self, rig: Rig) -> Ended:
        logged = len(rig.site.log())
        done = rig.site.ensure(*self.arguments)
        # The worker writes to the run's log.
        return Ended(done.returncode, done.stdout + done.stderr + rig.site.log()[logged:])

    def run_again(self, rig: Rig) -> list[str]:
        return ensure(rig)

    def told(self, ended: Ended, kind: str, rig: Rig) -> list[str]:
        problems = super().told(ended, kind, rig)
        if ended.code not in (0, 1, 6, 13, 137):
            problems.append(f"exit code {ended.code}: {ended.text[-500:]}")
        if ended.code == 0 and not ready(rig):
            problems.append(f"exit code 0, and it is not done: {ended.text[-500:]}")
        return problems


class AdminNothingToDo(Admin):
    """What stands is only recorded again, without a worker."""

    def before(self, rig: Rig) -> None:
        demand(ensure(rig))


class AdminRebuild(AdminNothingToDo):
    """What a rebuild does besides: the old work lies beside the caches until the new one stands."""

    arguments = ("--inductor", "rebuild")
    # What moves or removes a file needs no space, and leaves no half.
    kinds = ("before", "after")

    def points(self, operations: Sequence[Operation]) -> list[Operation]:
        return [
            operation
            for operation in super().points(operations)
            if operation.name in ("unlink", "rmdir", "rename", "replace", "link")
            and "/profiles/" in operation.path
        ]


class AdminAfterKill(Admin):
    """A worker was killed when its stage's work was done and not vouched for: what it left is
    settled first.
    """

    def before(self, rig: Rig) -> None:
        rig.keep("live")
        rig.plan()
        demand(ensure(rig))
        signature = next(
            operation
            for operation in rig.operations()
            if operation.name == "fsync" and ".signatures/" in operation.path
        )
        rig.restore("live")
        rig.plan(signature, "before")
        # No command waits for it and would settle it.
        rig.site.ensure("--detach")
        wait_for(
            lambda: rig.hit and lock_is_free(rig.site.profiles / ".locks" / "prep.lock"),
            "the worker to be killed",
            30,
        )


class Smoke(AdminNothingToDo):
    """A smoke of the prepared server, which it starts and stops itself."""

    def run(self, rig: Rig) -> Ended:
        logged = len(rig.site.log())
        done = rig.site.admin("smoke", "run")
        return Ended(done.returncode, done.stdout + done.stderr + rig.site.log()[logged:])

    def run_again(self, rig: Rig) -> list[str]:
        return done_with(rig, "smoke", "run") + (
            [] if ready(rig) else ["the smoke took METRICS_READY away"]
        )

    def told(self, ended: Ended, kind: str, rig: Rig) -> list[str]:
        problems = Scenario.told(self, ended, kind, rig)
        return problems + (
            [] if ended.code in (0, 1, 7, 137) else [f"exit code {ended.code}: {ended.text[-500:]}"]
        )


class Server(Smoke):
    """The prepared server, started for a benchmark and stopped."""

    def run(self, rig: Rig) -> Ended:
        started = rig.site.admin("server", "start")
        stopped = rig.site.admin("server", "stop") if not rig.hit else started
        return Ended(
            started.returncode or stopped.returncode,
            "".join((started.stdout, started.stderr, stopped.stdout, stopped.stderr)),
        )

    def run_again(self, rig: Rig) -> list[str]:
        return done_with(rig, "server", "start") + done_with(rig, "server", "stop")


class Init(Scenario):
    """A start of the container and its stop, with warm caches and the pointer of an earlier run
    that was killed.
    """

    def arrange(self, rig: Rig) -> None:
        stop(rig)
        rig.restore("bare")
        rig.plan()
        rig.site.start()
        demand(ensure(rig))
        stop(rig)
        rig.keep()

    def run(self, rig: Rig) -> Ended:
        """Start it, and stop it too where the start met no fault."""
        site = rig.site
        docker("start", site.container)
        wait_for(
            lambda: rig.hit or site.pointer.read_text() != rig.kept_pointer,
            "the run to be published",
            30,
        )
        if not rig.hit:
            docker("stop", site.container)
        return self.end(rig)

    def end(self, rig: Rig) -> Ended:
        return Ended(rig.site.state()["ExitCode"], rig.log())

    def run_again(self, rig: Rig) -> list[str]:
        site = rig.site
        if not site.state()["Running"]:
            site.start()
        return ensure(rig)


class Start(Init):
    """The first process, which makes the run's folders and configuration; the container ends with
    it.
    """

    def end(self, rig: Rig) -> Ended:
        wait_for(lambda: not rig.site.state()["Running"], "the container to end", 30)
        return super().end(rig)


class Publish(Init):
    """The program that publishes the run and takes the pointer back; the supervisor starts it
    again.
    """

    def end(self, rig: Rig) -> Ended:
        site = rig.site
        if site.state()["Running"]:
            # The disk has room again after a while, and nothing is started.
            time.sleep(0.5)
            rig.free_space()
            wait_for(
                lambda: site.published(rig.kept_pointer), "the run to be published after all", 30
            )
        return Ended(1, rig.log())


@pytest.fixture(scope="module")
def rigs(fault_site: FaultSite) -> Iterator[list[Rig]]:
    with ExitStack() as stack:
        yield [stack.enter_context(new_rig(fault_site, number)) for number in range(1, RIGS + 1)]


SCENARIOS = {
    # Asked for a first prep, the command itself writes nothing; what it may come to write is
    # counted too.
    "admin": Admin("sgl-admin, first prep", "cli", "worker"),
    "admin_nothing_to_do": AdminNothingToDo("sgl-admin, nothing to do", "cli", "worker"),
    "admin_rebuild": AdminRebuild("sgl-admin, rebuild", "worker"),
    "admin_after_kill": AdminAfterKill("sgl-admin, after a killed prep", "cli"),
    "smoke": Smoke("sgl-admin, smoke", "cli", "smoke"),
    "server": Server("sgl-admin, server", "cli"),
    "start": Start("the init's first process", "start"),
    "publish": Publish("the init's run record", "publish"),
}


def stop(rig: Rig) -> None:
    """Kill the container; its run's records stay as they are."""
    if rig.site.state()["Running"]:
        docker("kill", rig.site.container)
    wait_for(lambda: not rig.site.state()["Running"], "the container to end", 30)


def demand(problems: list[str]) -> None:
    """Fails with all of them: pytest cuts a list that is compared."""
    assert not problems, "\n".join(problems)


def ensure(rig: Rig) -> list[str]:
    done = rig.site.ensure()
    problems = (
        []
        if done.returncode == 0
        else [f"the next run: exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}"]
    )
    return problems + ([] if ready(rig) else ["the next run did not reach METRICS_READY"])


def done_with(rig: Rig, *command: str) -> list[str]:
    done = rig.site.admin(*command)
    return (
        []
        if done.returncode == 0
        else [
            f"{' '.join(command)}: exit code {done.returncode}:"
            f" {(done.stdout + done.stderr)[-800:]}"
        ]
    )


def ready(rig: Rig) -> bool:
    """METRICS_READY, and nothing failed."""
    try:
        result, job = rig.site.result(), rig.site.job()
    except FileNotFoundError:
        return False
    proof = result["telemetry_probe"]
    return (
        proof["ok"]
        and proof["tokens_seen"] >= proof["tokens_expected"] > 0
        and result["status"] == "ok"
        and job["state"] == "done"
    )


def arranged(scenario: Scenario, rig: Rig) -> Undisturbed:
    """Arrange the scenario in the rig, where it is not yet, and do both runs with no fault."""
    if rig.arranged is None or rig.arranged[0] != scenario.name:
        scenario.arrange(rig)
        rig.plan()
        problems = scenario.told(scenario.run(rig), "", rig)
        operations = rig.operations()
        problems += [
            f"not counted: {operation.path}"
            for operation in operations
            if operation.name == "missed"
        ]
        problems += scenario.run_again(rig) + rig.broken() + rig.leftovers()
        assert problems == [], "undisturbed: " + "\n".join(problems)
        rig.arranged = scenario.name, Undisturbed(operations, rig.end_state())
    return rig.arranged[1]


def disturb(scenario: Scenario, rig: Rig, operation: Operation, kind: str) -> list[str]:
    """One run that is ended at an operation, or refused space at it, and the run after it; returns
    what was wrong.
    """
    wanted = arranged(scenario, rig)
    while True:
        if isinstance(scenario, Init):
            stop(rig)
        rig.restore()
        rig.plan(operation, kind)
        ended = scenario.run(rig)
        if rig.hit:
            break
        # A quicker run records its progress less often, and may end before this operation: then
        # the last one of its own is taken.
        done = rig.operations()
        if untimed(scenario.points(done)) != untimed(scenario.points(wanted.operations)):
            return ["it was not reached"]
        operation = [
            each for each in done if each.program == operation.program and applies(kind, each)
        ][-1]
    problems = scenario.told(ended, kind, rig) + rig.broken()
    rig.free_space()
    problems += scenario.run_again(rig) + rig.broken()
    return problems + rig.leftovers() + difference(wanted.state, rig.end_state())


def applies(kind: str, operation: Operation) -> bool:
    """Whether an operation can fail in this way."""
    if kind == "torn":
        # What a file holds can be torn; a folder's fsync has no half.
        return operation.name in ("write", "fsync")
    return kind in ("before", "after") or operation.name in NEEDS_SPACE


def untimed(operations: Sequence[Operation]) -> list[str]:
    """Without the progress of a job, which is written once more while a server is slow to start."""
    return [
        entry.name
        for entry in operations
        if "job.json" not in entry.path and entry.name != "fsync_folder"
    ]


def disturb_all(rigs: Sequence[Rig], name: str, kind: str, every: int = 1, first: int = 0) -> None:
    """Disturb a scenario at each of its programs' operations, or at every so many from `first`, and
    fail with all that was wrong.
    """
    scenario, started = SCENARIOS[name], time.monotonic()
    free: queue.Queue[Rig] = queue.Queue()
    for rig in rigs:
        free.put(rig)

    def attempt(operation: Operation) -> list[str]:
        rig = free.get()
        try:
            found = disturb(scenario, rig, operation, kind)
        except Exception as error:
            found = [repr(error)]
        finally:
            free.put(rig)
        if found:
            rig.arranged = None
            print(f"\n{operation} {kind}: {found[0]}", flush=True)
        return [f"{operation} {kind}: {problem}" for problem in found]

    with ThreadPoolExecutor(len(rigs)) as pool:
        baselines = list(pool.map(lambda rig: arranged(scenario, rig), rigs))
        runs = [scenario.points(each.operations) for each in baselines]
        # All of these are in every run.
        operations = min(runs, key=len)
        for other in runs:
            assert untimed(other) == untimed(operations), "two undisturbed runs did not do the same"
        points = [operation for operation in operations if applies(kind, operation)]
        points = points[first % min(every, len(points) or 1) :: every]
        assert points, f"{scenario.name}: there is nothing to disturb"
        problems = [problem for found in pool.map(attempt, points) for problem in found]
    print(
        f"\nkill-anywhere: {scenario.name}: {len(operations)} operations; {kind} at"
        f" {len(points)}{f' (every {every}th)' if every > 1 else ''}: {len(problems)} problems,"
        f" {time.monotonic() - started:.0f} s"
    )
    assert problems == [], f"{len(problems)} problems:\n" + "\n".join(problems)


CASES = [(name, kind) for name, scenario in SCENARIOS.items() for kind in scenario.kinds]


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_kill_anywhere(rigs: list[Rig], name: str, kind: str) -> None:
    disturb_all(rigs, name, kind, EVERY, CASES.index((name, kind)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("admin", "before"), ("admin", "full"), ("smoke", "before")]
)
def test_kill_at_every_tenth_write(rigs: list[Rig], name: str, kind: str) -> None:
    """A sample for every day; all of them are in the long lane."""
    disturb_all(rigs, name, kind, every=10)
