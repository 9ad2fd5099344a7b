"""What records, logs and command lines show of the server's arguments and variables: values whose
names are known as public, and none of the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible_collections.slice_bench.sglang.plugins.modules import sgl_model

from sgl_admin.base import gated, keyed, paths
from sgl_admin.base.command import Command
from sgl_admin.contract import disclosure
from sgl_admin.contract.disclosure import NOT_SHOWN
from sgl_admin.records import prepared
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE
from sgl_admin.sglang.public_flags import FLAGS
from sgl_admin.smoke import chat

SECRET = "hunter2-Tr0ub4dor"
NAMES = json.loads(
    (Path(__file__).resolve().parents[1] / "fixtures" / "upstream_names.json").read_text()
)
# Of what upstream's sources name as flags: those that take a secret or any text, and words of
# argparse and of other commands.
NOT_PUBLIC = """
    --api-key --admin-api-key --ssl-keyfile-password --watermark-key --watermark-key-b --action
    --action-kwargs --aliases --choices --cli-name --config --const --default --doc --fallback --fn
    --help --nargs --no-cli --path --required --resolvable --sidecar-args --type-parser
    --custom-weight-loader --stat-loggers
""".split()

# Arguments that hold the secret in each of the ways that were tried.
ARGUMENTS = [
    [f"--api-k={SECRET}"],
    ["--api-k", SECRET],
    ["--api_key", SECRET],
    [f"--ssl-keyfile-password={SECRET}"],
    ["--unheard-of", "public", SECRET],
    [f"--unheard-of={SECRET}"],
    [f"--unheard-of {SECRET}"],
    [SECRET],
    ["--trust-remote-code", "--x", SECRET],
    [f'--json-model-override-args={{"api_key": "{SECRET}"}}'],
    [f'--json-model-override-args={{"type": "mla", "deep": {{"list": ["{SECRET}"]}}}}'],
    ["--json-model-override-args", f'{{"token": "{SECRET}", "layers": 4}}'],
    [f'--kv-events-config={{"publisher": "zmq", "password": {SECRET}}}'],
    [f"--model-loader-extra-config={{'key': '{SECRET}'}}"],
    [f'--extra-metric-labels={{"a": "\\"{SECRET}"}}'],
    [f"--tool-server=http://user:{SECRET}@tools:8000"],
    [f"--tool-server=https://{SECRET}@tools:8000/path"],
    [f"--tool-server=http://u:p/{SECRET}@tools"],
    [f"--tool-server=http://tools/x?apikey={SECRET}&b=1"],
    [f"--otlp-traces-endpoint=grpc://a:{SECRET}@host:4317"],
    [f"--encoder-urls=http://one:1,http://u:{SECRET}@two:2"],
]
VARIABLES = [
    *("PGPASS", "GITHUB_PAT", "API_KEYS", "MYSQL_PWD", "DATABASE_URL", "UNHEARD_OF", "HF_TOKEN"),
    *("SGLANG_API_KEY", "NCCL_AUTH", "OTEL_EXPORTER_OTLP_HEADERS", "aws_secret_access_key", "A"),
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "TELEMETRY", tmp_path)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    keyed.ensure()
    return tmp_path


@pytest.mark.parametrize("words", ARGUMENTS, ids=lambda words: " ".join(words)[:40])
def test_a_secret_among_the_arguments_is_not_shown(words: list[str], tree: Path) -> None:
    argv = ENGINE.command("/models/m", 1, 30000, words)
    command = Command(argv, {}, ENGINE.shown_arguments(argv), {})
    assert SECRET not in json.dumps(command.shown)
    assert command.shown_argv[: -len(words)] == argv[: -len(words)]
    assert SECRET not in json.dumps(keyed.words(argv, command.shown_argv))
    # A log that has the whole of it loses it too.
    said = f"server_args=ServerArgs({', '.join(map(repr, argv))}) {json.dumps(argv)}"
    assert SECRET not in disclosure.masked(said, command.hidden)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_secret_variable_is_not_shown(name: str, tree: Path) -> None:
    env = {name: SECRET, "NCCL_DEBUG": "INFO"}
    shown = ENGINE.shown_environment(env)
    assert shown == {name: NOT_SHOWN, "NCCL_DEBUG": "INFO"}
    assert SECRET not in json.dumps(keyed.environment(env, shown))
    assert disclosure.hidden_of([], [], env, shown) == [SECRET]


def test_credentials_of_a_known_variable_are_not_shown() -> None:
    proxy = {"HTTPS_PROXY": f"http://user:{SECRET}@proxy:3128", "OMP_NUM_THREADS": "4"}
    assert ENGINE.shown_environment(proxy) == {
        "HTTPS_PROXY": f"http://{NOT_SHOWN}@proxy:3128",
        "OMP_NUM_THREADS": "4",
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--mem-fraction-static=0.8", "--attention-backend", "fa3", "--trust-remote-code"],
        ["--cuda-graph-bs", "1", "2", "--served-model-name", "my model"],
        ['--json-model-override-args={"num_hidden_layers": 4, "rope_type": "yarn", "x": null}'],
        ["--dist-init-addr", "10.0.0.1:5000", "--chat-template", "/models/a/template.jinja"],
    ],
)
def test_what_is_known_as_public_is_shown(words: list[str]) -> None:
    assert ENGINE.shown_arguments(words) == words


def test_an_operator_names_more_public_ones() -> None:
    assert ENGINE.shown_arguments(["--my-plugin=fast"], ("--my-plugin",)) == ["--my-plugin=fast"]
    assert ENGINE.shown_environment({"MY_MODE": "fast"}, ("MY_MODE",)) == {"MY_MODE": "fast"}


def test_every_flag_of_upstream_is_public_or_named_as_not() -> None:
    upstream = {flag for flags in NAMES["flags"].values() for flag in flags.split()}
    assert upstream - FLAGS == set(NOT_PUBLIC)
    assert FLAGS <= upstream


def test_digests_differ_between_trees_and_are_not_of_the_value_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("a", "b"):
        monkeypatch.setattr(paths, "TELEMETRY", tmp_path / name)
        keyed.ensure()
        made.append(keyed.digest(SECRET))
        assert keyed.digest(SECRET) == made[-1]
        assert keyed.place().stat().st_mode & 0o777 == 0o600
    assert made[0] != made[1]


def run(command: Command, log: Path) -> tuple[str, int]:
    """The program's command line as anybody sees it, and its exit code."""
    with log.open("wb") as output:
        process, word = gated.start(command, (), stdout=output, stderr=output, env=dict(os.environ))
    seen = Path(f"/proc/{process.pid}/cmdline").read_text()
    os.write(word, b"1")
    while process.poll() is None:
        seen += Path(f"/proc/{process.pid}/cmdline").read_text()
    os.close(word)
    return seen, process.returncode


