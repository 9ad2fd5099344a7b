"""What docs/contributing/security.md says: loopback only, least rights, and no secret in any log or
record.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path

import pytest

from sgl_admin.contract.services import ANY_ADDRESS
from tests.integration.installation import Site, module, wait_for
from tests.integration.test_container import await_end, stop_prep

pytestmark = pytest.mark.slow

# Prints address, port and program of each TCP socket that a process of the container listens on.
LISTENERS = """
import glob, ipaddress, json, os
def address(text):
    raw = bytes.fromhex(text)
    words = b"".join(raw[i:i+4][::-1] for i in range(0, len(raw), 4))
    return str(ipaddress.ip_address(words))
own = {}
for link in glob.glob("/proc/[0-9]*/fd/*"):
    try: own[os.readlink(link)] = open("/".join(link.split("/")[:3]) + "/cmdline")\
.read().replace(chr(0), " ")
    except OSError: pass
found = []
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{table}").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            host, _, port = fields[1].partition(":")
            found.append([address(host), int(port, 16), own[f"socket:[{fields[9]}]"]])
print(json.dumps(sorted(found)))
"""


def listeners(site: Site) -> list[tuple[str, int, str]]:
    done = site.docker_exec("/opt/sglang/bin/python", "-c", LISTENERS)
    assert done.returncode == 0, done.stderr
    return [(address, port, program) for address, port, program in json.loads(done.stdout)]


def test_everything_listens_on_loopback_alone(prepared: Site) -> None:
    assert {port for _, port, _ in listeners(prepared)} == {
        prepared.ports["prometheus"],
        prepared.ports["node_exporter"],
    }
    assert {address for address, _, _ in listeners(prepared)} == {"127.0.0.1"}


def test_the_server_of_a_prep_listens_on_loopback_but_for_torchs_store(prepared: Site) -> None:
    """PyTorch's rendezvous store takes every address, in spite of its arguments; nothing else does
    (docs/contributing/security.md).
    """
    ports = prepared.ports
    prepared.begin("--inductor", "rebuild", "--probe", "never")
    try:
        wait_for(
            lambda: ports["sglang"] in [port for _, port, _ in listeners(prepared)],
            "the server to listen",
        )
        found = listeners(prepared)
    finally:
        stop_prep(prepared)
    assert set(ports.values()) <= {port for _, port, _ in found}
    wide = [
        (port, program) for address, port, program in found if address not in ("127.0.0.1", "::1")
    ]
    assert len(wide) <= 1 and all("sglang::scheduler" in program for _, program in wide), found


@pytest.mark.long
def test_who_connects_to_torchs_store_while_the_server_starts_ends_the_prep(prepared: Site) -> None:
    prepared.begin("--inductor", "rebuild", "--probe", "never")
    wide = wait_for(
        lambda: [port for address, port, _ in listeners(prepared) if address in ANY_ADDRESS],
        "PyTorch's store",
    )
    with socket.create_connection(("127.0.0.1", wide[0])):
        ended = await_end(prepared)
    stage = prepared.stage("inductor")
    assert ended["exit_code"] == 13 and stage["error_type"] == "port_busy", stage
    assert (
        f"a process of uid {os.getuid()} outside this container is connected to port {wide[0]}"
        in " ".join(stage["errors"])
    )
    assert prepared.servers() == []
    assert prepared.ensure().returncode == 0


def test_services_are_opened_by_the_variable_alone(bare: Site) -> None:
    bare.must_play("start", variables={"sgl_bind_address": "0.0.0.0"})
    open_ports = {port for address, port, _ in listeners(bare) if address in ANY_ADDRESS}
    assert open_ports == {bare.ports["prometheus"], bare.ports["node_exporter"]}


def test_the_container_has_no_rights_that_it_does_not_need(prepared: Site) -> None:
    status = dict(
        line.partition(":\t")[::2]
        for line in prepared.docker_exec("cat", "/proc/1/status").stdout.splitlines()
    )
    assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        0
    }
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {str(prepared.owner[0])}


def test_dev_shm_is_the_containers_own(prepared: Site) -> None:
    """Where others leave files under names that SGLang will open."""
    left = Path("/dev/shm") / f"multi_tokenizer_args_{os.getpid()}"
    left.touch()
    try:
        seen = prepared.docker_exec("ls", "-A", "/dev/shm").stdout.split()
    finally:
        left.unlink()
    assert left.name not in seen
    size = prepared.docker_exec("df", "--output=size", "-B1G", "/dev/shm").stdout.split()[-1]
    assert size == "32"


def test_the_image_has_no_way_to_more_rights(prepared: Site) -> None:
    found = prepared.docker_exec(
        "find",
        "/",
        "-xdev",
        "-type",
        "f",
        "(",
        "-perm",
        "/6000",
        "-o",
        "-name",
        "sudo",
        "-o",
        "-name",
        "doas",
        ")",
    )
    # Folders that this user may not read are no way for it either.
    assert found.stdout.splitlines() == []
    assert prepared.docker_exec("find", "/usr/bin/find").stdout.strip(), "find does not find"


def test_no_secret_in_any_log_or_record(bare: Site) -> None:
    """A token for the container's programs, in the loudest run there is."""
    token = f"hf_{secrets.token_hex(16)}"
    play = bare.must_play(
        "prep", "-vvv", "--diff", variables={"sgl_environment": {"HF_TOKEN": token}}
    )
    assert bare.docker_exec("printenv", "HF_TOKEN").stdout.strip() == token, (
        "the token did not arrive"
    )
    assert token not in play.output
    files = [
        path for path in bare.root.rglob("*") if path.is_file() and "prometheus" not in path.parts
    ]
    assert len(files) > 20
    assert [str(path) for path in files if token.encode() in path.read_bytes()] == []
    again = bare.must_play(
        "start", "-vvv", "--diff", variables={"sgl_environment": {"HF_TOKEN": token + "x"}}
    )
    assert again.changed > 0 and token not in again.output
    # One that fails says why all the same.
    refused = bare.play(
        "start",
        "-vvv",
        variables={"sgl_environment": {"HF_TOKEN": token}, "sgl_ulimits": ["nofile=99999999999"]},
    )
    assert refused.code != 0 and token not in refused.output


@pytest.mark.parametrize(
    "secret",
    [{"bearer_token": "s3cr3t-t0k3n"}, {"url_username": "ops", "url_password": "s3cr3t-t0k3n"}],
)
def test_no_secret_of_prom_ready_is_shown(secret: dict[str, str]) -> None:
    answer = module("prom_ready", {"url": "http://127.0.0.1:9", "timeout": 0.1, **secret}, "-vvv")
    assert answer["failed"] is True
    assert "s3cr3t-t0k3n" not in json.dumps(answer)


def test_a_key_among_the_servers_arguments_is_refused(prepared: Site) -> None:
    """Arguments stand in the records, where a benchmark reads them."""
    key = f"key-{os.getpid()}-secret"
    done = prepared.ensure(f"--server-arg=--api-key={key}")
    assert (
        done.returncode == 2 and "--api-key" in done.stderr and key not in done.stdout + done.stderr
    )
    assert prepared.job()["state"] == "done"
