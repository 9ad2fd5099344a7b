"""Hold a contract file to its schema in schemas/, and to the few rules that a schema cannot say.

Each function raises jsonschema.ValidationError, whose message names the place in the document.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
EXAMPLES = Path(__file__).resolve().parent / "examples"


@cache
def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


@cache
def _validator(name: str) -> Draft202012Validator:
    neighbours = [
        (path.name, Resource.from_contents(json.loads(path.read_text(encoding="utf-8"))))
        for path in SCHEMAS.glob("*.schema.json")
    ]
    return Draft202012Validator(schema(name), registry=Registry().with_resources(neighbours))


def example(name: str) -> dict[str, Any]:
    """A fresh copy of tests/contract/examples/<name>.json."""
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def fits_schema(name: str, document: Any) -> bool:
    """Whether a document keeps to its schema: the first error is enough, and is not told."""
    return _validator(name).is_valid(document)


def _validate(name: str, document: Any) -> None:
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValidationError(f"{name} holds what JSON does not have: {error}") from error
    worst = best_match(_validator(name).iter_errors(document))
    if worst is not None:
        raise worst


def _same(where: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValidationError(f"{where} is {found!r}, not {wanted!r}")


def validate_manifest(document: Any) -> None:
    _validate("manifest", document)
    run_id = document["container_run_id"]
    for side, paths in document["paths"].items():
        if side not in ("container", "host"):
            continue
        telemetry = PurePosixPath(paths["telemetry_root"])
        wanted = {
            "run_dir": telemetry / "container_runs" / run_id,
            "log_file": telemetry / "logs" / f"{run_id}.log",
            "prometheus_dir": telemetry / "prometheus" / run_id,
            "jaeger_dir": telemetry / "jaeger" / run_id,
        }
        if paths.get("prep_result") is not None:
            wanted["prep_result"] = wanted["run_dir"] / "prep_result.json"
        for key, path in wanted.items():
            _same(f"paths.{side}.{key}", paths[key], str(path))
    for key in ("log_file", "prometheus_dir", "jaeger_dir"):
        _same(f"storage.{key}", document["storage"][key], document["paths"]["container"][key])


def validate_stage(document: Any) -> None:
    _validate("stage", document)


def validate_prep_result(document: Any) -> None:
    _validate("prep_result", document)
    probe = document["telemetry_probe"]
    if probe["ok"] and probe["tokens_seen"] != probe["tokens_expected"]:
        raise ValidationError(
            f"telemetry_probe.ok with {probe['tokens_seen']} tokens seen of"
            f" {probe['tokens_expected']} expected"
        )
    if "server" in probe:
        _same("telemetry_probe.server", probe["server"], document["run"]["server"]["identity"])


def validate_prepared(document: Any) -> None:
    _validate("prepared", document)


def validate_readiness(document: Any) -> None:
    _validate("readiness", document)


def validate_job(document: Any) -> None:
    _validate("job", document)


def validate_smoke_summary(document: Any) -> None:
    _validate("smoke_summary", document)


def validate_watch(document: Any) -> None:
    _validate("watch", document)


def validate_system(document: Any) -> None:
    _validate("system", document)


def validate_report(document: Any) -> None:
    _validate("report", document)
    ready = sum(host["metrics_ready"] is True for host in document["hosts"])
    _same("metrics_ready.ready", document["metrics_ready"]["ready"], ready)
    _same("metrics_ready.total", document["metrics_ready"]["total"], len(document["hosts"]))


def parse_and_validate_pointer(text: str) -> dict[str, str]:
    """The pointer's values by key."""
    if not re.search(schema("container_run_meta")["$defs"]["file"]["pattern"], text):
        raise ValidationError(
            f"the pointer is not made of KEY=value lines, each ended by a newline: {text!r}"
        )
    pairs = [line.split("=", 1) for line in text.removesuffix("\n").split("\n")]
    pointer = dict(pairs)
    if len(pointer) < len(pairs):
        raise ValidationError(f"the pointer names a key twice: {text!r}")
    _validate("container_run_meta", pointer)
    names = {
        PurePosixPath(pointer[key]).name
        for key in ("CONTAINER_RUN_META_JSON", "CONTAINER_RUN_META_JSON_HOST")
    }
    if len(names) > 1:
        raise ValidationError(f"the pointer names two manifests: {sorted(names)}")
    return pointer
