"""What a prep would do. Planning reads the flavour, the model, the devices and the records, and
decides for each stage whether it runs.

It writes nothing, sets no environment variable and uses no network.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sgl_admin.base import files, keyed, paths
from sgl_admin.base.command import Command
from sgl_admin.base.engine import HOST, Release
from sgl_admin.base.errors import Refused
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.facts import devices, gpu_fit, model
from sgl_admin.facts.devices import Devices
from sgl_admin.moe import config_files
from sgl_admin.prep import cost
from sgl_admin.records import caches, prepared, served
from sgl_admin.records.caches import SignatureRecord, dead_owner
from sgl_admin.records.request import Request
from sgl_admin.records.run import Run
from sgl_admin.sglang import ENGINE
from sgl_admin.stages import STAGES, Context, Stage, earlier, inputs

if TYPE_CHECKING:
    from sgl_admin.serving.warmup import Warmup

# A plan starts no server: the execution puts its own in this place.
_NO_SERVER = cast("Warmup", None)
_NEVER_SERVED = (
    "this server (model, arguments, environment, image) has not run with these caches yet: it is"
    " started once, and compiles only what is missing"
)


@dataclass(frozen=True)
class Decision:
    """What a prep does about a stage: `run`, `noop` or `skipped`."""

    stage: Stage
    action: str
    # The contract's word for why it does not run.
    reason: str | None = None
    signature: dict[str, Any] | None = None
    # The key by which hosts find each other's work of this stage.
    key: str | None = None
    # Why it runs, for a person.
    explanation: str | None = None
    missing_batch_sizes: list[int] | None = None
    # The files of an earlier release's work, which this release takes over with a record of its
    # own.
    taken_over: earlier.Work | None = None
    # Its files are whole: it runs only to show that they are what this server needs.
    cached: bool = False

    @property
    def record(self) -> SignatureRecord:
        assert self.signature is not None
        return SignatureRecord(self.stage.name, self.stage.caches, self.signature)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "status": "would_run" if self.action == "run" else self.action,
            "reason": self.reason or self.explanation,
            "key": self.key,
            "signature": self.signature,
        }
        if self.missing_batch_sizes is not None:
            document["missing_batch_sizes"] = self.missing_batch_sizes
        if self.cached:
            document["cached"] = True
        return document


@dataclass(frozen=True)
class UnreadableRecord:
    """A record that counts as missing; the execution sets it aside."""

    path: Path
    shape: files.Shape
    problem: str

    @property
    def warning(self) -> str:
        return f"{self.problem}; it counts as missing, and the prep will set it aside"


@dataclass(frozen=True)
class Plan:
    run: Run
    request: Request
    # Its server and its callbacks are those of the execution.
    context: Context
    decisions: tuple[Decision, ...]
    # Which server this is a plan for (records/served.py).
    server: str
    # The proof of this server that an earlier prep of this run recorded.
    standing_proof: dict[str, Any] | None
    probe_wanted: bool
    unreadable: tuple[UnreadableRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    # The run's services, where they were asked already (serving/services.py).
    services: dict[str, dict[str, Any]] | None = None
    # What running stages again costs, in words; None where no work is repeated.
    cost: str | None = None

    @property
    def nothing_to_do(self) -> bool:
        return not self.probe_wanted and all(
            decision.action != "run" for decision in self.decisions
        )

    @property
    def prometheus_url(self) -> str:
        url: str = self.run.manifest["services"]["prometheus"]["url"]
        return url

    @property
    def server_environment(self) -> dict[str, str]:
        return dict(self.context.environment)

    @property
    def server_argv(self) -> list[str]:
        return _server_argv(self.request, self.context)

    @property
    def command(self) -> Command:
        """The server's, with what records and logs have of it."""
        argv, env, public = self.server_argv, self.server_environment, self.context.public_names
        shown_argv = ENGINE.shown_arguments(argv, public)
        return Command(argv, env, shown_argv, ENGINE.shown_environment(env, public))

    def start_environment(self, done: Collection[str]) -> dict[str, str]:
        """What a server that is started later has beside `command`, with the caches of these stages
        whole. No caches depend on it, so it is no part of which server that is.
        """
        if not self.request.option("server_fast_start"):
            return {}
        return ENGINE.fast_environment(done, self.server_environment)

    @property
    def shown_request(self) -> Request:
        """The request as records have it."""
        request, public = self.request, self.context.public_names
        settings = dict(line.split("=", 1) for line in request.server_env)
        shown = ENGINE.shown_environment(settings, public)
        return replace(
            request,
            server_args=tuple(ENGINE.shown_arguments(request.server_args, public)),
            server_env=tuple(f"{name}={value}" for name, value in shown.items()),
        )

    @property
    def server_address(self) -> str:
        return f"{HOST}:{self.request.warmup_port}"

    def with_warning(self, warning: str) -> Plan:
        """Once: the process that plans a prep and the one that executes it warn of the same."""
        if warning in self.warnings:
            return self
        return replace(self, warnings=(*self.warnings, warning))

    def to_json(self) -> dict[str, Any]:
        """The plan as `caches ensure --dry-run --json` prints it."""
        return {
            "schema_version": "1",
            "dry_run": True,
            "would_change": not self.nothing_to_do,
            "stages": {decision.stage.name: decision.to_json() for decision in self.decisions},
            "telemetry_probe": self._probe_status(),
            "cost": self.cost,
            "chosen": [choice.to_json() for choice in self.context.choices],
            "warnings": [*self.warnings, *(record.warning for record in self.unreadable)],
        }

    def _probe_status(self) -> str:
        if self.probe_wanted:
            return "would_run"
        return "skipped" if self.request.probe == "never" else "stands"


