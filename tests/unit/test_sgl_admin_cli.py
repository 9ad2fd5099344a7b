"""The command line of sgl-admin and the request that it makes."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.options import (
    prep_options,
    request_document,
)

from sgl_admin.base import detached, files, locks, paths, processes
from sgl_admin.base.errors import Refused
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.commands import request_fields
from sgl_admin.contract import options
from sgl_admin.contract.stages import BY_NAME as STAGES_BY_NAME
from sgl_admin.contract.stages import NAMES, STAGES
from sgl_admin.facts import devices
from sgl_admin.records import job, run
from sgl_admin.records.request import Request
from tests.contract import validators

# The mode of each stage where none is named.
DEFAULTS = {stage.name: stage.default for stage in STAGES}
LIVE = run.Run("r", {"services": {"sglang": {"port": 31999}}})


def request(arguments: Sequence[str] = (), model: str = "/models/m") -> Request:
    parsed = cli._parser().parse_args(["caches", "ensure", "--model", model, *arguments])
    return request_cli.of(parsed, LIVE)


def test_without_a_stage_flag_every_stage_has_its_default() -> None:
    assert request().stages == DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (
            ["--flashinfer", "ensure", "--inductor", "ensure"],
            {"flashinfer": "ensure", "inductor": "ensure"},
        ),
        (["--moe", "rebuild"], {"moe_tune": "rebuild"}),
        (["--deep-gemm", "skip"], {}),
    ],
)
def test_with_a_stage_flag_the_others_are_skipped(
    arguments: list[str], stages: dict[str, str]
) -> None:
    assert request(arguments).stages == {**dict.fromkeys(NAMES, "skip"), **stages}


def test_what_is_not_given_has_the_documented_default() -> None:
    made = request()
    assert (made.tp, made.probe, made.moe_dtype, made.moe_batch_sizes, made.server_args) == (
        1,
        "auto",
        "auto",
        (),
        (),
    )
    assert made.warmup_port == 31999, "the port that Prometheus scrapes"
    assert request(["--port", "5"]).warmup_port == 5


def test_values_are_taken_as_they_are() -> None:
    made = request(
        [
            "--moe-batch-sizes",
            "4096, 512,512",
            "--server-arg=--kv-cache-dtype",
            "--server-arg=a b; rm -rf /",
        ],
        "/models/m/",
    )
    assert made.moe_batch_sizes == (512, 4096)
    assert made.server_args == ("--kv-cache-dtype", "a b; rm -rf /")
    assert made.model == "/models/m"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["caches"],
        ["caches", "ensure"],
        ["caches", "ensure", "--model", "m", "--tp", "0"],
        ["caches", "ensure", "--model", "m", "--tp", "two"],
        ["caches", "ensure", "--model", "m", "--inductor", "maybe"],
        ["caches", "ensure", "--model", "m", "--probe", "sometimes"],
        ["caches", "ensure", "--model", "m", "--moe-batch-sizes", "1,,2"],
        ["caches", "ensure", "--model", "m", "--unknown"],
        ["caches", "ensure", "--model", "m", "--request", "-"],
        ["caches", "export", "-"],
        ["caches", "ensure", "--model", "m", "--port", "65536"],
        ["caches", "ensure", "--model", "m", "--server-timeout", "nan"],
        ["caches", "ensure", "--model", "m", "--probe-timeout", "-1"],
        ["status", "--wait", "inf"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.EXIT_USAGE == 2
    assert "usage: sgl-admin" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert cli.__version__ in capsys.readouterr().out


def test_no_live_run_ends_with_4(container: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caches", "ensure", "--model", "/models/m"]) == 4
    assert cli.main(["status"]) == 4
    assert "playbooks/start.yml" in capsys.readouterr().err


def test_an_unusable_model_ends_with_2(live_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caches", "ensure", "--model", str(paths.MODELS / "none")]) == 2
    assert str(paths.MODELS / "none") in capsys.readouterr().err
    assert not paths.job(live_run).exists()


def test_too_many_devices_end_with_2(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        devices, "find", lambda visible: devices.Devices(name="cpu", count=1, cuda=False)
    )
    assert cli.main(["caches", "ensure", "--model", str(model_folder), "--tp", "2"]) == 2
    assert "tp 2" in capsys.readouterr().err and not paths.job(live_run).exists()
    assert not job.running(), "the refused prep kept the lock"


def test_a_folder_that_cannot_be_written_ends_with_3(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return Path(path) != paths.PROFILES / "triton" and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 3
    assert f"chown -R {os.getuid()}:{os.getgid()} /host/profiles/triton" in capsys.readouterr().err


def test_another_prep_ends_with_5_and_is_named(
    live_run: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = job.Job(
        live_run,
        request(["--inductor", "rebuild"], str(model_folder)),
        "prep-20261123T091600Z-77aa01bc",
    )
    running.update()
    lock = locks.try_lock(job.LOCK)
    assert lock is not None
    try:
        assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 5
        message = capsys.readouterr().err
        assert (
            str(os.getpid()) in message
            and "--inductor=rebuild" in message
            and "prep-20261123T091600Z-77aa01bc" in message
        )
        assert (
            cli.main(
                [
                    "caches",
                    "ensure",
                    "--model",
                    str(model_folder),
                    "--inductor",
                    "rebuild",
                    "--detach",
                ]
            )
            == 0
        )
        assert (
            json.loads(capsys.readouterr().out)["job"]["prep_id"]
            == "prep-20261123T091600Z-77aa01bc"
        )
    finally:
        os.close(lock)


def test_a_system_error_is_one_line(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(name: str) -> int | None:
        raise OSError(errno.ENOSPC, "No space left on device", str(paths.LOCKS / f"{name}.lock"))

    monkeypatch.setattr(locks, "try_lock", full)
    assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == cli.EXIT_NO_RESULT == 1
    assert (
        capsys.readouterr().err
        == "sgl-admin: no space left on /host/profiles/.locks/prep.lock: free some and run again\n"
    )


def test_a_refused_write_that_names_no_file_is_told_without_one(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(name: str) -> int | None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(locks, "try_lock", refuse)
    assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 3
    error = capsys.readouterr().err
    assert "None" not in error and "no permission for a file system of the container" in error


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sgl-admin: no space left on /host/x: free some", "no space left on /host/x: free some"),
        ("", "exit code 1"),
        ("Traceback (most recent call last):\nKeyError: 'x\x1b[2J'", "exit code 1, KeyError: 'x'"),
        ("sgl-admin: first\nsgl-admin: second\nother", "second"),
    ],
)
def test_a_prep_that_ends_before_it_begins_is_told_with_its_reason(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    told: str,
) -> None:
    paths.log(live_run).write_text("sgl-admin: an older line\n")

    def popen(*_: Any, stdout: IO[bytes], **__: Any) -> subprocess.Popen[bytes]:
        script = "import sys; print(sys.argv[1]); sys.exit(1)"
        return subprocess.Popen(
            [sys.executable, "-c", script, said], stdin=subprocess.PIPE, stdout=stdout
        )

    monkeypatch.setattr(detached, "subprocess", SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE))
    assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 1
    error = capsys.readouterr().err
    assert f"ended before it began: {told}; the log is /host/telemetry/logs/{live_run}.log" in error
    assert not job.running()


@pytest.mark.parametrize(
    "end", [{"state": "interrupted", "exit_code": None}, {"state": "failed", "exit_code": 1}]
)
def test_a_prep_that_ended_between_its_result_and_its_last_record_is_not_done(
    live_run: str, capsys: pytest.CaptureFixture[str], end: dict[str, Any]
) -> None:
    result = {**validators.example("prep_result")}
    prep_id = result["run"]["prep_id"]
    files.write_json(paths.prep_result(live_run), result)
    job.Job(live_run, request(), prep_id).update(message="no space left", **end)
    assert cli._follow(live_run, prep_id, as_json=False, show=cli._print_result) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and f"{prep_id} ended without a result: no space left" in captured.err


def test_status_of_a_dead_prep_says_interrupted(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc").update()
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["state"] == "interrupted"
    assert (files.read_json(paths.job(live_run)) or {})["state"] == "interrupted"


def test_a_request_survives_the_way_to_its_worker() -> None:
    made = request(
        [
            "--moe-batch-sizes",
            "512,4096",
            "--server-arg=--a",
            "--probe",
            "always",
            "--server-timeout",
            "7",
        ]
    )
    assert Request.from_json(made.to_json()) == made
    assert Request.from_json(made.to_json()).digest == made.digest


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tp", "2"],
        ["--inductor", "rebuild"],
        ["--moe-batch-sizes", "512"],
        ["--moe-dtype", "fp8_w8a8"],
        ["--probe", "never"],
        ["--server-arg=--x"],
        ["--server-env=A=1"],
        ["--cuda-graph-bs", "8"],
        ["--moe-fusion", "skip"],
        ["--server-timeout", "1"],
        ["--probe-timeout", "1"],
        ["--port", "1"],
    ],
)
def test_another_request_has_another_digest(arguments: list[str]) -> None:
    assert request(arguments).digest != request().digest


def test_the_description_asks_for_the_same_again() -> None:
    server = [
        "--server-arg=--kv-cache-dtype",
        "--server-arg=x y",
        "--server-env=A=b=c",
        "--cuda-graph-bs",
        "8,1",
        "--moe-fusion",
        "skip",
    ]
    made = request(["--inductor", "rebuild", "--moe", "ensure", "--probe", "always", *server])
    parsed = cli._parser().parse_args(["caches", "ensure", *made.describe()])
    assert request_cli.of(parsed, LIVE) == made


OPTIONS: dict[str, Any] = {
    **{name: option.default for name, option in prep_options().items()},
    **{"deep_gemm": "skip", "moe": "rebuild"},
    **{"moe_batch_sizes": [512, 64], "moe_dtype": "fp8_w8a8", "moe_fusion": "skip"},
    **{"model": "/models/m", "tp": 2, "probe": "never"},
    **{"server_timeout": 1800.0, "probe_timeout": 30.5},
    "server_args": ["--a", "-b c"],
    **{"server_env": {"A": "b=c", "N": 1}, "cuda_graph_batch_sizes": [4, 1]},
}


def by_json(document: Any, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The request of a document on standard input."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    parsed = cli._parser().parse_args(["caches", "ensure", "--request", "-"])
    return request_cli.of(parsed, LIVE)


def test_the_modules_document_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_json(request_document(OPTIONS), monkeypatch)
    assert made.stages == {
        **DEFAULTS,
        "deep_gemm": "skip",
        "moe_tune": "rebuild",
    }
    assert (made.tp, made.probe, made.moe_batch_sizes, made.moe_dtype) == (
        2,
        "never",
        (64, 512),
        "fp8_w8a8",
    )
    assert (made.server_timeout_s, made.probe_timeout_s, made.server_args) == (
        1800.0,
        30.5,
        ("--a", "-b c"),
    )
    assert (made.server_env, made.cuda_graph_batch_sizes, made.moe_fusion) == (
        ("A=b=c", "N=1"),
        (1, 4),
        "skip",
    )
    # An import, whose standard input is the archive, asks by its environment for the same.
    monkeypatch.setenv("SGL_ADMIN_REQUEST", json.dumps(request_document(OPTIONS)))
    parsed = cli._parser().parse_args(
        ["caches", "import", "-", "--request", "env:SGL_ADMIN_REQUEST"]
    )
    assert request_cli.of(parsed, LIVE) == made


def test_a_document_that_names_only_the_model_asks_for_what_a_flag_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = by_json({"model": "/models/m/"}, monkeypatch)
    assert made == request() and made.digest == request().digest


def test_an_option_without_a_value_is_not_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    document = request_document({**OPTIONS, "moe_dtype": None})
    assert by_json(document, monkeypatch).moe_dtype == "auto"


def flags(document: dict[str, Any]) -> list[str]:
    """The flags that ask for the same; the server's key has none."""
    words = [f"{STAGES_BY_NAME[name].flag}={mode}" for name, mode in document["stages"].items()]
    words += [f"--server-arg={word}" for word in document["server_args"]]
    words += [f"--server-env={name}={text}" for name, text in document["server_env"].items()]
    for name, field in request_cli.FIELDS.items():
        value = document[name]
        if field.flag is None or field.repeated or value in ([], None):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"{field.flag or '--' + field.name.replace('_', '-')}={text}")
    return words


