"""The schemas accept the contract's examples and refuse what breaks the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from sgl_admin.contract import stages
from tests.contract import validators

Path = tuple[str | int, ...]

VALIDATE: dict[str, Callable[[Any], None]] = {
    "manifest": validators.validate_manifest,
    "stage": validators.validate_stage,
    "prep_result": validators.validate_prep_result,
    "job": validators.validate_job,
    "smoke_summary": validators.validate_smoke_summary,
    "report": validators.validate_report,
    "prepared": validators.validate_prepared,
    "readiness": validators.validate_readiness,
    "watch": validators.validate_watch,
    "system": validators.validate_system,
}

# The keys of the examples that a writer may leave out; every other one is required.
OPTIONAL = {
    "manifest": ("profile_cache.start.triton", "profile_cache.start.flashinfer"),
    # Results of releases before this one lack it.
    "stage": ("artifacts.gain",),
    # What else a signature holds is each stage's own; the environment is the server's.
    "prep_result": (
        "run.server.env.*",
        # Records of releases before 1.1 lack them.
        "run.server.identity",
        "telemetry_probe.server",
        "telemetry_probe.window",
        "stages.moe_tune.artifacts.gain",
        # And those of releases before 1.2 this.
        "run.profile",
        "run.server.served",
        "run.server.start_env",
        "run.server.start_env.*",
        "profiles",
        "profiles.*",
        "new_files",
        "server_starts",
        "start_advice",
        "perf_probe",
        "services",
        "services.*",
        *(f"stages.{name}.signature.*" for name in stages.NAMES if name != "moe_tune"),
    ),
    "job": (),
    # Summaries of releases before 1.3 lack them.
    "smoke_summary": ("undisturbed", "disturbances"),
    "report": (
        # Reports of releases before 1.3 lack it.
        "hosts.0.system",
        "hosts.1.system",
        "hosts.2.system",
        "hosts.0.versions.*",
        "hosts.0.caches.*",
        "hosts.1.versions.*",
        "hosts.1.caches.*",
    ),
    "prepared": (
        "profile",
        "served",
        "start_env",
        "start_env.*",
        "env.*",
        "telemetry_probe.server",
        "telemetry_probe.window",
    ),
    "readiness": (),
    "watch": (),
    "system": (),
}
IN_EVERY_SIGNATURE = ("schema_version", "stage", "device_name", "compute_capability", "cpu_arch")


def objects(value: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, (*path, index))


def at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def is_optional(name: str, path: Path) -> bool:
    if path[-2:-1] == ("signature",) and path[-1] in IN_EVERY_SIGNATURE:
        return False
    return dotted(path) in OPTIONAL[name] or f"{dotted(path[:-1])}.*" in OPTIONAL[name]


def required_keys(name: str) -> list[Path]:
    return [
        (*path, key)
        for path, found in objects(validators.example(name))
        for key in found
        if not is_optional(name, (*path, key))
    ]


def is_valid(name: str, document: Any) -> bool:
    if not validators.fits_schema(name, document):
        return False
    try:
        VALIDATE[name](document)
    except ValidationError:
        return False
    return True


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The example with other values, each at its dotted path."""
    document = validators.example(name)
    for path, value in changes.items():
        *parents, last = path.split(".")
        at(document, tuple(parents))[last] = value
    return document