PROGRAM = """
import json, multiprocessing, subprocess, sys
def child(words):
    print("child", words, flush=True)
if __name__ == "__main__":
    print("argv", sys.argv[1:])
    print(json.dumps(sys.argv[1:]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-c", "print(%r)" % sys.argv[-1]])
    process = multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1:],))
    process.start(); process.join()
    sys.stdout.write("last words %s" % sys.argv[-1]); sys.stdout.flush()
    sys.exit(7 if process.exitcode == 0 else 9)
"""


def test_neither_ps_nor_the_log_has_a_value_that_is_not_shown(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tree / "fakeserver"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tree))
    secret = 'two words "and" \\ more'
    argv = [sys.executable, "-m", "fakeserver.launch", "--tp-size", "1", "--x", secret]
    shown = ENGINE.shown_arguments(argv)
    seen, code = run(Command(argv, {}, shown, {}), tree / "log")
    for _ in range(100):
        if (tree / "log").read_text().endswith(NOT_SHOWN):
            break
        subprocess.run(["sleep", "0.05"], check=True)
    log = (tree / "log").read_text()
    assert code == 7, log
    assert "two words" not in seen + log and "fakeserver.launch" in seen and NOT_SHOWN in seen
    assert log.count(NOT_SHOWN) == 5 and "child ['--tp-size', '1'" in log
    assert log.endswith(f"last words {NOT_SHOWN}")


# What it stands for: fastapi.FastAPI is an ASGI application that its server calls by the class, and
# SGLang's route /server_info answers with all arguments (srt/entrypoints/http_server.py).
FASTAPI = """
class FastAPI:
    def __init__(self, body):
        self.body = body
    async def __call__(self, scope, receive, send):
        headers = [(b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})
"""
ASKED = """
import asyncio, json, sys
from fastapi import FastAPI
app = FastAPI(json.dumps({"admin_api_key": sys.argv[-1], "tp_size": 1}).encode())
for method in ("GET", "POST"):
    sent = []
    async def send(message):
        sent.append(message)
    asyncio.run(app({"type": "http", "method": method, "path": "/server_info"}, None, send))
    start, answer = sent
    assert int(start["headers"][0][1]) == len(answer["body"])
    with open("answer-" + method, "wb") as file:
        file.write(answer["body"])
"""