def test_every_field_is_a_flag_and_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {
        **request_document(OPTIONS),
        "moe_sample": 9,
        "port": 4000,
        "profile": "tiny",
    }
    assert set(document) == set(request_cli.FIELDS)
    file = tmp_path / "request.json"
    file.write_text(json.dumps(document))
    parsed = cli._parser().parse_args(["caches", "ensure", f"--request={file}"])
    by_file = request_cli.of(parsed, LIVE)
    assert (by_file.moe_sample, by_file.warmup_port) == (9, 4000)
    parsed = cli._parser().parse_args(["caches", "ensure", *flags(document)])
    assert request_cli.of(parsed, LIVE) == by_file == by_json(document, monkeypatch)


# --- options of the contract that are only passed through


@pytest.mark.parametrize(
    ("declared", "flag", "value", "wrong", "said"),
    [
        ({"type": "str"}, "b c", "b c", 7, "7 is not a text"),
        ({"type": "str", "choices": ("a", "b")}, "b", "b", "c", "'c' is not one of a, b"),
        ({"type": "int"}, "3", 3, -1, "-1 is not a whole number"),
        ({"type": "float"}, "0.5", 0.5, math.nan, "NaN is not a number of 0 or more"),
        ({"type": "bool"}, "true", True, "yes", "'yes' is neither true nor false"),
        ({"type": "list", "elements": "int"}, "8,2", (2, 8), [0], "0 is not a whole number above"),
        ({"type": "list", "elements": "str"}, "a,b", ("a", "b"), "a", "'a' is not a list"),
    ],
)
def test_an_option_needs_only_its_entry_in_the_contract(
    monkeypatch: pytest.MonkeyPatch,
    declared: dict[str, Any],
    flag: str,
    value: Any,
    wrong: Any,
    said: str,
) -> None:
    option = options.Option("sgl_any_thing", text="Any thing.", **declared)
    monkeypatch.setitem(options.BY_NAME, option.name, option)
    field = request_fields.passed_through("any_thing", option)
    for fields in (request_fields.FIELDS, request_fields.PASSED_THROUGH):
        monkeypatch.setitem(fields, "any_thing", field)
    assert request().option("any_thing") is None and request().options == ()
    made = request(["--any-thing", flag])
    assert made.option("any_thing") == value and made.digest != request().digest
    given = list(value) if isinstance(value, tuple) else value
    assert by_json({"model": "/models/m", "any_thing": given}, monkeypatch) == made
    assert Request.from_json(made.to_json()) == made
    parsed = cli._parser().parse_args(["caches", "ensure", *made.describe()])
    assert request_cli.of(parsed, LIVE) == made
    assert f"--any-thing={flag if value != (2, 8) else '2,8'}" in made.describe()
    with pytest.raises(Refused, match=f"the request's any_thing: {said}"):
        by_json({"model": "/models/m", "any_thing": wrong}, monkeypatch)