@pytest.mark.parametrize(
    "path", sorted(validators.SCHEMAS.glob("*.json")), ids=lambda path: path.name
)
def test_schema_is_a_schema(path):
    schema = validators.schema(path.name.removesuffix(".schema.json"))
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", VALIDATE)
def test_example_is_valid(name):
    VALIDATE[name](validators.example(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", VALIDATE)
def test_every_key_is_required(name):
    not_missed = []
    for path in required_keys(name):
        document = validators.example(name)
        del at(document, path[:-1])[path[-1]]
        if is_valid(name, document):
            not_missed.append(dotted(path))
    assert not_missed == []


@pytest.mark.slow
@pytest.mark.parametrize("name", VALIDATE)
def test_every_value_has_a_type(name):
    """Nothing in the contract is an object and a text at once, or a list of empty objects."""
    accepted = []
    for path in required_keys(name):
        is_container = isinstance(at(validators.example(name), path), dict | list)
        wrongs: tuple[Any, ...] = ("", [{}]) if is_container else ({}, [])
        for wrong in wrongs:
            document = validators.example(name)
            at(document, path[:-1])[path[-1]] = wrong
            if is_valid(name, document):
                accepted.append(f"{dotted(path)}: {wrong!r}")
    assert accepted == []


@pytest.mark.parametrize("name", VALIDATE)
def test_field_may_be_added_to_every_object(name):
    document = validators.example(name)
    for path, found in list(objects(document)):
        if path[-1:] == ("profiles",) and name == "prep_result":
            # It holds profiles by any name.
            continue
        # These hold strings by any name, so a string is what can be added.
        strings_only = path[-1:] in (("env",), ("start_env",), ("versions",))
        found["added_later"] = "text" if strings_only else [{"any": 1}]
    VALIDATE[name](document)


ERROR = {
    "status": "error",
    "status_code": 11,
    "error_type": "oom",
    "errors": ["the GPU's memory was full"],
}
SKIPPED = {
    "status": "skipped",
    "ran": False,
    "reason": "requested",
    "signature": None,
    "artifacts": {},
}
NOOP = {"status": "noop", "ran": False, "reason": "valid_signature"}
NO_PROOF = {
    "ok": False,
    "probed_at": None,
    "sample_count": 0,
    "tokens_expected": 0,
    "tokens_seen": 0,
    "waited_s": 0,
    "reason": "not asked for",
}
NO_CACHE = {
    "exists": False,
    "path": "/profiles/tvm_ffi",
    "host_path": None,
    "size_bytes": 0,
    "file_count": 0,
    "latest_mtime_iso": None,
    "valid": False,
    "reason": "missing",
    "partial": False,
    "partial_info": None,
    "signature": None,
}


def failed(stage: str, code: int) -> dict[str, Any]:
    document = validators.example("prep_result")["stages"][stage]
    return {**document, **ERROR, "status_code": code, "ran": True, "reason": None}


FAILED = {f"stages.{stage.name}": failed(stage.name, stage.exit_code) for stage in stages.STAGES}

NONE_STARTED = {
    f"stages.{stage}": {**document, **SKIPPED}
    for stage, document in validators.example("prep_result")["stages"].items()
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("stage", ERROR),
        (
            "stage",
            {
                **ERROR,
                "ran": False,
                "error_type": "server_start_failed",
                "signature": None,
                "artifacts": {},
            },
        ),
        ("stage", SKIPPED),
        ("stage", {**SKIPPED, "reason": "no_cuda_device"}),
        ("stage", {**SKIPPED, "status": "noop", "reason": "no_moe_layers"}),
        ("stage", NOOP),
        (
            "stage",
            {
                "signature.compute_capability": None,
                "signature.triton": None,
                "signature.dtype": None,
                "signature.block_shape": None,
            },
        ),
        ("stage", {"artifacts.config_file.host_path": None, "artifacts.verified_in_log": None}),
        # On a host without a GPU.
        (
            "prep_result",
            dict.fromkeys(("run.compute_capability", "run.cuda", "run.driver_version")),
        ),
        (
            "prep_result",
            dict.fromkeys(
                ("run.triton_version", "run.flashinfer_version", "run.deep_gemm_version")
            ),
        ),
        (
            "prep_result",
            {
                "telemetry_probe": {
                    **validators.example("prep_result")["telemetry_probe"],
                    **NO_PROOF,
                }
            },
        ),
        ("prep_result", {"status": "partial", "stages.moe_tune": failed("moe_tune", 11)}),
        ("prep_result", {"status": "error", **FAILED}),
        (
            "prep_result",
            {"status": "error", **NONE_STARTED, "errors": ["no server could be started"]},
        ),
        ("manifest", {"image_id": "unknown", "base_image.digest": None, "container_id": "unknown"}),
        ("manifest", {"versions.jaeger": None, "versions.dcgm_exporter": None}),
        (
            "manifest",
            {"pid1": {"boot_id": "0f8c0d3a-5f0e-4f4e-9d4f-3a1f8f1d2c3b", "start_ticks": 4711}},
        ),
        (
            "manifest",
            {"profile_cache.start": {"schema_version": "1", "taken_at": "2026-11-23T09:15:01Z"}},
        ),
        (
            "manifest",
            {
                f"profile_cache.start.{cache}": NO_CACHE
                for cache in ("torchinductor", "deep_gemm", "tvm_ffi", "moe_configs")
            },
        ),
        (
            "job",
            {
                "state": "done",
                "exit_code": 0,
                "stage": None,
                "unit": None,
                "done": None,
                "total": None,
                "eta_s": None,
            },
        ),
        ("job", {"state": "failed", "exit_code": 11}),
        ("job", {"state": "interrupted", "exit_code": None}),
        ("job", {"server": None, "arguments": ["--model", "/models/m"]}),
        ("job", {"server": {"pgid": 815, "started_at": "2026-11-23T09:16:05Z"}}),
    ],
)
def test_also_valid(name, changes):
    VALIDATE[name](changed(name, changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # Enumerations and patterns.
        *[(name, {"schema_version": "2"}) for name in VALIDATE],
        *[(name, {"schema_version": 1}) for name in VALIDATE],
        ("stage", {"stage": "moe"}),
        ("stage", {"status": "done"}),
        ("stage", {"started_at": "2026-11-23T09:16:02.1Z"}),
        ("stage", {"started_at": "2026-11-23 09:16:02"}),
        ("stage", {"started_at": "2026-11-23T09:16:02+00:00"}),
        ("stage", {"started_at": "2026-11-23T09:16:02Z\n"}),
        ("stage", {"started_at": None}),
        ("stage", {"duration_s": -1}),
        ("stage", {"duration_s": float("nan")}),
        ("stage", {"signature.compute_capability": "sm_90"}),
        ("stage", {"signature.stage": "inductor"}),
        ("stage", {"signature.E": None}),
        ("stage", {"artifacts.config_file.container_path": "moe_configs/x.json"}),
        ("manifest", {"container_run_id": "container-run-20261123T091500Z-3FA9C1D2"}),
        ("manifest", {"container_run_id": "20261123T091500Z-3fa9c1d2"}),
        ("manifest", {"image_id": "sha256:..."}),
        ("manifest", {"image_inputs": "abc"}),
        ("manifest", {"user.umask": "2"}),
        ("manifest", {"services.prometheus.port": 0}),
        ("manifest", {"services.jaeger.url": "127.0.0.1:16686"}),
        ("manifest", {"versions.jaeger": 1.73}),
        ("manifest", {"telemetry_surfaces.tracing.status": "up"}),
        ("manifest", {"exporters_state.node_exporter": "up"}),
        ("manifest", {"profile_cache.start.tvm_ffi": {}}),
        ("manifest", {"pid1": {"boot_id": "x"}}),
        ("prep_result", {"status": "noop"}),
        ("prep_result", {"run.prep_id": "container-run-20261123T091500Z-3fa9c1d2"}),
        ("prep_result", {"run.model_identity": "sha256:1234"}),
        ("prep_result", {"run.tp": 0}),
        ("prep_result", {"run.settings.stages.inductor": "force"}),
        ("prep_result", {"run.server.env.TP": 1}),
        ("job", {"state": "finished"}),
        ("job", {"arguments_digest": "unknown"}),
        ("job", {"pid": 0}),
        ("job", {"server": {"pgid": 815}}),
        # What goes with what.
        ("stage", {"ran": False}),
        ("stage", {"reason": "requested"}),
        ("stage", {"status_code": 11}),
        ("stage", {"error_type": "oom"}),
        ("stage", {"signature": None}),
        ("stage", {"artifacts.config_file": None}),
        ("stage", {**ERROR, "status_code": 0}),
        ("stage", {**ERROR, "status_code": 12}),
        ("stage", {**ERROR, "error_type": None}),
        ("stage", {**ERROR, "error_type": "timeout"}),
        ("stage", {**ERROR, "errors": []}),
        ("stage", {**ERROR, "reason": "requested"}),
        ("stage", {**SKIPPED, "ran": True}),
        ("stage", {**SKIPPED, "reason": None}),
        ("stage", {**SKIPPED, "reason": "not needed"}),
        ("stage", {**NOOP, "status": "skipped"}),
        ("stage", {**NOOP, "signature": None}),
        ("manifest", {"profile_cache.start.triton.reason": "stale"}),
        ("manifest", {"profile_cache.start.flashinfer.reason": None}),
        ("manifest", {"profile_cache.start.flashinfer.partial": False}),
        *[
            ("prep_result", {f"stages.{stage}": validators.example("stage")})
            for stage in stages.NAMES
            if stage != "moe_tune"
        ],
        ("prep_result", {"stages.moe_tune": failed("moe_tune", 11)}),
        ("prep_result", {"status": "partial", "stages.deep_gemm": failed("deep_gemm", 11)}),
        ("prep_result", {"status": "partial", "stages.flashinfer": failed("flashinfer", 13)}),
        ("prep_result", {"status": "partial", "stages.inductor": failed("inductor", 12)}),
        ("prep_result", {"status": "partial"}),
        ("prep_result", {"status": "partial", **FAILED}),
        ("prep_result", {"status": "error"}),
        ("prep_result", {"status": "error", **NONE_STARTED}),
        ("prep_result", {"status": "error", "stages.moe_tune": failed("moe_tune", 11)}),
        ("prep_result", {"telemetry_probe.ok": False}),
        ("prep_result", {"telemetry_probe.reason": "no samples"}),
        ("prep_result", {"telemetry_probe.probed_at": None}),
        ("prep_result", {"telemetry_probe.sample_count": 0}),
        ("job", {"exit_code": 0}),
        ("job", {"state": "done"}),
        ("job", {"state": "done", "exit_code": 10}),
        ("job", {"state": "failed", "exit_code": 0}),
        # What the schemas cannot say.
        ("prep_result", {"telemetry_probe.tokens_seen": 47}),
        ("manifest", {"container_run_id": "container-run-20261123T091500Z-00000000"}),
        ("manifest", {"paths.host.telemetry_root": "/srv/telemetry"}),
        ("manifest", {"storage.log_file": "/srv/logs/container-run-20261123T091500Z-3fa9c1d2.log"}),
    ],
)
def test_refused(name, changes):
    with pytest.raises(ValidationError):
        VALIDATE[name](changed(name, changes))


# The closed lists, as they were released: one may grow, and what it has stays, in its order.
LISTS = {
    "error_type": (
        """permissions_unexpected, insufficient_disk, lock_timeout, port_busy, gpu_busy, oom, \
compile_failed, tuner_failed,
        config_missing, server_start_failed, server_unhealthy_timeout, request_failed, \
cleanup_failed, interrupted, unsupported"""
    ),
    "surface_status": "running, expected, degraded, failed, unavailable",
    "stage_name": "deep_gemm, moe_tune, flashinfer, inductor",
}


@pytest.mark.parametrize("name", LISTS)
def test_closed_list(name):
    released = LISTS[name].replace(",", " ").split()
    listed = validators.schema("common")["$defs"][name]["enum"]
    assert [value for value in listed if value in released] == released


def test_prep_result_paths_may_be_in_neither():
    """As release 1.0.0 wrote a manifest before the first prep."""
    neither = validators.example("manifest")
    for side in ("container", "host"):
        del neither["paths"][side]["prep_result"]
    validators.validate_manifest(neither)


def test_prep_result_paths_are_null_before_the_first_prep():
    null = {f"paths.{side}.prep_result": None for side in ("container", "host")}
    validators.validate_manifest(changed("manifest", null))


@pytest.mark.parametrize("side", ["container", "host"])
def test_a_prep_result_path_on_one_side_only_breaks_the_schema(side):
    with pytest.raises(ValidationError):
        validators.validate_manifest(changed("manifest", {f"paths.{side}.prep_result": None}))


def test_refusal_names_the_place():
    document = changed("manifest", {"services.jaeger.otlp_grpc": "4317"})
    with pytest.raises(ValidationError) as refusal:
        validators.validate_manifest(document)
    assert list(refusal.value.absolute_path) == ["services", "jaeger", "otlp_grpc"]


POINTER = (validators.EXAMPLES / "container_run_meta.env").read_text(encoding="utf-8")
RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"


def test_pointer():
    pointer = validators.parse_and_validate_pointer(POINTER)
    assert pointer == {
        "CONTAINER_RUN_META_JSON": f"/telemetry/container_runs/{RUN_ID}.json",
        "CONTAINER_RUN_META_JSON_HOST": (
            f"/home/ubuntu/sglang-observability/telemetry/container_runs/{RUN_ID}.json"
        ),
    }


def test_pointer_keeps_spaces_and_equals_signs_and_added_keys():
    pointer = validators.parse_and_validate_pointer(
        POINTER.replace("/home/ubuntu", "/mnt/a b=c") + "ADDED_LATER=\n"
    )
    assert pointer["CONTAINER_RUN_META_JSON_HOST"].startswith("/mnt/a b=c/sglang-observability/")
    assert pointer["ADDED_LATER"] == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        POINTER.removesuffix("\n"),
        POINTER + "\n",
        "# the live run\n" + POINTER,
        "export " + POINTER,
        POINTER.replace("=/", '="/').replace(".json", '.json"'),
        POINTER + POINTER,
        POINTER.splitlines(keepends=True)[0],
        POINTER.splitlines(keepends=True)[1],
        POINTER.replace("3fa9c1d2", "00000000", 1),
        POINTER.replace("=/telemetry", "=telemetry"),
        POINTER.replace("T091500Z", ""),
        POINTER.replace("\n", "\r\n"),
    ],
)
def test_pointer_refused(text):
    with pytest.raises(ValidationError):
        validators.parse_and_validate_pointer(text)