@dataclass
class _Findings:
    """What planning comes across besides its decisions."""

    warnings: list[str]
    unreadable: list[UnreadableRecord] = field(default_factory=list)

    def warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def read(self, path: Path, shape: files.Shape) -> dict[str, Any] | None:
        """A record; None where there is none or it cannot be read."""
        try:
            return files.read_record(path, shape)
        except ValueError as error:
            self.unreadable.append(UnreadableRecord(path, shape, str(error)))
            return None

    def problem(self, record: SignatureRecord) -> str | None:
        """Why the caches do not hold the record's work; None when they do."""
        errors: list[str] = []
        problem = record.problem(errors)
        self.unreadable += [
            UnreadableRecord(record.path, caches.RECORD_SHAPE, error) for error in errors
        ]
        return problem


def plan_prep(run: Run, request: Request, warnings: Iterable[str] = ()) -> Plan:
    """Plan what is requested; `warnings` are those of what was repaired before.

    Raises Refused (usage) where this host cannot do it, and model.UnusableModel.
    """
    findings = _Findings(list(warnings))
    try:
        context = _context(run, request, findings)
        decisions = tuple(_decide(stage, context, findings) for stage in STAGES)
    except (ValueError, RuntimeError) as error:
        # tp does not fit the devices, or NVML does not answer.
        raise Refused(EXIT_USAGE, str(error)) from error
    argv, environment = _server_argv(request, context), dict(context.environment)
    server = served.identity(argv, environment, served.image())
    proof = _standing_proof(run.run_id, server, findings)
    plan = Plan(
        run,
        request,
        context,
        decisions,
        server=server,
        standing_proof=proof,
        probe_wanted=request.probe == "always" or (request.probe == "auto" and proof is None),
        cost=cost.line(decisions),
    )
    _compare_with_previous(plan, findings)
    return replace(plan, unreadable=tuple(findings.unreadable), warnings=tuple(findings.warnings))


def _context(run: Run, request: Request, findings: _Findings) -> Context:
    flavour = (files.read_json(paths.FLAVOUR) or {})["server"]
    settings = dict(line.split("=", 1) for line in request.server_env)
    environment: dict[str, str] = {**flavour["env"], **settings}
    release, unknown = ENGINE.release()
    arguments = _server_arguments(run, request, flavour["args"], release)
    loaded = model.load(request.model, arguments)
    # The prep is for the devices that its server will see.
    found = devices.find(environment.get(devices.VISIBLE))
    gpu_fit.check(found, request.tp, findings.warn)
    mismatch = ENGINE.packages_problem({**os.environ, **environment}) if found.cuda else None
    for warning in (unknown, *loaded.warnings, mismatch):
        if warning:
            findings.warn(warning)
    choices = tuple(ENGINE.choices(arguments, found.compute_capability, loaded.config))
    context = Context(
        request,
        loaded,
        found,
        request.cuda_graph_batch_sizes or tuple(flavour["batch_sizes"]),
        _NO_SERVER,
        lambda done, total, unit, message: None,
        run_id=run.run_id,
        arguments=(*arguments, *(word for choice in choices for word in choice.arguments)),
        choices=choices,
        environment=tuple(_server_environment(environment, found).items()),
        release=release,
        model_files=inputs.model_files(Path(loaded.path)),
    )
    return replace(context, served_identity=_served_identity(context))


def _served_identity(context: Context) -> str:
    """The server that would run, wherever it listens."""
    request = context.request
    return served.with_caches(
        {"identity": context.model.identity, "files": dict(context.model_files)},
        # Which Python it is, the image and the versions say.
        ENGINE.command(request.model, request.tp, 0, context.keyed_arguments)[1:],
        {
            **inputs.environment(context),
            **context.keyed_environment(dict(context.environment)),
        },
        served.image(),
    )