def test_a_stage_that_the_document_does_not_name_has_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = by_json({"model": "m", "stages": {"inductor": "rebuild"}}, monkeypatch)
    assert made.stages == {**DEFAULTS, "inductor": "rebuild"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": 7}, "the request's model: 7 is not a text"),
        ({"model": None}, "the request's model: null is not a text"),
        ({"tp": "2"}, "the request's tp: '2' is not a whole number above 0"),
        ({"tp": 0}, "the request's tp: 0 is not a whole number above 0"),
        ({"tp": True}, "the request's tp: true is not a whole number above 0"),
        ({"tp": 1.0}, "the request's tp: 1.0 is not a whole number above 0"),
        ({"stages": []}, "the request's stages: [] is not an object"),
        (
            {"stages": {"moe": "skip"}},
            "the request's stages: moe is not one of deep_gemm, moe_tune",
        ),
        (
            {"stages": {"inductor": "maybe"}},
            "the request's stages: 'maybe' is not one of ensure, rebuild, skip",
        ),
        ({"moe_batch_sizes": 8}, "the request's moe_batch_sizes: 8 is not a list"),
        ({"moe_batch_sizes": [8, 0]}, "the request's moe_batch_sizes: 0 is not a whole number"),
        ({"cuda_graph_batch_sizes": "1,2"}, "cuda_graph_batch_sizes: '1,2' is not a list"),
        ({"moe_dtype": ["auto"]}, 'the request\'s moe_dtype: ["auto"] is not a text'),
        ({"moe_sample": -1}, "the request's moe_sample: -1 is not a whole number"),
        (
            {"moe_fusion": "rebuild"},
            "the request's moe_fusion: 'rebuild' is not one of ensure, skip",
        ),
        ({"probe": "sometimes"}, "the request's probe: 'sometimes' is not one of auto, always"),
        ({"server_args": "--x"}, "the request's server_args: '--x' is not a list"),
        ({"server_args": [1]}, "the request's server_args: 1 is not a text"),
        ({"server_args": ["--api-key=x"]}, "the request's server_args: --api-key: sgl-admin gives"),
        ({"server_args": ["a\0b"]}, "the request's server_args: 'a\\x00b' has a character"),
        ({"server_args": ["\ud800"]}, "the request's server_args: '\\ud800' has a character"),
        ({"server_env": ["A=1"]}, 'the request\'s server_env: ["A=1"] is not an object'),
        ({"server_env": {"A": 1}}, "the request's server_env: 1 is not a text"),
        ({"server_env": {"1A": "x"}}, "the request's server_env: '1A' is not the name"),
        ({"server_env": {"A": "x\0"}}, "the request's server_env: A has a value that no"),
        ({"server_timeout": "9"}, "the request's server_timeout: '9' is not a number of seconds"),
        ({"server_timeout": math.nan}, "the request's server_timeout: NaN is not a number"),
        ({"probe_timeout": -1}, "the request's probe_timeout: -1 is not a number of seconds"),
        ({"probe_timeout": 10**400}, "the request's probe_timeout: 1000"),
        ({"port": 65536}, "the request's port: 65536 is not a port: the last one is 65535"),
        ({"warmup_port": 1}, "the request has an unknown key: warmup_port"),
    ],
)
def test_a_wrong_key_or_value_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused) as refused:
        by_json({"model": "/models/m", **changes}, monkeypatch)
    assert refused.value.exit_code == cli.EXIT_USAGE
    assert said in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is a JSON list, not an object"),
        (b"{}", "the request has no model"),
    ],
)
def test_what_is_no_document_is_refused(
    monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    with pytest.raises(Refused, match=said) as refused:
        by_json(content, monkeypatch)
    assert refused.value.exit_code == cli.EXIT_USAGE


def test_a_wrong_request_ends_with_2_and_one_sentence(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in (["ensure"], ["export", "-"], ["import", "/none.tar"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"model": "m", "tp": 0}')))
        assert cli.main(["caches", *action, "--request", "-"]) == cli.EXIT_USAGE
        captured = capsys.readouterr()
        assert (
            captured.err == ("sgl-admin: the request's tp: 0 is not a whole number above 0\n")
            and not captured.out
        )


@pytest.mark.parametrize(
    "flag", ["--tp=2", "--moe=skip", "--server-arg=--x", "--server-env=A=1", "--port=7"]
)
def test_a_request_and_a_flag_of_it_are_a_usage_error(
    live_run: str, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert cli.main(["caches", "ensure", "--request", "-", flag]) == cli.EXIT_USAGE
    assert "--request is the whole request" in capsys.readouterr().err


def test_an_import_does_not_read_archive_and_request_from_one_stream(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["caches", "import", "-", "--request", "-"]) == cli.EXIT_USAGE
    assert "standard input is the archive" in capsys.readouterr().err


def test_a_request_that_cannot_be_read_ends_with_2(
    live_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (tmp_path / "none", tmp_path, "a\0b"):
        assert cli.main(["caches", "ensure", "--request", str(name)]) == cli.EXIT_USAGE
        assert "the request cannot be read: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("hunter2", "KEY=VALUE"),
        ("1A=hunter2", "'1A' is not the name"),
        ("A B=hunter2", "'A B' is not the name"),
    ],
)
def test_no_nonsense_becomes_the_servers_environment_and_no_value_is_shown(
    setting: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        request([f"--server-env={setting}"])
    said = capsys.readouterr().err
    assert why in said and "hunter2" not in said


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_a_model_without_a_name_ends_with_2(
    live_run: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    request = json.dumps({"model": name})
    with pytest.raises(Refused, match="no folder is named"):
        request_cli.from_json(request.encode())
    with pytest.raises(SystemExit) as caught:
        cli.main(["caches", "ensure", "--model", name])
    assert caught.value.code == 2 and "no folder is named" in capsys.readouterr().err


def test_a_model_with_a_name_that_none_can_have_ends_with_2(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("m" * 300, "a\0b", "a\nb"):
        assert cli.main(["caches", "ensure", "--model", str(paths.MODELS / name)]) == 2
        assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_an_index_that_is_no_file_ends_with_2(
    live_run: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_folder / "model.safetensors.index.json").mkdir()
    assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 2
    assert "model.safetensors.index.json cannot be read by uid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"elapsed_s": 10**400},
        {"eta_s": 10**400},
        {"message": "\ud800\n\x1b[31m"},
        {"state": "running", "arguments": [None]},
    ],
)
def test_a_strange_record_is_shown_in_one_line(
    live_run: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc")
    made.update(state="done", exit_code=0)
    files.write_json(paths.job(live_run), {**made.record, **changes})
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.rstrip("\n").isprintable()


@pytest.mark.parametrize("group", [0, 1, -1, True, 10**30])
def test_the_group_of_a_spoiled_record_is_not_killed(
    live_run: str, monkeypatch: pytest.MonkeyPatch, group: object
) -> None:
    """0 would be sgl-admin's own."""
    killed: list[int] = []
    monkeypatch.setattr(processes, "end_group", killed.append)
    made = job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc")
    made.update(server={"pgid": group, "start_ticks": None})
    job.settle(live_run, [])
    assert killed == [] and (job.read(live_run) or {})["state"] == "interrupted"


def test_a_busy_prep_with_strange_arguments_is_named(
    live_run: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc")
    running.update(arguments=[None, 7], arguments_digest="another")
    lock = locks.try_lock(job.LOCK)
    assert lock is not None
    try:
        assert cli.main(["caches", "ensure", "--model", str(model_folder)]) == 5
        assert "None 7" in capsys.readouterr().err
    finally:
        os.close(lock)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"a": 1}', "[" * 100_000])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Request.from_json(text)


def test_who_stops_following_is_told_that_the_prep_goes_on(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run_id: str, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_wait", interrupted)
    assert cli.main(["status"]) == 130
    assert "a prep goes on by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"exit_code": 6}, 6), ({"exit_code": 256}, 1), ({"state": "running"}, 1)],
)
def test_who_watches_a_prep_is_told_how_it_ended(
    live_run: str, changes: dict[str, Any], code: int
) -> None:
    """One that says `running` and holds no lock was killed: that is no success."""
    made = job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc")
    made.update(**{"state": "done", "exit_code": None if changes.get("state") else 0, **changes})
    assert cli.main(["status", "--watch"]) == code
    assert cli.main(["status"]) == code
    assert cli.main(["status", "--json"]) == 0


def test_a_status_without_a_prep_or_of_one_that_runs_is_no_success(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status"]) == 1
    assert f"no prep yet in {live_run}" in capsys.readouterr().out
    lock = locks.try_lock(job.LOCK)
    assert lock is not None
    try:
        job.Job(live_run, request(), "prep-20261123T091600Z-77aa01bc").update()
        assert cli.main(["status"]) == 5
    finally:
        os.close(lock)


def test_a_warning_of_a_strange_record_is_one_line(live_run: str) -> None:
    job.Job(live_run, request(), "\x1b[31m\n").update(stage="\0")
    warnings: list[str] = []
    job.settle(live_run, warnings)
    assert len(warnings) == 1 and warnings[0].isprintable()
