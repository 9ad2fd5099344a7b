"""Who holds a port, as the host side and the container side tell it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _ports as host_ports
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import (
    listeners as host_listeners,
)

from sgl_admin.base import ports as container_ports
from sgl_admin.contract import listeners as container_listeners


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_the_holder_is_named(listening: int) -> None:
    assert f"(pid {os.getpid()})" in (host_ports.taken("127.0.0.1", listening) or "")
    assert f"(pid {os.getpid()} in this container)" in container_ports.holder(listening)


def test_one_on_another_address_of_the_host_does_not_count(listening: int) -> None:
    assert host_ports.taken("127.0.0.2", listening) is None
    assert host_ports.taken("0.0.0.0", listening) is not None


def test_a_holder_on_ipv6_is_found() -> None:
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"(pid {os.getpid()})" in (host_ports.taken("::1", port) or "")


def test_a_free_port_has_none(listening: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    assert host_ports.taken("127.0.0.1", free) is None
    assert "cannot be seen" in container_ports.holder(free)


def test_an_address_that_is_not_this_hosts_is_not_a_taken_port() -> None:
    """The service itself says so when it starts."""
    assert host_ports.taken("192.0.2.1", 9090) is None


def test_another_users_process_is_known_by_its_user(
    listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_listeners, "descriptors", lambda pid: set())
    monkeypatch.setattr(container_listeners, "descriptors", lambda pid: set())
    assert (
        host_ports.taken("127.0.0.1", listening) == f"a process of {host_ports._user(os.getuid())}"
    )
    assert (
        container_ports.holder(listening)
        == f"a process of uid {os.getuid()} outside this container"
    )
    assert host_ports._user(4_000_000_000) == "uid 4000000000"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "localhost", "127.0.0.9"])
def test_an_address_of_this_host(address: str) -> None:
    assert host_ports.not_ours(address) is None


@pytest.mark.parametrize("address", ["10.99.99.99", "192.0.2.1", "2001:db8::1", "no.such.invalid"])
def test_an_address_that_is_not_this_hosts_is_refused(address: str) -> None:
    assert (host_ports.not_ours(address) or "").startswith(f"{address}, which")


def test_a_containers_ports_are_read_of_its_environment() -> None:
    environment = ["SGL_BIND_ADDRESS=::", "SGL_PROMETHEUS_PORT=19090", "SGL_SGLANG_PORT=x", "A"]
    assert host_ports.of_container(environment) == ("::", {"prometheus": 19090})
    assert host_ports.of_container([]) == (None, {})


def test_a_foreign_listener_beside_our_own_is_seen(listening: int) -> None:
    """The container listens on one address, and is to listen on all of them."""
    assert host_ports.taken_beside("0.0.0.0", listening, own="127.0.0.1") is None
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.7", listening))
        foreign.listen()
        who = host_ports.taken_beside("0.0.0.0", listening, own="127.0.0.1")
        assert f"(pid {os.getpid()})" in (who or "")
        assert host_ports.taken_beside("127.0.0.8", listening, own="127.0.0.1") is None
