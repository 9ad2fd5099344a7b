"""The request for a prep on the command line: as flags for people, or as one JSON document with
`--request`. All commands that plan a prep take both.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sgl_admin.base import files
from sgl_admin.base.errors import Refused
from sgl_admin.commands import request_fields
from sgl_admin.commands.request_fields import FIELDS, PASSED_THROUGH
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.contract.stages import MODES
from sgl_admin.contract.texts import read_json_text
from sgl_admin.records.request import Request
from sgl_admin.records.run import Run
from sgl_admin.stages import STAGES

STANDARD_INPUT, _VARIABLE = "-", "env:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whole = parser.add_mutually_exclusive_group(required=True)
    FIELDS["model"].add_to(whole)
    whole.add_argument(
        "--request",
        metavar="FILE",
        help=(
            "the whole request as a JSON object, instead of its flags; - is standard input, and"
            " env:NAME a variable of the environment"
        ),
    )
    mode = request_fields.flag_type(str, request_fields.one_of(*MODES))
    for stage in STAGES:
        parser.add_argument(
            stage.contract.flag,
            dest=stage.name,
            type=mode,
            metavar=f"{{{','.join(MODES)}}}",
            help=f"stage {stage.name}",
        )
    for name, field in FIELDS.items():
        if name != "model":
            field.add_to(parser)


def of(arguments: argparse.Namespace, live: Run) -> Request:
    """The request that these arguments make of the live run. Raises Refused (usage)."""
    fields = {name: getattr(arguments, name) for name in FIELDS if hasattr(arguments, name)}
    modes = {stage.name: mode for stage in STAGES if (mode := getattr(arguments, stage.name))}
    if arguments.request is None:
        others = "skip" if modes else None
    elif fields or modes:
        raise Refused(EXIT_USAGE, "--request is the whole request: give no other flag of it")
    else:
        fields, others = from_json(_read(arguments.request)), None
        modes = fields.pop("stages", {})
    return _request(
        {name: field.default for name, field in FIELDS.items()} | fields,
        {stage.name: modes.get(stage.name, others or stage.contract.default) for stage in STAGES},
        live,
        default_probe="never" if arguments.root else "auto",
    )


def from_json(content: bytes) -> dict[str, Any]:
    """The fields of a JSON request, checked. Raises Refused (usage) that names the key."""
    try:
        document = read_json_text(content.decode("utf-8"))
    except ValueError as error:
        raise Refused(EXIT_USAGE, f"the request is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refused(EXIT_USAGE, f"the request is a JSON {type(document).__name__}, not an object")
    if "model" not in document:
        raise Refused(EXIT_USAGE, "the request has no model")
    fields = {}
    for name, value in document.items():
        if name not in FIELDS:
            raise Refused(EXIT_USAGE, f"the request has an unknown key: {name}")
        try:
            fields[name] = FIELDS[name].check(value)
        except ValueError as error:
            raise Refused(EXIT_USAGE, f"the request's {name}: {error}") from error
    stages = [stage.name for stage in STAGES]
    if unknown := [name for name in fields.get("stages", {}) if name not in stages]:
        known = ", ".join(stages)
        raise Refused(EXIT_USAGE, f"the request's stages: {unknown[0]} is not one of {known}")
    return fields


def _read(name: str) -> bytes:
    try:
        if name == STANDARD_INPUT:
            return sys.stdin.buffer.read()
        if name.startswith(_VARIABLE):
            # What is started from here does not inherit it.
            return os.environ.pop(name.removeprefix(_VARIABLE), "").encode()
        return files.read_bytes(Path(name))
    except OSError as error:
        raise Refused(EXIT_USAGE, f"the request cannot be read: {files.reason(error)}") from error
    except ValueError as error:
        raise Refused(EXIT_USAGE, f"the request cannot be read: {error}") from error


def _request(
    fields: dict[str, Any], stages: dict[str, str], live: Run, default_probe: str
) -> Request:
    return Request(
        model=fields["model"],
        tp=fields["tp"],
        stages=stages,
        moe_batch_sizes=fields["moe_batch_sizes"],
        moe_dtype=fields["moe_dtype"],
        moe_sample=fields["moe_sample"],
        moe_fusion=fields["moe_fusion"],
        probe=fields["probe"] or default_probe,
        server_args=tuple(fields["server_args"]),
        server_env=tuple(fields["server_env"]),
        cuda_graph_batch_sizes=fields["cuda_graph_batch_sizes"],
        server_api_key=fields["server_api_key"],
        profile=fields["profile"],
        server_timeout_s=fields["server_timeout"],
        probe_timeout_s=fields["probe_timeout"],
        warmup_port=fields["port"] or int(live.manifest["services"]["sglang"]["port"]),
        options=tuple(
            (name, fields[name])
            for name, field in sorted(PASSED_THROUGH.items())
            if fields[name] != field.default
        ),
    )