def _server_environment(environment: dict[str, str], found: Devices) -> dict[str, str]:
    environment = {**ENGINE.byte_code_environment(paths.BYTE_CODE), **environment}
    if not found.cuda:
        return environment
    return {
        **ENGINE.gpu_environment(config_files.root()),
        **caches.driver_environment(found.driver_version),
        **environment,
    }


def _server_arguments(
    run: Run, request: Request, of_flavour: list[str], release: Release
) -> tuple[str, ...]:
    sizes = request.cuda_graph_batch_sizes
    graphs = release.cuda_graph_arguments(sizes)
    traces = release.tracing_arguments(run.manifest)
    return (*of_flavour, *traces, *graphs, *request.server_args)


def _decide(stage: Stage, context: Context, findings: _Findings) -> Decision:
    mode = context.request.stages[stage.name]
    if mode == "skip":
        return Decision(stage, "skipped", "requested")
    if reason := stage.skip_reason(context):
        return Decision(stage, "skipped", reason)
    if why := stage.unsupported(context):
        return Decision(stage, "run", explanation=f"it would fail, as it is unsupported: {why}")
    decision = Decision(
        stage,
        "run",
        signature=stage.signature(context),
        key=stage.key(context),
        missing_batch_sizes=stage.missing_batch_sizes(context),
    )
    record = decision.record
    problem = findings.problem(record)
    if problem is not None and (work := earlier.work(stage, context, record.signature)):
        decision, problem = replace(decision, taken_over=work), None
    elif problem is None and not stage.trusts(context, record):
        decision, problem = replace(decision, cached=True), _NEVER_SERVED
    # What is lacking agrees with the missing batch sizes; a record's problem may be of all of them.
    explanation = stage.lacking(context) or problem
    if dead_owner(stage.name):
        killed = f"an earlier {stage.name} was killed before it finished"
        findings.warn(f"{killed}; it is done again")
        explanation = explanation or killed
    elif mode == "ensure" and explanation is None:
        return replace(decision, action="noop", reason="valid_signature")
    return replace(decision, explanation=explanation or f"{mode} was requested")


def _server_argv(request: Request, context: Context) -> list[str]:
    is_open = request.option("server_open_admin") or not ENGINE.has_admin_key()
    keys = ENGINE.key_arguments(request.server_api_key, "" if is_open else keyed.admin_key())
    arguments = [*context.arguments, *keys]
    return ENGINE.command(request.model, request.tp, request.warmup_port, arguments)


def _standing_proof(run_id: str, server: str, findings: _Findings) -> dict[str, Any] | None:
    """The proof of this server by the record of an earlier prep of this run. Whether Prometheus
    still stands by it is not asked here.
    """
    record = findings.read(prepared.path(run_id, server), prepared.SHAPE)
    # A record that was copied from another run carries that run's proof.
    if record is None or (record["run_id"], record["identity"]) != (run_id, server):
        return None
    proof: dict[str, Any] = record["telemetry_probe"]
    return proof if proof.get("ok") is True and proof.get("server") == server else None


def _has_settings_of(before: dict[str, Any], plan: Plan) -> bool:
    """Whether the server of the latest prep is the one that this prep makes. Where caches are, as
    for another driver, is no setting of the operator's.
    """
    if not isinstance(before.get("argv"), list) or not isinstance(before.get("env"), dict):
        return False
    try:
        earlier = prepared.command({"identity": "", **before, "run_id": plan.run.run_id})
    except (OSError, ValueError):
        # What it does not show cannot be read.
        return plan.command.is_that_of(before)
    now = plan.command
    return (earlier.argv, caches.settings(earlier.env)) == (now.argv, caches.settings(now.env))


def _compare_with_previous(plan: Plan, findings: _Findings) -> None:
    """Warn where this prep changes which server `sgl-admin server start` starts."""
    previous = findings.read(paths.prep_result(plan.run.run_id), RESULT_SHAPE)
    about = previous["run"] if previous else {}
    if plan.request.profile and about.get("profile") != plan.request.profile:
        # Each is started by its name.
        return
    before = about.get("server")
    if not isinstance(before, dict) or _has_settings_of(before, plan):
        return
    identity = str(before.get("identity", ""))
    remedy = f" (the one before: --identity {prepared.short(identity)})" if identity else ""
    findings.warn(
        "the prepared server changes: its command line or environment is not that of the latest"
        f" prep; sgl-admin server start starts the new one{remedy}"
    )