def test_no_answer_to_a_get_has_a_value_that_is_not_shown(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tree / "fakeserver"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch.py").write_text(ASKED)
    (tree / "fastapi.py").write_text(FASTAPI)
    monkeypatch.setenv("PYTHONPATH", str(tree))
    monkeypatch.chdir(tree)
    secret = 'two words "and" more'
    argv = [sys.executable, "-m", "fakeserver.launch", "--tp-size", "1", "--x", secret]
    _seen, code = run(Command(argv, {}, ENGINE.shown_arguments(argv), {}), tree / "log")
    assert code == 0, (tree / "log").read_text()
    answer = json.loads((tree / "answer-GET").read_text())
    assert set(answer["admin_api_key"]) == {"*"} and answer["tp_size"] == 1
    # What asks for a completion is not looked at: it costs a benchmark nothing.
    assert json.loads((tree / "answer-POST").read_text())["admin_api_key"] == secret


def test_a_command_that_shows_all_is_started_as_it_is(tree: Path) -> None:
    argv = [sys.executable, "-c", "print('all')"]
    seen, code = run(Command.public(argv, {}), tree / "log")
    assert code == 0 and "disguise" not in seen and (tree / "log").read_text() == "all\n"


def test_a_value_that_comes_in_pieces_is_hidden(tmp_path: Path) -> None:
    from sgl_admin.base import disguise

    for size in (1, 2, 3, 7):
        source, sink = os.pipe()
        target = tmp_path / f"out-{size}"
        with target.open("wb") as out:
            text = b"a secret-value, and a secret-valu" + b"secret-value" * 2
            writer = os.fork()
            if writer == 0:
                os.close(source)
                for start in range(0, len(text), size):
                    os.write(sink, text[start : start + size])
                os._exit(0)
            os.close(sink)
            disguise.relay(source, out.fileno(), [b"secret-value"], b"*")
            os.close(source)
            os.waitpid(writer, 0)
        assert target.read_bytes() == b"a *, and a secret-valu**"


# --- keys of the server -----------------------------------------------------------------------


def test_the_servers_keys_are_in_no_record(tree: Path) -> None:
    keys = ENGINE.key_arguments(SECRET, keyed.admin_key())
    argv = ENGINE.command("/models/m", 1, 30000, keys)
    command = Command(argv, {}, ENGINE.shown_arguments(argv), {})
    assert ENGINE.api_key(argv) == SECRET and ENGINE.port(argv) == 30000
    assert command.hidden == sorted({SECRET, keyed.admin_key()})
    assert SECRET not in json.dumps(command.shown)
    assert keyed.admin_key() not in json.dumps(command.shown)
    assert ENGINE.api_key(ENGINE.command("/models/m", 1, 30000, [])) is None


def test_a_request_sends_the_servers_key(tree: Path) -> None:
    seen = []

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for keys in ([SECRET], [""]):
            argv = ENGINE.command("/m", 1, server.server_port, ENGINE.key_arguments(keys[0], ""))
            made = Server(
                Command.public(argv, {}), server.server_port, tree / "log", group=os.getpgid(0)
            )
            assert made.healthy()
        chat.served_model(server.server_port, SECRET)
        server.shutdown()
    assert seen == [f"Bearer {SECRET}", None, f"Bearer {SECRET}"]


def test_a_private_file_of_another_server_is_not_taken(tree: Path) -> None:
    argv = ENGINE.command("/m", 1, 1, [f"--x={SECRET}"])
    command = Command(argv, {}, ENGINE.shown_arguments(argv), {})
    identity = f"sha256:{'1' * 64}"
    section = {
        "server": {**command.shown, "identity": identity},
        "model": "/m",
        "prep_id": "p",
        "profile": None,
    }
    prepared.write("r", section, {}, command)
    record = prepared.read("r", identity)
    assert record is not None and SECRET not in json.dumps(record)
    assert prepared.command(record) == command
    assert prepared.same_command("r", command.shown) == command
    private = prepared.path("r", identity).with_suffix(".private")
    assert private.stat().st_mode & 0o777 == 0o600
    private.write_text(private.read_text().replace(SECRET, "another"))
    with pytest.raises(ValueError, match="belongs to another server"):
        prepared.command(record)
    private.unlink()
    with pytest.raises(ValueError, match="is gone"):
        prepared.command(record)
    assert prepared.same_command("r", command.shown) is None


def test_a_module_shows_no_argument_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in its answer, which -vvv shows, nor in the host's log of its call."""
    words = ["--tp", "1", f"--api-k={SECRET}"]
    given = {"path": str(tmp_path / "none"), "server_args": words, "may_be_missing": True}
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode()
    logged: list[str] = []
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", arguments)
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    monkeypatch.setattr(
        basic.AnsibleModule, "log", lambda self, msg, **more: logged.append(f"{msg} {more}")
    )
    with pytest.raises(SystemExit):
        sgl_model.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"]["identity"] is None and logged
    assert SECRET not in json.dumps([answer, logged])
    # Common words are not blackened in all that it says.
    assert answer["invocation"]["module_args"]["tp"] == 1
